"""A share of a training set, for cheap experiments: the same pictures every time; a larger share contains a smaller.

dataset of a config --> pictures that it would train on --> the chosen ones --> a file, and the keys that name it

A picture is chosen when its rank is low, and its rank is a hash of the seed and its name. So it depends neither on the
order of files nor on how many there are. Touch this file for another kind of dataset or for what a share means; not
for what a whole data set is (tools/prepare_data.py) or who trains on it (tools/transfer.py). Guarded by
tests/datasets/test_subsets.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from numbers import Real
from pathlib import Path

from mmengine.registry import DATASETS

from mmcnx2.atomic_write import write_atomically

from .annotation_checks import read_coco
from .image_files import EXTENSIONS, find_images

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')  # where a type without a scope is looked for
KINDS = dict(
    CocoDataset='coco', BaseSegDataset='label_maps', CustomDataset='class_folders', UnlabelledImages='unlabelled'
)
ALLOWED = (
    "mmdet's CocoDataset, mmsegmentation's BaseSegDataset, mmpretrain's CustomDataset, those built on them such as "
    'ADE20KDataset or ImageNet, and mmcnx2.UnlabelledImages'
)


def subset_options(dataset: dict, fraction: float, seed: int, folder: str | Path) -> dict[str, object]:
    """The keys of `dataset` that must change so that it holds a share of its pictures; the files that they name are
    written.

    At least one picture stays, and one per class in class folders. The share is of the pictures that would be trained
    on: images without an annotation do not count in a CocoDataset that leaves them out. The same arguments give the
    same bytes; with one seed a smaller share is part of a larger one.

    Args:
        dataset: of a config, with its `type`; relative paths start at the working directory, as in training.
        fraction: in (0, 1]; the count is rounded to the nearest, halves up. At 1 nothing is written and {} returned.
        seed: 0 or more; another seed, another share.
        folder: for the files; made when it is not there.

    Raises:
        ValueError, TypeError: impossible fraction or seed; a dataset of which no share can be taken, or without files.
        OSError: a file cannot be read or written.
    """
    if not isinstance(fraction, Real) or isinstance(fraction, bool) or not 0 < fraction <= 1:
        raise ValueError(f'fraction={fraction!r} is a share of the pictures: above 0 and up to 1, for example 0.1.')
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f'seed={seed!r} must be a whole number, 0 or more.')
    if dataset.get('indices') is not None:
        raise ValueError(f'the dataset has indices={dataset["indices"]!r} already; leave them out to take a share.')
    _, kind = _class_and_kind(dataset)
    if fraction == 1:
        return {}
    return WRITERS[kind](dict(dataset), fraction, seed, Path(folder).absolute())


def num_chosen(num: int, fraction: float) -> int:
    """How many of `num` pictures are `fraction` of them: the nearest whole number, halves up, but never none."""
    return min(num, max(1, math.floor(num * fraction + 0.5)))


def choose(names: Iterable[str], fraction: float, seed: int) -> set[str]:
    """The share of the names with the lowest ranks; see the top of the file."""
    ranked = sorted(names, key=lambda name: _rank(name, seed))
    return set(ranked[: num_chosen(len(ranked), fraction)])


def _rank(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f'{seed} {name}'.encode(errors='surrogateescape'), digest_size=16).digest()


# ---- one writer per kind of dataset


def _subset_of_coco(dataset: dict, fraction: float, seed: int, folder: Path) -> dict[str, object]:
    path = _below_root(dataset, dataset.get('ann_file', ''))
    coco = read_coco(path)
    filters = dataset.get('filter_cfg') or {}
    shortest, annotated = filters.get('min_size', 0), None
    if filters.get('filter_empty_gt', False):
        annotated = {annotation.get('image_id') for annotation in coco['annotations']}
    names = [
        image['file_name']
        for image in coco['images']
        if min(image['height'], image['width']) >= shortest and (annotated is None or image['id'] in annotated)
    ]
    if not names:
        raise ValueError(f"'{path}': filter_cfg={filters} leaves out every image, there is nothing to take a share of.")
    chosen = choose(names, fraction, seed)
    images = [image for image in coco['images'] if image['file_name'] in chosen]
    ids = {image['id'] for image in images}
    annotations = [annotation for annotation in coco['annotations'] if annotation.get('image_id') in ids]
    text = json.dumps({**coco, 'images': images, 'annotations': annotations}, separators=(',', ':'))
    return dict(ann_file=_written(folder, path.stem, '.json', fraction, seed, text))


def _subset_of_label_maps(dataset: dict, fraction: float, seed: int, folder: Path) -> dict[str, object]:
    built = _built(dataset)
    prefix = os.path.abspath(built.data_prefix.get('img_path') or '')
    stems = [os.path.relpath(info['img_path'], prefix)[: -len(built.img_suffix)] for info in _infos(built)]
    chosen = choose(stems, fraction, seed)
    text = _lines(stem for stem in stems if stem in chosen)
    return dict(ann_file=_written(folder, Path(prefix).name, '.txt', fraction, seed, text))


def _subset_of_class_folders(dataset: dict, fraction: float, seed: int, folder: Path) -> dict[str, object]:
    """A share of each class: by label, or of all when there are no labels."""
    built = _built(dataset)
    prefix = os.path.abspath(built.img_prefix or '')
    names_of = defaultdict(list)
    for info in _infos(built):
        names_of[info.get('gt_label')].append(os.path.relpath(info['img_path'], prefix))
    lines = []
    for label, names in names_of.items():
        chosen = choose(names, fraction, seed)
        lines += [name if label is None else f'{name} {label}' for name in names if name in chosen]
    return dict(ann_file=_written(folder, Path(prefix).name, '.txt', fraction, seed, _lines(lines)))


def _subset_of_unlabelled(dataset: dict, fraction: float, seed: int, folder: Path) -> dict[str, object]:
    extensions = dataset.get('extensions', EXTENSIONS)
    paths = [os.path.abspath(path) for path in find_images(dataset['source'], dataset.get('data_root', ''), extensions)]
    # Ranks by the name below the folder that all share: a moved data set keeps its shares.
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    chosen = choose((os.path.relpath(path, shared) for path in paths), fraction, seed)
    text = _lines(path for path in paths if os.path.relpath(path, shared) in chosen)
    return dict(source=_written(folder, Path(shared).name, '.txt', fraction, seed, text))


WRITERS = dict(
    coco=_subset_of_coco,
    label_maps=_subset_of_label_maps,
    class_folders=_subset_of_class_folders,
    unlabelled=_subset_of_unlabelled,
)


# ---- what the writers share


def _class_and_kind(dataset: dict) -> tuple[type, str]:
    """The class of a dataset, and the key of WRITERS that it is built on.

    A type without a scope may stand for different things in different libraries (CityscapesDataset does): the scope
    decides then.
    """
    given = dataset.get('type')
    if isinstance(given, type):
        found = {_kind_of(given): given}
    elif isinstance(given, str):
        names = [given] if '.' in given else [f'{library}.{given}' for library in LIBRARIES]
        classes = [DATASETS.get(name) for name in names]
        found = {_kind_of(one): one for one in classes if one is not None}
    else:
        raise TypeError(f'a dataset needs a `type`, not {given!r}. Possible are {ALLOWED}.')
    if not found:
        raise ValueError(f'no dataset is called {given!r}. Possible are {ALLOWED}.')
    kinds = [kind for kind in found if kind]
    if not kinds:
        raise TypeError(f'no share can be taken of a dataset of type {given!r}. Possible are {ALLOWED}.')
    if len(kinds) > 1:
        raise ValueError(f"{given!r} means different things in different libraries; write 'mmdet.{given}' or "
                         f"'mmseg.{given}'.")  # fmt: skip
    return found[kinds[0]], kinds[0]


def _kind_of(built_on: type) -> str | None:
    bases = {base.__name__ for base in built_on.__mro__}
    return next((kind for name, kind in KINDS.items() if name in bases), None)


def _built(dataset: dict):
    """The dataset by the library's own class, which finds its files; without its pipeline."""
    options = {key: value for key, value in dataset.items() if key != 'type'}
    try:
        return _class_and_kind(dataset)[0](**{**options, 'pipeline': [], 'lazy_init': False})
    except (AssertionError, RuntimeError, ValueError) as error:  # how the libraries say that files are not as expected
        raise ValueError(
            f'the dataset {dataset["type"]!r} in {dataset.get("data_root")!r} cannot be read, or is empty: {error}'
        ) from error


def _infos(built) -> Iterator[dict]:
    return (built.get_data_info(index) for index in range(len(built)))


def _below_root(dataset: dict, name: str) -> Path:
    if not name:
        raise ValueError('a CocoDataset needs its `ann_file` to take a share of it.')
    return Path(dataset.get('data_root') or '', name)


def _lines(names: Iterable[str]) -> str:
    lines = list(names)
    for line in lines:
        if line != line.strip() or '\n' in line:
            raise ValueError(
                f'the file name {line!r} begins or ends with a blank, or has a line break, which a list of files '
                'cannot hold. Rename the file.'
            )
    return ''.join(f'{line}\n' for line in lines)


def _written(folder: Path, stem: str, suffix: str, fraction: float, seed: int, text: str) -> str:
    path = folder / f'{stem}_fraction-{float(fraction):.12g}_seed-{seed}{suffix}'
    write_atomically(path, text)
    return str(path)
