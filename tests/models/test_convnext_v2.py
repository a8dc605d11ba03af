"""The backbone: sizes, flags, registries, and every argument seen to act."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

import mmcnx2  # noqa: F401
from mmcnx2.models.backbones.convnext_v2 import ARCHS, ConvNeXtV2, ConvNeXtV2Block
from mmcnx2.models.layers import DenseLayout

OFFICIAL = json.loads(gzip.decompress((Path(__file__).parents[1] / 'data/layer_decay_official.json.gz').read_bytes()))[
    'sizes'
]


@pytest.mark.parametrize('size', OFFICIAL)
def test_names_and_shapes_equal_the_official_ones(size):
    with torch.device('meta'):
        ours = {name: list(p.shape) for name, p in ConvNeXtV2(size, out_norm=False).named_parameters()}
    theirs = {
        name: value['shape']
        for name, value in OFFICIAL[size]['params'].items()
        if not name.startswith(('norm.', 'head.'))
    }
    theirs = {name: shape[-1:] if '.grn.' in name else shape for name, shape in theirs.items()}  # (1, 1, 1, C) -> (C,)
    assert ours == theirs
    outside = sum(
        torch.Size(v['shape']).numel() for n, v in OFFICIAL[size]['params'].items() if n.startswith(('norm.', 'head.'))
    )
    assert sum(torch.Size(shape).numel() for shape in ours.values()) + outside == OFFICIAL[size]['num_params']


@pytest.mark.parametrize('library', ['mmengine', 'mmpretrain', 'mmdet', 'mmseg'])
def test_buildable_from_the_registry_of(library):
    registry = __import__(f'{library}.registry', fromlist=['MODELS']).MODELS
    backbone = registry.build(dict(type='mmcnx2.ConvNeXtV2', arch='atto', out_indices=(1, 3)))
    assert isinstance(backbone, ConvNeXtV2)
    assert backbone.out_indices == [1, 3]


def test_any_size_of_image_floors_like_strided_convolutions(micro):
    maps = ConvNeXtV2(micro, in_channels=2, out_indices=(0, 1, 2, 3))(torch.randn(2, 2, 101, 67))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 25, 16), (2, 16, 12, 8), (2, 24, 6, 4), (2, 32, 3, 2)]
    assert all(m.is_contiguous() for m in maps)


def test_out_norm_normalises_each_returned_map_and_nothing_else(micro, randomise):
    normed = ConvNeXtV2(micro, out_indices=(0, 3))
    plain = ConvNeXtV2(micro, out_indices=(0, 3), out_norm=False)
    plain.load_state_dict({k: v for k, v in normed.state_dict().items() if not k.startswith('norm')})
    images = torch.randn(2, 3, 64, 64)
    for a, b in zip(normed(images), plain(images), strict=True):
        torch.testing.assert_close(
            a, (b - b.mean(1, keepdim=True)) / (b.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        )
    assert {n.split('.')[0] for n, _ in normed.named_parameters()} == {'downsample_layers', 'stages', 'norm0', 'norm3'}


def test_gap_before_final_norm_pools_first(micro, randomise):
    backbone = randomise(ConvNeXtV2(micro, gap_before_final_norm=True))
    images = torch.randn(2, 3, 64, 96)
    pooled = backbone(images)[-1]
    raw = randomise(ConvNeXtV2(micro, out_norm=False))(images)[-1]
    torch.testing.assert_close(pooled, backbone.norm3(raw.mean((2, 3))))
    with pytest.raises(ValueError, match='gap_before_final_norm'):
        ConvNeXtV2(micro, gap_before_final_norm=True, out_indices=(0, 1))


def test_block_written_out(randomise):
    """ConvNeXt V2's block in plain NCHW operations."""
    block = randomise(ConvNeXtV2Block(6)).double()
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    y = torch.nn.functional.conv2d(x, block.dwconv.weight, block.dwconv.bias, padding=3, groups=6)
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    y = y * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
    y = torch.einsum('oc,bchw->bohw', block.pwconv1.weight, y) + block.pwconv1.bias[:, None, None]
    y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
    norm = y.square().sum((2, 3), keepdim=True).sqrt()
    y = (
        block.grn.gamma[:, None, None] * y * norm / (norm.mean(1, keepdim=True) + 1e-6)
        + block.grn.beta[:, None, None]
        + y
    )
    y = torch.einsum('oc,bchw->bohw', block.pwconv2.weight, y) + block.pwconv2.bias[:, None, None] + x
    torch.testing.assert_close(block(x.permute(0, 2, 3, 1), DenseLayout()).permute(0, 3, 1, 2), y)


