"""ConvNeXt V2 base on ImageNet-1K, 224 px, 100 epochs of fine-tuning after FCMAE, for the ablations of GRN.

Run:    GPUS=16 bash tools/slurm_train.sh PARTITION JOB \
            configs/ablation/convnextv2-base_16xb64-amp-100e-fcmae_in1k-grn.py WORK_DIR \
            --cfg-options model.backbone.init_cfg.checkpoint=FCMAE.pth model.backbone.response_norm.aggregation=l1
        (the options of model.backbone of the pretraining row; GRN in pretraining only: model.backbone.use_grn=False
        model.backbone.init_cfg.change_grn=True; in fine-tuning only, from a checkpoint without:
        model.backbone.init_cfg.change_grn=True)
Needs:  data/imagenet (train/ and val/ with a folder per class); 16 GPUs with bfloat16, 64 images each; the checkpoint
        of a row of configs/ablation/fcmae_convnextv2-base_32xb128-amp-800e_in1k-grn.py
Expect: 84.6% ImageNet-1K top-1 of the averaged weights (published: paper, Table 2; GRN in pretraining only 78.8, in
        fine-tuning only 80.6); with our code not run yet
Source: as configs/imagenet/convnextv2-base_16xb64-amp-100e-fcmae_in1k.py
"""
_base_ = [
    '../_base_/models/classifier_convnextv2.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_finetune.py', '../_base_/runtime/mmpretrain_classification.py',
]
lr = 6.25e-4 * 16 * 64 / 256

model = dict(
    backbone=dict(arch='base', response_norm=dict(name='grn'), drop_path_rate=0.1),
    head=dict(in_channels=1024, loss=dict(label_smooth_val=0.1)),
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
