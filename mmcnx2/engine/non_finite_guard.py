"""A step whose loss or gradient is not finite does not happen: it is skipped and its batch kept; too many end the run.

forward --> losses looked at --> backward --> gradients looked at --> (skip) --> optimiser step

Touch this file for when a step counts as bad and what follows; not for what is written about it (step_dump.py) nor for
loss scaling (mmengine's AmpOptimWrapper). Guarded by tests/engine/test_non_finite_guard.py.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mmcnx2.registry import HOOKS

from .random_state import get_random_state
from .step_dump import MEGABYTE, losses_of, write_step_dump

NUM_NAMED = 3
FOLDER = 'non_finite'  # in the work dir
COUNTS = 'non_finite_guard'  # in mmengine's message hub: skipped in a row, skipped, poisoned


@dataclass
class Verdict:
    """What was found in one step; 'any' speaks of all processes, 'here' of this one."""

    loss_any: bool
    gradient_any: bool
    loss_here: bool
    parameters: list[str]  # whose gradients are not finite

    @property
    def is_bad(self) -> bool:
        return self.loss_any or self.gradient_any


@HOOKS.register_module()
class NonFiniteGuardHook(Hook):
    """Skips optimiser steps whose loss or gradient holds NaN or infinity, and stops the run after several in a row.

    In a skipped step the optimiser sees no gradients, so that torch's optimisers change neither parameters nor their
    state, and the running statistics of batch norms return to what they were; the learning rate schedule goes on, and
    an average of weights (EMA) counts the step. All processes decide alike. With accumulated gradients the whole step
    is skipped that a bad batch contributed to. A loss scaler (AmpOptimWrapper, float16) looks after infinite gradients
    itself: there only the loss is looked at.

    Each bad batch is described in WORK_DIR/non_finite/iter_N_rank_R.json (files, seeds of samples and thereby of
    masks, loss terms, parameters with such gradients) and kept in a .safetensors file beside it (images, the cells
    that FCMAE saw, states of the random generators before the step). Among several processes only those whose own
    loss is bad write, or all when no loss is. A loss that is not finite is left out of the log's averages.

    Costs the norm of the gradients and one number read from the device per iteration, and an all-reduce of two numbers
    when there are several processes. A norm beyond the range of float32 (1.8e19) counts as infinite.

    Args:
        enabled: False leaves everything as mmengine does it: NaN spreads through the weights in one step.
        max_in_row: so many bad steps one after the other end the run with FloatingPointError; a single bad image is
            no reason to stop, weights or a learning rate that give nothing else are.
        max_dumps: batches kept by each process; further ones are only logged.
        max_dump_megabytes: images of a batch beyond this size are left out of its file.

    Raises:
        ValueError: a number is below 1 (max_dumps: below 0).
    """

    priority = 'HIGHEST'  # before the hooks that average and log the outputs

    def __init__(
        self, enabled: bool = True, max_in_row: int = 5, max_dumps: int = 20, max_dump_megabytes: float = 64
    ) -> None:
        if max_in_row < 1:
            raise ValueError(f'max_in_row={max_in_row} is a number of steps, 1 or more; enabled=False switches it off.')
        if max_dumps < 0 or max_dump_megabytes <= 0:
            raise ValueError(
                f'max_dumps={max_dumps} must be 0 or more, max_dump_megabytes={max_dump_megabytes} above 0.'
            )
        self.enabled, self.max_in_row = enabled, max_in_row
        self.max_dumps, self.max_dump_bytes = max_dumps, int(max_dump_megabytes * MEGABYTE)
        self._attached = []  # functions that take off what before_train put on

    # ---- where mmengine calls

    def before_train(self, runner) -> None:
        self._detach()
        if not self.enabled:
            return
        self._model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._wrappers = [wrapper for wrapper in _each(runner.optim_wrapper) if _can_be_guarded(wrapper)]
        self._statistics = _batch_statistics(self._model)
        self._kept_statistics = [values.clone() for values in self._statistics]
        self._num_dumps = 0
        # of this run before it was interrupted, too; poisoned: an earlier batch of the step being gathered was bad
        counts = runner.message_hub.runtime_info.get(COUNTS, (0, 0, False))
        self._in_row, self._num_skipped, self._poisoned = counts
        self._attached.append(runner.model.register_forward_hook(self._note_losses).remove)
        for wrapper in self._wrappers:
            self._attach(wrapper)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if not self.enabled:
            return
        self._losses, self._losses_finite = {}, None
        self._verdicts: dict[int, Verdict] = {}  # id of the optimiser -> of this iteration
        self._random_state = get_random_state()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        if not self.enabled:
            return
        for wrapper in self._wrappers:  # judged already, unless gradients are gathered or a loss scaler has refused
            self._judge(wrapper)
        verdicts = list(self._verdicts.values())
        complete = any(wrapper.should_update() for wrapper in self._wrappers)
        skipped = complete and (self._poisoned or any(verdict.is_bad for verdict in verdicts))
        self._in_row = (self._in_row + 1 if skipped else 0) if complete else self._in_row
        self._num_skipped += skipped
        if any(verdict.is_bad for verdict in verdicts):
            self._report(runner, data_batch, verdicts, complete)
            _copy(self._kept_statistics, self._statistics)
            for wrapper in self._wrappers:  # what later batches add is then theirs alone
                wrapper.optimizer.zero_grad(set_to_none=True)
            if outputs and any(verdict.loss_any for verdict in verdicts):
                outputs.clear()
            self._poisoned = not complete
        else:
            _copy(self._statistics, self._kept_statistics)
            self._poisoned = self._poisoned and not complete
        # with it into checkpoints; a run that goes on after it was stopped starts counting anew
        in_row = self._in_row if self._in_row < self.max_in_row else 0
        runner.message_hub.update_info(COUNTS, (in_row, self._num_skipped, self._poisoned))
        if self._in_row >= self.max_in_row:
            raise FloatingPointError(self._what_to_look_at(runner))

    def after_train(self, runner) -> None:
        if self.enabled and self._num_skipped:
            print_log(
                f'{self._num_skipped} of the steps of this run were skipped, because a loss or a gradient was not '
                f'finite; their batches stand in {_folder(runner)}.',
                'current',
                logging.WARNING,
            )
        self._detach()

    # ---- judging a step

    def _attach(self, wrapper) -> None:
        """Puts the judgement in front of the optimiser's step, and of clipping, which would spread a NaN over all."""

        def before_step(optimizer, args: tuple, kwargs: dict) -> None:  # torch takes another answer for new arguments
            self._withhold(wrapper)

        self._attached.append(wrapper.optimizer.register_step_pre_hook(before_step).remove)
        if wrapper.clip_grad_kwargs:
            clip = wrapper.clip_func
            wrapper.clip_func = lambda *args, **options: None if self._withhold(wrapper) else clip(*args, **options)
            self._attached.append(lambda: setattr(wrapper, 'clip_func', clip))

    def _detach(self) -> None:
        while self._attached:
            self._attached.pop()()

    def _note_losses(self, model: nn.Module, args: tuple, output: object) -> None:
        """Forward hook of the model: keeps the loss terms, and whether they are finite, without waiting for them."""
        losses = losses_of(output) if model.training else {}
        if losses:
            finite = torch.stack(list(losses.values())).isfinite().all()
            self._losses.update(losses)
            self._losses_finite = finite if self._losses_finite is None else self._losses_finite & finite

    def _withhold(self, wrapper) -> bool:
        """True for a bad step, after its gradients were taken away."""
        withheld = self._judge(wrapper).is_bad or self._poisoned
        if withheld:
            wrapper.optimizer.zero_grad(set_to_none=True)
        return withheld

    def _judge(self, wrapper) -> Verdict:
        if id(wrapper) not in self._verdicts:
            gradients = [] if hasattr(wrapper, 'loss_scaler') else _gradients(wrapper.optimizer)
            bad_gradient = ~torch.nn.utils.get_total_norm(gradients).isfinite()
            bad_loss = torch.zeros_like(bad_gradient) if self._losses_finite is None else ~self._losses_finite
            here_2 = torch.stack([bad_loss.to(bad_gradient.device), bad_gradient]).float()
            any_2 = here_2.clone()
            if get_world_size() > 1:
                all_reduce(any_2, op='max')
            loss_any, gradient_any, loss_here, gradient_here = torch.cat([any_2, here_2]).bool().tolist()
            parameters = _not_finite(self._model.named_parameters(), of_gradient=True) if gradient_here else []
            self._verdicts[id(wrapper)] = Verdict(loss_any, gradient_any, loss_here, parameters)
        return self._verdicts[id(wrapper)]

    # ---- what follows

    def _report(self, runner, data_batch, verdicts: list[Verdict], complete: bool) -> None:
        iteration = runner.iter + 1  # as in the log
        loss_any = any(verdict.loss_any for verdict in verdicts)
        what = 'the loss' if loss_any else 'a gradient'
        where = ''
        guilty = not loss_any or any(verdict.loss_here for verdict in verdicts)
        if guilty and self._num_dumps < self.max_dumps:
            self._num_dumps += 1
            stem = _folder(runner) / f'iter_{iteration}_rank_{get_rank()}'
            description = dict(
                iteration=iteration,
                epoch=runner.epoch + 1,
                rank=get_rank(),
                world_size=get_world_size(),
                not_finite='loss' if loss_any else 'gradient',
                gradients_not_finite=[name for verdict in verdicts for name in verdict.parameters],
                lr=[group['lr'] for wrapper in self._wrappers for group in wrapper.optimizer.param_groups],
                optim_wrapper=[type(wrapper).__name__ for wrapper in self._wrappers],
            )
            try:
                write_step_dump(
                    stem, description, self._losses, data_batch, self._model, self._random_state, self.max_dump_bytes
                )
                where = f' Its batch: {stem}.json'
            except OSError as error:  # a full disk is no reason to stop here; the next checkpoint will say so
                where = f' Its batch could not be written: {error}'
        skipped = f'the step is skipped ({self._num_skipped} so far, {self._in_row} in a row)'
        print_log(
            f'Iteration {iteration}: {what} is not finite; '
            f'{skipped if complete else "the step that it would contribute to will be skipped"}.{where}',
            'current',
            logging.WARNING,
        )

    def _what_to_look_at(self, runner) -> str:
        broken = _not_finite([*self._model.named_parameters(), *self._model.named_buffers()])
        start = f'{self._in_row} steps in a row, up to iteration {runner.iter + 1}, had a loss or a gradient that is '
        if broken:
            return (
                f'{start}not finite, for the weights themselves are not ({_named(broken)}): start from another '
                'checkpoint, or look at init_cfg.'
            )
        rates = [group['lr'] for wrapper in self._wrappers for group in wrapper.optimizer.param_groups]
        return (
            f'{start}not finite; they were skipped, the weights are still finite. Look at the learning rate (now '
            f'{max(rates):.3g}: lower it or warm up longer, or clip: optim_wrapper.clip_grad.max_norm=1), the images '
            f'named in {_folder(runner)}/*.json, and the precision ({type(self._wrappers[0]).__name__}; in half '
            'precision sums of squares such as those of GRN overflow: use bfloat16 or float32). With clipping, other '
            'images or another precision go on with --resume. It keeps the learning rate and the schedule of the '
            'checkpoint: for others start a new run in another work dir, --work-dir OTHER_DIR --cfg-options '
            'load_from=CHECKPOINT. default_hooks.non_finite_guard.max_in_row=N allows more, .enabled=False switches '
            'this off.'
        )


