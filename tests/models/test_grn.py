"""GRN against numbers worked by hand and against its formula written out."""

import pytest
import torch

from mmcnx2.models.layers import GRN, DenseLayout


def test_hand_worked_numbers():
    """Two channels over a 1 x 2 map: (3, 4) has norm 5, (0, 1) has norm 1; the mean is 3."""
    grn = GRN(2, eps=0)
    grn.gamma.data = torch.tensor([2.0, 3.0])
    grn.beta.data = torch.tensor([10.0, 20.0])
    x_BHWC = torch.tensor([[[[3.0, 0.0], [4.0, 1.0]]]])
    expected = torch.tensor([[[[3 + 2 * 3 * 5 / 3 + 10, 0 + 20], [4 + 2 * 4 * 5 / 3 + 10, 1 + 3 * 1 * 1 / 3 + 20]]]])
    torch.testing.assert_close(grn(x_BHWC, DenseLayout()), expected)


def test_fresh_grn_is_the_identity():
    x_BHWC = torch.randn(2, 5, 4, 6)
    assert torch.equal(GRN(6)(x_BHWC, DenseLayout()), x_BHWC)


@pytest.mark.parametrize(('grn_over', 'dims'), [('image', (1, 2)), ('batch', (0, 1, 2))])
def test_values_and_gradients_of_the_written_out_formula(randomise, grn_over, dims):
    grn = randomise(GRN(6)).double()
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    got = grn(x, DenseLayout(grn_over=grn_over))
    norm = (x * x).sum(dims, keepdim=True).sqrt()
    expected = grn.gamma * (x * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + grn.beta + x
    torch.testing.assert_close(got, expected)
    parameters = [x, grn.gamma, grn.beta]
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_norm_is_accumulated_in_float32(dtype):
    """Sums of squares beyond float16's 65,504, and many small terms that bfloat16's 8 bits would lose."""
    x = torch.full((1, 64, 64, 2), 30.0, dtype=dtype)
    norms = DenseLayout().channel_norms(x)
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, torch.full((1, 1, 1, 2), 30.0 * 64))
    grn = GRN(2)
    grn.gamma.data.fill_(1.0)
    assert grn(x, DenseLayout()).dtype == dtype
    torch.testing.assert_close(grn(x, DenseLayout()).float(), torch.full_like(x, 60.0).float())


def test_zero_input_has_finite_gradients():
    grn = GRN(3)
    grn.gamma.data.fill_(1.0)
    x = torch.zeros(1, 2, 2, 3, requires_grad=True)
    grn(x, DenseLayout()).sum().backward()
    assert torch.isfinite(x.grad).all()
