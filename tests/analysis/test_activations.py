"""What is collected is what the model computes: against a plain computation, step by step."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

import mmcnx2  # noqa: F401
from mmcnx2.analysis.activations import as_positions, expansion_layers, expansion_values, watching
from mmcnx2.models.layers import DenseLayout, VisibleLayout

ARCH = dict(depths=[1, 2, 1, 1], channels=[4, 8, 12, 16])


def build(**options):
    """A backbone with noise in every parameter: fresh biases and GRN are zero, which would hide mistakes."""
    model = MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch=ARCH, **options)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False)


def collect(model, layers, *inputs, **options):
    found = {}

    def take(name, x_BNC):
        assert name not in found, f'{name} twice'
        found[name] = x_BNC

    with watching(model, layers, take, **options):
        model(*inputs)
    return found


def plain_expansion(block, x_BHWC):
    """A block up to its GRN in plain PyTorch, NCHW first, and GRN as its formula."""
    y = F.conv2d(x_BHWC.permute(0, 3, 1, 2), block.dwconv.weight, block.dwconv.bias, padding=3, groups=x_BHWC.shape[-1])
    y = y.permute(0, 2, 3, 1)
    mean, variance = y.mean(-1, keepdim=True), y.var(-1, correction=0, keepdim=True)
    y = (y - mean) / (variance + 1e-6).sqrt() * block.norm.weight + block.norm.bias
    y = y @ block.pwconv1.weight.T + block.pwconv1.bias
    before = y * 0.5 * (1 + torch.erf(y / 2**0.5))
    sizes = before.square().sum(dim=(1, 2), keepdim=True).sqrt()
    ratio = sizes / (sizes.mean(-1, keepdim=True) + 1e-6)
    return before, block.grn.gamma * (before * ratio) + block.grn.beta + before


def test_expansions_are_those_of_a_plain_computation():
    model = build()
    layers = expansion_layers(model)
    assert list(layers)[:4] == ['stages.0.0.gelu', 'stages.0.0.grn', 'stages.1.0.gelu', 'stages.1.0.grn']
    assert list(layers.values()) == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1]
    images = torch.randn(2, 3, 64, 96)
    found = collect(model, list(layers), images)
    assert list(found) == list(layers)
    x_BHWC = images.permute(0, 2, 3, 1)
    for i, (downsample, blocks) in enumerate(zip(model.downsample_layers, model.stages, strict=True)):
        x_BHWC = downsample(x_BHWC)
        for j, block in enumerate(blocks):
            before, after = plain_expansion(block, x_BHWC)
            torch.testing.assert_close(found[f'stages.{i}.{j}.gelu'], before.flatten(1, 2))
            torch.testing.assert_close(found[f'stages.{i}.{j}.grn'], after.flatten(1, 2))
            x_BHWC = block(x_BHWC, DenseLayout())


@pytest.mark.parametrize('layout', ['dense', 'visible'])
@pytest.mark.parametrize('kernels', ['torch', 'auto'])
def test_the_block_goes_on_from_what_is_collected(layout, kernels):
    """However a block computes its steps, in one or in several: its output follows from the collected values."""
    block = build().stages[1][0]
    visible = torch.tensor([[[True, False], [False, True]]])
    if layout == 'visible':
        x, layout = torch.randn(1, 2, 4, 4, 8), VisibleLayout(visible, kernels=kernels)
    else:
        x, layout = torch.randn(1, 8, 8, 8), DenseLayout(kernels=kernels)
    _, after = expansion_values(block, x, layout)
    torch.testing.assert_close(x + block.pwconv2(after, layout), block(x, layout))


@pytest.mark.parametrize('kernels', ['torch', 'auto'])
def test_named_modules_and_the_output(kernels):
    model = build(out_indices=(0, 3), kernels=kernels)
    images = torch.randn(2, 3, 64, 64)
    found = collect(model, ['stages.1.0.dwconv', 'stages.1.1', 'norm0', 'output'], images)
    maps = model(images)
    assert torch.equal(found['output'], maps[-1].flatten(2).mT)
    assert torch.equal(found['norm0'], maps[0].flatten(2).mT)
    assert found['stages.1.1'].shape == (2, 8 * 8, 8)
    x = model.downsample_layers[0](images.permute(0, 2, 3, 1))
    x = model.downsample_layers[1](model.stages[0][0](x, DenseLayout()))
    convolved = model.stages[1][0].dwconv(x.permute(0, 3, 1, 2))  # as an ordinary convolution
    torch.testing.assert_close(found['stages.1.0.dwconv'], convolved.flatten(2).mT)
    blocks = model.stages[1]
    expected = blocks[1](blocks[0](x, DenseLayout()), DenseLayout())
    torch.testing.assert_close(found['stages.1.1'], expected.flatten(1, 2))


def test_parts_of_a_block_are_taken_once_beside_its_expansion():
    found = collect(build(), ['stages.0.0.gelu', 'stages.0.0.pwconv1', 'stages.0.0.grn'], torch.randn(1, 3, 32, 32))
    torch.testing.assert_close(found['stages.0.0.gelu'], F.gelu(found['stages.0.0.pwconv1']))


def test_pooled_features_have_one_position():
    model = build(gap_before_final_norm=True)
    images = torch.randn(2, 3, 32, 64)
    assert torch.equal(collect(model, ['output'], images)['output'], model(images)[-1][:, None])


def test_where_the_channels_stand():
    x = torch.arange(24.0).view(1, 2, 3, 4)
    assert torch.equal(as_positions(x, channels_first=True)[0, :, 0], x[0, 0].flatten())
    assert torch.equal(as_positions([x, x], channels_first=False)[0, :, 0], x[0, :, :, 0].flatten())
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.ReLU())
    images = torch.randn(1, 3, 4, 4)
    assert collect(model, ['0'], images)['0'].shape == (1, 16, 5)
    assert collect(model, ['1'], images, channels_first=True)['1'].shape == (1, 16, 5)
    with pytest.raises(ValueError, match='no channels'):
        as_positions(torch.zeros(3), channels_first=False)


def test_nothing_stays_behind():
    model = build()
    with pytest.raises(RuntimeError), watching(model, ['stages.0.0.gelu', 'output'], lambda name, x: None):
        raise RuntimeError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError), watching(model, ['output', 'nothing'], lambda name, x: None):
        pass
    assert not model._forward_hooks


def test_wrong_names_are_answered_with_right_ones():
    with pytest.raises(ValueError, match=r"no layer 'stages.9'.*downsample_layers.*stages.0.0.gelu"):
        collect(build(), ['stages.9'], torch.randn(1, 3, 32, 32))
    v1 = build(use_grn=False, layer_scale_init_value=1e-6)
    assert list(expansion_layers(v1))[:2] == ['stages.0.0.gelu', 'stages.1.0.gelu']
    with pytest.raises(ValueError, match=r'stages\.0\.0 has no GRN'):
        collect(v1, ['stages.0.0.grn'], torch.randn(1, 3, 32, 32))
