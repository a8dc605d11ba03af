"""The table and its words against numbers worked by hand."""

import math

from mmcnx2.analysis.comparison import (
    Row,
    Wording,
    differences,
    format_values,
    markdown_table,
    plain_table,
    table_cells,
    verdict,
)

METRICS = ('box AP', 'mask AP', 'mIoU')


def rows(scratch, pretrained):
    return (
        Row('from scratch', dict(zip(METRICS, scratch, strict=True)), 100.4),
        Row('FCMAE-pretrained', dict(zip(METRICS, pretrained, strict=True)), 250.6),
    )


def test_format_values():
    assert format_values([]) == '-'
    assert format_values([0.31249]) == '0.312'
    assert format_values([0.1, 0.3]) == '0.200 ± 0.141'  # sample standard deviation: sqrt(0.02)


def test_tables_have_the_columns_in_order():
    header, cells = table_cells(rows(([0.1], [0.2], [0.3]), ([0.15], [0.2], [])), METRICS)
    assert header == ['', 'box AP', 'mask AP', 'mIoU', 'seconds']
    assert cells == [
        ['from scratch', '0.100', '0.200', '0.300', '100'],
        ['FCMAE-pretrained', '0.150', '0.200', '-', '251'],
    ]
    assert plain_table(header, cells).splitlines() == [
        '                  box AP  mask AP   mIoU  seconds',
        '-------------------------------------------------',
        'from scratch       0.100    0.200  0.300      100',
        'FCMAE-pretrained   0.150    0.200      -      251',
    ]
    assert markdown_table(header, cells).splitlines()[1] == '| --- | ---: | ---: | ---: | ---: |'


def test_differences_are_paired_by_seed():
    baseline, treated = rows(([0.1, 0.3], [0.2], [math.nan]), ([0.2, 0.4], [0.1], [0.5]))
    found = differences(baseline, treated, METRICS)
    assert [difference.metric for difference in found] == ['box AP', 'mask AP']  # a NaN cannot be compared
    assert math.isclose(found[0].gain, 0.1)
    assert abs(found[0].standard_error) < 1e-12 and found[0].is_clear  # the seeds differ, their paired gains do not
    assert found[1].standard_error is None and not found[1].is_clear


def test_verdict_follows_the_numbers():
    better = verdict(*rows(([0.1], [0.2], [0.3]), ([0.2], [0.3], [0.4])), METRICS, 1)
    assert better[0] == 'With pretraining box AP, mask AP and mIoU are higher than from scratch.'
    assert 'box AP 0.100 -> 0.200 (+0.100)' in better[1]
    assert better[2].startswith('One seed per row')
    worse = verdict(*rows(([0.1], [0.2], [0.3]), ([0.1], [0.1], [0.3])), METRICS, 1)
    assert worse[0].startswith('Pretraining gained nothing')  # equal is no gain
    mixed = verdict(*rows(([0.1], [0.2], [0.3]), ([0.2], [0.1], [0.3])), METRICS, 1)
    assert mixed[0] == 'The result is mixed: with pretraining box AP is higher, mask AP and mIoU are not.'
    assert verdict(*rows(([], [], []), ([0.1], [], [])), METRICS, 1) == [
        'The two rows cannot be compared yet: a row has no results.'
    ]


def test_verdict_in_other_words_and_units():
    words = Wording('B', 'with A', 'A -> B', 1)
    texts = verdict(*rows(([10.04], [20], [30]), ([10.06], [21], [29.96])), METRICS, 1, words)
    assert texts[0] == 'The result is mixed: with B mask AP is higher, box AP and mIoU are not.'  # + 0.02 rounds to 0
    assert texts[1] == 'A -> B: box AP 10.0 -> 10.1 (+0.0); mask AP 20.0 -> 21.0 (+1.0); mIoU 30.0 -> 30.0 (-0.0).'
    assert verdict(*rows(([1], [1], []), ([1], [0], [])), METRICS, 1, words)[0] == (
        'B gained nothing here: none of box AP and mask AP is higher than with A.'
    )
    # of three seeds only two have a value in both rows
    texts = verdict(*rows(([1, 2], [], []), ([2, 3], [], [])), METRICS, 3, words)
    assert texts[1] == 'A -> B: box AP 1.5 -> 2.5 (+1.0, standard error 0.0, 2 of 3 seeds).'


def test_verdict_with_seeds_asks_for_two_standard_errors():
    # gains 0.1 and 0.2: mean 0.15, standard error 0.05, so clear; gains -0.1 and 0.2: mean 0.05, error 0.15, so not
    texts = verdict(*rows(([0.1, 0.1], [0.3, 0.1], []), ([0.2, 0.3], [0.2, 0.3], [])), METRICS, 2)
    assert texts[-1] == '2 seeds per row. Larger than two standard errors: the difference in box AP.'
    assert 'box AP 0.100 -> 0.250 (+0.150, standard error 0.050)' in texts[1]
    texts = verdict(*rows(([], [0.3, 0.1], []), ([], [0.2, 0.3], [])), METRICS, 2)
    assert texts[-1].endswith('none can be told from chance.')
