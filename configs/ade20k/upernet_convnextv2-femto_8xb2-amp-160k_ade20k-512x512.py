"""UPerNet with ConvNeXt V2 femto on ADE20K, 512 px, 160,000 iterations.

Run:    bash tools/dist_train.sh configs/ade20k/upernet_convnextv2-femto_8xb2-amp-160k_ade20k-512x512.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/ade/ADEChallengeData2016; 8 GPUs with bfloat16, 2 images each (memory not measured); weights of the femto
        backbone after fine-tuning on ImageNet-1K (the paper: better than FCMAE weights as they are)
Expect: not run yet; the paper has no number for this size
Source: arXiv 2301.00808, appendix A.4; lr 2e-4, stage-wise layer decay 0.9 and drop path 0.0 are ours; the paper has
        no setting for this size
"""
_base_ = [
    '../_base_/models/upernet_convnextv2.py', '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/ade20k_160k.py', '../_base_/runtime/mmseg.py',
]
model = dict(
    backbone=dict(arch='femto', drop_path_rate=0.0),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(layer_decay_rate=0.9, grouping='stage_wise'))
auto_scale_lr = dict(base_batch_size=8 * 2, enable=False)
