"""Mask R-CNN with ConvNeXt V2 base on COCO, large-scale jitter, 3x, from supervised ImageNet-1K weights.

Run:    bash tools/dist_train.sh configs/coco/mask-rcnn_convnextv2-base_fpn_8xb4-amp-lsj-3x-sup_coco.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/coco; 8 GPUs, 4 images each (memory not measured); a checkpoint of the base backbone (supervised)
Expect: box AP 51.0, mask AP 45.6 (published: paper, Table 6); with our code not run yet
Source: arXiv 2301.00808, appendix A.3, Table 6; layer decay 0.95 in groups and drop path 0.4 are our choice out of the
        values that the paper swept (0.9, 0.95; 0.2 to 0.5) and never published. Padding to 1024 is ours
"""
_base_ = [
    '../_base_/models/mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_lsj_1024.py',
    '../_base_/schedules/coco_3x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
    neck=dict(in_channels=[128, 256, 512, 1024]))
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.95, grouping='group'))
auto_scale_lr = dict(base_batch_size=8 * 4, enable=False)
