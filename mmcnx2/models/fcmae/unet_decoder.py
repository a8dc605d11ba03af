"""Step 3 of FCMAE, as a UNet: from stride 32 up to stride 4, with or without the encoder's earlier maps.

One of the decoders that the paper compares (arXiv 2301.00808, table 1a: 83.7 with skips, 83.5 without, at 1.7 times the
time of the plain one, decoder.py). The paper names it and prints no layout; this one is ours: widths halve as the map
doubles, an upsampling is a linear layer to 2 x 2 positions, a skip is concatenated and brought back to the width by a
linear layer, and each level has ConvNeXt V2 blocks.

Touch this file for the UNet's architecture. Guarded by tests/models/test_decoders.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmcnx2.registry import MODELS

from ..backbones.convnext_v2 import ConvNeXtV2Block
from ..layers import DenseLayout
from .decoder import MaskTokenDecoder

NUM_UPSAMPLINGS = 3


class UNetLevel(nn.Module):
    """x_BHWC to twice its rows and columns and half its width; the skip, where there is one, comes in before the
    blocks.

    Args:
        in_channels: width that comes in, even.
        skip_channels: width of the skip; 0 for none.
        blocks: at the new width, each called with a layout.
    """

    def __init__(self, in_channels: int, skip_channels: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.width = in_channels // 2
        self.upsample = nn.Linear(in_channels, 4 * self.width)
        self.fuse = nn.Linear(self.width + skip_channels, self.width) if skip_channels else None
        self.blocks = nn.ModuleList(blocks)
        for layer in (self.upsample, self.fuse):
            if layer is not None:
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x_BHWC: Tensor, skip_BHWC: Tensor | None, layout: DenseLayout) -> Tensor:
        """(B, 2 H, 2 W, C / 2)."""
        B, H, W, _ = x_BHWC.shape
        x = self.upsample(x_BHWC).view(B, H, W, 2, 2, self.width).transpose(2, 3)
        x = x.reshape(B, 2 * H, 2 * W, self.width)
        if self.fuse is not None:
            x = self.fuse(torch.cat([x, skip_BHWC], dim=-1))
        for block in self.blocks:
            x = block(x, layout)
        return x


@MODELS.register_module()
class UNetDecoder(MaskTokenDecoder):
    """Decoded map at an eighth of the encoder's stride, an eighth of `decoder_channels` wide.

    Projection and mask token as in FCMAEDecoder, blocks, then three levels. The encoder's earlier maps are zero in
    hidden cells, so a skip carries nothing that the encoder did not see.

    Args:
        in_channels: width of the encoder's last stage (FCMAE fills it in).
        decoder_channels: width at the encoder's stride, a multiple of 8.
        decoder_depth: blocks at the encoder's stride and at each level; 0 is allowed.
        skips: take the encoder's three earlier maps.
        skip_channels: their widths, finest first (FCMAE fills them in).
        kernels: as the backbone's (FCMAE fills it in).
        use_grn, response_norm: of its blocks; meant as the backbone's arguments, but not filled in from there.
    """

    upsampling = 2**NUM_UPSAMPLINGS

    def __init__(
        self,
        in_channels: int,
        decoder_channels: int = 512,
        decoder_depth: int = 1,
        skips: bool = False,
        skip_channels: Sequence[int] = (),
        kernels: str = 'auto',
        use_grn: bool = True,
        response_norm: str | dict = 'grn',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, decoder_channels, decoder_depth, init_cfg)
        if decoder_channels % self.upsampling:
            raise ValueError(
                f'decoder_channels={decoder_channels} is halved {NUM_UPSAMPLINGS} times on the way up; choose a '
                f'multiple of {self.upsampling}.'
            )
        if len(skip_channels) != (NUM_UPSAMPLINGS if skips else 0):
            raise ValueError(
                f'skips={skips} with skip_channels={list(skip_channels)}: there are {NUM_UPSAMPLINGS} skips or none.'
            )

        def blocks(width: int) -> list[nn.Module]:
            return [ConvNeXtV2Block(width, use_grn=use_grn, response_norm=response_norm) for _ in range(decoder_depth)]

        self.kernels = kernels
        self.out_channels = decoder_channels // self.upsampling
        self.blocks = nn.ModuleList(blocks(decoder_channels))
        widths = [decoder_channels >> level for level in range(NUM_UPSAMPLINGS)]
        self.levels = nn.ModuleList(
            UNetLevel(width, skip, blocks(width // 2))
            for width, skip in zip(widths, reversed(skip_channels) if skips else [0] * NUM_UPSAMPLINGS, strict=True)
        )
        self.draw_projection()

    def forward(self, features_BCHW: Tensor, visible_BHW: Tensor, *skips_BCHW: Tensor) -> Tensor:
        """Decoded x_BHWC, channels last, with 8 times the rows and columns of the features.

        Args:
            features_BCHW: the encoder's last map.
            visible_BHW: bool at the same positions.
            skips_BCHW: with `skips`, the encoder's earlier maps, finest first.
        """
        x_BHWC = self.fill_hidden(features_BCHW, visible_BHW)
        layout = DenseLayout(kernels=self.kernels)
        for block in self.blocks:
            x_BHWC = block(x_BHWC, layout)
        skips_BHWC = [skip.permute(0, 2, 3, 1) for skip in reversed(skips_BCHW)] or [None] * NUM_UPSAMPLINGS
        for level, skip in zip(self.levels, skips_BHWC, strict=True):
            x_BHWC = level(x_BHWC, skip, layout)
        return x_BHWC
