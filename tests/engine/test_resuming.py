"""Guards mmcnx2/engine/resuming.py: the checkpoint that a run goes on from, whatever a kill has left."""

import os
from pathlib import Path

import pytest
import torch
from mmengine import hooks
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import loops

from mmcnx2.engine.resuming import make_resumable, newest_checkpoint, resume_from, was_restarted


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three checkpoints, a minute apart; last_checkpoint names the newest."""
    for number in (1, 2, 3):
        save(tmp_path / f'epoch_{number}.pth', minute=number)
    save(tmp_path / 'best_mIoU_epoch_2.pth', minute=9, optimizer={})
    point_to(tmp_path, 'epoch_3.pth')
    return tmp_path


def save(path: Path, minute: int, **changes) -> None:
    checkpoint = dict(state_dict=dict(weight=torch.ones(3)), meta=dict(iter=1), optimizer=dict(state={}))
    torch.save({**checkpoint, **changes}, path)
    os.utime(path, (60 * minute, 60 * minute))


def point_to(folder: Path, name: str, minute: float = 3.1) -> None:
    (folder / 'last_checkpoint').write_text(f'/somewhere/else/{name}' if name else '')
    os.utime(folder / 'last_checkpoint', (60 * minute, 60 * minute))


def newest(folder: Path) -> str:
    return Path(newest_checkpoint(folder)).name


def test_the_one_that_last_checkpoint_names(folder, capsys):
    assert newest(folder) == 'epoch_3.pth'
    point_to(folder, 'epoch_2.pth')  # somebody went back
    assert newest(folder) == 'epoch_2.pth'
    assert not capsys.readouterr().err


def test_one_that_was_complete_when_the_run_was_killed_before_naming_it(folder):
    point_to(folder, 'epoch_2.pth', minute=2.1)
    assert newest(folder) == 'epoch_3.pth'


@pytest.mark.parametrize('kind', ['truncated', 'empty', 'flipped', 'weights only', 'missing'])
def test_a_broken_one_is_passed_over_and_both_are_named(folder, kind, capsys):
    path = folder / 'epoch_3.pth'
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(3).numpy().tobytes()) + 2] ^= 255  # a bit flip in the weights
    if kind == 'weights only':
        save(path, 3, optimizer={})
    elif kind == 'missing':
        path.unlink()
    else:
        path.write_bytes({'truncated': content[:-200], 'empty': b'', 'flipped': content}[kind])
    assert newest(folder) == 'epoch_2.pth'
    err = capsys.readouterr().err
    assert err.startswith('warning: ') and 'epoch_3.pth' in err and f'Going back to {folder / "epoch_2.pth"}' in err
    assert path.exists() == (kind != 'missing')


@pytest.mark.parametrize('pointer', ['', None])
def test_without_a_pointer_the_newest(folder, pointer):
    if pointer is None:
        (folder / 'last_checkpoint').unlink()
    else:
        point_to(folder, '')
    assert newest(folder) == 'epoch_3.pth'


def test_nothing_to_go_on_from(tmp_path, folder):
    assert newest_checkpoint(tmp_path / 'new') is None
    for path in folder.glob('epoch_*.pth'):
        path.write_bytes(b'PK\x03\x04')
    with pytest.raises(ValueError, match=r'No checkpoint to go on from.*epoch_3\.pth.*--resume PATH'):
        newest_checkpoint(folder)
    for path in folder.glob('*.pth'):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r'names .*epoch_3\.pth, which does not exist'):
        newest_checkpoint(folder)


def test_a_run_that_is_started_again_takes_the_newest_or_what_it_was_given(folder, monkeypatch, tmp_path):
    assert not was_restarted()
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '0')
    assert not was_restarted()
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    assert was_restarted()
    cfg = Config(dict(work_dir=str(folder)))
    resume_from(cfg, 'auto', otherwise=str(folder / 'epoch_1.pth'))
    assert cfg.load_from == str(folder / 'epoch_3.pth')
    cfg = Config(dict(work_dir=str(tmp_path / 'new')))
    resume_from(cfg, 'auto', otherwise=str(folder / 'epoch_1.pth'))
    assert cfg.load_from == str(folder / 'epoch_1.pth') and cfg.resume


def test_a_sharded_checkpoint_is_a_folder_that_a_strategy_reads(folder):
    (folder / 'epoch_4.pth').mkdir()
    point_to(folder, 'epoch_4.pth')
    cfg = Config(dict(work_dir=str(folder), strategy=dict(type='FSDPStrategy')))
    resume_from(cfg, 'auto')
    assert cfg.load_from == str(folder / 'epoch_4.pth') and cfg.resume
    for wanted in ('auto', str(folder)):
        with pytest.raises(ValueError, match=r'is a folder.*only a run with `strategy`.*--work-dir DIR --resume'):
            resume_from(Config(dict(work_dir=str(folder))), wanted)
    with pytest.raises(FileNotFoundError, match='epoch_9'):
        resume_from(cfg, str(folder / 'epoch_9.pth'))


@pytest.mark.parametrize(
    ('given', 'loop', 'hook'),
    [
        (dict(train_cfg=dict(by_epoch=True)), 'mmcnx2.EpochBasedTrainLoop', 'mmcnx2.CheckpointHook'),
        (dict(train_cfg=dict(by_epoch=False)), 'mmcnx2.IterBasedTrainLoop', 'mmcnx2.CheckpointHook'),
        (dict(train_cfg=dict(type='IterBasedTrainLoop')), 'mmcnx2.IterBasedTrainLoop', 'mmcnx2.CheckpointHook'),
        (
            dict(train_cfg=dict(type='Own'), default_hooks=dict(checkpoint=dict(type='Own', interval=3))),
            'Own',
            'Own',
        ),
        (
            dict(train_cfg=dict(type='Own'), default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=3))),
            'Own',
            'mmcnx2.CheckpointHook',
        ),
    ],
)
def test_parts_of_mmengine_are_replaced_and_others_are_not(given, loop, hook):
    cfg = Config(given)
    make_resumable(cfg)
    assert cfg.train_cfg == dict(type=loop)
    assert cfg.default_hooks.checkpoint.type == hook
    assert cfg.default_hooks.checkpoint.interval == (3 if 'default_hooks' in given else 1)


@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain', 'mmseg', 'class'])
@pytest.mark.parametrize('loop', ['EpochBasedTrainLoop', 'IterBasedTrainLoop'])
def test_parts_of_mmengine_are_known_by_scope_and_class(scope, loop):
    types = dict(loop=f'{scope}.{loop}', hook=f'{scope}.CheckpointHook')
    if scope == 'class':
        types = dict(loop=getattr(loops, loop), hook=hooks.CheckpointHook)
    elif scope != 'mmengine':
        pytest.importorskip(scope)
    cfg = Config(dict(train_cfg=dict(type=types['loop']), default_hooks=dict(checkpoint=dict(type=types['hook']))))
    make_resumable(cfg)
    assert cfg.train_cfg.type == f'mmcnx2.{loop}' and cfg.default_hooks.checkpoint.type == 'mmcnx2.CheckpointHook'


def test_a_class_of_that_name_from_elsewhere_stays(monkeypatch):
    class CheckpointHook(hooks.CheckpointHook):
        pass

    monkeypatch.setitem(HOOKS._module_dict, 'CheckpointHook', CheckpointHook)
    for kind in ('mmengine.CheckpointHook', 'other.CheckpointHook', 'mmcnx2.CheckpointHook', CheckpointHook):
        cfg = Config(dict(default_hooks=dict(checkpoint=dict(type=kind))))
        make_resumable(cfg)
        assert cfg.default_hooks.checkpoint.type == kind


def test_a_checkpoint_that_needs_code_is_passed_over_unless_asked_for(folder, capsys):
    save(folder / 'epoch_3.pth', minute=3, message_hub=Path('/somewhere'))
    assert newest(folder) == 'epoch_2.pth' and '--unsafe-load' in capsys.readouterr().err
    assert Path(newest_checkpoint(folder, unsafe_load=True)).name == 'epoch_3.pth'
