"""Long experiments as stages: ordinary commands, run one after the other, resumed, recorded on disk.

A stage that is complete with the present settings is not run again, an interrupted one goes on from its last
checkpoint, so after Ctrl-C or a kill the same command goes on. Every command is printed as you would type it, its
whole output goes to a log file, its progress onto one line. A stage is locked while it runs, also by a command that
outlived its parent.

Touch this file for how stages are run and what is remembered of them. Not for what the stages are (tools/run_demo.py,
tools/transfer.py), nor for how their commands are written (run_commands.py). Guarded by tests/engine/test_stages.py.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import mmcnx2
from mmcnx2.atomic_write import write_atomically
from mmcnx2.engine.user_errors import is_user_error, one_line

LOG_TAIL_LINES = 15
PROGRESS_EVERY_S = 15.0  # when the output is not a terminal
# training saves before it ends; torchrun gives its workers 60 s for that before it kills them
END_PATIENCE_S = ((signal.SIGTERM, 70.0), (signal.SIGKILL, 10.0))
# OpenMP threads spin while they wait for each other. Beside other jobs they wait for threads that cannot run: on 2 busy
# cores one pretraining step took 0.9 s with sleeping threads and over 8 s with spinning ones; idle, 0.5 s either way.
COMMAND_ENVIRON = {
    'OMP_WAIT_POLICY': os.environ.get('OMP_WAIT_POLICY', 'PASSIVE'),
    'PYTHON': sys.executable,  # tools/dist_*.sh take the interpreter from here
    'PYTHONUNBUFFERED': '1',
}


class StageError(Exception):
    """Something that stops an experiment or one of its stages, said in one line."""


class StageBusyError(StageError):
    """The stage is being run by another process."""


# One command of a stage. It is made when its turn comes, because it may need the path of an earlier one's checkpoint.
# The argument says whether the stage goes on from an interrupted attempt; None: there is nothing (more) to run.
MakeCommand = Callable[[bool], list[str] | None]


@dataclass(frozen=True)
class Stage:
    """Commands that belong together, and what their result depends on.

    `settings` is what the result depends on apart from the data and the stages in `needs`; folders do not belong to
    it.
    """

    name: str
    title: str
    commands: tuple[MakeCommand, ...]
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    work_dir: Path | None = None  # owned by the stage; before it starts anew, put aside if trained in, else removed
    product: Path | None = None  # must exist after the stage
    reads_data: bool = True


@dataclass
class Marker:
    """What is known about a stage on disk."""

    key: str
    complete: bool = False
    seconds: float = 0.0  # of all attempts
    attempts: int = 0
    command: str = ''  # one line per command
    finished: str = ''
    code: str = ''
    made_data: str = ''  # of a stage that makes the data: hash of what it left
    done: list[str] = field(default_factory=list)  # commands that have succeeded; '' where there was nothing to do
    failure: str = ''  # one line about the last attempt
    peak_rss_mb: float = 0.0  # of the largest process of the commands


def clear(work_dir: Path) -> None:
    """Make room for a stage that starts anew. A folder with a checkpoint of a training, of other settings or without a
    record, is hours of somebody's work: it is renamed, not removed."""
    if not (work_dir / 'last_checkpoint').exists():
        shutil.rmtree(work_dir)
        return
    aside = work_dir.with_name(f'{work_dir.name}.before-{time.strftime("%Y%m%d_%H%M%S")}')
    work_dir.rename(aside)
    tell(f'{work_dir} holds a training of other settings or without a record; it is kept as {aside}')


