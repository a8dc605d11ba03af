"""Mask R-CNN with ConvNeXt V1 tiny on COCO, large-scale jitter, 3x, from supervised ImageNet-1K weights.

Run:    bash tools/dist_train.sh configs/coco/mask-rcnn_convnext-tiny_fpn_8xb4-amp-lsj-3x-sup_coco.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/coco; 8 GPUs, 4 images each (memory not measured); weights of a ConvNeXt V1 tiny classifier (ImageNet-1K)
Expect: not run yet; the paper has no number for this size with large-scale jitter
Source: the baseline of arXiv 2301.00808, which has base and large only, with the recipe of its appendix A.3; layer
        decay 0.95 in groups and drop path 0.4 are our choice (the paper swept and published neither). Layer scale
        starts at 1 as in V1's detection code; a checkpoint replaces it
"""
_base_ = [
    '../_base_/models/mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_lsj_1024.py',
    '../_base_/schedules/coco_3x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(arch='tiny', use_grn=False, layer_scale_init_value=1.0, drop_path_rate=0.4),
    neck=dict(in_channels=[96, 192, 384, 768]))
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.95, grouping='group'))
auto_scale_lr = dict(base_batch_size=8 * 4, enable=False)
