"""GRN in pretraining and not in fine-tuning, or the other way round, and what stands in its place: loaded only when
that is said, and the log says what became of it."""

import pytest
import torch
from checkpoint_cases import ARCH, cases, randomised
from mmengine.registry import MODELS

from mmcnx2.checkpoint import CheckpointError, convert_state_dict, load_pretrained_backbone

CHOICES = {
    'grn': {},
    'none': dict(use_grn=False),
    'l1': dict(response_norm=dict(name='grn', aggregation='l1')),
    'no affine': dict(response_norm=dict(name='grn', affine=False)),
    'lrn': dict(response_norm='lrn'),
    'bn': dict(response_norm='bn'),
    'ln': dict(response_norm='ln'),
    'se': dict(response_norm=dict(name='se', reduction=4)),
    'cbam': dict(response_norm=dict(name='cbam', reduction=4)),
}


def build(choice, **settings):
    torch.manual_seed(0)
    return MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch=ARCH, out_norm=False, **CHOICES[choice], **settings))


@pytest.fixture
def pretrained(tmp_path):
    def save(choice):
        """(file of a pretraining run, the backbone's state dict in it)."""
        norm = CHOICES[choice].get('response_norm', 'grn')
        model = MODELS.build(
            dict(
                type='mmcnx2.FCMAE',
                backbone=dict(type='mmcnx2.ConvNeXtV2', arch=ARCH, **CHOICES[choice]),
                neck=dict(decoder_channels=16, use_grn=CHOICES[choice].get('use_grn', True), response_norm=norm),
            )
        )
        model = randomised(model).float()
        file = tmp_path / f'{choice}.pth'
        torch.save(dict(state_dict=model.state_dict()), file)
        return file, model.backbone.state_dict()

    return save


@pytest.mark.parametrize('choice', CHOICES)
def test_the_same_choice_loads_with_every_tensor(pretrained, choice):
    file, saved = pretrained(choice)
    for options in ({}, dict(change_grn=True)):
        backbone = build(choice)
        report = load_pretrained_backbone(backbone, file, **options)
        assert report['fresh'] == report['left_out'] == []
        assert all(backbone.state_dict()[name].equal(tensor) for name, tensor in saved.items())


@pytest.mark.parametrize(('in_file', 'in_model'), [('none', 'grn'), ('se', 'grn'), ('l1', 'grn'), ('bn', 'ln')])
def test_added_or_exchanged_in_fine_tuning(pretrained, in_file, in_model):
    file, saved = pretrained(in_file)
    backbone = build(in_model)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=r'grn\.'):
        load_pretrained_backbone(backbone, file)
    assert all(backbone.state_dict()[name].equal(tensor) for name, tensor in before.items())
    report = load_pretrained_backbone(backbone, file, change_grn=True)
    own = [name for name in before if '.grn.' in name]
    assert report['fresh'] == own and report['left_out'] == [name for name in saved if '.grn.' in name]
    for name, tensor in backbone.state_dict().items():
        assert tensor.equal(before[name] if name in own else saved[name]), name


@pytest.mark.parametrize('in_model', ['none', 'lrn'])
def test_dropped_in_fine_tuning(pretrained, in_model):
    file, saved = pretrained('grn')
    backbone = build(in_model)
    with pytest.raises(CheckpointError, match=r'different parts.*change_grn=True'):
        load_pretrained_backbone(backbone, file)
    report = load_pretrained_backbone(backbone, file, change_grn=True)
    assert report['fresh'] == [] and len(report['left_out']) == 2 * sum(ARCH['depths'])
    assert all(tensor.equal(saved[name]) for name, tensor in backbone.state_dict().items())


def test_the_log_says_what_became_of_grn(pretrained, monkeypatch):
    lines = []
    monkeypatch.setattr('mmcnx2.checkpoint.load.print_log', lambda line, *args, **kwargs: lines.append(line))
    cfg = dict(type='Pretrained', checkpoint=str(pretrained('none')[0]), change_grn=True)
    added = build('grn', init_cfg=cfg)
    added.init_weights()
    assert 'GRN was not in the file and starts at zero, as the identity' in lines[0]
    assert not any(block.grn.gamma.any() for stage in added.stages for block in stage)
    build('none', init_cfg=dict(cfg, checkpoint=str(pretrained('grn')[0]))).init_weights()
    assert 'left out: stages.0.0.grn.gamma' in lines[1]


def test_change_grn_forgives_nothing_else(pretrained, tmp_path):
    file, _ = pretrained('none')
    weights = torch.load(file)['state_dict']
    del weights['backbone.stages.1.0.pwconv1.bias']
    torch.save(dict(state_dict=weights), file)
    with pytest.raises(CheckpointError, match=r'missing: backbone\.stages\.1\.0\.pwconv1\.bias'):
        load_pretrained_backbone(build('grn'), file, change_grn=True)
    state_dict = dict(cases()['mmcnx2']['fcmae'][0])  # one GRN tensor of many is an accident, not a choice
    del state_dict['backbone.stages.0.0.grn.beta']
    torch.save(dict(state_dict=state_dict), tmp_path / 'half.pth')
    with pytest.raises(CheckpointError, match=r'grn\.beta'):
        load_pretrained_backbone(build('grn'), tmp_path / 'half.pth', change_grn=True)
    v1 = build('none', layer_scale_init_value=1e-6).state_dict()
    torch.save(dict(state_dict=v1), tmp_path / 'v1.pth')
    with pytest.raises(CheckpointError, match='different parts'):
        load_pretrained_backbone(build('grn'), tmp_path / 'v1.pth', change_grn=True)


@pytest.mark.parametrize('choice', ['none', 'l1', 'bn', 'se', 'lrn'])
def test_other_libraries_have_no_place_for_them(pretrained, choice):
    file, _ = pretrained(choice)
    for target in ('meta', 'timm'):
        with pytest.raises(CheckpointError, match=r'grn'):
            convert_state_dict(torch.load(file)['state_dict'], source='mmcnx2', target=target)
