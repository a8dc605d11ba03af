"""Step 2 of unlabelled data, the quick way: a picture file -> a random crop at the size of training.

file --header--> its size as seen --chance--> crop --> JPEG decoded at 1/1, 1/2, 1/4 or 1/8 --> the crop's pixels
                                                  --> turned as the camera was held --> antialiased bicubic --> `img`

A crop that will be made small anyway needs no full decoding: libjpeg-turbo leaves out the high frequencies of each
block of 8 x 8 pixels and gives a picture of half, a quarter or an eighth of the side. Touch this file for how a crop is
drawn, decoded and resized; not for what kinds of files there are (load_image.py) or for mirroring (mmcv's RandomFlip).
Guarded by tests/datasets/test_load_random_resized_crop.py; speeds and differences of pixels:
tools/benchmark/input_speed.py.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from PIL import Image
from torch.nn import functional

from mmcnx2.registry import TRANSFORMS

from .load_image import MAX_PIXELS, LoadImage, check_size, reasons
from .orientation import TURNS, Crop, orientation_of

JPEG_START = b'\xff\xd8\xff'
REDUCTIONS = (8, 4, 2)
NUM_ATTEMPTS = 10


@TRANSFORMS.register_module()
class LoadRandomResizedCrop(BaseTransform):
    """`img` (scale), `img_shape` and `ori_shape` (both (H, W)) from `img_path`; the first transform of a pipeline.

    In the place of mmcnx2.LoadImage and mmpretrain's RandomResizedCrop (backend 'pillow', interpolation 'bicubic'). It
    draws the same crops from the same random numbers, reads the same kinds of files and refuses the same ones. What
    differs, over the crops of 224 px that tools/benchmark/input_speed.py compares (its results stand beside it):

    * resizing is torch's antialiased bicubic for 8 bits instead of Pillow's: most values are equal, some differ by 1,
      single ones by up to 3 of 255 (62 dB or more);
    * a crop that has `oversampling` times the pixels of the result to spare is decoded at 1/2, 1/4 or 1/8 of its side.
      Its edges then move to the nearest multiple of 2, 4 or 8 px, at oversampling=2 at most a quarter of a pixel of
      the result. Photographs of 2,600 x 2,300 px: 0.75 of 255 on average, 45 dB; 40 dB at oversampling=1.

    Pictures that are no 3-channel JPEG are decoded completely, then cropped and resized alike; values that are not of
    8 bits stay float32, and bicubic interpolation may leave their range at sharp edges.

    Args:
        scale: px of the result, one number or (height, width).
        crop_ratio_range: smallest and largest share of the picture's area; mmpretrain's default.
        aspect_ratio_range: smallest and largest width / height of the crop, drawn evenly in its logarithm.
        oversampling: 1 or more; a JPEG is decoded at the greatest reduction that leaves the crop so many times `scale`
            in both directions, or completely. At 1 less is decoded and more detail differs; float('inf') always decodes
            completely.
        in_channels, channel_order, as_stored, max_pixels: as mmcnx2.LoadImage's.

    Raises:
        UnreadableImage: from `transform`, with the reason.
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        scale: int | Sequence[int],
        crop_ratio_range: Sequence[float] = (0.08, 1.0),
        aspect_ratio_range: Sequence[float] = (3 / 4, 4 / 3),
        oversampling: float = 2.0,
        in_channels: int = 3,
        channel_order: str | None = None,
        as_stored: bool | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        size = (scale, scale) if isinstance(scale, int) else tuple(scale)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f'scale={scale} must be a number of pixels or (height, width), 1 or more.')
        low, high = crop_ratio_range
        if not 0 < low <= high <= 1:
            raise ValueError(
                f'crop_ratio_range={crop_ratio_range} must be two shares of the area above 0, the smaller first.'
            )
        if not 0 < aspect_ratio_range[0] <= aspect_ratio_range[1]:
            raise ValueError(
                f'aspect_ratio_range={aspect_ratio_range} must be two ratios width / height above 0, the smaller first.'
            )
        if not oversampling >= 1:
            raise ValueError(
                f'oversampling={oversampling} must be 1 or more: a crop is never decoded smaller than its result.'
            )
        self.scale = size
        self.crop_ratio_range, self.aspect_ratio_range = tuple(crop_ratio_range), tuple(aspect_ratio_range)
        self.oversampling = oversampling
        self.loader = LoadImage(in_channels, channel_order, as_stored, max_pixels)  # of whole pictures

    def transform(self, results: dict) -> dict:
        content = self._jpeg_bytes(results['img_path'])
        if content is not None:
            loaded = self._crop_of_jpeg(content)
        else:
            whole = self.loader({'img_path': results['img_path']})
            crop = self._draw(*whole['ori_shape'])
            part_HWC = whole['img'][crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
            loaded = whole['ori_shape'], resized(part_HWC, self.scale)
        results['ori_shape'], results['img'] = loaded
        results['img_shape'] = self.scale
        return results

    def _jpeg_bytes(self, path: str) -> bytes | None:
        """The file's content when it may be decoded in part: a JPEG that becomes 3 channels of 8 bits."""
        if self.loader.in_channels != 3 or self.loader.as_stored:
            return None
        with reasons(), open(path, 'rb') as file:
            start = file.read(len(JPEG_START))
            return start + file.read() if start == JPEG_START else None

    def _crop_of_jpeg(self, content: bytes) -> tuple[tuple[int, int], np.ndarray]:
        """Size of the picture as seen, and the resized crop."""
        with reasons():
            image = Image.open(io.BytesIO(content))
            check_size(image.size, self.loader.max_pixels)
        turn = TURNS[orientation_of(image)]
        seen_size = turn.seen_size(image.height, image.width)
        crop = turn.stored_crop(self._draw(*seen_size), seen_size)
        reduction, box = self._reduced(crop, turn.seen_size(*self.scale))
        if reduction > 1:
            expected = -(-image.width // reduction), -(-image.height // reduction)
            image.draft(None, (image.width // reduction, image.height // reduction))
            assert image.size == expected, f'at 1/{reduction} a JPEG became {image.size}, not {expected}'
        with reasons():
            part = image.crop(box)  # decodes
            part_HWC = np.array(part if part.mode == 'RGB' else part.convert('RGB'))
        values = resized(turn.seen(part_HWC), self.scale)
        return seen_size, cv2.cvtColor(values, cv2.COLOR_RGB2BGR) if self.loader.channel_order == 'bgr' else values

    def _draw(self, height: int, width: int) -> Crop:
        return draw_crop(height, width, self.crop_ratio_range, self.aspect_ratio_range)

    def _reduced(self, crop: Crop, size: tuple[int, int]) -> tuple[int, tuple[int, int, int, int]]:
        """By how much to decode smaller, and (left, top, right, bottom) of the crop in the picture decoded so."""
        for reduction in REDUCTIONS:
            left, right = round(crop.left / reduction), round((crop.left + crop.width) / reduction)
            top, bottom = round(crop.top / reduction), round((crop.top + crop.height) / reduction)
            if bottom - top >= self.oversampling * size[0] and right - left >= self.oversampling * size[1]:
                return reduction, (left, top, right, bottom)
        return 1, (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(scale={self.scale}, crop_ratio_range={self.crop_ratio_range}, '
            f'aspect_ratio_range={self.aspect_ratio_range}, oversampling={self.oversampling}, loader={self.loader})'
        )


def draw_crop(height: int, width: int, crop_ratio_range: Sequence[float], aspect_ratio_range: Sequence[float]) -> Crop:
    """A random part of a picture: area and shape first, then the place, from NumPy's global generator.

    The numbers are drawn in the order in which mmpretrain's RandomResizedCrop draws them. When ten shapes do not fit
    into the picture: its middle, as large as the range of shapes allows.
    """
    log_ratios = [math.log(ratio) for ratio in aspect_ratio_range]
    for _ in range(NUM_ATTEMPTS):
        area = np.random.uniform(*crop_ratio_range) * (height * width)
        ratio = math.exp(np.random.uniform(*log_ratios))
        crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 1 <= crop_height <= height and 1 <= crop_width <= width:
            top = np.random.randint(height - crop_height + 1)
            left = np.random.randint(width - crop_width + 1)
            return Crop(int(top), int(left), crop_height, crop_width)
    narrowest, widest = aspect_ratio_range
    crop_height = max(1, min(height, round(width / narrowest)))
    crop_width = max(1, min(width, round(height * widest)))
    return Crop((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def resized(values_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Antialiased bicubic, 8 bits or float32; a new array (height, width, C)."""
    writeable_HWC = np.require(values_HWC, requirements=['C', 'W'])  # torch warns of others
    channels_first = torch.from_numpy(writeable_HWC).permute(2, 0, 1)[None]
    resized_BCHW = functional.interpolate(channels_first, size=size, mode='bicubic', antialias=True)
    return np.ascontiguousarray(resized_BCHW[0].permute(1, 2, 0).numpy())
