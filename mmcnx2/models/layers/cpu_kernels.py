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
from torch.autograd.function import once_differentiable
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
    try:
        version = subprocess.run([compiler, '--version'], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise KernelBuildError(f'{compiler} does not start ({error}). Name another compiler in $CXX') from error
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


def _call(name: str, values: Tensor, *arguments: Tensor | int | float | None) -> None:
    """Calls a kernel for the dtype of `values`; tensors, which are contiguous, go in as pointers."""
    words = []
    for argument in (values, *arguments):
        if isinstance(argument, Tensor):
            words.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, float):
            words.append(ctypes.c_double(argument))
        else:
            words.append(ctypes.c_void_p(None) if argument is None else ctypes.c_int64(argument))
    getattr(library(), f'{name}_{DTYPES[values.dtype]}')(*words)


# ------------------------------------------------------------------------------------------------ depthwise convolution
#
# Operators are defined by their schema and joined by autograd.Function: torch.library.custom_op does both in one, and
# spends 0.1 to 0.2 ms around each kernel, of which there are four per block and step.

_operators = torch.library.Library('mmcnx2', 'FRAGMENT')
_operators.define(
    'depthwise(Tensor cells_NPQC, Tensor weight, Tensor bias, Tensor? places_N, int num_images, int[] grid) -> Tensor'
)
_operators.define(
    'depthwise_backward(Tensor grad_NPQC, Tensor cells_NPQC, Tensor weight, Tensor? places_N, int num_images, '
    'int[] grid) -> (Tensor, Tensor, Tensor)'
)
_operators.define('gelu_grn(Tensor x_BMF, Tensor gamma_F, Tensor beta_F, float eps) -> (Tensor, Tensor)')
_operators.define(
    'gelu_grn_backward(Tensor grad_BMF, Tensor x_BMF, Tensor gamma_F, Tensor norms_BF, float eps) '
    '-> (Tensor, Tensor, Tensor)'
)


def depthwise(
    cells_NPQC: Tensor, weight: Tensor, bias: Tensor, places_N: Tensor | None, num_images: int, grid: list[int]
) -> Tensor:
    """The 7 x 7 depthwise convolution (stride 1, zeros around the map and in hidden cells) at every visible position.
    No second derivative.

    Args:
        cells_NPQC: the visible cells, those of an image after each other in the order of `places_N`; contiguous.
        weight, bias: (C, 1, 7, 7) and (C,), float32.
        places_N: int64, ascending: each cell's index in the grids of all images; None when an image is one cell.
        num_images: B; every image has N / B visible cells.
        grid: rows and columns of an image's grid of cells; [1, 1] when places_N is None.
    """
    return _Depthwise.apply(cells_NPQC, weight, bias, places_N, num_images, grid)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cells_NPQC, weight, bias, places_N, num_images, grid) -> Tensor:
        ctx.save_for_backward(cells_NPQC, weight, places_N)
        ctx.num_images, ctx.grid = num_images, grid
        return torch.ops.mmcnx2.depthwise(cells_NPQC, weight, bias, places_N, num_images, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NPQC: Tensor):
        cells_NPQC, weight, places_N = ctx.saved_tensors
        gradients = torch.ops.mmcnx2.depthwise_backward(
            grad_NPQC.contiguous(), cells_NPQC, weight, places_N, ctx.num_images, ctx.grid
        )
        return *gradients, None, None, None


@torch.library.impl(_operators, 'depthwise', 'CPU')
def _(cells_NPQC, weight, bias, places_N, num_images, grid):
    N, P, Q, C = cells_NPQC.shape
    out = torch.empty_like(cells_NPQC)
    _call(
        'depthwise_forward', cells_NPQC, weight.contiguous(), bias, out, places_N,
        num_images, *grid, N // num_images, P, Q, C,
    )  # fmt: skip
    return out


@torch.library.register_fake('mmcnx2::depthwise', lib=_operators)
def _(cells_NPQC, weight, bias, places_N, num_images, grid):
    return torch.empty_like(cells_NPQC)


@torch.library.impl(_operators, 'depthwise_backward', 'CPU')
def _(grad_NPQC, cells_NPQC, weight, places_N, num_images, grid):
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
    return grad_cells, sums[:, :NUM_TAPS].contiguous().view(weight.shape), sums[:, NUM_TAPS].contiguous()


