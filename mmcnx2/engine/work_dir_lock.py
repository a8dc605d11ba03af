"""One training per work dir: a second one is told so, instead of overwriting the checkpoints of the first.

The lock is the kernel's (fcntl.lockf), on a hidden file in the work dir. It belongs to the process alone, not to the
loading processes that it starts, and ends with it, however it ends: nothing is left behind that a resumed run would
have to remove. Touch this file for who may train in a folder; not for the stages of an experiment, which have locks of
their own (stages.py). Guarded by tests/engine/test_work_dir_lock.py and tests/test_tools.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

from mmcnx2.engine.rendezvous import rank_in_environment
from mmcnx2.engine.run_config import tell

FILE = '.training.lock'
# A process that was killed may take so long to be gone
PATIENCE_S = 5.0


class WorkDirLock:
    """Holds the lock of one folder from `take` until the end of its `with` block."""

    def __init__(self) -> None:
        self.is_taken = False  # by another process
        self._file: TextIO | None = None

    def __enter__(self) -> WorkDirLock:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def take(self, work_dir: str | Path, was_requeued: bool) -> None:
        """Takes the lock for the run's rank 0; the other processes of a run hold nothing.

        Where the file system has no locks, or the folder cannot be written, nothing is held. `was_requeued`: Slurm
        started this job again, perhaps on another machine because the first one failed, whose lock a file server may
        still keep: after waiting longer, that is a warning. Where torchrun starts processes again, the earlier ones
        are gone.

        Raises:
            ValueError: another process trains in this folder.
        """
        if rank_in_environment() != 0:
            return
        try:
            Path(work_dir).mkdir(parents=True, exist_ok=True)
            self._file = (Path(work_dir) / FILE).open('a+', encoding='utf-8')
        except OSError:
            return  # what is written there next says why it cannot be
        if self._wait(PATIENCE_S * (4 if was_requeued else 1)):
            with contextlib.suppress(OSError):
                self._file.truncate(0)
                self._file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
                self._file.flush()
            return
        says = self._holder()
        if was_requeued:
            tell(f'warning: {says}; Slurm has started this job again, so it goes on nevertheless', stream=sys.stderr)
            return
        self.is_taken = True
        raise ValueError(f'{says}. Two would overwrite each other: choose another folder with --work-dir, or wait')

    def _wait(self, patience_s: float) -> bool:
        """True when the lock is ours, or there are no locks here; False when another process has kept it."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except (BlockingIOError, PermissionError):  # which one, POSIX leaves open
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.1)
            except OSError:  # a file system without locks
                return True

    def _holder(self) -> str:
        self._file.seek(0)
        who = ' '.join(self._file.read(200).split()) or 'another process'
        return f'{Path(self._file.name).parent} is the work dir of a training that is running: {who}'
