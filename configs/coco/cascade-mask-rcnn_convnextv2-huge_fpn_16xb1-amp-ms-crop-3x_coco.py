"""Cascade Mask R-CNN with ConvNeXt V2 huge on COCO, multi-scale with crops, 3x.

Run:    GPUS=16 bash tools/slurm_train.sh PARTITION JOB \
            configs/coco/cascade-mask-rcnn_convnextv2-huge_fpn_16xb1-amp-ms-crop-3x_coco.py WORK_DIR \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/coco; 16 GPUs, 1 image each (memory not measured); a checkpoint of the huge backbone, from FCMAE or a
        classifier
Expect: not run yet; the paper has no number for this head
Source: the recipe of ConvNeXt V1's official repository; lr 1e-4, layer decay 0.7 in groups and drop path 0.7 for V2
        are ours, after its values for the nearest size
"""
_base_ = [
    '../_base_/models/cascade-mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_ms_crop.py',
    '../_base_/schedules/coco_3x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(arch='huge', drop_path_rate=0.7, with_cp=True),
    neck=dict(in_channels=[352, 704, 1408, 2816]))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.7, grouping='group'))
auto_scale_lr = dict(base_batch_size=16 * 1, enable=False)
