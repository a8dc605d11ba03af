"""Unlabelled pictures that stay in the memory of the GPU, where crops of a whole batch are cut and resized at once.

files --once, at the start--> side x side px, 8 bits, all of them on the device
batch of indices --> crops drawn --> two products with matrices of bicubic weights --> mirrored --> inputs (B, C, H, W)

A small network at 128 px takes tens of thousands of pictures per second, more than many cores can decode; 10,000
pictures of 192 px fill 1.1 GB. Touch this file for how such a batch is made; not for how files are found and read, nor
for what happens to bad ones (unlabelled_images.py). Guarded by tests/datasets/test_resident_images.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from mmcnx2.registry import DATASETS, FUNCTIONS

from .image_files import EXTENSIONS
from .load_random_resized_crop import NUM_ATTEMPTS, LoadRandomResizedCrop, resized
from .unlabelled_images import UnlabelledImages

LARGEST_SHARE = 0.7  # of the free memory of a GPU: the rest is for training
CUBIC = -0.5  # the parameter of the bicubic kernel in Pillow, and in torch with antialias=True
MEGABYTE = 2**20


@FUNCTIONS.register_module()
def whole_batch(batch: Any) -> Any:
    """The collate_fn for datasets that give whole batches: leaves them as they are."""
    return batch


@DATASETS.register_module()
class ResidentImages(Dataset):
    """mmcnx2.UnlabelledImages whose pictures all stay on the device at `side` px, where whole batches are cropped.

    The pipeline is that of the pretraining configs, and nothing else: mmcnx2.LoadRandomResizedCrop, RandomFlip (or
    none), PackInputs. Crops have the same distribution and are resized by the same antialiased bicubic; but of pictures
    of `side` px, and a picture that is not square is stored with its sides changed to that (its crops are drawn in its
    own proportions). Random numbers come from torch's generator of the device, whose state is in the checkpoints, not
    from seeds of the samples.

    The data loader needs num_workers=0 and collate_fn=dict(type='mmcnx2.whole_batch'). In a distributed run each
    process keeps all pictures.

    Args:
        source, data_root, extensions, max_bad_share: as mmcnx2.UnlabelledImages', bad files too.
        pipeline: as above; 3 channels of 8 bits.
        side: px of the stored pictures; about scale / sqrt(smallest crop_ratio) loses nothing.
        device: where the pictures stay; None: where the model is trained.

    Raises:
        ValueError: another pipeline; the pictures do not fit into the memory of the GPU; the data loader has workers.
        FileNotFoundError: the source does not exist.
    """

    makes_whole_batches = True
    metainfo = dict(UnlabelledImages.METAINFO)

    def __init__(
        self,
        source: str | Path,
        pipeline: Sequence[dict],
        side: int = 224,
        data_root: str | Path = '',
        extensions: Sequence[str] = EXTENSIONS,
        max_bad_share: float = 0.1,
        device: str | None = None,
    ) -> None:
        if side < 1:
            raise ValueError(f'side={side} is a number of pixels, 1 or more.')
        self.side = side
        self.crop, self.flip_prob = _crop_and_flip(pipeline)
        self.device = torch.device(device or get_device())
        reading = [self.crop.loader, self._as_stored]
        self.dataset = UnlabelledImages(source, reading, data_root, extensions, max_bad_share)
        self.dataset.full_init()
        self._pictures_NCSS: Tensor | None = None
        self._sizes_N2: Tensor | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, of a batch of its own."""
        return dict(inputs=self.__getitems__([index])['inputs'][0], data_samples=None)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """dict(inputs: uint8 (B, C, height, width) on the device, data_samples: None)."""
        if get_worker_info() is not None:
            raise ValueError(
                'mmcnx2.ResidentImages makes its batches on the device, where workers are of no use: set '
                'train_dataloader.num_workers=0 and persistent_workers=False.'
            )
        if self._pictures_NCSS is None:
            self._load()
        index_B = torch.as_tensor([int(index) for index in indices]).to(self.device)
        top, left, height, width = self._draw(self._sizes_N2[index_B]).unbind(1)
        return dict(inputs=self._crops(index_B, top, left, height, width), data_samples=None)

    def _as_stored(self, results: dict) -> dict:
        """The last step of the pipeline that reads a file."""
        picture_HWC = resized(results['img'], (self.side, self.side))
        return dict(picture=picture_HWC, size=results['ori_shape'])

    def _load(self) -> None:
        num_bytes = 3 * len(self) * self.side**2
        if self.device.type == 'cuda':
            free, _ = torch.cuda.mem_get_info(self.device)
            if num_bytes > LARGEST_SHARE * free:
                raise ValueError(
                    f'{len(self)} pictures of {self.side} px need {num_bytes / MEGABYTE:,.0f} MB, more than '
                    f'{LARGEST_SHARE:.0%} of the {free / MEGABYTE:,.0f} MB free on {self.device}. Lower side, or take '
                    'mmcnx2.UnlabelledImages with mmcnx2.LoadRandomResizedCrop, which read files as they go.'
                )
        started = time.perf_counter()
        pictures_NCSS = np.empty((len(self), 3, self.side, self.side), np.uint8)
        sizes_N2 = np.empty((len(self), 2), np.float64)

        def load(index: int) -> None:
            loaded = self.dataset[index]
            pictures_NCSS[index], sizes_N2[index] = loaded['picture'].transpose(2, 0, 1), loaded['size']

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoding and resizing leave Python's lock
            for _ in pool.map(load, range(len(self))):
                pass
        self._pictures_NCSS = torch.from_numpy(pictures_NCSS).to(self.device)
        self._sizes_N2 = torch.from_numpy(sizes_N2).to(self.device)
        print_log(
            f'{len(self)} pictures of {self.side} px ({num_bytes / MEGABYTE:,.0f} MB) loaded to {self.device} in '
            f'{time.perf_counter() - started:.0f} s',
            'current',
        )

    def _draw(self, sizes_B2: Tensor) -> Tensor:
        """(top, left, height, width) (B, 4) of random crops, in pixels of the stored pictures; as `draw_crop` draws:
        the first of ten shapes that fits, else the middle."""
        B = len(sizes_B2)
        noise_BA4 = torch.rand(B, NUM_ATTEMPTS, 4, dtype=torch.float64, device=self.device)
        low, high = self.crop.crop_ratio_range
        area_BA = (low + (high - low) * noise_BA4[..., 0]) * sizes_B2.prod(1, keepdim=True)
        narrow, wide = np.log(self.crop.aspect_ratio_range).tolist()
        ratio_BA = (narrow + (wide - narrow) * noise_BA4[..., 1]).exp()
        shape_BA2 = torch.stack([(area_BA / ratio_BA).sqrt(), (area_BA * ratio_BA).sqrt()], -1).round()
        fits_BA = ((shape_BA2 >= 1) & (shape_BA2 <= sizes_B2[:, None])).all(-1)
        first_B = fits_BA.int().argmax(1)  # 0 where none fits
        row_B = torch.arange(B, device=self.device)
        shape_B2 = shape_BA2[row_B, first_B]
        start_B2 = (noise_BA4[row_B, first_B, 2:] * (sizes_B2 - shape_B2 + 1)).floor()
        narrowest, widest = self.crop.aspect_ratio_range
        largest_B2 = torch.stack([sizes_B2[:, 1] / narrowest, sizes_B2[:, 0] * widest], 1).round()
        largest_B2 = largest_B2.clamp(min=1).minimum(sizes_B2)
        fits_B1 = fits_BA.any(1, keepdim=True)
        shape_B2 = torch.where(fits_B1, shape_B2, largest_B2)
        start_B2 = torch.where(fits_B1, start_B2, ((sizes_B2 - largest_B2) / 2).floor())
        to_stored_B2 = self.side / sizes_B2
        return torch.cat([start_B2 * to_stored_B2, shape_B2 * to_stored_B2], 1)

    def _crops(self, index_B: Tensor, top_B: Tensor, left_B: Tensor, height_B: Tensor, width_B: Tensor) -> Tensor:
        """uint8 (B, C, height, width), mirrored at random."""
        dtype = torch.float16 if self.device.type == 'cuda' else torch.float32  # 8 bits of picture, 11 of float16
        down_BOI = resize_weights(top_B, height_B, self.side, self.crop.scale[0])
        across_BOI = resize_weights(left_B, width_B, self.side, self.crop.scale[1])
        is_mirrored_B = torch.rand(len(index_B), device=self.device) < self.flip_prob
        across_BOI = torch.where(is_mirrored_B[:, None, None], across_BOI.flip(1), across_BOI)
        pictures_BCSS = self._pictures_NCSS[index_B].to(dtype)
        rows_BCOS = down_BOI.to(dtype)[:, None] @ pictures_BCSS
        crops_BCOO = rows_BCOS @ across_BOI.to(dtype).mT[:, None]
        return crops_BCOO.round().clamp(0, 255).to(torch.uint8)


