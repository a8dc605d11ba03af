# ImageNet-1K after ImageNet-22K: AdamW without clipping and with next to no weight decay, no warmup, cosine to 1e-6 per
# iteration; weights averaged with decay 0.9999 (mmengine's momentum is 1 - decay), and it is the average that is
# evaluated and saved as the checkpoint's weights. A config sets the learning rate, 2.5e-5 * images per step / 256, the
# layer decay and the length. The end of the cosine is a ratio, because it holds for the learning rate before layer
# decay. No end is written down, so another train_cfg.max_epochs stretches the cosine with it. With
# optim_wrapper.accumulative_counts=N also give custom_hooks.1.interval=N, or the average follows N times too fast.
# Ours: bfloat16 autocast.
optim_wrapper = dict(
    type='mmcnx2.BF16OptimWrapper',
    optimizer=dict(type='AdamW', lr=2.5e-5 * 512 / 256, betas=(0.9, 0.999), weight_decay=1e-8),
    constructor='mmcnx2.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, grouping='single'))
param_scheduler = [
    dict(
        type='CosineAnnealingLR', eta_min_ratio=1e-6 / (2.5e-5 * 512 / 256), begin=0, by_epoch=True,
        convert_to_iter_based=True),
]
custom_hooks = [dict(type='mmcnx2.AverageLossHook'), dict(type='EMAHook', momentum=1e-4)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=30)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
