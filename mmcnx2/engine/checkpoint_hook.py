"""Checkpoints from which a run goes on bit by bit as if nothing had happened, and files that survive a kill any time.

Beyond mmengine's hook: a file is whole or not there, older ones go after the new one is complete, and the states of all
random generators are saved and restored. Touch this file for what a checkpoint of training holds and in which order
files come and go; not for how a file is written (mmcnx2/atomic_write.py), for where data go on (train_loops.py), nor
for which checkpoint a run resumes from (resuming.py). Guarded by tests/engine/test_checkpoint_hook.py and
tests/test_training_runs.py.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mmengine import hooks
from mmengine.dist import gather_object, get_rank, get_world_size, is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from mmcnx2.atomic_write import left_over, write_atomically
from mmcnx2.registry import HOOKS

from .atomic_backend import ATOMIC
from .changed_settings import explain_changes, restore_settings
from .random_state import get_random_state, set_random_state

KEY = 'resume'  # in the checkpoint


@HOOKS.register_module()
class CheckpointHook(hooks.CheckpointHook):
    """mmengine's CheckpointHook, with its arguments, for runs that are interrupted.

    * Every file is written under a hidden name, flushed to the disk and renamed; `last_checkpoint` names it after
      that, and only then are older ones removed. What a kill leaves of an unfinished file is removed at the next start.
    * A checkpoint holds, beside mmengine's entries, `resume`: the position in the data (`batch` of `num_batches` in
      this epoch, `sampler_seed`), and for each process the states of its random generators; in the middle of a cycle of
      gradient accumulation also its gradients. With mmcnx2's training loops a resumed run is then the uninterrupted
      one, bit by bit, where the data obey seeds (mmcnx2.EpochSeededSampler) or are loaded without workers, and where
      the operations are deterministic.
    * Validation does not change the training: random generators go on after it as they were before.

    With another number of processes than before, the random generators start anew, with a warning. Settings of the
    config that the checkpoint overrules (learning rate, schedule) are named in a warning when they differ.
    """

    def __init__(self, *args, backend_args: dict | None = None, **options) -> None:
        if backend_args is None and '://' not in str(options.get('out_dir')):
            backend_args = dict(backend=ATOMIC)
        super().__init__(*args, backend_args=backend_args, **options)
        self.saved_iter: int | None = None  # iterations done when the last checkpoint was saved
        self._being_saved: dict[str, Any] | None = None
        self._loaded: dict[str, Any] | None = None
        self._before_val: dict[str, Any] | None = None

    # ---- saving

    def save_now(self, runner) -> None:
        """Saves `iter_N.pth` in the middle of an epoch; to be called on all processes, after a training iteration.

        In a run that saves by epoch it goes when the next checkpoint is complete.
        """
        if self.saved_iter == runner.iter + 1:
            return
        if not self.by_epoch:
            self._save_checkpoint(runner)
            return
        name = f'iter_{runner.iter + 1}.pth'
        superseded = [runner.message_hub.runtime_info.get('interim_ckpt')]
        runner.message_hub.update_info('interim_ckpt', name)
        self._save(runner, name, superseded, dict(epoch=runner.epoch, iter=runner.iter + 1), by_epoch=False)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        name = self.filename_tmpl.format(step)
        superseded = [runner.message_hub.runtime_info.get('interim_ckpt')]
        runner.message_hub.update_info('interim_ckpt', '')
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                superseded.append(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._save(runner, name, superseded, meta, self.by_epoch)

    def _save(self, runner, name: str, superseded: list[str | None], meta: dict, by_epoch: bool) -> None:
        """Writes a checkpoint, then `last_checkpoint`, then removes the `superseded` ones of the same folder."""
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        superseded = [old for old in superseded if old and old != name]
        # in the checkpoint too: when this process does not come to removing them, the next one does
        runner.message_hub.update_info('superseded_ckpts', superseded)
        self._being_saved = dict(position=_position(runner, meta), processes=self._gather(runner), meta=dict(meta))
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self._being_saved = None
        self.saved_iter = meta['iter']
        if is_main_process():
            write_atomically(Path(runner.work_dir) / 'last_checkpoint', str(self.last_ckpt), durable=True)
            self._remove(superseded)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._being_saved is not None:  # not for the best one, which holds weights only
            checkpoint['meta'].update(self._being_saved['meta'])  # FlexibleRunner counts on after validation
            checkpoint[KEY] = dict(**self._being_saved['position'], processes=self._being_saved['processes'])

    def _gather(self, runner) -> list[dict] | None:
        """The state of every process, on rank 0."""
        own = self._before_val or get_random_state()
        optim_wrapper = runner.optim_wrapper
        if hasattr(optim_wrapper, 'should_update') and not optim_wrapper.should_update():
            own = dict(own, gradients=_gradients(runner.model))
        return gather_object(own, dst=0)

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        """As mmengine's; the previous best one goes after the new one is complete."""
        backend, later = self.file_backend, _RemovesLater(self.file_backend)
        self.file_backend = later
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        best = {getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for path in later.removed:
            if is_main_process() and path not in best:
                _remove(backend, path)

    def _remove(self, names: list[str]) -> None:
        for name in names:
            _remove(self.file_backend, self.file_backend.join_path(self.out_dir, name))

    # ---- resuming

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        self._loaded = checkpoint.get(KEY, {})
        stored = (checkpoint.get('meta') or {}).get('cfg')
        changes = explain_changes(stored, runner.cfg, runner._load_from) if isinstance(stored, str) else ''
        if changes:
            runner.logger.warning(changes)
            restore_settings(stored, runner.cfg)

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if is_main_process() and '://' not in str(self.out_dir):
            self._remove(runner.message_hub.runtime_info.get('superseded_ckpts', []))
            for path in left_over(self.out_dir):
                runner.logger.info(f'Removed {path}, which was being written when an earlier run ended.')
                path.unlink()
        if self._loaded is not None:
            self._go_on(runner, self._loaded)
            self._loaded, self.saved_iter = None, runner.iter

    def _go_on(self, runner, saved: dict[str, Any]) -> None:
        def warn(text: str) -> None:
            runner.logger.log(logging.WARNING, f'{text}: this run is not bit by bit the one that was interrupted.')

        if not saved:
            warn('The checkpoint holds no states of random generators, it was not saved by mmcnx2.CheckpointHook')
            return
        loop = runner.train_loop
        sampler = _sampler(loop.dataloader)
        if saved['sampler_seed'] is not None and hasattr(sampler, 'seed'):
            sampler.seed = saved['sampler_seed']
        if isinstance(loop, EpochBasedTrainLoop):
            if saved['batch'] and saved['num_batches'] != len(loop.dataloader):
                raise ValueError(
                    f'The checkpoint was saved after {saved["batch"]} of {saved["num_batches"]} batches of an epoch, '
                    f'and an epoch has {len(loop.dataloader)} now. Resume with the batch size, number of processes and '
                    'data of before, or from a checkpoint of the end of an epoch.'
                )
            if hasattr(loop, 'first_batch'):
                loop.first_batch = saved['batch']
        if len(saved['processes']) != get_world_size():
            warn(f'The checkpoint is of {len(saved["processes"])} processes, and now there are {get_world_size()}')
            return
        own = saved['processes'][get_rank()]
        set_random_state(own)
        for name, parameter in _unwrapped(runner.model).named_parameters():
            if name in own.get('gradients', {}):
                parameter.grad = own['gradients'][name].to(parameter)

    # ---- validation in between

    def before_val(self, runner) -> None:
        self._before_val = get_random_state()

    def after_val(self, runner) -> None:
        set_random_state(self._before_val)
        self._before_val = None


class _RemovesLater:
    """A file backend that notes what it is to remove."""

    def __init__(self, backend) -> None:
        self._backend, self.removed = backend, []

    def remove(self, path: str) -> None:
        self.removed.append(path)

    rmtree = remove

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def _remove(backend, path: str) -> None:
    if backend.isfile(path):
        backend.remove(path)
    elif backend.isdir(path):  # sharded checkpoints are folders
        backend.rmtree(path)


def _position(runner, meta: dict) -> dict[str, int | None]:
    """Where the data are: `batch` of `num_batches` in the epoch; in a run by iterations, since the beginning."""
    loop = runner.train_loop
    batch, num_batches = meta['iter'], len(loop.dataloader)
    if isinstance(loop, EpochBasedTrainLoop):
        is_complete = meta['epoch'] > loop.epoch  # the epoch, which the loop has not counted yet
        batch = 0 if is_complete else batch - getattr(loop, 'epoch_began_at', meta['epoch'] * num_batches)
    return dict(batch=batch, num_batches=num_batches, sampler_seed=getattr(_sampler(loop.dataloader), 'seed', None))


def _sampler(dataloader):
    return getattr(dataloader.batch_sampler, 'sampler', dataloader.sampler)


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _gradients(model: nn.Module) -> dict:
    return {
        name: parameter.grad.cpu()
        for name, parameter in _unwrapped(model).named_parameters()
        if parameter.grad is not None
    }
