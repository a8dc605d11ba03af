"""The demo scenes, step 2: scenes -> a data folder in three formats at once.

    unlabelled/*.jpg                                         pictures alone, for pretraining
    coco/{train,val}/*.jpg, coco/annotations/instances_{train,val}.json           COCO instances
    ade/images/{training,validation}/*.jpg, ade/annotations/{training,validation}/*.png       ADE20K-style label maps
    meta.json                                                settings, versions, counts; written last

The labelled pictures are the same in coco/ and ade/. Label maps hold 0 for background and 1..6 for the classes; COCO's
category ids are the same numbers. Touch this file for formats and folders; not for what a scene looks like
(demo_scenes.py). Guarded by tests/datasets/test_demo_files.py.
"""
from __future__ import annotations

import io
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from mmcnx2.atomic_write import write_atomically
from mmcnx2.version import __version__

from .demo_scenes import BACKGROUND, CLASSES, SCENE_VERSION, Scene, draw_scene
from .worker_pool import results_of

KIND = 'mmcnx2 demo scenes'
META_FILE = 'meta.json'
OWN_FOLDERS = ('unlabelled', 'coco', 'ade')
STREAMS = {'unlabelled': 0, 'train': 1, 'val': 2}  # second word of a scene's seed: no picture is in two sets
ADE_NAMES = {'train': 'training', 'val': 'validation'}
JPEG_QUALITY = 92
MIN_SIZE, MAX_SIZE = 64, 2048


def write_demo(out: str | Path, num_unlabelled: int = 2000, num_train: int = 64, num_val: int = 64, size: int = 192,
               seed: int = 0, num_workers: int | None = None, force: bool = False,
               progress: Callable[[Iterable, int], Iterable] = lambda steps, total: steps) -> bool:
    """True when the folder was written, False when it was there already, complete and with the same settings.

    The same settings give the same bytes, with any number of workers (and the same NumPy, Pillow and kind of machine:
    these round alike). Scene i of a set does not depend on how many there are. After an interrupted call, call again.

    Args:
        out: the folder; its parents are made.
        num_unlabelled, num_train, num_val: pictures of each set.
        size: height and width in pixels.
        seed: of everything.
        num_workers: processes; None takes one per processor that this process may use.
        force: replace a demo folder with other settings. Other folders are never touched.
        progress: wraps the steps, for a progress bar; is told their number.

    Raises:
        ValueError: a setting is out of its range, or `out` holds other data.
        OSError: the folder cannot be written.
    """
    counts = dict(unlabelled=num_unlabelled, train=num_train, val=num_val)
    if min(counts.values()) < 0 or not any(counts.values()):
        raise ValueError(f'the numbers of scenes {counts} must not be negative, nor all 0.')
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f'size={size}: scenes are drawn from {MIN_SIZE} to {MAX_SIZE} pixels.')
    if seed < 0:
        raise ValueError(f'seed={seed} must not be negative.')
    if num_workers is not None and num_workers < 1:
        raise ValueError(f'num_workers={num_workers}: at least 1 process is needed.')
    out = Path(out).expanduser()
    settings = dict(**counts, size=size, seed=seed, scene_version=SCENE_VERSION)
    if _is_there(out, settings, force):
        return False
    _write_meta(out, dict(kind=KIND, complete=False, settings=settings))
    jobs = [(str(out), split, index, size, seed) for split, count in counts.items() for index in range(count)]
    labelled: dict[str, list] = dict(train=[], val=[])
    with results_of(_write_scene, jobs, num_workers) as done:
        for (_, split, _, _, _), instances in zip(jobs, progress(done, len(jobs)), strict=True):
            if split in labelled:
                labelled[split].append(instances)
    for split, instances_of_images in labelled.items():
        text = json.dumps(_coco_json(instances_of_images, size))
        write_atomically(out / 'coco' / 'annotations' / f'instances_{split}.json', text.encode())
    _write_meta(out, dict(
        kind=KIND, complete=True, settings=settings, classes=CLASSES, background=BACKGROUND,
        instances={split: [sum(one['category_id'] == index + 1 for instances in images for one in instances)
                           for index in range(len(CLASSES))] for split, images in labelled.items()},
        versions=dict(mmcnx2=__version__, numpy=np.__version__, pillow=PIL.__version__,
                      python=platform.python_version())))
    return True


