"""Kernels for NVIDIA GPUs, in Triton: the depthwise convolution on visible cells, GELU with GRN, LayerNorm.

Each stands for a few lines of PyTorch (layout.py, grn.py) and gives their values and gradients in fewer passes over
memory. Nothing here knows modules or layouts. The only file that imports triton; it is imported where a kernel is
wanted (kernels='triton'), so that `import mmcnx2` stays free of it. Touch it for the kernels and their launch
settings. Not for: the choice between a kernel and PyTorch (kernel_choice.py), the mathematics (grn.py).
Guarded by tests/models/test_triton_kernels.py, which runs the kernels in Triton's interpreter and compiles them for
an H100; neither needs a GPU.

Values are float32, bfloat16 or float16 and so are the results; parameters keep their own dtype (float32 parameters
are not rounded to the dtype of the values, unlike under PyTorch's autocast); every sum is taken in float32, in an
order that depends on the shapes alone: no atomics, so equal inputs give equal bits.

Shape letters: B images, G G rows and columns of the grid of cells, N cells of all images, P Q rows and columns of
positions in a cell, C channels, K kernel size, T = K * K taps, M positions of an image, F hidden features. In the
kernels: R rows of a tensor (a cell and a column of a convolution's tile; a position of LayerNorm), S parts of a sum.
"""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor

from .kernel_choice import LARGEST_TRITON_KERNEL, under_autocast

try:
    import triton
    import triton.language as tl
except ImportError:  # a build of PyTorch without CUDA; `is_available` says no
    triton = None

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_KERNEL_SIZE = LARGEST_TRITON_KERNEL
LARGEST_WHOLE_CELL = 16  # positions per side up to which a program computes whole cells
DENSE_TILE_COLUMNS = 8
TAP_COLUMNS = 2  # columns of taps whose gradient one program sums: registers against reads of the same values
NUM_GRADIENT_PROGRAMS = 384  # three for each of 132 multiprocessors at once, by the registers that the kernel needs
NUM_NORM_PROGRAMS = 1024
NUM_ROW_PROGRAMS = 528  # four for each of 132 multiprocessors


def is_available(values: Tensor) -> bool:
    """Whether the kernels of this file can compute with these values: a GPU of compute capability 8.0 or newer (any
    device in Triton's interpreter), a supported dtype, Triton installed."""
    if triton is None or values.dtype not in DTYPES:
        return False
    return IS_INTERPRETED or (values.is_cuda and _is_new_enough(values.device.index))


@torch.compiler.assume_constant_result
def _is_new_enough(device_index: int | None) -> bool:
    return torch.cuda.get_device_capability(device_index) >= (8, 0)


def kernel(function):
    """`triton.jit` that compiles no size into the kernel except the upper-case constants, so that another batch or
    image size needs no new kernel; without Triton the function as it is, never called."""
    if triton is None:
        return function
    sizes = [name for name in inspect.signature(function).parameters if not name.endswith('_ptr') and name.islower()]
    return triton.jit(do_not_specialize=sizes)(function)


# --- depthwise convolution -------------------------------------------------------------------------------------------
#
# A program computes a tile of positions for a block of channels. The columns of the tile are a dimension of its
# tensors; its rows are unrolled, so that a row of the input is read once and used for each of the up to K rows of the
# output that it touches. Cells up to 16 x 16 positions are one tile (several side by side when they are narrow), all
# their offsets known when the kernel is compiled. A map without hidden cells is a grid of 1 x 1 cells, tiled inside,
# its size known at run time only: other image sizes need no new kernel.


@kernel
def _widen(x):
    """Float32 of any float; for bfloat16 one operation a value, where the compiler's own takes one and a half."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@kernel
def _place_of(
    tile,
    cells_ptr,
    sizes,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    IS_ALONE: tl.constexpr,
):
    """Where a tile lies. For each of its R columns: (cell, whether there is one, row of cells counted through the
    batch, place in the grid), the column in the cell; and the tile's first row in the cell."""
    num_cells, grid_rows, grid_columns, _, _, tiles_down, tiles_across = sizes
    r = tl.arange(0, CELLS * TILE_COLUMNS)
    cell_R = tile // (tiles_across * tiles_down) * CELLS + r // TILE_COLUMNS
    first_row = tile // tiles_across % tiles_down * TILE_ROWS
    column_R = tile % tiles_across * TILE_COLUMNS + r % TILE_COLUMNS
    index_R = cell_R
    if not IS_ALONE:
        index_R = tl.load(cells_ptr + cell_R, mask=cell_R < num_cells, other=0).to(tl.int32)
    batch_row_R = index_R // grid_columns
    place = (cell_R, cell_R < num_cells, batch_row_R, batch_row_R % grid_rows, index_R % grid_columns)
    return place, column_R, first_row


@kernel
def _read_row(
    values_ptr,
    slots_ptr,
    place,
    sizes,
    row,
    column_R,
    c_RC,
    has_c_RC,
    C: tl.constexpr,
    K: tl.constexpr,
    IS_ALONE: tl.constexpr,
):
    """Values (R, block of C) at a row and columns counted from the corner of each cell, at most K outside of it; zero
    where nothing is visible. The compiler merges equal reads of the table of slots."""
    cell_R, is_cell_R, batch_row_R, grid_row_R, grid_column_R = place
    _, grid_rows, grid_columns, cell_rows, cell_columns, _, _ = sizes
    if IS_ALONE:
        is_seen_R = is_cell_R & (row >= 0) & (row < cell_rows) & (column_R >= 0) & (column_R < cell_columns)
        first_R = cell_R.to(tl.int64) * (cell_rows * cell_columns * C) + column_R * C
    else:
        down = (row + K * cell_rows) // cell_rows - K  # `//` rounds toward zero in a kernel
        right_R = (column_R + K * cell_columns) // cell_columns - K
        y_R, x_R = grid_row_R + down, grid_column_R + right_R
        is_in_grid_R = is_cell_R & (y_R >= 0) & (y_R < grid_rows) & (x_R >= 0) & (x_R < grid_columns)
        slot_R = tl.load(slots_ptr + (batch_row_R + down) * grid_columns + x_R, mask=is_in_grid_R, other=-1)
        is_seen_R = slot_R >= 0
        first_R = slot_R.to(tl.int64) * (cell_rows * cell_columns * C) + (column_R - right_R * cell_columns) * C
        row -= down * cell_rows
    pointer_RC = values_ptr + first_R[:, None] + c_RC + row * (cell_columns * C)
    return _widen(tl.load(pointer_RC, mask=is_seen_R[:, None] & has_c_RC, other=0.0))