def _crop_and_flip(pipeline: Sequence[dict]) -> tuple[LoadRandomResizedCrop, float]:
    """The first transform, and the chance that a crop is mirrored. ValueError for a pipeline that is not made here."""
    steps = [dict(step) for step in pipeline]
    kinds = [str(step.pop('type', '')).split('.')[-1] for step in steps]
    is_known = kinds[:1] == ['LoadRandomResizedCrop'] and kinds[1:] in (['PackInputs'], ['RandomFlip', 'PackInputs'])
    flip = steps[1] if is_known and len(steps) == 3 else dict(prob=0.0)
    is_horizontal = flip.pop('direction', 'horizontal') == 'horizontal'
    is_chance = set(flip) == {'prob'} and isinstance(flip['prob'], (int, float)) and 0 <= flip['prob'] <= 1
    if not (is_known and is_horizontal and is_chance) or steps[-1]:
        raise ValueError(
            f'mmcnx2.ResidentImages makes one pipeline, and got {list(map(dict, pipeline))}. Give '
            'mmcnx2.LoadRandomResizedCrop, RandomFlip with prob (horizontal) or none, and PackInputs; or take '
            'mmcnx2.UnlabelledImages for another one.'
        )
    crop = LoadRandomResizedCrop(**steps[0])
    if crop.loader.in_channels != 3 or crop.loader.as_stored:
        raise ValueError('mmcnx2.ResidentImages keeps 3 channels of 8 bits; take mmcnx2.UnlabelledImages for others.')
    return crop, flip['prob']


def resize_weights(first_B: Tensor, length_B: Tensor, num_in: int, num_out: int) -> Tensor:
    """float32 (B, num_out, num_in): what each input pixel of a line gives to each output pixel when the part from
    `first` on, `length` pixels long, becomes `num_out` pixels, by antialiased bicubic. Pixels outside of the part give
    nothing. Part and pixels in input pixels from the line's start, fractions allowed."""
    first_B, length_B = first_B.float(), length_B.float()
    step_B11 = (length_B / num_out)[:, None, None]
    places = torch.arange(num_in, device=first_B.device) + 0.5
    centres_BO = first_B[:, None] + (torch.arange(num_out, device=first_B.device) + 0.5) * (length_B / num_out)[:, None]
    t = ((places - centres_BO[..., None]) / step_B11.clamp(min=1)).abs()
    near = ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1
    far = CUBIC * (((t - 5) * t + 8) * t - 4)
    weights_BOI = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    is_inside_BI = (places > first_B[:, None]) & (places < (first_B + length_B)[:, None])
    weights_BOI = weights_BOI * is_inside_BI[:, None]
    return weights_BOI / weights_BOI.sum(-1, keepdim=True)
