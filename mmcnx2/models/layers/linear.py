"""The linear layers of a block: three quarters of its arithmetic.

In float32 on a CPU oneDNN multiplies the matrices of these layers 1.1 times as fast as the library that PyTorch calls
for F.linear (tools/benchmark/results/notes_cpu_kernels.md). PyTorch carries oneDNN, but offers it for float32 through
an operator of its compiler only, without gradients; here it gets them.

Touch this file for how a product of float32 matrices is computed on a CPU. Guarded by tests/models/test_linear.py.

Shape letters: M positions, K and N features before and after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

if TYPE_CHECKING:
    from .layout import Layout

HAS_ONEDNN = torch.backends.mkldnn.is_available()

_operators = torch.library.Library('mmcnx2', 'FRAGMENT')
# An operator of our own around PyTorch's: torch.compile leaves it alone, where it would copy transposed weights first.
_operators.define('product(Tensor x_MK, Tensor weight_NK, Tensor? bias_N) -> Tensor')


@torch.library.impl(_operators, 'product', 'CPU')
def product(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """x W^T + b by oneDNN, without gradients; the weight as it is or as `laid_out` returns it."""
    return torch.ops.mkldnn._linear_pointwise(x_MK, weight_NK, bias_N, 'none', [], '')


@torch.library.register_fake('mmcnx2::product', lib=_operators)
def _(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    return x_MK.new_empty(x_MK.shape[0], weight_NK.shape[0])


def laid_out(weight_NK: Tensor, num_rows: int) -> Tensor:
    """The weight in the order in which oneDNN reads it, for several products with about `num_rows` rows each."""
    return torch.ops.mkldnn._reorder_linear_weight(weight_NK, num_rows)


@register_flop_formula(torch.ops.mmcnx2.product)
def _count_product(x_shape, weight_shape, *_, **__) -> int:
    return 2 * x_shape[0] * x_shape[1] * weight_shape[0]


def suits_onednn(kernels: str, x: Tensor, weight: Tensor) -> bool:
    """True for float32 on the CPU outside of autocast and of torch.jit's tracer, where oneDNN is there and `kernels`
    leave the choice to us."""
    return (
        (kernels == 'cpp' or (kernels == 'auto' and not torch.jit.is_tracing()))
        and x.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled('cpu')
        and HAS_ONEDNN
    )


class _LinearByOneDNN(torch.autograd.Function):
    """x W^T + b; the products with the weight by oneDNN, the one for the weight's gradient as PyTorch does it."""

    @staticmethod
    def forward(ctx, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return torch.ops.mmcnx2.product(x_MK, weight_NK, bias_N)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_MN: Tensor):
        x_MK, weight_NK = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_MN = grad_MN.contiguous()
        grad_x = torch.ops.mmcnx2.product(grad_MN, weight_NK.t(), None) if needs_x else None
        grad_weight = None
        if needs_weight:
            (M, K), N = x_MK.shape, weight_NK.shape[0]
            # The product is faster with the longer side as its rows; that pays when turning it back costs little
            is_turned = N < K <= M // 2
            grad_weight = (x_MK.t() @ grad_MN).t().contiguous() if is_turned else grad_MN.t() @ x_MK
        return grad_x, grad_weight, grad_MN.sum(0) if needs_bias else None


class Linear(nn.Linear):
    """nn.Linear over the last dimension, computed as the layout's `kernels` say; without a layout, as nn.Linear. No
    second derivative by oneDNN."""

    def forward(self, x: Tensor, layout: Layout | None = None) -> Tensor:
        if layout is None or not suits_onednn(layout.kernels, x, self.weight):
            return super().forward(x)
        y_MN = _LinearByOneDNN.apply(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return y_MN.view(*x.shape[:-1], y_MN.shape[-1])
