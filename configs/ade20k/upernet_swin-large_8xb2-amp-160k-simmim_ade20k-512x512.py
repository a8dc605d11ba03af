"""UPerNet with Swin large on ADE20K, 512 px, 160,000 iterations, from SimMIM weights.

Run:    bash tools/dist_train.sh configs/ade20k/upernet_swin-large_8xb2-amp-160k-simmim_ade20k-512x512.py 8
Needs:  data/ade/ADEChallengeData2016; 8 GPUs with bfloat16, 2 images each (memory not measured); the SimMIM weights
        are fetched from mmpretrain's model zoo (pretrained for 800 epochs at 192 px; the paper fine-tunes first: for
        that give a classifier with --cfg-options model.backbone.init_cfg.checkpoint=PATH)
Expect: mIoU 53.5 with the multi-scale test (234M params, 1601G FLOPs; published: ConvNeXt V2 paper, Table 7); with our
        code not run yet
Source: the baseline of arXiv 2301.00808, Table 7, with the recipe of its appendix A.4; lr 1e-4, layer decay 0.95 per
        block, drop path 0.4 and windows of 7 are ours; the paper says nothing of them
"""
_base_ = [
    '../_base_/models/upernet_convnextv2.py', '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/ade20k_160k.py', '../_base_/runtime/mmseg.py',
]
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SwinTransformer',
        arch='large',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.4,
        pad_small_map=True,
        init_cfg=dict(
            type='Pretrained',
            prefix='backbone.',
            checkpoint='https://mmassets.onedl.ai/mmselfsup/1.x/simmim/simmim_swin-large_16xb128-amp-coslr-800e_in1k-192/'
            'simmim_swin-large_16xb128-amp-coslr-800e_in1k-192_20220916-4ad216d3.pth')),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768))
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.95, grouping=None))
auto_scale_lr = dict(base_batch_size=8 * 2, enable=False)
