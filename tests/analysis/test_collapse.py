"""Channel distances against a double loop over all pairs, and the other figures against numbers worked by hand."""

import math

import pytest
import torch

from mmcnx2.analysis.collapse import Collapse, CollapseMeter, cosine_distance, effective_rank, summary


def double_loop(x_NC):
    """The formula as it is written: a mean over all pairs of channels that have a direction."""
    channels = [column for column in x_NC.double().T if column.norm() > 0]
    total = 0.0
    for a in channels:
        for b in channels:
            cosine = float((a * b).sum() / (a.norm() * b.norm()))
            total += (1 - cosine) / 2
    return total / len(channels) ** 2 if channels else 0.0


@pytest.mark.parametrize('shape', [(49, 16), (5, 40), (1, 7), (64, 1)])
@pytest.mark.parametrize('kind', ['noise', 'gelu', 'nearly alike', 'with zero channels', 'tiny', 'half'])
def test_distance_is_that_of_the_double_loop(shape, kind):
    generator = torch.Generator().manual_seed(1)
    x_BNC = torch.randn(3, *shape, generator=generator)
    if kind == 'gelu':
        x_BNC = torch.nn.functional.gelu(x_BNC)
    elif kind == 'nearly alike':
        x_BNC = x_BNC[..., :1] + 1e-3 * x_BNC
    elif kind == 'with zero channels':
        x_BNC[:, :, ::3] = 0
        x_BNC[2] = 0
    elif kind == 'tiny':
        x_BNC = x_BNC * 1e-30
    elif kind == 'half':
        x_BNC = x_BNC.half()
    expected = [double_loop(x_NC) for x_NC in x_BNC]
    assert cosine_distance(x_BNC).tolist() == pytest.approx(expected, abs=1e-6)


def test_distance_of_known_channels():
    same = torch.tensor([1.0, 2.0, 3.0])[None, :, None] * torch.tensor([1.0, 5.0, 0.1])
    assert cosine_distance(same).item() == pytest.approx(0, abs=1e-12)
    assert cosine_distance(torch.eye(4)[None]).item() == pytest.approx((1 - 1 / 4) / 2)
    opposite = torch.tensor([[[1.0, -1.0], [2.0, -2.0]]])
    assert cosine_distance(opposite).item() == pytest.approx(0.5)  # pairs: 0, 1, 1, 0
    # a channel without a direction is left out instead of counting as half a distance to everything
    assert cosine_distance(torch.cat([same, torch.zeros(1, 3, 2)], -1)).item() == pytest.approx(0, abs=1e-12)


def test_effective_rank_of_known_matrices():
    one_map = torch.randn(1, 9, 1) * torch.randn(1, 1, 6)
    assert effective_rank(one_map).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.eye(5)[None, :, :3]).item() == pytest.approx(3, abs=1e-6)
    assert effective_rank(torch.zeros(1, 4, 4)).item() == 0
    # singular values 3 and 1: shares 3/4 and 1/4
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))[None]).item() == pytest.approx(expected)


@pytest.mark.parametrize('shape', [(20, 7), (7, 20)])
def test_effective_rank_is_that_of_the_singular_values(shape):
    x_BNC = torch.randn(2, *shape, dtype=torch.float64).exp()
    for x_NC, rank in zip(x_BNC, effective_rank(x_BNC), strict=True):
        shares = torch.linalg.svdvals(x_NC)
        shares = shares / shares.sum()
        assert rank.item() == pytest.approx(math.exp(-(shares * shares.log()).sum()), rel=1e-6)


def channels():
    """Two pictures, 100 positions, 5 channels: lively, dead, dead in the first picture only, flat, flat in one only."""
    generator = torch.Generator().manual_seed(0)
    wave = torch.randn(2, 100, generator=generator)
    lively = wave
    dead = 1e-4 * wave.flip(0)
    wakes = torch.stack([0 * wave[0], wave[1] ** 2])
    flat = 2 + 0.05 * wave
    half_flat = torch.stack([2 + 0.05 * wave[0], wave[1]])
    return torch.stack([lively, dead, wakes, flat, half_flat], -1)


def test_dead_and_saturated_channels_are_so_in_every_picture():
    meter = CollapseMeter()
    meter.add(channels())
    assert meter.dead_C.tolist() == [False, True, False, False, False]
    assert meter.saturated_C.tolist() == [False, False, False, True, False]
    backwards = CollapseMeter()
    backwards.add(channels().flip(0))
    assert backwards.result().num_dead == backwards.result().num_saturated == 1
    first = CollapseMeter()
    first.add(channels()[:1])
    assert first.dead_C.tolist() == [False, True, True, False, False]
    assert first.saturated_C.tolist() == [False, False, False, True, True]


@pytest.mark.parametrize('factor', [1e-3, 1.0, 1e4])
def test_what_is_dead_does_not_depend_on_the_size_of_a_layers_values(factor):
    meter = CollapseMeter()
    meter.add(factor * channels())
    assert (meter.result().num_dead, meter.result().num_saturated) == (1, 1)


def test_the_meter_adds_up_over_batches():
    x_BNC = torch.randn(7, 30, 12)
    whole, parts = CollapseMeter(), CollapseMeter()
    whole.add(x_BNC)
    for batch in x_BNC.split(3):
        parts.add(batch)
    assert parts.result() == whole.result()
    result = whole.result()
    distances = cosine_distance(x_BNC)
    assert result.distance == pytest.approx(float(distances.mean()))
    assert result.distance_std == pytest.approx(float(distances.std()))
    assert result.effective_rank == pytest.approx(float(effective_rank(x_BNC).mean()))
    assert (result.num_images, result.num_channels, result.max_rank) == (7, 12, 12)


def test_one_position_says_nothing_about_saturation():
    meter = CollapseMeter()
    meter.add(torch.rand(3, 1, 8))
    result = meter.result()
    assert result.num_saturated is None and result.max_rank == 1
    assert result.as_dict()['num_channels'] == 8


def test_mistakes_are_named():
    meter = CollapseMeter()
    with pytest.raises(ValueError, match='no picture'):
        meter.result()
    with pytest.raises(ValueError, match=r'\(pictures, positions, channels\)'):
        meter.add(torch.rand(3, 4))
    meter.add(torch.rand(1, 2, 3))
    with pytest.raises(ValueError, match='4 channels after 3'):
        meter.add(torch.rand(1, 2, 4))


def test_summary_is_over_layers():
    layer = dict(num_images=1, distance_std=0.0, effective_rank=1.0, max_rank=4)
    text = summary(
        [
            Collapse(num_channels=10, distance=0.1, num_dead=2, num_saturated=None, **layer),
            Collapse(num_channels=30, distance=0.3, num_dead=1, num_saturated=4, **layer),
        ]
    )
    assert text == 'distance 0.200 (least 0.100), 3 dead and 4 saturated of 40 channels'
