# Runtime of segmentation: registries, hooks, logs. Iteration-based.
default_scope = 'mmseg'
custom_imports = dict(imports=['mmcnx2'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmcnx2.CheckpointHook', by_epoch=False, interval=16000, max_keep_ckpts=2, save_best='mIoU',
        rule='greater'),
    non_finite_guard=dict(type='mmcnx2.NonFiniteGuardHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)
tta_model = dict(type='SegTTAModel')  # used by the multi-scale test
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
