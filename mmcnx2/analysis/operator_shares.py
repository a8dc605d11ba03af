"""Where the time of a step goes: PyTorch's profile of one run, its operators gathered into a handful of groups.

Touch it when an operator of ours or of PyTorch gets a new name; what no rule knows is shown as `rest`, by name, so it
cannot hide. Not for timing whole steps (speed.py): a profiler slows them down. Guarded by
tests/analysis/test_speed.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from mmcnx2.analysis.speed import waiter

PRODUCTS, DEPTHWISE, NORM, POINTWISE, COPIES, REST = (
    'matrix products',
    'depthwise convolution',
    'LayerNorm',
    'GELU, GRN, residual',
    'copies',
    'rest',
)
GROUPS = (PRODUCTS, DEPTHWISE, NORM, POINTWISE, COPIES, REST)

# The first pattern that is found in an operator's name (without "aten::") decides. Convolutions are split by their
# weight's shape before that.
_RULES = (
    (DEPTHWISE, r'depthwise|dwconv'),
    (NORM, r'layer_?norm'),
    (PRODUCTS, r'^(addmm|mm|bmm|baddbmm|matmul|linear|addmv|mv)(_|$)|gemm|mkldnn_linear|linear_pointwise|product$'),
    (COPIES, r'copy|clone|contiguous|index|gather|scatter|cat$|stack|reorder|transpose|permute|to_mkldnn|pad|repeat'),
    (COPIES, r'^_to_copy|^to$|where|masked_fill|fill_|zero|ones|spread|take_rows'),
    (
        POINTWISE,
        r'gelu|grn|mlp$|(^|_)(mul|add|sub|div|neg|pow|sqrt|rsqrt|square|sum|mean|norm|tanh|erf|exp|reciprocal|abs|sgn|eq'
        r'|clamp_min|maximum|threshold)(_|$)|addcmul|addcdiv|linalg_vector_norm|reduce|elementwise|residual',
    ),
)
_CONVOLUTION = re.compile(r'conv')
_BOOKKEEPING = re.compile(r'^autograd::engine|^torch::autograd|Backward\d+$')  # nodes of autograd that call operators


@dataclass(frozen=True)
class OperatorTime:
    """Time of one operator in one step: its own, without that of operators it calls."""

    name: str
    group: str
    seconds: float
    calls: int


def group_of(name: str, shapes: Sequence[Sequence[int]] = ()) -> str:
    """The group of an operator or kernel. `shapes` are those of its inputs, by which convolutions are told apart: the
    weight of a depthwise one has a single input channel, and the others here (stride = kernel, or 1 x 1) are matrix
    products.
    """
    name = name.removeprefix('aten::')
    if _BOOKKEEPING.search(name):
        return REST
    if _CONVOLUTION.search(name) and not re.search('depthwise|dwconv', name):
        weight = shapes[2] if 'backward' in name and len(shapes) > 2 else shapes[1] if len(shapes) > 1 else ()
        return DEPTHWISE if len(weight) == 4 and weight[1] == 1 and weight[0] > 1 else PRODUCTS
    return next((group for group, pattern in _RULES if re.search(pattern, name)), REST)


def profile_step(
    run: Callable[[], object], device: torch.device | str = 'cpu', num_runs: int = 3
) -> tuple[float, list[OperatorTime]]:
    """(seconds of a step under the profiler, its operators by their own time, the longest first), means of `num_runs`
    runs. Run the step once before.

    On a GPU it is the kernels' time, elsewhere the operators'. What is left of the seconds was in no operator: Python,
    waiting, or compiled code that reports nothing.
    """
    on_gpu = torch.device(device).type == 'cuda'
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities):  # its first start takes a while
        pass
    with profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
        started = time.perf_counter()
        for _ in range(num_runs):
            run()
        waiter(device)()
        seconds = (time.perf_counter() - started) / num_runs
    field = 'self_device_time_total' if on_gpu else 'self_cpu_time_total'
    found = [
        (entry.key, entry.input_shapes, getattr(entry, field) / 1e6 / num_runs, entry.count // num_runs)
        for entry in profiler.key_averages(group_by_input_shape=True)
        if getattr(entry, field) > 0
    ]
    return seconds, gather(found)


def gather(entries: Iterable[tuple[str, Sequence[Sequence[int]], float, int]]) -> list[OperatorTime]:
    """(name, shapes of the inputs, seconds, calls) of every kind of call -> one entry per operator and group, the
    longest first.
    """
    seconds: dict[tuple[str, str], float] = {}
    calls: dict[tuple[str, str], int] = {}
    for name, shapes, own_seconds, count in entries:
        key = (name.removeprefix('aten::'), group_of(name, shapes))
        seconds[key] = seconds.get(key, 0.0) + own_seconds
        calls[key] = calls.get(key, 0) + count
    found = [OperatorTime(name, group, seconds[name, group], calls[name, group]) for name, group in seconds]
    return sorted(found, key=lambda operator: -operator.seconds)


def group_seconds(operators: Iterable[OperatorTime]) -> dict[str, float]:
    """Seconds of every group, also of those that are empty."""
    total = dict.fromkeys(GROUPS, 0.0)
    for operator in operators:
        total[operator.group] += operator.seconds
    return total