@dataclass
class StageRun:
    """The stages of one work dir. `data_hash` answers a hash of the data that stages read, None where it is not looked
    at.
    """

    work_dir: Path
    stages: dict[str, Stage]
    data_hash: Callable[[], str | None] = lambda: None
    force: bool = False
    keys: dict[str, str | None] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)  # markers that were complained about

    def marker_path(self, name: str) -> Path:
        return self.work_dir / 'stages' / f'{name}.json'

    def log_path(self, name: str) -> Path:
        return self.work_dir / 'logs' / f'{name}.log'

    def read_marker(self, name: str) -> Marker | None:
        try:
            return Marker(**json.loads(self.marker_path(name).read_text(encoding='utf-8')))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            if name not in self.unreadable:
                tell(f'  {self.marker_path(name)} cannot be read ({error}); the stage is run again')
                self.unreadable.add(name)
            return None

    def write_marker(self, name: str, marker: Marker) -> None:
        write_atomically(self.marker_path(name), json.dumps(vars(marker), indent=1) + '\n')

    def present_data(self) -> str | None:
        """Hash of the data; computed once, and again after a stage that makes them."""
        if 'data' not in self.keys:
            self.keys['data'] = self.data_hash()
        return self.keys['data']

    def key_of(self, stage: Stage) -> str:
        """Hash of everything that the stage's result depends on, except the code."""
        content = {
            'settings': stage.settings,
            'needs': {need: self.key_of(self.stages[need]) for need in stage.needs},
            'data': self.present_data() if stage.reads_data else None,
        }
        return sha256(json.dumps(content, sort_keys=True, default=str))

    def complete_marker(self, stage: Stage) -> Marker | None:
        """The stage's marker when it is complete with the present settings and data, else None."""
        marker = self.read_marker(stage.name)
        if marker is None or not marker.complete or (stage.product and not stage.product.exists()):
            return None
        if not stage.reads_data and marker.made_data != self.present_data():
            return None  # somebody changed the data
        return marker if marker.key == self.key_of(stage) else None

    @contextmanager
    def locked(self, name: str) -> Iterator[int]:
        """Hold the stage; its commands inherit the lock. StageBusyError when somebody else holds it."""
        path = self.work_dir / 'stages' / f'.{name}.lock'
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StageBusyError(
                    f'stage {name} in {self.work_dir} is being run by another process, or by a command that one left '
                    'behind'
                ) from None
            yield file.fileno()

    def is_busy(self, name: str) -> bool:
        """True while another process runs the stage."""
        try:
            with self.locked(name):
                return False
        except StageBusyError:
            return True

    def run(self, stage: Stage) -> None:
        """Run the stage, or say that it is complete already. Raises StageError when it fails."""
        with self.locked(stage.name) as lock_fd:
            done = None if self.force else self.complete_marker(stage)
            if done:
                changed = '; mmcnx2 has been edited since, --force runs it again' if done.code != code_hash() else ''
                tell(f'{stage.title}: complete ({done.seconds:.0f} s on {done.finished}{changed})')
                return
            missing = [need for need in stage.needs if not self.complete_marker(self.stages[need])]
            if missing:
                raise StageError(
                    f'stage {stage.name} needs {" and ".join(missing)}, not complete '
                    f'for these settings: run --stages {" ".join([*missing, stage.name])}'
                )
            self._run_commands(stage, lock_fd)

    def _run_commands(self, stage: Stage, lock_fd: int) -> None:
        before = None if self.force else self.read_marker(stage.name)
        resumes = before is not None and before.key == self.key_of(stage) and not before.complete
        if stage.work_dir and stage.work_dir.exists() and not resumes:
            clear(stage.work_dir)
        marker = before if resumes else Marker(key=self.key_of(stage))
        marker.attempts, marker.code, marker.failure = marker.attempts + 1, code_hash(), ''
        tell(f'\n{stage.title}')
        append = resumes  # a new attempt replaces the log
        for make_command in stage.commands[len(marker.done) :]:
            try:
                command = make_command(resumes)
            except Exception as error:
                if not is_user_error(error):
                    raise
                marker.done.clear()
                marker.failure = f'stage {stage.name}: {one_line(error)}'
                self.write_marker(stage.name, marker)
                raise StageError(marker.failure) from error
            text = shown(command) if command else ''
            if command:
                marker.command = '\n'.join(filter(None, [*marker.done, text]))
                self.write_marker(stage.name, marker)
                tell(f'  $ {text}')
                started = time.monotonic()
                try:
                    ended = stream(command, self.log_path(stage.name), lock_fd, append)
                    marker.peak_rss_mb = max(marker.peak_rss_mb, ended.peak_rss_mb)
                finally:
                    marker.seconds += time.monotonic() - started
                    self.write_marker(stage.name, marker)
                append = True
                if ended.code:
                    self._fail(stage, marker, f'ended with exit code {ended.code}')
            marker.done.append(text)
        if stage.product and not stage.product.exists():
            marker.done.clear()
            self._fail(stage, marker, f'left no {stage.product}')
        marker.complete, marker.finished = True, now()
        if not stage.reads_data:
            self.keys.clear()  # the data may be new
            marker.made_data = self.present_data() or ''
        self.write_marker(stage.name, marker)
        tell(f'  done in {marker.seconds:.0f} s')

    def _fail(self, stage: Stage, marker: Marker, what: str) -> NoReturn:
        """Show the last lines of the log, remember the failure, raise StageError."""
        log_path = self.log_path(stage.name)
        lines = log_path.read_text(encoding='utf-8', errors='replace').splitlines() if log_path.is_file() else []
        print('\n'.join(f'  | {line}' for line in lines[-LOG_TAIL_LINES:]), file=sys.stderr, flush=True)
        marker.failure = f'stage {stage.name} {what}; its whole output: {log_path}'
        self.write_marker(stage.name, marker)
        raise StageError(marker.failure)


