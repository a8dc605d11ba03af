"""Models and pictures -> how collapsed their layers are: a table, a figure over depth, sheets of channel maps.

For tools/analyze_collapse.py and for the hook that measures during training. Touch this file for what is shown of a
measurement; what is measured is in collapse.py. Guarded by tests/analysis/test_collapse_report.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .activations import AFTER_GRN, BEFORE_GRN, expansion_layers, watching
from .collapse import Collapse, CollapseMeter
from .comparison import NOT_RUN
from .figures import Line, Panel
from .run_log import Curve

MAX_DISTANCE = 0.5
BRIGHT = 0.99  # quantile of a layer's values in one picture that is drawn white


@torch.no_grad()
def measure_collapse(
    model: nn.Module,
    batches: Iterable[Tensor],
    layers: Sequence[str] | None = None,
    channels_first: bool | None = None,
) -> dict[str, Collapse]:
    """{layer: Collapse} over all images of the batches, in evaluation mode; the model's own mode comes back.

    Args:
        model: a backbone, not wrapped.
        batches: normalised images (B, C, H, W), on the model's device.
        layers: names as in activations.py; None: before and after GRN of every block.
        channels_first: as for `activations.watching`.

    Raises:
        ValueError: there is no such layer, no layer at all, or no picture.
    """
    layers = list(layers) if layers else list(expansion_layers(model))
    if not layers:
        raise ValueError(f'{type(model).__name__} has no ConvNeXt V2 blocks, so name its layers (--layers)')
    meters = {name: CollapseMeter() for name in layers}
    was_training = model.training
    model.eval()
    try:
        with watching(model, layers, lambda name, x_BNC: meters[name].add(x_BNC), channels_first):
            for images_BCHW in batches:
                model(images_BCHW)
    finally:
        model.train(was_training)
    return {name: meter.result() for name, meter in meters.items()}


def depths_of(model: nn.Module, layers: Sequence[str]) -> dict[str, float]:
    """{layer: 0 to 1}: the depth of its block; layers that are no expansion are spread in the order given."""
    known = expansion_layers(model)
    return {name: known.get(name, i / max(len(layers) - 1, 1)) for i, name in enumerate(layers)}


def table(results: Mapping[str, Mapping[str, Collapse]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of {run: {layer: Collapse}}, a row per run and layer."""
    header = ['run, layer', 'distance', 'eff. rank', 'of', 'dead', 'saturated', 'channels']
    rows = [
        [
            f'{run}, {layer}',
            f'{found.distance:.4f} ± {found.distance_std:.4f}',
            f'{found.effective_rank:.1f}',
            f'{found.max_rank}',
            f'{found.num_dead}',
            NOT_RUN if found.num_saturated is None else f'{found.num_saturated}',
            f'{found.num_channels}',
        ]
        for run, layers in results.items()
        for layer, found in layers.items()
    ]
    return header, rows


def panels(results: Mapping[str, Mapping[str, Collapse]], depths: Mapping[str, Mapping[str, float]]) -> list[Panel]:
    """Distance and share of the possible effective rank against depth, a line per run: {run: {layer: ...}}.

    Layers before and after GRN get panels of their own, all others one together.
    """
    kinds = {
        'before GRN': lambda name: name.endswith(f'.{BEFORE_GRN}'),
        'after GRN': lambda name: name.endswith(f'.{AFTER_GRN}'),
        'named layers': lambda name: not name.endswith((f'.{BEFORE_GRN}', f'.{AFTER_GRN}')),
    }
    found = []
    for kind, belongs in kinds.items():
        chosen = {run: [name for name in layers if belongs(name)] for run, layers in results.items()}
        if not any(chosen.values()):
            continue
        for title, value in (
            ('Cosine distance of channels', lambda one: one.distance),
            ('Effective / possible rank', lambda one: one.effective_rank / one.max_rank),
        ):
            lines = [
                Line(
                    run,
                    Curve(
                        tuple(depths[run][name] for name in names),
                        tuple(value(results[run][name]) for name in names),
                    ),
                )
                for run, names in chosen.items()
                if names
            ]
            found.append(Panel(f'{title}, {kind}', 'normalised depth of the block', '', lines))
    return found


def channel_maps(x_NC: Tensor, map_shape: tuple[int, int], num_channels: int = 64) -> np.ndarray:
    """uint8 (number, H, W): maps of up to `num_channels` channels, spread evenly over all, on one scale.

    Black is 0, white the size that 99% of the layer's values in this picture stay below; what counts is the size of a
    value, not its sign. So a dead channel is dark, a saturated one bright all over.
    """
    N, C = x_NC.shape
    H, W = map_shape
    if H * W != N:
        raise ValueError(f'{N} positions are no map of {H} x {W}')
    chosen = torch.linspace(0, C - 1, min(num_channels, C)).round().long()
    sizes_NC = x_NC.detach().float().abs().cpu()
    white = torch.from_numpy(np.quantile(sizes_NC.numpy(), [BRIGHT])).float().clamp(min=torch.finfo().tiny)
    maps = (sizes_NC[:, chosen] / white).clamp(max=1) * 255
    return maps.round().to(torch.uint8).T.reshape(-1, H, W).numpy()
