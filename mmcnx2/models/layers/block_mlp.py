"""What a block does per position: the wide linear layer, GELU with GRN, and the linear layer back.

The values between the two layers are four times as wide as the map: 38 MB for `tiny` on 8 images of 224 px. Where no
gradients are kept, nobody reads them afterwards; so on the CPU in float32 one operator computes all three steps. GELU
and GRN write over their input, and a few images at a time go through, whose wide values then never leave the
third-level cache. The numbers are the same. Measured in tools/benchmark/results/notes_cpu_kernels.md.

Touch this file for how the three steps follow each other, not for what they compute (linear.py, grn.py). Guarded by
tests/models/test_block_mlp.py.

Shape letters: B images, M positions of an image, C channels, F channels between the linear layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from . import cpu_kernels
from .grn import GRN
from .kernel_choice import chosen_kernels
from .linear import Linear, laid_out, product, suits_onednn

if TYPE_CHECKING:
    from .layout import Layout

WIDE_BYTES_AT_ONCE = 6 * 2**20  # of the images that go through together


def mlp(x: Tensor, widen: nn.Module, grn: nn.Module | None, narrow: nn.Module, layout: Layout) -> Tensor:
    """narrow(GRN(GELU(widen(x)))) of values in the layout, over their last dimension; without `grn`, GELU alone."""
    if _is_one_operator(x, widen, grn, narrow, layout):
        x_BMC = x.contiguous().view(layout.num_grn_groups(x), -1, x.shape[-1])
        of_grn = grn.gamma.float(), grn.beta.float(), grn.eps
        y_BMC = torch.ops.mmcnx2.mlp(x_BMC, widen.weight, widen.bias, *of_grn, narrow.weight, narrow.bias)
        return y_BMC.view(*x.shape[:-1], -1)
    y = widen(x, layout)
    y = F.gelu(y) if grn is None else grn(y, layout, after_gelu=True)
    return narrow(y, layout)


def _is_one_operator(x: Tensor, widen: nn.Module, grn: nn.Module | None, narrow: nn.Module, layout: Layout) -> bool:
    """False with gradients, where other kernels compute, or where somebody listens to the modules or has replaced
    them or their forward."""
    return (
        not torch.is_grad_enabled()
        and (type(widen), type(grn), type(narrow)) == (Linear, GRN, Linear)
        and not any(_is_watched(module) for module in (widen, grn, narrow))
        and layout.num_grn_groups(x) is not None
        and suits_onednn(layout.kernels, x, widen.weight)
        and chosen_kernels(layout.kernels, x) == 'cpp'
    )


def _is_watched(module: nn.Module) -> bool:
    """Whether calling the module does more than its class says."""
    has_hooks = module._forward_hooks or module._forward_pre_hooks or 'forward' in vars(module)
    return bool(has_hooks or nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks)


_operators = torch.library.Library('mmcnx2', 'FRAGMENT')
_operators.define(
    'mlp(Tensor x_BMC, Tensor widen_FC, Tensor? widen_bias_F, Tensor gamma_F, Tensor beta_F, float eps, '
    'Tensor narrow_CF, Tensor? narrow_bias_C) -> Tensor'
)


@torch.library.impl(_operators, 'mlp', 'CPU')
def _(x_BMC, widen_FC, widen_bias_F, gamma_F, beta_F, eps, narrow_CF, narrow_bias_C):
    B, M, _ = x_BMC.shape

    def of_part(x_BMC: Tensor, widen_FC: Tensor, narrow_CF: Tensor) -> Tensor:
        wide_NF = product(x_BMC.flatten(0, 1), widen_FC, widen_bias_F)
        cpu_kernels.gelu_grn_in_place(wide_NF.view(len(x_BMC), M, -1), gamma_F, beta_F, eps)
        y_NC = product(wide_NF, narrow_CF, narrow_bias_C)
        return y_NC.view(len(x_BMC), M, -1)

    wide_bytes = B * M * len(widen_FC) * x_BMC.element_size()
    if B == 1 or wide_bytes <= 2 * WIDE_BYTES_AT_ONCE:
        return of_part(x_BMC, widen_FC, narrow_CF)
    num_images = max(1, WIDE_BYTES_AT_ONCE * B // wide_bytes)
    weights = laid_out(widen_FC, num_images * M), laid_out(narrow_CF, num_images * M)
    y_BMC = x_BMC.new_empty(B, M, len(narrow_CF))
    for x_part, y_part in zip(x_BMC.split(num_images), y_BMC.split(num_images), strict=True):
        y_part.copy_(of_part(x_part, *weights))
    return y_BMC


@torch.library.register_fake('mmcnx2::mlp', lib=_operators)
def _(x_BMC, widen_FC, widen_bias_F, gamma_F, beta_F, eps, narrow_CF, narrow_bias_C):
    return x_BMC.new_empty(*x_BMC.shape[:2], len(narrow_CF))


@register_flop_formula(torch.ops.mmcnx2.mlp)
def _count_mlp(x_shape, widen_shape, *_, **__) -> int:
    return 4 * x_shape[0] * x_shape[1] * x_shape[2] * widen_shape[0]
