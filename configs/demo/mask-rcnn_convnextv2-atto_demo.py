"""Mask R-CNN with ConvNeXt V2 atto on 64 labelled demo scenes; small enough for two CPU cores.

Run:    python tools/train.py configs/demo/mask-rcnn_convnextv2-atto_demo.py \
            --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/fcmae_convnextv2-atto_demo/epoch_18.pth
Needs:  data/demo (python tools/prepare_data.py demo); no GPU; without a checkpoint it starts from random weights
Expect: box AP 0.351 and mask AP 0.394 from scratch, 0.358 and 0.388 from FCMAE, after 5 minutes each (make demo, one
        seed, 2 cores of an AMD EPYC, Python 3.11.7, torch 2.12.1, onedl-mmdetection 3.5.1, 2026-11-20)
Source: the heads of Mask R-CNN, shrunken to fit the budget: 64 channels, 64 RoIs, two mask convolutions, 128 px; the
        learning rate and the schedule are ours, the same with and without a checkpoint
"""
_base_ = ['../_base_/models/mask-rcnn_convnextv2_fpn.py', '../_base_/runtime/mmdet.py']

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

train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        metainfo=dict(classes=('circle', 'square', 'triangle', 'star', 'ring', 'cross')),
        data_root='data/demo/coco/',
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='RandomResize', scale=(128, 128), ratio_range=(0.75, 1.25), keep_ratio=True),
            dict(type='RandomCrop', crop_size=(128, 128), recompute_bbox=True, allow_negative_crop=True),
            dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2), keep_empty=False),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ]))
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        metainfo=dict(classes=('circle', 'square', 'triangle', 'star', 'ring', 'cross')),
        data_root='data/demo/coco/',
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(128, 128), keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
        ]))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', ann_file='data/demo/coco/annotations/instances_val.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator

# No end is written down, so another train_cfg.max_iters stretches the decay with it; the test comes once, at the end.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1000, val_interval=1000000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=10.),
    constructor='mmcnx2.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, grouping='group'))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=20, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min=0., begin=20, by_epoch=False),
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=250, max_keep_ckpts=1, save_best=None, rule=None))
log_processor = dict(window_size=20, by_epoch=False)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
