"""Ablation of FCMAE's decoder on ConvNeXt V1 base: its type, depth and width, 800 epochs on ImageNet-1K.

Run:    GPUS=32 bash tools/slurm_train.sh PARTITION JOB \
            configs/ablation/fcmae_convnext-base_32xb128-amp-800e_in1k-decoder.py WORK_DIR \
            --cfg-options model.neck.decoder_depth=4
        (no option: one ConvNeXt block of width 512; the options of every row of the paper stand below), then
        configs/ablation/convnext-base_16xb64-amp-100e-fcmae_in1k.py from its checkpoint
Needs:  data/imagenet/train (pictures in any folders); 32 GPUs with bfloat16, 128 images each. At a small scale, on a
        CPU: python tools/ablate.py decoder-type decoder-depth decoder-width
Expect: 83.7% ImageNet-1K top-1 after fine-tuning (published: paper, Table 1); with our code not run yet
Source: arXiv 2301.00808, Tables 1 and 8. The paper does not print its UNet, its Transformer, nor whether V1's layer
        scale is kept; ours: mmcnx2/models/fcmae/, and no layer scale
"""
_base_ = [
    '../_base_/models/fcmae_convnextv2.py', '../_base_/datasets/imagenet_unlabelled_224.py',
    '../_base_/schedules/fcmae_800e.py', '../_base_/runtime/mmpretrain.py',
]
# --cfg-options of each row, and the paper's top-1:
#   UNet with skips       model.neck.type=mmcnx2.UNetDecoder model.neck.skips=True      83.7
#   UNet without skips    model.neck.type=mmcnx2.UNetDecoder      83.5
#   Transformer           model.neck._delete_=True model.neck.type=mmcnx2.TransformerDecoder
#                         model.neck.decoder_channels=512 model.neck.decoder_depth=1      83.4
#   depth 2, 4, 8, 12     model.neck.decoder_depth=2      83.5; 4: 83.7; 8: 83.6; 12: 83.3
#   width 128 ... 1024    model.neck.decoder_channels=128      83.5; 256: 83.7; 768: 83.6; 1024: 83.5
model = dict(backbone=dict(arch='base', use_grn=False), neck=dict(use_grn=False))
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=1.5e-4 * 32 * 128 / 256))
auto_scale_lr = dict(base_batch_size=32 * 128, enable=False)
