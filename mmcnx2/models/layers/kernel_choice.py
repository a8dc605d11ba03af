"""Which implementation computes a step: PyTorch's own operators, the C++ kernels on the CPU, or Triton's on a GPU.

All give the same numbers up to rounding. `kernels` is an argument of the backbone and travels in the layout:

* 'auto': C++ on the CPU, for float32 and bfloat16; Triton on a GPU, where it can compute; PyTorch's elsewhere. Each is
  the fastest that has been measured, Triton's when the GPU and not the CPU that starts its kernels sets the pace (CUDA
  graphs, large batches). While torch.jit traces a model, as OpenMMLab's FLOP counter does: PyTorch's, since the tracer
  cannot look into others;
* 'torch': PyTorch's, always;
* 'cpp': C++; an error where it cannot compute;
* 'triton': Triton; an error where it cannot compute.

Touch it for the choice; the kernels are in cpu_kernels.py and triton_kernels.py (loaded only when asked for). Guarded
by tests/models/test_cpu_kernels.py and tests/models/test_triton_kernels.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import cpu_kernels

KERNELS = ('auto', 'torch', 'cpp', 'triton')
LARGEST_TRITON_KERNEL = 13  # positions a side: the taps of a column are held in registers


def check_kernels(kernels: str) -> None:
    if kernels not in KERNELS:
        raise ValueError(f'kernels={kernels!r} is not known; choose one of {KERNELS}.')


def under_autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast gives to convolutions."""
    device = x.device.type
    if device == 'meta':  # autocast does not know it
        return x
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def chosen_kernels(kernels: str, x: Tensor) -> str:
    """What computes on x: 'torch', 'cpp' or 'triton'.

    Raises:
        ValueError: kernels='cpp' and x is not on the CPU, or neither float32 nor bfloat16; kernels='triton' and there
            is no Triton, or x is not on a GPU of compute capability 8.0 or newer, or of another dtype than float32,
            bfloat16 and float16.
        KernelBuildError: kernels='cpp' and they cannot be compiled.
    """
    if kernels == 'auto' and torch.jit.is_tracing():
        return 'torch'
    if x.numel() == 0:  # a batch of no images
        return 'torch'
    suits_cpp = x.device.type == 'cpu' and x.dtype in cpu_kernels.DTYPES
    if kernels == 'cpp':
        if not suits_cpp:
            raise ValueError(
                f"kernels='cpp' computes float32 and bfloat16 on the CPU; this is {x.dtype} on {x.device}. Use 'auto'."
            )
        cpu_kernels.library()
        return 'cpp'
    if kernels == 'triton':
        from . import triton_kernels

        if not triton_kernels.is_available(x):
            raise ValueError(
                f"kernels='triton' needs the package triton, a GPU of compute capability 8.0 or newer, and float32, "
                f"bfloat16 or float16; this is {x.dtype} on {x.device}. Use 'auto'."
            )
        return 'triton'
    if kernels == 'auto' and x.is_cuda:
        from . import triton_kernels

        return 'triton' if triton_kernels.is_available(x) else 'torch'
    return 'cpp' if kernels == 'auto' and suits_cpp and cpu_kernels.is_available() else 'torch'
