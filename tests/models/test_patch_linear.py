"""PatchLinear equals the strided convolution it stands for."""

import pytest
import torch
import torch.nn.functional as F

from mmcnx2.models.layers import PatchLinear


@pytest.mark.parametrize(('k', 'H', 'W'), [(4, 16, 24), (2, 7, 5), (4, 19, 13), (2, 8, 2)])
def test_equals_strided_convolution(randomise, k, H, W):
    layer = randomise(PatchLinear(3, 5, k)).double()
    x_BHWC = torch.randn(2, H, W, 3, dtype=torch.float64, requires_grad=True)
    got = layer(x_BHWC)
    expected = F.conv2d(x_BHWC.permute(0, 3, 1, 2), layer.weight, layer.bias, stride=k).permute(0, 2, 3, 1)
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(got)
    wanted = [x_BHWC, layer.weight, layer.bias]
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), wanted),
        torch.autograd.grad((expected * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_leading_dimensions_are_independent(randomise):
    layer = randomise(PatchLinear(3, 5, 2))
    cells = torch.randn(2, 4, 6, 6, 3)
    torch.testing.assert_close(layer(cells)[1, 2], layer(cells[1, 2]))