def tell(text: str) -> None:
    print(text, flush=True)


def now() -> str:
    return time.strftime('%Y-%m-%d %H:%M:%S %z')


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shown(command: Iterable[str]) -> str:
    """The command as one would type it: paths below the current folder relative, the interpreter by its name."""
    here = f'{Path.cwd()}{os.sep}'
    words = [word.replace(here, '') for word in command]
    return shlex.join(['python', *words[1:]] if words[0] == sys.executable else words)


@functools.cache
def code_hash() -> str:
    """Hash of the package's code that takes part in training (all but analysis)."""
    package = Path(mmcnx2.__file__).parent
    files = sorted(path for path in package.rglob('*.py') if 'analysis' not in path.parts and '.mim' not in path.parts)
    return sha256('\0'.join(path.read_text(encoding='utf-8') for path in files))


def interrupt_on_sigterm() -> None:
    """Let a polite kill end this process as Ctrl-C does, so that what it started is ended too."""

    def stop(signum: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


# ---- running a command

PROGRESS = re.compile(r'(?P<kind>Epoch|Iter)\((?P<mode>\w+)\)\s+(?P<where>(?:\[[^\]]*\])+)')


def progress_of(line: str) -> str | None:
    """'train [3][10/31]  loss 0.71  ETA 0:01:20' of a line of mmengine's log; None when it reports no progress."""
    found = PROGRESS.search(line)
    if not found:
        return None
    parts = [f'{found["mode"]} {re.sub(" +", "", found["where"])}']
    for name, pattern in (('loss', r'\bloss: (\S+)'), ('ETA', r'\beta: ((?:\d+ days?, )?\S+)')):
        value = re.search(pattern, line)
        if value:
            parts.append(f'{name} {value[1]}')
    return '  '.join(parts)


# Starts a command, waits for it, and writes the peak memory of its largest process, in ru_maxrss's unit, to a pipe. The
# kernel counts the memory of the process that starts a command as the command's own, so a small process must start it.
# It outlives SIGTERM, so that waiting for it is waiting for the command, which has the default handling again.
MEASURING = """
import os, resource, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *ignored: None)
code = subprocess.call(sys.argv[2:], close_fds=False)
os.write(int(sys.argv[1]), str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss).encode())
sys.exit(code if code >= 0 else 128 - code)
"""
RSS_UNITS_PER_MB = 2**20 if sys.platform == 'darwin' else 2**10


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (128 + signal number when one ended it), and its largest process."""

    code: int
    peak_rss_mb: float


def stream(command: list[str], log_path: Path, lock_fd: int, append: bool) -> Ended:
    """Run the command with its output in the log file and its progress on one line.

    The command is a process group of its own: when this process is interrupted or dies of an exception, the whole
    group is ended. It inherits the lock `lock_fd` (-1: none), so that nobody can start beside a command that outlived
    its parent.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    is_terminal = sys.stdout.isatty()
    started, last_shown = time.monotonic(), -math.inf
    with log_path.open('a' if append else 'w', encoding='utf-8') as log:
        log.write(f'$ {shown(command)}\n')
        pipe, pipe_end = os.pipe()
        process = subprocess.Popen(
            [sys.executable, '-I', '-S', '-c', MEASURING, str(pipe_end), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors='replace',
            bufsize=1,
            env={**os.environ, **COMMAND_ENVIRON},
            start_new_session=True,
            pass_fds=(pipe_end, lock_fd) if lock_fd >= 0 else (pipe_end,),
        )
        os.close(pipe_end)
        try:
            for line in process.stdout:
                log.write(line)
                log.flush()
                progress = progress_of(line)
                if progress and (is_terminal or time.monotonic() - last_shown >= PROGRESS_EVERY_S):
                    text = f'  {progress}  ({time.monotonic() - started:.0f} s)'
                    print(
                        f'\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}' if is_terminal else text,
                        end='' if is_terminal else '\n',
                        flush=True,
                    )
                    last_shown = time.monotonic()
            code, peak_rss = process.wait(), os.read(pipe, 64)
            return Ended(code, int(peak_rss or 0) / RSS_UNITS_PER_MB)
        finally:
            os.close(pipe)
            if is_terminal:
                print('\r\x1b[K', end='', flush=True)
            end_group(process)


def end_group(process: subprocess.Popen) -> None:
    """End the command and its workers, politely at first."""
    if process.poll() is not None:
        return
    for sign, patience_s in END_PATIENCE_S:
        try:
            os.killpg(process.pid, sign)
            process.wait(patience_s)
            return
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
