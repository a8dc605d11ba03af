# Detection on the demo scenes: 1000 iterations, warmup over 20, cosine to 0; ours.
# No end is written down, so another train_cfg.max_iters stretches the decay with it; the test comes once, at the end.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1000, val_interval=1000000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=10.),
    constructor='mmcnx2.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, grouping='group'))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=20, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min=0., begin=20, by_epoch=False),
]
