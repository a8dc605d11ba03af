"""Many small jobs on files, by as many processes as the machine has processors for.

Touch it for how such processes are started and end; what a job does stands where it is called. Guarded by
tests/datasets/test_worker_pool.py.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

FEWEST_JOBS = 8  # for fewer, starting processes takes longer than they save


@contextlib.contextmanager
def results_of(
    job: Callable[[Any], Any], jobs: Sequence, num_workers: int | None, chunk_size: int = 8
) -> Iterator[Iterable]:
    """The results of job(each), in the order of the jobs; computed as they are asked for when one process does it.

    Args:
        num_workers: processes; None takes one per processor that this process may use.
        chunk_size: jobs that a process takes at once.
    """
    num_workers = num_workers or len(os.sched_getaffinity(0))
    if num_workers == 1 or len(jobs) < FEWEST_JOBS:
        yield map(job, jobs)
        return
    with multiprocessing.get_context('fork').Pool(num_workers, _begin) as pool:
        yield pool.imap(job, jobs, chunksize=chunk_size)


def _begin() -> None:
    """In a new process: SIGTERM, by which a pool ends it, ends it whatever the parent does at that signal."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
