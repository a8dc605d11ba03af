"""A backbone is loaded completely or not at all, and what does not fit is refused in one line."""

import pytest
import torch
from checkpoint_cases import ARCH, cases, images, randomised, same_tensors

from mmcnx2.checkpoint import CheckpointError, convert_state_dict, load_pretrained_backbone, load_pretrained_fcmae
from mmcnx2.checkpoint.load import inflate_stem
from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2
from mmcnx2.models.fcmae import FCMAE


def file_with(tmp_path, state_dict, name='weights.pth', container='state_dict'):
    torch.save({container: {key: tensor.detach().float() for key, tensor in state_dict.items()}}, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    ('layout', 'kind', 'num_tensors'),
    [
        ('meta', 'stored', 68),
        ('meta-sparse', 'fcmae', 66),
        ('meta', 'fcmae', 66),
        ('mmcnx2', 'fcmae', 66),
        ('mmcnx2', 'stored', 68),
        ('timm', 'classifier', 68),
        ('huggingface', 'classifier', 68),
        ('mmpretrain', 'classifier', 68),
    ],
)
def test_any_layout_loads_into_a_classifiers_backbone(tmp_path, layout, kind, num_tensors):
    state_dict, _ = cases()[layout][kind]
    backbone = ConvNeXtV2(ARCH, gap_before_final_norm=True)
    report = load_pretrained_backbone(backbone, file_with(tmp_path, state_dict, container='model'))
    assert (report['layout'], report['num_tensors']) == (layout, num_tensors)
    assert report['fresh'] == ([] if num_tensors == 68 else ['norm3.weight', 'norm3.bias'])
    decoder = ('proj', 'pred', 'mask_token', 'decoder', 'neck', 'head.pred')
    drop = [name for name in state_dict if name.startswith(decoder)]
    expected = convert_state_dict(state_dict, source=layout, target='mmcnx2', drop=drop)
    for name, tensor in backbone.state_dict().items():
        if name not in report['fresh']:
            assert tensor.equal(expected[f'backbone.{name}'].float()), name


def test_a_pretraining_checkpoint_gives_a_dense_backbone_its_weights_and_fresh_norms(tmp_path, caplog):
    state_dict, _ = cases()['mmcnx2']['fcmae']
    backbone = randomised(ConvNeXtV2(ARCH, out_indices=(0, 1, 2, 3))).float()
    norms = {name: tensor.clone() for name, tensor in backbone.state_dict().items() if name.startswith('norm')}
    report = load_pretrained_backbone(backbone, file_with(tmp_path, state_dict))
    assert report['fresh'] == list(norms) and report['left_out'] == []
    assert all(backbone.state_dict()[name].equal(tensor) for name, tensor in norms.items())
    assert backbone.stages[2][1].grn.gamma.equal(state_dict['backbone.stages.2.1.grn.gamma'])


@pytest.mark.parametrize('keep', [False, True])
def test_a_classifiers_norm_goes_into_a_dense_norm3_on_request_only(tmp_path, keep):
    state_dict, _ = cases()['meta']['stored']
    backbone = ConvNeXtV2(ARCH, out_indices=(0, 1, 2, 3))
    report = load_pretrained_backbone(backbone, file_with(tmp_path, state_dict), keep_final_norm=keep)
    assert backbone.norm3.weight.equal(state_dict['norm.weight'] if keep else torch.ones(32))
    assert ('norm3.weight' in report['fresh']) != keep


def test_dense_norms_are_loaded_where_the_backbone_has_them(tmp_path):
    state_dict, _ = cases()['mmcnx2']['dense']
    backbone = ConvNeXtV2(ARCH, out_indices=(1, 3))
    report = load_pretrained_backbone(backbone, file_with(tmp_path, state_dict))
    assert report['fresh'] == []
    assert sorted(report['left_out']) == ['norm0.bias', 'norm0.weight', 'norm2.bias', 'norm2.weight']
    assert backbone.norm1.weight.equal(state_dict['backbone.norm1.weight'].float())
    # A norm that saw single positions is not the norm of pooled features.
    pooling = ConvNeXtV2(ARCH, gap_before_final_norm=True)
    assert load_pretrained_backbone(pooling, tmp_path / 'weights.pth')['fresh'] == ['norm3.weight', 'norm3.bias']


