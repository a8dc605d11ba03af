"""Mask R-CNN with Swin large on COCO, large-scale jitter, 3x, from SimMIM weights.

Run:    GPUS=16 bash tools/slurm_train.sh PARTITION JOB \
            configs/coco/mask-rcnn_swin-large_fpn_16xb2-amp-lsj-3x-simmim_coco.py WORK_DIR
Needs:  data/coco; 16 GPUs, 2 images each (memory not measured); the SimMIM weights are fetched from mmpretrain's model
        zoo (pretrained for 800 epochs at 192 px); other ones: --cfg-options model.backbone.init_cfg.checkpoint=PATH
Expect: box AP 53.8 (published: ConvNeXt V2 paper, Table 6, 904G FLOPs); with our code not run yet
Source: the baseline of arXiv 2301.00808, Table 6, with the recipe of its appendix A.3; layer decay 0.95 per block and
        drop path 0.4 are ours, windows of 7; the paper says nothing of them
"""
_base_ = [
    '../_base_/models/mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_lsj_1024.py',
    '../_base_/schedules/coco_3x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SwinTransformer',
        arch='large',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.4,
        pad_small_map=True,
        with_cp=True,
        init_cfg=dict(
            type='Pretrained',
            prefix='backbone.',
            checkpoint='https://mmassets.onedl.ai/mmselfsup/1.x/simmim/simmim_swin-large_16xb128-amp-coslr-800e_in1k-192/'
            'simmim_swin-large_16xb128-amp-coslr-800e_in1k-192_20220916-4ad216d3.pth')),
    neck=dict(in_channels=[192, 384, 768, 1536]))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.95, grouping=None))
auto_scale_lr = dict(base_batch_size=16 * 2, enable=False)
