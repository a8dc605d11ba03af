"""Mask R-CNN with ConvNeXt V2 huge on COCO, large-scale jitter, 3x, from supervised ImageNet-1K weights.

Run:    GPUS=32 bash tools/slurm_train.sh PARTITION JOB \
            configs/coco/mask-rcnn_convnextv2-huge_fpn_32xb1-amp-lsj-3x-sup_coco.py WORK_DIR \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/coco; 32 GPUs, 1 image each (memory not measured); a checkpoint of the huge backbone (supervised)
Expect: not run yet; the paper has no number for this size
Source: arXiv 2301.00808, appendix A.3, Table 6; layer decay 0.95 in groups and drop path 0.5 are our choice out of the
        values that the paper swept (0.9, 0.95; 0.2 to 0.5) and never published. Padding to 1024 is ours
"""
_base_ = [
    '../_base_/models/mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_lsj_1024.py',
    '../_base_/schedules/coco_3x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(arch='huge', drop_path_rate=0.5, with_cp=True),
    neck=dict(in_channels=[352, 704, 1408, 2816]))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.95, grouping='group'))
auto_scale_lr = dict(base_batch_size=32 * 1, enable=False)
