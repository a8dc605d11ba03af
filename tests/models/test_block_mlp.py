"""A few images at a time through the wide part of a block: the same numbers, and only where nobody could notice."""

import pytest
import torch
from torch import nn

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
    """Numbers of images that went through GELU and GRN together. Two images of 8 x 8 positions are as many as fit."""
    monkeypatch.setattr(block_mlp, 'WIDE_BYTES_AT_ONCE', 2 * 64 * 4 * CHANNELS * 4)
    seen = []
    compute = cpu_kernels.gelu_grn

    def noting(x_BMF, *arguments):
        seen.append(len(x_BMF))
        return compute(x_BMF, *arguments)

    monkeypatch.setattr(cpu_kernels, 'gelu_grn', noting)
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
    assert parts == [BATCH]
    with torch.no_grad():
        got = run(modules, layout, x)
    assert parts[1:] == [2, 2, 1] and got.shape == x.shape and got.is_contiguous()
    torch.testing.assert_close(got, whole, rtol=1e-6, atol=1e-6)


def test_cells_stay_with_their_image(modules, parts):
    layout = VisibleLayout(random_visible(BATCH, (4, 4), 0.25, seeds=range(BATCH)))
    x = torch.randn(BATCH, layout.num_visible, 3, 3, CHANNELS)
    whole = run(modules, layout, x)
    with torch.no_grad():
        got = run(modules, layout, x)
    assert len(parts) > 2 and sum(parts) == 2 * BATCH
    torch.testing.assert_close(got, whole, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_neighbours(modules, parts):
    x, layout = maps(), DenseLayout()
    first = run(modules, layout, x)
    x[1:] = torch.randn_like(x[1:]) * 3
    assert torch.equal(run(modules, layout, x)[0], first[0])
    assert parts == 2 * [2, 2, 1]


CASES = {
    'GRN over the batch': (dict(grn_over='batch'), None),
    "kernels='torch'": (dict(kernels='torch'), None),
    'a listener': ({}, lambda modules: modules[1].register_forward_hook(lambda *_: None)),
    'a listener before': ({}, lambda modules: modules[2].register_forward_pre_hook(lambda *_: None)),
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
def test_all_at_once_where_parts_would_be_noticed(case, modules, parts, monkeypatch):
    options, change = CASES[case]
    if change:
        change(modules)
    x, layout = maps(), DenseLayout(**options)
    whole = run(modules, layout, x)
    monkeypatch.setattr(block_mlp, '_by_images', None)  # fails where it is called
    with torch.no_grad():
        torch.testing.assert_close(run(modules, layout, x), whole, rtol=1e-6, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize('images', [1, 4])
def test_few_images_go_through_together(images, modules, parts):
    run(modules, DenseLayout(), maps()[:images])
    assert parts == [images]


@torch.no_grad()
def test_bfloat16_and_autocast_go_through_together(modules, parts):
    x, layout = maps(), DenseLayout()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        run(modules, layout, x)
    run([module.bfloat16() for module in modules], layout, x.bfloat16())
    assert parts == 2 * [BATCH]
