"""ConvNeXt V2 huge on ImageNet-22K, 224 px, 90 epochs of fine-tuning after FCMAE.

Run:    GPUS=64 bash tools/slurm_train.sh PARTITION JOB \
            configs/imagenet/convnextv2-huge_64xb64-amp-90e-fcmae_in22k.py WORK_DIR \
            --cfg-options model.backbone.init_cfg.checkpoint=FCMAE.pth
Needs:  data/imagenet22k (21,841 folders, one per class); 64 GPUs with bfloat16, 64 images each (memory not measured);
        the checkpoint of configs/pretrain/fcmae_convnextv2-huge_32xb128-amp-1600e_in1k.py, or other FCMAE weights of
        this size. Fewer: keep the 4096 images per step with optim_wrapper.accumulative_counts=N, or set
        auto_scale_lr.enable=True
Expect: not run yet; the paper has no number for this stage; from this stage at 384 px, after ImageNet-1K on top 88.7%
        at 384 px and 88.9% at 512 px (published: paper, Tables 5, 14 and 15)
Source: arXiv 2301.00808, Table 12; random erasing and the end of the cosine at 1e-6 from the official script. Layer
        decay per block, as in fine-tuning this size, is our choice: the paper does not repeat it for this stage. How
        the images are split over GPUs is ours too
"""
_base_ = [
    '../_base_/models/classifier_convnextv2.py', '../_base_/datasets/imagenet22k_224.py',
    '../_base_/schedules/imagenet22k_90e.py', '../_base_/runtime/mmpretrain_classification.py',
]
model = dict(
    data_preprocessor=dict(num_classes=21841),
    backbone=dict(arch='huge', drop_path_rate=0.3),
    head=dict(num_classes=21841, in_channels=2816, loss=dict(label_smooth_val=0.1)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(
    optimizer=dict(lr=2.5e-4 * 64 * 64 / 256), paramwise_cfg=dict(layer_decay_rate=0.8, grouping='single'))
auto_scale_lr = dict(base_batch_size=64 * 64, enable=False)
