"""LayerNorm over channels, inside a block: the step between the depthwise convolution and the MLP.

Touch it for which implementation computes; the mathematics is PyTorch's, the kernel is in triton_kernels.py. Guarded by
tests/models/test_triton_kernels.py and the parity tests against the official code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from .kernel_choice import chosen_kernels

if TYPE_CHECKING:
    from .layout import Layout


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last dimension, computed as the layout's `kernels` say.

    Triton's keeps the dtype of x under autocast, where PyTorch's gives float32 (the next linear layer casts it back).
    """

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        if chosen_kernels(layout.kernels, x) == 'triton':
            from . import triton_kernels

            return triton_kernels.layer_norm(x, self.weight, self.bias, self.eps)
        return super().forward(x)
