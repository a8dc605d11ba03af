"""Small copies of large photographs, made once, so that every epoch reads them quickly; a folder like any other.

source (folder, list, glob) --> each picture, its shorter side at most so many px --> OUT/the same path.jpg
                                                  OUT/shrunken.json: settings, versions, what was left out; written last

A file is whole or not there, and carries the time of its original, so an interrupted call is continued and a changed
original is copied again. Touch this file for what a copy is and when a folder of copies is complete; not for reading
files (load_image.py) or for the command (tools/shrink_images.py). Guarded by tests/datasets/test_shrunken_copies.py;
what it gains: tools/benchmark/input_speed.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from mmcnx2.atomic_write import left_over, write_atomically
from mmcnx2.version import __version__

from .image_files import EXTENSIONS, find_images
from .load_image import MAX_PIXELS, UnreadableImage, check_size, read_image, reasons
from .load_random_resized_crop import JPEG_START, resized
from .orientation import TURNS, orientation_of
from .worker_pool import results_of

KIND = 'mmcnx2 shrunken copies'
MARK_FILE = 'shrunken.json'
JPEG_ENDINGS = ('.jpg', '.jpeg')
SHORTER_SIDE = 512  # the smallest crop of the recipe, 20% of a 4:3 picture and narrow, still has 229 px
QUALITY = 95
MIN_SHORTER_SIDE, MIN_QUALITY, MAX_QUALITY = 32, 50, 100
OVERSAMPLING = 2  # a JPEG is decoded at least so many times larger than its copy
SAME_TIME = 2e9  # ns; file systems round times
NUM_NAMED = 5


@dataclass(frozen=True)
class Shrunken:
    """What a call did: copies made smaller, files copied as they were, copies that were there, {original: reason}."""

    num_shrunken: int
    num_as_they_were: int
    num_there: int
    left_out: dict[str, str]


def shrink(
    source: str | Path,
    out: str | Path,
    shorter_side: int = SHORTER_SIDE,
    quality: int = QUALITY,
    extensions: Sequence[str] = EXTENSIONS,
    max_bad_share: float = 0.1,
    num_workers: int | None = None,
    progress: Callable[[Iterable, int], Iterable] = lambda steps, total: steps,
) -> Shrunken:
    """Makes `out` a folder of copies of all pictures of `source`, or completes it.

    A copy is an 8-bit RGB JPEG as a person sees the picture: turned as the camera was held, what is transparent on
    white; nothing is enlarged. JPEG files that are small enough are copied byte by byte, when they can be decoded.
    Paths are those of the originals from the deepest folder that holds all of them, with .jpg behind other endings.

    Args:
        source, extensions: as image_files.find_images takes them.
        out: the folder; made when it is not there. Never inside the folder of the originals.
        shorter_side: px, at most, of a copy's shorter side.
        quality: of the JPEG files, 50 to 100.
        max_bad_share: in [0, 1]; more files that cannot be read are an error. Fewer are left out and named.
        num_workers: processes; None takes one per processor that this process may use.
        progress: wraps the steps, for a progress bar; is told their number.

    Raises:
        ValueError: a setting is out of its range; `out` holds other files, copies with other settings or of other
            originals; two originals would have one copy; too many cannot be read.
        OSError: the source does not exist, or a copy cannot be written.
    """
    _check_settings(shorter_side, quality, max_bad_share, num_workers)
    out = Path(out).expanduser()
    paths = find_images(source, extensions=extensions)
    originals = _names_of_copies(paths)
    if out.resolve().is_relative_to(_folder_of(paths).resolve()):
        raise ValueError(
            f"'{out}' lies in the folder of the originals, and copies would be copied: choose another one."
        )
    settings = dict(shorter_side=shorter_side, quality=quality)
    _check_out(out, settings)
    for folder, _, _ in os.walk(out):
        for begun in left_over(folder):
            begun.unlink()
    mark = dict(kind=KIND, complete=False, source=os.path.abspath(os.path.expanduser(source)), settings=settings)
    _write_mark(out, mark)
    done: dict[str, list[str]] = dict(shrunken=[], as_it_was=[], there=[])
    left_out: dict[str, str] = {}
    job = partial(_copy, shorter_side=shorter_side, quality=quality)
    jobs = [(path, str(out / name)) for name, path in originals.items()]
    with results_of(job, jobs, num_workers) as results:
        for path, what, reason in progress(results, len(jobs)):
            if reason:
                left_out[path] = reason
            else:
                done[what].append(path)
    if len(left_out) > max_bad_share * len(paths):
        named = '; '.join(f"'{path}': {reason}" for path, reason in list(left_out.items())[:NUM_NAMED])
        raise ValueError(
            f'{len(left_out)} of {len(paths)} pictures cannot be read, more than max_bad_share={max_bad_share} allows: '
            f'{named}. Mend or remove them, or raise it.'
        )
    _check_nothing_else(out, {name for name, path in originals.items() if path not in left_out})
    versions = dict(
        mmcnx2=__version__, pillow=PIL.__version__, torch=torch.__version__, python=platform.python_version()
    )
    num_pictures = len(paths) - len(left_out)
    _write_mark(out, dict(mark, complete=True, num_pictures=num_pictures, left_out=left_out, versions=versions))
    return Shrunken(len(done['shrunken']), len(done['as_it_was']), len(done['there']), left_out)


def check_complete(folder: str | Path) -> None:
    """Raises ValueError when the folder is part of a folder of copies that have not all been made."""
    folder = Path(folder).absolute()
    for above in (folder, *folder.parents):
        mark = _read_mark(above)
        if mark is not None and not mark['complete']:
            raise ValueError(
                f"'{above}' is to hold copies of the pictures in '{mark['source']}', and not all have been made. Run "
                f"tools/shrink_images.py again; it goes on where it was. Or delete '{MARK_FILE}' and train on a part."
            )


def small_picture(path: str, shorter_side: int) -> np.ndarray | None:
    """The picture as seen, (H, W, 3) RGB of 8 bits, not larger than asked for; None when the file may stay as it is.

    Raises UnreadableImage, for a file that may stay as well.
    """
    with reasons(), open(path, 'rb') as file:
        is_jpeg = file.read(len(JPEG_START)) == JPEG_START
    image_HWC = _decoded_jpeg(path, shorter_side) if is_jpeg else read_image(path)
    if image_HWC is None:
        return None
    size = _small_size(*image_HWC.shape[:2], shorter_side)
    return image_HWC if size == image_HWC.shape[:2] else resized(image_HWC, size)


def _decoded_jpeg(path: str, shorter_side: int) -> np.ndarray | None:
    """The picture as seen, decoded at 1/2, 1/4 or 1/8 where that is large enough; None when it may stay as it is."""
    with reasons(), Image.open(path) as image:
        check_size(image.size, MAX_PIXELS)
        may_stay = min(image.size) <= shorter_side and image.format == 'JPEG'
        turn = TURNS[orientation_of(image)]
        height, width = _small_size(image.height, image.width, OVERSAMPLING * shorter_side)
        image.draft(None, (width, height))
        image.load()
        stored_HWC = np.array(image.convert('RGB'))
    return None if may_stay else turn.seen(stored_HWC)


def _small_size(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    factor = min(1, shorter_side / min(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _copy(job: tuple[str, str], shorter_side: int, quality: int) -> tuple[str, str, str]:
    """(original, what was done, '' or why nothing could be)"""
    original, copy = job
    try:
        with reasons():
            time = os.stat(original).st_mtime_ns
        if os.path.exists(copy) and abs(os.stat(copy).st_mtime_ns - time) < SAME_TIME:
            return original, 'there', ''
        image_HWC = small_picture(original, shorter_side)
        with reasons():
            content = Path(original).read_bytes() if image_HWC is None else _encoded(image_HWC, quality)
    except UnreadableImage as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(copy)  # of an earlier state of the original
        return original, '', f'{error.kind}: {error}'
    write_atomically(copy, content)
    os.utime(copy, ns=(time, time))
    return original, 'as_it_was' if image_HWC is None else 'shrunken', ''


def _encoded(image_HWC: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, 'JPEG', quality=quality)
    return buffer.getvalue()


def _folder_of(paths: list[str]) -> Path:
    return Path(os.path.commonpath([os.path.abspath(os.path.dirname(path)) for path in paths]))


def _names_of_copies(paths: list[str]) -> dict[str, str]:
    """{path of the copy below its folder: original}"""
    folder = _folder_of(paths)
    names: dict[str, str] = {}
    for path in paths:
        name = os.path.relpath(os.path.abspath(path), folder)
        name += '' if name.lower().endswith(JPEG_ENDINGS) else '.jpg'
        if name in names:
            raise ValueError(
                f"'{names[name]}' and '{path}' would have the same copy: rename one, or take it out of the list."
            )
        names[name] = path
    return names


def _check_settings(shorter_side: int, quality: int, max_bad_share: float, num_workers: int | None) -> None:
    if shorter_side < MIN_SHORTER_SIDE:
        raise ValueError(f'shorter_side={shorter_side}: copies have {MIN_SHORTER_SIDE} px or more.')
    if not MIN_QUALITY <= quality <= MAX_QUALITY:
        raise ValueError(f'quality={quality} must lie between {MIN_QUALITY} and {MAX_QUALITY}.')
    if not 0 <= max_bad_share <= 1:
        raise ValueError(f'max_bad_share={max_bad_share} is a share of files: between 0 (none may be bad) and 1.')
    if num_workers is not None and num_workers < 1:
        raise ValueError(f'num_workers={num_workers}: at least 1 process is needed.')


def _check_out(out: Path, settings: dict) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"'{out}' is a file; give a folder for the copies.")
    if not out.exists() or not any(out.iterdir()):
        return
    mark = _read_mark(out)
    if mark is None:
        raise ValueError(
            f"'{out}' holds other files and no {MARK_FILE}; nothing is written there. Choose another folder."
        )
    if mark['settings'] != settings:
        raise ValueError(
            f"'{out}' holds copies with other settings ({mark['settings']}, not {settings}). Delete it, or "
            'choose another folder.'
        )


def _check_nothing_else(out: Path, names: set[str]) -> None:
    there = {os.path.relpath(path, out) for path in find_images(out)} if names else set()
    if there != names:
        example = sorted(there ^ names)[0]
        raise ValueError(
            f"'{out}' holds {len(there - names)} pictures that are no copies of this source, and {len(names - there)} "
            f"copies have gone meanwhile, for example '{example}'. Take out the former; run again for the latter."
        )


def _read_mark(out: Path) -> dict | None:
    try:
        mark = json.loads((out / MARK_FILE).read_text(encoding='utf-8'))
        return mark if mark['kind'] == KIND and {'complete', 'settings', 'source'} <= mark.keys() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_mark(out: Path, mark: dict) -> None:
    write_atomically(out / MARK_FILE, json.dumps(mark, indent=2) + '\n')  # ASCII: names need not be UTF-8
