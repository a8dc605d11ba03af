"""Cascade Mask R-CNN with ConvNeXt V2 tiny on COCO, multi-scale with crops, 3x.

Run:    bash tools/dist_train.sh configs/coco/cascade-mask-rcnn_convnextv2-tiny_fpn_8xb2-amp-ms-crop-3x_coco.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/coco; 8 GPUs, 2 images each (memory not measured); a checkpoint of the tiny backbone, from FCMAE or a
        classifier
Expect: not run yet; the paper has no number for this head; ConvNeXt V1 tiny with this recipe: box AP / mask AP 50.4 /
        43.7 (published: its official repository)
Source: the recipe of ConvNeXt V1's official repository; lr 2e-4, layer decay 0.7 in groups and drop path 0.4 for V2
        are ours, its values for this size
"""
_base_ = [
    '../_base_/models/cascade-mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_ms_crop.py',
    '../_base_/schedules/coco_3x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.4),
    neck=dict(in_channels=[96, 192, 384, 768]))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(layer_decay_rate=0.7, grouping='group'))
auto_scale_lr = dict(base_batch_size=8 * 2, enable=False)
