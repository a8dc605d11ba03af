# ImageNet-22K, 90 epochs: AdamW without clipping, linear warmup of 5 epochs from 0, cosine to 1e-6, both per iteration;
# no averaged weights, nothing to evaluate. A config sets the learning rate, 2.5e-4 * images per step / 256, and the
# layer decay. The end of the cosine is a ratio, because it holds for the learning rate before layer decay. No end is
# written down, so another train_cfg.max_epochs stretches the cosine with it. Ours: bfloat16 autocast.
optim_wrapper = dict(
    type='mmcnx2.BF16OptimWrapper',
    optimizer=dict(type='AdamW', lr=2.5e-4 * 4096 / 256, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmcnx2.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, grouping='single'))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=5, by_epoch=True, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min_ratio=1e-6 / (2.5e-4 * 4096 / 256), begin=5, by_epoch=True,
        convert_to_iter_based=True),
]
custom_hooks = [dict(type='mmcnx2.AverageLossHook')]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=90)
