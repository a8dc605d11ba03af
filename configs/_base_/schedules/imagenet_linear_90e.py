# Linear probe, 90 epochs, MAE's protocol: LARS without weight decay (the bias: plain momentum), linear warmup of 10
# epochs from 0, cosine to 0, both per iteration. A config sets the learning rate, 0.1 * images per step / 256. No end
# is written down, so another train_cfg.max_epochs stretches the cosine with it. bfloat16 autocast.
optim_wrapper = dict(
    type='mmcnx2.BF16OptimWrapper',
    optimizer=dict(type='LARS', lr=0.1 * 16384 / 256, momentum=0.9, weight_decay=0.),
    constructor='mmcnx2.LayerDecayOptimWrapperConstructor')
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=10, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0., begin=10, by_epoch=True, convert_to_iter_based=True),
]
custom_hooks = [dict(type='mmcnx2.AverageLossHook')]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=90)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
