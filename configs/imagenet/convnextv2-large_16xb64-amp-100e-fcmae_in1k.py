"""ConvNeXt V2 large on ImageNet-1K, 224 px, 100 epochs of fine-tuning after FCMAE.

Run:    GPUS=16 bash tools/slurm_train.sh PARTITION JOB \
            configs/imagenet/convnextv2-large_16xb64-amp-100e-fcmae_in1k.py WORK_DIR \
            --cfg-options model.backbone.init_cfg.checkpoint=FCMAE.pth
Needs:  data/imagenet (train/ and val/ with a folder per class); 16 GPUs with bfloat16, 64 images each (memory not
        measured); the checkpoint of configs/pretrain/fcmae_convnextv2-large_32xb128-amp-1600e_in1k.py, or other FCMAE
        weights of this size. Fewer: keep the 1024 images per step with optim_wrapper.accumulative_counts=N and
        custom_hooks.1.interval=N, or set auto_scale_lr.enable=True
Expect: 85.8% ImageNet-1K top-1 of the averaged weights (published: paper, Tables 4, 14 and 15); with our code not run
        yet
Source: arXiv 2301.00808, Tables 9 to 11; random erasing and the end of the cosine at 1e-6 from the official script.
        The paper's table prints a base learning rate of 6.25e-3; 6.25e-4 is what its official command for base has.
        How the images are split over GPUs is our choice
"""
_base_ = [
    '../_base_/models/classifier_convnextv2.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_finetune.py', '../_base_/runtime/mmpretrain_classification.py',
]
lr = 6.25e-4 * 16 * 64 / 256

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2),
    head=dict(in_channels=1536, loss=dict(label_smooth_val=0.1)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(
    optimizer=dict(lr=lr, weight_decay=0.05), paramwise_cfg=dict(layer_decay_rate=0.6, grouping='group'))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=20, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / lr, begin=20, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=100)
auto_scale_lr = dict(base_batch_size=16 * 64, enable=False)

del lr
