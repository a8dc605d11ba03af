"""Compiles cpu_kernels.cpp for this machine, once, and offers its kernels as PyTorch operators with gradients.

The first use compiles (a few seconds) into `$MMCNX2_CACHE/kernels`, default `~/.cache/mmcnx2/kernels`; the file is
named by the source, the compiler and the processor, so that a home folder may be shared between machines. `$CXX` names
the compiler, g++ otherwise. Without one the PyTorch path computes the same, slower, after one warning.

Shape letters: B images, N cells (N / B of each image), P Q rows and columns of a cell, C channels, M positions of an
image, F channels between the two linear layers of a block. Values are float32 or bfloat16 and channels last,
parameters float32; sums are float32 and do not depend on the number of threads.

Touch this file for compiling and for what goes in and out of the kernels; which implementation computes is decided in
kernel_choice.py. Guarded by tests/models/test_cpu_kernels.py.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import re
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

SOURCE = Path(__file__).with_name('cpu_kernels.cpp')
DTYPES = {torch.float32: 'float32', torch.bfloat16: 'bfloat16'}
KERNEL_SIZE = 7
NUM_TAPS = KERNEL_SIZE * KERNEL_SIZE
# -nostdlib and no -lgomp: OpenMP then comes from the runtime that torch has loaded, with torch's own threads
COMPILE = ('-std=c++20', '-O3', '-march=native', '-fopenmp', '-fPIC', '-shared', '-nostdlib')
LINK = ('-lc', '-lm')
COMPILERS = ('g++',)  # tried after $CXX


class KernelBuildError(RuntimeError):
    """The kernels cannot be compiled or loaded here; says why and what to do."""


def cache_folder() -> Path:
    """Where compiled kernels are kept: `$MMCNX2_CACHE`, else `$XDG_CACHE_HOME/mmcnx2`, else `~/.cache/mmcnx2`."""
    base = os.environ.get('MMCNX2_CACHE')
    if not base:
        base = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmcnx2'
    return Path(base).expanduser() / 'kernels'


def find_compiler() -> str:
    for name in (os.environ.get('CXX', ''), *COMPILERS):
        found = shutil.which(name)
        if found:
            return found
    raise KernelBuildError('no C++ compiler: install g++ (Debian: apt-get install g++), or name one in $CXX')


def library_path(compiler: str) -> Path:
    version = subprocess.run([compiler, '--version'], capture_output=True, text=True, check=False).stdout
    try:
        processor = re.search(r'^(flags|Features)\s*:.*$', Path('/proc/cpuinfo').read_text(), re.MULTILINE).group()
    except (OSError, AttributeError):
        processor = platform.processor()
    parts = (SOURCE.read_text(), ' '.join(COMPILE + LINK), compiler, version, platform.machine(), processor)
    return cache_folder() / f'cpu_{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so'


def build(path: Path, compiler: str) -> None:
    """Compiles to a temporary file beside `path` and renames it: processes that start together cannot disturb each
    other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='compiling-') as folder:
        target = Path(folder) / path.name
        done = subprocess.run(
            [compiler, *COMPILE, str(SOURCE), '-o', str(target), *LINK], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            error = next((line for line in done.stderr.splitlines() if 'error' in line), done.stderr[-300:])
            raise KernelBuildError(f'{compiler} could not compile {SOURCE.name}: {error}. Name another one in $CXX')
        os.replace(target, path)


@functools.cache
def _load() -> ctypes.CDLL | KernelBuildError:
    """The loaded kernels, compiled first where they are not there yet; or why there are none."""
    try:
        compiler = find_compiler()
        path = library_path(compiler)
        try:
            if not path.exists():
                build(path, compiler)
            return ctypes.CDLL(str(path))
        except OSError as error:
            raise KernelBuildError(
                f'{path} cannot be written or loaded ({error}). Name a folder in MMCNX2_CACHE, or delete the file'
            ) from error
    except KernelBuildError as error:
        return error


def library() -> ctypes.CDLL:
    """The loaded kernels.

    Raises:
        KernelBuildError: there is no compiler, it fails, or its result cannot be written or loaded.
    """
    loaded = _load()
    if isinstance(loaded, KernelBuildError):
        raise loaded
    return loaded


@torch.compiler.assume_constant_result  # nothing that torch.compile should look into
def is_available() -> bool:
    """True when the kernels are compiled and loaded; the first False comes with a warning that says why."""
    loaded = _load()
    if isinstance(loaded, KernelBuildError):
        _warn(str(loaded))
    return not isinstance(loaded, KernelBuildError)


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"kernels='auto': {reason}. Until then PyTorch's own operators compute the same on the CPU, several "
        "times slower in the backward pass (kernels='torch' chooses them without this warning).",
        stacklevel=2,
    )


