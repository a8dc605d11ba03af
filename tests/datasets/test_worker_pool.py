"""The processes that draw, convert and copy pictures."""

import os
import signal

import pytest

from mmcnx2.datasets.worker_pool import FEWEST_JOBS, results_of


def where(number):
    return number, os.getpid(), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(('num_jobs', 'num_workers', 'is_here'), [(FEWEST_JOBS, 2, False), (FEWEST_JOBS, 1, True),
                                                                  (FEWEST_JOBS - 1, 2, True)])  # fmt: skip
def test_results_come_in_order_from_other_processes_when_it_pays(num_jobs, num_workers, is_here):
    with results_of(where, list(range(num_jobs)), num_workers, chunk_size=1) as results:
        found = list(results)
    assert [number for number, *_ in found] == list(range(num_jobs))
    assert all((process == os.getpid()) == is_here for _, process, _ in found)


def test_a_handler_of_the_parent_does_not_keep_processes_alive():
    """A pool ends its processes by SIGTERM; one that went on waiting would be waited for."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # the test's own process gets its handler back, see conftest.py
    with results_of(where, list(range(FEWEST_JOBS)), 2) as results:
        assert all(is_default for *_, is_default in results)


def test_an_error_of_a_job_is_raised_here():
    with pytest.raises(ZeroDivisionError), results_of(reciprocal, [1] * 7 + [0], 2) as results:
        list(results)


def reciprocal(number):
    return 1 / number
