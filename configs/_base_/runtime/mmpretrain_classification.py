# Runtime of classification: registries, hooks, logs. Epoch-based; what is kept is the best and the latest. Hooks that
# belong to a recipe (averaged weights) stand in its schedule.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmcnx2'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmcnx2.CheckpointHook', interval=1, max_keep_ckpts=2, save_best='accuracy/top1', rule='greater'),
    non_finite_guard=dict(type='mmcnx2.NonFiniteGuardHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'))
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
randomness = dict(seed=0, diff_rank_seed=True)  # else all processes drop the same blocks and mix alike
load_from = None
resume = False
