"""Gains, their limits and the sentence where they start, against numbers worked by hand."""

import copy
import json
import math

import pytest

from mmcnx2.analysis import budget_report
from mmcnx2.analysis.budget_report import (
    gain_text,
    is_gain,
    lower_limit,
    paired_gain,
    start_of_gain,
    start_sentences,
    values_without_own_choice,
)


def gain_of(*gains):
    """The gain of seeds that have these differences."""
    return paired_gain({str(s): 10.0 for s in range(len(gains))}, {str(s): 10 + g for s, g in enumerate(gains)})


def test_gain_is_paired_by_seed():
    # seeds differ by 20 points, their gains are 1, 2 and 3: mean 2, standard deviation 1, standard error 1 / sqrt(3)
    gain = paired_gain({'2': 30.0, '0': 10.0, '1': 20.0, '7': 99.0}, {'0': 11.0, '1': 22.0, '2': 33.0, '5': 0.0})
    assert gain.num_seeds == 3 and math.isclose(gain.gain, 2) and math.isclose(gain.standard_error, 3**-0.5)
    assert paired_gain({'0': 1.0}, {'1': 2.0}) is None


def test_limit_is_that_of_students_t():
    # t of 2 degrees of freedom at 0.95 is 2.919986 (any table), of 1 degree 6.313752
    assert lower_limit(gain_of(1, 2, 3)) == pytest.approx(2 - 2.919986 * 3**-0.5, abs=1e-5)  # 0.314
    assert lower_limit(gain_of(1, 3)) == pytest.approx(2 - 6.313752 * 1, abs=1e-5)
    assert lower_limit(gain_of(5)) is None and not is_gain(gain_of(5)) and not is_gain(None)
    assert is_gain(gain_of(1, 2, 3)) and not is_gain(gain_of(0, 2, 4))  # 2 - 2.92 x 1.155 = -1.37
    assert not is_gain(gain_of(-1, -2, -3)) and is_gain(gain_of(0.5, 0.5, 0.5))


def test_a_seed_has_no_part_in_choosing_its_point():
    # At seed 0 point b is the best by far, but the seeds 1 and 2 prefer a on average: (2 + 4) / 2 against (3 + 1) / 2
    chosen = values_without_own_choice({'a': {'0': 1.0, '1': 2.0, '2': 4.0}, 'b': {'0': 9.0, '1': 3.0, '2': 1.0}})
    # seed 1: others (1 + 4) / 2 against (9 + 1) / 2; seed 2: (1 + 2) / 2 against (9 + 3) / 2
    assert chosen == {'0': ('a', 1.0), '1': ('b', 3.0), '2': ('b', 1.0)}


def test_points_are_compared_over_seeds_that_all_of_them_have():
    # seed 0: only seed 1 is shared, where a has 5 and b has 6; a's 100 at seed 2 does not count
    by_point = {'a': {'0': 1.0, '1': 5.0, '2': 100.0}, 'b': {'0': 2.0, '1': 6.0}}
    chosen = values_without_own_choice(by_point)
    assert chosen['0'] == ('b', 2.0) and chosen['1'] == ('b', 6.0)
    assert chosen['2'] == ('a', 100.0)  # it has no other point
    assert values_without_own_choice({'a': {'0': 1.0}, 'b': {'0': 2.0}}) == {}  # no other seed to choose by
    assert values_without_own_choice({'a': {'0': 1.0}}) == {'0': ('a', 1.0)}  # nothing to choose
    tie = values_without_own_choice({'b': {'0': 1.0, '1': 5.0}, 'a': {'0': 2.0, '1': 5.0}})
    assert tie['0'] == ('b', 1.0)


def test_start_needs_every_larger_budget_too():
    good, bad = gain_of(1, 2, 3), gain_of(0, 2, 4)
    assert start_of_gain({10: bad, 30: good, 100: good}) == 30
    assert start_of_gain({100: good, 10: good, 30: bad}) == 100  # in any order; 30 breaks the row
    assert start_of_gain({10: good, 100: bad}) is None
    assert start_of_gain({10: good, 30: None, 100: good}) == 10
    assert start_of_gain({}) is None


def test_gain_text():
    assert gain_text(gain_of(1, 2, 3)) == '**+2.00 ± 0.58**'
    assert gain_text(gain_of(0, -2, -4)) == '-2.00 ± 1.15'
    assert gain_text(gain_of(5)) == '+5.00' and gain_text(None) == '-'


