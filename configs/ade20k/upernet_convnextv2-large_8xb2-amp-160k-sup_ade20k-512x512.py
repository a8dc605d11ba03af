"""UPerNet with ConvNeXt V2 large on ADE20K, 512 px, 160,000 iterations, from supervised ImageNet-1K weights.

Run:    bash tools/dist_train.sh configs/ade20k/upernet_convnextv2-large_8xb2-amp-160k-sup_ade20k-512x512.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/ade/ADEChallengeData2016; 8 GPUs with bfloat16, 2 images each (memory not measured); weights of a large
        classifier trained from scratch (supervised; configs/imagenet, scratch: the authors released none)
Expect: mIoU 51.6 with the multi-scale test (235M params, 1573G FLOPs; published: paper, Table 7); with our code not
        run yet
Source: arXiv 2301.00808, appendix A.4, Table 7; lr 1e-4, stage-wise layer decay 0.9 and drop path 0.4 are our choice,
        ConvNeXt V1's values, out of the sets that the paper swept and never published
"""
_base_ = [
    '../_base_/models/upernet_convnextv2.py', '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/ade20k_160k.py', '../_base_/runtime/mmseg.py',
]
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.4),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.9, grouping='stage_wise'))
auto_scale_lr = dict(base_batch_size=8 * 2, enable=False)
