# FCMAE of the paper: 60% of the 32 px cells hidden, one decoder block of width 512, each target cell normalised by
# itself. The released model class has norm_pix off and its training script turns it on; the paper normalises.
model = dict(
    type='mmcnx2.FCMAE',
    data_preprocessor=dict(
        type='mmpretrain.SelfSupDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True),
    backbone=dict(type='mmcnx2.ConvNeXtV2', arch='base'),
    neck=dict(type='mmcnx2.FCMAEDecoder', decoder_channels=512, decoder_depth=1),
    head=dict(type='mmcnx2.PixelReconstructionHead', norm_pix=True),
    mask_ratio=0.6,
    patch_size=32,
    layout='visible',
    grn_over='image')
