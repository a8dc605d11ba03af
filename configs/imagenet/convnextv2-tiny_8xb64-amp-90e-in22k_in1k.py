"""ConvNeXt V2 tiny on ImageNet-1K, 224 px, 90 epochs of fine-tuning after ImageNet-22K.

Run:    bash tools/dist_train.sh configs/imagenet/convnextv2-tiny_8xb64-amp-90e-in22k_in1k.py 8 \
            --cfg-options model.backbone.init_cfg.checkpoint=22K.pth
Needs:  data/imagenet (train/ and val/ with a folder per class); 8 GPUs with bfloat16, 64 images each (memory not
        measured); the checkpoint of configs/imagenet/convnextv2-tiny_32xb128-amp-90e-fcmae_in22k.py, or other weights
        of this size that were trained on ImageNet-22K; the classifier's norm is taken along, its 21,841 outputs are
        not. Fewer: keep the 512 images per step with optim_wrapper.accumulative_counts=N and
        custom_hooks.1.interval=N, or set auto_scale_lr.enable=True
Expect: 83.9% ImageNet-1K top-1 of the averaged weights (published: paper, Tables 14 and 15); with our code not run yet
Source: arXiv 2301.00808, Table 13; random erasing and the end of the cosine at 1e-6 from the official script. Layer
        decay per block, as in fine-tuning this size after FCMAE, is our choice: the paper does not repeat it for this
        stage. How the images are split over GPUs is ours too
"""
_base_ = [
    '../_base_/models/classifier_convnextv2.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_after22k.py', '../_base_/runtime/mmpretrain_classification.py',
]
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.1),
    head=dict(in_channels=768, loss=dict(label_smooth_val=0.1)))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(
    optimizer=dict(lr=2.5e-5 * 8 * 64 / 256), paramwise_cfg=dict(layer_decay_rate=0.9, grouping='single'))
train_cfg = dict(max_epochs=90)
auto_scale_lr = dict(base_batch_size=8 * 64, enable=False)
