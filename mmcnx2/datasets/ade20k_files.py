"""ADE20K with 150 classes as a folder: its archive, whether a copy is complete, how the full release becomes one.

    images/{training,validation}/*.jpg, annotations/{training,validation}/*.png       0: none of the classes, 1 to 150

The full release has more than 3,000 kinds of objects at the pictures' own size: X.jpg, X_seg.png with the number of an
object in its red and green channels, X.json with names. Touch this file for what belongs to ADE20K; not for the classes
(ade20k_classes.py). Guarded by tests/datasets/test_ade20k_files.py.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path

import numpy as np
from PIL import Image

from mmcnx2.atomic_write import write_atomically

from .ade20k_classes import CLASS_OF_NAME, CLASS_OF_OBJECT, CLASSES, class_of, normalised
from .annotation_checks import label_map_problems
from .download import Archive
from .folder_checks import Findings, files_in, missing_sentence, named
from .worker_pool import results_of

NUM_CLASSES = len(CLASSES)
# folder: (images, beginning of their names)
NUM_PUBLISHED = dict(training=(20_210, 'ADE_train'), validation=(2_000, 'ADE_val'))
FOLDER_IN_ARCHIVE = 'ADEChallengeData2016'
# SHA-1 as in dmlc/gluon-cv (scripts/datasets/ade20k.py) and zhanghang1989/PyTorch-Encoding (scripts/prepare_ade20k.py).
# The number of bytes is not published with it.
ARCHIVES = (
    Archive(
        'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
        'sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7',
    ),
)
MARK_FILE = 'from_full_release.json'
SHORT_SIDE = 512  # of the challenge's pictures, at most
JPEG_QUALITY = 95


def training_set(root: str | Path) -> dict:
    """The training set of our configs, as far as a share of it depends on it."""
    return dict(
        type='ADE20KDataset',
        data_root=str(root),
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
    )


def check_ade20k(root: str | Path, num_spot_checks: int = 48) -> Findings:
    """What a copy of ADE20K lacks, and what is wrong with `num_spot_checks` of its pairs; 0 compares names alone.

    Pictures beyond those of the challenge, as the full release has them, are no mistake.
    """
    root, found, extra = Path(root), Findings(), 0
    archive = ARCHIVES[0].name
    remedy = f'unpack {archive}, or run `prepare_data.py ade20k --download`, which takes what is missing'
    for split, (num, prefix) in NUM_PUBLISHED.items():
        complete = True
        for kind, suffix in (('images', '.jpg'), ('annotations', '.png')):
            folder = root / kind / split
            if not folder.is_dir():
                missing = f"folder '{folder}' with {num:,} {kind} is missing: {remedy}"
            else:
                present = files_in(folder, (suffix,))
                expected = [f'{prefix}_{number:08}{suffix}' for number in range(1, num + 1)]
                missing = missing_sentence(folder, expected, present, remedy)
            if missing:
                found.add(missing, archive)
                complete = False
            elif kind == 'images':
                extra += len(present) - num
        if complete:
            images, labels = root / 'images' / split, root / 'annotations' / split
            found.problems += label_map_problems(
                images, labels, NUM_CLASSES, reduce_zero_label=True, num_images=num_spot_checks
            )
    numbers = ', '.join(f'{split} {num:,} pairs' for split, (num, _) in NUM_PUBLISHED.items())
    more = f' and {extra:,} beyond the challenge' if extra else ''
    found.summary = f'ADE20K in {root} is complete: {numbers}{more}; {num_spot_checks} pairs per split looked at'
    return found


# ---- the full release


@dataclass
class Conversion:
    """What became of a full release."""

    num_images: Counter = dataclass_field(default_factory=Counter)  # per split
    num_there: int = 0  # pictures that were converted before
    num_beyond: int = 0  # pictures that the challenge does not have
    images_of_class: Counter = dataclass_field(default_factory=Counter)  # of those converted now
    without_names: list[str] = dataclass_field(default_factory=list)  # pictures without a JSON that can be read

    @property
    def absent_classes(self) -> list[str]:
        return [names for number, (names, _) in enumerate(CLASSES, start=1) if not self.images_of_class[number]]


def convert_full_release(
    release: str | Path,
    out: str | Path,
    short_side: int = SHORT_SIDE,
    challenge_only: bool = False,
    num_workers: int | None = None,
    progress: Callable[[Iterable, int], Iterable] = lambda steps, total: steps,
) -> Conversion:
    """Writes images and label maps of 150 classes from the full release (ADE20K_2021_17_01, or that of 2016).

    A class is found by the name that the picture's JSON gives an object, else by the object's number (`class_of`); the
    index_ade20k.pkl of the release is not read, for reading a pickle can run anything. Like the challenge's own
    pictures, larger ones are reduced until their shorter side has `short_side` pixels: labels by nearest neighbour.
    What is there from an interrupted call is left alone.

    Args:
        release: the folder with images/; `*_seg.png` are looked for at every depth, below 'training' and 'validation'.
        out: the folder to write; nothing else may be in it.
        short_side: 0 keeps the size, and the bytes of the pictures.
        challenge_only: leave out pictures that are not among the 20,210 and 2,000 of the challenge; the release of
            2021 has 25,574 to train on.
        num_workers: processes; None takes one per processor that this process may use.
        progress: wraps the steps, for a progress bar; is told their number.

    Raises:
        ValueError: a setting is out of its range, `release` is none, or `out` holds other data.
    """
    if short_side < 0:
        raise ValueError(f'short_side={short_side}: give pixels, or 0 to keep the size.')
    out = Path(out)
    jobs, result = [], Conversion()
    for seg in _segmentations(release):
        stem, split = seg.name.removesuffix('_seg.png'), _split_of(seg)
        in_challenge = _is_in_challenge(stem, split)
        result.num_beyond += not in_challenge
        if in_challenge or not challenge_only:
            jobs.append((seg, stem, split, out, short_side))
            result.num_images[split] += 1
    _claim(out, dict(short_side=short_side))
    todo = [job for job in jobs if not all(path.is_file() for path in _targets(job))]
    result.num_there = len(jobs) - len(todo)
    with results_of(_convert_one, todo, num_workers, chunk_size=4) as done:
        for job, (classes, has_names) in zip(todo, progress(done, len(todo)), strict=True):
            result.images_of_class.update(classes)
            if not has_names:
                result.without_names.append(str(job[0]))
    return result


def classes_of_objects(seg: Path) -> tuple[dict[int, int], bool]:
    """(object number -> class 1 to 150 or 0, whether names were found) of a picture of the full release."""
    names = _names_of_objects(seg.with_name(seg.name.removesuffix('_seg.png') + '.json'))
    known = {number: CLASS_OF_NAME.get(normalised(name)) for number, name in names.items()}
    # A release that numbers objects otherwise shows it where a name and a number both stand for a class.
    trusted = all(CLASS_OF_OBJECT.get(number) == one for number, one in known.items() if one is not None)
    numbers = set(names) | set(CLASS_OF_OBJECT)
    return {number: class_of(names.get(number), number, trusted) for number in numbers}, bool(names)


def label_map(seg_HWC: np.ndarray, class_of_object: dict[int, int]) -> np.ndarray:
    """(H, W) uint8 with the classes of a `*_seg.png`: object number = red // 10 * 256 + green."""
    numbers_HW = seg_HWC[..., 0].astype(np.int32) // 10 * 256 + seg_HWC[..., 1]
    table = np.zeros(max(int(numbers_HW.max()), *class_of_object) + 1, np.uint8)
    for number, one in class_of_object.items():
        table[number] = one
    return table[numbers_HW]


