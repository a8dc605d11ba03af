"""Timing, ratios, memory, floors and operator groups: on clocks, machines and profiles of our own making, with numbers
worked by hand. No test looks at how fast anything is.
"""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmcnx2.analysis.operator_shares import (
    COPIES,
    DEPTHWISE,
    GROUPS,
    NORM,
    POINTWISE,
    PRODUCTS,
    REST,
    gather,
    group_of,
    group_seconds,
    profile_step,
)
from mmcnx2.analysis.speed import (
    Ratio,
    Step,
    Timing,
    count_page_faults,
    difference,
    interleave,
    num_rounds_within,
    peak_memory,
    time_once,
    worst_difference,
)
from mmcnx2.analysis.step_floor import PEAK_SIDE, Product, Speeds, Work, encoder_work, floor_of, positions_per_stage

MB = 2**20
MICRO = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])


class Clock:
    """A clock that only moves when a step says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


# ---- timing


def test_steps_take_turns_and_every_other_round_runs_backwards():
    clock, order, rounds = Clock(), [], []
    costs = {'a': iter([1, 2, 3]), 'b': iter([10, 20, 30]), 'c': iter([100, 200, 300])}

    def step(name):
        def run():
            order.append(name)
            clock.advance(next(costs[name]))

        return Step(run)

    timings = interleave({name: step(name) for name in costs}, 3, clock=clock, after_round=rounds.append)
    assert ''.join(order) == 'abc' + 'cba' + 'abc'
    assert timings['a'].seconds == (1, 2, 3) and timings['b'].seconds == (10, 20, 30)
    assert rounds == [1, 2, 3]


def test_preparation_and_the_freeing_of_the_result_are_not_timed():
    clock, events = Clock(), []

    class Result:
        pass

    def run():
        events.append('run')
        clock.advance(5)
        result = Result()
        weakref.finalize(result, lambda: (events.append('freed'), clock.advance(1000)))
        return result

    step = Step(run, lambda: (events.append('prepare'), clock.advance(70)))
    waits = []
    seconds = time_once(step, lambda: (waits.append(len(events)), clock.advance(0.5)), clock)
    assert seconds == 5.5  # the run, and the wait for what it started
    assert events == ['prepare', 'run', 'freed'] and waits == [1, 2]


def test_the_garbage_collector_stands_still_while_the_clock_runs_and_is_put_back():
    seen = []
    time_once(Step(lambda: seen.append(gc.isenabled()), lambda: seen.append(gc.isenabled())), lambda: None)
    assert seen == [True, False] and gc.isenabled()
    with pytest.raises(RuntimeError):
        time_once(Step(lambda: (_ for _ in ()).throw(RuntimeError).__next__()), lambda: None)
    assert gc.isenabled()


def test_ratios_are_taken_within_a_round():
    """The machine becomes ten times slower in the middle; the ratio of the medians would not be 2."""
    mine, theirs = Timing((2.0, 20.0, 24.0)), Timing((1.0, 1.0, 12.0))
    assert mine.over(theirs) == Ratio(2.0, 2.0, 11.0)
    assert mine.median == 20.0 and mine.quartiles == (11.0, 22.0)
    assert Timing((3.0,)).quartiles == (3.0, 3.0)
    with pytest.raises(ValueError):
        mine.over(Timing((1.0,)))


@pytest.mark.parametrize(('seconds', 'per_round', 'rounds'), [(60, 10, 5), (70, 10, 7), (1, 10, 3), (1e6, 1, 15)])
def test_rounds_fit_into_the_time(seconds, per_round, rounds):
    assert num_rounds_within(seconds, per_round) == rounds


# ---- differences


def test_differences_are_shares_of_the_largest_value():
    reference = torch.tensor([0.5, -4.0])
    assert difference(torch.tensor([0.5, -4.0]), reference) == 0
    assert difference(torch.tensor([1.5, -4.0]), reference) == pytest.approx(0.25)
    assert difference(torch.tensor([float('nan'), -4.0]), reference) == float('inf')
    assert difference(torch.tensor([float('inf'), -4.0]), reference) == float('inf')
    assert difference(torch.tensor([[0.5, -4.0]]), reference) == float('inf')
    assert difference(torch.tensor([1e-30]), torch.zeros(1)) == float('inf')
    assert difference(torch.zeros(1), torch.zeros(1)) == 0


def test_the_worst_tensor_is_named_and_one_too_many_counts():
    reference = {'a': torch.ones(2), 'b': torch.ones(2)}
    assert worst_difference({'a': torch.ones(2), 'b': torch.tensor([1.0, 1.5])}, reference) == (0.5, 'b')
    assert worst_difference({'a': torch.ones(2)}, reference) == (float('inf'), 'b')
    assert worst_difference({**reference, 'c': torch.ones(1)}, reference) == (float('inf'), 'c')


# ---- memory


def test_peak_memory_sees_what_is_freed_again_and_not_what_was_there():
    kept = torch.ones(16 * MB)  # 64 MB that are no part of the step

    def run():
        first = torch.ones(12 * MB)  # 48 MB
        second = first + 1  # 96 MB together
        del first
        return second[: 4 * MB].clone()

    run()
    measured = peak_memory(Step(run)) / MB
    assert measured == pytest.approx(96, abs=6)
    assert kept[0] == 1


def test_preparation_is_not_in_the_peak():
    held = []
    step = Step(lambda: torch.ones(4 * MB), lambda: held.append(torch.ones(16 * MB)))
    assert peak_memory(step) / MB == pytest.approx(16, abs=4)


def test_memory_that_cannot_be_measured_is_not_guessed(monkeypatch, tmp_path):
    monkeypatch.setattr('mmcnx2.analysis.speed.CLEAR_REFS', tmp_path / 'nowhere' / 'clear_refs')
    assert peak_memory(Step(lambda: torch.ones(MB))) is None


def test_fresh_pages_are_counted():
    faults, seconds = count_page_faults(Step(lambda: torch.ones(16 * MB)), lambda: None)
    assert 64 * MB / 4096 <= faults < 2 * 64 * MB / 4096 and seconds > 0


def test_kept_memory_is_used_again():
    """In a process of its own: there is no way back. The heap may have to grow more than once, not every time."""
    code = (
        'import torch\n'
        'from mmcnx2.analysis.speed import *\n'
        'step = Step(lambda: torch.ones(16 * 2**20))\n'
        'faults = lambda: min(count_page_faults(step, lambda: None)[0] for _ in range(8))\n'
        'print(faults(), keep_freed_memory(), faults())\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    before, kept, after = done.stdout.split()
    assert int(before) >= 64 * MB / 4096 and kept == 'True' and int(after) < 100


# ---- operators


@pytest.mark.parametrize(
    ('name', 'shapes', 'group'),
    [
        ('aten::addmm', [], PRODUCTS),
        ('aten::mm', [], PRODUCTS),
        ('aten::mkldnn_convolution', [[2, 8, 4, 4], [8, 1, 7, 7], [8]], DEPTHWISE),
        ('aten::mkldnn_convolution', [[2, 3, 8, 8], [8, 3, 4, 4], [8]], PRODUCTS),
        ('aten::convolution_backward', [[2, 8, 4, 4], [2, 8, 4, 4], [8, 1, 7, 7]], DEPTHWISE),
        ('aten::convolution_backward', [[2, 8, 4, 4], [2, 4, 8, 8], [8, 4, 2, 2]], PRODUCTS),
        ('aten::native_layer_norm_backward', [], NORM),
        ('aten::gelu_backward', [], POINTWISE),
        ('aten::linalg_vector_norm', [], POINTWISE),
        ('aten::add_', [], POINTWISE),
        ('aten::addcmul', [], POINTWISE),
        ('aten::copy_', [], COPIES),
        ('aten::index_select', [], COPIES),
        ('aten::masked_fill_', [], COPIES),
        ('mmcnx2::depthwise_visible_backward', [], DEPTHWISE),
        ('mmcnx2::gelu_grn', [], POINTWISE),
        ('mmcnx2::mlp', [], POINTWISE),  # its products count for themselves
        ('_SpreadRows', [], REST),
        ('autograd::engine::evaluate_function: ConvolutionBackward0', [], REST),
        ('AddmmBackward0', [], REST),
        ('aten::empty', [], REST),
        ('aten::never_heard_of', [], REST),
    ],
)
def test_operators_are_grouped_by_what_they_are(name, shapes, group):
    assert group_of(name, shapes) == group


def test_calls_of_one_operator_are_added_per_group():
    depthwise, strided = [[1], [8, 1, 7, 7]], [[1], [8, 3, 4, 4]]
    found = gather(
        [
            ('aten::mkldnn_convolution', depthwise, 1.0, 2),
            ('aten::mm', [], 5.0, 1),
            ('aten::mkldnn_convolution', strided, 0.25, 1),
            ('aten::mkldnn_convolution', depthwise, 2.0, 3),
        ]
    )
    assert [(each.name, each.group, each.seconds, each.calls) for each in found] == [
        ('mm', PRODUCTS, 5.0, 1),
        ('mkldnn_convolution', DEPTHWISE, 3.0, 5),
        ('mkldnn_convolution', PRODUCTS, 0.25, 1),
    ]
    assert group_seconds(found) == {**dict.fromkeys(GROUPS, 0.0), PRODUCTS: 5.25, DEPTHWISE: 3.0}


def test_a_real_profile_counts_every_call():
    weight, filters = torch.randn(16, 8, requires_grad=True), torch.randn(8, 1, 7, 7, requires_grad=True)
    x = torch.randn(2, 8, 12, 12)

    def run():
        y = F.conv2d(x, filters, padding=3, groups=8).permute(0, 2, 3, 1)
        F.gelu(F.linear(F.layer_norm(y, (8,)), weight)).sum().backward()

    run()
    seconds, operators = profile_step(run, num_runs=2)
    calls = {(each.name, each.group): each.calls for each in operators}
    assert calls['convolution_backward', DEPTHWISE] == 1 and calls['gelu_backward', POINTWISE] == 1
    assert calls['native_layer_norm', NORM] == 1
    assert sum(count for (name, group), count in calls.items() if name == 'mm' and group == PRODUCTS) >= 2
    assert 0 < sum(group_seconds(operators).values()) <= seconds


# ---- floors


class KnownSpeeds(Speeds):
    """Ten multiply-adds per second in products, a peak of 100, two numbers moved per second."""

    def product_seconds(self, product):
        return product.multiply_adds / 10

    def move_seconds(self, num_numbers):
        return num_numbers / 2

    peak = 100.0


def test_a_floor_adds_up_by_hand():
    work = [
        Work(PRODUCTS, Product(2, 3, 5)),  # 30 multiply-adds: 3 s
        Work(DEPTHWISE, multiply_adds=1000, num_moved=8),  # 10 s at the peak, 4 s of moving: the larger counts
        Work(DEPTHWISE, multiply_adds=100, num_moved=8),  # 1 s, 4 s
        Work(NORM, num_moved=6),  # 3 s
    ]
    floor = floor_of(work, KnownSpeeds())
    assert floor.seconds == {PRODUCTS: 3.0, DEPTHWISE: 14.0, NORM: 3.0, POINTWISE: 0.0}
    assert floor.total == 20.0 and floor.multiply_adds == 1130 and floor.moved_bytes == 22 * 4


def test_the_work_of_one_block_by_hand():
    """One block of width 8 on 6 positions after a stem, forward; then what the backward pass adds."""
    work = encoder_work([1], [8], [6], in_channels=3, with_backward=False)
    products = [item.product for item in work if item.product]
    assert products == [Product(6, 48, 8), Product(6, 8, 32), Product(6, 32, 8)]
    moved = {group: sum(item.num_moved for item in work if item.group == group) for group in GROUPS}
    n = 6 * 8
    assert moved == {**dict.fromkeys(GROUPS, 0), NORM: 2 * n + 2 * n, DEPTHWISE: 2 * n, POINTWISE: 3 * 4 * n + 3 * n}
    whole = encoder_work([1], [8], [6], in_channels=3)
    moved = {group: sum(item.num_moved for item in whole if item.group == group) for group in GROUPS}
    assert moved[NORM] == 10 * n and moved[DEPTHWISE] == 6 * n and moved[POINTWISE] == (3 + 5) * 4 * n + 6 * n
    assert Product(48, 6, 8, is_transposed=True) in [item.product for item in whole]
    assert Product(6, 8, 48) not in [item.product for item in whole]  # nobody needs the gradient of the images


def test_multiply_adds_equal_those_that_torch_counts():
    """Of the forward pass; torch's count of a depthwise convolution's backward pass forgets the groups. Backward, every
    operator works twice more, once per gradient, except that nobody needs that of the images.
    """
    from timm.models.convnext import ConvNeXt

    model = ConvNeXt(depths=MICRO['depths'], dims=MICRO['channels'], use_grn=True, ls_init_value=None)
    with FlopCounterMode(display=False) as counter:
        model.stages(model.stem(torch.randn(2, 3, 64, 96)))
    positions = positions_per_stage(2, 64, 96)
    forward, both = (
        floor_of(encoder_work(MICRO['depths'], MICRO['channels'], positions, with_backward=backward), KnownSpeeds())
        for backward in (False, True)
    )
    assert 2 * forward.multiply_adds == counter.get_total_flops()
    assert both.multiply_adds == 3 * forward.multiply_adds - positions[0] * 48 * MICRO['channels'][0]


def test_masked_work_is_that_of_the_visible_positions():
    assert positions_per_stage(8, 224, 224, 19 / 49) == [8 * 19 * 64, 8 * 19 * 16, 8 * 19 * 4, 8 * 19]
    assert positions_per_stage(1, 70, 100) == [17 * 25, 8 * 12, 4 * 6, 2 * 3]


def test_the_machine_is_measured_once_per_shape_and_summarised():
    speeds = Speeds(min_seconds=0)
    product = Product(64, 32, 16, is_transposed=True)
    assert speeds.product_seconds(product) == speeds.product_seconds(product) > 0
    assert speeds.move_seconds(1000) == speeds.move_seconds(1000) > 0
    summary = speeds.summary()
    rate = product.multiply_adds / speeds.product_seconds(product)
    assert summary['products'] == [
        dict(rows=64, inner=32, columns=16, is_transposed=True, multiply_adds_per_second=rate)
    ]
    assert summary['product_multiply_adds_per_second'] == rate
    assert summary['copies'] == [dict(moved_bytes=4000, bytes_per_second=4000 / speeds.move_seconds(1000))]
    assert summary['peak_multiply_adds_per_second'] > PEAK_SIDE
