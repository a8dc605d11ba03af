"""Global Response Normalization (GRN): the step inside a block that makes channels compete.

Touch this file for the mathematics of GRN; over which positions it sums is the layout's answer (layout.py).
Guarded by tests/models/test_grn.py and the parity tests against the official code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

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

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Normalised values, same shape (..., C) and dtype as x."""
        norms = layout.channel_norms(x)  # 1 where it was summed, C last; at least float32
        ratio = norms / (norms.mean(dim=-1, keepdim=True) + self.eps)
        scale = (1 + self.gamma * ratio).to(x.dtype)
        return torch.addcmul(self.beta.to(x.dtype), x, scale)

    def extra_repr(self) -> str:
        return f'{self.gamma.numel()}, eps={self.eps}'
