"""The depthwise convolution of a block: the one step that looks at neighbours, so the layout computes it.

Touch it for parameters and their start; how it is computed stands in layout.py and the kernels. Guarded by
tests/models/test_layout.py and tests/models/test_cpu_kernels.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from .layout import Layout


class DepthwiseConv(nn.Conv2d):
    """Depthwise, stride 1, size-preserving convolution; parameters `weight` (C, 1, k, k) and `bias` (C,).

    Called with a layout it takes and gives the layout's values; without one it is the ordinary nn.Conv2d on NCHW maps.

    Args:
        num_channels: C.
        kernel_size: k, odd.
    """

    def __init__(self, num_channels: int, kernel_size: int) -> None:
        super().__init__(num_channels, num_channels, kernel_size, padding=kernel_size // 2, groups=num_channels)
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, layout: Layout | None = None) -> Tensor:
        return super().forward(x) if layout is None else layout.conv(x, self)