def test_v1_by_its_flags(micro, randomise):
    """No GRN; a layer scale whose value acts."""
    backbone = ConvNeXtV2(micro, use_grn=False, layer_scale_init_value=1e-6)
    names = {name.rsplit('.', 1)[-1] for name, _ in backbone.named_parameters()}
    assert not any('.grn.' in name for name, _ in backbone.named_parameters())
    assert 'gamma' in names
    block = randomise(backbone.stages[0][0])
    x = torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        full = block(x, DenseLayout()) - x
        block.gamma.mul_(2)
        torch.testing.assert_close(block(x, DenseLayout()) - x, 2 * full)


def test_drop_path_grows_linearly_and_acts_in_training_only(micro):
    backbone = ConvNeXtV2(micro, drop_path_rate=0.4)
    rates = [getattr(block.drop_path, 'p', 0.0) for stage in backbone.stages for block in stage]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    block = backbone.stages[3][0]
    torch.nn.init.ones_(block.pwconv2.bias)
    x = torch.zeros(2000, 1, 1, 32)
    added = block.train()(x, DenseLayout()).mean((1, 2, 3))
    kept = added > 0.5
    assert abs(kept.float().mean() - 0.6) < 0.06
    torch.testing.assert_close(added[kept], torch.full_like(added[kept], 1 / 0.6), rtol=0.2, atol=0)
    assert (block.eval()(x, DenseLayout()).mean((1, 2, 3)) > 0.5).all()


def test_frozen_stages_stay_fixed_and_in_evaluation_mode(micro):
    backbone = ConvNeXtV2(micro, frozen_stages=2, drop_path_rate=0.1)
    assert backbone.train() is backbone
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {
        n
        for n, _ in backbone.named_parameters()
        if n.startswith(('downsample_layers.0', 'downsample_layers.1', 'stages.0', 'stages.1'))
    }
    assert not backbone.stages[1].training
    assert not backbone.stages[1][0].drop_path.training
    assert backbone.stages[2].training


def test_recomputing_blocks_gives_equal_gradients(micro, randomise):
    images = torch.randn(2, 3, 64, 64)
    gradients, calls = [], []
    for with_cp in (False, True):
        backbone = randomise(ConvNeXtV2(micro, with_cp=with_cp, out_norm=False))
        count = [0]
        backbone.stages[0][0].pwconv1.register_forward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        backbone(images)[-1].square().sum().backward()
        gradients.append([p.grad for p in backbone.parameters()])
        calls.append(count[0])
    assert calls == [1, 2], 'the block was not recomputed'
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_every_parameter_gets_a_gradient(micro):
    backbone = ConvNeXtV2(micro, out_indices=(0, 1, 2, 3))
    for block in (b for stage in backbone.stages for b in stage):
        torch.nn.init.ones_(block.grn.gamma)
    sum((m * torch.randn_like(m)).sum() for m in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_bf16_autocast_is_close_to_float32(micro, randomise):
    backbone = randomise(ConvNeXtV2(micro))
    images = torch.randn(2, 3, 64, 64)
    exact = backbone(images)[-1]
    with torch.autocast('cpu', torch.bfloat16):
        rough = backbone(images)[-1]
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rough.float().flatten(), dim=0) > 0.99


@pytest.mark.parametrize('size', OFFICIAL)
def test_layer_ids_equal_the_official_ones(size):
    with torch.device('meta'):
        backbone = ConvNeXtV2(size)
    official = OFFICIAL[size]
    for name, value in official['params'].items():
        prefixed = f'model.backbone.{name}' if not name.startswith('head.') else f'model.{name}'
        layer_id, num_layers = backbone.get_layer_depth(prefixed, prefix='model.backbone.')
        assert (layer_id, num_layers - 1) == (value['single'], official['last_layer_single'])
        if value['group'] is not None:
            layer_id, num_layers = backbone.get_layer_depth(name, grouping='group')
            assert (layer_id, num_layers - 1) == (value['group'], official['last_layer_group'])


def test_parameters_outside_the_prefix_belong_to_no_layer(micro):
    backbone = ConvNeXtV2(micro)
    assert backbone.get_layer_depth('stages.0.0.norm.weight', prefix='backbone.') == (6, 7)
    assert backbone.get_layer_depth('backbone.stages.0.0.norm.weight', prefix='backbone.') == (1, 7)


