"""Mask R-CNN with ConvNeXt V2 large on COCO, large-scale jitter, 1x, from FCMAE weights.

Run:    GPUS=16 bash tools/slurm_train.sh PARTITION JOB \
            configs/coco/mask-rcnn_convnextv2-large_fpn_16xb2-amp-lsj-1x-fcmae_coco.py WORK_DIR \
            --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/<pretraining run>/epoch_1600.pth
Needs:  data/coco; 16 GPUs, 2 images each (memory not measured); a checkpoint of the large backbone (FCMAE)
Expect: not run yet; the paper trains for 36 epochs only
Source: a third of the schedule of the 3x config (12 epochs, steps after 8 and 11), for a cheaper comparison; this
        length is ours, the rest as there: arXiv 2301.00808, appendix A.3, layer decay 0.95 in groups and drop path
        0.5, our choice. Padding to 1024 is ours
"""
_base_ = [
    '../_base_/models/mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_lsj_1024.py',
    '../_base_/schedules/coco_1x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.5, with_cp=True),
    neck=dict(in_channels=[192, 384, 768, 1536]))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.95, grouping='group'))
auto_scale_lr = dict(base_batch_size=16 * 2, enable=False)
