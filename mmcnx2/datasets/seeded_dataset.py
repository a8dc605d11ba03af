"""A dataset whose chance belongs to the sample: what a pipeline draws does not depend on workers, nor on interruptions.

sampler (SeededIndex) --> SeededDataset --> any dataset of mmdet, mmseg or mmpretrain, its wrappers included

The training loops of mmcnx2/engine/train_loops.py put it around the dataset of a config. Touch this file for where the
seed is applied; not for how seeds are derived (seeding.py). Guarded by tests/datasets/test_seeded_dataset.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.registry import DATASETS as ALL_DATASETS
from torch.utils.data import Dataset

from mmcnx2.registry import DATASETS

from .seeding import SeededIndex, seeded_randomness


@DATASETS.register_module()
class SeededDataset(Dataset):
    """The samples of `dataset`; an index of mmcnx2.EpochSeededSampler is fetched under its seed.

    That covers the whole access, so also another picture that the dataset takes when a pipeline returns None. With an
    ordinary index nothing changes. Everything else that is asked of it (metainfo, pipeline ...) is the dataset's.

    Args:
        dataset: a dataset or its config.
    """

    def __init__(self, dataset: Dataset | dict) -> None:
        self.dataset = ALL_DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, SeededIndex):
            return self.dataset[index]
        with seeded_randomness(index.seed):
            return self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """A batch: whole where the dataset makes whole batches (mmcnx2.ResidentImages), else its samples."""
        if getattr(self.dataset, 'makes_whole_batches', False):
            return self.dataset.__getitems__(indices)
        return [self[index] for index in indices]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # not yet there while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)
