"""What is read off the points of a cost curve, by numbers worked by hand."""

import json

import pytest
from PIL import Image

from mmcnx2.analysis.cost_curve import (
    Measured,
    Point,
    draw,
    exponent,
    growth_per_image,
    line,
    points,
    sections,
    summarise,
)

BASE = Point(8, 224, 0.5)


def measured(seconds_of, layout='visible', share_of=lambda point: 1 - point.mask_ratio):
    found = points(BASE, [1, 2, 8], [64, 128, 224], [0, 0.5, 0.75])
    return [Measured(layout, point, share_of(point), seconds_of(point), (0.9, 1.1)) for point in found]


def test_three_lines_cross_in_the_base_point_which_comes_once():
    found = points(BASE, [1, 8], [64, 224], [0, 0.5])
    assert sorted(found, key=str) == sorted([Point(1, 224, 0.5), BASE, Point(8, 64, 0.5), Point(8, 224, 0)], key=str)
    assert points(BASE, [], [], []) == [BASE]


def test_a_line_holds_the_points_that_differ_in_one_setting():
    along = line(measured(lambda point: 1.0) + measured(lambda point: 1.0, 'dense'), 'dense', 'size', BASE)
    assert [each.point for each in along] == [Point(8, 64, 0.5), Point(8, 128, 0.5), BASE]
    assert {each.layout for each in along} == {'dense'}


def test_growth_and_exponent_by_hand():
    """Time per image: 3, 2 and 2.5 at batches 1, 2 and 8; time ~ pixels^1.5."""
    per_image = {1: 3.0, 2: 2.0, 8: 2.5}
    along = line(measured(lambda point: per_image[point.batch_size] * point.batch_size), 'visible', 'batch_size', BASE)
    assert growth_per_image(along) == 1.25
    along = line(measured(lambda point: point.size**3.0), 'visible', 'size', BASE)
    assert exponent(along) == pytest.approx(1.5)
    assert [each.pixels for each in along] == [8 * side**2 / 2 for side in (64, 128, 224)]


def test_the_exponent_is_of_computed_pixels():
    """At 64 px more of the picture is computed, since the number of cells is whole; the time follows."""
    share = {64: 0.75, 128: 0.5, 224: 0.5}
    found = measured(lambda point: share[point.size] * point.size**2, share_of=lambda point: share[point.size])
    assert exponent(line(found, 'visible', 'size', BASE)) == pytest.approx(1.0)


def test_tables_and_plot_show_the_points(tmp_path):
    found = measured(lambda point: 0.001 * point.batch_size * point.size)
    dense = [each for each in measured(lambda point: 1.0, 'dense') if each.point.mask_ratio == BASE.mask_ratio]
    case = summarise('atto, fp32, cpu: one step', BASE, found + dense) | dict(num_rounds=3)
    case = json.loads(json.dumps(case))
    text = '\n\n'.join(sections(case))
    assert '| 2 | 448 | 900 to 1100 | 224 | 1000 | 900 to 1100 | 500 |' in text
    assert '| 64 | 512 |' in text and '| 0.75 | 1792 | 900 to 1100 | 0.250 | 1.000 |' in text
    assert 'mask ratio | visible, ms' in text and 'mask ratio | dense' not in text  # it has no mask
    assert 'visible: time per image at the largest batch is 1.00 of the least' in text
    assert 'to the power of 0.50' in text and 'Medians of 3 interleaved rounds' in text
    path = draw([case], tmp_path / 'curve.png')
    with Image.open(path) as image:
        assert image.height > image.width


def test_a_single_point_has_nothing_to_say():
    case = summarise('x', BASE, [Measured('visible', BASE, 0.5, 1.0, (1.0, 1.0))]) | dict(num_rounds=1)
    assert case['findings'] == {'visible': dict(per_image_largest_batch_over_least=None, exponent_of_pixels=None)}
    assert len(sections(case)) == 2
