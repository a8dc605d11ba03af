"""Cascade Mask R-CNN with ConvNeXt V2 base on COCO, multi-scale with crops, 3x.

Run:    bash tools/dist_train.sh configs/coco/cascade-mask-rcnn_convnextv2-base_fpn_8xb2-amp-ms-crop-3x_coco.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/coco; 8 GPUs, 2 images each (memory not measured); a checkpoint of the base backbone, from FCMAE or a
        classifier
Expect: not run yet; the paper has no number for this head; ConvNeXt V1 base with this recipe: box AP / mask AP 52.7 /
        45.6 (published: its official repository)
Source: the recipe of ConvNeXt V1's official repository, with its lr 2e-4 and layer decay 0.8 in groups for this
        size; drop path 0.6 for V2 is ours (V1: 0.7)
"""
_base_ = [
    '../_base_/models/cascade-mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_ms_crop.py',
    '../_base_/schedules/coco_3x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.6),
    neck=dict(in_channels=[128, 256, 512, 1024]))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(layer_decay_rate=0.8, grouping='group'))
auto_scale_lr = dict(base_batch_size=8 * 2, enable=False)
