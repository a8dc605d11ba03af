"""FCMAE pretraining of ConvNeXt V2 atto, 1600 epochs on ImageNet-1K without labels.

Run:    bash tools/dist_train.sh configs/pretrain/fcmae_convnextv2-atto_8xb512-amp-1600e_in1k.py 8
Needs:  data/imagenet/train (pictures in any folders); 8 GPUs with bfloat16, 512 images each. Fewer: keep the 4096
        images per step with optim_wrapper.accumulative_counts, or set auto_scale_lr.enable=True. Memory not measured
Expect: 76.7% ImageNet-1K top-1 after fine-tuning (published: paper, Tables 14 and 15); with our code not run yet
Source: recipe of arXiv 2301.00808, Table 8, and its official training script; how the images are split over GPUs is
        our choice
"""
_base_ = [
    '../_base_/models/fcmae_convnextv2.py', '../_base_/datasets/imagenet_unlabelled_224.py',
    '../_base_/schedules/fcmae_1600e.py', '../_base_/runtime/mmpretrain.py',
]
model = dict(backbone=dict(arch='atto'))
train_dataloader = dict(batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=1.5e-4 * 8 * 512 / 256))
auto_scale_lr = dict(base_batch_size=8 * 512, enable=False)
