"""The floor of an encoder step: what its matrix products, its depthwise convolutions and its passes over memory take at
the speeds that this machine reaches on the same shapes and nothing else to do.

    work of a step (from shapes)  x  speeds (measured here)  ->  seconds per group of operators

Groups are those of operator_shares.py, so a profile can stand beside its floor. Touch it for what counts as
unavoidable. Guarded by tests/analysis/test_speed.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from mmcnx2.analysis.operator_shares import DEPTHWISE, NORM, POINTWISE, PRODUCTS
from mmcnx2.analysis.speed import waiter
from mmcnx2.models.layers.linear import suits_onednn

KERNEL_AREA, STEM_SIZE, DOWN_SIZE, WIDENING = 7 * 7, 4, 2, 4
PEAK_SIDE = 1536  # of the square matrices by which the peak is measured
ASSUMPTIONS = (
    'Floor: matrix products at the speed that this machine reaches on the same shapes; a depthwise convolution at the '
    "larger of its multiply-adds at the machine's peak (a square matrix product in float32) and one copy of its input "
    'to its output; every other step as a copy that moves as many bytes, when each reads its inputs and writes its '
    'output once: LayerNorm, GELU and GRN in two passes over the wide map (its sum, then the values), the residual. '
    'Biases, parameters and sums over them count nothing. Copies run between buffers that exist already, so neither '
    'cold caches nor fresh pages are in the floor.'
)


@dataclass(frozen=True)
class Product:
    """(rows, inner) @ (inner, columns); `is_transposed` when the left matrix lies transposed in memory, as in the
    gradient of a weight.
    """

    rows: int
    inner: int
    columns: int
    is_transposed: bool = False

    @property
    def multiply_adds(self) -> int:
        return self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Work:
    """What one operator has to do: a product, or multiply-adds, or numbers to move (read and written together)."""

    group: str
    product: Product | None = None
    multiply_adds: int = 0
    num_moved: int = 0


@dataclass(frozen=True)
class Floor:
    """Seconds of every group, and the multiply-adds and moved bytes that they stand for."""

    seconds: dict[str, float]
    multiply_adds: int
    moved_bytes: int

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def encoder_work(
    depths: Sequence[int],
    channels: Sequence[int],
    positions: Sequence[int],
    in_channels: int = 3,
    with_backward: bool = True,
) -> list[Work]:
    """The work of one forward pass of a ConvNeXt V2 without output norms, and of its backward pass.

    Args:
        depths, channels: per stage.
        positions: per stage, those of the whole batch at which something is computed; the visible ones of a masked
            encoder.
        in_channels: of the images, for which no gradient is needed.
    """
    work: list[Work] = []
    for i, (depth, width, rows) in enumerate(zip(depths, channels, positions, strict=True)):
        inner = STEM_SIZE**2 * in_channels if i == 0 else DOWN_SIZE**2 * channels[i - 1]
        work += _linear_work(rows, inner, width, with_backward, wants_input_gradient=i > 0)
        normed = rows * width if i == 0 else positions[i - 1] * channels[i - 1]
        work.append(Work(NORM, num_moved=(2 + 3 * with_backward) * normed))
        for _ in range(depth):
            work += _block_work(rows, width, with_backward)
    return work


def _linear_work(
    rows: int, inner: int, columns: int, with_backward: bool, wants_input_gradient: bool = True
) -> list[Work]:
    products = [Product(rows, inner, columns)]
    if with_backward:
        products.append(Product(inner, rows, columns, is_transposed=True))
        if wants_input_gradient:
            products.append(Product(rows, columns, inner))
    return [Work(PRODUCTS, product) for product in products]


def _block_work(rows: int, width: int, with_backward: bool) -> list[Work]:
    narrow, wide = rows * width, rows * WIDENING * width
    taps = KERNEL_AREA * narrow
    work = [
        Work(DEPTHWISE, multiply_adds=taps, num_moved=2 * narrow),
        Work(NORM, num_moved=2 * narrow),  # read, written
        *_linear_work(rows, width, WIDENING * width, with_backward),
        Work(POINTWISE, num_moved=3 * wide),  # read for the sum, read again, written
        *_linear_work(rows, WIDENING * width, width, with_backward),
        Work(POINTWISE, num_moved=3 * narrow),  # residual: two read, one written
    ]
    if with_backward:
        work += [
            Work(DEPTHWISE, multiply_adds=taps, num_moved=2 * narrow),  # gradient of the input
            Work(DEPTHWISE, multiply_adds=taps, num_moved=2 * narrow),  # of the weight: two maps read
            Work(NORM, num_moved=3 * narrow),
            Work(POINTWISE, num_moved=5 * wide),  # gradient and input read for the sum, read again, one written
            Work(POINTWISE, num_moved=3 * narrow),
        ]
    return work


def positions_per_stage(
    batch_size: int, height: int, width: int, share: float = 1.0, strides: Sequence[int] = (4, 8, 16, 32)
) -> list[int]:
    """Positions of a batch at each stage, of which `share` is computed."""
    return [round(batch_size * (height // stride) * (width // stride) * share) for stride in strides]


class Speeds:
    """Seconds that this machine takes for a product of a shape, and for moving bytes; measured when first asked for.

    Args:
        device: where.
        dtype: of the matrices and of the numbers that are moved.
        min_seconds: each measurement is repeated for so long, at least three times; the fastest counts.
    """

    def __init__(
        self, device: torch.device | str = 'cpu', dtype: torch.dtype = torch.float32, min_seconds: float = 0.05
    ) -> None:
        self.device, self.dtype, self.min_seconds = device, dtype, min_seconds
        self._products: dict[Product, float] = {}
        self._moves: dict[int, float] = {}
        self._peak: float | None = None

    def product_seconds(self, product: Product) -> float:
        if product not in self._products:
            shape = (product.inner, product.rows) if product.is_transposed else (product.rows, product.inner)
            left = torch.randn(shape, device=self.device, dtype=self.dtype)
            left = left.t() if product.is_transposed else left
            right = torch.randn(product.inner, product.columns, device=self.device, dtype=self.dtype)
            self._products[product] = self._fastest_product(left, right)
        return self._products[product]

    def move_seconds(self, num_numbers: int) -> float:
        """Seconds of a copy that reads and writes `num_numbers` numbers together."""
        if num_numbers not in self._moves:
            source = torch.ones(max(1, num_numbers // 2), device=self.device, dtype=self.dtype)
            target = torch.zeros_like(source)
            self._moves[num_numbers] = self._measure(lambda: target.copy_(source))
        return self._moves[num_numbers]

    @property
    def peak(self) -> float:
        """Multiply-adds per second in float32."""
        if self._peak is None:
            left, right = (torch.randn(PEAK_SIDE, PEAK_SIDE, device=self.device) for _ in range(2))
            self._peak = PEAK_SIDE**3 / self._fastest_product(left, right)
        return self._peak

    def summary(self) -> dict:
        """What was measured: multiply-adds per second, at best and over the shapes asked for, each shape, and the
        bandwidths of copies by the bytes that they move.
        """
        size = torch.empty((), dtype=self.dtype).element_size()
        multiply_adds, seconds = sum(each.multiply_adds for each in self._products), sum(self._products.values())
        return dict(
            peak_multiply_adds_per_second=self.peak,
            product_multiply_adds_per_second=multiply_adds / seconds if seconds else None,
            products=[
                dict(vars(product), multiply_adds_per_second=product.multiply_adds / seconds)
                for product, seconds in sorted(self._products.items(), key=lambda item: -item[1])
            ],
            copies=[
                dict(moved_bytes=size * number, bytes_per_second=size * number / seconds)
                for number, seconds in sorted(self._moves.items())
            ],
        )

    def _fastest_product(self, left: torch.Tensor, right: torch.Tensor) -> float:
        """Seconds of left @ right, by the library behind torch.mm or, in float32 on the CPU, by oneDNN."""
        out = torch.empty(left.shape[0], right.shape[1], device=left.device, dtype=left.dtype)
        seconds = [self._measure(lambda: torch.mm(left, right, out=out))]
        if suits_onednn('auto', left, right):
            weight = right.t().contiguous()
            seconds.append(self._measure(lambda: torch.ops.mmcnx2.product(left, weight, None)))
        return min(seconds)

    def _measure(self, run: Callable[[], object]) -> float:
        wait = waiter(self.device)
        run()
        wait()
        seconds: list[float] = []
        while len(seconds) < 3 or (sum(seconds) < self.min_seconds and len(seconds) < 50):
            started = time.perf_counter()
            run()
            wait()
            seconds.append(time.perf_counter() - started)
        return min(seconds)


def floor_of(work: Iterable[Work], speeds: Speeds) -> Floor:
    """Seconds of every group at these speeds; see ASSUMPTIONS."""
    seconds = dict.fromkeys((PRODUCTS, DEPTHWISE, NORM, POINTWISE), 0.0)
    multiply_adds = num_moved = 0
    for item in work:
        if item.product:
            seconds[item.group] += speeds.product_seconds(item.product)
            multiply_adds += item.product.multiply_adds
        else:
            by_memory = speeds.move_seconds(item.num_moved)
            seconds[item.group] += max(by_memory, item.multiply_adds / speeds.peak) if item.multiply_adds else by_memory
            multiply_adds += item.multiply_adds
            num_moved += item.num_moved
    size = torch.empty((), dtype=speeds.dtype).element_size()
    return Floor(seconds, multiply_adds, num_moved * size)
