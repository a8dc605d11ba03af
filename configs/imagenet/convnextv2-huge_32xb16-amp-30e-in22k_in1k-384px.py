"""ConvNeXt V2 huge on ImageNet-1K, 384 px, 30 epochs of fine-tuning after ImageNet-22K.

Run:    GPUS=32 bash tools/slurm_train.sh PARTITION JOB \
            configs/imagenet/convnextv2-huge_32xb16-amp-30e-in22k_in1k-384px.py WORK_DIR \
            --cfg-options model.backbone.init_cfg.checkpoint=22K.pth
Needs:  data/imagenet (train/ and val/ with a folder per class); 32 GPUs with bfloat16, 16 images each (memory not
        measured); the checkpoint of configs/imagenet/convnextv2-huge_128xb32-amp-90e-fcmae_in22k-384px.py, or other
        weights of this size that were trained on ImageNet-22K; the classifier's norm is taken along, its 21,841
        outputs are not. Fewer: keep the 512 images per step with optim_wrapper.accumulative_counts=N, or set
        auto_scale_lr.enable=True
Expect: 88.7% ImageNet-1K top-1 (published: paper, Tables 5, 14 and 15); with our code not run yet
Source: arXiv 2301.00808, Table 13; random erasing and the end of the cosine at 1e-6 from the official script; the test
        at 384 px without a crop as in the official code. Layer decay per block, as in fine-tuning this size after
        FCMAE, is our choice: the paper does not repeat it for this stage. How the images are split over GPUs is ours
        too
"""
_base_ = [
    '../_base_/models/classifier_convnextv2.py', '../_base_/datasets/imagenet_384.py',
    '../_base_/schedules/imagenet_after22k.py', '../_base_/runtime/mmpretrain_classification.py',
]
model = dict(
    backbone=dict(arch='huge', drop_path_rate=0.5, with_cp=True),
    head=dict(in_channels=2816, loss=dict(label_smooth_val=0.1)))
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(lr=2.5e-5 * 32 * 16 / 256), paramwise_cfg=dict(layer_decay_rate=0.85, grouping='single'))
custom_hooks = [dict(type='mmcnx2.AverageLossHook')]  # no averaged weights
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=32 * 16, enable=False)