def test_a_backbone_is_taken_out_of_a_detector(tmp_path):
    state_dict = dict(cases()['mmcnx2']['dense'][0])
    around = {
        'neck.lateral_convs.0.conv.weight': torch.ones(2),
        'rpn_head.rpn_conv.weight': torch.ones(2),
        'neck.reduce.depthwise_conv.conv.weight': torch.ones(2),
        'decoder.0.weight': torch.ones(1),
    }
    backbone = ConvNeXtV2(ARCH, out_indices=(0, 1, 2, 3))
    report = load_pretrained_backbone(backbone, file_with(tmp_path, {**around, **state_dict}))
    assert report['layout'] == 'mmcnx2' and report['num_tensors'] == 74


def test_one_of_several_backbones_is_chosen_by_its_prefix(tmp_path):
    dense = {name.removeprefix('backbone.'): tensor for name, tensor in cases()['mmcnx2']['dense'][0].items()}
    both = {
        f'{who}.backbone.{name}': tensor + scale
        for who, scale in (('student', 0), ('teacher', 1))
        for name, tensor in dense.items()
    }
    path = file_with(tmp_path, both)
    backbone = ConvNeXtV2(ARCH, out_indices=(0, 1, 2, 3))
    with pytest.raises(CheckpointError, match=r"2 backbones, under 'student.backbone.', 'teacher"):
        load_pretrained_backbone(backbone, path)
    load_pretrained_backbone(backbone, path, prefix='teacher.backbone.')
    assert backbone.norm0.weight.equal((dense['norm0.weight'] + 1).float())
    with pytest.raises(CheckpointError, match='no name starts with'):
        load_pretrained_backbone(backbone, path, prefix='nobody.')


def test_init_cfg_loads_strictly_and_passes_its_options_on(tmp_path):
    path = str(file_with(tmp_path, cases()['meta']['stored'][0]))
    init_cfg = {'type': 'Pretrained', 'checkpoint': path, 'keep_final_norm': True}
    backbone = ConvNeXtV2(ARCH, out_indices=(0, 3), init_cfg=init_cfg)
    backbone.init_weights()
    assert backbone.norm3.weight.equal(cases()['meta']['stored'][0]['norm.weight'])


@pytest.mark.parametrize(
    ('model', 'options', 'match'),
    [
        ({'arch': 'atto'}, {}, r"it is depths=\[1, 1, 2, 1\], .* the model is 'atto' \(depths=\[2, 2, 6, 2\]"),
        ({'arch': {'depths': [1, 1, 1, 1], 'channels': [8, 16, 24, 32]}}, {}, r'the model is depths=\[1, 1, 1, 1\]'),
        (
            {'in_channels': 5},
            {},
            r'with 3 input channels, the model has in_channels=5; choose inflate=mean\|copy\|zero',
        ),
        ({'use_grn': False, 'layer_scale_init_value': 1e-6}, {}, 'V1 has layer scale and no GRN'),
        (
            {'layer_scale_init_value': 1e-6},
            {},
            r'only in the model: stages\.0\.0\.gamma, .*; only in the checkpoint: none',
        ),
        ({}, {'inflate': 'magic'}, "inflate='magic' is not known"),
        ({}, {'source': 'keras'}, 'unknown source layout'),
        ({}, {'source': 'timm'}, 'not a timm checkpoint: there is no stem'),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_loaded(tmp_path, model, options, match):
    path = file_with(tmp_path, cases()['meta']['stored'][0])
    backbone = ConvNeXtV2(**{'arch': ARCH, **model})
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=match) as caught:
        load_pretrained_backbone(backbone, path, **options)
    assert '\n' not in str(caught.value)
    assert same_tensors(backbone.state_dict(), before)


def test_a_file_with_one_block_tensor_missing_loads_nothing(tmp_path):
    state_dict = dict(cases()['meta']['stored'][0])
    del state_dict['stages.3.0.grn.beta']
    backbone = ConvNeXtV2(ARCH)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=r'1 tensors are missing: backbone.stages.3.0.grn.beta'):
        load_pretrained_backbone(backbone, file_with(tmp_path, state_dict))
    assert same_tensors(backbone.state_dict(), before)


