"""Mask R-CNN with ConvNeXt V2 femto on COCO, large-scale jitter, 1x, from FCMAE weights.

Run:    bash tools/dist_train.sh configs/coco/mask-rcnn_convnextv2-femto_fpn_8xb4-amp-lsj-1x-fcmae_coco.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/<pretraining run>/epoch_1600.pth
Needs:  data/coco; 8 GPUs, 4 images each (memory not measured); a checkpoint of the femto backbone (FCMAE)
Expect: not run yet; the paper trains for 36 epochs only
Source: a third of the schedule of the 3x config (12 epochs, steps after 8 and 11), for a cheaper comparison; this
        length is ours, the rest as there: arXiv 2301.00808, appendix A.3, layer decay 0.95 in groups and drop path
        0.0, our choice. Padding to 1024 is ours
"""
_base_ = [
    '../_base_/models/mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_lsj_1024.py',
    '../_base_/schedules/coco_1x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(arch='femto', drop_path_rate=0.0),
    neck=dict(in_channels=[48, 96, 192, 384]))
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.95, grouping='group'))
auto_scale_lr = dict(base_batch_size=8 * 4, enable=False)