@torch.library.register_fake('mmcnx2::depthwise_backward', lib=_operators)
def _(grad_NPQC, cells_NPQC, weight, places_N, num_images, grid):
    return torch.empty_like(cells_NPQC), torch.empty_like(weight), weight.new_empty(weight.shape[0])


@register_flop_formula(torch.ops.mmcnx2.depthwise)
def _count_depthwise(cells_shape, *_, **__) -> int:
    """Two per multiply-add, as torch's counter has it for its own convolutions."""
    return 2 * NUM_TAPS * math.prod(cells_shape)


@register_flop_formula(torch.ops.mmcnx2.depthwise_backward)
def _count_depthwise_backward(grad_shape, *_, **__) -> int:
    return 4 * NUM_TAPS * math.prod(grad_shape)


# --------------------------------------------------------------------------------------------------------- GELU and GRN


def gelu_grn(x_BMF: Tensor, gamma_F: Tensor, beta_F: Tensor, eps: float) -> Tensor:
    """GRN of GELU(x) over the positions of each image, of the dtype and shape of x, which is contiguous. No second
    derivative.

    GELU is the exact one (erf). gamma and beta are float32; see layers/grn.py for the formula.
    """
    return _GeluGrn.apply(x_BMF, gamma_F, beta_F, eps)


def gelu_grn_in_place(x_BMF: Tensor, gamma_F: Tensor, beta_F: Tensor, eps: float) -> None:
    """As `gelu_grn`, written over x, which is contiguous and float32: GELU is computed once, not twice. For use inside
    an operator; it has no gradients and torch.compile cannot follow it."""
    if x_BMF.dtype != torch.float32 or not x_BMF.is_contiguous():
        got = f'{x_BMF.dtype} with strides {x_BMF.stride()}'
        raise ValueError(f'gelu_grn_in_place takes contiguous float32 values, not {got}; gelu_grn takes them')
    _call('gelu_grn_in_place', x_BMF, gamma_F, beta_F, eps, *x_BMF.shape)


class _GeluGrn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BMF, gamma_F, beta_F, eps) -> Tensor:
        y_BMF, norms_BF = torch.ops.mmcnx2.gelu_grn(x_BMF, gamma_F, beta_F, eps)
        ctx.save_for_backward(x_BMF, gamma_F, norms_BF)
        ctx.eps = eps
        return y_BMF

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BMF: Tensor):
        return *torch.ops.mmcnx2.gelu_grn_backward(grad_BMF.contiguous(), *ctx.saved_tensors, ctx.eps), None


@torch.library.impl(_operators, 'gelu_grn', 'CPU')
def _(x_BMF, gamma_F, beta_F, eps):
    B, M, F = x_BMF.shape
    y_BMF, norms_BF = torch.empty_like(x_BMF), x_BMF.new_empty(B, F, dtype=torch.float32)
    _call('gelu_grn_forward', x_BMF, gamma_F, beta_F, y_BMF, norms_BF, eps, B, M, F)
    return y_BMF, norms_BF


@torch.library.register_fake('mmcnx2::gelu_grn', lib=_operators)
def _(x_BMF, gamma_F, beta_F, eps):
    return torch.empty_like(x_BMF), x_BMF.new_empty(x_BMF.shape[0], x_BMF.shape[2], dtype=torch.float32)


@torch.library.impl(_operators, 'gelu_grn_backward', 'CPU')
def _(grad_BMF, x_BMF, gamma_F, norms_BF, eps):
    B, M, F = x_BMF.shape
    gradients = torch.empty_like(x_BMF), torch.empty_like(gamma_F), torch.empty_like(gamma_F)
    _call('gelu_grn_backward', x_BMF, grad_BMF, gamma_F, norms_BF, *gradients, eps, B, M, F)
    return gradients


@torch.library.register_fake('mmcnx2::gelu_grn_backward', lib=_operators)
def _(grad_BMF, x_BMF, gamma_F, norms_BF, eps):
    return torch.empty_like(x_BMF), torch.empty_like(gamma_F), torch.empty_like(gamma_F)
