"""One training per work dir: who is refused, and that nothing is left of a process that is gone."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmcnx2.engine import work_dir_lock
from mmcnx2.engine.work_dir_lock import WorkDirLock

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import os, sys, time
from mmcnx2.engine.work_dir_lock import WorkDirLock
lock = WorkDirLock()
lock.take(sys.argv[1], False)
child = os.fork()  # as a loading process, it outlives its parent
if child:
    print(child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """(process that holds the lock of tmp_path / 'run', a process that it forked)."""
    for name in ('RANK', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(work_dir_lock, 'PATIENCE_S', 0.2)
    environ = {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-c', HOLDER, tmp_path / 'run']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    child = int(process.stdout.readline())
    yield process, child
    process.kill()
    process.wait()
    os.kill(child, signal.SIGKILL)


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path, holder, monkeypatch, capsys):
    process, child = holder
    with WorkDirLock() as lock:
        with pytest.raises(ValueError, match=rf'/run is the work dir of .*process {process.pid} on .*--work-dir'):
            lock.take(tmp_path / 'run', False)
        assert lock.is_taken
    with WorkDirLock() as lock:  # a job that Slurm started again must not die of a lock that is stuck
        lock.take(tmp_path / 'run', True)
        assert 'warning' in capsys.readouterr().err and not lock.is_taken
    with WorkDirLock() as lock:
        lock.take(tmp_path / 'other', False)
        monkeypatch.setenv('RANK', '1')
        lock.take(tmp_path / 'run', False)  # rank 0 of this run has asked already
    monkeypatch.delenv('RANK')
    process.kill()
    process.wait()
    os.kill(child, 0)  # is there still
    with WorkDirLock() as lock:
        lock.take(tmp_path / 'run', False)
        assert (tmp_path / 'run' / work_dir_lock.FILE).read_text().startswith(f'process {os.getpid()} on ')


def test_where_no_lock_can_be_held_training_goes_on(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, 'No locks available')

    (tmp_path / 'file').touch()
    with WorkDirLock() as lock:
        lock.take(tmp_path / 'file', False)  # the runner says what is wrong with that
        monkeypatch.setattr(fcntl, 'lockf', unsupported)
        lock.take(tmp_path / 'run', False)
        assert not lock.is_taken
