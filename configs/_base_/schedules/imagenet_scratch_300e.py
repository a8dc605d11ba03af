# ImageNet-1K from random weights, 300 epochs, ConvNeXt V1's values: AdamW without clipping, linear warmup of 20 epochs
# from 0, cosine to 1e-6, both per iteration; weights averaged with decay 0.9999 (mmengine's momentum is 1 - decay), and
# it is the average that is evaluated and saved as the checkpoint's weights. A config sets the learning rate, 4e-3 for
# 4096 images per step. No end is written down, so another train_cfg.max_epochs stretches the cosine with it. With
# optim_wrapper.accumulative_counts=N also give custom_hooks.1.interval=N, or the average follows N times too fast.
# Ours: bfloat16 autocast.
optim_wrapper = dict(
    type='mmcnx2.BF16OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmcnx2.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=20, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / 4e-3, begin=20, by_epoch=True, convert_to_iter_based=True),
]
custom_hooks = [dict(type='mmcnx2.AverageLossHook'), dict(type='EMAHook', momentum=1e-4)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
