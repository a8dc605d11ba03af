"""ConvNeXt V2 femto on ImageNet-1K, 224 px, 600 epochs of fine-tuning after FCMAE.

Run:    bash tools/dist_train.sh configs/imagenet/convnextv2-femto_8xb128-amp-600e-fcmae_in1k.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=FCMAE.pth
Needs:  data/imagenet (train/ and val/ with a folder per class); 8 GPUs with bfloat16, 128 images each (memory not
        measured); the checkpoint of configs/pretrain/fcmae_convnextv2-femto_8xb512-amp-1600e_in1k.py, or other FCMAE
        weights of this size. Fewer: keep the 1024 images per step with optim_wrapper.accumulative_counts=N and
        custom_hooks.1.interval=N, or set auto_scale_lr.enable=True
Expect: 78.5% ImageNet-1K top-1 of the averaged weights (published: paper, Tables 14 and 15); with our code not run yet
Source: arXiv 2301.00808, Tables 9 to 11; random erasing and the end of the cosine at 1e-6 from the official script.
        How the images are split over GPUs is our choice
"""
_base_ = [
    '../_base_/models/classifier_convnextv2.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_finetune.py', '../_base_/runtime/mmpretrain_classification.py',
]
lr = 2e-4 * 8 * 128 / 256

model = dict(
    backbone=dict(arch='femto', drop_path_rate=0.0),
    head=dict(in_channels=384, loss=dict(label_smooth_val=0.2)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.3), dict(type='CutMix', alpha=0.3)]))
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(
    optimizer=dict(lr=lr, weight_decay=0.05), paramwise_cfg=dict(layer_decay_rate=0.9, grouping='single'))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / lr, begin=0, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=600)
auto_scale_lr = dict(base_batch_size=8 * 128, enable=False)

del lr
