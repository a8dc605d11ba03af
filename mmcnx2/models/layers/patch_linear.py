"""A convolution whose stride equals its kernel, as the linear layer that it is: the stem and the downsampling.

Touch this file for how such a layer is computed. Guarded by tests/models/test_patch_linear.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchLinear(nn.Module):
    """Each k x k window of positions becomes one: (..., H, W, C_in) -> (..., H // k, W // k, C_out).

    Equal to `nn.Conv2d(C_in, C_out, k, stride=k)` on channels-last data, with the same parameter names and shapes;
    rows and columns that do not fill a window are left out, as a convolution does. Leading dimensions are free, so
    cells never mix.

    Args:
        in_channels, out_channels: C_in, C_out.
        patch_size: k, in positions.
    """

    def __init__(self, in_channels: int, out_channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, patch_size, patch_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        k = self.patch_size
        H, W = x.shape[-3] // k, x.shape[-2] // k
        windows = x[..., : H * k, : W * k, :].unflatten(-3, (H, k)).unflatten(-2, (W, k))  # (..., H, k, W, k, C)
        return F.linear(windows.transpose(-3, -4).flatten(-3), self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)

    def extra_repr(self) -> str:
        out_channels, in_channels = self.weight.shape[:2]
        return f'{in_channels}, {out_channels}, patch_size={self.patch_size}'
