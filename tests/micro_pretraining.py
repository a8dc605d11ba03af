"""A pretraining run in small for tests of what looks at models: config, checkpoint and pictures in a folder."""

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from mmcnx2.registry import MODELS

ARCH = dict(depths=[1, 1, 2, 1], channels=[4, 8, 12, 16])
CONFIG = f"""
default_scope = 'mmpretrain'
model = dict(
    type='mmcnx2.FCMAE',
    backbone=dict(type='mmcnx2.ConvNeXtV2', arch=dict({', '.join(f'{k}={v}' for k, v in ARCH.items())})),
    neck=dict(decoder_channels=16), mask_ratio=0.5,
    data_preprocessor=dict(type='mmpretrain.SelfSupDataPreprocessor', mean=[123.675, 116.28, 103.53],
                           std=[58.395, 57.12, 57.375], to_rgb=True))
train_dataloader = dict(
    batch_size=2, num_workers=0, drop_last=True, collate_fn=dict(type='default_collate'),
    sampler=dict(type='mmcnx2.EpochSeededSampler', shuffle=True),
    dataset=dict(type='mmcnx2.UnlabelledImages', source='pictures', pipeline=[
        dict(type='mmcnx2.LoadImage'), dict(type='RandomResizedCrop', scale=64), dict(type='PackInputs')]))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
param_scheduler = [dict(type='LinearLR', start_factor=1e-3, begin=0, end=1, convert_to_iter_based=True)]
"""
COLOURS = dict(red=(220, 40, 40), green=(40, 200, 60), blue=(50, 60, 230))


def write_config(text: str = CONFIG, path: str = 'config.py') -> Config:
    Path(path).write_text(text)
    return Config.fromfile(path)


def write_checkpoint(cfg: Config, path: str = 'checkpoint.pth', seed: int = 0, std: float = 0.3) -> torch.nn.Module:
    """A model of the config with noise in every parameter, so that nothing is zero; it is saved to `path`."""
    model = MODELS.build(cfg.model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return model.eval()


def write_pictures(folder: str = 'pictures', num: int = 6, height: int = 64, width: int = 64) -> list[Path]:
    """Smooth coloured noise; names 0.png, 1.png ... and every third one in a subfolder."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(num):
        path = Path(folder, 'deeper' if i % 3 == 2 else '', f'{i}.png')
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


def write_class_folders(folder: str = 'classes', num: int = 8, noise: int = 5) -> None:
    """A folder per colour, which a backbone of random weights can tell apart."""
    rng = np.random.default_rng(1)
    for name, colour in COLOURS.items():
        Path(folder, name).mkdir(parents=True, exist_ok=True)
        for i in range(num):
            pixels = np.array(colour) + rng.normal(0, noise, (64, 64, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(Path(folder, name, f'{i}.png'))
