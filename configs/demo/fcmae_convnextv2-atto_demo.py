"""FCMAE pretraining of ConvNeXt V2 atto on the unlabelled demo scenes; small enough for two CPU cores.

Run:    python tools/train.py configs/demo/fcmae_convnextv2-atto_demo.py
Needs:  data/demo (python tools/prepare_data.py demo); no GPU
Expect: a loss of about 1.0 at the start (1.0 is what predicting each cell's mean scores) and 0.64 at the end, after
        5 minutes (make demo, 2 cores of an AMD EPYC with other jobs beside, Python 3.11.7, torch 2.12.1, 2026-11-25)
Source: the paper's recipe (arXiv 2301.00808, Table 8); 128 px crops of 192 px scenes, a decoder of width 256, batch 64
        and its learning rate are ours, to fit the budget
"""
_base_ = ['../_base_/models/fcmae_convnextv2.py', '../_base_/runtime/mmpretrain.py']

model = dict(backbone=dict(arch='atto'), neck=dict(decoder_channels=256))

train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='mmcnx2.EpochSeededSampler', shuffle=True),
    dataset=dict(
        type='mmcnx2.UnlabelledImages',
        source='data/demo/unlabelled',
        pipeline=[
            dict(type='mmcnx2.LoadImage'),
            dict(
                type='RandomResizedCrop', scale=128, crop_ratio_range=(0.2, 1.0), backend='pillow',
                interpolation='bicubic'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ]))

# No end is written down, so another train_cfg.max_epochs stretches the cosine with it.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=18)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.05),
    constructor='mmcnx2.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0., begin=1, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=3, max_keep_ckpts=1), reconstruction=dict(interval=6),
    collapse=dict(interval=6))
log_processor = dict(window_size=10)
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend='gloo'))
