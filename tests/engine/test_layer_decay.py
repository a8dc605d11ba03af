"""Layer decay: scales and decay flags equal the official table in every wrapper; options act; mistakes are named.

`tests/data/layer_decay_official.json.gz` was written by the official optim_factory.py: every parameter of the eight
classifiers.
"""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn

import mmcnx2  # noqa: F401
from mmcnx2.engine.layer_decay import LayerDecayOptimWrapperConstructor

TABLE = Path(__file__).parents[1] / 'data' / 'layer_decay_official.json.gz'
OFFICIAL = json.loads(gzip.decompress(TABLE.read_bytes()))['sizes']
LR, WEIGHT_DECAY = 3e-3, 0.05


def make_wrapper(model, optim=None, **paramwise):
    cfg = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=LR, weight_decay=WEIGHT_DECAY),
        constructor='mmcnx2.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=paramwise,
    )
    return build_optim_wrapper(model, cfg | (optim or {}))


def settings_of(model, wrapper):
    """name -> (lr scale, weight decay) as the optimizer holds them."""
    by_id = {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            assert id(parameter) not in by_id, 'a parameter is in two groups'
            assert math.isclose(group['lr'], LR * group['lr_scale'], rel_tol=1e-12)
            by_id[id(parameter)] = group['lr_scale'], group['weight_decay']
    return {name: by_id[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in by_id}


def build_on_meta(cfg):
    with torch.device('meta'):
        return MODELS.build(cfg)


def backbone_cfg(arch, **kwargs):
    return dict(type='mmcnx2.ConvNeXtV2', arch=arch, **kwargs)


def classifier_cfg(arch):
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone_cfg(arch),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=1000, in_channels=OFFICIAL[arch]['channels'][-1]),
    )


def segmentor_cfg(arch):
    return dict(
        type='mmseg.EncoderDecoder',
        data_preprocessor=dict(type='mmseg.SegDataPreProcessor'),
        backbone=backbone_cfg(arch, out_indices=(0, 1, 2, 3)),
        decode_head=dict(
            type='mmseg.FCNHead',
            in_channels=OFFICIAL[arch]['channels'][-1],
            channels=8,
            num_classes=7,
            norm_cfg=dict(type='BN'),
        ),
    )


def detector_cfg(arch):
    return dict(
        type='mmdet.RPN',
        data_preprocessor=dict(type='mmdet.DetDataPreprocessor'),
        backbone=backbone_cfg(arch, out_indices=(0, 1, 2, 3)),
        neck=dict(type='mmdet.FPN', in_channels=OFFICIAL[arch]['channels'], out_channels=16, num_outs=5),
        rpn_head=dict(
            type='mmdet.RPNHead',
            in_channels=16,
            feat_channels=16,
            anchor_generator=dict(type='mmdet.AnchorGenerator', scales=[8], ratios=[1.0], strides=[4, 8, 16, 32, 64]),
            bbox_coder=dict(type='mmdet.DeltaXYWHBBoxCoder'),
        ),
        train_cfg=None,
        test_cfg=dict(rpn=dict()),
    )


def official_settings(arch, grouping, rate):
    """our name in a model with `backbone.` -> (scale, weight decay), for the parameters that both codes have."""
    size = OFFICIAL[arch]
    rows = {}
    for name, row in size['params'].items():
        if name.startswith(('norm.', 'head.')):
            continue
        scale = rate ** (size[f'last_layer_{grouping}'] - row[grouping])
        rows[f'backbone.{name}'] = scale, WEIGHT_DECAY if row['decay'] else 0.0
    return rows


WRAPPERS = dict(bare=backbone_cfg, classifier=classifier_cfg, detector=detector_cfg, segmentor=segmentor_cfg)


