"""Which implementation computes a step: PyTorch's own operators, or the C++ kernels on the CPU.

Both give the same numbers up to rounding. `kernels` is an argument of the backbone and travels in the layout:

* 'auto': the fastest that has been measured: C++ on the CPU, for float32 and bfloat16; PyTorch's elsewhere;
* 'torch': PyTorch's, always;
* 'cpp': C++; an error where it cannot compute.

Touch it for the choice; the kernels are in cpu_kernels.py. Guarded by tests/models/test_cpu_kernels.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import cpu_kernels

KERNELS = ('auto', 'torch', 'cpp')


def check_kernels(kernels: str) -> None:
    if kernels not in KERNELS:
        raise ValueError(f'kernels={kernels!r} is not known; choose one of {KERNELS}.')


def under_autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast gives to convolutions."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def uses_cpp(kernels: str, x: Tensor) -> bool:
    """True when the C++ kernels compute on x.

    Raises:
        ValueError: kernels='cpp' and x is not on the CPU, or neither float32 nor bfloat16.
        KernelBuildError: kernels='cpp' and they cannot be compiled.
    """
    if kernels == 'torch':
        return False
    suits = x.device.type == 'cpu' and x.dtype in cpu_kernels.DTYPES
    if kernels == 'cpp':
        if not suits:
            raise ValueError(
                f"kernels='cpp' computes float32 and bfloat16 on the CPU; this is {x.dtype} on {x.device}. Use 'auto'."
            )
        cpu_kernels.library()
        return True
    return suits and cpu_kernels.is_available()
