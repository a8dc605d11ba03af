"""Global Response Normalization (GRN): the step inside a block that makes channels compete.

Touch this file for the mathematics of GRN; over which positions it sums is the layout's answer (layout.py).
Guarded by tests/models/test_grn.py and the parity tests against the official code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import cpu_kernels
from .kernel_choice import chosen_kernels

if TYPE_CHECKING:
    from .layout import Layout


class GRN(nn.Module):
    """y = x * (1 + gamma * N) + beta with N_c = G_c / (mean over channels of G + eps), G_c the L2 norm of channel c.

    Source: ConvNeXt V2 (arXiv 2301.00808), section 4, in the form of the released code: the *mean* over channels
    stands in the denominator where one place of the paper writes a sum (the two differ by a factor that gamma
    absorbs), and the norm is the root of a sum over positions. gamma and beta start at zero, so a fresh GRN is the
    identity.

    G is accumulated in float32 (float64 for float64 input): its square leaves the range of float16 at ordinary
    activations.

    Args:
        num_channels: C, the size of the last dimension.
        eps: added to the mean of G.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(num_channels))
        self.beta = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor, layout: Layout, after_gelu: bool = False) -> Tensor:
        """Normalised values, same shape (..., C) and dtype as x.

        Args:
            x: values in the layout.
            after_gelu: normalise GELU(x) instead of x. One step with GRN, it costs half as much as two.
        """
        num_groups = layout.num_grn_groups(x) if after_gelu else None
        chosen = 'torch' if num_groups is None else chosen_kernels(layout.kernels, x)
        if chosen != 'torch':
            x_BMF = x.contiguous().view(num_groups, -1, x.shape[-1])
        if chosen == 'triton':
            from . import triton_kernels

            return triton_kernels.gelu_grn(x_BMF, self.gamma, self.beta, self.eps).view(x.shape)
        if chosen == 'cpp':
            y_BMF = cpu_kernels.gelu_grn(x_BMF, self.gamma.float(), self.beta.float(), self.eps)
            return y_BMF.view(x.shape)
        if after_gelu:
            x = F.gelu(x)
        norms = layout.channel_norms(x)  # 1 where it was summed, C last; at least float32
        ratio = norms / (norms.mean(dim=-1, keepdim=True) + self.eps)
        scale = (1 + self.gamma * ratio).to(x.dtype)
        return torch.addcmul(self.beta.to(x.dtype), x, scale)

    def extra_repr(self) -> str:
        return f'{self.gamma.numel()}, eps={self.eps}'