def _each(optim_wrapper) -> list:
    """The wrapper, or those that mmengine's OptimWrapperDict holds."""
    wrappers = getattr(optim_wrapper, 'optim_wrappers', None)
    return list(wrappers.values()) if wrappers else [optim_wrapper]


def _can_be_guarded(wrapper) -> bool:
    if isinstance(wrapper, OptimWrapper):
        return True
    print_log(  # DeepSpeed's, which steps by itself
        f'default_hooks.non_finite_guard does not reach into {type(wrapper).__name__}: its steps are not looked at.',
        'current',
        logging.WARNING,
    )
    return False


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _batch_statistics(model: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass in training changes."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    return [buffer for norm in norms for buffer in norm.buffers()]


def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    if sources:
        torch._foreach_copy_(targets, sources)


def _not_finite(named_tensors, of_gradient: bool = False) -> list[str]:
    tensors = ((name, tensor.grad if of_gradient else tensor) for name, tensor in named_tensors)
    return [name for name, tensor in tensors if tensor is not None and not tensor.isfinite().all()]


def _named(names: list[str]) -> str:
    return ', '.join(names[:NUM_NAMED]) + (f' and {len(names) - NUM_NAMED} more' if len(names) > NUM_NAMED else '')


def _folder(runner) -> Path:
    return Path(runner.work_dir) / FOLDER
