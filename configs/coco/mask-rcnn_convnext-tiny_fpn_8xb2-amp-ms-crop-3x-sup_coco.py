"""Mask R-CNN with ConvNeXt V1 tiny on COCO, multi-scale with crops, 3x, from supervised ImageNet-1K weights.

Run:    bash tools/dist_train.sh configs/coco/mask-rcnn_convnext-tiny_fpn_8xb2-amp-ms-crop-3x-sup_coco.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/coco; 8 GPUs, 2 images each (memory not measured); weights of a ConvNeXt V1 tiny classifier (ImageNet-1K)
Expect: box AP 46.2, mask AP 41.7 (published: V1's official repository and mmdetection, 7.3 GB); with our code not run
        yet
Source: the only Mask R-CNN recipe of ConvNeXt V1's official repository; ordinary NMS. Layer scale starts at 1 as in
        V1's detection code; a checkpoint replaces it
"""
_base_ = [
    '../_base_/models/mask-rcnn_convnextv2_fpn.py', '../_base_/datasets/coco_ms_crop.py',
    '../_base_/schedules/coco_3x.py', '../_base_/runtime/mmdet.py',
]
model = dict(
    backbone=dict(arch='tiny', use_grn=False, layer_scale_init_value=1.0, drop_path_rate=0.4),
    neck=dict(in_channels=[96, 192, 384, 768]),
    test_cfg=dict(rcnn=dict(nms=dict(type='nms'))))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.95, grouping='group'))
auto_scale_lr = dict(base_batch_size=8 * 2, enable=False)
