"""Mask R-CNN with ConvNeXt V1 large on COCO, large-scale jitter, 3x, from supervised ImageNet-1K weights.

Run:    GPUS=16 bash tools/slurm_train.sh PARTITION JOB \
            configs/coco/mask-rcnn_convnext-large_fpn_16xb2-amp-lsj-3x-sup_coco.py WORK_DIR \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/coco; 16 GPUs, 2 images each (memory not measured); weights of a ConvNeXt V1 large classifier
        (ImageNet-1K)
Expect: box AP 50.6, mask AP 45.1 (published: ConvNeXt V2 paper, Table 6); with our code not run yet
Source: the baseline of arXiv 2301.00808, Table 6, with the recipe of its appendix A.3; layer decay 0.95 in groups and
        drop path 0.5 are our choice (the paper swept and published neither). Layer scale starts at 1 as in V1's
        detection code; a checkpoint replaces it
"""
_base_ = [
    '../_base_/models/mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_lsj_1024.py',
    '../_base_/schedules/coco_3x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(arch='large', use_grn=False, layer_scale_init_value=1.0, drop_path_rate=0.5, with_cp=True),
    neck=dict(in_channels=[192, 384, 768, 1536]))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.95, grouping='group'))
auto_scale_lr = dict(base_batch_size=16 * 2, enable=False)
