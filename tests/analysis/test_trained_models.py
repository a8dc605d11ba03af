"""Models to look at: all values of the checkpoint arrive, random ones follow the seed, and origins differ."""

import pytest
import torch
from micro_pretraining import CONFIG, write_checkpoint, write_config
from mmengine.config import Config

from mmcnx2.analysis.trained_models import file_sha256, load_trained_backbone, load_trained_fcmae
from mmcnx2.checkpoint import CheckpointError, convert_state_dict


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_config()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize('layout', ['mmcnx2', 'meta', 'meta-sparse'])
def test_fcmae_of_ours_and_of_the_official_code(cfg, layout):
    model = write_checkpoint(cfg)
    weights = model.state_dict()
    if layout != 'mmcnx2':
        torch.save({'model': convert_state_dict(weights, source='mmcnx2', target=layout)}, 'checkpoint.pth')
    loaded = load_trained_fcmae(cfg, 'checkpoint.pth')
    assert same(loaded.state_dict(), weights) and not loaded.training


def test_what_does_not_fit_is_refused(cfg):
    write_checkpoint(cfg)
    other = write_config(CONFIG.replace('12, 16]', '12, 24]'), 'other.py')
    with pytest.raises(CheckpointError, match='another architecture'):
        load_trained_fcmae(other, 'checkpoint.pth')
    with pytest.raises(CheckpointError, match='another architecture'):
        load_trained_backbone(other, 'checkpoint.pth')
    classifier = Config(dict(model=dict(type='mmcnx2.ConvNeXtV2', arch='atto')))
    with pytest.raises(ValueError, match='reconstructs nothing'):
        load_trained_fcmae(classifier, 'checkpoint.pth')
    with pytest.raises(ValueError, match=r'no model\.backbone'):
        load_trained_backbone(classifier, 'checkpoint.pth')


def test_the_backbone_of_a_pretraining_run(cfg):
    model = write_checkpoint(cfg)
    backbone = load_trained_backbone(cfg, 'checkpoint.pth')
    assert same(backbone.model.state_dict(), model.backbone.state_dict())  # without norms that nobody trained
    assert backbone.digest == file_sha256('checkpoint.pth')
    pictures = torch.rand(2, 3, 64, 64) * 255
    images = model.data_preprocessor({'inputs': pictures, 'data_samples': None})['inputs']
    assert torch.equal(backbone.images(pictures), images)
    assert torch.equal(backbone.model(images)[-1], model.backbone(images)[-1])


def test_the_backbone_of_a_classifier_keeps_its_pooling(cfg):
    write_checkpoint(cfg)
    classifier = write_config(
        CONFIG.replace("type='mmcnx2.FCMAE'", "type='ImageClassifier'")
        .replace("type='mmcnx2.ConvNeXtV2',", "type='mmcnx2.ConvNeXtV2', gap_before_final_norm=True,")
        .replace('SelfSupDataPreprocessor', 'ClsDataPreprocessor'),
        'classifier.py',
    )
    backbone = load_trained_backbone(classifier, 'checkpoint.pth')
    assert backbone.model(backbone.images(torch.rand(2, 3, 64, 64)))[-1].shape == (2, 16)


def test_random_weights_follow_the_seed_and_leave_the_generator(cfg):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (load_trained_backbone(cfg, 'random', seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first.model.state_dict(), again.model.state_dict()) and first.digest == again.digest
    assert not same(first.model.state_dict(), other.model.state_dict()) and first.digest != other.digest
    assert first.settings == other.settings


def test_settings_tell_normalisations_apart(cfg):
    first = load_trained_backbone(cfg, 'random').settings
    assert first != load_trained_backbone(write_config(CONFIG.replace('123.675', '0.0'), 'b.py'), 'random').settings
