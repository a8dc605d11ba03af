"""UPerNet with ConvNeXt V2 huge on ADE20K, 512 px, 160,000 iterations.

Run:    GPUS=16 bash tools/slurm_train.sh PARTITION JOB \
            configs/ade20k/upernet_convnextv2-huge_16xb1-amp-160k_ade20k-512x512.py WORK_DIR \
            --cfg-options model.backbone.init_cfg.checkpoint=CLASSIFIER.pth
Needs:  data/ade/ADEChallengeData2016; 16 GPUs with bfloat16, 1 image each (memory not measured); weights of the huge
        backbone after fine-tuning on ImageNet-1K (the paper: better than FCMAE weights as they are)
Expect: mIoU 55.0 with the multi-scale test (707M params, 3272G FLOPs; published: paper, Table 7); with our code not
        run yet
Source: arXiv 2301.00808, appendix A.4, Table 7; lr 1e-4, stage-wise layer decay 0.9 and drop path 0.4 are our choice,
        ConvNeXt V1's values, out of the sets that the paper swept and never published
"""
_base_ = [
    '../_base_/models/upernet_convnextv2.py', '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/ade20k_160k.py', '../_base_/runtime/mmseg.py',
]
model = dict(
    backbone=dict(arch='huge', drop_path_rate=0.4, with_cp=True),
    decode_head=dict(in_channels=[352, 704, 1408, 2816]),
    auxiliary_head=dict(in_channels=1408))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.9, grouping='stage_wise'))
auto_scale_lr = dict(base_batch_size=16 * 1, enable=False)
