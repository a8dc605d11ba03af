"""What is wrong with somebody's annotations: COCO JSON files and folders of label maps, one sentence per kind of
mistake.

Pure functions on files: no registry, no config. mmdet and mmsegmentation leave out, or stumble over, what is named
here; the functions find it before training. Touch this file for a new kind of mistake or a better sentence; not for
how a config is set up (engine/own_data.py) or for what is checked while training runs (check_label_map.py). Guarded by
tests/datasets/test_annotation_checks.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

NUM_NAMED = 3
IGNORED = 255  # value of pixels without a class in a label map
TOLERANCE_PX = 1.0  # boxes and polygons are rounded, and some tools count the last pixel's far edge
# Single slips of geometry in a large file are no reason to stop: COCO 2017 has boxes without height itself.
FORGIVEN_SHARE = 1e-5
TINY_BOX_SHARE = 0.01  # boxes below a pixel are left out by mmdet; more of them than this share is a mistake of units
NUMBER = int | float
# What an entry of each list must have for the file to be COCO at all
ENTRIES = dict(
    images=dict(id=int | str, file_name=str, height=NUMBER, width=NUMBER), categories=dict(id=int | str, name=str)
)
EXIF_ORIENTATION, TURNED_SIDEWAYS = 0x0112, (5, 6, 7, 8)


def coco_problems(
    annotation_file: str | Path,
    image_folder: str | Path,
    num_images: int | None = None,
    needs_masks: bool = True,
) -> list[str]:
    """One sentence per kind of mistake in a COCO file, naming file, ids and the remedy; empty when there is none.

    The JSON is looked through whole and every image file must exist.

    Args:
        annotation_file: JSON with `images`, `annotations` and `categories`.
        image_folder: where each `file_name` starts.
        num_images: of how many images the header is read, to compare sizes; always the same ones, spread evenly. None
            reads all.
        needs_masks: whether an annotation without `segmentation` is a mistake.
    """
    try:
        coco = read_coco(annotation_file)
    except (OSError, ValueError) as error:
        return [_reason(error)]
    return problems_of_coco(coco, annotation_file, image_folder, num_images, needs_masks)


def read_coco(annotation_file: str | Path) -> dict:
    """The JSON of a COCO file, of which at least the three lists exist and hold dicts with what identifies them.

    Raises:
        FileNotFoundError, ValueError: no file, no JSON, or JSON that is not COCO.
    """
    path = Path(annotation_file)
    if not path.is_file():
        raise FileNotFoundError(f"annotation file '{path}' does not exist (looked from {os.getcwd()}); give its path")
    try:
        coco = json.loads(path.read_bytes())
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"'{path}' is not JSON ({error}); export the annotations again, as COCO") from error
    for name, kinds in ENTRIES.items():
        entries = coco.get(name) if isinstance(coco, dict) else None
        if not isinstance(entries, list) or not entries:
            raise ValueError(
                f"'{path}' is JSON but not COCO: it has no list `{name}`, or an empty one. COCO is one object with the "
                'lists `images`, `annotations` and `categories`; export as "COCO JSON"'
            )
        for place, entry in enumerate(entries):
            for key, kind in kinds.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                    raise ValueError(
                        f"'{path}' is not COCO: {name}[{place}] has no proper {key}; each of `{name}` needs "
                        f'{_listed(list(kinds))}. Export the annotations again, as COCO'
                    )
    if not isinstance(coco.get('annotations'), list) or not all(isinstance(one, dict) for one in coco['annotations']):
        raise ValueError(
            f"'{path}' is JSON but not COCO: it has no list `annotations` of objects. Files named image_info_* have "
            'none; give the one with the instances'
        )
    return coco


def class_names(coco: dict) -> tuple[str, ...]:
    """Names of the categories in the order of the file, which is the order in which mmdet numbers them."""
    return tuple(str(category['name']) for category in coco['categories'])


def problems_of_coco(
    coco: dict,
    annotation_file: str | Path,
    image_folder: str | Path,
    num_images: int | None = None,
    needs_masks: bool = True,
) -> list[str]:
    """As coco_problems, of a file that read_coco has read."""
    found = _Findings(annotation_file)
    _check_categories(coco['categories'], found)
    images = _check_images(coco['images'], found)
    _check_annotations(coco, images, needs_masks, found)
    _check_image_files(coco['images'], Path(image_folder), num_images, found)
    return found.sentences(len(coco['annotations']))


def label_map_problems(
    image_folder: str | Path,
    label_folder: str | Path,
    num_classes: int,
    reduce_zero_label: bool = False,
    image_suffix: str = '.jpg',
    label_suffix: str = '.png',
    num_images: int | None = None,
) -> list[str]:
    """One sentence per kind of mistake in a folder of images and one of label maps; empty when there is none.

    All names are compared, at every depth of the folders; `num_images` pairs are opened (always the same ones, spread
    evenly; None: all).

    Args:
        image_folder, label_folder: `a/b.jpg` in the first belongs to `a/b.png` in the second.
        num_classes: pixels hold 0 to num_classes - 1, or 255 for no class.
        reduce_zero_label: pixels hold 1 to num_classes, and both 0 and 255 stand for no class (as in ADE20K).
        image_suffix, label_suffix: endings of the names; may be longer than an extension.
    """
    for folder, kind in ((image_folder, 'image'), (label_folder, 'label')):
        if not Path(folder).is_dir():
            return [f"{kind} folder '{folder}' does not exist (looked from {os.getcwd()}); give its path"]
    found = _Findings(label_folder)
    images, labels = stems_in(image_folder, image_suffix), stems_in(label_folder, label_suffix)
    for folder, stems, suffix, kind in (
        (image_folder, images, image_suffix, 'image'),
        (label_folder, labels, label_suffix, 'label'),
    ):
        if not stems:
            endings = sorted({Path(name).suffix for name in names_in(folder)})
            present = f'its files end in {_listed(endings)}' if endings else 'it is empty'
            return [f"no {kind} file '*{suffix}' in '{folder}' ({present}); give the folder, or the suffix, of yours"]
    for stem in sorted(images - labels):
        found.add(
            'no label map for', 'image', f"'{stem}{image_suffix}'",
            f"each needs its '*{label_suffix}' of the same name; add it, or take the image out of '{image_folder}'",
        )  # fmt: skip
    for stem in sorted(labels - images):
        found.add(
            'no image for', 'label map', f"'{stem}{label_suffix}'",
            f"'{image_folder}' has no '*{image_suffix}' of the same name; add it, or take the label map away",
        )  # fmt: skip
    for stem in evenly_spread(sorted(images & labels), num_images):
        image, label = Path(image_folder, stem + image_suffix), Path(label_folder, stem + label_suffix)
        _check_pair(image, label, num_classes, reduce_zero_label, found)
    return found.sentences()


def values_beyond(values: Sequence[int], num_classes: int, reduce_zero_label: bool = False) -> list[int]:
    """Those values of a label map, as stored in its file, that stand for no class and not for 'no class' either."""
    highest = num_classes if reduce_zero_label else num_classes - 1
    return [int(value) for value in values if not 0 <= value <= highest and value != IGNORED]


def value_remedy(num_classes: int, reduce_zero_label: bool = False) -> str:
    """What to do about values beyond the classes."""
    meaning = (
        f'1 to {num_classes}, and 0 or {IGNORED} for none'
        if reduce_zero_label
        else f'0 to {num_classes - 1}, and {IGNORED} for none'
    )
    return f'with {num_classes} classes a pixel holds {meaning}; add the missing classes or change these pixels'


def names_in(folder: str | Path) -> list[str]:
    """Relative names of all files below a folder, with '/' between components; hidden ones are passed over."""
    names = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != '.']
        relative = os.path.relpath(parent, folder)
        names += [name if relative == '.' else f'{relative}/{name}' for name in files if name[0] != '.']
    return names


def stems_in(folder: str | Path, suffix: str) -> set[str]:
    """Relative names, without their suffix, of the files at every depth of a folder that end in it."""
    return {name[: -len(suffix)] for name in names_in(folder) if name.endswith(suffix)}


def evenly_spread(items: Sequence, number: int | None) -> list:
    """`number` of the items, the first and the last among them; all when there are no more, or for None."""
    if number is None or number >= len(items):
        return list(items)
    places = np.linspace(0, len(items) - 1, number).round().astype(int)
    return [items[place] for place in dict.fromkeys(places.tolist())]


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) as mmcv reads a picture, turned by its EXIF orientation; from the header only.

    Pictures too large for Pillow to decode have a size as well: mmcv decodes more.

    Raises:
        OSError: it is no picture.
    """
    try:
        with Image.open(path) as image:
            return _turned(image.size, image.getexif())
    except Image.DecompressionBombError:
        return _size_of_huge(path)


