"""Cascade Mask R-CNN with ConvNeXt V2 atto on 64 labelled demo scenes; small enough for two CPU cores.

Run:    python tools/train.py configs/demo/cascade-mask-rcnn_convnextv2-atto_demo.py \
            --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/fcmae_convnextv2-atto_demo/epoch_18.pth
Needs:  data/demo (python tools/prepare_data.py demo); no GPU; without a checkpoint it starts from random weights
Expect: box AP 0.412 and mask AP 0.417 from FCMAE after 500 iterations (train_cfg.max_iters=500, one seed, 2 cores of
        an AMD EPYC, Python 3.11.7, torch 2.12.1, onedl-mmdetection 3.5.1, 2026-11-21, with pictures in another order
        than now); at 1000 not run yet
Source: the heads of Cascade Mask R-CNN, shrunken as those of the Mask R-CNN beside it: 64 channels, 64 RoIs a stage,
        one box conv and two mask convolutions, BatchNorm, 128 px; the learning rate and the schedule are ours
"""
_base_ = [
    '../_base_/models/cascade-mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/demo_coco.py',
    '../_base_/schedules/demo_detection.py', '../_base_/runtime/mmdet.py',
]

model = dict(
    backbone=dict(arch='atto'),
    neck=dict(in_channels=[40, 80, 160, 320], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=[
            dict(
                type='mmcnx2.Float32BBoxHead',
                num_shared_convs=1,
                num_shared_fcs=1,
                in_channels=64,
                conv_out_channels=64,
                fc_out_channels=128,
                roi_feat_size=7,
                num_classes=6,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder',
                    target_means=[0., 0., 0., 0.],
                    target_stds=[centre_std, centre_std, size_std, size_std]),
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                norm_cfg=dict(type='BN', requires_grad=True),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0))
            for centre_std, size_std in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
        ],
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=6)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner', pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou, match_low_quality=False,
                    ignore_iof_thr=-1),
                sampler=dict(type='RandomSampler', num=64, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
                mask_size=28,
                pos_weight=-1,
                debug=False)
            for iou in (0.5, 0.6, 0.7)
        ]),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=30)))

default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=250, max_keep_ckpts=1, save_best=None, rule=None))
log_processor = dict(window_size=20, by_epoch=False)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
