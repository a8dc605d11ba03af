"""Mask R-CNN with ConvNeXt V2 atto on 64 labelled demo scenes; small enough for two CPU cores.

Run:    python tools/train.py configs/demo/mask-rcnn_convnextv2-atto_demo.py \
            --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/fcmae_convnextv2-atto_demo/epoch_18.pth
Needs:  data/demo (python tools/prepare_data.py demo); no GPU; without a checkpoint it starts from random weights
Expect: box AP 0.351 and mask AP 0.386 from scratch, 0.359 and 0.409 from FCMAE, after 7 minutes each (make demo, one
        seed, 2 cores of an AMD EPYC with other jobs beside, Python 3.11.7, torch 2.12.1, onedl-mmdetection 3.5.1,
        2026-11-25)
Source: the heads of Mask R-CNN, shrunken to fit the budget: 64 channels, 64 RoIs, two mask convolutions, 128 px; the
        learning rate and the schedule are ours, the same with and without a checkpoint
"""
_base_ = [
    '../_base_/models/mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/demo_coco.py',
    '../_base_/schedules/demo_detection.py', '../_base_/runtime/mmdet.py',
]

model = dict(
    backbone=dict(arch='atto'),
    neck=dict(in_channels=[40, 80, 160, 320], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=128, num_classes=6),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=6)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=30)))

default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=250, max_keep_ckpts=1, save_best=None, rule=None))
log_processor = dict(window_size=20, by_epoch=False)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