def _size_of_huge(path: str | Path) -> tuple[int, int]:
    """From the readers of Pillow's formats themselves: its limit stays where it is, and nothing is decoded."""
    with open(path, 'rb') as file:
        start = file.read(16)
        for reader, accepts in [Image.OPEN[name] for name in Image.ID]:
            if accepts is not None and accepts(start) is not True:
                continue
            file.seek(0)
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):  # it is of another format
                image = reader(file, os.fspath(path))
                return _turned(image.size, Image.Image.getexif(image))  # that of PNG would decode
    raise Image.UnidentifiedImageError(f"'{path}' is no picture of a known format")


def _turned(size: tuple[int, int], exif: Image.Exif) -> tuple[int, int]:
    return size[::-1] if exif.get(EXIF_ORIENTATION) in TURNED_SIDEWAYS else size


# ---- COCO


class _Findings:
    """Mistakes by kind: each kind becomes one sentence, which names the first and counts the others."""

    def __init__(self, file: str | Path) -> None:
        self.file = file
        self.named: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        self.forgiven_share: dict[tuple[str, str, str], float] = {}

    def add(self, what: str, noun: str, name: str, remedy: str, forgiven: float = 0.0) -> None:
        """`forgiven`: up to this share of all annotations the kind is no mistake worth a sentence."""
        kind = (what, noun, remedy)
        self.named[kind].append(name)
        self.forgiven_share[kind] = forgiven

    def sentences(self, num_annotations: int = 0) -> list[str]:
        result = []
        for kind, names in self.named.items():
            what, noun, remedy = kind
            if len(names) <= self.forgiven_share[kind] * num_annotations:
                continue
            if len(names) == 1:
                which = f'{noun} {names[0]}'
            elif len(names) <= NUM_NAMED:
                which = f'{len(names)} {noun}s ({"; ".join(names)})'
            else:
                which = f'{len(names):,} {noun}s ({"; ".join(names[:NUM_NAMED])} ...)'
            result.append(f"'{self.file}': {what} {which}: {remedy}")
        return result


