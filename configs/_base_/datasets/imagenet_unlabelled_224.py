# Pictures of a folder, at any depth, without labels: a random crop of 20% to 100% of the area at 224 px, flipped half
# of the time. Other pictures: --cfg-options train_dataloader.dataset.source=FOLDER (or a list file, or a glob). Large
# photographs are decoded no further than a crop needs; tools/shrink_images.py makes copies that are read faster still.
train_dataloader = dict(
    batch_size=512,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='mmcnx2.EpochSeededSampler', shuffle=True),
    dataset=dict(
        type='mmcnx2.UnlabelledImages',
        source='data/imagenet/train',
        pipeline=[
            dict(type='mmcnx2.LoadRandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.0)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ]))
