"""The linear layers of a block: oneDNN's products against PyTorch's in float64, and when they are used."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch.utils.flop_counter import FlopCounterMode

import mmcnx2  # noqa: F401  makes 'mmcnx2.X' known to the registry
from mmcnx2.models.layers import DenseLayout, Linear, linear

pytestmark = pytest.mark.skipif(not linear.HAS_ONEDNN, reason='this PyTorch has no oneDNN')


@pytest.fixture
def products(monkeypatch):
    """Shapes of the products that were computed by oneDNN."""
    shapes = []
    suits = linear.suits_onednn

    def noting(kernels, x, weight):
        answer = suits(kernels, x, weight)
        shapes.extend([(tuple(x.shape), tuple(weight.shape))] if answer else [])
        return answer

    monkeypatch.setattr(linear, 'suits_onednn', noting)
    return shapes


SHAPES = {  # of x, and features after
    'wider': ((2, 3, 5, 24), 96),
    'narrower, rows fewer than twice the features': ((3, 5, 96), 24),
    'narrower, more rows: the weight gradient is turned': ((2, 10, 10, 96), 24),
    'one row': ((1, 8), 16),
}


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('case', SHAPES)
def test_values_and_gradients(case, bias, products):
    torch.manual_seed(0)
    shape, num_after = SHAPES[case]
    layer = Linear(shape[-1], num_after, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x, DenseLayout())
    assert products and y.is_contiguous()
    grad = torch.randn(y.shape)
    leaves = [x, *layer.parameters()]
    got = torch.autograd.grad(y, leaves, grad)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = F.linear(exact[0], exact[1], exact[2] if bias else None)
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-5)
    for a, b in zip(got, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        assert a.is_contiguous()
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=3e-5)


def test_tensors_that_are_not_contiguous():
    """As they come from a map of channels first, and from a transposed result."""
    torch.manual_seed(0)
    layer = Linear(8, 12)
    x = torch.randn(2, 8, 3, 5).permute(0, 2, 3, 1).requires_grad_()
    grad = torch.randn(2, 12, 3, 5).permute(0, 2, 3, 1)
    leaves = [x, *layer.parameters()]
    y, expected = layer(x, DenseLayout()), F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, expected)
    for a, b in zip(*(torch.autograd.grad(out, leaves, grad) for out in (y, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('frozen', ['input', 'weight', 'bias'])
def test_what_is_frozen_gets_no_gradient_and_costs_nothing(frozen):
    layer, x = Linear(8, 12), torch.randn(40, 8, requires_grad=frozen != 'input')
    if frozen != 'input':
        getattr(layer, frozen).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        layer(x, DenseLayout()).sum().backward()
    leaves = dict(input=x, weight=layer.weight, bias=layer.bias)
    assert [name for name, leaf in leaves.items() if leaf.grad is None] == [frozen]
    assert counter.get_total_flops() == (3 if frozen == 'bias' else 2) * 2 * 40 * 8 * 12


@pytest.mark.parametrize(
    ('kernels', 'dtype', 'autocast', 'is_used'),
    [
        ('auto', torch.float32, False, True),
        ('cpp', torch.float32, False, True),
        ('torch', torch.float32, False, False),
        ('auto', torch.float64, False, False),
        ('auto', torch.bfloat16, False, False),
        ('auto', torch.float32, True, False),
    ],
)
def test_when_it_is_used(kernels, dtype, autocast, is_used, products):
    layer, layout = Linear(8, 8).to(dtype), DenseLayout(kernels=kernels)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        y = layer(torch.randn(2, 8, dtype=dtype), layout)
        assert y.dtype == (torch.bfloat16 if autocast else dtype)
    assert bool(products) == is_used


def test_without_onednn_and_without_rows(monkeypatch, products):
    layer = Linear(8, 12)
    assert layer(torch.randn(0, 8), DenseLayout()).shape == (0, 12)
    monkeypatch.setattr(linear, 'HAS_ONEDNN', False)
    layer(torch.randn(2, 8), DenseLayout())
    assert not products


def test_every_block_of_a_backbone_uses_it(micro, products):
    model = MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch=micro))
    model(torch.randn(1, 3, 32, 32))
    assert len(products) == 2 * sum(micro['depths'])


def test_a_compiled_step_has_no_graph_break():
    torch.manual_seed(0)
    layer, x = Linear(8, 12), torch.randn(5, 8)
    leaves = list(layer.parameters())

    def step(x):
        return layer(x, DenseLayout()).square().sum()

    expected = torch.autograd.grad(step(x), leaves)
    compiled = torch.compile(step, backend='aot_eager', fullgraph=True)  # raises at a break
    for a, b in zip(torch.autograd.grad(compiled(x), leaves), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_operator_describes_itself_rightly():
    checks = ('test_schema', 'test_faketensor')
    x, weight = torch.randn(3, 8), torch.randn(12, 8)
    torch.library.opcheck(torch.ops.mmcnx2.product, (x, weight, torch.randn(12)), test_utils=checks)
    torch.library.opcheck(torch.ops.mmcnx2.product, (x, torch.randn(8, 12).t(), None), test_utils=checks)


def test_a_second_derivative_is_refused_rather_than_wrong():
    layer, x = Linear(8, 12), torch.randn(5, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x, DenseLayout()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()


def test_without_a_layout_it_is_pytorchs():
    layer, x = Linear(4, 3), torch.randn(2, 4)
    assert layer(x).equal(F.linear(x, layer.weight, layer.bias))
