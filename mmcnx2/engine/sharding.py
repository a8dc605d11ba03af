"""Models that do not fit one device: what mmengine's FlexibleRunner needs to shard parameters (FSDP, DeepSpeed ZeRO).

`--cfg-options runner_type=FlexibleRunner strategy.type=FSDPStrategy` is all that a user says; the rest is filled in
here, so that parameter groups, checkpoints and resuming are those of an ordinary run. Touch it for strategies of
mmengine; not for launching (tools/dist_train.sh) and not for parameter groups (layer_decay.py, which knows sharded
parameters). Guarded by tests/test_training_runs.py and tests/engine/test_sharding.py.
"""

from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

from mmengine._strategy import FSDPStrategy
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import is_main_process
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmcnx2.atomic_write import PARTIAL, put_in_place
from mmcnx2.registry import STRATEGIES

SMALLEST_UNIT = 1_000_000  # parameters; smaller modules are gathered together with what encloses them


def complete_strategy(cfg: Config) -> None:
    """Fills in the strategy of a FlexibleRunner; a config with the ordinary runner is left alone.

    FSDP: original parameters are kept (layer decay needs their names), modules from a million parameters on are units
    of their own, checkpoints are whole and written by rank 0 (so they are backbone checkpoints like any other). What
    the config sets itself stands.

    Raises:
        ValueError: a runner without a strategy, or a strategy without the runner.
        ImportError: DeepSpeed is asked for and not installed.
    """
    strategy = cfg.get('strategy')
    if cfg.get('runner_type') != 'FlexibleRunner':
        if strategy:
            raise ValueError(f"strategy={strategy.get('type')!r} needs runner_type='FlexibleRunner' beside it")
        return
    if not strategy or 'type' not in strategy:
        raise ValueError(
            "runner_type='FlexibleRunner' needs a strategy: strategy.type=FSDPStrategy (or DeepSpeedStrategy, "
            'DDPStrategy)'
        )
    if strategy.type == 'DeepSpeedStrategy' and find_spec('deepspeed') is None:
        raise ImportError('DeepSpeedStrategy needs the package deepspeed (pip install deepspeed), which needs CUDA')
    if strategy.type == 'FSDPStrategy':
        strategy.type = 'mmcnx2.ResumableFSDPStrategy'
        _complete_fsdp(strategy)


@STRATEGIES.register_module()
class ResumableFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy, able to go on from its own checkpoint with the torch of today.

    mmengine 0.10.12 passes the arguments of torch's `optim_state_dict_to_load` in the order of torch 2.0, and writes
    checkpoints past the file backend of its hook.
    """

    def save_checkpoint(self, filename: str, **options) -> None:
        """A whole checkpoint appears under its name when it is complete; a folder of shares is written in place."""
        if not self._is_full_state_dict():
            super().save_checkpoint(filename, **options)
            return
        path = Path(filename)
        partial = path.with_name(f'.{path.name}{PARTIAL}')
        try:
            super().save_checkpoint(str(partial), **options)
            if is_main_process():
                put_in_place(partial, path)
        finally:
            if is_main_process():
                partial.unlink(missing_ok=True)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Loads what `optim_state_dict` gave, whole or this process's part of it."""
        optimizer = self.optim_wrapper.optimizer
        state_dict = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(state_dict)


def _complete_fsdp(strategy: ConfigDict) -> None:
    on_cpu = get_device() == 'cpu'
    wrapper = strategy.setdefault('model_wrapper', ConfigDict())
    wrapper.setdefault('type', 'MMFullyShardedDataParallel')
    wrapper.setdefault('use_orig_params', True)
    wrapper.setdefault(
        'auto_wrap_policy',
        ConfigDict(type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy', min_num_params=SMALLEST_UNIT),
    )
    if on_cpu:
        wrapper.setdefault('device_id', 'cpu')
    # torch 2.12 crashes when a state that is on the CPU already is to be offloaded to it
    rank_0 = dict(rank0_only=True, offload_to_cpu=not on_cpu)
    strategy.setdefault(
        'state_dict_cfg',
        ConfigDict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=dict(type='FullStateDictConfig', **rank_0),
            optim_state_dict_config=dict(type='FullOptimStateDictConfig', **rank_0),
        ),
    )


def original_dimensions(model: nn.Module) -> dict[int, int]:
    """id of each parameter -> number of dimensions that the model gives it; sharded parameters lie flat in memory.

    Every process has to call it when the model is sharded.
    """
    full = FullyShardedDataParallel.summon_full_params(model, writeback=False) if _is_sharded(model) else nullcontext()
    with full:
        return {id(parameter): parameter.ndim for parameter in model.parameters()}


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
