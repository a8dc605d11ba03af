"""What a block does per position: the wide linear layer, GELU with GRN, and the linear layer back.

The values between the two layers are four times as wide as the map: 38 MB for `tiny` on 8 images of 224 px. Where no
gradients are kept, nobody reads them afterwards; so on the CPU a few images at a time go through all three steps, whose
wide values then never leave the third-level cache. The numbers are the same. Measured in
tools/benchmark/results/notes_cpu_kernels.md.

Touch this file for how the three steps follow each other, not for what they compute (linear.py, grn.py). Guarded by
tests/models/test_block_mlp.py.

Shape letters: B images, M positions of an image, C channels, F channels between the linear layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .grn import GRN
from .kernel_choice import chosen_kernels
from .linear import Linear, suits_onednn

if TYPE_CHECKING:
    from .layout import Layout

WIDE_BYTES_AT_ONCE = 6 * 2**20  # of the images that go through together; two such tensors live at a time


def mlp(x: Tensor, widen: nn.Module, grn: nn.Module | None, narrow: nn.Module, layout: Layout) -> Tensor:
    """narrow(GRN(GELU(widen(x)))) of values in the layout, over their last dimension; without `grn`, GELU alone."""
    num_images = _images_at_once(x, widen, grn, narrow, layout)
    if num_images is not None:
        return _by_images(x, widen, grn, narrow, layout, num_images)
    y = widen(x, layout)
    y = F.gelu(y) if grn is None else grn(y, layout, after_gelu=True)
    return narrow(y, layout)


def _images_at_once(
    x: Tensor, widen: nn.Module, grn: nn.Module | None, narrow: nn.Module, layout: Layout
) -> int | None:
    """How many images go through together; None when all do: small maps, GRN over the batch, gradients, another way to
    compute, or modules that somebody listens to or has wrapped."""
    if torch.is_grad_enabled() or (type(widen), type(grn), type(narrow)) != (Linear, GRN, Linear):
        return None
    if any(module._forward_hooks or module._forward_pre_hooks for module in (widen, grn, narrow)):
        return None
    num_images = layout.num_grn_groups(x)  # 1 where GRN sums over the batch
    if num_images is None or num_images < 2 or not suits_onednn(layout.kernels, x, widen.weight):
        return None
    wide_bytes = x.numel() // x.shape[-1] * widen.out_features * x.element_size()
    if wide_bytes <= 2 * WIDE_BYTES_AT_ONCE or chosen_kernels(layout.kernels, x) != 'cpp':
        return None
    return max(1, WIDE_BYTES_AT_ONCE * num_images // wide_bytes)


def _by_images(x: Tensor, widen: Linear, grn: GRN, narrow: Linear, layout: Layout, num_images: int) -> Tensor:
    x_BMC = x.reshape(layout.num_grn_groups(x), -1, x.shape[-1])
    parts = [narrow(grn.of_gelu_by_cpp(widen(part_BMC, layout)), layout) for part_BMC in x_BMC.split(num_images)]
    return torch.cat(parts).view(*x.shape[:-1], -1)
