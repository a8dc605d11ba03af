"""Pictures -> one feature vector each, of a trained backbone at a chosen layer: the values averaged over positions.

Features are computed once and kept in a cache folder, an array (pictures, channels) that is read in pieces, so that a
set larger than the memory can be measured. A cached array belongs to exactly one key: the bytes of the checkpoint, the
settings of the backbone and its preprocessor, the layer, size and crop, the reader, and every file with its size and
time. Whatever of these changes, features are computed anew.

Touch this file for how features are made and kept; raise FEATURES_VERSION when their values change. What is done with
them is in knn.py and linear_probe.py; options of the tools are in mmcnx2/engine/feature_options.py. Guarded by
tests/analysis/test_features.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmcnx2.atomic_write import PARTIAL, put_in_place, write_atomically

from .activations import OUTPUT, watching
from .pictures import PictureReader
from .trained_models import TrainedBackbone

FEATURES_VERSION = 1


class _Pictures(Dataset):
    def __init__(self, paths: Sequence[str], reader: PictureReader) -> None:
        self.paths, self.reader = paths, reader

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.reader(self.paths[index])


@dataclass(frozen=True)
class FeatureSource:
    """A backbone, the layer, and how pictures are read: everything but the pictures themselves."""

    backbone: TrainedBackbone
    reader: PictureReader
    layer: str = OUTPUT
    channels_first: bool | None = None

    def key(self, paths: Sequence[str]) -> dict:
        """What the features of these files depend on, in words; raises FileNotFoundError when one is missing."""
        files = hashlib.sha256()
        for path in paths:
            status = os.stat(path)
            files.update(f'{path}\t{status.st_size}\t{status.st_mtime_ns}\n'.encode())
        return dict(
            features_version=FEATURES_VERSION,
            checkpoint=self.backbone.digest,
            settings=self.backbone.settings,
            layer=self.layer,
            channels_first=self.channels_first,
            size=list(self.reader.size),
            crop_share=self.reader.crop_share,
            reader=str(self.reader.transform),
            num_files=len(paths),
            files=files.hexdigest(),
        )


def features_of(
    source: FeatureSource,
    paths: Sequence[str],
    cache: str | Path | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """float32 (pictures, channels): the layer's values averaged over positions, in the order of the paths.

    Args:
        source: backbone, layer and reader.
        paths: picture files.
        cache: folder that keeps the array and its key; the result is then mapped from the disk, not loaded. None
            computes it in memory.
        batch_size: pictures per forward pass. num_workers: processes that read pictures.
        progress: called with pictures done, and of how many.

    Raises:
        ValueError: a file cannot be read as a picture (it is named), or there is no such layer.
    """
    if not paths:
        raise ValueError('no pictures, so no features')
    if cache is None:
        return _compute(source, paths, None, batch_size, num_workers, progress)
    key = source.key(paths)
    text = json.dumps(key, indent=2, sort_keys=True) + '\n'
    stem = Path(cache).expanduser() / hashlib.sha256(text.encode()).hexdigest()[:24]
    array, description = stem.with_suffix('.npy'), stem.with_suffix('.json')
    if not (array.is_file() and description.is_file() and description.read_text() == text):
        stem.parent.mkdir(parents=True, exist_ok=True)
        partial = stem.parent / f'.{stem.name}.{os.getpid()}{PARTIAL}'
        try:
            _compute(source, paths, partial, batch_size, num_workers, progress).flush()
            put_in_place(partial, array)
        finally:
            partial.unlink(missing_ok=True)
        write_atomically(description, text)
    return np.load(array, mmap_mode='r')


def _compute(
    source: FeatureSource,
    paths: Sequence[str],
    file: Path | None,
    batch_size: int,
    num_workers: int,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """The array; with `file` a map of that file (.npy), so that the memory holds one batch."""
    loader = DataLoader(_Pictures(paths, source.reader), batch_size=batch_size, num_workers=num_workers)
    model, features, done, found = source.backbone.model, None, 0, {}

    def take(name: str, x_BNC: Tensor) -> None:
        found[name] = x_BNC.float().mean(1).cpu().numpy()

    with torch.inference_mode(), watching(model, [source.layer], take, source.channels_first):
        for pictures in loader:
            model(source.backbone.images(pictures))
            batch_BC = found.pop(source.layer)
            if not np.isfinite(batch_BC).all():
                raise ValueError(f'features of layer {source.layer} are not finite: look at the checkpoint')
            if features is None:
                shape = (len(paths), batch_BC.shape[1])
                if file is None:
                    features = np.empty(shape, np.float32)
                else:
                    features = np.lib.format.open_memmap(file, 'w+', np.float32, shape)
            features[done : done + len(batch_BC)] = batch_BC
            done += len(batch_BC)
            progress(done, len(paths))
    return features


def stratified_folds(labels: Sequence[int], num_folds: int, seed: int) -> list[np.ndarray]:
    """Sorted indices of `num_folds` parts; each class is spread over them evenly, in an order drawn from the seed.

    Raises:
        ValueError: fewer than 2 parts or more than pictures, or a class with fewer pictures than 2 (it could not be
            learnt and tested).
    """
    labels = np.asarray(labels)
    if num_folds < 2:
        raise ValueError(f'--folds {num_folds}: cross-validation needs at least 2 parts')
    if num_folds > len(labels):
        raise ValueError(
            f'--folds {num_folds}: there are {len(labels)} pictures, and each part needs one; give 2 to {len(labels)}'
        )
    rng = np.random.default_rng(seed)
    part_of = np.empty(len(labels), int)
    start = 0  # goes round through the classes, so that parts are equally large
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        if len(places) < 2:
            raise ValueError(f'class {label} has one picture: it cannot be learnt from and tested on; take it out')
        part_of[rng.permutation(places)] = (start + np.arange(len(places))) % num_folds
        start += len(places)
    return [np.flatnonzero(part_of == part) for part in range(num_folds)]
