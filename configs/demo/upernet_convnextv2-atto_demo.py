"""UPerNet with ConvNeXt V2 atto on 64 labelled demo scenes; small enough for two CPU cores.

Run:    python tools/train.py configs/demo/upernet_convnextv2-atto_demo.py \
            --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/fcmae_convnextv2-atto_demo/epoch_18.pth
Needs:  data/demo (python tools/prepare_data.py demo); no GPU; without a checkpoint it starts from random weights
Expect: mIoU 0.623 from scratch, 0.667 from FCMAE, after 4.5 minutes each (make demo, one seed, 2 cores of an AMD EPYC
        with other jobs beside, Python 3.11.7, torch 2.12.1, onedl-mmsegmentation 1.4.2, 2026-11-25)
Source: UPerNet shrunken to fit the budget: 64 channels, BatchNorm, 128 px crops; the learning rate and the schedule are
        ours, the same with and without a checkpoint
"""
_base_ = ['../_base_/models/upernet_convnextv2.py', '../_base_/runtime/mmseg.py']

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch='atto'),
    decode_head=dict(
        in_channels=[40, 80, 160, 320], channels=64, num_classes=7, norm_cfg=dict(type='BN', requires_grad=True)),
    auxiliary_head=dict(
        in_channels=160, channels=64, num_classes=7, norm_cfg=dict(type='BN', requires_grad=True)),
    test_cfg=dict(_delete_=True, mode='whole'))

tta_pipeline = [  # multi-scale test
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (96, 128, 160)],
            [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0., 1.)],
            [dict(type='LoadAnnotations', reduce_zero_label=False)],
            [dict(type='PackSegInputs')],
        ]),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='mmcnx2.EpochSeededSampler', shuffle=True, infinite=True),
    dataset=dict(
        type='BaseSegDataset',
        metainfo=dict(classes=('background', 'circle', 'square', 'triangle', 'star', 'ring', 'cross')),
        img_suffix='.jpg',
        seg_map_suffix='.png',
        reduce_zero_label=False,
        data_root='data/demo/ade',
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', reduce_zero_label=False),
            dict(type='RandomResize', scale=(128, 128), ratio_range=(0.75, 1.25), keep_ratio=True),
            dict(type='RandomCrop', crop_size=(128, 128), cat_max_ratio=0.9),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackSegInputs'),
        ]))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        metainfo=dict(classes=('background', 'circle', 'square', 'triangle', 'star', 'ring', 'cross')),
        img_suffix='.jpg',
        seg_map_suffix='.png',
        reduce_zero_label=False,
        data_root='data/demo/ade',
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(128, 128), keep_ratio=True),
            dict(type='LoadAnnotations', reduce_zero_label=False),
            dict(type='PackSegInputs'),
        ]))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

# No end is written down, so another train_cfg.max_iters stretches the decay with it; the test comes once, at the end.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=900, val_interval=1000000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmcnx2.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, grouping='group'))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=20, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0., begin=20, by_epoch=False),
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=225, max_keep_ckpts=1, save_best=None, rule=None))
log_processor = dict(window_size=20)
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend='gloo'))