def _names_of_objects(path: Path) -> dict[int, str]:
    """Object number -> name, parts of objects among them; {} without a file that can be read."""
    try:
        # Some files of the release are not UTF-8; the names of objects are plain ASCII.
        content = json.loads(path.read_bytes().decode('utf-8', errors='replace'), strict=False)
        objects = content['annotation']['object']
        return {int(one['name_ndx']): str(one['name']) for one in objects}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _segmentations(release: str | Path) -> list[Path]:
    release = Path(release)
    if not release.is_dir():
        raise ValueError(f"--full-release: there is no folder '{release}'; give the unpacked ADE20K_2021_17_01.")
    found = sorted(path for path in release.rglob('*_seg.png') if _split_of(path))
    if not found:
        raise ValueError(
            f"'{release}' holds no *_seg.png below a folder 'training' or 'validation'. Give the unpacked full release "
            '(ADE20K_2021_17_01, with images/ADE/training/...); the files of the challenge need no conversion.'
        )
    without = [path.name for path in found if not _image_of(path).is_file()]
    if without:
        raise ValueError(
            f"'{release}': {len(without):,} *_seg.png have no picture beside them ({named(without)}): unpack the "
            'release again.'
        )
    return found


def _split_of(path: Path) -> str | None:
    return next((part for part in reversed(path.parts[:-1]) if part in NUM_PUBLISHED), None)


