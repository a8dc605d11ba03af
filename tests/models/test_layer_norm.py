"""LayerNorm in narrow dtypes on a CPU, where PyTorch's own adds gradients up in them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmcnx2.models import ConvNeXtV2
from mmcnx2.models.layers import DenseLayout, LayerNorm

NUM_POSITIONS, NUM_CHANNELS = 20_000, 8


def worst(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.detach().double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('layout', [None, DenseLayout()])
def test_gradients_over_many_positions_in_bfloat16(autocast, layout, randomise):
    """Against float64 from the same rounded values. PyTorch's own is wrong by more than 10 % here."""
    norm = randomise(LayerNorm(NUM_CHANNELS))
    x = torch.randn(NUM_POSITIONS, NUM_CHANNELS).bfloat16().requires_grad_()
    weight = (torch.randn_like(x) + 0.05).bfloat16()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        y = norm(x, layout)
    assert y.dtype == torch.bfloat16
    got = [y, *torch.autograd.grad(y, [x, norm.weight, norm.bias], weight)]
    leaves = [each.detach().double().requires_grad_() for each in (x, norm.weight, norm.bias)]
    y = F.layer_norm(leaves[0], (NUM_CHANNELS,), *leaves[1:], norm.eps)
    expected = [y.detach(), *torch.autograd.grad(y, leaves, weight.double())]
    assert max(map(worst, got, expected)) < 5e-3
    assert got[2].dtype == got[3].dtype == torch.float32


def test_parameters_may_be_narrow_or_missing():
    x = torch.randn(5, NUM_CHANNELS)
    for norm in (LayerNorm(NUM_CHANNELS).bfloat16(), LayerNorm(NUM_CHANNELS, bias=False).bfloat16()):
        torch.testing.assert_close(norm(x.bfloat16()).float(), F.layer_norm(x, (NUM_CHANNELS,)), atol=0.03, rtol=0.02)


def test_every_norm_of_the_backbone_is_this_one():
    norms = [m for m in ConvNeXtV2('atto', out_indices=(0, 1, 2, 3)).modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == sum((2, 2, 6, 2)) + 4 + 4 and all(isinstance(norm, LayerNorm) for norm in norms)