@kernel
def _channels_of(block, R: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Channels of a block, repeated over R so that parameters are read in the layout of the values, and which exist."""
    c_RC = tl.broadcast_to((block * BLOCK_C + tl.arange(0, BLOCK_C))[None, :], (R, BLOCK_C))
    has_c_RC = c_RC < C
    if C % BLOCK_C == 0:
        has_c_RC = tl.full((R, BLOCK_C), True, tl.int1)  # the compiler drops the test
    return c_RC, has_c_RC


@kernel
def _depthwise_kernel(
    values_ptr,
    taps_ptr,
    bias_ptr,
    slots_ptr,
    cells_ptr,
    out_ptr,
    num_cells,
    grid_rows,
    grid_columns,
    cell_rows,
    cell_columns,
    tiles_down,
    tiles_across,
    C: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    IS_ALONE: tl.constexpr,
    IS_FLIPPED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    if P > 0:  # sizes known to the compiler
        cell_rows, cell_columns, tiles_down, tiles_across = P, Q, 1, 1
    sizes = (num_cells, grid_rows, grid_columns, cell_rows, cell_columns, tiles_down, tiles_across)
    R: tl.constexpr = CELLS * TILE_COLUMNS
    num_blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0) // num_blocks
    place, column_R, first_row = _place_of(tile, cells_ptr, sizes, TILE_ROWS, TILE_COLUMNS, CELLS, IS_ALONE)
    c_RC, has_c_RC = _channels_of(tl.program_id(0) % num_blocks, R, C, BLOCK_C)

    bias_RC = tl.zeros((R, BLOCK_C), tl.float32)
    if HAS_BIAS:
        bias_RC = _widen(tl.load(bias_ptr + c_RC, mask=has_c_RC, other=0.0))
    sums = ()
    for _ in tl.static_range(TILE_ROWS):
        sums += (bias_RC,)
    for i in range(K):
        column_taps = ()
        for d in tl.static_range(K):
            tap = (K - 1 - d) * K + K - 1 - i if IS_FLIPPED else d * K + i
            column_taps += (_widen(tl.load(taps_ptr + tap * C + c_RC, mask=has_c_RC, other=0.0)),)
        for j in tl.static_range(TILE_ROWS + K - 1):
            row, input_column_R = first_row + j - K // 2, column_R + i - K // 2
            values_RC = _read_row(
                values_ptr, slots_ptr, place, sizes, row, input_column_R, c_RC, has_c_RC, C, K, IS_ALONE
            )
            new_sums = ()
            for h in tl.static_range(TILE_ROWS):
                if j - h >= 0 and j - h < K:
                    new_sums += (sums[h] + values_RC * column_taps[j - h],)
                else:
                    new_sums += (sums[h],)
            sums = new_sums

    first_R = place[0].to(tl.int64) * (cell_rows * cell_columns * C) + (first_row * cell_columns + column_R) * C
    for h in tl.static_range(TILE_ROWS):
        is_inside_R = place[1] & (column_R < cell_columns) & (first_row + h < cell_rows)
        pointer_RC = out_ptr + first_R[:, None] + c_RC + h * (cell_columns * C)
        tl.store(pointer_RC, sums[h].to(out_ptr.dtype.element_ty), mask=is_inside_R[:, None] & has_c_RC)


@kernel
def _depthwise_weight_grad_kernel(
    values_ptr,
    grad_ptr,
    slots_ptr,
    cells_ptr,
    sums_ptr,
    num_cells,
    grid_rows,
    grid_columns,
    cell_rows,
    cell_columns,
    tiles_down,
    tiles_across,
    num_tiles,
    tiles_per_part,
    C: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    IS_ALONE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TAP_COLUMNS: tl.constexpr,
):
    """sums_STC: for each part S of the tiles, the gradient of each tap, and of the bias behind the last tap."""
    if P > 0:
        cell_rows, cell_columns, tiles_down, tiles_across = P, Q, 1, 1
    sizes = (num_cells, grid_rows, grid_columns, cell_rows, cell_columns, tiles_down, tiles_across)
    R: tl.constexpr = CELLS * TILE_COLUMNS
    num_blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    num_groups: tl.constexpr = (K + TAP_COLUMNS - 1) // TAP_COLUMNS
    block = tl.program_id(0) % num_blocks
    first_i = tl.program_id(0) // num_blocks % num_groups * TAP_COLUMNS
    part = tl.program_id(0) // (num_blocks * num_groups)
    c_RC, has_c_RC = _channels_of(block, R, C, BLOCK_C)

    sums = ()
    for _ in tl.static_range(TAP_COLUMNS):
        column_sums = ()
        for _ in tl.static_range(K):
            column_sums += (tl.zeros((R, BLOCK_C), tl.float32),)
        sums += (column_sums,)
    bias_sums = tl.zeros((R, BLOCK_C), tl.float32)
    for tile in range(part * tiles_per_part, tl.minimum((part + 1) * tiles_per_part, num_tiles)):
        place, column_R, first_row = _place_of(tile, cells_ptr, sizes, TILE_ROWS, TILE_COLUMNS, CELLS, IS_ALONE)
        first_R = place[0].to(tl.int64) * (cell_rows * cell_columns * C) + (first_row * cell_columns + column_R) * C
        grads = ()
        for h in tl.static_range(TILE_ROWS):
            is_inside_R = place[1] & (column_R < cell_columns) & (first_row + h < cell_rows)
            pointer_RC = grad_ptr + first_R[:, None] + c_RC + h * (cell_columns * C)
            grads += (_widen(tl.load(pointer_RC, mask=is_inside_R[:, None] & has_c_RC, other=0.0)),)
            bias_sums += grads[h]
        new_sums = ()
        for s in tl.static_range(TAP_COLUMNS):
            column_sums = sums[s]
            for j in tl.static_range(TILE_ROWS + K - 1):
                row, input_column_R = first_row + j - K // 2, column_R + first_i + s - K // 2
                values_RC = _read_row(
                    values_ptr, slots_ptr, place, sizes, row, input_column_R, c_RC, has_c_RC, C, K, IS_ALONE
                )
                new_column_sums = ()
                for d in tl.static_range(K):
                    if j - d >= 0 and j - d < TILE_ROWS:
                        new_column_sums += (column_sums[d] + values_RC * grads[j - d],)
                    else:
                        new_column_sums += (column_sums[d],)
                column_sums = new_column_sums
            new_sums += (column_sums,)
        sums = new_sums

    c_C = block * BLOCK_C + tl.arange(0, BLOCK_C)
    out_ptr_C = sums_ptr + part.to(tl.int64) * ((K * K + 1) * C) + c_C
    for s in tl.static_range(TAP_COLUMNS):
        for d in tl.static_range(K):
            is_tap_C = (c_C < C) & (first_i + s < K)
            tl.store(out_ptr_C + (d * K + first_i + s) * C, tl.sum(sums[s][d], axis=0), mask=is_tap_C)
    tl.store(out_ptr_C + K * K * C, tl.sum(bias_sums, axis=0), mask=(c_C < C) & (first_i == 0))


def _tiling_of(cells_NPQC: Tensor, grid_shape: tuple[int, int], kernel_size: int) -> tuple[dict, tuple[int, int, int]]:
    """Constants of the kernels, and (number of tiles, tiles down and across a cell)."""
    num_cells, cell_rows, cell_columns, num_channels = cells_NPQC.shape
    is_alone = grid_shape == (1, 1)
    constants = dict(C=num_channels, K=kernel_size, IS_ALONE=is_alone)
    if not is_alone and max(cell_rows, cell_columns) <= LARGEST_WHOLE_CELL:
        tile_columns = triton.next_power_of_2(cell_columns)
        cells_side_by_side = max(1, DENSE_TILE_COLUMNS // tile_columns)
        constants.update(
            P=cell_rows, Q=cell_columns, TILE_ROWS=cell_rows, TILE_COLUMNS=tile_columns, CELLS=cells_side_by_side
        )
        return constants, (triton.cdiv(num_cells, cells_side_by_side), 1, 1)
    tile_rows = 7 if cell_rows % 8 and not cell_rows % 7 else 8  # 7, 14 and 28 without a rest
    constants.update(P=0, Q=0, TILE_ROWS=tile_rows, TILE_COLUMNS=DENSE_TILE_COLUMNS, CELLS=1)
    tiles_down, tiles_across = triton.cdiv(cell_rows, tile_rows), triton.cdiv(cell_columns, DENSE_TILE_COLUMNS)
    return constants, (num_cells * tiles_down * tiles_across, tiles_down, tiles_across)


def _fitting_settings(settings: list, arguments: dict, **constants) -> list:
    """Those whose sums fit into registers: at most 64 a thread; the last if none does."""
    positions = constants['TILE_ROWS'] * constants['TILE_COLUMNS'] * constants['CELLS']
    fitting = [s for s in settings if positions * s.kwargs['BLOCK_C'] <= 64 * 32 * s.num_warps]
    return fitting or settings[-1:]


IS_INTERPRETED = triton is not None and not isinstance(_depthwise_kernel, triton.JITFunction)

if triton is not None and not IS_INTERPRETED:
    # Every setting sums in the same order, so the choice shows in the time only.
    _depthwise_kernel = triton.autotune(
        [
            triton.Config(dict(BLOCK_C=block_c), num_warps=num_warps, num_stages=1)
            for block_c, num_warps in ((32, 2), (64, 4), (32, 4), (64, 8))
        ],
        key=['C', 'K', 'P', 'Q', 'TILE_ROWS'],
        prune_configs_by=dict(early_config_prune=_fitting_settings),
        cache_results=True,
    )(_depthwise_kernel)


@torch.library.custom_op('mmcnx2_triton::depthwise', mutates_args=())
def _depthwise(
    cells_NPQC: Tensor, taps_TC: Tensor, bias_C: Tensor | None, slots_BGG: Tensor, cells_N: Tensor, is_flipped: bool
) -> Tensor:
    """The convolution; with is_flipped by the kernel turned by half a turn, which gives the gradient of the input."""
    out_NPQC = torch.empty_like(cells_NPQC)
    grid_shape = tuple(slots_BGG.shape[1:])
    constants, (num_tiles, *tiles) = _tiling_of(cells_NPQC, grid_shape, math.isqrt(len(taps_TC)))
    if IS_INTERPRETED:
        constants['BLOCK_C'] = 32
    num_channels = cells_NPQC.shape[-1]
    with _device_of(cells_NPQC):
        _depthwise_kernel[lambda meta: (num_tiles * triton.cdiv(num_channels, meta['BLOCK_C']),)](
            cells_NPQC,
            taps_TC,
            bias_C,
            slots_BGG,
            cells_N,
            out_NPQC,
            len(cells_NPQC),
            *grid_shape,
            *cells_NPQC.shape[1:3],
            *tiles,
            **constants,
            IS_FLIPPED=is_flipped,
            HAS_BIAS=bias_C is not None,
        )
    return out_NPQC


@_depthwise.register_fake
def _(cells_NPQC, taps_TC, bias_C, slots_BGG, cells_N, is_flipped):
    return torch.empty_like(cells_NPQC)


@torch.library.custom_op('mmcnx2_triton::depthwise_weight_grad', mutates_args=())
def _depthwise_weight_grad(
    cells_NPQC: Tensor, grad_NPQC: Tensor, slots_BGG: Tensor, cells_N: Tensor, kernel_size: int
) -> Tensor:
    """Float32 (T + 1, C): the gradient of each tap, that of the bias last."""
    grid_shape = tuple(slots_BGG.shape[1:])
    constants, (num_tiles, *tiles) = _tiling_of(cells_NPQC, grid_shape, kernel_size)
    num_channels = constants['C']
    block_c = 64 if num_channels % 64 == 0 or num_channels > 256 else 32
    num_warps = constants['TILE_COLUMNS'] * constants['CELLS'] * block_c // (128 if constants['TILE_ROWS'] <= 8 else 64)
    programs_per_part = triton.cdiv(num_channels, block_c) * triton.cdiv(kernel_size, TAP_COLUMNS)
    tiles_per_part = triton.cdiv(num_tiles, max(1, NUM_GRADIENT_PROGRAMS // programs_per_part))
    num_parts = triton.cdiv(num_tiles, tiles_per_part)
    sums_STC = cells_NPQC.new_empty(num_parts, kernel_size**2 + 1, num_channels, dtype=torch.float32)
    with _device_of(cells_NPQC):
        _depthwise_weight_grad_kernel[(num_parts * programs_per_part,)](
            cells_NPQC,
            grad_NPQC,
            slots_BGG,
            cells_N,
            sums_STC,
            len(cells_NPQC),
            *grid_shape,
            *cells_NPQC.shape[1:3],
            *tiles,
            num_tiles,
            tiles_per_part,
            **constants,
            BLOCK_C=block_c,
            TAP_COLUMNS=TAP_COLUMNS,
            num_warps=num_warps,
            num_stages=1,
        )
    return sums_STC.sum(0)


@_depthwise_weight_grad.register_fake
def _(cells_NPQC, grad_NPQC, slots_BGG, cells_N, kernel_size):
    return cells_NPQC.new_empty(kernel_size**2 + 1, cells_NPQC.shape[-1], dtype=torch.float32)


def _keep_for_depthwise(ctx, inputs, output) -> None:
    cells_NPQC, taps_TC, bias_C, slots_BGG, cells_N, ctx.is_flipped = inputs
    ctx.save_for_backward(cells_NPQC, taps_TC, slots_BGG, cells_N)
    ctx.bias_dtype = None if bias_C is None else bias_C.dtype


def _depthwise_backward(ctx, grad_NPQC: Tensor):
    cells_NPQC, taps_TC, slots_BGG, cells_N = ctx.saved_tensors
    if ctx.is_flipped:
        raise NotImplementedError('depthwise_conv has no second derivative; use the PyTorch path for one.')
    grad_NPQC = grad_NPQC.contiguous()
    cells_grad = taps_grad = bias_grad = None
    if ctx.needs_input_grad[0]:
        cells_grad = _depthwise(grad_NPQC, taps_TC, None, slots_BGG, cells_N, True)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        sums_TC = _depthwise_weight_grad(cells_NPQC, grad_NPQC, slots_BGG, cells_N, math.isqrt(len(taps_TC)))
        taps_grad = sums_TC[:-1].to(taps_TC.dtype)
        bias_grad = None if ctx.bias_dtype is None else sums_TC[-1].to(ctx.bias_dtype)
    return cells_grad, taps_grad, bias_grad, None, None, None


_depthwise.register_autograd(_depthwise_backward, setup_context=_keep_for_depthwise)


def depthwise_conv(
    cells_NPQC: Tensor, weight_C1KK: Tensor, bias_C: Tensor | None, slots_BGG: Tensor, cells_N: Tensor
) -> Tensor:
    """The depthwise convolution (stride 1, zero padding) at every position of the visible cells, in the shape and
    dtype of the values; hidden cells and the outside of the grid count as zero.

    Under autocast the values are cast as `F.conv2d` would cast them; the weight keeps its dtype. An ordinary map
    (N, H, W, C) is a grid of one cell per image, N of P x Q = H x W positions. There is no second derivative.

    Args:
        cells_NPQC: contiguous values of the visible cells.
        weight_C1KK: K odd, at most 13.
        bias_C: or None.
        slots_BGG: int32, the row n of each cell of the grid in the values, -1 where the cell is hidden.
        cells_N: int64, flat index of each visible cell in (B, G, G).

    Raises:
        TypeError: a dtype that the kernels do not know, such as float64.
        ValueError: shapes that do not belong together, a kernel size that is even or too large, values on the CPU
            outside of Triton's interpreter.
    """
    cells_NPQC = under_autocast(cells_NPQC)
    _check_values(cells_NPQC, 'depthwise_conv')
    num_channels, _, kernel_size, _ = weight_C1KK.shape
    if weight_C1KK.shape != (cells_NPQC.shape[-1], 1, kernel_size, kernel_size):
        raise ValueError(
            f'weight_C1KK is {tuple(weight_C1KK.shape)} for values of {cells_NPQC.shape[-1]} channels; give '
            '(channels, 1, K, K).'
        )
    if kernel_size % 2 == 0 or kernel_size > LARGEST_KERNEL_SIZE:
        raise ValueError(
            f'the kernel is {kernel_size} x {kernel_size}; this convolution takes odd sizes up to '
            f'{LARGEST_KERNEL_SIZE}. Use the PyTorch path for others.'
        )
    if cells_N.shape != cells_NPQC.shape[:1] or slots_BGG.ndim != 3:
        raise ValueError(
            f'cells_N is {tuple(cells_N.shape)} and slots_BGG {tuple(slots_BGG.shape)} for {len(cells_NPQC)} visible '
            'cells; give one index per cell, and slots of (images, rows, columns).'
        )
    if slots_BGG.dtype != torch.int32 or cells_N.dtype != torch.int64:
        raise TypeError(f'slots_BGG is {slots_BGG.dtype}, cells_N {cells_N.dtype}; give int32 and int64.')
    taps_TC = weight_C1KK.reshape(num_channels, -1).t().contiguous()
    return _depthwise(cells_NPQC.contiguous(), taps_TC, bias_C, slots_BGG.contiguous(), cells_N.contiguous(), False)


# --- GELU and GRN ----------------------------------------------------------------------------------------------------
#
# y = g * (1 + gamma * n / d) + beta with g = gelu(x), n the L2 norm of g over positions, d = mean over features of n,
# plus eps. Forward: one pass over x for n, one for y. Backward, with t = sum over positions of dy * g: one pass over x
# and dy for t and the gradient of beta, one for dx. GELU is computed anew in each pass, so x is all that is kept.


@kernel
def _normal(x):
    """Phi(x), the integral of the normal distribution up to x, and exp(-x * x / 2).

    Phi(-|x|) = exp(-x * x / 2) * t * q(t) with t = 1 / (1 + p |x|), the form of Abramowitz and Stegun 7.1.26; p and
    the polynomial were fitted for this file, to 4e-9 of Phi, less than float32 can hold. Half the instructions of the
    compiler's erf, no cancellation for negative x, and the backward pass needs the exponential anyway.
    """
    bell = tl.exp2(x * x * -0.7213475204444817)
    root = tl.rsqrt(1.0 + 0.2757716446627535 * tl.abs(x))  # 1 / y in two instructions; a division takes eight
    t = root * root
    q = 0.4433317609 - 0.1137684589 * t
    q = 0.1176625739 + t * (0.04569443067 + t * (0.3247791425 + t * (-0.3176994499 + t * q)))
    tail = bell * t * q
    return tl.where(x < 0, tail, 1.0 - tail), bell


@kernel
def _feature_sums_kernel(
    x_ptr,
    grad_ptr,
    sums_ptr,
    num_positions,
    num_parts,
    positions_per_part,
    F: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """For an image, a part of its positions and a block of features: the sum of g * g; with a gradient dy those of
    dy * g and dy, behind each other. sums_BSF, or sums_2BSF."""
    num_blocks: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    block = tl.program_id(0) % num_blocks
    part = tl.program_id(0) // num_blocks % num_parts
    image = tl.program_id(0) // (num_blocks * num_parts)
    f_F = block * BLOCK_F + tl.arange(0, BLOCK_F)
    end = tl.minimum((part + 1) * positions_per_part, num_positions)
    first = image.to(tl.int64) * num_positions
    sums_MF = tl.zeros((BLOCK_M, BLOCK_F), tl.float32)
    grad_sums_MF = tl.zeros((BLOCK_M, BLOCK_F), tl.float32)
    for start in range(part * positions_per_part, end, BLOCK_M):
        m_M = start + tl.arange(0, BLOCK_M)
        offset_MF = (first + m_M)[:, None] * F + f_F[None, :]
        is_there_MF = (m_M < end)[:, None] & (f_F < F)[None, :]
        x_MF = _widen(tl.load(x_ptr + offset_MF, mask=is_there_MF, other=0.0))
        cdf_MF, _ = _normal(x_MF)
        gelu_MF = x_MF * cdf_MF
        if HAS_GRAD:
            grad_MF = _widen(tl.load(grad_ptr + offset_MF, mask=is_there_MF, other=0.0))
            sums_MF += grad_MF * gelu_MF
            grad_sums_MF += grad_MF
        else:
            sums_MF += gelu_MF * gelu_MF
    out_ptr_F = sums_ptr + (image * num_parts + part).to(tl.int64) * F + f_F
    tl.store(out_ptr_F, tl.sum(sums_MF, axis=0), mask=f_F < F)
    if HAS_GRAD:
        num_sums = tl.num_programs(0) // num_blocks
        tl.store(out_ptr_F + num_sums.to(tl.int64) * F, tl.sum(grad_sums_MF, axis=0), mask=f_F < F)


@kernel
def _sum_of_parts(sums_ptr, first_part, num_parts, f_F, F: tl.constexpr, BLOCK_S: tl.constexpr):
    sums_SF = tl.zeros((BLOCK_S, f_F.shape[0]), tl.float32)
    for start in range(0, num_parts, BLOCK_S):
        s_S = start + tl.arange(0, BLOCK_S)
        is_there_SF = (s_S < num_parts)[:, None] & (f_F < F)[None, :]
        offset_SF = (first_part + s_S).to(tl.int64)[:, None] * F + f_F[None, :]
        sums_SF += tl.load(sums_ptr + offset_SF, mask=is_there_SF, other=0.0)
    return tl.sum(sums_SF, axis=0)


@kernel
def _norms_kernel(
    sums_ptr,
    norms_ptr,
    divisors_ptr,
    num_parts,
    eps,
    F: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """For an image: n of each feature, and d."""
    image = tl.program_id(0)
    total_F = tl.zeros((BLOCK_F,), tl.float32)
    for start in range(0, F, BLOCK_F):
        f_F = start + tl.arange(0, BLOCK_F)
        norms_F = tl.sqrt(_sum_of_parts(sums_ptr, image * num_parts, num_parts, f_F, F, BLOCK_S))
        tl.store(norms_ptr + image * F + f_F, norms_F, mask=f_F < F)
        total_F += norms_F
    tl.store(divisors_ptr + image, tl.sum(total_F, axis=0) / F + eps)


@kernel
def _scale_kernel(
    x_ptr,
    gamma_ptr,
    beta_ptr,
    norms_ptr,
    divisors_ptr,
    out_ptr,
    num_positions,
    num_parts,
    positions_per_part,
    F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """y, for an image, a part of its positions and a block of features."""
    num_blocks: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    block = tl.program_id(0) % num_blocks
    part = tl.program_id(0) // num_blocks % num_parts
    image = tl.program_id(0) // (num_blocks * num_parts)
    f_F = block * BLOCK_F + tl.arange(0, BLOCK_F)
    is_feature_F = f_F < F
    end = tl.minimum((part + 1) * positions_per_part, num_positions)
    first = image.to(tl.int64) * num_positions
    gamma_F = _widen(tl.load(gamma_ptr + f_F, mask=is_feature_F, other=0.0))
    beta_F = _widen(tl.load(beta_ptr + f_F, mask=is_feature_F, other=0.0))
    norms_F = tl.load(norms_ptr + image * F + f_F, mask=is_feature_F, other=0.0)
    scale_F = 1.0 + gamma_F * norms_F / tl.load(divisors_ptr + image)
    for start in range(part * positions_per_part, end, BLOCK_M):
        m_M = start + tl.arange(0, BLOCK_M)
        offset_MF = (first + m_M)[:, None] * F + f_F[None, :]
        is_there_MF = (m_M < end)[:, None] & is_feature_F[None, :]
        x_MF = _widen(tl.load(x_ptr + offset_MF, mask=is_there_MF, other=0.0))
        cdf_MF, _ = _normal(x_MF)
        out_MF = x_MF * cdf_MF * scale_F[None, :] + beta_F[None, :]
        tl.store(out_ptr + offset_MF, out_MF.to(out_ptr.dtype.element_ty), mask=is_there_MF)


@kernel
def _parameter_grads_kernel(
    sums_ptr,
    gamma_ptr,
    norms_ptr,
    divisors_ptr,
    products_ptr,
    shares_ptr,
    parameter_grads_ptr,
    num_parts,
    F: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """For an image: t of each feature, the gradient that d passes on to each n, and the image's share of the gradients
    of gamma and beta, parameter_grads_2BF."""
    image, num_images = tl.program_id(0), tl.num_programs(0)
    divisor = tl.load(divisors_ptr + image)
    total_F = tl.zeros((BLOCK_F,), tl.float32)
    for start in range(0, F, BLOCK_F):
        f_F = start + tl.arange(0, BLOCK_F)
        is_feature_F = f_F < F
        products_F = _sum_of_parts(sums_ptr, image * num_parts, num_parts, f_F, F, BLOCK_S)
        beta_grad_F = _sum_of_parts(sums_ptr, (num_images + image) * num_parts, num_parts, f_F, F, BLOCK_S)
        gamma_F = _widen(tl.load(gamma_ptr + f_F, mask=is_feature_F, other=0.0))
        norms_F = tl.load(norms_ptr + image * F + f_F, mask=is_feature_F, other=0.0)
        total_F += gamma_F * products_F * norms_F
        tl.store(products_ptr + image * F + f_F, products_F, mask=is_feature_F)
        tl.store(parameter_grads_ptr + image * F + f_F, products_F * norms_F / divisor, mask=is_feature_F)
        tl.store(parameter_grads_ptr + (num_images + image) * F + f_F, beta_grad_F, mask=is_feature_F)
    tl.store(shares_ptr + image, tl.sum(total_F, axis=0) / (F * divisor * divisor))


@kernel
def _scale_grad_kernel(
    x_ptr,
    grad_ptr,
    gamma_ptr,
    norms_ptr,
    divisors_ptr,
    products_ptr,
    shares_ptr,
    out_ptr,
    num_positions,
    num_parts,
    positions_per_part,
    F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """dx, for an image, a part of its positions and a block of features."""
    num_blocks: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    block = tl.program_id(0) % num_blocks
    part = tl.program_id(0) // num_blocks % num_parts
    image = tl.program_id(0) // (num_blocks * num_parts)
    f_F = block * BLOCK_F + tl.arange(0, BLOCK_F)
    is_feature_F = f_F < F
    end = tl.minimum((part + 1) * positions_per_part, num_positions)
    first = image.to(tl.int64) * num_positions
    divisor = tl.load(divisors_ptr + image)
    gamma_F = _widen(tl.load(gamma_ptr + f_F, mask=is_feature_F, other=0.0))
    norms_F = tl.load(norms_ptr + image * F + f_F, mask=is_feature_F, other=0.0)
    products_F = tl.load(products_ptr + image * F + f_F, mask=is_feature_F, other=0.0)
    scale_F = 1.0 + gamma_F * norms_F / divisor
    norm_grad_F = gamma_F * products_F / divisor - tl.load(shares_ptr + image)
    # The gradient of a norm is g / n; where n is 0 so is every g.
    pull_F = tl.where(norms_F > 0, norm_grad_F / tl.where(norms_F > 0, norms_F, 1.0), 0.0)
    for start in range(part * positions_per_part, end, BLOCK_M):
        m_M = start + tl.arange(0, BLOCK_M)
        offset_MF = (first + m_M)[:, None] * F + f_F[None, :]
        is_there_MF = (m_M < end)[:, None] & is_feature_F[None, :]
        x_MF = _widen(tl.load(x_ptr + offset_MF, mask=is_there_MF, other=0.0))
        grad_MF = _widen(tl.load(grad_ptr + offset_MF, mask=is_there_MF, other=0.0))
        cdf_MF, bell_MF = _normal(x_MF)
        gelu_grad_MF = cdf_MF + x_MF * bell_MF * 0.3989422804014327
        out_MF = (grad_MF * scale_F[None, :] + x_MF * cdf_MF * pull_F[None, :]) * gelu_grad_MF
        tl.store(out_ptr + offset_MF, out_MF.to(out_ptr.dtype.element_ty), mask=is_there_MF)


def _parts_of(x_BMF: Tensor) -> tuple[dict, tuple[int, int]]:
    """Constants of the kernels that pass over positions, and (parts of an image, positions of a part)."""
    num_images, num_positions, num_features = x_BMF.shape
    block_f = 128 if num_features % 128 == 0 or num_features > 512 else 64
    block_m = min(2048 // block_f, triton.next_power_of_2(num_positions))
    num_parts = NUM_NORM_PROGRAMS // (num_images * triton.cdiv(num_features, block_f))
    num_parts = max(1, min(num_parts, triton.cdiv(num_positions, block_m)))
    positions_per_part = triton.cdiv(triton.cdiv(num_positions, num_parts), block_m) * block_m
    constants = dict(F=num_features, BLOCK_M=block_m, BLOCK_F=block_f)
    return constants, (triton.cdiv(num_positions, positions_per_part), positions_per_part)


def _part_blocks(num_parts: int, num_features: int) -> dict:
    """Constants of the kernels that add up the parts of an image."""
    block_s = triton.next_power_of_2(min(num_parts, 16))
    block_f = min(triton.next_power_of_2(num_features), 4096 // block_s)
    return dict(F=num_features, BLOCK_S=block_s, BLOCK_F=block_f, num_warps=8)


@torch.library.custom_op('mmcnx2_triton::gelu_grn', mutates_args=())
def _gelu_grn(x_BMF: Tensor, gamma_F: Tensor, beta_F: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(y, n (B, F), d (B,))."""
    num_images, num_positions, num_features = x_BMF.shape
    constants, (num_parts, positions_per_part) = _parts_of(x_BMF)
    sums_BSF = x_BMF.new_empty(num_images, num_parts, num_features, dtype=torch.float32)
    norms_BF = x_BMF.new_empty(num_images, num_features, dtype=torch.float32)
    divisors_B = x_BMF.new_empty(num_images, dtype=torch.float32)
    out_BMF = torch.empty_like(x_BMF)
    programs = (num_images * num_parts * triton.cdiv(num_features, constants['BLOCK_F']),)
    sizes = (num_positions, num_parts, positions_per_part)
    with _device_of(x_BMF):
        _feature_sums_kernel[programs](x_BMF, None, sums_BSF, *sizes, **constants, HAS_GRAD=False)
        _norms_kernel[(num_images,)](
            sums_BSF, norms_BF, divisors_B, num_parts, eps, **_part_blocks(num_parts, num_features)
        )
        _scale_kernel[programs](x_BMF, gamma_F, beta_F, norms_BF, divisors_B, out_BMF, *sizes, **constants)
    return out_BMF, norms_BF, divisors_B


@_gelu_grn.register_fake
def _(x_BMF, gamma_F, beta_F, eps):
    norms_BF = x_BMF.new_empty(x_BMF.shape[0], x_BMF.shape[2], dtype=torch.float32)
    return torch.empty_like(x_BMF), norms_BF, x_BMF.new_empty(x_BMF.shape[0], dtype=torch.float32)


@torch.library.custom_op('mmcnx2_triton::gelu_grn_backward', mutates_args=())
def _gelu_grn_backward(
    grad_BMF: Tensor, x_BMF: Tensor, gamma_F: Tensor, norms_BF: Tensor, divisors_B: Tensor
) -> tuple[Tensor, Tensor]:
    """(dx, float32 gradients of gamma and beta (2, F))."""
    num_images, num_positions, num_features = x_BMF.shape
    constants, (num_parts, positions_per_part) = _parts_of(x_BMF)
    sums_2BSF = x_BMF.new_empty(2, num_images, num_parts, num_features, dtype=torch.float32)
    products_BF, shares_B = torch.empty_like(norms_BF), torch.empty_like(divisors_B)
    parameter_grads_2BF = norms_BF.new_empty(2, num_images, num_features)
    out_BMF = torch.empty_like(x_BMF)
    programs = (num_images * num_parts * triton.cdiv(num_features, constants['BLOCK_F']),)
    sizes = (num_positions, num_parts, positions_per_part)
    with _device_of(x_BMF):
        _feature_sums_kernel[programs](x_BMF, grad_BMF, sums_2BSF, *sizes, **constants, HAS_GRAD=True)
        _parameter_grads_kernel[(num_images,)](
            sums_2BSF,
            gamma_F,
            norms_BF,
            divisors_B,
            products_BF,
            shares_B,
            parameter_grads_2BF,
            num_parts,
            **_part_blocks(num_parts, num_features),
        )
        _scale_grad_kernel[programs](
            x_BMF, grad_BMF, gamma_F, norms_BF, divisors_B, products_BF, shares_B, out_BMF, *sizes, **constants
        )
    return out_BMF, parameter_grads_2BF.sum(1)


@_gelu_grn_backward.register_fake
def _(grad_BMF, x_BMF, gamma_F, norms_BF, divisors_B):
    return torch.empty_like(x_BMF), norms_BF.new_empty(2, norms_BF.shape[1])


def _keep_for_gelu_grn(ctx, inputs, output) -> None:
    x_BMF, gamma_F, beta_F, _ = inputs
    _, norms_BF, divisors_B = output
    ctx.save_for_backward(x_BMF, gamma_F, norms_BF, divisors_B)
    ctx.beta_dtype = beta_F.dtype
    ctx.set_materialize_grads(False)


def _backward_of_gelu_grn(ctx, grad_BMF: Tensor, *_):
    x_BMF, gamma_F, norms_BF, divisors_B = ctx.saved_tensors
    x_grad, grads_2F = _gelu_grn_backward(grad_BMF.contiguous(), x_BMF, gamma_F, norms_BF, divisors_B)
    return x_grad, grads_2F[0].to(gamma_F.dtype), grads_2F[1].to(ctx.beta_dtype), None


_gelu_grn.register_autograd(_backward_of_gelu_grn, setup_context=_keep_for_gelu_grn)


def gelu_grn(x_BMF: Tensor, gamma_F: Tensor, beta_F: Tensor, eps: float = 1e-6) -> Tensor:
    """GELU (the exact one, without tanh) and then GRN (grn.py) whose norm runs over the M positions of each of the B
    groups; shape and dtype of x. For a norm over the whole batch, give all its positions as one group. There is no
    second derivative.

    Kept for the backward pass: x and the norms.

    Raises:
        TypeError: a dtype that the kernels do not know, such as float64.
        ValueError: gamma or beta do not have F numbers, values on the CPU outside of Triton's interpreter.
    """
    _check_values(x_BMF, 'gelu_grn')
    if x_BMF.ndim != 3 or not gamma_F.shape == beta_F.shape == x_BMF.shape[-1:]:
        raise ValueError(
            f'gelu_grn got x {tuple(x_BMF.shape)}, gamma {tuple(gamma_F.shape)} and beta {tuple(beta_F.shape)}; give '
            '(groups, positions, features) and one number per feature.'
        )
    return _gelu_grn(x_BMF.contiguous(), gamma_F, beta_F, eps)[0]


# --- LayerNorm over channels -----------------------------------------------------------------------------------------


@kernel
def _layer_norm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    statistics_ptr,
    num_rows,
    eps,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The norm of BLOCK_R rows, and statistics_2R: mean and reciprocal standard deviation."""
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c_C = tl.arange(0, BLOCK_C)
    has_c_C = c_C < C
    offset_RC = row_R.to(tl.int64)[:, None] * C + c_C[None, :]
    is_there_RC = (row_R < num_rows)[:, None] & has_c_C[None, :]
    x_RC = _widen(tl.load(x_ptr + offset_RC, mask=is_there_RC, other=0.0))
    mean_R = tl.sum(x_RC, axis=1) / C
    centred_RC = tl.where(is_there_RC, x_RC - mean_R[:, None], 0.0)
    rstd_R = 1.0 / tl.sqrt(tl.sum(centred_RC * centred_RC, axis=1) / C + eps)
    weight_C = _widen(tl.load(weight_ptr + c_C, mask=has_c_C, other=0.0))
    bias_C = _widen(tl.load(bias_ptr + c_C, mask=has_c_C, other=0.0))
    out_RC = centred_RC * rstd_R[:, None] * weight_C[None, :] + bias_C[None, :]
    tl.store(out_ptr + offset_RC, out_RC.to(out_ptr.dtype.element_ty), mask=is_there_RC)
    tl.store(statistics_ptr + row_R, mean_R, mask=row_R < num_rows)
    tl.store(statistics_ptr + num_rows + row_R, rstd_R, mask=row_R < num_rows)


@kernel
def _layer_norm_grad_kernel(
    x_ptr,
    grad_ptr,
    weight_ptr,
    statistics_ptr,
    out_ptr,
    sums_ptr,
    num_rows,
    rows_per_part,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dx of a part of the rows, and sums_S2C: the part's share of the gradients of weight and bias."""
    part = tl.program_id(0)
    c_C = tl.arange(0, BLOCK_C)
    has_c_C = c_C < C
    weight_C = _widen(tl.load(weight_ptr + c_C, mask=has_c_C, other=0.0))
    weight_sums_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    bias_sums_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    end = tl.minimum((part + 1) * rows_per_part, num_rows)
    for start in range(part * rows_per_part, end, BLOCK_R):
        row_R = start + tl.arange(0, BLOCK_R)
        offset_RC = row_R.to(tl.int64)[:, None] * C + c_C[None, :]
        is_there_RC = (row_R < end)[:, None] & has_c_C[None, :]
        x_RC = _widen(tl.load(x_ptr + offset_RC, mask=is_there_RC, other=0.0))
        grad_RC = _widen(tl.load(grad_ptr + offset_RC, mask=is_there_RC, other=0.0))
        mean_R = tl.load(statistics_ptr + row_R, mask=row_R < end, other=0.0)
        rstd_R = tl.load(statistics_ptr + num_rows + row_R, mask=row_R < end, other=0.0)
        normed_RC = tl.where(is_there_RC, (x_RC - mean_R[:, None]) * rstd_R[:, None], 0.0)
        weight_sums_RC += grad_RC * normed_RC
        bias_sums_RC += grad_RC
        pull_RC = grad_RC * weight_C[None, :]
        along_R = tl.sum(pull_RC * normed_RC, axis=1) / C
        out_RC = (pull_RC - (tl.sum(pull_RC, axis=1) / C)[:, None] - normed_RC * along_R[:, None]) * rstd_R[:, None]
        tl.store(out_ptr + offset_RC, out_RC.to(out_ptr.dtype.element_ty), mask=is_there_RC)
    out_ptr_C = sums_ptr + part * (2 * C) + c_C
    tl.store(out_ptr_C, tl.sum(weight_sums_RC, axis=0), mask=has_c_C)
    tl.store(out_ptr_C + C, tl.sum(bias_sums_RC, axis=0), mask=has_c_C)


def _row_blocks(num_channels: int) -> dict:
    block_c = triton.next_power_of_2(num_channels)
    return dict(C=num_channels, BLOCK_C=block_c, BLOCK_R=max(1, 2048 // block_c), num_warps=8 if block_c > 2048 else 4)


@torch.library.custom_op('mmcnx2_triton::layer_norm', mutates_args=())
def _layer_norm(x_NC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    num_rows, num_channels = x_NC.shape
    out_NC, statistics_2N = torch.empty_like(x_NC), x_NC.new_empty(2, num_rows, dtype=torch.float32)
    constants = _row_blocks(num_channels)
    with _device_of(x_NC):
        _layer_norm_kernel[(triton.cdiv(num_rows, constants['BLOCK_R']),)](
            x_NC, weight_C, bias_C, out_NC, statistics_2N, num_rows, eps, **constants
        )
    return out_NC, statistics_2N


@_layer_norm.register_fake
def _(x_NC, weight_C, bias_C, eps):
    return torch.empty_like(x_NC), x_NC.new_empty(2, x_NC.shape[0], dtype=torch.float32)


@torch.library.custom_op('mmcnx2_triton::layer_norm_backward', mutates_args=())
def _layer_norm_backward(
    grad_NC: Tensor, x_NC: Tensor, weight_C: Tensor, statistics_2N: Tensor
) -> tuple[Tensor, Tensor]:
    """(dx, float32 gradients of weight and bias (2, C))."""
    num_rows, num_channels = x_NC.shape
    constants = _row_blocks(num_channels)
    block_r = constants['BLOCK_R']
    rows_per_part = triton.cdiv(triton.cdiv(num_rows, block_r), NUM_ROW_PROGRAMS) * block_r
    num_parts = triton.cdiv(num_rows, rows_per_part)
    out_NC, sums_S2C = torch.empty_like(x_NC), statistics_2N.new_empty(num_parts, 2, num_channels)
    with _device_of(x_NC):
        _layer_norm_grad_kernel[(num_parts,)](
            x_NC, grad_NC, weight_C, statistics_2N, out_NC, sums_S2C, num_rows, rows_per_part, **constants
        )
    return out_NC, sums_S2C.sum(0)


@_layer_norm_backward.register_fake
def _(grad_NC, x_NC, weight_C, statistics_2N):
    return torch.empty_like(x_NC), statistics_2N.new_empty(2, x_NC.shape[1])


def _keep_for_layer_norm(ctx, inputs, output) -> None:
    x_NC, weight_C, bias_C, _ = inputs
    ctx.save_for_backward(x_NC, weight_C, output[1])
    ctx.bias_dtype = bias_C.dtype
    ctx.set_materialize_grads(False)


def _backward_of_layer_norm(ctx, grad_NC: Tensor, *_):
    x_NC, weight_C, statistics_2N = ctx.saved_tensors
    x_grad, grads_2C = _layer_norm_backward(grad_NC.contiguous(), x_NC, weight_C, statistics_2N)
    return x_grad, grads_2C[0].to(weight_C.dtype), grads_2C[1].to(ctx.bias_dtype), None


_layer_norm.register_autograd(_backward_of_layer_norm, setup_context=_keep_for_layer_norm)


def layer_norm(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float = 1e-6) -> Tensor:
    """LayerNorm over the last dimension, in the shape and dtype of x.

    Under autocast too: `F.layer_norm` would go through float32 copies of x and of the result there, five times the
    bytes. There is no second derivative.

    Raises:
        TypeError: a dtype that the kernels do not know, such as float64.
        ValueError: weight or bias do not have C numbers, values on the CPU outside of Triton's interpreter.
    """
    _check_values(x, 'layer_norm')
    if not weight_C.shape == bias_C.shape == x.shape[-1:]:
        raise ValueError(
            f'layer_norm got x {tuple(x.shape)}, weight {tuple(weight_C.shape)} and bias {tuple(bias_C.shape)}; give '
            'one number per channel, the last dimension of x.'
        )
    return _layer_norm(x.reshape(-1, x.shape[-1]).contiguous(), weight_C, bias_C, eps)[0].view(x.shape)


# --- shared by all --------------------------------------------------------------------------------------------------


def _check_values(values: Tensor, name: str) -> None:
    if values.dtype not in DTYPES:
        raise TypeError(
            f'{name} got {values.dtype}; its Triton kernels compute float32, bfloat16 and float16. Use the PyTorch '
            'path for others.'
        )
    if not (values.is_cuda or IS_INTERPRETED):
        raise ValueError(
            f'{name} got values on {values.device}; its Triton kernels run on a GPU. Use the PyTorch path, or for a '
            'test set TRITON_INTERPRET=1 before triton is first imported.'
        )


def _device_of(values: Tensor):
    """Triton launches on the current device, which need not be that of the values."""
    return torch.cuda.device_of(values)
