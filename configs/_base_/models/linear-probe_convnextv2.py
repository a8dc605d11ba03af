# A linear classifier on a frozen ConvNeXt V2: all stages in evaluation mode, the last map averaged, each feature
# normalised over the batch without learnt scale and shift, 1000 classes. The backbone has no final norm: FCMAE trains
# none, and a fresh one would not be frozen features. A config sets backbone.arch, neck (the average, then the norm) and
# head.in_channels, the width of the last stage.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True),
    backbone=dict(
        type='mmcnx2.ConvNeXtV2', arch='base', out_norm=False, frozen_stages=4,
        init_cfg=dict(type='Pretrained', checkpoint=None)),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1024,
        loss=dict(type='CrossEntropyLoss'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.01, bias=0.)))
