"""A whole pretraining model starts from a checkpoint that holds encoder and decoder, all of it or nothing."""

import pytest
import torch
from checkpoint_cases import ARCH, cases, same_tensors
from mmengine.config import ConfigDict

from mmcnx2.checkpoint import CheckpointError
from mmcnx2.registry import MODELS


def file_with(tmp_path, state_dict, name='weights.pth'):
    torch.save({'state_dict': {key: tensor.detach().float() for key, tensor in state_dict.items()}}, tmp_path / name)
    return str(tmp_path / name)


def fcmae(checkpoint, backbone=None, neck=None, **options):
    return MODELS.build(
        ConfigDict(
            type='mmcnx2.FCMAE',
            backbone={'type': 'mmcnx2.ConvNeXtV2', 'arch': ARCH, **(backbone or {})},
            neck={'decoder_channels': 32, **(neck or {})},
            data_preprocessor={'type': 'mmpretrain.SelfSupDataPreprocessor', 'mean': [1, 2, 3], 'std': [1, 2, 3]},
            init_cfg={'type': 'Pretrained', 'checkpoint': checkpoint, **options},
        )
    )


@pytest.fixture
def lines(monkeypatch):
    """What is logged, as (level, text)."""
    found = []
    monkeypatch.setattr(
        'mmcnx2.checkpoint.load.print_log', lambda message, logger, level=20: found.append((level, message))
    )
    return found


@pytest.mark.parametrize('layout', ['mmcnx2', 'meta', 'meta-sparse'])
def test_every_layout_with_a_decoder_gives_the_official_outputs(tmp_path, lines, layout):
    state_dict, outputs = cases()[layout]['fcmae']
    path = file_with(tmp_path, state_dict)
    model = fcmae(path)
    model.init_weights()
    assert lines == [(20, f'81 keys: encoder and decoder of FCMAE, layout {layout}, from {path}')]
    assert same_tensors(model.state_dict(), cases()['mmcnx2']['fcmae'][0])
    assert outputs.keys() == {'features', 'prediction'}  # test_other_libraries.py compares them, from these tensors


def test_the_weights_are_loaded_once(tmp_path):
    model = fcmae(file_with(tmp_path, cases()['meta-sparse']['fcmae'][0]))
    model.init_weights()
    torch.nn.init.zeros_(model.neck.mask_token)
    model.init_weights()  # a second call must not undo training
    assert not model.neck.mask_token.any()


def refuse(model, match):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match) as caught:
        model.init_weights()
    assert '\n' not in str(caught.value)
    assert same_tensors(model.state_dict(), before)


@pytest.mark.parametrize(
    ('layout', 'kind'), [('meta', 'stored'), ('timm', 'classifier'), ('huggingface', 'dense'), ('mmcnx2', 'dense')]
)
def test_an_encoder_alone_is_refused_and_the_place_for_it_is_named(tmp_path, layout, kind):
    path = file_with(tmp_path, cases()[layout][kind][0])
    refuse(fcmae(path), rf'an encoder \(layout {layout}\) and no FCMAE decoder; give it as model\.backbone\.init_cfg')


def test_what_stands_around_another_model_is_refused_and_the_place_for_the_encoder_is_named(tmp_path):
    around = {'neck.blocks.0.norm.weight': torch.ones(32), 'rpn_head.rpn_conv.weight': torch.ones(2)}
    path = file_with(tmp_path, {**cases()['mmcnx2']['dense'][0], **around})
    refuse(fcmae(path), r'does not have: rpn_head\.rpn_conv\.weight.*alone, give it as model\.backbone\.init_cfg')


@pytest.mark.parametrize('name', ['mask_token', 'proj.bias', 'decoder.0.grn.beta', 'pred.weight'])
def test_a_decoder_with_a_missing_tensor_is_refused_by_name(tmp_path, name):
    state_dict = {key: tensor for key, tensor in cases()['meta-sparse']['fcmae'][0].items() if key != name}
    refuse(fcmae(file_with(tmp_path, state_dict)), r'1 tensors are missing: (neck|head)\.')


@pytest.mark.parametrize(
    ('model', 'match'),
    [
        ({'backbone': {'arch': 'atto'}}, r"it is depths=\[1, 1, 2, 1\], .* the model is 'atto'"),
        ({'backbone': {'in_channels': 4}}, r'another FCMAE: in_channels 3 \(the model: 4\)'),
        ({'neck': {'decoder_channels': 16}}, r'neck\.decoder_channels 32 \(the model: 16\).*Set these in the config'),
        ({'neck': {'decoder_depth': 2}}, r'neck\.decoder_depth 1 \(the model: 2\)'),
        ({'backbone': {'layer_scale_init_value': 1e-6}}, r'only in the model: backbone\.stages\.0\.0\.gamma'),
        ({'source': 'keras'}, 'unknown source layout'),
        ({'source': 'timm'}, 'no FCMAE decoder'),
    ],
)
def test_another_model_is_refused_with_what_differs(tmp_path, model, match):
    refuse(fcmae(file_with(tmp_path, cases()['mmcnx2']['fcmae'][0]), **model), match)


def test_a_decoder_that_predicts_more_values_is_refused(tmp_path):
    state_dict = dict(cases()['mmcnx2']['fcmae'][0])
    for name in ('head.pred.weight', 'head.pred.bias'):
        state_dict[name] = torch.cat([state_dict[name]] * 2)
    refuse(fcmae(file_with(tmp_path, state_dict)), r'2 tensors have another shape than the model: head\.pred\.')


def test_settings_that_do_not_belong_to_a_whole_model_are_refused(tmp_path):
    with pytest.raises(TypeError, match='inflate'):
        fcmae(file_with(tmp_path, cases()['mmcnx2']['fcmae'][0]), inflate='mean').init_weights()


def test_two_checkpoints_for_one_encoder_are_refused(tmp_path):
    path = file_with(tmp_path, cases()['mmcnx2']['fcmae'][0])
    model = fcmae(path, backbone={'init_cfg': {'type': 'Pretrained', 'checkpoint': path}})
    with pytest.raises(ValueError, match=r'model\.init_cfg and model\.backbone\.init_cfg both name a checkpoint'):
        model.init_weights()


def test_without_a_path_the_backbone_still_gets_its_own_checkpoint(tmp_path):
    path = file_with(tmp_path, cases()['mmcnx2']['fcmae'][0])
    model = fcmae(None, backbone={'init_cfg': {'type': 'Pretrained', 'checkpoint': path}})
    proj = model.neck.proj.weight.clone()
    model.init_weights()
    expected = cases()['mmcnx2']['fcmae'][0]['backbone.stages.0.0.dwconv.weight']
    assert model.backbone.stages[0][0].dwconv.weight.equal(expected)
    assert model.neck.proj.weight.equal(proj)
