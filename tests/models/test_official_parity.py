"""Values and gradients equal those that the original authors' code gave, stored in tests/data.

The stored tensors come from facebookresearch/ConvNeXt-V2 (commit 2553895), run in float64 and rounded to float32;
FCMAE with MinkowskiEngine 0.5.4, whose GRN runs over the whole batch. The parameters go through the same conversion
that users call.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from safetensors import safe_open

import mmcnx2  # noqa: F401
from mmcnx2.checkpoint import convert_state_dict
from mmcnx2.models.layers import DenseLayout

DATA = Path(__file__).parents[1] / 'data'
MICRO = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])
TOLERANCES = {
    torch.float64: (1e-6, 1e-6),
    torch.float32: (1e-5, 1e-4),
}  # values, gradients; relative to the tensor's maximum

THROUGH_THE_LIBRARY = pytest.param(
    'minkowski',
    marks=pytest.mark.skipif(
        find_spec('MinkowskiEngine') is None,
        reason='MinkowskiEngine is not installed: `make test-minkowski` builds it and runs this',
    ),
)


def read_oracle(name):
    with safe_open(DATA / f'{name}.safetensors', 'pt') as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open has no __iter__
    parts = {
        prefix: {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for prefix in ('state_dict/', 'grad/')
    }
    return tensors, parts['state_dict/'], parts['grad/']


def assert_close(got, expected, tolerance, what):
    expected = expected.to(got)
    assert got.shape == expected.shape, f'{what}: {tuple(got.shape)} instead of {tuple(expected.shape)}'
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    assert error <= tolerance, f'{what}: off by {error:.1e} of the maximum'


@pytest.mark.parametrize('dtype', TOLERANCES)
@pytest.mark.parametrize('layout', ['visible', 'dense', THROUGH_THE_LIBRARY])
@pytest.mark.parametrize(('case', 'norm_pix'), [('fcmae_micro_batch1', True), ('fcmae_micro_batch3', False)])
def test_fcmae(case, norm_pix, layout, dtype):
    oracle, state_dict, gradients = read_oracle(case)
    model = MODELS.build(
        dict(
            type='mmcnx2.FCMAE',
            backbone=dict(type='mmcnx2.ConvNeXtV2', arch=MICRO),
            layout=layout,
            grn_over='batch',
            neck=dict(type='mmcnx2.FCMAEDecoder', decoder_channels=32),
            head=dict(type='mmcnx2.PixelReconstructionHead', norm_pix=norm_pix),
        )
    ).to(dtype)
    model.load_state_dict(convert_state_dict(state_dict, source='meta-sparse', target='mmcnx2'))
    images = oracle['image'].to(dtype)
    visible = oracle['mask'].view(-1, 4, 4) == 0
    value_tolerance, gradient_tolerance = TOLERANCES[dtype]
    assert_close(model.encode(images, visible), oracle['encoder_output'], value_tolerance, 'encoder output')
    prediction_BPGG = model.reconstruct(images, visible).transpose(1, 2).unflatten(2, (4, 4))
    assert_close(prediction_BPGG, oracle['prediction'], value_tolerance, 'prediction')
    loss = model.loss(images, visible=visible)['loss']
    assert_close(loss, oracle['loss'].squeeze(), value_tolerance, 'loss')
    loss.backward()
    expected = convert_state_dict(gradients, source='meta-sparse', target='mmcnx2')
    assert expected.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name], gradient_tolerance, f'gradient of {name}')


@pytest.mark.parametrize('dtype', TOLERANCES)
def test_classifier(dtype):
    oracle, state_dict, gradients = read_oracle('convnextv2_micro')
    backbone = MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch=MICRO, gap_before_final_norm=True))
    head = torch.nn.Linear(32, 10)
    model = torch.nn.ModuleDict(dict(backbone=backbone, head=torch.nn.ModuleDict(dict(fc=head)))).to(dtype)
    model.load_state_dict(convert_state_dict(state_dict, source='meta', target='mmcnx2'))
    images = oracle['image'].to(dtype)
    value_tolerance, gradient_tolerance = TOLERANCES[dtype]

    stages = MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch=MICRO, out_indices=(0, 1, 2, 3), out_norm=False)).to(
        dtype
    )
    stages.load_state_dict(
        {name: value for name, value in backbone.state_dict().items() if not name.startswith('norm3')}
    )
    for layout in (None, DenseLayout(torch.ones(2, 2, 3, dtype=torch.bool))):
        for i, stage in enumerate(stages(images, layout)):
            assert_close(stage, oracle[f'stage{i}'], value_tolerance, f'stage {i}')

    logits = head(backbone(images)[-1])
    assert_close(logits, oracle['logits'], value_tolerance, 'logits')
    (logits * oracle['logits_weight'].to(dtype)).sum().backward()
    expected = convert_state_dict(gradients, source='meta', target='mmcnx2')
    assert expected.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name], gradient_tolerance, f'gradient of {name}')


def test_the_stored_files_say_where_they_come_from():
    for name in ('fcmae_micro_batch1', 'fcmae_micro_batch3', 'convnextv2_micro'):
        with safe_open(DATA / f'{name}.safetensors', 'pt') as file:
            assert json.loads(next(iter(file.metadata().values())))
