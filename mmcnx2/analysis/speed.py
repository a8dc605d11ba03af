"""How long a step takes, beside others of the same run, what memory it needs, and whether it computes the same.

Steps are ordinary functions; nothing here knows a model. Runs are interleaved, because a machine's speed drifts, and
ratios are taken within a round. Touch it for how is measured; not for what a step ought to cost (step_floor.py), for
where its time goes (operator_shares.py) or for what is compared with what (tools/benchmark/). Guarded by
tests/analysis/test_speed.py.
"""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

CLEAR_REFS, STATUS = Path('/proc/self/clear_refs'), Path('/proc/self/status')
FEWEST_ROUNDS, MOST_ROUNDS = 3, 15
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's names for mallopt


@dataclass(frozen=True)
class Step:
    """What is timed: `run`. `prepare` comes before it and is not timed; what `run` returns is freed after the clock has
    stopped.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles of one step's time over another's, each pair from one round."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """Seconds of one step, one value per round, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        return _quartiles(self.seconds)

    def over(self, other: Timing) -> Ratio:
        """This step's time as a multiple of the other's, compared round by round."""
        ratios = [mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)]
        return Ratio(statistics.median(ratios), *_quartiles(ratios))


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, high


def waiter(device: torch.device | str) -> Callable[[], None]:
    """A function that returns when `device` has done everything it was given."""
    device = torch.device(device)
    if device.type == 'cuda':
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def time_once(step: Step, wait: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one run, Python's garbage collector held back."""
    step.prepare()
    wait()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        started = clock()
        result = step.run()
        wait()
        seconds = clock() - started
    finally:
        if was_enabled:
            gc.enable()
    del result
    return seconds


def interleave(
    steps: Mapping[str, Step],
    num_rounds: int,
    wait: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    after_round: Callable[[int], object] = lambda done: None,
) -> dict[str, Timing]:
    """Timings of all steps, which take turns: every round runs each once, every other round from the last to the first.

    So a machine that slows down slows all of them alike, and none always follows the same one. Nothing is warmed up
    here. `after_round` is told how many rounds are done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(num_rounds):
        for name in list(steps) if number % 2 == 0 else reversed(list(steps)):
            seconds[name].append(time_once(steps[name], wait, clock))
        after_round(number + 1)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def num_rounds_within(seconds: float, seconds_per_round: float) -> int:
    """As many rounds as the time allows, at least 3 and at most 15; an odd number, so that a median is a real run."""
    wanted = int(seconds / seconds_per_round) if seconds_per_round > 0 else MOST_ROUNDS
    wanted = min(max(wanted, FEWEST_ROUNDS), MOST_ROUNDS)
    return wanted if wanted % 2 else wanted - 1


# ---- what is computed


def difference(values: Tensor, reference: Tensor) -> float:
    """Largest absolute difference, as a share of the largest absolute value of the reference. Infinite for another
    shape, for values that are not finite, and for anything beside a reference that is zero everywhere.
    """
    if values.shape != reference.shape:
        return float('inf')
    values, reference = values.detach().double(), reference.detach().double()
    largest = (values - reference).abs().max().item()
    if largest == 0:
        return 0.0
    scale = reference.abs().max().item()
    return largest / scale if scale > 0 and largest < float('inf') else float('inf')


def worst_difference(values: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> tuple[float, str]:
    """(largest `difference`, the name it is at). A name that only one of the two has counts as infinite."""
    lonely = sorted(values.keys() ^ reference.keys())
    if lonely:
        return float('inf'), lonely[0]
    return max((difference(values[name], reference[name]), name) for name in reference)


# ---- memory


def peak_memory(step: Step, device: torch.device | str = 'cpu') -> int | None:
    """Bytes by which the process (on a GPU: the allocator) grows at most while the step runs; None where that cannot
    be measured.

    On the CPU it is the highest resident size, which Linux keeps, above the resident size before the step: everything
    is in it, also what libraries allocate past PyTorch. Free pages that the heap holds are given back first, so that
    the step cannot use them unseen. Parameters are there before; activations, gradients and workspaces come on top.
    Run the step once before, or what is loaded at the first run is counted.
    """
    step.prepare()
    gc.collect()
    if torch.device(device).type == 'cuda':
        wait = waiter(device)
        wait()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = step.run()
        wait()
        del result
        return torch.cuda.max_memory_allocated(device) - before
    if not _give_free_pages_back() or not _forget_peak():
        return None
    before = _resident_bytes('VmRSS')
    result = step.run()
    peak = _resident_bytes('VmHWM')
    del result
    return peak - before


def count_page_faults(step: Step, wait: Callable[[], None]) -> tuple[int, float]:
    """(page faults of one run, its seconds). glibc gives buffers above 32 MB back to the system at once, and every new
    one costs a fault per 4 KiB; a step with many of them depends on the allocator.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = time_once(step, wait)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, seconds


def keep_freed_memory() -> bool:
    """From now on glibc keeps what is freed, as jemalloc and tcmalloc do; False where there is no glibc. For the whole
    process, and there is no way back.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def _give_free_pages_back() -> bool:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return False  # not glibc
    return True


def _forget_peak() -> bool:
    try:
        CLEAR_REFS.write_text('5')  # Linux: the peak is the present size from now on
    except OSError:
        return False
    return True


def _resident_bytes(field: str) -> int:
    return 1024 * int(re.search(rf'^{field}:\s*(\d+) kB', STATUS.read_text(), re.MULTILINE)[1])
