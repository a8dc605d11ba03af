"""Guards mmcnx2/engine/checkpoint_hook.py and atomic_backend.py: which files are there at which moment, and what a
resumed run is told. That it is the uninterrupted one: tests/engine/test_train_loops.py.
"""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.logging import MessageHub
from torch import nn

from mmcnx2 import atomic_write
from mmcnx2.datasets import EpochSeededSampler
from mmcnx2.engine.checkpoint_hook import KEY, CheckpointHook
from mmcnx2.engine.train_loops import EpochBasedTrainLoop


class Runner:
    """As much of mmengine's as the hook uses; it saves two numbers."""

    def __init__(self, folder: Path, resumes: bool = False) -> None:
        self.work_dir, self.model, self._resume = str(folder), nn.Linear(1, 1), resumes
        self.message_hub = MessageHub('test')
        self.logger = logging.getLogger('mmengine')
        self.optim_wrapper = SimpleNamespace(should_update=lambda: True)
        sampler = EpochSeededSampler(range(8), seed=1)
        loader = torch.utils.data.DataLoader(range(8), batch_size=2, sampler=sampler)
        self.train_loop = SimpleNamespace(dataloader=loader, epoch=0)
        self.epoch = self.iter = 0
        self.on_save = lambda: None

    def save_checkpoint(self, folder: str, filename: str, *args, meta: dict, backend_args: dict, **options) -> None:
        checkpoint = dict(meta=meta)
        self.hook.before_save_checkpoint(self, checkpoint)
        self.saved = checkpoint
        self.on_save()
        backend = get_file_backend(folder, backend_args=backend_args)
        backend.put(repr((self.epoch, self.iter)).encode(), backend.join_path(folder, filename))


def start(folder: Path, **options) -> tuple[Runner, CheckpointHook]:
    runner, hook = Runner(folder), CheckpointHook(interval=1, **options)
    runner.hook = hook
    hook.before_train(runner)
    return runner, hook


def save(runner: Runner, hook: CheckpointHook, epoch: int) -> None:
    runner.epoch, runner.iter = epoch - 1, 4 * epoch
    hook.after_train_epoch(runner)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def pointer(folder: Path) -> str:
    return Path((folder / 'last_checkpoint').read_text()).name


def test_the_older_one_goes_after_the_new_one_is_named(tmp_path):
    runner, hook = start(tmp_path, max_keep_ckpts=1)
    save(runner, hook, 1)
    runner.on_save = lambda: files_while_saving.append((files(tmp_path), pointer(tmp_path)))
    files_while_saving, named_when_removing, remove = [], [], hook._remove
    hook._remove = lambda names: (named_when_removing.append(pointer(tmp_path)), remove(names))
    save(runner, hook, 2)
    assert named_when_removing == ['epoch_2.pth']
    assert files_while_saving == [({'epoch_1.pth', 'last_checkpoint'}, 'epoch_1.pth')]
    assert files(tmp_path) == {'epoch_2.pth', 'last_checkpoint'} and pointer(tmp_path) == 'epoch_2.pth'


def test_a_disk_that_is_full_leaves_the_older_one(tmp_path, monkeypatch):
    runner, hook = start(tmp_path, max_keep_ckpts=1)
    save(runner, hook, 1)

    def fails(*args) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(atomic_write.os, 'fsync', fails)
    with pytest.raises(OSError, match='No space'):
        save(runner, hook, 2)
    assert files(tmp_path) == {'epoch_1.pth', 'last_checkpoint'} and pointer(tmp_path) == 'epoch_1.pth'


def test_what_a_kill_left_goes_at_the_next_start(tmp_path):
    runner, hook = start(tmp_path, max_keep_ckpts=1)
    save(runner, hook, 1)
    (tmp_path / 'epoch_7.pth').touch()  # somebody's own
    (tmp_path / '.epoch_2.pth.ab12.partial').touch()
    hook._remove = lambda names: None  # killed before
    save(runner, hook, 2)
    assert {'epoch_1.pth', 'epoch_2.pth'} <= files(tmp_path)
    resumed, again = Runner(tmp_path, resumes=True), CheckpointHook(interval=1, max_keep_ckpts=1)
    resumed.message_hub.load_state_dict(runner.message_hub.state_dict())
    again.before_train(resumed)
    assert files(tmp_path) == {'epoch_2.pth', 'epoch_7.pth', 'last_checkpoint'}


