"""FCMAE pretraining of ConvNeXt V2 atto on one GPU, the pictures kept in its memory, each step one CUDA graph.

For small networks on small pictures, where decoding and starting kernels would take longer than computing.

Run:    python tools/train.py configs/demo/fcmae_convnextv2-atto_1xb1024-amp_demo.py
Needs:  data/demo (python tools/prepare_data.py demo), or your own pictures as train_dataloader.dataset.source (10,000
        at 192 px take 1.1 GB); a GPU: without one everything works the same, slowly
Expect: a loss of about 1.0 at the start; 37,000 images per second, and 0.62 after 300 steps on 2,000 demo scenes with
        max_iters=300 (one NVIDIA H100 and 16 cores of its host, Python 3.12.3, torch 2.11.0, 2026-11-26)
Source: the paper's recipe (arXiv 2301.00808, Table 8); 128 px crops of 192 px scenes, a decoder of width 256, batch and
        learning rate are ours
"""
_base_ = ['../_base_/models/fcmae_convnextv2.py', '../_base_/runtime/mmpretrain.py']

model = dict(backbone=dict(arch='atto'), neck=dict(decoder_channels=256))

train_dataloader = dict(
    batch_size=1024,
    num_workers=0,
    drop_last=True,
    collate_fn=dict(type='mmcnx2.whole_batch'),
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmcnx2.ResidentImages',
        source='data/demo/unlabelled',
        side=192,
        pipeline=[
            dict(type='mmcnx2.LoadRandomResizedCrop', scale=128, crop_ratio_range=(0.2, 1.0)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ]))

# No end is written down, so another train_cfg.max_iters stretches the cosine with it.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1000)
optim_wrapper = dict(
    type='mmcnx2.BF16OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True),
    constructor='mmcnx2.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=100, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min=0., begin=100, by_epoch=False),
]
custom_hooks = [dict(type='mmcnx2.AverageLossHook'), dict(type='mmcnx2.CapturedStepHook')]
default_hooks = dict(
    logger=dict(interval=50), checkpoint=dict(interval=500, by_epoch=False, max_keep_ckpts=1),
    reconstruction=dict(interval=0), collapse=dict(interval=0))
log_processor = dict(window_size=50, by_epoch=False)
