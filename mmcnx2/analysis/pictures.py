"""Pictures as a config's model gets them, without its augmentations: files, the config's own reader, one size.

    places --find_pictures--> paths --PictureReader--> (C, H, W) in the file's own values --data preprocessor--> images

The preprocessor (mean, std, order of the channels) belongs to the model; everything before it stands here, for every
tool and hook that shows pictures to a trained model. Touch this file for which part of a config says how a picture is
read; not for reading itself (mmcnx2/datasets/load_image.py) nor for augmentation. Guarded by
tests/analysis/test_pictures.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmcnx2.datasets.image_files import find_images
from mmcnx2.registry import MODELS, TRANSFORMS


def find_pictures(places: Sequence[str | Path], limit: int | None = None) -> list[Path]:
    """The first `limit` picture files of the places, in the order given.

    A place is a picture, a folder (searched with its subfolders, by name), a list file or a glob, as for
    `find_images`.
    """
    if limit is not None and limit < 1:
        raise ValueError(f'--num {limit}: at least one picture is needed')
    found: list[Path] = []
    for place in map(Path, places):
        if place.is_file() and place.suffix != '.txt':
            found.append(place)
            continue
        try:
            found += map(Path, find_images(place))
        except FileNotFoundError as error:
            raise FileNotFoundError(f'{place} is neither a picture nor a folder, a list (.txt) or a glob') from error
    return found[:limit]


def training_pipeline(cfg: Config) -> list[dict]:
    """The transforms of the training set, inside wrappers such as RepeatDataset; [] when the config has none."""
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    return list(dataset.get('pipeline') or [])


def crop_size(cfg: Config, given: Sequence[int] | None = None) -> tuple[int, int]:
    """(height, width) in pixels: as given, else of the last transform of the training pipeline that sets one."""
    if given:
        if len(given) > 2 or min(given) < 1:
            raise ValueError(f'--size {list(given)}: give one number (square) or height and width, in pixels')
        return given[0], given[-1]
    for transform in reversed(training_pipeline(cfg)):
        for name in ('crop_size', 'scale', 'size'):
            size = transform.get(name)
            if isinstance(size, int):
                return size, size
            if isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(side, int) for side in size):
                is_turned = name == 'scale' and not str(transform.get('type')).endswith('RandomResizedCrop')
                return (size[1], size[0]) if is_turned else tuple(size)  # Resize's scale is (width, height)
    raise ValueError('the training pipeline of this config names no crop size; give --size')


class PictureReader:
    """A path -> (C, H, W), float32, in the values and the channel order of the config's own reader.

    The picture is scaled (bicubic, with antialiasing) until it covers `size / crop_share`, and `size` is cut from its
    centre. It can be sent to the workers of a data loader.

    Args:
        cfg: whole config; its training pipeline's first transform reads the file.
        size: (height, width) in pixels.
        crop_share: in (0, 1]; 0.875 is what classifiers are tested with (224 of 256 px), 1 cuts away nothing more than
            the longer side's ends.

    Raises:
        ValueError: crop_share is out of its range; from a call, the file cannot be read (it is named).
    """

    def __init__(self, cfg: Config, size: tuple[int, int], crop_share: float = 1.0) -> None:
        if not 0 < crop_share <= 1:
            raise ValueError(f'crop_share={crop_share}: the share of the picture that is kept lies above 0, up to 1')
        pipeline = training_pipeline(cfg)
        self.transform = pipeline[0] if pipeline else dict(type='LoadImageFromFile')
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            read = TRANSFORMS.build(dict(self.transform))
        self._read = getattr(read, 'loader', read)  # of mmcnx2.LoadRandomResizedCrop: whole pictures, not crops
        self.size, self.crop_share = tuple(size), crop_share

    def __call__(self, path: str | Path) -> Tensor:
        try:
            loaded = self._read({'img_path': str(path), 'sample_idx': 0})
        except (ValueError, OSError, AssertionError) as error:  # mmcv asserts that OpenCV decoded something
            raise ValueError(f'{path} cannot be read as a picture: {error}') from error
        if loaded is None or loaded.get('img') is None:
            raise ValueError(f'{path} cannot be read as a picture')
        values_HWC = np.atleast_3d(loaded['img'])
        picture_CHW = torch.from_numpy(np.ascontiguousarray(values_HWC.transpose(2, 0, 1))).float()
        height, width = picture_CHW.shape[1:]
        wanted = [side / self.crop_share for side in self.size]
        scale = max(wanted[0] / height, wanted[1] / width)
        resized = [max(side, round(length * scale)) for side, length in zip(self.size, (height, width), strict=True)]
        picture_CHW = F.interpolate(picture_CHW[None], resized, mode='bicubic', antialias=True)[0]
        picture_CHW = picture_CHW.clamp(float(values_HWC.min()), float(values_HWC.max()))
        top, left = ((length - side) // 2 for length, side in zip(resized, self.size, strict=True))
        return picture_CHW[:, top : top + self.size[0], left : left + self.size[1]]


def load_pictures(cfg: Config, paths: Sequence[str | Path], size: tuple[int, int], crop_share: float = 1.0) -> Tensor:
    """(B, C, H, W) of the files, as `PictureReader` reads them."""
    reader = PictureReader(cfg, size, crop_share)
    return torch.stack([reader(path) for path in paths])


def preprocessor_config(cfg: Config) -> dict:
    """The data preprocessor of the config, wherever its library keeps it; {} when it has none."""
    return dict(cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {})


def build_preprocessor(cfg: Config) -> nn.Module | None:
    """The config's data preprocessor as it is in a test, without padding of its own; None when the config has none."""
    options = preprocessor_config(cfg)
    if not options:
        return None
    if 'type' not in options:  # mmpretrain's configs leave it out
        options['type'] = 'mmpretrain.ClsDataPreprocessor'
    for name in ('test_cfg', 'batch_augments'):
        options.pop(name, None)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return MODELS.build(options)


def preprocessed(pictures_BCHW: Tensor, preprocessor: nn.Module | None) -> Tensor:
    """Images as the model gets them: of the preprocessor's device, normalised, in its order of channels."""
    if preprocessor is None:
        return pictures_BCHW.float()
    return preprocessor({'inputs': pictures_BCHW, 'data_samples': None}, False)['inputs']


def is_shown_in_rgb(cfg: Config) -> bool:
    """True when the model's inputs are RGB: the config's reader gives that, or the preprocessor turns BGR round."""
    reader = (training_pipeline(cfg) or [{}])[0]
    preprocessor = preprocessor_config(cfg)
    turned = any(preprocessor.get(name) for name in ('to_rgb', 'bgr_to_rgb'))
    return turned != (reader.get('channel_order') == 'rgb')
