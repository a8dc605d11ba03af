"""Linear probe of ConvNeXt V2 atto on class folders, by default the objects of the demo scenes; small enough for a CPU.

Run:    python tools/train.py configs/demo/linear-probe_convnextv2-atto_demo.py \
            --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/fcmae_convnextv2-atto_demo/epoch_18.pth
Needs:  data/demo_objects/train and val, a folder per class (python tools/benchmark/class_folders.py scenes data/demo
        --out data/demo_objects); no GPU; without a checkpoint the frozen weights are random ones. Own class folders:
        data_root of train_, val_ and test_dataloader.dataset, num_classes of model.head and model.data_preprocessor
Expect: 67.9% top-1 of the 224 validation objects from the weights of make demo, 62.5% from random ones, after 30 epochs
        of 234 objects, 5 minutes each beside other jobs (2 cores of an AMD EPYC, Python 3.11.7, torch 2.12.1,
        2026-11-25; one seed)
Source: MAE's protocol (arXiv 2111.06377, appendix A.1: crops and flips, a norm over the batch without scale and shift
        before the classifier, no weight decay), with SGD where it has LARS for its batch of 16384; learning rate and
        length are ours
"""
_base_ = ['../_base_/models/linear-probe_convnextv2.py', '../_base_/runtime/mmpretrain_classification.py']

model = dict(
    data_preprocessor=dict(num_classes=6),
    backbone=dict(arch='atto'),
    neck=[dict(type='GlobalAveragePooling'), dict(type='ClsBatchNormNeck', input_features=320)],
    head=dict(in_channels=320, num_classes=6))

train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='mmcnx2.EpochSeededSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='data/demo_objects',
        data_prefix='train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                type='RandomResizedCrop', scale=128, crop_ratio_range=(0.2, 1.0), backend='pillow',
                interpolation='bicubic'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ]))
val_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root='data/demo_objects',
        data_prefix='val',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=146, edge='short', backend='pillow', interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=128),
            dict(type='PackInputs'),
        ]))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

# No end is written down, so another train_cfg.max_epochs stretches the cosine with it.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=30, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.),
    constructor='mmcnx2.LayerDecayOptimWrapperConstructor')
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0., by_epoch=True, convert_to_iter_based=True)]
custom_hooks = [dict(type='mmcnx2.AverageLossHook')]
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=10, max_keep_ckpts=1, save_best=None, rule=None))
log_processor = dict(window_size=10)
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend='gloo'))
