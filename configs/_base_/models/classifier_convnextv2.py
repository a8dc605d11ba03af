# ConvNeXt V2 with a linear classifier on its averaged last map, 1000 classes, label smoothing. A config sets
# backbone.arch, backbone.drop_path_rate, head.in_channels (the width of the last stage), head.loss.label_smooth_val
# and, where the recipe mixes images, train_cfg.augments: one of them is drawn for each batch. Checkpoint of the
# backbone: --cfg-options model.backbone.init_cfg.checkpoint=PATH; None trains from scratch and says so. The norm before
# the classifier comes along from a classifier's checkpoint and starts fresh after FCMAE, which has none. The classifier
# starts at 0.001 of the usual 0.02. It is cut at 5 standard deviations: the default cut, at 2.0, lets one weight in 17
# million start at -2, as mmengine's float32 formula ends in infinity there.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True),
    backbone=dict(
        type='mmcnx2.ConvNeXtV2', arch='base', gap_before_final_norm=True, drop_path_rate=0.,
        init_cfg=dict(type='Pretrained', checkpoint=None)),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1024,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02 * 0.001, a=-1e-4, b=1e-4, bias=0.)))
