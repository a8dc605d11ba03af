"""Guards mmcnx2/engine/changed_settings.py: a resumed run says which settings of its config do not act, and is silent
when the config is the same.
"""

from pathlib import Path

import pytest
from mmengine.config import Config

import mmcnx2
from mmcnx2.engine.changed_settings import explain_changes, read_settings, restore_settings

CONFIG = dict(
    optim_wrapper=dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=0.0015, betas=(0.9, 0.95)),
        paramwise_cfg=dict(custom_keys={'.bias': dict(decay_mult=0.0), 'norm.a': dict(lr_mult=2)}),
    ),
    param_scheduler=[dict(type='LinearLR', end=2), dict(type='CosineAnnealingLR', begin=2)],
    train_cfg=dict(max_epochs=4),
    train_dataloader=dict(batch_size=8, dataset=dict(type='Own', sizes=[float('inf'), 3])),
)


def changed(**options) -> Config:
    cfg = Config(CONFIG)
    cfg.merge_from_dict({name.replace('__', '.'): value for name, value in options.items()})
    return cfg


def lines(cfg: Config, stored: str | None = None) -> list[str]:
    text = explain_changes(Config(CONFIG).pretty_text if stored is None else stored, cfg, 'w/epoch_2.pth')
    return text.splitlines()[1:-1]


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (dict(optim_wrapper__optimizer__lr=1.5e-5), 'optimizer.lr: 0.0015 in the checkpoint, 1.5e-05 now; the value'),
        (dict(optim_wrapper__optimizer__betas=(0.9, 0.99)), 'optimizer.betas: [0.9, 0.95] in the checkpoint, [0.9, 0.'),
        (dict(optim_wrapper__optimizer__weight_decay=0.1), 'optimizer.weight_decay: not set in the checkpoint, 0.1 no'),
        (dict(optim_wrapper__paramwise_cfg__layer_decay_rate=0.9), 'paramwise_cfg.layer_decay_rate: not set in the'),
        (dict(param_scheduler__0__end=3), 'param_scheduler.0.end: 2 in the checkpoint, 3 now; the value of the check'),
        (dict(param_scheduler__1__type='PolyLR'), "1.type: 'CosineAnnealingLR' in the checkpoint, 'PolyLR' now; the s"),
        (dict(optim_wrapper__optimizer__type='SGD'), "optimizer.type: 'AdamW' in the checkpoint, 'SGD' now; the"),
        (dict(train_cfg__max_epochs=8), 'train_cfg.max_epochs: 4 in the checkpoint, 8 now; training goes on for longe'),
        (dict(train_cfg__max_epochs=3), 'train_cfg.max_epochs: 4 in the checkpoint, 3 now; training ends earlier'),
        (dict(train_dataloader__batch_size=4), 'train_dataloader.batch_size: 8 in the checkpoint, 4 now; batches have'),
    ],
)
def test_what_does_not_act_is_named_with_both_values(options, says):
    (line,) = lines(changed(**options))
    assert says in line


def test_several_changes_are_one_warning_with_what_to_do():
    text = explain_changes(
        Config(CONFIG).pretty_text, changed(optim_wrapper__optimizer__lr=1.0, train_cfg__max_epochs=5), 'w/epoch_2.pth'
    )
    assert len(text.splitlines()) == 4
    assert text.endswith('without --resume: --work-dir OTHER_DIR --cfg-options load_from=w/epoch_2.pth')


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(work_dir='elsewhere', launcher='pytorch', resume=True, load_from='w/epoch_2.pth'),
        dict(optim_wrapper__type='mmcnx2.BF16OptimWrapper', optim_wrapper__clip_grad=dict(max_norm=1)),  # they act
        dict(optim_wrapper__accumulative_counts=2, train_dataloader__num_workers=3, train_cfg__val_interval=2),
        dict(optim_wrapper__optimizer__betas=[0.9, 0.95]),
    ],
)
def test_what_acts_is_not_spoken_of(options):
    assert lines(changed(**options)) == []


def test_without_a_schedule_another_length_is_what_it_says():
    stored = Config({**CONFIG, 'param_scheduler': []}).pretty_text
    assert lines(Config({**CONFIG, 'param_scheduler': [], 'train_cfg': dict(max_epochs=9)}), stored) == []


def test_another_number_of_schedules_does_not_fit():
    found = lines(Config({**CONFIG, 'param_scheduler': CONFIG['param_scheduler'][:1]}))
    assert len(found) == 2 and all('param_scheduler.1.' in line and 'another kind or number' in line for line in found)


@pytest.mark.parametrize('stored', ['', 'no config (', 'print(1)', 'x = 1 +'])
def test_a_checkpoint_without_our_config_says_nothing(stored):
    assert lines(changed(), stored) == []


def test_the_text_of_a_checkpoint_is_not_run(tmp_path):
    stored = f"model = __import__('os').mkdir('{tmp_path}/made')\noptim_wrapper = dict(optimizer=dict(lr=open('x')))"
    assert "open('x')\" in the checkpoint" in lines(changed(), stored)[1]
    assert not list(tmp_path.iterdir())


def test_the_config_says_afterwards_what_acts():
    cfg = changed(optim_wrapper__optimizer__lr=1.0, optim_wrapper__clip_grad=dict(max_norm=1), train_cfg__max_epochs=8)
    restore_settings(Config(CONFIG).pretty_text, cfg)
    assert cfg.optim_wrapper.optimizer == CONFIG['optim_wrapper']['optimizer']
    assert cfg.optim_wrapper.clip_grad.max_norm == 1 and cfg.train_cfg.max_epochs == 8
    assert lines(cfg, cfg.pretty_text) == []


def test_our_configs_are_read_as_mmengine_reads_them():
    for path in sorted(Path(mmcnx2.configs_dir()).glob('*/*.py'))[::25]:
        cfg = Config.fromfile(path)
        read = read_settings(cfg.pretty_text)
        for name in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'train_dataloader'):
            assert read.get(name) == cfg.get(name), (path, name)
