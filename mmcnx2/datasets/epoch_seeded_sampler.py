"""Which picture comes when: the order of an epoch, split over processes, each index with the seed of its sample.

Touch this file for the order; not for what is drawn for a picture (seeding.py, the pipeline).
Guarded by tests/datasets/test_epoch_seeded_sampler.py.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Sized

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from mmcnx2.registry import DATA_SAMPLERS

from .seeding import SeededIndex, derive_seed


@DATA_SAMPLERS.register_module()
class EpochSeededSampler(Sampler):
    """Yields SeededIndex: as mmengine's DefaultSampler (or InfiniteSampler), with a seed from (seed, epoch, picture).

    Processes take turns: with two of them at batch b, their k-th batches together hold the samples of one process's
    k-th batch of 2 b. With a dataset that obeys the seeds (mmcnx2.UnlabelledImages, and in our training loops
    every other, through mmcnx2.SeededDataset) they are also the same tensors, for any number of workers.

    Args:
        dataset: what is sampled; only its length is used here.
        shuffle: a new order each epoch; False keeps 0, 1, 2, ...
        seed: the same in all processes; None draws one and sends it to all.
        round_up: repeat samples from the front until every process has equally many; False leaves some one short. Off
            means nothing for an infinite sampler and is refused there.
        infinite: never stop, for mmengine's IterBasedTrainLoop: epoch follows epoch without a restart of the workers.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None, round_up: bool = True,
                 infinite: bool = False) -> None:
        if infinite and not round_up:
            raise ValueError('round_up=False has no meaning with infinite=True, which never ends; leave it out.')
        self.dataset = dataset  # batch samplers such as mmdet's AspectRatioBatchSampler ask it
        self.num_images = len(dataset)
        if self.num_images == 0:
            raise ValueError('the dataset is empty: there is nothing to sample. Look at its source.')
        self.rank, self.world_size = get_dist_info()
        self.shuffle, self.round_up, self.infinite = shuffle, round_up, infinite
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self._num_skipped = 0

    def __iter__(self) -> Iterator[SeededIndex]:
        start, self._num_skipped = self._num_skipped, 0
        first = self.rank + start * self.world_size
        return self._endless(first) if self.infinite else self._epoch(first)

    def __len__(self) -> int:
        """Samples of this process in an epoch (infinite: pictures in an epoch of all processes, as mmengine's)."""
        if self.infinite:
            return self.num_images
        if self.round_up:
            return math.ceil(self.num_images / self.world_size)
        return math.ceil((self.num_images - self.rank) / self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order and seeds come next. An infinite sampler counts its epochs itself and ignores it."""
        self.epoch = epoch

    def skip(self, num_samples: int) -> None:
        """The next iteration, and that one alone, begins after this process's first `num_samples`; none is loaded.

        It counts from the beginning of the epoch; of an infinite sampler, from the beginning of the run, as mmengine's
        IterBasedTrainLoop does when it resumes.
        """
        if num_samples < 0:
            raise ValueError(f'num_samples={num_samples}: the number of samples to skip cannot be negative.')
        self._num_skipped = num_samples

    def _epoch(self, first: int) -> Iterator[SeededIndex]:
        order = self._order(self.epoch)
        end = len(self) * self.world_size if self.round_up else self.num_images
        for position in range(first, end, self.world_size):
            yield self._seeded(order[position % self.num_images], self.epoch)

    def _endless(self, position: int) -> Iterator[SeededIndex]:
        while True:
            epoch, offset = divmod(position, self.num_images)
            order = self._order(epoch)
            for picture in order[offset::self.world_size]:
                yield self._seeded(picture, epoch)
                position += self.world_size

    def _order(self, epoch: int) -> Sequence[int]:
        if not self.shuffle:
            return range(self.num_images)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        return torch.randperm(self.num_images, generator=generator).tolist()

    def _seeded(self, picture: int, epoch: int) -> SeededIndex:
        return SeededIndex(picture, derive_seed(self.seed, epoch, picture))
