"""The visible cells as a sparse tensor of MinkowskiEngine, the library of the official ConvNeXt V2 code: a yardstick.

The depthwise convolution and the map at the end come from the library; parameters, block and loss are ours. So a run
with this layout says whether the other layouts compute what the official code meant. It is slower than `VisibleLayout`
(tools/README.md) and needs a package that is compiled by `make minkowski`.

Two habits of the official code are left out, because they are mistakes: its map shrinks when the last row or column of
cells is hidden in every image (`dense()` without a shape), and visible positions whose values are all zero get lost
(`to_sparse`). The tests show both.

Shape letters as in layout.py; N positions that are there, T taps of a kernel.

This is the only file that imports MinkowskiEngine, and only when the layout is used: the package puts its own folder,
with modules named `utils` and `modules`, on Python's path, and sets OMP_NUM_THREADS on machines of more than 16 cores.
Touch it for how values reach the library and come back. Not for speed. Guarded by
tests/models/test_minkowski_layout.py.
"""

from __future__ import annotations

import warnings
from types import ModuleType

import torch
from torch import Tensor, nn

from .layout import VisibleLayout

ENGINE_VERSION = '0.5.4'


def import_minkowski_engine() -> ModuleType:
    """The package MinkowskiEngine.

    Raises:
        ImportError: it is not installed, or was compiled for another torch.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*compiled with CPU_ONLY')  # as it should be
            import MinkowskiEngine
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == 'MinkowskiEngine'
        raise ImportError(
            f"layout='minkowski' needs the package MinkowskiEngine {ENGINE_VERSION}, which "
            + ('is not installed' if missing else f'does not import here ({error})')
            + ": `make minkowski` compiles and installs it (see tools/README.md). layout='visible' and layout='dense' "
            'give the same results without it.'
        ) from error
    return MinkowskiEngine


class MinkowskiLayout:
    """Values x_BKPPC as in `VisibleLayout`; the convolution and the map are MinkowskiEngine's. CPU only.

    Args:
        visible_BGG: bool, True where a cell is seen; the same number in every image.
        grn_over: 'image' or 'batch' ('batch' is what the official PyTorch code does).
        kernels: of GELU and GRN, as in kernel_choice.py; the convolution is the library's.

    Raises:
        ImportError: the package is not there.
        ValueError: the cells are not on the CPU, or images see different numbers of them.
    """

    def __init__(self, visible_BGG: Tensor, grn_over: str = 'image', kernels: str = 'auto') -> None:
        self.engine = import_minkowski_engine()
        if visible_BGG.device.type != 'cpu':
            raise ValueError(
                f"layout='minkowski' runs on the CPU only, and the cells are on '{visible_BGG.device}': the package is "
                "compiled without CUDA. Use layout='visible', or put the model and the images on the CPU."
            )
        self.visible = VisibleLayout(visible_BGG, grn_over, kernels)
        self.kernels = kernels
        self.visible_BGG = visible_BGG
        self._positions: dict[int, tuple] = {}

    def _positions_at(self, positions_per_side: int) -> tuple:
        """(coordinate manager, key) of the visible positions at a stride, whose rows come in the order of x_BKPPC.

        Each stride has a manager of its own and coordinates (image, row, column) counted in positions of its map.
        """
        if positions_per_side not in self._positions:
            P = positions_per_side
            image, row, column = self.visible_BGG.nonzero().T[..., None, None]  # (B * K, 1, 1)
            inside = torch.arange(P)
            rows, columns = row * P + inside[:, None], column * P + inside
            coordinates_N3 = torch.stack(torch.broadcast_tensors(image, rows, columns), dim=-1).reshape(-1, 3).int()
            manager = self.engine.CoordinateManager(D=2, coordinate_map_type=self.engine.CoordinateMapType.CPU)
            key, _ = manager.insert_and_map(coordinates_N3, 1)  # on the CPU rows keep their order
            self._positions[P] = (manager, key)
        return self._positions[positions_per_side]

    def _to_sparse(self, x_BKPPC: Tensor):
        """The values as a MinkowskiEngine.SparseTensor."""
        manager, key = self._positions_at(x_BKPPC.shape[-2])
        values_NC = x_BKPPC.reshape(-1, x_BKPPC.shape[-1])
        return self.engine.SparseTensor(values_NC, coordinate_map_key=key, coordinate_manager=manager)

    def from_images(self, images_BCHW: Tensor) -> Tensor:
        """Pixels of the visible cells, (B, K, S, S, C)."""
        return self.visible.from_images(images_BCHW)

    def conv(self, x_BKPPC: Tensor, module: nn.Conv2d) -> Tensor:
        """The depthwise convolution `module` at visible positions, by MinkowskiChannelwiseConvolution; hidden ones
        count as zero.

        Gradients reach the parameters of `module`. At least float32, as wide as the wider of x and the weight.

        Raises:
            ValueError: `module` is not depthwise, or changes the size of the map.
        """
        channels = x_BKPPC.shape[-1]
        same = tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
        is_depthwise = module.weight.shape[:2] == (channels, 1) and module.groups == channels
        is_same = module.stride == (1, 1) and module.padding in (same, 'same')
        if not (is_depthwise and is_same and all(k % 2 for k in module.kernel_size)):
            raise ValueError(
                f"layout='minkowski' knows depthwise convolutions of odd kernels that keep the size of the map; "
                f"this is {module} on {channels} channels. Use layout='visible'."
            )
        dtype = torch.promote_types(x_BKPPC.dtype, module.weight.dtype)
        exact = torch.promote_types(dtype, torch.float32)
        parameters = {'kernel': _taps_of(module.weight).to(exact)}
        if module.bias is not None:
            parameters['bias'] = module.bias[None].to(exact)
        with torch.random.fork_rng(devices=[]):  # it draws parameters, which are not used; drop path must not notice
            convolution = self.engine.MinkowskiChannelwiseConvolution(
                channels,
                kernel_size=module.kernel_size,
                dilation=module.dilation,
                bias=module.bias is not None,
                dimension=2,
            )
        y = torch.func.functional_call(convolution, parameters, (self._to_sparse(x_BKPPC.to(exact)),))
        return y.F.to(dtype).view(x_BKPPC.shape)

    def channel_norms(self, x_BKPPC: Tensor) -> Tensor:
        """As `VisibleLayout.channel_norms`."""
        return self.visible.channel_norms(x_BKPPC)

    def num_grn_groups(self, x_BKPPC: Tensor) -> int:
        """As `VisibleLayout.num_grn_groups`."""
        return self.visible.num_grn_groups(x_BKPPC)

    def pool(self, x_BKPPC: Tensor, how: str, over: str | None = None) -> Tensor:
        """As `VisibleLayout.pool`."""
        return self.visible.pool(x_BKPPC, how, over)

    def to_map(self, x_BKPPC: Tensor) -> Tensor:
        """Contiguous map (B, C, H, W) by SparseTensor.dense with its shape given; zero in hidden cells."""
        P, C = x_BKPPC.shape[-2:]
        B, *grid_shape = self.visible_BGG.shape
        shape = torch.Size([B, C, *(cells * P for cells in grid_shape)])
        map_BCHW, _, _ = self._to_sparse(x_BKPPC).dense(shape=shape, min_coordinate=torch.IntTensor([0, 0]))
        return map_BCHW


def _taps_of(weight_C1HW: Tensor) -> Tensor:
    """Kernel of MinkowskiEngine, (T, C): it counts taps column by column, tap = row + height * column."""
    return weight_C1HW.permute(3, 2, 0, 1).flatten(0, 1).squeeze(-1)