def instances_of(scene: Scene) -> list[dict]:
    """COCO annotations of a scene, without ids: what is visible of each object, from the lowest to the uppermost."""
    instances = []
    for number, class_index in enumerate(scene.classes, start=1):
        mask_HW = scene.instance_HW == number
        rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
        left, top = int(columns[0]), int(rows[0])
        instances.append(dict(
            category_id=class_index + 1, iscrowd=0, area=int(mask_HW.sum()),
            bbox=[left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
            segmentation=segmentation_of(mask_HW)))
    return instances


def segmentation_of(mask_HW: np.ndarray) -> list | dict:
    """COCO's polygon [[x, y, ...]] along the pixels' edges, or uncompressed RLE when one polygon cannot say it: for an
    object with a hole, in several pieces, or with pixels that touch at a corner only. Both decode to this very mask."""
    corners = _closed_outline(mask_HW)
    if corners is None:
        return dict(size=list(mask_HW.shape), counts=_run_lengths(mask_HW))
    return [[coordinate for corner in corners for coordinate in corner]]


def _closed_outline(mask_HW: np.ndarray) -> list[tuple[int, int]] | None:
    """Corners (x, y) of the one closed line around the mask; None when there are several, or one that meets itself."""
    padded = np.pad(mask_HW, 1).astype(bool)
    inside = padded[1:-1, 1:-1]
    # Steps along pixel edges that have the mask on their right hand: (where the neighbour is, start, end) as (dx, dy).
    sides = ((padded[:-2, 1:-1], (0, 0), (1, 0)), (padded[1:-1, 2:], (1, 0), (1, 1)),
             (padded[2:, 1:-1], (1, 1), (0, 1)), (padded[1:-1, :-2], (0, 1), (0, 0)))
    follows: dict[tuple[int, int], tuple[int, int]] = {}
    for neighbour, (start_x, start_y), (end_x, end_y) in sides:
        rows, columns = np.nonzero(inside & ~neighbour)
        for x, y in zip(columns.tolist(), rows.tolist(), strict=True):
            if (x + start_x, y + start_y) in follows:  # two pixels meet at this corner only
                return None
            follows[x + start_x, y + start_y] = x + end_x, y + end_y
    start = here = next(iter(follows))
    line = [start]
    while (here := follows[here]) != start:
        line.append(here)
    if len(line) != len(follows):
        return None
    before, after = line[-1:] + line[:-1], line[1:] + line[:1]
    return [corner for corner, (from_x, from_y), (to_x, to_y) in zip(line, before, after, strict=True)
            if from_x != to_x and from_y != to_y]


def _run_lengths(mask_HW: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, beginning with one of zeros."""
    values = mask_HW.T.ravel()
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    lengths = np.diff([0, *changes, len(values)]).tolist()
    return [0, *lengths] if values[0] else lengths


def _coco_json(instances_of_images: list[list[dict]], size: int) -> dict:
    images = [dict(id=index + 1, file_name=_name(index) + '.jpg', width=size, height=size)
              for index in range(len(instances_of_images))]
    annotations = [dict(image_id=index + 1, **one) for index, instances in enumerate(instances_of_images)
                   for one in instances]
    for number, annotation in enumerate(annotations, start=1):
        annotation['id'] = number
    categories = [dict(id=index + 1, name=name, supercategory='shape') for index, name in enumerate(CLASSES)]
    return dict(info=dict(description=KIND), images=images, annotations=annotations, categories=categories)


def _write_scene(job: tuple[str, str, int, int, int]) -> list[dict]:
    """Draws one scene, writes its files, answers its COCO instances."""
    out, split, index, size, seed = job
    scene = draw_scene([seed, STREAMS[split], index], size)
    picture = _encoded(scene.image_HWC, 'JPEG', quality=JPEG_QUALITY)
    for path in _picture_paths(Path(out), split, index):
        write_atomically(path, picture)
    if split not in ADE_NAMES:
        return []
    write_atomically(_label_path(Path(out), split, index), _encoded(scene.label_HW, 'PNG'))
    return instances_of(scene)


def _picture_paths(out: Path, split: str, index: int) -> list[Path]:
    name = _name(index) + '.jpg'
    if split not in ADE_NAMES:
        return [out / split / name]
    return [out / 'coco' / split / name, out / 'ade' / 'images' / ADE_NAMES[split] / name]


def _label_path(out: Path, split: str, index: int) -> Path:
    return out / 'ade' / 'annotations' / ADE_NAMES[split] / (_name(index) + '.png')


def _name(index: int) -> str:
    return f'{index:06d}'


def _encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _is_there(out: Path, settings: dict, force: bool) -> bool:
    """Whether nothing is left to do; clears a folder with other settings when forced. Raises for what is not ours."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"'{out}' is a file; give a folder with --out.")
    if not out.exists() or not any(out.iterdir()):
        return False
    meta = _read_meta(out)
    if meta is None:
        raise ValueError(f"'{out}' holds other files and no {META_FILE} of demo scenes; nothing is written there. "
                         'Choose another folder with --out.')
    if meta['settings'] == settings:
        return meta['complete'] and _all_written(out, settings)
    if not force:
        there = meta['settings']
        different = ', '.join(f'{name} is {there.get(name)}, not {value}' for name, value in settings.items()
                              if there.get(name) != value)
        raise ValueError(f"'{out}' holds demo scenes with other settings ({different}). Replace them with --force, or "
                         'choose another folder with --out.')
    for name in OWN_FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    return False


def _read_meta(out: Path) -> dict | None:
    try:
        meta = json.loads((out / META_FILE).read_text())
        return meta if meta['kind'] == KIND and isinstance(meta['settings'], dict) and 'complete' in meta else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _all_written(out: Path, settings: dict) -> bool:
    paths = [path for split in STREAMS for index in range(settings[split])
             for path in _picture_paths(out, split, index)]
    paths += [_label_path(out, split, index) for split in ADE_NAMES for index in range(settings[split])]
    paths += [out / 'coco' / 'annotations' / f'instances_{split}.json' for split in ADE_NAMES]
    folders = {path.parent for path in paths}
    names_in = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in folders}
    return all(path.name in names_in[path.parent] for path in paths)


def _write_meta(out: Path, meta: dict) -> None:
    write_atomically(out / META_FILE, (json.dumps(meta, indent=2) + '\n').encode())