def budget(name, asked, steps, seconds):
    return dict(
        name=name, asked=asked, views=steps * 64, distinct_pictures=min(10000, steps * 64), steps=steps,
        warmup_steps=1, batch_size=64, loss=0.75, seconds=seconds, attempts=1, command='train',
    )  # fmt: skip


@pytest.fixture
def results():
    """Two tasks, one number of labels, two budgets, a grid of two points, three seeds."""
    scratch = {'low': {'0': 10.0, '1': 20.0, '2': 30.0}, 'high': {'0': 1.0, '1': 2.0, '2': 3.0}}
    plus = {point: {seed: value + 1 + int(seed) for seed, value in v.items()} for point, v in scratch.items()}
    noisy = {point: {seed: value + 2 * int(seed) for seed, value in v.items()} for point, v in scratch.items()}
    by_row = {'scratch': scratch, '0.01M': noisy, '0.1M': plus}
    task = dict(config='configs/x.py', schedule='200 iterations', images_per_step=8)
    return dict(
        title='T', command='python x', finished='2026-11-25', baseline='scratch', seeds=[0, 1, 2], labels=[40],
        budgets=[budget('0.01M', 10000, 156, 50.0), budget('0.1M', 100000, 1563, 1000.0)],
        others=[1e5, 1e6], grid=[dict(name='low', options=['lr=1']), dict(name='high', options=['lr=2'])],
        tasks=[dict(label='seg', metrics=['mIoU'], **task), dict(label='det', metrics=['box AP'], **task)],
        values={
            'seg': {'mIoU': {'40': by_row}},
            'det': {'box AP': {'40': {**by_row, '0.1M': noisy}}},
        },
        plot='gain.png', machine=dict(processor='P', cores=2, accelerator='no GPU'), versions=dict(torch='2'),
    )  # fmt: skip


def test_sentences_follow_the_numbers(results):
    assert start_sentences(results) == [
        'seg mIoU, 40 labelled: the gain starts at 0.1 million image views (and every larger one tried), +2.00 ± 0.58.',
        'det box AP, 40 labelled: a gain was not reached; at the largest budget, 0.1 million image views, it '
        'is +2.00 ± 1.15.',
    ]
    seg = results['values']['seg']['mIoU']['40']
    seg['0.01M'] = copy.deepcopy(seg['0.1M'])
    assert 'starts at 0.01 million image views (from the smallest budget tried on)' in start_sentences(results)[0]
    del results['values']['det']
    for row in seg.values():
        for values in row.values():
            del values['1'], values['2']
        del row['high']
    assert start_sentences(results) == [
        'seg mIoU, 40 labelled: with one seed a gain cannot be told from chance.',
        'det box AP, 40 labelled: nothing to compare yet.',
    ]


def test_report_holds_tables_costs_and_provenance(results):
    text = budget_report.result_markdown(results)
    assert '| seg mIoU | 40 | 20.00 ± 10.00 | +2.00 ± 1.15 | **+2.00 ± 0.58** |' in text
    assert '| seg mIoU | 40 | 0.1M | 22.00 ± 11.00 | 4.00 ± 2.00 |' in text
    assert '| 0.1 million | 100,032 | 10,000 | 1,563 x 64 | 0.750 | 1000 | 100 |' in text
    # 1 million at 100 images/s are 10,000 s; 0.1 million was run and is not listed
    assert '1 million image views: not run; 2.8 hours here, at the 100 images/s' in text and text.count('not run') == 1
    assert 'the same grid (low: lr=1; high: lr=2)' in text and 'P, 2 cores, no GPU; torch 2' in text
    series = json.loads(budget_report.result_json(results))['series'][0]
    assert series['starts_at'] == 100000 and series['gains']['100000']['num_seeds'] == 3
    assert series['chosen']['scratch']['2'] == ['low', 30.0]


def test_plot_shows_means_and_standard_errors(results):
    seg, det = budget_report.gain_panels(results)
    assert (seg.title, det.title) == ('seg: mIoU', 'det: box AP')
    [line] = seg.lines
    assert (line.label, line.x, line.means) == ('40 labelled', [10000, 100000], [2.0, 2.0])
    assert line.errors == pytest.approx([2 / 3**0.5, 1 / 3**0.5])