def test_a_checkpoint_in_between_goes_with_the_next_regular_one(tmp_path):
    runner, hook = start(tmp_path, max_keep_ckpts=2)
    save(runner, hook, 1)
    for number in (5, 6):
        runner.epoch, runner.iter = 1, number - 1
        hook.save_now(runner)
        assert files(tmp_path) == {'epoch_1.pth', f'iter_{number}.pth', 'last_checkpoint'}
        assert pointer(tmp_path) == f'iter_{number}.pth'
    hook.save_now(runner)
    runner.epoch, runner.iter = 1, 8
    save(runner, hook, 2)
    assert files(tmp_path) == {'epoch_1.pth', 'epoch_2.pth', 'last_checkpoint'}


def test_the_previous_best_one_goes_after_the_new_one_is_complete(tmp_path):
    runner, hook = start(tmp_path, save_best='score', rule='greater')
    runner.epoch, runner.iter = 1, 4
    hook.after_val_epoch(runner, dict(score=0.5))
    assert files(tmp_path) == {'best_score_epoch_1.pth'}
    seen = []
    runner.on_save = lambda: seen.append(files(tmp_path))
    runner.epoch = 2
    hook.after_val_epoch(runner, dict(score=0.6))
    assert seen == [{'best_score_epoch_1.pth'}]
    assert files(tmp_path) == {'best_score_epoch_2.pth'}
    assert KEY not in runner.saved  # weights only


def test_after_validation_the_generators_are_saved_and_go_on_as_before_it(tmp_path):
    runner, hook = start(tmp_path)
    before = torch.get_rng_state()
    hook.before_val(runner)
    torch.rand(5)
    save(runner, hook, 1)  # mmengine does when a best one was found
    assert torch.equal(runner.saved[KEY]['processes'][0]['torch'], before)
    hook.after_val(runner)
    assert torch.equal(torch.get_rng_state(), before)


def resume(tmp_path: Path, **changes) -> tuple[Runner, CheckpointHook]:
    runner, hook = start(tmp_path)
    save(runner, hook, 1)
    resumed, again = Runner(tmp_path, resumes=True), CheckpointHook(interval=1)
    again.after_load_checkpoint(resumed, {KEY: {**runner.saved[KEY], **changes}})
    return resumed, again


def test_the_sampler_and_the_gradients_are_those_of_before(tmp_path):
    runner, hook = start(tmp_path)
    runner.model(torch.ones(1, 1)).sum().backward()
    runner.optim_wrapper.should_update = lambda: False  # in the middle of a cycle
    save(runner, hook, 1)
    resumed, again = Runner(tmp_path, resumes=True), CheckpointHook(interval=1)
    resumed.train_loop.dataloader.sampler.seed = 99
    again.after_load_checkpoint(resumed, runner.saved)
    again.before_train(resumed)
    assert resumed.train_loop.dataloader.sampler.seed == 1
    assert torch.equal(resumed.model.weight.grad, torch.ones(1, 1))


def test_what_cannot_be_repeated_is_said(tmp_path, caplog):
    resumed, again = resume(tmp_path, processes=[{}, {}])
    resumed.logger.propagate = True
    again.before_train(resumed)
    assert 'of 2 processes, and now there are 1' in caplog.text
    resumed, again = resume(tmp_path)
    again.after_load_checkpoint(resumed, {})  # mmengine's own
    again.before_train(resumed)
    assert 'holds no states of random generators' in caplog.text


def test_another_length_of_the_epoch_is_refused_in_its_middle(tmp_path):
    resumed, again = resume(tmp_path, batch=3, num_batches=9)
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)  # without the rest of a runner
    loop.dataloader = resumed.train_loop.dataloader
    resumed.train_loop = loop
    with pytest.raises(ValueError, match=r'after 3 of 9 batches of an epoch, and an epoch has 4 now'):
        again.before_train(resumed)


def test_another_backend_is_used_when_it_is_asked_for():
    assert CheckpointHook().backend_args == dict(backend='mmcnx2_atomic')
    assert CheckpointHook(out_dir='s3://bucket').backend_args is None
    assert CheckpointHook(backend_args=dict(backend='local')).backend_args == dict(backend='local')
