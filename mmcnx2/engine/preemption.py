"""A run that is told to leave: it finishes its iteration, saves everything, and says by its exit code that it goes on.

SIGTERM or SIGUSR1 --> iteration ends --> all processes agree --> iter_N.pth --> exit code 75

Touch this file for signals and what follows them; not for what is saved (checkpoint_hook.py), nor for what starts the
run again (tools/slurm_train.sh, tools/launch_processes.py). Guarded by tests/engine/test_preemption.py and
tests/test_training_runs.py.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook

from . import rendezvous
from .checkpoint_hook import CheckpointHook

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Launchers send a signal to all processes of a group and pass it on as well; copies come within this time
COPIES_WITHIN_S = 5.0
EXIT_FILE = 'MMCNX2_EXIT_FILE'  # names the file in which tools/launch_processes.py looks for the exit code


class PreemptionHook(Hook):
    """Ends training after a SIGTERM or SIGUSR1 with everything saved; tools/train.py registers it.

    Inside `listening`, a signal before training has begun ends the process at once with exit code 75: there is nothing
    to save. In training the iteration is finished, and when any process has got a signal all of them save `iter_N.pth`
    and leave with exit code 75. In validation it ends at once when the weights are on the disk already (as they are
    when checkpoints are saved as often), else after it. A second signal, more than 5 s after the first, ends the
    process at once, as if nobody listened.

    Costs an all-reduce of one number per iteration when there are several processes.
    """

    priority = 'LOWEST'  # after CheckpointHook: what it has just saved need not be saved again

    def __init__(self) -> None:
        if os.environ.get(EXIT_FILE):  # of the run that torchrun starts again
            Path(os.environ[EXIT_FILE]).unlink(missing_ok=True)
        self.received_at: float | None = None
        self._is_training = False
        self._is_leaving = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # Python sets handlers there only
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                # while the process ends nothing may change its exit code any more
                signal.signal(number, signal.SIG_IGN if self._is_leaving else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._is_training:
            _say(f'{name}: training has not begun, nothing is to be saved; exit code {EXIT_CODE}')
            self._is_leaving = True
            self._note_exit()
            raise SystemExit(EXIT_CODE)
        if self.received_at is None:
            self.received_at = time.monotonic()
            _say(f'{name}: saving after this iteration, then exit code {EXIT_CODE}; a second one ends at once')
        elif time.monotonic() - self.received_at > COPIES_WITHIN_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def before_train(self, runner) -> None:
        self._is_training = True

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        if not self._anybody_received():
            return
        hook = _checkpoint_hook(runner)
        if hook is None:
            runner.logger.warning('No mmcnx2.CheckpointHook in this run: nothing is saved.')
        else:
            hook.save_now(runner)
            runner.logger.info(f'Saved {hook.last_ckpt}; the run goes on from there with --resume.')
        self._is_leaving = True
        self._note_exit()
        rendezvous.part(EXIT_CODE)
        raise SystemExit(EXIT_CODE)

    def before_val_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if batch_idx == 0:
            leave_signals_to_main()

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        hook = _checkpoint_hook(runner)
        if self.received_at is not None and hook is not None and hook.saved_iter == runner.iter:
            self._is_leaving = True
            self._note_exit()
            raise SystemExit(EXIT_CODE)

    def _anybody_received(self) -> bool:
        here = self.received_at is not None
        if get_world_size() == 1:
            return here
        flag = torch.tensor(float(here))
        all_reduce(flag, op='max')
        return bool(flag)

    def _note_exit(self) -> None:
        if os.environ.get(EXIT_FILE) and os.environ.get('LOCAL_RANK', '0') == '0':
            Path(os.environ[EXIT_FILE]).write_text(str(EXIT_CODE))


def leave_signals_to_main() -> None:
    """Takes the workers of data loaders, the children of this process, out of its group.

    A signal to the whole group, as launchers send it, would else take the data from a run that is about to save.
    Workers end with this process all the same: it tells them, and they look whether it is still there.
    """
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):  # it has ended, or runs a program of its own
            if os.getpgid(child.pid) == os.getpgid(0):
                os.setpgid(child.pid, child.pid)


def _checkpoint_hook(runner) -> CheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def _say(text: str) -> None:
    """Straight to stderr: Python's own streams may be in the middle of a line when a signal comes."""
    if rendezvous.rank_in_environment() == 0:
        os.write(2, f'{text}\n'.encode())
