"""Where the positions of a feature map live. A block computes; a layout knows its neighbours.

A layout answers four questions: how pixels become its values (`from_images`), what a depthwise convolution gives
(`conv`), over which positions GRN sums (`channel_norms`, `num_grn_groups`; `pool` for what may replace it), and what
ordinary map the values stand for (`to_map`). All values are channels last. Its `kernels` say which implementation
computes (kernel_choice.py). A convolution whose stride equals its kernel never leaves a position's own window: it is a
linear layer in any layout (patch_linear.py).

Shape letters: B images, C channels, H W rows and columns, G G rows and columns of the grid of cells (the two need not
be equal), K visible cells per image, P positions per side of a cell at the current stride, S pixels per side of a
cell.

Touch this file to add a layout or a faster way to one of the four answers. Not for: masks (fcmae/masking.py),
parameters.
Guarded by tests/models/test_layout.py.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from . import cpu_kernels
from .depthwise import DepthwiseConv
from .kernel_choice import LARGEST_TRITON_KERNEL, check_kernels, chosen_kernels, under_autocast

GRN_SCOPES = ('image', 'batch')
POOLED_NORMS = {'l1': 1, 'l2': 2}


class Layout(Protocol):
    """What a backbone asks of a layout; see the head of this file."""

    kernels: str

    def from_images(self, images_BCHW: Tensor) -> Tensor: ...
    def conv(self, x: Tensor, module: nn.Module) -> Tensor: ...
    def channel_norms(self, x: Tensor) -> Tensor: ...
    def num_grn_groups(self, x: Tensor) -> int | None: ...
    def pool(self, x: Tensor, how: str, over: str | None = None) -> Tensor: ...
    def to_map(self, x: Tensor) -> Tensor: ...


def check_grn_over(grn_over: str) -> None:
    if grn_over not in GRN_SCOPES:
        raise ValueError(
            f'grn_over={grn_over!r} is not known; use one of {GRN_SCOPES}: the norm of GRN is taken over each '
            "image ('image') or over all images on the device ('batch', as the official PyTorch code does)."
        )


def positions_of(cells_BGG: Tensor, num_per_side: int) -> Tensor:
    """Values of cells at each of their num_per_side x num_per_side positions or pixels, (B, H, W)."""
    return cells_BGG.repeat_interleave(num_per_side, 1).repeat_interleave(num_per_side, 2)


def _pooled(x: Tensor, how: str, over: str, seen: Tensor | None = None) -> Tensor:
    """Seen positions of each channel as one number, kept as size 1 in every dim before the last, except that of the
    images with over='image'; computed in float32 when x is narrower."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    dims = tuple(range(1 if over == 'image' else 0, x.dim() - 1))
    if how == 'max':
        return (x if seen is None else x.masked_fill(~seen, -torch.inf)).amax(dims, keepdim=True).to(dtype)
    x = x if seen is None else torch.where(seen, x, x.new_zeros(()))
    if how != 'mean':
        return torch.linalg.vector_norm(x, POOLED_NORMS[how], dim=dims, keepdim=True, dtype=dtype)
    x = x.to(dtype)
    if seen is None:
        return x.mean(dims, keepdim=True)
    return x.sum(dims, keepdim=True) / seen.sum(dims, keepdim=True).clamp(min=1)