def _check_categories(categories: list[dict], found: _Findings) -> None:
    for key in ('id', 'name'):
        for value, number in Counter(category[key] for category in categories).items():
            if number > 1:
                found.add(
                    f'{key} used more than once in `categories`:', key, repr(value),
                    f'each category needs {"an id" if key == "id" else "a name"} of its own',
                )  # fmt: skip


def _check_images(images: list[dict], found: _Findings) -> dict[object, dict]:
    by_id: dict[object, dict] = {}
    for image in images:
        if image['id'] in by_id:
            found.add(
                'id used more than once in `images`:', 'id',
                f"{image['id']!r} ('{by_id[image['id']]['file_name']}' and '{image['file_name']}')",
                'give each image an id of its own, and its annotations the same',
            )  # fmt: skip
        by_id[image['id']] = image
    return by_id


def _check_annotations(coco: dict, images: dict[object, dict], needs_masks: bool, found: _Findings) -> None:
    categories = {category['id'] for category in coco['categories']}
    if not coco['annotations']:
        remedy = 'there is nothing to learn from or to test on; give the file with the instances'
        found.add('no annotation at all in', 'file', f"'{found.file}'", remedy)
    seen = set()
    for annotation in coco['annotations']:
        image = images.get(_hashable(annotation.get('image_id')))
        name = _annotation_name(annotation, image)

        def report(what: str, remedy: str, detail: str = '', name: str = name, forgiven: float = 0.0) -> None:
            found.add(what, 'annotation', f'{name}{detail}', remedy, forgiven)

        identity = _hashable(annotation.get('id'))
        if identity is None:
            report('no id in', 'number the annotations')
        elif identity in seen:
            report('an id that another has as well in', 'number the annotations, each with an id of its own')
        seen.add(identity)
        category = _hashable(annotation.get('category_id'))
        if category is None:
            report('no category_id in', 'give it the id of one of `categories`, or take the annotation out')
        elif category not in categories:
            report(
                'a category_id that `categories` lacks in',
                f'add that category, or use one of {_listed([one["id"] for one in coco["categories"]], 10)}; mmdet '
                'would leave the annotation out without a word',
                f': {category!r}',
            )
        if 'area' not in annotation:
            report('no `area` in', "write the mask's area in pixels, or width * height of the box")
        if 'iscrowd' not in annotation:
            report('no `iscrowd` in', 'write "iscrowd": 0 (1 for a crowd, which is not to be learnt)')
        if image is None:
            report('an image_id that `images` lacks in', 'add the image to `images`, or take the annotation out')
            continue
        _check_box(annotation.get('bbox'), image, report)
        _check_segmentation(annotation.get('segmentation'), image, needs_masks, report)


