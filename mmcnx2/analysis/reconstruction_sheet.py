"""A pretraining model and pictures -> the rows of a reconstruction sheet, its caption and its files.

For tools/visualize_reconstruction.py and for the hook that draws a sheet during training. Touch this file for what a
sheet shows; the arithmetic is in reconstruction.py, the drawing in figures.py. Guarded by
tests/analysis/test_reconstruction_sheet.py and tests/analysis/test_visualize_reconstruction.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmcnx2.atomic_write import open_atomically
from mmcnx2.models.fcmae.masking import random_visible

from . import reconstruction
from .figures import PictureRow, draw_sheet
from .pictures import preprocessed

FILLS = {'own': ('own',), 'nearest': ('nearest',), 'both': ('own', 'nearest')}
ROW_LABELS = {'own': 'filled, own', 'nearest': 'filled, near'}
HIDDEN_GREY = 128


@dataclass(frozen=True)
class ReconstructionSheet:
    """Rows of pictures, and per mask ratio the mean error over hidden cells in the space of training."""

    rows: list[PictureRow]
    ratios: list[float]
    errors: list[float]
    caption: str

    def draw(self, path: str | Path) -> Path:
        """Writes the sheet as a PNG file."""
        return draw_sheet(self.rows, path, self.caption)

    def write_single_files(self, folder: str | Path, names: Sequence[str]) -> None:
        """Writes every tile as a PNG file of its own; `names` are those of the pictures."""
        for row in self.rows:
            for index, (picture, name) in enumerate(zip(row.pictures, names, strict=True)):
                file_name = f'{index:03d}_{name}_{re.sub("[, ]+", "-", row.label)}.png'
                pixels = np.ascontiguousarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
                with open_atomically(Path(folder) / file_name) as file:
                    Image.fromarray(pixels).save(file, format='PNG')


@torch.no_grad()
def reconstruction_sheet(
    model: nn.Module,
    pictures_BCHW: Tensor,
    ratios: Sequence[float] | None = None,
    seed: int = 0,
    fills: str = 'both',
    shown_in_rgb: bool = True,
) -> ReconstructionSheet:
    """Input, and for every ratio what the encoder saw and the reconstruction, pasted around the visible cells.

    Picture i is masked from seed + i alone, so two checkpoints, or two epochs, are shown with the same masks. The
    model should be in evaluation mode.

    Args:
        model: an mmcnx2.FCMAE with its data preprocessor.
        pictures_BCHW: as the config's reader gives them, not normalised; the sides multiples of the patch size.
        ratios: shares of hidden cells; None: the model's.
        fills: whose mean and spread a hidden cell gets, when the model predicts it up to these: 'own', 'nearest' or
            'both' (see reconstruction.py).
        shown_in_rgb: the model's images are RGB; else BGR, which is turned for showing.

    Raises:
        ValueError: sizes, ratios or fills are out of range.
    """
    if fills not in FILLS:
        raise ValueError(f'fills={fills!r}; allowed are {tuple(FILLS)}')
    ratios = list(ratios) if ratios else [model.mask_ratio]
    preprocessor, norm_pix, patch_size = model.data_preprocessor, model.head.norm_pix, model.patch_size
    images_BCHW = preprocessed(pictures_BCHW, preprocessor)
    grid_shape = reconstruction.grid_shape_of(images_BCHW, patch_size)
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    is_turned = images_BCHW.shape[1] == 3 and not shown_in_rgb

    def shown(images: Tensor) -> list[np.ndarray]:
        pictures = reconstruction.displayable(images, mean, std).cpu().numpy()
        return list(pictures[..., ::-1] if is_turned else pictures)

    rows, errors = [PictureRow('input', shown(images_BCHW))], []
    seeds = [seed + i for i in range(len(images_BCHW))]
    for ratio in ratios:
        visible_BGG = random_visible(len(images_BCHW), grid_shape, ratio, images_BCHW.device, seeds)
        predictions_BLP = model.reconstruct(images_BCHW, visible_BGG)
        arguments = (images_BCHW, visible_BGG, predictions_BLP, patch_size, norm_pix)
        errors.append(float(reconstruction.hidden_error(*arguments).mean()))
        suffix = f' {ratio:g}' if len(ratios) > 1 else ''
        seen_B1HW = reconstruction.visible_pixels(images_BCHW, visible_BGG, patch_size).cpu().numpy()
        masked = [
            np.where(seen_1HW[0, :, :, None], picture, np.uint8(HIDDEN_GREY))
            for seen_1HW, picture in zip(seen_B1HW, rows[0].pictures, strict=True)
        ]
        rows.append(PictureRow(f'masked{suffix}', masked))
        for fill in FILLS[fills] if norm_pix else FILLS[fills][:1]:
            pasted = reconstruction.paste_reconstruction(*arguments, statistics=fill)
            rows.append(PictureRow(f'{ROW_LABELS[fill]}{suffix}', shown(pasted)))
    return ReconstructionSheet(rows, ratios, errors, _caption(ratios, errors, patch_size, norm_pix, FILLS[fills]))


def _caption(
    ratios: Sequence[float], errors: Sequence[float], patch_size: int, norm_pix: bool, fills: Sequence[str]
) -> str:
    measured = ', '.join(f'{error:.3f} at mask ratio {ratio:g}' for ratio, error in zip(ratios, errors, strict=True))
    text = f"Visible cells ({patch_size} px) are the input's own pixels, hidden cells the prediction. "
    if norm_pix:
        origin = {'own': 'the hidden cell itself (own)', 'nearest': 'the nearest visible cells (near)'}
        sources = ' or '.join(origin[fill] for fill in fills)
        text += (
            f'A cell is predicted up to its mean and spread; here these are of {sources}. '
            f'Mean squared error over hidden cells, each normalised: {measured} (a flat cell scores 1).'
        )
    else:
        text += f'Mean squared error over hidden cells, in normalised pixels: {measured}.'
    return text
