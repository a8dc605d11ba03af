"""How a command ends when something goes wrong: one line that says what to do, exit code 1, the traceback in a file.

Commands of `tools/` wrap their main function in `explain_errors`. Touch it to make a message reach the user more
clearly; not to hide errors: whatever is not a user's mistake keeps its traceback on the screen. Whether a path exists
is asked of os.path: pathlib raises below a folder that may not be searched (Python 3.11). Guarded by
tests/test_tools.py, tests/engine/test_user_errors.py and tests/faults/test_disk_faults.py.
"""

import contextlib
import errno
import logging
import os
import pickle
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmcnx2.atomic_write import write_atomically
from mmcnx2.engine.rendezvous import rank_in_environment

LONGEST_LINE = 2000
# Kinds of errors that input can cause. Others (RuntimeError, AssertionError ...) are more likely bugs: their traceback
# is shown.
USER_ERRORS = (
    ValueError, TypeError, KeyError, OSError, ImportError, SyntaxError, EOFError, pickle.UnpicklingError,
    FloatingPointError,
)  # fmt: skip
USER_ERROR_NAMES = (
    'ConfigParsingError',
    'OutOfMemoryError',
)  # RuntimeErrors that are nobody's bug, named to import nothing
# Beginnings of assertions in libraries that are about a file, and what to do about it
FILE_ASSERTIONS = {
    'failed to load image: ': 'it is damaged or no picture; mend it, or take it out of the data set',  # mmcv
}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_WRITING = (errno.EROFS, errno.EACCES, errno.EPERM)


def is_user_error(error: BaseException) -> bool:
    """True when the error can come from what a user gave: its one line is enough to act on."""
    if isinstance(error, AssertionError):
        return any(_own_words(error).startswith(beginning) for beginning in FILE_ASSERTIONS)
    return isinstance(error, USER_ERRORS) or type(error).__name__ in USER_ERROR_NAMES


def one_line(error: BaseException) -> str:
    """The message of an error on one line, its own words first.

    Taken off: the "class `X` in file.py:" that registries put in front, the report that a data loader wraps around an
    error of its worker, and the quotes that `str` puts around a KeyError.
    """
    text = re.sub(r'^(?:class `[^`]*` in \S+: )+', '', _own_words(error))
    text = ' '.join(text.split())
    if isinstance(error, KeyError) and re.fullmatch(r'\w+', text):
        text = f'{text!r} is missing (KeyError)'
    if len(text) > LONGEST_LINE:
        text = f'{text[:LONGEST_LINE]} ...'
    return text or type(error).__name__


def what_to_do(error: BaseException, work_dir: Path | str | None) -> str:
    """What the message of an error of the system or a library leaves out, to be put behind it; '' mostly."""
    words = _own_words(error)
    number = getattr(error, 'errno', None)
    if number in DISK_FULL:
        kept = work_dir is not None and any(Path(work_dir).glob('*.pth'))
        whole = '; the checkpoints that are there are whole, --resume goes on from the newest' if kept else ''
        return f'. {_space(work_dir)}Make room{whole}'
    if number in NO_WRITING and work_dir is not None and not _is_writable(work_dir):
        return f'. Nothing can be written to {work_dir}: choose another folder with --work-dir'
    if work_dir is not None and os.path.isfile(work_dir):
        return f'. {work_dir} is a file: choose a folder with --work-dir'
    missing = re.search(r'No such file or directory: \'?([^\']+)', words)
    if missing and not os.path.isdir(Path(missing[1]).parent):
        there = next((parent for parent in Path(missing[1]).absolute().parents if os.path.isdir(parent)), '/')
        return f'. Its folder is not there either; the path ends at {there}'
    for beginning, remedy in FILE_ASSERTIONS.items():
        if words.startswith(beginning):
            return f': {remedy}'
    return ''