def test_stage_wise_scales():
    """Numbers of mmseg's stage_wise at rate 0.9: 6 layers for tiny, 12 for base."""
    with torch.device('meta'):
        tiny, base = ConvNeXtV2('tiny'), ConvNeXtV2('base')

    def scale(backbone, name):
        layer_id, num_layers = backbone.get_layer_depth(name, grouping='stage_wise')
        return round(0.9 ** (num_layers - 1 - layer_id), 3)

    names = [
        'downsample_layers.0.0.weight',
        'downsample_layers.3.1.bias',
        'stages.0.0.norm.bias',
        'stages.1.2.grn.beta',
        'stages.2.8.norm.bias',
        'stages.3.1.norm.bias',
        'norm3.weight',
    ]
    assert [scale(tiny, name) for name in names] == [0.478, 0.478, 0.531, 0.590, 0.656, 0.729, 1]
    assert [scale(base, name) for name in names] == [0.254, 0.254, 0.282, 0.314, 0.349, 0.387, 1]


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(arch='giant'), "arch='giant' is not known; choose one of atto, femto"),
        (dict(arch=dict(depths=[1, 1, 1], channels=[8, 8, 8])), 'needs 4 depths and 4 channels'),
        (dict(arch=dict(depths=[1, 1, 1, 1])), "exactly 'depths' and 'channels'"),
        (dict(arch=dict(depths=[1, 1, 1, 1], channels=[8.0, 8, 8, 8])), r'whole numbers from 1 on.*8\.0'),
        (dict(arch=5), 'arch=5: give a name'),
        (dict(layer_scale_init_value=-1.0), 'choose 0'),
        (dict(out_indices=(0, 4)), 'choose stages from -4 to 3'),
        (dict(frozen_stages=5), 'choose 0'),
        (dict(drop_path_rate=1.0), 'probability'),
        (dict(in_channels=0), 'at least 1 channel'),
    ],
)
def test_wrong_settings_say_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        ConvNeXtV2(**{'arch': 'atto', **settings})


def test_arguments_by_position_are_those_of_the_contract(micro):
    init_cfg = dict(type='Normal', layer='Linear')
    backbone = ConvNeXtV2(micro, 4, (1, 3), False, 0.3, False, 0.5, 1, True, init_cfg)
    assert (backbone.in_channels, backbone.out_indices) == (4, [1, 3])
    assert (backbone.frozen_stages, backbone.with_cp) == (1, True)
    block = backbone.stages[3][-1]
    assert block.drop_path.p == pytest.approx(0.3) and block.grn is None and (block.gamma == 0.5).all()
    assert backbone.init_cfg == init_cfg and isinstance(backbone.norm3, torch.nn.Identity)


def test_wrong_images_say_what_is_expected(micro):
    backbone = ConvNeXtV2(micro)
    with pytest.raises(ValueError, match=r'have 4 channels.*in_channels=3'):
        backbone(torch.zeros(1, 4, 64, 64))
    with pytest.raises(ValueError, match='at least 32 px'):
        backbone(torch.zeros(1, 3, 64, 31))


def test_initial_weights_have_the_published_spread():
    backbone = ConvNeXtV2('atto')
    weights = torch.cat([p.detach().flatten() for n, p in backbone.named_parameters() if p.ndim > 1])
    assert abs(weights.std().item() - 0.02) < 2e-4
    assert all((p == 0).all() for n, p in backbone.named_parameters() if n.endswith('.bias') or '.grn.' in n)


def test_named_sizes_are_the_published_ones():
    assert ARCHS['tiny'] == dict(depths=[3, 3, 9, 3], channels=[96, 192, 384, 768])
    assert ARCHS['huge'] == dict(depths=[3, 3, 27, 3], channels=[352, 704, 1408, 2816])


def test_init_cfg_loads_the_backbone_of_a_pretraining_run_once(micro, randomise, tmp_path):
    """What FCMAE saved goes into a detector's backbone, whose output norms start fresh."""
    micro_fcmae = dict(type='mmcnx2.FCMAE', backbone=dict(type='mmcnx2.ConvNeXtV2', arch=micro))
    pretraining = randomise(MODELS.build(micro_fcmae))
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(meta=dict(), state_dict=pretraining.state_dict()), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    backbone = MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch=micro, out_indices=(0, 1, 2, 3), init_cfg=init_cfg))
    backbone.init_weights()
    for name, value in pretraining.backbone.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), name
    assert torch.equal(backbone.norm2.weight, torch.ones(24))
    torch.nn.init.zeros_(backbone.stages[0][0].pwconv1.weight)
    backbone.init_weights()  # a second call must not undo training
    assert backbone.stages[0][0].pwconv1.weight.abs().max() == 0


def test_init_cfg_without_a_checkpoint_keeps_the_random_weights(micro):
    backbone = ConvNeXtV2(micro, init_cfg=dict(type='Pretrained', checkpoint=None))
    before = backbone.stages[0][0].pwconv1.weight.clone()
    backbone.init_weights()
    assert torch.equal(backbone.stages[0][0].pwconv1.weight, before)
