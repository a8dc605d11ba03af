"""What a strategy of the FlexibleRunner gets from us. Sharded runs themselves are in test_training_runs.py."""

from pathlib import Path

import pytest
import torch
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from torch import nn

from mmcnx2.engine.sharding import ResumableFSDPStrategy, complete_strategy, original_dimensions


def completed(**settings) -> Config:
    cfg = Config(settings)
    complete_strategy(cfg)
    return cfg


def test_fsdp_is_completed_and_what_is_set_stands():
    cfg = completed(
        runner_type='FlexibleRunner',
        strategy=dict(type='FSDPStrategy', model_wrapper=dict(use_orig_params=False), state_dict_cfg='local'),
    )
    assert cfg.strategy.type == 'mmcnx2.ResumableFSDPStrategy'
    wrapper = cfg.strategy.model_wrapper
    assert wrapper.type == 'MMFullyShardedDataParallel' and wrapper.use_orig_params is False
    assert cfg.strategy.state_dict_cfg == 'local'
    assert wrapper.auto_wrap_policy.min_num_params == 1_000_000
    cfg = completed(runner_type='FlexibleRunner', strategy=dict(type='FSDPStrategy'))
    assert cfg.strategy.model_wrapper.use_orig_params is True
    assert cfg.strategy.state_dict_cfg.state_dict_type == 'FULL_STATE_DICT'
    for key in ('state_dict_config', 'optim_state_dict_config'):
        assert cfg.strategy.state_dict_cfg[key].rank0_only is True


@pytest.mark.parametrize(('has_gpu', 'device_id', 'offload'), [(False, 'cpu', False), (True, None, True)])
def test_the_device_decides_where_states_go(monkeypatch, has_gpu, device_id, offload):
    monkeypatch.setattr('mmcnx2.engine.sharding.get_device', lambda: 'cuda' if has_gpu else 'cpu')
    strategy = completed(runner_type='FlexibleRunner', strategy=dict(type='FSDPStrategy')).strategy
    assert strategy.model_wrapper.get('device_id') == device_id
    assert strategy.state_dict_cfg.state_dict_config.offload_to_cpu is offload


def test_an_ordinary_config_and_ddp_are_left_alone():
    assert completed(model=dict(type='X')).to_dict() == dict(model=dict(type='X'))
    cfg = completed(runner_type='FlexibleRunner', strategy=dict(type='DDPStrategy'))
    assert cfg.strategy.to_dict() == dict(type='DDPStrategy')


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(strategy=dict(type='FSDPStrategy')), "needs runner_type='FlexibleRunner'"),
        (dict(runner_type='FlexibleRunner'), 'needs a strategy'),
        (dict(runner_type='FlexibleRunner', strategy=dict(state_dict_cfg='full')), 'strategy.type=FSDPStrategy'),
    ],
)
def test_half_of_a_setting_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        completed(**settings)


def test_deepspeed_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr('mmcnx2.engine.sharding.find_spec', lambda name: None)
    with pytest.raises(ImportError, match='pip install deepspeed'):
        completed(runner_type='FlexibleRunner', strategy=dict(type='DeepSpeedStrategy'))


def test_dimensions_of_an_ordinary_model():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm(2))
    found = original_dimensions(model)
    assert [found[id(parameter)] for parameter in model.parameters()] == [4, 1, 1, 1]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize('whole', [True, False])
def test_a_whole_checkpoint_appears_when_it_is_complete(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(ResumableFSDPStrategy, '_is_full_state_dict', lambda self: whole)
    written = []

    def write(self, filename: str, **options) -> None:
        Path(filename).write_text('new')
        written.append(Path(filename).name)
        assert (tmp_path / 'epoch_1.pth').read_text() == ('old' if whole else 'new')
        if options.get('fails'):
            raise OSError(28, 'No space left on device')

    monkeypatch.setattr(FSDPStrategy, 'save_checkpoint', write)
    path = tmp_path / 'epoch_1.pth'
    path.write_text('old')
    strategy = ResumableFSDPStrategy.__new__(ResumableFSDPStrategy)
    if whole:
        with pytest.raises(OSError, match='No space'):
            strategy.save_checkpoint(str(path), fails=True)
        assert path.read_text() == 'old'
    strategy.save_checkpoint(str(path))
    assert path.read_text() == 'new' and list(tmp_path.iterdir()) == [path]
    assert written[-1] == ('.epoch_1.pth.partial' if whole else 'epoch_1.pth')