def _call(name: str, values: Tensor, *arguments: Tensor | int | None) -> None:
    """Calls a kernel for the dtype of `values`; tensors go in as pointers."""
    words = [
        ctypes.c_void_p(argument.data_ptr())
        if isinstance(argument, Tensor)
        else ctypes.c_void_p(None)
        if argument is None
        else ctypes.c_int64(argument)
        for argument in (values, *arguments)
    ]
    getattr(library(), f'{name}_{DTYPES[values.dtype]}')(*words)


# ------------------------------------------------------------------------------------------------ depthwise convolution


@torch.library.custom_op('mmcnx2::depthwise', mutates_args=(), device_types='cpu')
def depthwise(
    cells_NPQC: Tensor, weight: Tensor, bias: Tensor, places_N: Tensor | None, num_images: int, grid: list[int]
) -> Tensor:
    """The 7 x 7 depthwise convolution (stride 1, zeros around the map and in hidden cells) at every visible position.

    Args:
        cells_NPQC: the visible cells, those of an image after each other in the order of `places_N`.
        weight, bias: (C, 1, 7, 7) and (C,), float32.
        places_N: int64, ascending: each cell's index in the grids of all images; None when an image is one cell.
        num_images: B; every image has N / B visible cells.
        grid: rows and columns of an image's grid of cells; [1, 1] when places_N is None.
    """
    N, P, Q, C = cells_NPQC.shape
    out = torch.empty_like(cells_NPQC)
    _call(
        'depthwise_forward', cells_NPQC, weight.contiguous(), bias, out, places_N,
        num_images, *grid, N // num_images, P, Q, C,
    )  # fmt: skip
    return out


@depthwise.register_fake
def _(cells_NPQC, weight, bias, places_N, num_images, grid):
    return torch.empty_like(cells_NPQC)


