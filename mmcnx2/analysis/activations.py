"""The values of named layers while a model looks at pictures, each as (pictures, positions, channels).

The default layers are those of ConvNeXt V2's analysis: in every block the output of the dimension-expansion layer,
after its GELU, before GRN (`stages.0.1.gelu`) and after it (`stages.0.1.grn`). Between the two a block may compute in
one step, so they are not hooked but computed anew from the block's own parts, in one place: `expansion_values`. Every
other name is that of a module, whose output is taken; `output` is what the model itself returns.

Touch this file when a block changes its steps, or for another kind of layer; not for what is done with the values
(collapse.py, features.py). Guarded by tests/analysis/test_activations.py.

Shapes: B pictures, N positions, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2Block
from mmcnx2.models.layers import DepthwiseConv, Layout

BEFORE_GRN, AFTER_GRN = 'gelu', 'grn'
OUTPUT = 'output'
# their outputs have the channels in the second place; those of all other parts of our models have them last
CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd,
)


def expansion_values(block: ConvNeXtV2Block, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """Output of the block's dimension-expansion layer after the GELU: (before GRN, after GRN; None without GRN)."""
    y = block.norm(block.dwconv(x, layout), layout)
    before = F.gelu(block.pwconv1(y, layout))
    return before, None if block.grn is None else block.grn(before, layout)


def expansion_layers(model: nn.Module) -> dict[str, float]:
    """{name of a layer: its depth from 0 (first block) to 1 (last)} of all blocks; V1 has no `.grn`."""
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, ConvNeXtV2Block)}
    layers = {}
    for number, (name, block) in enumerate(blocks.items()):
        depth = number / max(len(blocks) - 1, 1)
        layers[f'{name}.{BEFORE_GRN}'] = depth
        if block.grn is not None:
            layers[f'{name}.{AFTER_GRN}'] = depth
    return layers


@contextmanager
def watching(
    model: nn.Module,
    layers: Sequence[str],
    take: Callable[[str, Tensor], None],
    channels_first: bool | None = None,
) -> Iterator[None]:
    """Inside the block, every forward pass of `model` calls `take(name, x_BNC)` for each of the layers.

    Only what `take` keeps stays in memory. Names count from `model`, which must not be wrapped (DDP). Of several
    outputs the last one is taken.

    Args:
        channels_first: where the channels of the outputs of named modules stand: True second, False last, None by
            the kind of module (convolutions, batch norms, pooling, and maps that a whole model returns: second).

    Raises:
        ValueError: the model has no such layer; the names that it has are said.
    """
    busy = [False]  # while expansion_values runs, the block's own parts must not count once more
    handles = []
    try:
        for name in dict.fromkeys(layers):
            handles.append(_watch(model, name, take, channels_first, busy))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(model: nn.Module, name: str, take: Callable, channels_first: bool | None, busy: list[bool]):
    modules = dict(model.named_modules())
    parent, _, last = name.rpartition('.')
    block = modules.get(parent)
    if last in (BEFORE_GRN, AFTER_GRN) and isinstance(block, ConvNeXtV2Block):
        if last == AFTER_GRN and block.grn is None:
            raise ValueError(f'{parent} has no GRN (ConvNeXt V1), so there is no layer {name}; take {parent}.gelu')

        def take_expansion(_, args: tuple) -> None:
            busy[0] = True
            try:
                before, after = expansion_values(block, *args)
            finally:
                busy[0] = False
            take(name, as_positions(before if last == BEFORE_GRN else after, channels_first=False))

        return block.register_forward_pre_hook(take_expansion)
    module = model if name == OUTPUT else modules.get(name)
    if module is None or not name:
        examples = ', '.join(list(expansion_layers(model))[:2])
        raise ValueError(
            f"there is no layer {name!r}. Layers are '{OUTPUT}', names of modules such as "
            f'{", ".join(list(modules)[1:4])}, and in blocks the expansion{f" ({examples})" if examples else ""}'
        )
    in_layout = isinstance(module, DepthwiseConv)  # called with a layout, and by it once more with an ordinary map
    if channels_first is None:
        channels_first = name == OUTPUT or (isinstance(module, CHANNELS_FIRST) and not in_layout)

    def take_output(_, args: tuple, output) -> None:
        if not busy[0] and not (in_layout and len(args) == 1):
            take(name, as_positions(output, channels_first))

    return module.register_forward_hook(take_output)


def as_positions(values: Tensor | Sequence[Tensor], channels_first: bool) -> Tensor:
    """x_BNC of values (B, C), (B, C, ...) or (B, ..., C); of several the last. (B, C) has one position."""
    while not isinstance(values, Tensor):
        values = values[-1]
    if values.ndim < 2:
        raise ValueError(f'an output of the shape {tuple(values.shape)} has no channels')
    if values.ndim == 2:
        return values[:, None]
    return values.flatten(2).mT if channels_first else values.flatten(1, -2)
