"""Disks that fill up and folders that vanish, without root: one line, exit code 1, whole checkpoints, and going on."""

import contextlib
import errno
import os
import resource
from pathlib import Path

import full_disk
import pytest

from mmcnx2.atomic_write import left_over
from mmcnx2.checkpoint import read_checkpoint
from mmcnx2.engine import AverageLossHook

SHORT = ['train_cfg.max_epochs=3', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']


@pytest.fixture
def train(tmp_path, monkeypatch, call):
    """Trains three short epochs in the folder `run`: (exit code, the lines of stderr, stdout)."""
    monkeypatch.chdir(tmp_path)
    full_disk.write_images(tmp_path / 'images')
    (tmp_path / 'config.py').write_text(full_disk.CONFIG)

    def run(*args: str, options: tuple = ()) -> tuple[int, list[str], str]:
        code, out, err = call('train', 'config.py', '--work-dir', 'run', *args, '--cfg-options', *SHORT, *options)
        return code, [line for line in err.splitlines() if line and 'Warning' not in line], out

    return run


def only_error(err: list[str], out: str) -> str:
    assert len(err) == 1 and err[0].startswith('error: '), err
    assert 'Traceback (most recent' not in out
    return err[0]


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(train, monkeypatch):
    fsync, checkpoints = os.fsync, []

    def on_a_full_disk(handle: int) -> None:
        if os.fstat(handle).st_size > 1e6:
            checkpoints.append(handle)
            if len(checkpoints) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', on_a_full_disk)
        code, err, out = train()
    assert code == 1
    line = only_error(err, out)
    assert 'No space left on device. The disk of run has ' in line and '--resume goes on from the newest' in line
    assert [path.name for path in Path('run').glob('*.pth')] == ['epoch_1.pth'] and not left_over('run')
    assert read_checkpoint('run/epoch_1.pth')
    assert Path('run/last_checkpoint').read_text().endswith('epoch_1.pth')
    code, err, out = train('--resume')
    assert code == 0 and 'going on from run/epoch_1.pth' in out
    assert sorted(path.name for path in Path('run').glob('*.pth')) == ['epoch_2.pth', 'epoch_3.pth']


@contextlib.contextmanager
def limited_files():
    """A function after whose call, inside the block, no file can grow beyond so many bytes; pytest's log neither."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_at_the_start(train):
    with limited_files() as limit:
        limit(3200)  # less than the copy of the config
        code, err, out = train()
    assert code == 1
    assert 'File too large' in only_error(err, out) and 'Make room' in err[0]
    assert Path('run').is_dir() and not left_over('run')


def test_logs_that_cannot_be_written_stop_the_run(train, monkeypatch):
    with limited_files() as limit:

        def fill(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 4:
                limit(10)

        monkeypatch.setattr(AverageLossHook, 'after_train_iter', fill)
        code, err, out = train()
    assert code == 1
    assert 'File too large' in only_error(err, out) and 'Epoch(train) [1][5/8]' in out and '[6/8]' not in out
    assert not left_over('run') and not Path('run/traceback.txt').exists()


def test_a_work_dir_that_is_a_file(train):
    Path('run').touch()
    code, err, out = train()
    assert code == 1 and 'run is a file: choose a folder with --work-dir' in only_error(err, out)


def test_images_that_vanish(train, monkeypatch):
    def vanish(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 10:
            Path('images').rename('elsewhere')

    with monkeypatch.context() as patch:
        patch.setattr(AverageLossHook, 'after_train_iter', vanish)
        code, err, out = train()
    assert code == 1
    assert "the folder 'images' with the pictures has gone" in only_error(err, out) and 'skipped a bad file' not in out
    assert [path.name for path in Path('run').glob('*.pth')] == ['epoch_1.pth']
    Path('elsewhere').rename('images')
    assert train('--resume')[0] == 0
