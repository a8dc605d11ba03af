"""Step 3 of FCMAE: features of visible cells -> features at every position, the mask token standing in hidden cells.

Touch this file for the decoder's architecture; the other kinds of decoder that the paper compares are in
unet_decoder.py and transformer_decoder.py. Guarded by tests/models/test_fcmae.py and
tests/models/test_official_parity.py.
"""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmcnx2.registry import MODELS

from ..backbones.convnext_v2 import ConvNeXtV2Block
from ..layers import DenseLayout


class MaskTokenDecoder(BaseModule):
    """What every decoder begins with: a linear projection, and the mask token in hidden cells.

    A decoder calls `draw_projection` once its blocks stand, and `fill_hidden` before it runs them. FCMAE reads
    `out_channels`, the width of what it gives, and `upsampling`, how many times finer than the encoder's last map it
    is.

    Args:
        in_channels: width of the encoder's last stage (FCMAE fills it in).
        decoder_channels: width of the decoder.
        decoder_depth: number of blocks.
    """

    upsampling = 1

    def __init__(
        self, in_channels: int, decoder_channels: int, decoder_depth: int, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if decoder_channels < 1 or decoder_depth < 0:
            raise ValueError(
                f'decoder_channels={decoder_channels}, decoder_depth={decoder_depth}: a decoder is at least 1 wide '
                'and 0 blocks deep.'
            )
        self.decoder_channels = self.out_channels = decoder_channels
        self.proj = nn.Linear(in_channels, decoder_channels)
        self.mask_token = nn.Parameter(torch.zeros(decoder_channels))

    def draw_projection(self) -> None:
        """Start values of projection and mask token."""
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def fill_hidden(self, features_BCHW: Tensor, visible_BHW: Tensor) -> Tensor:
        """Projected x_BHWC, channels last, the mask token at hidden positions."""
        x_BHWC = self.proj(features_BCHW.permute(0, 2, 3, 1))
        return torch.where(visible_BHW[..., None], x_BHWC, self.mask_token.to(x_BHWC.dtype))


@MODELS.register_module()
class FCMAEDecoder(MaskTokenDecoder):
    """Linear projection, mask token in hidden cells, then dense ConvNeXt V2 blocks (their GRN sees every position of
    an image).

    Source: ConvNeXt V2, section 3 and table 1: one block, 512 wide.

    Args:
        in_channels: width of the encoder's last stage (FCMAE fills it in).
        decoder_channels: width of the decoder.
        decoder_depth: number of blocks; 0 is allowed.
        kernels: as the backbone's (FCMAE fills it in).
        use_grn, response_norm: of its blocks; meant as the backbone's arguments, but not filled in from there.
    """

    def __init__(
        self,
        in_channels: int,
        decoder_channels: int = 512,
        decoder_depth: int = 1,
        kernels: str = 'auto',
        use_grn: bool = True,
        response_norm: str | dict = 'grn',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, decoder_channels, decoder_depth, init_cfg)
        self.kernels = kernels
        self.blocks = nn.ModuleList(
            ConvNeXtV2Block(decoder_channels, use_grn=use_grn, response_norm=response_norm)
            for _ in range(decoder_depth)
        )
        self.draw_projection()

    def forward(self, features_BCHW: Tensor, visible_BHW: Tensor) -> Tensor:
        """Decoded x_BHWC, channels last.

        Args:
            features_BCHW: the encoder's last map.
            visible_BHW: bool at the same positions.
        """
        x_BHWC = self.fill_hidden(features_BCHW, visible_BHW)
        layout = DenseLayout(kernels=self.kernels)
        for block in self.blocks:
            x_BHWC = block(x_BHWC, layout)
        return x_BHWC