def test_one_line_says_what_was_loaded_and_zero_grn_is_warned_of(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(
        'mmcnx2.checkpoint.load.print_log', lambda message, logger, level=20: lines.append((level, message))
    )
    state_dict, _ = cases()['meta-sparse']['fcmae']
    path = file_with(tmp_path, state_dict)
    load_pretrained_backbone(ConvNeXtV2(ARCH, out_norm=False), path)
    beside = 'not looked at: 15 keys beside the backbone'
    assert lines == [(20, f'66 keys: the backbone, layout meta-sparse, from {path}; {beside}')]
    load_pretrained_backbone(ConvNeXtV2(ARCH, in_channels=4), path, inflate='zero')
    fresh, stem = 'start fresh: norm3.weight, norm3.bias', '3 -> 4 input channels (zero)'
    assert lines[-1] == (20, f'66 keys: the backbone, layout meta-sparse, from {path}; {fresh}; {beside}; {stem}')
    file_with(tmp_path, {name: tensor * ('.grn.' not in name) for name, tensor in state_dict.items()})
    load_pretrained_backbone(ConvNeXtV2(ARCH, out_norm=False), path)
    assert lines[-1][0] == 30 and 'GRN does nothing' in lines[-1][1]


@pytest.mark.parametrize('inflate', ['mean', 'copy', 'zero'])
def test_other_input_channels_on_request(tmp_path, inflate):
    path = file_with(tmp_path, cases()['meta']['stored'][0])
    three, six = ConvNeXtV2(ARCH), ConvNeXtV2(ARCH, in_channels=6)
    load_pretrained_backbone(three, path)
    load_pretrained_backbone(six, path, inflate=inflate)
    grey = images().float()[:, :1]
    image = {'mean': grey.expand(-1, 3, -1, -1), 'copy': images().float(), 'zero': images().float()}[inflate]
    wide = torch.cat([image, image], dim=1)
    assert torch.allclose(six(wide)[0], three(image)[0], atol=1e-5)
    assert not torch.allclose(six(wide.flip(1) * 2)[0], three(image)[0], atol=1e-5)


def test_what_is_left_out_stands_in_the_line(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr('mmcnx2.checkpoint.load.print_log', lambda message, logger: lines.append(message))
    path = file_with(tmp_path, cases()['timm']['classifier'][0])
    load_pretrained_backbone(ConvNeXtV2(ARCH, out_norm=False), path)
    left_out = "left out: the classifier's norm3.weight, the classifier's norm3.bias"
    beside = 'not looked at: 2 keys beside the backbone'
    assert lines == [f'66 keys: the backbone, layout timm, from {path}; {left_out}; {beside}']


def test_inflation_by_hand():
    weight = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)
    assert inflate_stem(weight, 1, 'mean').flatten().tolist() == [9]
    assert inflate_stem(weight, 6, 'copy').flatten().tolist() == [0.5, 1, 3, 0.5, 1, 3]
    assert inflate_stem(weight, 4, 'zero').flatten().tolist() == [1, 2, 6, 0]
    with pytest.raises(CheckpointError, match="only 'mean' can"):
        inflate_stem(weight, 1, 'zero')


def test_a_prefix_as_mmengine_and_as_the_file_have_it(tmp_path):
    state_dict, _ = cases()['mmcnx2']['fcmae']
    wrapped = {f'module.{name}': tensor for name, tensor in state_dict.items()}
    path = file_with(tmp_path, wrapped)
    loaded = []
    for prefix in ('backbone', 'backbone.', 'module.backbone', 'module.backbone.'):
        backbone = ConvNeXtV2(ARCH)
        load_pretrained_backbone(backbone, path, prefix=prefix)
        loaded.append(backbone.stages[2][1].grn.gamma)
    assert all(gamma.equal(state_dict['backbone.stages.2.1.grn.gamma'].float()) for gamma in loaded)
    with pytest.raises(CheckpointError, match='no name starts with'):
        load_pretrained_backbone(ConvNeXtV2(ARCH), path, prefix='back')


def test_a_norm_without_a_place_is_named(tmp_path):
    path = file_with(tmp_path, cases()['meta']['stored'][0])
    with pytest.raises(CheckpointError, match='keep_final_norm=True, but the backbone has no norm3'):
        load_pretrained_backbone(ConvNeXtV2(ARCH, out_norm=False), path, keep_final_norm=True)


def test_a_trusted_file_is_read_whatever_it_holds(tmp_path):
    state_dict, _ = cases()['mmcnx2']['fcmae']
    torch.save(dict(state_dict=state_dict, path=tmp_path), tmp_path / 'trusted.pth')
    model = FCMAE(dict(type='mmcnx2.ConvNeXtV2', arch=ARCH), neck=dict(decoder_channels=32))
    for load, target in ((load_pretrained_backbone, model.backbone), (load_pretrained_fcmae, model)):
        with pytest.raises(CheckpointError, match='unsafe_load=True'):
            load(target, tmp_path / 'trusted.pth')
        assert load(target, tmp_path / 'trusted.pth', unsafe_load=True)['num_tensors'] >= 66