def _own_words(error: BaseException) -> str:
    """The message without what Python and data loaders put around it; perhaps of several lines."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f'{error.strerror}: {error.filename}' if error.filename else error.strerror
    if 'Original Traceback' in text:
        last = [line for line in text.splitlines() if line and not line.startswith(' ')][-1]
        text = re.sub(r'^(?:[\w.]+(?:Error|Exception): )?(?:\[Errno \d+\] )?', '', last)
    return text


def _space(folder: Path | str | None) -> str:
    """'DIR has 0 of 20 MB left. ', or nothing when that is not known."""
    with contextlib.suppress(OSError):
        if folder is not None:
            usage = shutil.disk_usage(folder)
            return f'The disk of {folder} has {usage.free / 1e6:.3g} of {usage.total / 1e6:.3g} MB left. '
    return ''


def _is_writable(folder: Path | str) -> bool:
    there = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if os.path.exists(path))
    return os.access(there, os.W_OK | os.X_OK) and not os.statvfs(there).f_flag & os.ST_RDONLY


@contextmanager
def explain_errors(traceback_dir: Callable[[], Path | str | None] = lambda: None) -> Iterator[None]:
    """Turns an error inside the `with` block into the line `error: ...` on stderr and exit code 1.

    The traceback goes to `traceback.txt` in the folder that `traceback_dir()` answers at that time; with
    MMCNX2_TRACEBACK=1, and for an error that is not a user's, it is printed as well. Among the processes of a
    distributed run only rank 0 prints, another rank does when rank 0 has not failed shortly after; a connection lost
    to a process that has explained itself is not reported again. Ctrl-C and `SystemExit` pass through.

    A log file that cannot be written is not reported by a traceback for each of its lines, as Python's logging does:
    on a full disk the next thing that is written says so.
    """
    started = time.time()
    reported, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    except Exception as error:
        rank = rank_in_environment()
        shown = os.environ.get('MMCNX2_TRACEBACK') == '1' or not is_user_error(error)
        explained = _lost_a_process(error) and _others_explain(traceback_dir(), started)
        written = _write_traceback(traceback_dir(), rank)
        if not explained and (rank == 0 or not _rank_zero_explains(traceback_dir(), started)):
            if shown:
                traceback.print_exc()
            where = f' (traceback: {written})' if written and not shown else ''
            on_rank = f' on rank {rank}' if rank else ''
            line = f'{one_line(error)}{what_to_do(error, traceback_dir())}'
            print(f'error{on_rank}: {line}{where}', file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    finally:
        logging.raiseExceptions = reported


def _lost_a_process(error: Exception) -> bool:
    """True for what the surviving processes meet after one has ended: a broken connection to it."""
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ('gloo', 'NCCL', 'closed by peer'))


def _others_explain(folder: Path | str | None, started: float) -> bool:
    """True when a rank other than 0 wrote a traceback of this run."""
    return folder is not None and any(
        path.stat().st_mtime >= started - 1 for path in Path(folder).glob('traceback.rank*.txt')
    )


def _write_traceback(folder: Path | str | None, rank: int) -> Path | None:
    if folder is None:
        return None
    path = Path(folder) / _traceback_name(rank)
    try:
        write_atomically(path, f'{" ".join(sys.argv)}\n\n{traceback.format_exc()}')
    except OSError:  # a folder that cannot be written may be the very error that is reported
        return None
    return path


def _traceback_name(rank: int) -> str:
    return f'traceback.rank{rank}.txt' if rank else 'traceback.txt'


def _rank_zero_explains(folder: Path | str | None, started: float, patience_s: float = 5.0) -> bool:
    """True when rank 0 wrote a traceback of this run; waits as long as an error that all ranks meet needs to reach it.

    Without a folder the run has not got further than its config, which all ranks read alike.
    """
    if folder is None:
        return True
    path = Path(folder) / _traceback_name(0)
    deadline = time.time() + patience_s
    while time.time() < deadline:
        if os.path.exists(path) and path.stat().st_mtime >= started - 1:
            return True
        time.sleep(0.1)
    return False
