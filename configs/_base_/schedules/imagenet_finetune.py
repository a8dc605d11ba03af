# ImageNet-1K after FCMAE: AdamW without clipping, cosine to 1e-6, both per iteration; weights averaged with decay
# 0.9999 (mmengine's momentum is 1 - decay), and it is the average that is evaluated and saved as the checkpoint's
# weights. A config sets the learning rate, weight decay and layer decay, the length and the warmup. The end of the
# cosine is a ratio, because it holds for the learning rate before layer decay: an absolute 1e-6 would raise the rate of
# the earliest layers. No end is written down, so another train_cfg.max_epochs stretches the cosine with it. With
# optim_wrapper.accumulative_counts=N also give custom_hooks.1.interval=N, or the average follows N times too fast.
# Ours: bfloat16 autocast.
optim_wrapper = dict(
    type='mmcnx2.BF16OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmcnx2.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, grouping='single'))
custom_hooks = [dict(type='mmcnx2.AverageLossHook'), dict(type='EMAHook', momentum=1e-4)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
