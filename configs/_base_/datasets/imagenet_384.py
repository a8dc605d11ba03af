# ImageNet-1K in class folders, train/ and val/, in the order of their names, 384 px. Training: a random crop of 8% to
# 100% of the area, flipped half of the time, RandAugment (two operations of magnitude 9 with deviation 0.5 out of
# timm's increasing set, each applied half of the time), and a quarter of the images with a rectangle of noise. The test
# resizes to 384 x 384 px without a crop and without keeping the ratio, as the official code does from 384 px on.
# type='CustomDataset' takes class folders of any number and name, for own images; configs/README.md has the options.
mean_bgr = [103.53, 116.28, 123.675]  # images are loaded as BGR
std_bgr = [57.375, 57.12, 58.395]

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=384, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandAugment', policies='timm_increasing', num_policies=2, magnitude_level=9, magnitude_std=0.5,
        total_level=10, hparams=dict(pad_val=[round(value) for value in mean_bgr], interpolation='bicubic')),
    dict(
        type='RandomErasing', erase_prob=0.25, mode='rand', min_area_ratio=0.02, max_area_ratio=1 / 3,
        fill_color=mean_bgr, fill_std=std_bgr),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='mmcnx2.EpochSeededSampler', shuffle=True),
    dataset=dict(
        type='ImageNet',
        data_root='data/imagenet',
        data_prefix='train',
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ImageNet',
        data_root='data/imagenet',
        data_prefix='val',
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator

# Working values only: a change of them on the command line would not reach the settings above.
del mean_bgr, std_bgr, train_pipeline, test_pipeline
