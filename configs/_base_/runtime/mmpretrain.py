# Runtime of pretraining: registries, hooks, logs. Epoch-based.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmcnx2'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmcnx2.CheckpointHook', interval=10, max_keep_ckpts=2),
    non_finite_guard=dict(type='mmcnx2.NonFiniteGuardHook'),
    skipped_images=dict(type='mmcnx2.SkippedImagesHook'),
    # every so many epochs: a sheet of reconstructions, and how alike the channels are; interval=0 switches one off
    reconstruction=dict(type='mmcnx2.ReconstructionHook', interval=50),
    collapse=dict(type='mmcnx2.CollapseHook', interval=50),
    sampler_seed=dict(type='DistSamplerSeedHook'))
# what is logged is the mean over all processes
custom_hooks = [dict(type='mmcnx2.AverageLossHook')]
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
