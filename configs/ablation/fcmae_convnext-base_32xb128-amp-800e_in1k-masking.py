"""Ablation of FCMAE's masking on ConvNeXt V1 base: sparse against leaking convolution, and the mask ratio, 800 epochs
on ImageNet-1K.

Run:    GPUS=32 bash tools/slurm_train.sh PARTITION JOB \
            configs/ablation/fcmae_convnext-base_32xb128-amp-800e_in1k-masking.py WORK_DIR \
            --cfg-options model.layout=leaking
        (no option: sparse, 60% hidden; model.mask_ratio=0.1 to 0.9 for the others), then
        configs/ablation/convnext-base_16xb64-amp-100e-fcmae_in1k.py from its checkpoint
Needs:  data/imagenet/train (pictures in any folders); 32 GPUs with bfloat16, 128 images each. At a small scale, on a
        CPU: python tools/ablate.py sparse-convolution mask-ratio
Expect: 83.7% ImageNet-1K top-1 after fine-tuning (published: paper, section 3); with our code not run yet
Source: arXiv 2301.00808, section 3, Figure 8 (a curve without numbers: 0.5 to 0.7 best, 0.6 highest) and Table 8. The
        paper does not say whether V1's layer scale is kept; ours: no layer scale
"""
_base_ = [
    '../_base_/models/fcmae_convnextv2.py', '../_base_/datasets/imagenet_unlabelled_224.py',
    '../_base_/schedules/fcmae_800e.py', '../_base_/runtime/mmpretrain.py',
]
# --cfg-options of each row, and the paper's top-1:
#   leaking        model.layout=leaking      79.3 (sparse: 83.7)
#   mask ratio     model.mask_ratio=0.1, and 0.2, 0.3, 0.4, 0.5, 0.7, 0.8, 0.9      no numbers
model = dict(backbone=dict(arch='base', use_grn=False), neck=dict(use_grn=False))
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=1.5e-4 * 32 * 128 / 256))
auto_scale_lr = dict(base_batch_size=32 * 128, enable=False)
