"""An init_cfg in any of mmengine's forms is loaded strictly, or refused; never by mmengine's lenient way."""

import pytest
import torch
from checkpoint_cases import ARCH, cases
from mmengine.config import Config

from mmcnx2.checkpoint import load_pretrained_backbone, pretrained_options
from mmcnx2.engine.run_config import trust_init_cfgs
from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2
from mmcnx2.models.fcmae import FCMAE

NORMAL = dict(type='Normal', layer='Linear', std=0.01)


@pytest.fixture
def path(tmp_path):
    state_dict, _ = cases()['mmcnx2']['fcmae']
    torch.save(dict(state_dict={name: tensor.float() for name, tensor in state_dict.items()}), tmp_path / 'run.pth')
    return str(tmp_path / 'run.pth')


def test_a_list_of_one_is_loaded_as_it_would_be_alone(path):
    expected = torch.load(path)['state_dict']
    backbone = ConvNeXtV2(ARCH, init_cfg=[dict(type='Pretrained', checkpoint=path, map_location='cpu')])
    backbone.init_weights()
    assert backbone.stages[2][1].grn.gamma.equal(expected['backbone.stages.2.1.grn.gamma'])
    model = FCMAE(
        dict(type='mmcnx2.ConvNeXtV2', arch=ARCH),
        neck=dict(decoder_channels=32),
        init_cfg=[dict(type='Pretrained', checkpoint=path)],
    )
    model.init_weights()
    assert all(tensor.equal(expected[name]) for name, tensor in model.state_dict().items())


def test_other_forms_are_mmengines_to_handle():
    for init_cfg in (None, [], NORMAL, [NORMAL, NORMAL]):
        assert pretrained_options(init_cfg, load_pretrained_backbone) is None
    backbone = ConvNeXtV2(ARCH, init_cfg=dict(type='Constant', layer='Linear', val=3.0))
    backbone.init_weights()
    assert (backbone.stages[0][0].pwconv1.weight == 3).all()


@pytest.mark.parametrize(
    ('init_cfg', 'message'),
    [
        ([NORMAL, dict(type='Pretrained', checkpoint='x.pth')], r"beside \['Normal'\].* give it alone"),
        ([dict(type='Pretrained', checkpoint='x.pth')] * 2, 'beside another one'),
        (dict(type='Pretrained', checkpoint='x.pth', strict=False), r"unknown keys \['strict'\].*'use_ema'"),
    ],
)
def test_what_would_be_half_loaded_is_refused(init_cfg, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ConvNeXtV2(ARCH, init_cfg=init_cfg).init_weights()


def test_unsafe_load_reaches_the_models_that_read_files_themselves():
    head = dict(type='mmdet.FPN', init_cfg=dict(type='Pretrained', checkpoint='neck.pth'))
    backbone = dict(type='mmcnx2.ConvNeXtV2', init_cfg=dict(type='Pretrained', checkpoint='run.pth'))
    cfg = Config(dict(model=dict(type='mmdet.MaskRCNN', backbone=backbone, neck=head)))
    trust_init_cfgs(cfg)
    assert cfg.model.backbone.init_cfg.unsafe_load is True and 'unsafe_load' not in cfg.model.neck.init_cfg
