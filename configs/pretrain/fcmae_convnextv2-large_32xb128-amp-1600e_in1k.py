"""FCMAE pretraining of ConvNeXt V2 large, 1600 epochs on ImageNet-1K without labels.

Run:    GPUS=32 bash tools/slurm_train.sh PARTITION JOB \
            configs/pretrain/fcmae_convnextv2-large_32xb128-amp-1600e_in1k.py WORK_DIR
Needs:  data/imagenet/train (pictures in any folders); 32 GPUs with bfloat16, 128 images each. Fewer: keep the 4096
        images per step with optim_wrapper.accumulative_counts, or set auto_scale_lr.enable=True. Memory not measured
Expect: 85.8% ImageNet-1K top-1 after fine-tuning (published: paper, Tables 4, 14 and 15); with our code not run yet
Source: recipe of arXiv 2301.00808, Table 8, and its official training script; how the images are split over GPUs is
        our choice
"""
_base_ = [
    '../_base_/models/fcmae_convnextv2.py', '../_base_/datasets/imagenet_unlabelled_224.py',
    '../_base_/schedules/fcmae_1600e.py', '../_base_/runtime/mmpretrain.py',
]
model = dict(backbone=dict(arch='large'))
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=1.5e-4 * 32 * 128 / 256))
auto_scale_lr = dict(base_batch_size=32 * 128, enable=False)
