"""Detector parts under bfloat16 autocast: equal to mmdet's without it, and exact coordinates with it."""

import pytest
import torch
from mmdet.models import FCNMaskHead, RPNHead, Shared2FCBBoxHead, SingleRoIExtractor
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

import mmcnx2
from mmcnx2.models.detection import Float32BBoxHead, Float32MaskHead, Float32RoIExtractor, Float32RPNHead

BF16 = dict(device_type='cpu', dtype=torch.bfloat16)
ROI_EXTRACTOR = dict(
    roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0), out_channels=4, featmap_strides=[4, 8]
)
RPN = dict(
    in_channels=4,
    feat_channels=4,
    anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[1.0], strides=[4, 8]),
    bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
    loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
    loss_bbox=dict(type='L1Loss'),
)
PAIRS = {
    'rpn': (Float32RPNHead, RPNHead, RPN),
    'box': (Float32BBoxHead, Shared2FCBBoxHead, dict(in_channels=4, fc_out_channels=8, num_classes=3)),
    'mask': (Float32MaskHead, FCNMaskHead, dict(num_convs=1, in_channels=4, conv_out_channels=4, num_classes=3)),
}


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def flat(outputs):
    return [outputs] if torch.is_tensor(outputs) else [tensor for output in outputs for tensor in flat(output)]


@pytest.mark.parametrize('name', PAIRS)
def test_heads_equal_mmdets_without_autocast_and_leave_float32_with_it(name):
    ours_type, theirs_type, options = PAIRS[name]
    both = dict(num_shared_fcs=2) if name == 'box' else {}
    ours, theirs = ours_type(**options, **both), theirs_type(**options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 7, 7)
    x = [x] if name == 'rpn' else x
    expected = flat(theirs(x))
    for a, b in zip(flat(ours(x)), expected, strict=True):
        assert torch.equal(a, b)
    with torch.autocast(**BF16):
        rounded = flat(ours(x))
        assert {tensor.dtype for tensor in flat(theirs(x))} == {torch.bfloat16}, 'mmdet has changed; is ours needed?'
    for a, b in zip(rounded, expected, strict=True):
        assert a.dtype == torch.float32
        assert not torch.equal(a, b), 'the layers did not run in bfloat16'
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)


def test_rois_keep_their_coordinates():
    """The value of a ramp at a position is the position: features say where they were taken from."""
    ramp = torch.arange(320.0).expand(1, 4, 320, 320).contiguous()
    features = (ramp, ramp[..., ::2, ::2].contiguous())
    rois = torch.tensor([[0.0, 1001.0, 40.0, 1049.0, 88.0]])
    extractor = Float32RoIExtractor(**ROI_EXTRACTOR)
    plain = SingleRoIExtractor(**ROI_EXTRACTOR)(features, rois)
    assert plain.mean().item() == pytest.approx((1001 + 1049) / 2 / 4 - 0.5)
    features = [feature.to(torch.float16) for feature in features]  # ramp values that float16 holds exactly
    with torch.autocast(**BF16):
        assert torch.equal(extractor(features, rois), plain)
        assert torch.equal(extractor(features, rois.double()), plain)


def test_gradients_reach_the_features_in_their_precision():
    feature = torch.randn(1, 4, 16, 16).bfloat16().requires_grad_()
    with torch.autocast(**BF16):
        Float32RoIExtractor(**ROI_EXTRACTOR)((feature, feature), torch.tensor([[0, 4.0, 4, 40, 40]])).sum().backward()
    assert feature.grad.dtype == torch.bfloat16 and feature.grad.sum().item() == pytest.approx(4 * 49, rel=0.01)


def small_detector(name):
    cfg = Config.fromfile(mmcnx2.configs_dir() / 'coco' / name).model
    heads = cfg.roi_head.bbox_head if isinstance(cfg.roi_head.bbox_head, list) else [cfg.roi_head.bbox_head]
    for head in heads:
        head.update(fc_out_channels=16, num_classes=3)
        if 'conv_out_channels' in head:
            head.update(num_shared_convs=1, conv_out_channels=16, norm_cfg=dict(type='BN'))
    cfg.roi_head.mask_head.update(num_convs=1, num_classes=3)
    cfg.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    cfg.train_cfg.rpn_proposal.max_per_img = 20
    return cfg


def a_batch():
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 8:40, 8:40] = 1
    sample = DetDataSample(
        metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64), scale_factor=(1, 1), img_id=1)
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8, 40, 40]]), labels=torch.tensor([1]), masks=BitmapMasks(masks.numpy(), 64, 64)
    )
    return dict(inputs=[torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)], data_samples=[sample])


@pytest.mark.parametrize(
    'name',
    [
        'mask-rcnn_convnextv2-atto_fpn_8xb4-amp-lsj-3x-fcmae_coco.py',
        'cascade-mask-rcnn_convnextv2-atto_fpn_8xb2-amp-ms-crop-3x_coco.py',
    ],
)
def test_detectors_train_and_test_in_bfloat16(name):
    torch.manual_seed(0)
    cfg = small_detector(name)
    model = MODELS.build(ConfigDict(cfg))
    data = model.data_preprocessor(a_batch(), True)
    with torch.autocast(**BF16):
        assert {map_.dtype for map_ in model.extract_feat(data['inputs'])} == {torch.bfloat16}
        losses = model(**data, mode='loss')
    loss, logged = model.parse_losses(losses)
    assert all(value.dtype == torch.float32 for key, value in logged.items() if 'loss' in key)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad(), torch.autocast(**BF16):
        found = model.test_step(a_batch())[0].pred_instances
    assert len(found) == 5 and found.bboxes.dtype == found.scores.dtype == torch.float32
