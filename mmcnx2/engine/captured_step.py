"""A training step on a GPU as one launch: forward and backward pass recorded once as a CUDA graph, then replayed.

An eager step of ConvNeXt V2 starts a thousand small kernels and more, and a small model waits for the CPU that starts
them: on an H100 tiny at batch 128 computes for 16 ms and starts kernels for 73 ms
(tools/benchmark/results/notes_gpu_kernels.md).

batch --> data preprocessor --> copied into the memory that the graph reads --> replay --> gradients --> optimiser

Touch this file for how a step is recorded and replayed; not for precision (bf16_optim_wrapper.py) or for what counts as
a bad step (non_finite_guard.py). Guarded by tests/engine/test_captured_step.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmcnx2.registry import HOOKS

NUM_ORDINARY = 3  # steps before the recording, in which libraries and Triton choose their kernels


@HOOKS.register_module()
class CapturedStepHook(Hook):
    """Replays forward and backward pass of each training step from a CUDA graph; the optimiser steps as usual.

    The values are those of ordinary steps. Without a GPU, steps stay ordinary and the log says so.

    What a graph cannot do, and is refused: several GPUs (the gradients' exchange is not recorded), gathering gradients
    over several batches, a loss scaler, batches that change their size (drop_last=True), models that look at values
    while they compute, and masks drawn from the seeds of samples, which would be recorded as they were. With FCMAE:
    layout='visible' or 'dense' and a dataset or a sampler without seeds (mmcnx2.ResidentImages; mmengine's
    InfiniteSampler), so that masks come from the GPU's generator.

    Raises:
        ValueError: one of these, with what to change.
    """

    priority = 'LOWEST'  # after the hooks that put something around the model's forward pass

    def before_train(self, runner) -> None:
        model, wrapper = runner.model, runner.optim_wrapper
        if is_model_wrapper(model):
            raise ValueError('mmcnx2.CapturedStepHook records steps of one process: train on one GPU, or leave it out.')
        if getattr(wrapper, '_accumulative_counts', 1) != 1 or hasattr(wrapper, 'loss_scaler'):
            raise ValueError(
                f'mmcnx2.CapturedStepHook records whole steps in one precision, and {type(wrapper).__name__} gathers '
                'gradients of several batches or scales losses. Set optim_wrapper.accumulative_counts=1 and '
                "optim_wrapper.type='mmcnx2.BF16OptimWrapper', or leave the hook out."
            )
        if next(model.parameters()).device.type != 'cuda':
            print_log('mmcnx2.CapturedStepHook: there is no GPU, steps stay ordinary.', 'current', logging.WARNING)
            return
        model.train_step = CapturedStep(model)

    def after_train(self, runner) -> None:
        runner.model.__dict__.pop('train_step', None)


class CapturedStep:
    """What stands in the place of a model's `train_step`.

    Args:
        model: an mmengine model.
        capture: (work) -> (replay, what the work returned): runs the work and records it. Its default records a CUDA
            graph.
    """

    def __init__(self, model: nn.Module, capture: Callable | None = None) -> None:
        self.model, self.ordinary_step = model, model.train_step
        self.stream = None if capture else torch.cuda.Stream()
        self.capture = capture or (lambda work: record_graph(work, self.stream))
        self.num_steps = 0
        self.replay: Callable[[], object] | None = None
        self.inputs: Tensor | None = None
        self.gradients: list[tuple[nn.Parameter, Tensor]] = []
        self.log_vars: Mapping[str, Tensor] = {}

    def __call__(self, data: dict, optim_wrapper) -> dict[str, Tensor]:
        self.num_steps += 1
        if self.num_steps <= NUM_ORDINARY:
            return self._ordinary(data, optim_wrapper)
        data = self.model.data_preprocessor(data, True)
        inputs, samples = data['inputs'], data.get('data_samples')
        if any(sample.get('sample_seed') is not None for sample in samples or []):
            raise ValueError(
                'mmcnx2.CapturedStepHook: the samples carry seeds, from which masks are drawn on the CPU; the graph '
                'would repeat those of one step for ever. Set train_dataloader.sampler to mmengine.InfiniteSampler or '
                'DefaultSampler, or take mmcnx2.ResidentImages.'
            )
        if self.replay is None:
            self._record(inputs, optim_wrapper)
        if inputs.shape != self.inputs.shape:
            raise ValueError(
                f'mmcnx2.CapturedStepHook recorded a step of {tuple(self.inputs.shape)} and got '
                f'{tuple(inputs.shape)}: all batches must have one size. Set train_dataloader.drop_last=True.'
            )
        self.inputs.copy_(inputs)
        self.replay()
        for parameter, gradient in self.gradients:  # whoever took them away after the last step
            parameter.grad = gradient
        optim_wrapper.step()
        return {name: value.clone() for name, value in self.log_vars.items()}

    def _ordinary(self, data: dict, optim_wrapper) -> dict[str, Tensor]:
        if self.stream is None:
            return self.ordinary_step(data, optim_wrapper)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            log_vars = self.ordinary_step(data, optim_wrapper)
        torch.cuda.current_stream().wait_stream(self.stream)
        return log_vars

    def _record(self, inputs: Tensor, optim_wrapper) -> None:
        self.inputs = inputs.clone()
        for parameter in self.model.parameters():
            parameter.grad = None  # so that the recorded pass writes gradients instead of adding to some

        def work() -> Mapping[str, Tensor]:
            with optim_wrapper.optim_context(self.model):
                losses = self.model(self.inputs, None, mode='loss')
            loss, log_vars = self.model.parse_losses(losses)
            loss.backward()
            return log_vars

        self.replay, self.log_vars = self.capture(work)
        self.gradients = [(each, each.grad) for each in self.model.parameters() if each.grad is not None]


def record_graph(work: Callable[[], Any], stream: torch.cuda.Stream) -> tuple[Callable[[], object], Any]:
    """(what replays the work from a CUDA graph, what the work returned while it was recorded).

    The work must have run on this stream before. The caller keeps everything alive that it reads.
    """
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = work()
    return graph.replay, found
