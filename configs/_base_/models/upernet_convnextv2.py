# UPerNet with an FCN head on stage 3, 150 classes, sliding test at the crop size with stride 2/3 of it. A config sets
# backbone.arch, backbone.drop_path_rate, decode_head.in_channels (the widths of the stages) and
# auxiliary_head.in_channels (the third of them). Checkpoint of the backbone: --cfg-options
# model.backbone.init_cfg.checkpoint=PATH; None trains from scratch and says so.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(512, 512),
        pad_val=0,
        seg_pad_val=255),
    backbone=dict(
        type='mmcnx2.ConvNeXtV2', arch='base', out_indices=(0, 1, 2, 3), drop_path_rate=0.,
        init_cfg=dict(type='Pretrained', checkpoint=None)),
    decode_head=dict(
        type='UPerHead',
        in_channels=[128, 256, 512, 1024],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=512,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4)),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
