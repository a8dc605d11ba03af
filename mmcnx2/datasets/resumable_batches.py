"""Batches of indices that can begin anywhere: where an interrupted run goes on, without loading what it has seen.

The training loops of mmcnx2/engine/train_loops.py put it around the batch sampler of a config. Touch this file for how
batches are skipped; not for the order of pictures (epoch_seeded_sampler.py). Guarded by
tests/datasets/test_resumable_batches.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from mmengine.registry import DATA_SAMPLERS as ALL_DATA_SAMPLERS
from torch.utils.data import BatchSampler, Sampler

from mmcnx2.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class ResumableBatches(Sampler):
    """The batches of another batch sampler, with `skip`.

    Args:
        sampler, batch_size: as mmengine hands them to a batch sampler.
        batch_sampler: config of the batch sampler, such as mmdet's AspectRatioBatchSampler; None: batch_size indices
            in their order.
        drop_last: without `batch_sampler`: leave out a last batch that is not full.
    """

    def __init__(
        self, sampler: Sampler, batch_size: int, batch_sampler: dict | None = None, drop_last: bool = False
    ) -> None:
        self.sampler, self.batch_size = sampler, batch_size
        if batch_sampler is None:
            self.batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.batch_sampler = ALL_DATA_SAMPLERS.build(
                batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size)
            )
        self._num_skipped = 0

    def skip(self, num_batches: int) -> None:
        """The next iteration, and that one alone, begins after the first `num_batches` of the epoch.

        A sampler that can skip does so itself; otherwise indices are drawn and thrown away, which costs microseconds
        each: a batch sampler that groups pictures must see them all.
        """
        if num_batches < 0:
            raise ValueError(f'num_batches={num_batches}: the number of batches to skip cannot be negative.')
        self._num_skipped = num_batches

    def __iter__(self) -> Iterator[list[int]]:
        # only now, with the first batch: a data loader makes two iterators and uses one
        num_skipped, self._num_skipped = self._num_skipped, 0
        if num_skipped and type(self.batch_sampler) is BatchSampler and hasattr(self.sampler, 'skip'):
            self.sampler.skip(num_skipped * self.batch_size)
            num_skipped = 0
        yield from itertools.islice(self.batch_sampler, num_skipped, None)

    def __len__(self) -> int:
        return len(self.batch_sampler)