def _image_of(seg: Path) -> Path:
    return seg.with_name(seg.name.removesuffix('_seg.png') + '.jpg')


def _is_in_challenge(stem: str, split: str) -> bool:
    num, prefix = NUM_PUBLISHED[split]
    match = re.fullmatch(rf'{prefix}_(\d{{8}})', stem)
    return match is not None and 1 <= int(match[1]) <= num


def _claim(out: Path, settings: dict) -> None:
    """Marks the folder as ours before anything is written, so that a call can go on where one ended."""
    mark = out / MARK_FILE
    if mark.is_file():
        before = json.loads(mark.read_text())
        if before != settings:
            raise ValueError(f"'{out}' was converted with {before}, not {settings}: choose another folder (--root).")
        return
    if any((out / kind).exists() for kind in ('images', 'annotations')):
        raise ValueError(
            f"'{out}' holds pictures that are not of a conversion; they are not mixed. Choose another folder (--root)."
        )
    write_atomically(mark, (json.dumps(settings) + '\n').encode())


def _targets(job: tuple[Path, str, str, Path, int]) -> tuple[Path, Path]:
    _, stem, split, out, _ = job
    return out / 'images' / split / f'{stem}.jpg', out / 'annotations' / split / f'{stem}.png'


def _convert_one(job: tuple[Path, str, str, Path, int]) -> tuple[list[int], bool]:
    """Writes picture and label map; the classes in it, and whether its objects had names."""
    seg, _, _, _, short_side = job
    image_path, label_path = _targets(job)
    try:
        with Image.open(seg) as picture:
            seg_HWC = np.asarray(picture.convert('RGB'))
        with Image.open(_image_of(seg)) as image:
            size = image.size
            if size != seg_HWC.shape[1::-1]:
                raise ValueError(f"'{seg}' has {seg_HWC.shape[1::-1]} pixels, its picture {size}: unpack them again.")
            new_size = _reduced(size, short_side)
            content = _image_of(seg).read_bytes() if new_size == size else _as_jpeg(image, new_size)
    except OSError as error:
        raise ValueError(f"'{seg}' or its picture cannot be read ({error}): unpack them again.") from error
    class_of_object, has_names = classes_of_objects(seg)
    label = Image.fromarray(label_map(seg_HWC, class_of_object)).resize(new_size, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    label.save(buffer, 'PNG')
    write_atomically(image_path, content)
    write_atomically(label_path, buffer.getvalue())
    return [one for one in np.unique(label).tolist() if one], has_names


def _reduced(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """The size whose shorter side is at most `short_side`. Halves are rounded up, and squares are left alone, as the
    challenge's script does.
    """
    width, height = size
    shorter = min(size)
    if not short_side or shorter <= short_side or width == height:
        return size
    return tuple(
        short_side if side == shorter else math.floor(side / shorter * short_side + 0.5) for side in (width, height)
    )


def _as_jpeg(image: Image.Image, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    image.convert('RGB').resize(size, Image.Resampling.BICUBIC).save(buffer, 'JPEG', quality=JPEG_QUALITY)
    return buffer.getvalue()
