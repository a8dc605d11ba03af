"""Ablation of GRN in ConvNeXt V2 base: its parts, and what may stand in its place, 800 epochs on ImageNet-1K.

Run:    GPUS=32 bash tools/slurm_train.sh PARTITION JOB \
            configs/ablation/fcmae_convnextv2-base_32xb128-amp-800e_in1k-grn.py WORK_DIR \
            --cfg-options model.backbone.response_norm.aggregation=l1 model.neck.response_norm.aggregation=l1
        (no option: GRN; the options of every row of the paper stand below), then
        configs/ablation/convnextv2-base_16xb64-amp-100e-fcmae_in1k-grn.py from its checkpoint, with the row's options
        of model.backbone
Needs:  data/imagenet/train (pictures in any folders); 32 GPUs with bfloat16, 128 images each. Only plain GRN has fast
        kernels. At a small scale, on a CPU: python tools/ablate.py grn-aggregation norm-layers
Expect: 84.6% ImageNet-1K top-1 after fine-tuning (published: paper, Table 2); with our code not run yet
Source: arXiv 2301.00808, Tables 2 and 8; settings of LRN, SE and CBAM are ours where the paper prints none
        (mmcnx2/models/layers/response_norms.py)
"""
_base_ = [
    '../_base_/models/fcmae_convnextv2.py', '../_base_/datasets/imagenet_unlabelled_224.py',
    '../_base_/schedules/fcmae_800e.py', '../_base_/runtime/mmpretrain.py',
]
# --cfg-options of each row, and the paper's top-1; each option is given twice, for the encoder as written and with
# model.neck in place of model.backbone for the decoder:
#   no GRN                    model.backbone.use_grn=False      83.7
#   average                   model.backbone.response_norm.aggregation=mean      83.7
#   L1 norm                   model.backbone.response_norm.aggregation=l1      84.3
#   standardised              model.backbone.response_norm.normalisation=standardise      84.5
#   1 / sum                   model.backbone.response_norm.normalisation=one_over_sum      83.8
#   without residual          model.backbone.response_norm.residual=False      84.0
#   without affine            model.backbone.response_norm.affine=False      not in the paper
#   LRN, BN, LN, SE, CBAM     model.backbone.response_norm.name=lrn      83.2; bn: 80.5; ln: 83.8; se: 84.4; cbam: 84.5
model = dict(
    backbone=dict(arch='base', response_norm=dict(name='grn')), neck=dict(response_norm=dict(name='grn')))
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=1.5e-4 * 32 * 128 / 256))
auto_scale_lr = dict(base_batch_size=32 * 128, enable=False)
