"""Mask R-CNN with ConvNeXt V1 base on COCO, large-scale jitter, 3x, from supervised ImageNet-1K weights.

Run:    bash tools/dist_train.sh configs/coco/mask-rcnn_convnext-base_fpn_8xb4-amp-lsj-3x-sup_coco.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/coco; 8 GPUs, 4 images each (memory not measured); weights of a ConvNeXt V1 base classifier (ImageNet-1K)
Expect: box AP 50.3, mask AP 44.9 (published: ConvNeXt V2 paper, Table 6); with our code not run yet
Source: the baseline of arXiv 2301.00808, Table 6, with the recipe of its appendix A.3; layer decay 0.95 in groups and
        drop path 0.4 are our choice (the paper swept and published neither). Layer scale starts at 1 as in V1's
        detection code; a checkpoint replaces it
"""
_base_ = [
    '../_base_/models/mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_lsj_1024.py',
    '../_base_/schedules/coco_3x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(arch='base', use_grn=False, layer_scale_init_value=1.0, drop_path_rate=0.4),
    neck=dict(in_channels=[128, 256, 512, 1024]))
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.95, grouping='group'))
auto_scale_lr = dict(base_batch_size=8 * 4, enable=False)