def _conv_channels_last(x_BHWC: Tensor, module: nn.Module) -> Tensor:
    return module(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _kernels_of(x: Tensor, module: nn.Module, kernels: str) -> str:
    """What computes this convolution. Only the depthwise ones of a block have kernels; those in C++ are 7 x 7, those in
    Triton at most 13 x 13."""
    if not isinstance(module, DepthwiseConv):
        return 'torch'
    chosen = chosen_kernels(kernels, under_autocast(x))
    is_too_large = kernels == 'auto' and module.kernel_size[0] > LARGEST_TRITON_KERNEL
    return 'torch' if (chosen == 'cpp' and module.kernel_size != (7, 7)) or is_too_large else chosen


def _conv_by_cpp(
    x: Tensor, module: nn.Module, places_N: Tensor | None, num_images: int, grid: tuple[int, int]
) -> Tensor:
    """The convolution of values (..., P, Q, C), cells as cpu_kernels.depthwise takes them."""
    cells_NPQC = under_autocast(x).contiguous().flatten(0, -4)
    weight, bias = module.weight.float(), module.bias.float()
    return cpu_kernels.depthwise(cells_NPQC, weight, bias, places_N, num_images, list(grid)).view(x.shape)


def _conv_by_triton(x: Tensor, module: nn.Module, slots_BGG: Tensor, cells_N: Tensor) -> Tensor:
    """The convolution of values (..., P, Q, C), cells as triton_kernels.depthwise_conv takes them."""
    from . import triton_kernels

    cells_NPQC = x.flatten(0, -4)
    return triton_kernels.depthwise_conv(cells_NPQC, module.weight, module.bias, slots_BGG, cells_N).view(x.shape)


class DenseLayout:
    """Every position of the map is there: values x_BHWC.

    With `visible_BGG` the same map stands for a masked one: hidden positions count as zero in convolutions, GRN and
    the resulting map. That is the slow, obvious form of `VisibleLayout` and its yardstick.

    Args:
        visible_BGG: bool, True where a cell is seen; None for ordinary images.
        grn_over: 'image' or 'batch'.
        kernels: as in kernel_choice.py; a masked map is always computed by PyTorch's operators.
    """

    def __init__(self, visible_BGG: Tensor | None = None, grn_over: str = 'image', kernels: str = 'auto') -> None:
        check_grn_over(grn_over)
        check_kernels(kernels)
        self.visible_BGG = visible_BGG
        self.grn_over = grn_over
        self.kernels = kernels if visible_BGG is None else 'torch'

    def _seen(self, x_BHWC: Tensor) -> Tensor:
        positions_per_side = x_BHWC.shape[1] // self.visible_BGG.shape[1]
        return positions_of(self.visible_BGG, positions_per_side)[..., None]

    def _hide(self, x_BHWC: Tensor) -> Tensor:
        if self.visible_BGG is None:
            return x_BHWC
        return torch.where(self._seen(x_BHWC), x_BHWC, x_BHWC.new_zeros(()))

    def from_images(self, images_BCHW: Tensor) -> Tensor:
        """Images -> x_BHWC at stride 1."""
        return images_BCHW.permute(0, 2, 3, 1)

    def conv(self, x_BHWC: Tensor, module: nn.Module) -> Tensor:
        """The stride-1, size-preserving convolution `module` (NCHW) of the map."""
        chosen = _kernels_of(x_BHWC, module, self.kernels)
        if chosen == 'cpp':
            return _conv_by_cpp(x_BHWC, module, None, len(x_BHWC), (1, 1))
        if chosen == 'triton':  # every image is one cell
            images_N = torch.arange(len(x_BHWC), device=x_BHWC.device)
            return _conv_by_triton(x_BHWC, module, images_N.int().view(-1, 1, 1), images_N)
        return _conv_channels_last(self._hide(x_BHWC), module)

    def channel_norms(self, x_BHWC: Tensor) -> Tensor:
        """L2 norm of each channel, (B, 1, 1, C) per image or (1, 1, 1, C) over the batch, at least float32."""
        return self.pool(x_BHWC, 'l2')

    def num_grn_groups(self, x_BHWC: Tensor) -> int | None:
        """Into how many equal parts the positions fall, over each of which GRN sums; None where some do not count."""
        if self.visible_BGG is not None:
            return None
        return len(x_BHWC) if self.grn_over == 'image' else 1

    def pool(self, x_BHWC: Tensor, how: str, over: str | None = None) -> Tensor:
        """One number per channel out of its positions, at least float32: (B, 1, 1, C) per image, (1, 1, 1, C) over the
        batch.

        Args:
            how: 'mean', 'max', or a norm: 'l1', 'l2'.
            over: 'image' or 'batch'; None: as `grn_over`.
        """
        return _pooled(x_BHWC, how, over or self.grn_over, None if self.visible_BGG is None else self._seen(x_BHWC))

    def to_map(self, x_BHWC: Tensor) -> Tensor:
        """Contiguous map (B, C, H, W); zero in hidden cells."""
        return self._hide(x_BHWC).permute(0, 3, 1, 2).contiguous()


class LeakingLayout(DenseLayout):
    """What masking is without sparse convolution: hidden cells are black pixels at the input, and ordinary positions
    from there on.

    The mask fades from layer to layer: biases and neighbours fill hidden positions, which then count in convolutions,
    GRN and the resulting map. For the paper's comparison (section 3 of arXiv 2301.00808: 79.3 against 83.7), not for
    use. Hidden pixels stay unseen here too; values x_BHWC.

    Args:
        visible_BGG: bool, True where a cell is seen.
        grn_over, kernels: as in DenseLayout.
    """

    def __init__(self, visible_BGG: Tensor, grn_over: str = 'image', kernels: str = 'auto') -> None:
        super().__init__(None, grn_over, kernels)
        self._input_layout = DenseLayout(visible_BGG)

    def from_images(self, images_BCHW: Tensor) -> Tensor:
        """Images -> x_BHWC at stride 1, zero in hidden cells."""
        return self._input_layout._hide(super().from_images(images_BCHW))


class _SpreadRows(torch.autograd.Function):
    """Rows to their places in a larger, else zero matrix. Places are unique, so the gradient is a plain read."""

    @staticmethod
    def forward(ctx, values_NC: Tensor, places_N: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(places_N)
        return values_NC.new_zeros(num_rows, values_NC.shape[1]).index_copy_(0, places_N, values_NC)

    @staticmethod
    def backward(ctx, grad_RC: Tensor):
        return _TakeRows.apply(grad_RC.contiguous(), ctx.saved_tensors[0]), None, None


class _TakeRows(torch.autograd.Function):
    """Rows from their places. The gradient writes each place once, where autograd's own would add."""

    @staticmethod
    def forward(ctx, matrix_RC: Tensor, places_N: Tensor) -> Tensor:
        ctx.save_for_backward(places_N)
        ctx.num_rows = matrix_RC.shape[0]
        return matrix_RC.index_select(0, places_N)

    @staticmethod
    def backward(ctx, grad_NC: Tensor):
        return _SpreadRows.apply(grad_NC.contiguous(), ctx.saved_tensors[0], ctx.num_rows), None


class VisibleLayout:
    """Only the visible cells are there: values x_BKPPC, the cells of each image in row-major order.

    Every image hides the same number of cells, so the values are a regular tensor and everything except the depthwise
    convolution costs K / (G * G) of the dense map. The convolution sees zeros in hidden cells.

    Args:
        visible_BGG: bool, True where a cell is seen.
        grn_over: 'image' or 'batch'.
        kernels: as in kernel_choice.py.
        num_visible: K, from a caller who knows that every image sees so many. Nothing is checked then, and the CPU
            need not wait for the GPU, nor stop the recording of a CUDA graph.

    Raises:
        ValueError: images see different numbers of cells, or none.
    """

    def __init__(
        self, visible_BGG: Tensor, grn_over: str = 'image', kernels: str = 'auto', num_visible: int | None = None
    ) -> None:
        check_grn_over(grn_over)
        check_kernels(kernels)
        self.grn_over, self.kernels = grn_over, kernels
        self.num_images, *self.grid_shape = visible_BGG.shape
        self._visible_BL = visible_BGG.flatten(1)
        self.num_visible = self._checked_count() if num_visible is None else num_visible
        B, L = self._visible_BL.shape
        self._place_BL = self._visible_BL.cumsum(1) - 1  # of a visible cell among those of its image
        cells_BL = torch.arange(B * L, device=visible_BGG.device).view(B, L)
        place_BL = torch.where(self._visible_BL, self._place_BL, self.num_visible)  # hidden ones go behind the last
        cells_BK = cells_BL.new_zeros(B, self.num_visible + 1).scatter_(1, place_BL, cells_BL)
        self.cells_N = cells_BK[:, :-1].flatten()  # flat index of each visible cell in (B, G, G)
        self._places: dict[int, Tensor] = {}
        self._slots: Tensor | None = None

    def _checked_count(self) -> int:
        counts = self._visible_BL.sum(1).tolist()
        if min(counts) == 0 or min(counts) < max(counts):
            raise ValueError(
                f'the images of a batch must see the same number of cells, at least 1; these see {counts}. '
                "Draw them with masking.random_visible, or use layout='dense'."
            )
        return counts[0]

    def _slots_BGG(self) -> Tensor:
        """int32, which of the visible cells (B * K) stands at each place of the grid; -1 where it is hidden."""
        if self._slots is None:
            first_B1 = torch.arange(self.num_images, device=self.cells_N.device)[:, None] * self.num_visible
            slots_BL = torch.where(self._visible_BL, first_B1 + self._place_BL, -1).int()
            self._slots = slots_BL.view(self.num_images, *self.grid_shape)
        return self._slots

    def _places_at(self, positions_per_side: int) -> Tensor:
        """Row of each visible position in the dense map flattened to (B * H * W, C)."""
        if positions_per_side not in self._places:
            P = positions_per_side
            grid_columns = self.grid_shape[1]
            row_of_cell = self.cells_N // grid_columns  # counts through the batch
            column_of_cell = self.cells_N % grid_columns
            inside = torch.arange(P, device=self.cells_N.device)
            rows = row_of_cell[:, None] * P + inside  # (B * K, P)
            columns = column_of_cell[:, None] * P + inside
            self._places[P] = (rows[:, :, None] * (grid_columns * P) + columns[:, None, :]).flatten()
        return self._places[positions_per_side]

    def _spread(self, x_BKPPC: Tensor) -> Tensor:
        """Dense map (B, H, W, C), zero in hidden cells."""
        P, C = x_BKPPC.shape[-2:]
        H, W = (size * P for size in self.grid_shape)
        dense = _SpreadRows.apply(x_BKPPC.reshape(-1, C), self._places_at(P), self.num_images * H * W)
        return dense.view(self.num_images, H, W, C)

    def from_images(self, images_BCHW: Tensor) -> Tensor:
        """Pixels of the visible cells, (B, K, S, S, C)."""
        B, C, H, _ = images_BCHW.shape
        grid_rows, grid_columns = self.grid_shape
        S = H // grid_rows
        cells = images_BCHW.reshape(B, C, grid_rows, S, grid_columns, S).permute(0, 2, 4, 3, 5, 1)
        return cells.reshape(-1, S * S * C).index_select(0, self.cells_N).view(B, self.num_visible, S, S, C)

    def conv(self, x_BKPPC: Tensor, module: nn.Module) -> Tensor:
        """The stride-1, size-preserving convolution `module` (NCHW) at visible positions; hidden ones enter as zero."""
        chosen = _kernels_of(x_BKPPC, module, self.kernels)
        if chosen == 'cpp':
            return _conv_by_cpp(x_BKPPC, module, self.cells_N, self.num_images, self.grid_shape)
        if chosen == 'triton':
            return _conv_by_triton(x_BKPPC, module, self._slots_BGG(), self.cells_N)
        dense_BHWC = _conv_channels_last(self._spread(x_BKPPC), module)
        rows = dense_BHWC.reshape(-1, dense_BHWC.shape[-1])
        return _TakeRows.apply(rows, self._places_at(x_BKPPC.shape[-2])).view(*x_BKPPC.shape[:-1], -1)

    def channel_norms(self, x_BKPPC: Tensor) -> Tensor:
        """L2 norm of each channel over visible positions, (B, 1, 1, 1, C) per image or (1, 1, 1, 1, C), at least
        float32."""
        return self.pool(x_BKPPC, 'l2')

    def num_grn_groups(self, x_BKPPC: Tensor) -> int:
        """Into how many equal parts the positions fall, over each of which GRN sums."""
        return self.num_images if self.grn_over == 'image' else 1

    def pool(self, x_BKPPC: Tensor, how: str, over: str | None = None) -> Tensor:
        """As `DenseLayout.pool`, over visible positions: (B, 1, 1, 1, C) or (1, 1, 1, 1, C)."""
        return _pooled(x_BKPPC, how, over or self.grn_over)

    def to_map(self, x_BKPPC: Tensor) -> Tensor:
        """Contiguous map (B, C, H, W); zero in hidden cells."""
        return self._spread(x_BKPPC).permute(0, 3, 1, 2).contiguous()