@torch.library.custom_op('mmcnx2::depthwise_backward', mutates_args=(), device_types='cpu')
def depthwise_backward(
    grad_NPQC: Tensor, cells_NPQC: Tensor, weight: Tensor, places_N: Tensor | None, num_images: int, grid: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `depthwise`: of the cells, the weight and the bias."""
    N, P, Q, C = cells_NPQC.shape
    grad_cells = torch.empty_like(cells_NPQC)
    # Parts that are added up at the end; their number depends on the shapes alone
    num_slices = max(1, min(num_images, -(-512 // C)))
    partial = grad_NPQC.new_empty(num_slices, C, NUM_TAPS + 1, dtype=torch.float32)
    _call(
        'depthwise_backward', grad_NPQC, cells_NPQC, weight.contiguous(), grad_cells, partial, num_slices, places_N,
        num_images, *grid, N // num_images, P, Q, C,
    )  # fmt: skip
    sums = partial.sum(0)
    return grad_cells, sums[:, :NUM_TAPS].reshape(weight.shape), sums[:, NUM_TAPS].clone()


@depthwise_backward.register_fake
def _(grad_NPQC, cells_NPQC, weight, places_N, num_images, grid):
    return torch.empty_like(cells_NPQC), torch.empty_like(weight), weight.new_empty(weight.shape[0])


def _keep_for_depthwise(ctx, inputs, output) -> None:
    cells_NPQC, weight, _, places_N, ctx.num_images, ctx.grid = inputs
    ctx.save_for_backward(cells_NPQC, weight, places_N)


def _differentiate_depthwise(ctx, grad_NPQC: Tensor):
    cells_NPQC, weight, places_N = ctx.saved_tensors
    gradients = depthwise_backward(grad_NPQC.contiguous(), cells_NPQC, weight, places_N, ctx.num_images, ctx.grid)
    return *gradients, None, None, None


depthwise.register_autograd(_differentiate_depthwise, setup_context=_keep_for_depthwise)


@register_flop_formula(torch.ops.mmcnx2.depthwise)
def _count_depthwise(cells_shape, *_, **__) -> int:
    """Two per multiply-add, as torch's counter has it for its own convolutions."""
    return 2 * NUM_TAPS * math.prod(cells_shape)


@register_flop_formula(torch.ops.mmcnx2.depthwise_backward)
def _count_depthwise_backward(grad_shape, *_, **__) -> int:
    return 4 * NUM_TAPS * math.prod(grad_shape)


# --------------------------------------------------------------------------------------------------------- GELU and GRN


def _chunks(num_rows: int) -> int:
    return -(-num_rows // library().rows_per_chunk())


@torch.library.custom_op('mmcnx2::gelu_grn', mutates_args=(), device_types='cpu')
def gelu_grn(x_BMF: Tensor, gamma_F: Tensor, beta_F: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(GRN of GELU(x), of the dtype and shape of x; norms_BF over the positions of each image, float32).

    GELU is the exact one (erf). gamma and beta are float32; see layers/grn.py for the formula.
    """
    B, M, F = x_BMF.shape
    squares = x_BMF.new_empty(B, _chunks(M), F, dtype=torch.float32)
    _call('gelu_squares', x_BMF, squares, B, M, F)
    norms_BF = squares.sum(1).sqrt_()
    scale_BF = 1 + gamma_F * (norms_BF / (norms_BF.mean(-1, keepdim=True) + eps))
    y_BMF = torch.empty_like(x_BMF)
    _call('gelu_scale', x_BMF, scale_BF, beta_F, y_BMF, B, M, F)
    return y_BMF, norms_BF


@gelu_grn.register_fake
def _(x_BMF, gamma_F, beta_F, eps):
    return torch.empty_like(x_BMF), x_BMF.new_empty(x_BMF.shape[0], x_BMF.shape[2], dtype=torch.float32)


@torch.library.custom_op('mmcnx2::gelu_grn_backward', mutates_args=(), device_types='cpu')
def gelu_grn_backward(
    grad_BMF: Tensor, x_BMF: Tensor, gamma_F: Tensor, norms_BF: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the first result of `gelu_grn`: of x, gamma and beta.

    With h = GELU(x), N = G / D, D = mean(G) + eps and y = h (1 + gamma N) + beta:
    dG = gamma S / D - mean over channels of (gamma S G) / D^2, S the sum over positions of h dy, and
    dh = dy (1 + gamma N) + h dG / G.
    """
    B, M, F = x_BMF.shape
    partial = x_BMF.new_empty(2, B, _chunks(M), F, dtype=torch.float32)
    _call('gelu_products', x_BMF, grad_BMF, partial, B, M, F)
    products_BF, sums_BF = partial.sum(2)
    denominator_B1 = norms_BF.mean(-1, keepdim=True) + eps
    ratio_BF = norms_BF / denominator_B1
    weighted_BF = gamma_F * products_BF
    shared_B1 = (weighted_BF * norms_BF).mean(-1, keepdim=True) / denominator_B1.square()
    grad_norms_BF = weighted_BF / denominator_B1 - shared_B1
    pull_BF = torch.where(norms_BF > 0, grad_norms_BF / norms_BF, 0)  # a channel that is zero everywhere pulls nothing
    grad_x = torch.empty_like(x_BMF)
    _call('gelu_scale_backward', x_BMF, grad_BMF, 1 + gamma_F * ratio_BF, pull_BF, grad_x, B, M, F)
    return grad_x, (ratio_BF * products_BF).sum(0), sums_BF.sum(0)


@gelu_grn_backward.register_fake
def _(grad_BMF, x_BMF, gamma_F, norms_BF, eps):
    return torch.empty_like(x_BMF), torch.empty_like(gamma_F), torch.empty_like(gamma_F)


def _keep_for_gelu_grn(ctx, inputs, output) -> None:
    x_BMF, gamma_F, _, ctx.eps = inputs
    ctx.save_for_backward(x_BMF, gamma_F, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate_gelu_grn(ctx, grad_BMF: Tensor, grad_norms: Tensor | None):
    return *gelu_grn_backward(grad_BMF.contiguous(), *ctx.saved_tensors, ctx.eps), None


gelu_grn.register_autograd(_differentiate_gelu_grn, setup_context=_keep_for_gelu_grn)
