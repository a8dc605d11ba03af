"""Logs of a distributed run show the mean over processes, where mmengine logs what rank 0 saw.

Touch this file for what is averaged. Guarded by tests/engine/test_average_loss_hook.py.
"""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce_dict, get_world_size
from mmengine.hooks import Hook

from mmcnx2.registry import HOOKS


@HOOKS.register_module()
class AverageLossHook(Hook):
    """Replaces each scalar of a training step's outputs by its mean over the processes, before it is logged.

    Training itself is untouched: gradients were averaged already. Costs one all-reduce of a few numbers per step.
    """

    priority = 'HIGHEST'  # before RuntimeInfoHook, which hands the outputs to the log

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        if get_world_size() == 1 or not outputs:
            return
        scalars = {
            name: value.detach().clone()
            for name, value in outputs.items()
            if isinstance(value, torch.Tensor) and value.numel() == 1
        }
        all_reduce_dict(scalars, op='mean')
        outputs.update(scalars)