@pytest.mark.parametrize('wrapper', WRAPPERS)
@pytest.mark.parametrize('arch', OFFICIAL)
def test_equals_the_official_table_for_every_parameter(arch, wrapper):
    model = build_on_meta(WRAPPERS[wrapper](arch))
    groupings = [grouping for grouping in ('single', 'group') if OFFICIAL[arch][f'last_layer_{grouping}'] is not None]
    for grouping in groupings:
        ours = settings_of(model, make_wrapper(model, layer_decay_rate=0.8, grouping=grouping))
        if wrapper == 'bare':
            ours = {f'backbone.{name}': row for name, row in ours.items()}
        theirs = official_settings(arch, grouping, rate=0.8)
        assert theirs.keys() <= ours.keys()
        for name, row in ours.items():
            # What only we have: output norms, neck and heads. Full lr; decay for matrices and kernels.
            one_dimension = name.endswith('.bias') or '.norm' in name or '.bn' in name
            expected = theirs.get(name, (1.0, 0.0 if one_dimension else WEIGHT_DECAY))
            assert row == pytest.approx(expected, rel=1e-12), (arch, grouping, name)


def test_head_and_final_norm_have_the_official_flags():
    model = build_on_meta(classifier_cfg('atto'))
    ours = settings_of(model, make_wrapper(model, layer_decay_rate=0.9))
    names = {
        'norm.weight': 'backbone.norm3.weight',
        'norm.bias': 'backbone.norm3.bias',
        'head.weight': 'head.fc.weight',
        'head.bias': 'head.fc.bias',
    }
    for official_name, our_name in names.items():
        row = OFFICIAL['atto']['params'][official_name]
        assert row['single'] == OFFICIAL['atto']['last_layer_single']
        assert ours[our_name] == (1.0, WEIGHT_DECAY if row['decay'] else 0.0)


def test_stage_wise_gives_the_scales_of_mmsegmentation():
    # num_layers 12 in mmsegmentation's counting: stem and all downsampling .254, stages .282 .314 .349 .387, head 1.
    model = build_on_meta(segmentor_cfg('base'))
    ours = settings_of(model, make_wrapper(model, layer_decay_rate=0.9, grouping='stage_wise'))
    expected = {
        'downsample_layers.0.0': 0.254,
        'downsample_layers.3.1': 0.254,
        'stages.0.2.dwconv': 0.282,
        'stages.1.0.dwconv': 0.314,
        'stages.2.26.dwconv': 0.349,
        'stages.3.0.pwconv1': 0.387,
        'norm2': 1.0,
    }
    for name, scale in expected.items():
        assert ours[f'backbone.{name}.weight'][0] == pytest.approx(scale, abs=5e-4), name
    assert ours['decode_head.conv_seg.weight'][0] == 1.0