def _check_box(bbox: object, image: dict, report) -> None:
    if not _numbers(bbox) or len(bbox) != 4:
        report('no `bbox` of four numbers in', 'write [left, top, width, height] in pixels')
        return
    left, top, width, height = bbox
    if width <= 0 or height <= 0:
        remedy = '`bbox` is [left, top, width, height], not two corners; mend it or take the annotation out'
        report('a box without width or height in', remedy, forgiven=FORGIVEN_SHARE)
    elif width < 1 or height < 1:
        remedy = 'mmdet would leave it out; `bbox` is in pixels, not in shares of the image'
        report('a box smaller than a pixel in', remedy, forgiven=TINY_BOX_SHARE)
    elif _outside((left, left + width), (top, top + height), image):
        remedy = f'{_SIZE_REMEDY}; is `bbox` [left, top, width, height]?'
        report('a box that reaches outside its image in', remedy, forgiven=FORGIVEN_SHARE)


def _check_segmentation(segmentation: object, image: dict, needs_masks: bool, report) -> None:
    if not segmentation:
        if needs_masks:
            report('no `segmentation` in', 'masks are trained and tested here: add polygons or RLE')
    elif isinstance(segmentation, dict):
        size, counts = segmentation.get('size'), segmentation.get('counts')
        if not isinstance(counts, str | list) or not _numbers(size) or len(size) != 2:
            report('an RLE without `size` and `counts` in', 'write both, or polygons')
        elif list(size) != [image['height'], image['width']]:
            report(
                'an RLE of another size than its image in',
                '`size` is [height, width] of the image',
                f': {list(size)} instead of [{image["height"]}, {image["width"]}]',
            )
    elif not isinstance(segmentation, list) or not all(_numbers(polygon) for polygon in segmentation):
        report(
            'a `segmentation` that is neither RLE nor a list of polygons in',
            'write [[x1, y1, x2, y2, x3, y3, ...]], a list of lists',
        )
    elif any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
        remedy = 'each polygon is a list of x1, y1, x2, y2, ...; mend it or take the polygon out'
        report('a polygon with fewer than 3 points, or an odd number of values, in', remedy, forgiven=FORGIVEN_SHARE)
    elif any(_outside(polygon[0::2], polygon[1::2], image) for polygon in segmentation):
        report('a polygon that reaches outside its image in', _SIZE_REMEDY, forgiven=FORGIVEN_SHARE)


_SIZE_REMEDY = 'cut it off at the edge, or put right height and width in `images` if those are wrong'


