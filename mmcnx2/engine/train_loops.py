"""mmengine's training loops, able to go on after any iteration, with data that do not depend on the interruption.

config of the data loader --> seeds around the dataset, skipping around the batch sampler --> batches from where it was

tools/train.py puts them in the place of mmengine's own. Touch this file for where data begin, and for what a run is
refused for before it begins; not for what a checkpoint holds (checkpoint_hook.py), nor for the order of pictures
(mmcnx2/datasets). Guarded by tests/engine/test_train_loops.py and tests/test_training_runs.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.runner import loops
from torch.utils.data import DataLoader

from mmcnx2.datasets.epoch_seeded_sampler import EpochSeededSampler
from mmcnx2.datasets.resumable_batches import ResumableBatches
from mmcnx2.datasets.seeding import derive_seed, seeded_randomness
from mmcnx2.registry import LOOPS

from .preemption import leave_signals_to_main


@LOOPS.register_module()
class EpochBasedTrainLoop(loops.EpochBasedTrainLoop):
    """mmengine's EpochBasedTrainLoop; an epoch that was interrupted goes on where it was, its first batches are not
    loaded again.

    mmcnx2.CheckpointHook sets `first_batch` when it resumes. A checkpoint without it: what the numbers of epochs and
    iterations say.
    """

    def __init__(self, runner, dataloader: DataLoader | dict, **options) -> None:
        super().__init__(runner, resumable(dataloader), **options)
        check_batches(self.dataloader)
        check_schedules(runner.cfg, len(self.dataloader))
        warn_of_inexact_data(self.dataloader)
        self.first_batch: int | None = None
        self.epoch_began_at = 0  # iterations before this epoch

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        if self.first_batch is None:
            done = self._iter - self._epoch * len(self.dataloader)
            self.first_batch = done if 0 <= done <= len(self.dataloader) else 0
        first, self.first_batch = self.first_batch, 0
        self.epoch_began_at = self._iter - first
        if first:
            print_log(f'Epoch {self._epoch + 1} goes on after {first} of {len(self.dataloader)} batches.', 'current')
        seed = derive_seed(self.runner.seed, self._epoch)
        for idx, data_batch in enumerate(batches_after(self.dataloader, first, seed), first):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        self.epoch_began_at = self._iter


@LOOPS.register_module()
class IterBasedTrainLoop(loops.IterBasedTrainLoop):
    """mmengine's IterBasedTrainLoop; a resumed run goes on with the batch that would have come next, without loading
    what came before.
    """

    def __init__(self, runner, dataloader: DataLoader | dict, **options) -> None:
        super().__init__(runner, resumable(dataloader), **options)
        if not is_endless(sampler_of(self.dataloader)):
            check_batches(self.dataloader)
        check_schedules(runner.cfg, len(self.dataloader))
        warn_of_inexact_data(self.dataloader)
        self.dataloader_iterator = EndlessBatches(self.dataloader, self.runner.seed)


class EndlessBatches:
    """The batches of a data loader, round after round; what mmengine's IterBasedTrainLoop takes its batches from.

    A sampler that never ends (mmengine's InfiniteSampler, mmcnx2.EpochSeededSampler with infinite=True) is one round.
    """

    def __init__(self, dataloader: DataLoader, seed: int) -> None:
        self.dataloader, self.seed = dataloader, seed
        self.round, self.first_batch = 0, 0
        self._batches: Iterator | None = None

    def skip_iter(self, num_iters: int) -> None:
        """The next batch is the one after the first `num_iters` of the run."""
        if is_endless(sampler_of(self.dataloader)):
            self.round, self.first_batch = 0, num_iters
        else:
            self.round, self.first_batch = divmod(num_iters, len(self.dataloader))
        self._batches = None

    def __iter__(self) -> EndlessBatches:
        return self

    def __next__(self) -> Any:
        if self._batches is None:
            self._begin()
        try:
            return next(self._batches)
        except StopIteration:
            self.round, self.first_batch = self.round + 1, 0
            self._begin()
            return next(self._batches)

    def _begin(self) -> None:
        sampler = sampler_of(self.dataloader)
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(self.round)
        self._batches = batches_after(self.dataloader, self.first_batch, derive_seed(self.seed, self.round))


def resumable(dataloader: DataLoader | dict) -> DataLoader | dict:
    """The config of a data loader, with mmcnx2.SeededDataset and mmcnx2.ResumableBatches put in; a loader that was
    built already stays as it is.
    """
    if isinstance(dataloader, DataLoader):
        return dataloader
    dataloader = dict(dataloader)
    if isinstance(dataloader.get('dataset'), dict):
        dataloader['dataset'] = dict(type='mmcnx2.SeededDataset', dataset=dataloader['dataset'])
    given = dataloader.get('batch_sampler')
    if given is None:
        dataloader['batch_sampler'] = dict(type='mmcnx2.ResumableBatches', drop_last=dataloader.pop('drop_last', False))
    elif isinstance(given, dict):
        dataloader['batch_sampler'] = dict(type='mmcnx2.ResumableBatches', batch_sampler=given)
    return dataloader


def batches_after(dataloader: DataLoader, num_batches: int, seed: int) -> Iterator:
    """The batches of an epoch after its first `num_batches`.

    The random generators of the training are the same after the start of the workers as before it, so that a run which
    starts them once more is not another one; `seed` is what the workers start from.
    """
    num_loaded = num_batches
    if isinstance(dataloader.batch_sampler, ResumableBatches):
        dataloader.batch_sampler.skip(num_batches)
        num_loaded = 0
    with seeded_randomness(seed):
        batches = iter(dataloader)
    leave_signals_to_main()
    if num_loaded:
        print_log(f'Loading {num_loaded} batches that were trained on already, to throw them away.', 'current')
    for _ in range(num_loaded):
        next(batches)
    return batches


def sampler_of(dataloader: DataLoader) -> Any:
    """The sampler, which a data loader with a batch sampler keeps inside that."""
    return getattr(dataloader.batch_sampler, 'sampler', dataloader.sampler)


def is_endless(sampler: Any) -> bool:
    return isinstance(sampler, InfiniteSampler) or getattr(sampler, 'infinite', False)


def check_batches(dataloader: DataLoader) -> None:
    """Raises ValueError when the data loader has no batch to give."""
    if len(dataloader):
        return
    num, processes = len(dataloader.dataset), get_world_size()
    if not num:
        raise ValueError('The training set is empty. Look at train_dataloader.dataset')
    batch_size = getattr(dataloader.batch_sampler, 'batch_size', dataloader.batch_size)
    each = f' in each of {processes} processes' if processes > 1 else ''
    raise ValueError(
        f'The training set has {num} pictures, which fill no batch of train_dataloader.batch_size={batch_size}{each}; '
        'with drop_last no step is made. Give train_dataloader.batch_size='
        f'{max(num // processes, 1)}, or train_dataloader.drop_last=False'
    )


def check_schedules(cfg: Config, epoch_length: int) -> None:
    """Raises ValueError when a schedule of the config would end before it has begun, as it does when a run is no longer
    than its warmup. A schedule that names no end ends with the training.
    """
    loop, schedules = cfg.get('train_cfg') or {}, cfg.get('param_scheduler') or []
    schedules = [schedules] if isinstance(schedules, dict) else schedules
    for number, schedule in enumerate(schedules):
        unit = 'epoch' if schedule.get('by_epoch', True) else 'iter'
        length = loop.get(f'max_{unit}s')
        if length is None and unit == 'iter' and loop.get('max_epochs'):
            length = loop['max_epochs'] * epoch_length
        begin, end = schedule.get('begin', 0), schedule.get('end', length)
        if end is None or begin < end:
            continue
        name = f'param_scheduler.{number}'
        setting = next((f'train_cfg.{key}' for key in ('max_epochs', 'max_iters') if key in loop), 'train_cfg')
        before = [f'param_scheduler.{i}.end' for i in range(number) if schedules[i].get('end') == begin]
        raise ValueError(
            f'{name} ({schedule.get("type")}) begins after {unit} {begin:g} ({name}.begin) and would end after {unit} '
            f'{end:g} ({f"{name}.end" if "end" in schedule else setting}); it has to end later. Make the run longer '
            f'({setting}), or lower {" and ".join([*before, f"{name}.begin"])}'
        )


def warn_of_inexact_data(dataloader: DataLoader) -> None:
    """Says, once per run, when a resumed run would see other random augmentations than an uninterrupted one."""
    sampler = sampler_of(dataloader)
    if dataloader.num_workers and not isinstance(sampler, EpochSeededSampler):
        print_log(
            f'{type(sampler).__name__} gives samples no seeds: what workers draw depends on how long they have run, so '
            'after --resume pictures come in the right order, with other random augmentations. For an exactly '
            'repeatable run: train_dataloader.sampler.type=mmcnx2.EpochSeededSampler (with infinite=True for a run by '
            'iterations), or train_dataloader.num_workers=0.',
            'current',
            logging.WARNING,
        )
