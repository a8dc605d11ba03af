# FCMAE, 1600 epochs: AdamW, linear warmup of 40 epochs from 0, cosine to 0, both per iteration. A config sets the
# learning rate, 1.5e-4 * images per step / 256. No end is written down, so another train_cfg.max_epochs stretches the
# cosine with it. Ours: bfloat16 autocast, GRN and loss in float32 (official: float32); no weight decay on GRN and the
# mask token (the official script decays them in pretraining; repeat it with
# optim_wrapper.paramwise_cfg.decay_also="[grn.gamma,grn.beta,mask_token]").
optim_wrapper = dict(
    type='mmcnx2.BF16OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-4 * 4096 / 256, betas=(0.9, 0.95), weight_decay=0.05),
    constructor='mmcnx2.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=40, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0., begin=40, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1600)
