"""Cascade Mask R-CNN with ConvNeXt V1 small on COCO, multi-scale with crops, 3x, from supervised ImageNet-1K weights.

Run:    bash tools/dist_train.sh configs/coco/cascade-mask-rcnn_convnext-small_fpn_8xb2-amp-ms-crop-3x-sup_coco.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/coco; 8 GPUs, 2 images each (memory not measured); weights of a ConvNeXt V1 small classifier (ImageNet-1K,
        supervised)
Expect: box AP 51.9, mask AP 45.0 (published: V1's official repository; mmdetection reports 51.8 / 44.8); with our code
        not run yet
Source: ConvNeXt V1's official repository: lr 2e-4, layer decay 0.7 in groups, drop path 0.6. Layer scale starts at 1
        as in V1's detection code; a checkpoint replaces it. Warmup over 1000 iterations (500 in the old code)
"""
_base_ = [
    '../_base_/models/cascade-mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_ms_crop.py',
    '../_base_/schedules/coco_3x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(arch='small', use_grn=False, layer_scale_init_value=1.0, drop_path_rate=0.6),
    neck=dict(in_channels=[96, 192, 384, 768]))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(layer_decay_rate=0.7, grouping='group'))
auto_scale_lr = dict(base_batch_size=8 * 2, enable=False)