class CountingBackbone(nn.Module):
    """Three linear layers; knows its depths without the `grouping` argument."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.gamma = nn.Parameter(torch.zeros(1, 4))

    def get_layer_depth(self, param_name, prefix=''):
        assert param_name.startswith(prefix)
        name = param_name[len(prefix) :]
        assert name in dict(CountingBackbone().named_parameters()), f'{name} is not a name of this backbone'
        return (int(name.split('.')[1]) if name.startswith('layers.') else 0), 4

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x + self.gamma + self.mask_token.squeeze(0)


class Wrapped(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def test_any_backbone_under_any_prefix():
    plain = CountingBackbone()
    nested = Wrapped(detector=Wrapped(body=CountingBackbone(), head=nn.Linear(4, 2)))
    under_ddp = Wrapped(module=Wrapped(backbone=CountingBackbone(), head=nn.Linear(4, 2)))
    compiled = Wrapped(backbone=Wrapped(_orig_mod=CountingBackbone()))
    models = {'': plain, 'detector.body.': nested, 'module.backbone.': under_ddp, 'backbone._orig_mod.': compiled}
    for prefix, model in models.items():
        ours = settings_of(model, make_wrapper(model, layer_decay_rate=0.5))
        assert [ours[f'{prefix}layers.{i}.weight'] for i in range(3)] == [(0.125, 0.05), (0.25, 0.05), (0.5, 0.05)]
        assert ours[f'{prefix}layers.0.bias'] == (0.125, 0.0)
        assert all(row[0] == 1.0 for name, row in ours.items() if 'head' in name)


def test_wrappers_inside_the_backbone_do_not_hide_its_names():
    backbone = CountingBackbone()
    backbone.layers[1] = Wrapped(_checkpoint_wrapped_module=backbone.layers[1])
    ours = settings_of(backbone, make_wrapper(backbone, layer_decay_rate=0.5))
    assert ours['layers.1._checkpoint_wrapped_module.weight'] == (0.25, 0.05)


class WholeModel(Wrapped):
    """Counts the depths of everything below it, as FCMAE and the adapters of other libraries do."""

    def get_layer_depth(self, param_name, prefix=''):
        return (1 if param_name.startswith('backbone.') else 2), 3


def test_the_outermost_module_that_knows_depths_decides():
    model = WholeModel(backbone=CountingBackbone(), neck=nn.Linear(4, 4))
    ours = settings_of(model, make_wrapper(model, layer_decay_rate=0.5))
    assert {row[0] for name, row in ours.items() if name.startswith('backbone.')} == {0.5}
    assert ours['neck.weight'] == (1.0, WEIGHT_DECAY)


@pytest.mark.parametrize('rate', [1.0, 0.5])
def test_tokens_and_grn_have_no_weight_decay_at_any_rate(rate):
    model = CountingBackbone()
    ours = settings_of(model, make_wrapper(model, layer_decay_rate=rate))
    assert ours['mask_token'][1] == ours['gamma'][1] == ours['layers.0.bias'][1] == 0.0
    assert ours['layers.0.weight'][1] == WEIGHT_DECAY


def test_the_constructor_without_options_still_exempts():
    model = CountingBackbone()
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=LR, weight_decay=WEIGHT_DECAY),
            constructor='mmcnx2.LayerDecayOptimWrapperConstructor',
        ),
    )
    assert settings_of(model, wrapper)['mask_token'] == (1.0, 0.0)
    assert [group['lr_scale'] for group in wrapper.optimizer.param_groups] == [1.0, 1.0]


def test_no_decay_and_decay_also_act():
    model = CountingBackbone()
    ours = settings_of(model, make_wrapper(model, no_decay=['layers.1.weight'], decay_also=('gamma', 'mask_token')))
    assert ours['layers.1.weight'][1] == 0.0
    assert ours['layers.0.weight'][1] == ours['gamma'][1] == ours['mask_token'][1] == WEIGHT_DECAY


def test_frozen_parameters_are_left_out_and_shared_ones_occur_once():
    model = Wrapped(head=nn.Linear(4, 4), backbone=CountingBackbone())
    model.head.weight = model.backbone.layers[1].weight  # the head comes first, the depth of the backbone counts
    model.backbone.layers[0].requires_grad_(False)
    wrapper = make_wrapper(model, layer_decay_rate=0.5)
    ours = settings_of(model, wrapper)
    assert not any(name.startswith('backbone.layers.0') for name in ours)
    assert ours['head.weight'] == (0.25, WEIGHT_DECAY)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert sorted(trainable) == sorted(id(p) for group in wrapper.optimizer.param_groups for p in group['params'])


def test_groups_are_merged_named_and_led_by_the_full_rate():
    model = Wrapped(backbone=CountingBackbone(), head=nn.Linear(4, 2))
    groups = make_wrapper(model, layer_decay_rate=0.5).optimizer.param_groups
    assert [(group['lr_scale'], group['weight_decay']) for group in groups] == [
        (1.0, 0.05),
        (1.0, 0.0),
        (0.5, 0.05),
        (0.5, 0.0),
        (0.25, 0.05),
        (0.25, 0.0),
        (0.125, 0.05),
        (0.125, 0.0),
    ]
    assert groups[2]['name'] == 'lr x 0.5, with weight decay'


def test_the_logged_base_lr_is_the_configured_one():
    model = Wrapped(backbone=CountingBackbone(), head=nn.Linear(4, 2))
    assert make_wrapper(model, layer_decay_rate=0.5).get_lr()['base_lr'] == [LR]


def test_wrapper_options_pass_through_and_a_step_moves_layers_by_their_scale():
    torch.manual_seed(0)
    model, yardstick = CountingBackbone(), CountingBackbone()
    yardstick.load_state_dict(model.state_dict())
    x = torch.randn(3, 4)
    yardstick(x).square().mean().backward()
    wrapper = make_wrapper(model, dict(accumulative_counts=2, optimizer=dict(type='SGD', lr=LR)), layer_decay_rate=0.5)
    assert isinstance(wrapper, OptimWrapper)
    wrapper.initialize_count_status(model, 0, 2)
    for _ in range(2):
        wrapper.update_params(model(x).square().mean())
    for i in range(3):
        start, ours = yardstick.layers[i], model.layers[i]
        expected = start.weight - LR * 0.5 ** (3 - i) * start.weight.grad
        torch.testing.assert_close(ours.weight, expected, rtol=0, atol=1e-7)
        assert not torch.equal(ours.weight, start.weight)


def test_amp_wrapper_passes_through():
    cfg = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0)
    if not torch.cuda.is_available():
        with pytest.raises(AssertionError, match='only available'):  # mmengine's own refusal: the options reached it
            make_wrapper(CountingBackbone(), cfg, layer_decay_rate=0.5)
        return
    assert make_wrapper(CountingBackbone(), cfg, layer_decay_rate=0.5).cast_dtype is torch.bfloat16


def test_mistakes_are_named():
    model = CountingBackbone()
    with pytest.raises(ValueError, match=r"unknown keys \['decay_rate', 'num_layers'\].*layer_decay_rate"):
        make_wrapper(model, decay_rate=0.9, num_layers=6)
    for rate in (0, 1.2, '0.9', True, -1):
        with pytest.raises(ValueError, match='layer_decay_rate'):
            make_wrapper(model, layer_decay_rate=rate)
    with pytest.raises(ValueError, match='CountingBackbone knows one way'):
        make_wrapper(model, layer_decay_rate=0.9, grouping='single')
    with pytest.raises(TypeError, match='no_decay'):
        make_wrapper(model, no_decay='mask_token')
    with pytest.raises(ValueError, match="ending 'mask_tokens', which no parameter has"):
        make_wrapper(model, no_decay=['mask_tokens'])
    with pytest.raises(ValueError, match=r'needs a backbone with get_layer_depth.*Linear has none'):
        make_wrapper(Wrapped(backbone=nn.Linear(3, 3)), layer_decay_rate=0.9)
    with pytest.raises(ValueError, match='no trainable parameter'):
        make_wrapper(nn.Linear(3, 3).requires_grad_(False))
    with pytest.raises(ValueError, match='lr=None'):
        LayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='AdamW')), dict(layer_decay_rate=0.9))
    with pytest.raises(ValueError, match='grouping'):
        make_wrapper(build_on_meta(backbone_cfg('atto')), layer_decay_rate=0.9, grouping='pairs')


def test_other_backbones_of_mmpretrain_work():
    model = build_on_meta(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=32, patch_size=16),
            head=dict(type='mmpretrain.VisionTransformerClsHead', num_classes=5, in_channels=192),
        )
    )
    ours = settings_of(model, make_wrapper(model, layer_decay_rate=0.75))
    assert ours['backbone.layers.11.attn.qkv.weight'] == pytest.approx((0.75, WEIGHT_DECAY))
    assert ours['backbone.patch_embed.projection.weight'] == pytest.approx((0.75**13, WEIGHT_DECAY))
    assert ours['backbone.cls_token'] == pytest.approx((0.75**13, 0.0))
    assert ours['head.layers.head.weight'] == (1.0, WEIGHT_DECAY)


def test_a_saved_optimizer_resumes():
    model = CountingBackbone()
    state = make_wrapper(model, layer_decay_rate=0.5).state_dict()
    other = make_wrapper(model, layer_decay_rate=0.5)
    other.load_state_dict(state)
    assert [group['lr'] for group in other.optimizer.param_groups] == [group['lr'] for group in state['param_groups']]
