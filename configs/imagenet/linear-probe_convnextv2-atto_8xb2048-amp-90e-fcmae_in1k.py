"""Linear probe of ConvNeXt V2 atto after FCMAE on ImageNet-1K, 224 px, 90 epochs.

Run:    bash tools/dist_train.sh configs/imagenet/linear-probe_convnextv2-atto_8xb2048-amp-90e-fcmae_in1k.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=FCMAE.pth
Needs:  data/imagenet (train/ and val/ with a folder per class); 8 GPUs with bfloat16, 2048 images each (memory not
        measured; no gradients in the backbone); the checkpoint of
        configs/pretrain/fcmae_convnextv2-atto_8xb512-amp-1600e_in1k.py, or other FCMAE weights of this size. Fewer:
        keep the 16384 images per step with optim_wrapper.accumulative_counts=N, or set auto_scale_lr.enable=True
Expect: not run yet; the paper has no linear probe of any size
Source: our choice: the protocol of MAE (arXiv 2111.06377, appendix A.1), that is LARS, base learning rate 0.1, batch
        16384, crops and flips only, and a norm over the batch without scale and shift before the classifier. Ours: the
        average over positions as the feature, where MAE has a class token
"""
_base_ = [
    '../_base_/models/linear-probe_convnextv2.py', '../_base_/datasets/imagenet_probe_224.py',
    '../_base_/schedules/imagenet_linear_90e.py', '../_base_/runtime/mmpretrain_classification.py',
]
model = dict(
    backbone=dict(arch='atto'),
    neck=[dict(type='GlobalAveragePooling'), dict(type='ClsBatchNormNeck', input_features=320)],
    head=dict(in_channels=320))
train_dataloader = dict(batch_size=2048)
optim_wrapper = dict(optimizer=dict(lr=0.1 * 8 * 2048 / 256))
auto_scale_lr = dict(base_batch_size=8 * 2048, enable=False)
