"""ConvNeXt V2 tiny on ImageNet-22K, 224 px, 90 epochs of fine-tuning after FCMAE.

Run:    GPUS=32 bash tools/slurm_train.sh PARTITION JOB \
            configs/imagenet/convnextv2-tiny_32xb128-amp-90e-fcmae_in22k.py WORK_DIR \
            --cfg-options model.backbone.init_cfg.checkpoint=FCMAE.pth
Needs:  data/imagenet22k (21,841 folders, one per class); 32 GPUs with bfloat16, 128 images each (memory not measured);
        the checkpoint of configs/pretrain/fcmae_convnextv2-tiny_8xb512-amp-1600e_in1k.py, or other FCMAE weights of
        this size. Fewer: keep the 4096 images per step with optim_wrapper.accumulative_counts=N, or set
        auto_scale_lr.enable=True
Expect: not run yet; the paper has no number for this stage; after ImageNet-1K on top 83.9% at 224 px and 85.1% at 384
        px (published: paper, Tables 14 and 15)
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
    backbone=dict(arch='tiny', drop_path_rate=0.0),
    head=dict(num_classes=21841, in_channels=768, loss=dict(label_smooth_val=0.1)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(
    optimizer=dict(lr=2.5e-4 * 32 * 128 / 256), paramwise_cfg=dict(layer_decay_rate=0.9, grouping='single'))
auto_scale_lr = dict(base_batch_size=32 * 128, enable=False)
