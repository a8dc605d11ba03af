"""Step 4 of FCMAE: decoded features -> pixels of each cell, and the loss on the hidden ones.

A cell's pixels are stored row by row, colour last: index = (row * S + column) * C + channel, as in the official code.
Touch this file for target, normalisation and loss. Guarded by tests/models/test_pixel_loss.py.
"""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmcnx2.registry import MODELS

VARIANCE_EPS = 1e-6


def cells_from_images(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """Pixels of each cell, (B, L, S * S * C), cells row by row; the sides must be multiples of S = patch_size."""
    B, C, H, W = images_BCHW.shape
    rows, columns = H // patch_size, W // patch_size
    cells = images_BCHW.reshape(B, C, rows, patch_size, columns, patch_size).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(B, rows * columns, -1)


def images_from_cells(cells_BLP: Tensor, patch_size: int, grid_shape: tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) of cells (B, L, S * S * C): the inverse of `cells_from_images`."""
    B, (rows, columns) = cells_BLP.shape[0], grid_shape
    cells = cells_BLP.reshape(B, rows, columns, patch_size, patch_size, -1).permute(0, 5, 1, 3, 2, 4)
    return cells.reshape(B, -1, rows * patch_size, columns * patch_size)


def normalise_cells(cells_BLP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(cells with mean 0 and variance 1, mean_BL1, std_BL1), each cell over all its values.

    The variance is unbiased (n - 1) and gets 1e-6 before the root, as in the official code. It is taken from the
    centred values: with torch.var the whole takes twice as long on a CPU.
    """
    mean_BL1 = cells_BLP.mean(dim=-1, keepdim=True)
    centred_BLP = cells_BLP - mean_BL1
    variance_BL1 = torch.linalg.vector_norm(centred_BLP, dim=-1, keepdim=True).square() / (cells_BLP.shape[-1] - 1)
    std_BL1 = (variance_BL1 + VARIANCE_EPS).sqrt()
    return centred_BLP / std_BL1, mean_BL1, std_BL1


@MODELS.register_module()
class PixelReconstructionHead(BaseModule):
    """Pixels of every cell, and their mean squared error over the hidden cells.

    Args:
        in_channels: width of the decoder (FCMAE fills it in).
        image_channels: channels of the images (FCMAE fills it in).
        stride: pixels per side that one decoded position stands for (FCMAE fills it in).
        norm_pix: compare with each cell normalised to mean 0 and variance 1. The paper's setting; the official class
            has it off by default and its training script turns it on.
    """

    def __init__(
        self,
        in_channels: int,
        image_channels: int = 3,
        stride: int = 32,
        norm_pix: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.stride = stride
        self.norm_pix = norm_pix
        self.pred = nn.Linear(in_channels, stride * stride * image_channels)
        nn.init.trunc_normal_(self.pred.weight, std=0.02)
        nn.init.zeros_(self.pred.bias)

    def forward(self, decoded_BHWC: Tensor, patch_size: int) -> Tensor:
        """predictions_BLP, in the space of the target: normalised per cell when norm_pix."""
        pixels_BHWP = self.pred(decoded_BHWC)
        _, H, W, _ = pixels_BHWP.shape
        if patch_size == self.stride:
            return pixels_BHWP.flatten(1, 2)
        return cells_from_images(images_from_cells(pixels_BHWP.flatten(1, 2), self.stride, (H, W)), patch_size)

    def loss(self, predictions_BLP: Tensor, images_BCHW: Tensor, visible_BGG: Tensor) -> Tensor:
        """Squared error in float32 (float64 for float64 input), mean over each cell's values, then over the batch's
        hidden cells."""
        S = images_BCHW.shape[-2] // visible_BGG.shape[-2]
        precision = torch.promote_types(images_BCHW.dtype, torch.float32)
        with torch.no_grad():
            target_BLP = cells_from_images(images_BCHW.to(precision), S)
            if self.norm_pix:
                target_BLP = normalise_cells(target_BLP)[0]
            hidden_BL = ~visible_BGG.flatten(1)
        errors_BL = (predictions_BLP.to(precision) - target_BLP).square().mean(dim=-1)
        return errors_BL.masked_fill(~hidden_BL, 0).sum() / hidden_BL.sum()
