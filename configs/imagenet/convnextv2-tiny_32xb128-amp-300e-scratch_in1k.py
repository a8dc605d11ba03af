"""ConvNeXt V2 tiny on ImageNet-1K, 224 px, 300 epochs of supervised training from scratch.

Run:    GPUS=32 bash tools/slurm_train.sh PARTITION JOB \
            configs/imagenet/convnextv2-tiny_32xb128-amp-300e-scratch_in1k.py WORK_DIR
Needs:  data/imagenet (train/ and val/ with a folder per class); 32 GPUs with bfloat16, 128 images each (memory not
        measured). Fewer: keep the 4096 images per step with optim_wrapper.accumulative_counts=N and
        custom_hooks.1.interval=N, or set auto_scale_lr.enable=True
Expect: 82.5% ImageNet-1K top-1 (published: paper, Tables 14 and 15); with our code not run yet
Source: our choice, since arXiv 2301.00808 gives no settings for its supervised models: the recipe in the official
        repository of ConvNeXt V1, and its drop path for this size. No supervised V2 weights were released
"""
_base_ = [
    '../_base_/models/classifier_convnextv2.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_scratch_300e.py', '../_base_/runtime/mmpretrain_classification.py',
]
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.1),
    head=dict(
        in_channels=768,
        loss=dict(label_smooth_val=0.1),
        init_cfg=dict(_delete_=True, type='TruncNormal', layer='Linear', std=0.02, bias=0.)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=4e-3 * 32 * 128 / 4096))
auto_scale_lr = dict(base_batch_size=32 * 128, enable=False)
