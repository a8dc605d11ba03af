"""ConvNeXt V2 huge on ImageNet-1K, 224 px, 50 epochs of fine-tuning after FCMAE.

Run:    GPUS=32 bash tools/slurm_train.sh PARTITION JOB \
            configs/imagenet/convnextv2-huge_32xb32-amp-50e-fcmae_in1k.py WORK_DIR \
            --cfg-options model.backbone.init_cfg.checkpoint=FCMAE.pth
Needs:  data/imagenet (train/ and val/ with a folder per class); 32 GPUs with bfloat16, 32 images each (memory not
        measured); the checkpoint of configs/pretrain/fcmae_convnextv2-huge_32xb128-amp-1600e_in1k.py, or other FCMAE
        weights of this size. Fewer: keep the 1024 images per step with optim_wrapper.accumulative_counts=N and
        custom_hooks.1.interval=N, or set auto_scale_lr.enable=True
Expect: 86.3% ImageNet-1K top-1 of the averaged weights (published: paper, Tables 4, 14 and 15); with our code not run
        yet
Source: arXiv 2301.00808, Tables 9 to 11; random erasing and the end of the cosine at 1e-6 from the official script.
        Layer decay counts blocks one by one (the paper groups them for base and large only), which leaves the stem
        3e-5 of the learning rate. How the images are split over GPUs is our choice
"""
_base_ = [
    '../_base_/models/classifier_convnextv2.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_finetune.py', '../_base_/runtime/mmpretrain_classification.py',
]
lr = 1.25e-3 * 32 * 32 / 256

model = dict(
    backbone=dict(arch='huge', drop_path_rate=0.3),
    head=dict(in_channels=2816, loss=dict(label_smooth_val=0.1)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(
    optimizer=dict(lr=lr, weight_decay=0.05), paramwise_cfg=dict(layer_decay_rate=0.75, grouping='single'))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=10, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / lr, begin=10, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=50)
auto_scale_lr = dict(base_batch_size=32 * 32, enable=False)

del lr
