"""Step 3 of FCMAE, as a Transformer: MAE's decoder behind a convolutional encoder.

One of the decoders that the paper compares (arXiv 2301.00808, table 1a: 83.4, at 1.1 times the time of the plain one,
decoder.py). Built as in MAE (arXiv 2111.06377): fixed sine-cosine positions, pre-norm blocks, a norm at the end.

Touch this file for the Transformer's architecture. Guarded by tests/models/test_decoders.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmcnx2.registry import MODELS

from ..layers import LayerNorm
from .decoder import MaskTokenDecoder

MLP_RATIO = 4
NORM_EPS = 1e-6
LONGEST_WAVE = 10000.0  # in positions, over 2 pi


def positions_by_sines(height: int, width: int, num_channels: int, device: torch.device | str = 'cpu') -> Tensor:
    """(H, W, C): sines and cosines of the row in the first half of the channels, of the column in the second.

    Frequency i of C / 4 is 10000^(-4 i / C), as in MAE; within a half the sines come first.
    """
    num_waves = num_channels // 4
    frequencies = LONGEST_WAVE ** -(torch.arange(num_waves, device=device, dtype=torch.float64) / num_waves)

    def waves(size: int) -> Tensor:  # (size, C / 2)
        angles = torch.arange(size, device=device, dtype=torch.float64)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    rows, columns = waves(height)[:, None], waves(width)[None, :]
    return torch.cat([rows.expand(-1, width, -1), columns.expand(height, -1, -1)], dim=-1)


@MODELS.register_module()
class TransformerDecoder(MaskTokenDecoder):
    """Linear projection, mask token in hidden cells, positions, then Transformer blocks over all cells, and a norm.

    Args:
        in_channels: width of the encoder's last stage (FCMAE fills it in).
        decoder_channels: width; a multiple of 4 and of num_heads.
        decoder_depth: number of blocks.
        num_heads: of the attention.
        kernels: FCMAE passes on the backbone's; they choose between kernels of convolutions, of which there are none.
    """

    def __init__(
        self,
        in_channels: int,
        decoder_channels: int = 512,
        decoder_depth: int = 1,
        num_heads: int = 16,
        kernels: str = 'auto',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, decoder_channels, decoder_depth, init_cfg)
        if num_heads < 1 or decoder_channels % num_heads or decoder_channels % 4:
            raise ValueError(
                f'decoder_channels={decoder_channels}, num_heads={num_heads}: the width is a multiple of the heads, '
                'and of 4 for the sines and cosines of rows and columns.'
            )
        from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer  # slow to import

        self.blocks = nn.ModuleList(
            TransformerEncoderLayer(
                decoder_channels, num_heads, MLP_RATIO * decoder_channels, norm_cfg=dict(type='LN', eps=NORM_EPS)
            )
            for _ in range(decoder_depth)
        )
        self.norm = LayerNorm(decoder_channels, eps=NORM_EPS)
        for block in self.blocks:
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)  # as in MAE
                    nn.init.zeros_(layer.bias)
        self.draw_projection()

    def forward(self, features_BCHW: Tensor, visible_BHW: Tensor) -> Tensor:
        """Decoded x_BHWC, channels last.

        Args:
            features_BCHW: the encoder's last map.
            visible_BHW: bool at the same positions.
        """
        x_BHWC = self.fill_hidden(features_BCHW, visible_BHW)
        x_BHWC = x_BHWC + positions_by_sines(*x_BHWC.shape[1:], x_BHWC.device).to(x_BHWC.dtype)
        x_BLC = x_BHWC.flatten(1, 2)
        for block in self.blocks:
            x_BLC = block(x_BLC)
        return self.norm(x_BLC).view(x_BHWC.shape)
