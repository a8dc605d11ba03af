"""LayerNorm over channels: inside a block between the depthwise convolution and the MLP, before and after downsampling,
and on the returned maps.

Touch this file for which implementation computes; the mathematics is PyTorch's, the kernel is in triton_kernels.py.
Guarded by tests/models/test_layer_norm.py, tests/models/test_triton_kernels.py and the parity tests against the
official code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernel_choice import chosen_kernels

if TYPE_CHECKING:
    from .layout import Layout


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last dimension, of the dtype of x, computed as the layout's `kernels` say.

    On a CPU, narrow values are computed in float32: there PyTorch adds the gradients of weight and bias up in the dtype
    of x, and in bfloat16 a sum over 25,000 positions comes out wrong by a tenth to four tenths of the largest.

    Triton's keeps the dtype of x under autocast, where PyTorch's gives float32 (the next linear layer casts it back).
    """

    def forward(self, x: Tensor, layout: Layout | None = None) -> Tensor:
        if layout is not None and chosen_kernels(layout.kernels, x) == 'triton':
            from . import triton_kernels

            return triton_kernels.layer_norm(x, self.weight, self.bias, self.eps)
        if x.device.type == 'cpu' and x.dtype in (torch.bfloat16, torch.float16):
            parameters = (None if each is None else each.float() for each in (self.weight, self.bias))
            return F.layer_norm(x.float(), self.normalized_shape, *parameters, self.eps).to(x.dtype)
        return super().forward(x)
