"""Mask R-CNN with Swin base on COCO, large-scale jitter, 3x, from SimMIM weights.

Run:    bash tools/dist_train.sh configs/coco/mask-rcnn_swin-base_fpn_8xb4-amp-lsj-3x-simmim_coco.py 8
Needs:  data/coco; 8 GPUs, 4 images each (memory not measured); the SimMIM weights are fetched from mmpretrain's model
        zoo (pretrained for 800 epochs at 192 px); other ones: --cfg-options model.backbone.init_cfg.checkpoint=PATH
Expect: box AP 52.3 (published: ConvNeXt V2 paper, Table 6, 497G FLOPs); with our code not run yet
Source: the baseline of arXiv 2301.00808, Table 6, with the recipe of its appendix A.3; layer decay 0.95 per block and
        drop path 0.3 are ours, windows of 7; the paper says nothing of them
"""
_base_ = [
    '../_base_/models/mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_lsj_1024.py',
    '../_base_/schedules/coco_3x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SwinTransformer',
        arch='base',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.3,
        pad_small_map=True,
        init_cfg=dict(
            type='Pretrained',
            prefix='backbone.',
            checkpoint='https://mmassets.onedl.ai/mmselfsup/1.x/simmim/simmim_swin-base_16xb128-amp-coslr-800e_in1k-192/'
            'simmim_swin-base_16xb128-amp-coslr-800e_in1k-192_20220916-a0e931ac.pth')),
    neck=dict(in_channels=[128, 256, 512, 1024]))
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.95, grouping=None))
auto_scale_lr = dict(base_batch_size=8 * 4, enable=False)
