"""UPerNet with ConvNeXt V1 tiny on ADE20K, 512 px, 160,000 iterations, from supervised ImageNet-1K weights.

Run:    bash tools/dist_train.sh configs/ade20k/upernet_convnext-tiny_8xb2-amp-160k-sup_ade20k-512x512.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/ade/ADEChallengeData2016; 8 GPUs with bfloat16, 2 images each (memory not measured); weights of a ConvNeXt
        V1 tiny classifier (supervised, ImageNet-1K)
Expect: mIoU 46.7 with V1's multi-scale test, 46.0 at one scale (published: V1's official repository; mmsegmentation
        reports 46.11 / 46.62 at one scale / multi-scale); with our code not run yet
Source: ConvNeXt V1's official repository: lr 1e-4, stage-wise layer decay 0.9, drop path 0.4; its multi-scale test has
        the scales 0.5 to 1.75
"""
_base_ = [
    '../_base_/models/upernet_convnextv2.py', '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/ade20k_160k.py', '../_base_/runtime/mmseg.py',
]
model = dict(
    backbone=dict(arch='tiny', use_grn=False, layer_scale_init_value=1.0, drop_path_rate=0.4),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.9, grouping='stage_wise'))
auto_scale_lr = dict(base_batch_size=8 * 2, enable=False)

# the scales of V1's multi-scale test
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]['transforms'][0] = [
    dict(type='Resize', scale=(int(2048 * ratio), int(512 * ratio)), keep_ratio=True)
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
]
