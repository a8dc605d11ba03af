"""The wide part of a block as one operator: the same numbers, and only where nobody could notice."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmcnx2.models.fcmae.masking import random_visible
from mmcnx2.models.layers import (
    GRN,
    DenseLayout,
    Linear,
    VisibleLayout,
    block_mlp,
    build_response_norm,
    cpu_kernels,
    linear,
    mlp,
)

pytestmark = pytest.mark.skipif(
    not (linear.HAS_ONEDNN and cpu_kernels.is_available()), reason='needs oneDNN and a C++ compiler'
)
BATCH, CHANNELS = 5, 24


@pytest.fixture
def parts(monkeypatch):
    """Numbers of images that went through the operator together. Two images of 8 x 8 positions are as many as fit."""
    monkeypatch.setattr(block_mlp, 'WIDE_BYTES_AT_ONCE', 2 * 64 * 4 * CHANNELS * 4)
    seen = []
    compute = cpu_kernels.gelu_grn_in_place

    def noting(x_BMF, *arguments):
        seen.append(len(x_BMF))
        return compute(x_BMF, *arguments)

    monkeypatch.setattr(cpu_kernels, 'gelu_grn_in_place', noting)
    return seen


@pytest.fixture
def modules(randomise):
    torch.manual_seed(0)
    return [randomise(m) for m in (Linear(CHANNELS, 4 * CHANNELS), GRN(4 * CHANNELS), Linear(4 * CHANNELS, CHANNELS))]


def maps():
    return torch.randn(BATCH, 8, 8, CHANNELS)


def run(modules, layout, x):
    return mlp(x, *modules, layout)


def test_same_numbers_in_parts(modules, parts):
    x, layout = maps(), DenseLayout()
    whole = run(modules, layout, x)
    assert parts == []
    x_before = x.clone()
    with torch.no_grad():
        got = run(modules, layout, x)
    assert parts == [2, 2, 1] and got.shape == x.shape and got.is_contiguous() and torch.equal(x, x_before)
    torch.testing.assert_close(got, whole, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        plain = run(modules, DenseLayout(kernels='torch'), x)
    torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-5)


def test_cells_stay_with_their_image(modules, parts):
    layout = VisibleLayout(random_visible(BATCH, (4, 4), 0.25, seeds=range(BATCH)))
    x = torch.randn(BATCH, layout.num_visible, 3, 3, CHANNELS)
    whole = run(modules, layout, x)
    with torch.no_grad():
        got = run(modules, layout, x)
    assert len(parts) > 1 and sum(parts) == BATCH
    torch.testing.assert_close(got, whole, rtol=1e-6, atol=1e-6)


def test_values_may_lie_in_memory_in_any_order(modules, parts):
    x, layout = maps().transpose(1, 2), DenseLayout()
    whole = run(modules, layout, x)
    with torch.no_grad():
        torch.testing.assert_close(run(modules, layout, x), whole, rtol=1e-6, atol=1e-6)
    assert parts == [2, 2, 1]


@torch.no_grad()
def test_an_image_does_not_depend_on_its_neighbours(modules, parts):
    x, layout = maps(), DenseLayout()
    first = run(modules, layout, x)
    x[1:] = torch.randn_like(x[1:]) * 3
    assert torch.equal(run(modules, layout, x)[0], first[0])
    assert parts == 2 * [2, 2, 1]


def test_over_the_batch_all_images_are_one(modules, parts):
    x, layout = maps(), DenseLayout(grn_over='batch')
    whole = run(modules, layout, x)
    with torch.no_grad():
        got = run(modules, layout, x)
    torch.testing.assert_close(got, whole, rtol=1e-6, atol=1e-6)
    assert parts == [1] and not torch.allclose(got, run(modules, DenseLayout(), x), atol=1e-3)


CASES = {
    "kernels='torch'": (dict(kernels='torch'), None),
    'a listener': ({}, lambda modules: modules[1].register_forward_hook(lambda *_: None)),
    'a listener before': ({}, lambda modules: modules[2].register_forward_pre_hook(lambda *_: None)),
    'another forward': ({}, lambda modules: setattr(modules[1], 'forward', modules[1].forward)),
    'no GRN': ({}, lambda modules: modules.__setitem__(1, None)),
    'another norm': ({}, lambda modules: modules.__setitem__(1, build_response_norm('ln', 4 * CHANNELS))),
    'a wrapped layer': ({}, lambda modules: modules.__setitem__(0, Wrapped(modules[0]))),
}


class Wrapped(nn.Module):
    """As FSDP does: the parameters are whole only while the module is called."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *arguments):
        return self.module(*arguments)


@pytest.mark.parametrize('case', CASES)
def test_three_steps_where_one_would_be_noticed(case, modules, parts):
    options, change = CASES[case]
    if change:
        change(modules)
    x, layout = maps(), DenseLayout(**options)
    whole = run(modules, layout, x)
    with torch.no_grad():
        torch.testing.assert_close(run(modules, layout, x), whole, rtol=1e-6, atol=1e-6)
    assert parts == []


@torch.no_grad()
@pytest.mark.parametrize('images', [1, 4])
def test_few_images_go_through_together(images, modules, parts):
    run(modules, DenseLayout(), maps()[:images])
    assert parts == [images]


@torch.no_grad()
def test_bfloat16_and_autocast_take_three_steps(modules, parts):
    x, layout = maps(), DenseLayout()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        run(modules, layout, x)
    run([module.bfloat16() for module in modules], layout, x.bfloat16())
    assert parts == []


@torch.no_grad()
@pytest.mark.parametrize('images', [2, BATCH])
def test_compiled_the_same(images, modules, parts):
    """In one graph; a bias may be missing."""
    modules[0].bias = None
    x, layout = maps()[:images], DenseLayout()
    expected = run(modules, layout, x)
    torch._dynamo.reset()
    got = torch.compile(lambda x: run(modules, layout, x), backend='aot_eager', fullgraph=True)(x)
    assert torch.equal(got, expected) and parts == 2 * ([2, 2, 1] if images == BATCH else [2])


@torch.no_grad()
def test_what_torch_expects_of_an_operator(modules):
    widen, grn, narrow = modules
    operator, x = torch.ops.mmcnx2.mlp, torch.randn(2, 9, CHANNELS)
    arguments = (x, widen.weight, widen.bias, grn.gamma, grn.beta, grn.eps, narrow.weight, narrow.bias)
    torch.library.opcheck(operator, arguments, test_utils=('test_schema', 'test_faketensor'))
    with FlopCounterMode(display=False) as counter:
        operator(*arguments)
    assert counter.get_total_flops() == 2 * 2 * (2 * 9) * CHANNELS * 4 * CHANNELS  # two products of multiply-adds


def test_who_listens_to_every_module_hears_them(modules, parts):
    heard = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: heard.append(type(module)))
    with hook, torch.no_grad():
        run(modules, DenseLayout(), maps())
    assert heard == [Linear, GRN, Linear] and parts == []