def _outside(xs: Iterable[float], ys: Iterable[float], image: dict) -> bool:
    return (
        min(*xs, *ys) < -TOLERANCE_PX
        or max(xs) > image['width'] + TOLERANCE_PX
        or max(ys) > image['height'] + TOLERANCE_PX
    )


def _check_image_files(images: list[dict], folder: Path, num_images: int | None, found: _Findings) -> None:
    if not folder.is_dir():
        found.add('no image folder for its images:', 'folder', f"'{folder}'", 'it does not exist; give its path')
        return
    files_of: dict[Path, set[str]] = {}  # one look into a folder is quicker than one at every file
    present = []
    for image in images:
        path = folder / image['file_name']
        if path.parent not in files_of:
            files_of[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        if path.name in files_of[path.parent]:
            present.append((path, image))
        else:
            found.add(
                'no file for', 'image', f"'{path}' (id {image['id']})",
                'add the file, or put right file_name or the image folder',
            )  # fmt: skip
    for path, image in evenly_spread(present, num_images):
        try:
            width, height = image_size(path)
        except OSError as error:
            found.add('no readable picture in', 'file', f"'{path}'", f'replace it ({_reason(error)})')
            continue
        if (height, width) != (image['height'], image['width']):
            turned = ' (its camera rotation turns it)' if (width, height) == (image['height'], image['width']) else ''
            found.add(
                'a size in `images` that is not that of', 'file',
                f"'{path}', {height} x {width}{turned} instead of {image['height']} x {image['width']}",
                'put right height and width, or give the images that were annotated',
            )  # fmt: skip


def _annotation_name(annotation: dict, image: dict | None) -> str:
    where = f"'{image['file_name']}'" if image else f'id {annotation.get("image_id")!r}'
    return f'{annotation.get("id")!r} (image {where})'


def _numbers(values: object) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


def _hashable(value: object) -> object:
    """The value, or for a list or dict, which no id is, its text."""
    return repr(value) if isinstance(value, list | dict) else value


# ---- label maps


def _check_pair(image: Path, label: Path, num_classes: int, reduce_zero_label: bool, found: _Findings) -> None:
    try:
        size = image_size(image)
    except OSError as error:
        found.add('no readable picture in', 'file', f"'{image}'", f'replace it ({_reason(error)})')
        return
    try:
        with Image.open(label) as picture:
            values = np.asarray(picture)
    except Image.DecompressionBombError as error:
        remedy = f'cut it and its image into tiles ({_reason(error)})'
        found.add('too many pixels to be read, by mmsegmentation too, in', 'label map', f"'{label}'", remedy)
        return
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on broken files
        found.add('no readable label map in', 'file', f"'{label}'", f'write it again ({_reason(error)})')
        return
    if values.ndim != 2:
        found.add(
            f'{values.shape[2]} channels instead of class numbers in', 'label map', f"'{label}'",
            'it holds colours; write one number per pixel (a gray or a palette PNG)',
        )  # fmt: skip
        return
    if values.dtype.kind not in 'uib':
        found.add('values that are no whole numbers in', 'label map', f"'{label}'", 'write an 8-bit PNG')
        return
    if values.shape[::-1] != size:
        found.add(
            'a size that differs from its image in', 'label map',
            f"'{label}', {values.shape[0]} x {values.shape[1]} instead of {size[1]} x {size[0]} of '{image}'",
            'make both from the same picture (a camera rotation counts); resize labels without interpolation',
        )  # fmt: skip
    beyond = values_beyond(np.unique(values), num_classes, reduce_zero_label)
    if beyond:
        remedy = value_remedy(num_classes, reduce_zero_label)
        found.add('values beyond the classes in', 'label map', f"'{label}' ({_listed(beyond, 5)})", remedy)


def _reason(error: BaseException) -> str:
    return ' '.join(str(error).split()) or type(error).__name__


def _listed(items: Sequence, number: int = 20) -> str:
    shown = [str(item) for item in items[:number]]
    return ', '.join(shown) + (' ...' if len(items) > number else '')
