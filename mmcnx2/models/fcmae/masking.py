"""Step 1 of FCMAE: which cells of each picture the encoder sees.

`visible` is bool with True = seen, everywhere in this project. (The official code and mmpretrain's MAE store 1 =
removed.)
Touch this file for how cells are chosen; not for what hiding means (layers/layout.py). Guarded by
tests/models/test_masking.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def num_visible_cells(num_cells: int, mask_ratio: float) -> int:
    """Cells that stay visible: int(num_cells * (1 - mask_ratio)), rounded down as in the official code (19 of 49 at
    0.6)."""
    return int(num_cells * (1 - mask_ratio))


def random_visible(
    batch_size: int,
    grid_shape: tuple[int, int],
    mask_ratio: float,
    device: torch.device | str | None = None,
    seeds: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """visible_BGG (bool): for each picture the same number of cells, drawn uniformly without replacement.

    Args:
        batch_size: B.
        grid_shape: rows and columns of cells.
        mask_ratio: share of hidden cells, in [0, 1).
        device: where the result lies.
        seeds: one integer per picture; the picture's cells then depend on it alone, not on torch's generator,
            the batch or the device. None draws from torch's generator of `device`.

    Raises:
        ValueError: no cell would stay visible, or the seeds do not match the batch.
    """
    num_cells = grid_shape[0] * grid_shape[1]
    num_visible = num_visible_cells(num_cells, mask_ratio)
    if not 1 <= num_visible <= num_cells:
        raise ValueError(
            f'mask_ratio={mask_ratio} keeps int({num_cells} * (1 - {mask_ratio})) = {num_visible} of {num_cells} cells '
            f'({grid_shape[0]} x {grid_shape[1]}); between 1 and {num_cells} must stay visible. '
            'Lower the ratio, use larger images or a smaller patch_size.'
        )
    if seeds is None:
        noise_BL = torch.rand(batch_size, num_cells, device=device)
    else:
        seeds_B = torch.as_tensor(seeds, dtype=torch.int64, device=device)
        if seeds_B.shape != (batch_size,):
            raise ValueError(
                f'seeds have the shape {tuple(seeds_B.shape)}; {batch_size} pictures need ({batch_size},).'
            )
        noise_BL = _scramble(_scramble(seeds_B)[:, None] + torch.arange(num_cells, device=device))
    kept_BK = noise_BL.argsort(dim=1)[:, :num_visible]
    visible_BL = torch.zeros(batch_size, num_cells, dtype=torch.bool, device=device).scatter_(1, kept_BK, True)
    return visible_BL.view(batch_size, *grid_shape)


def _scramble(numbers: Tensor) -> Tensor:
    """Well-mixed int64 of int64, a one-to-one map (the finaliser of SplitMix64; products wrap around)."""

    def shifted(values: Tensor, bits: int) -> Tensor:  # logical shift: the sign bit must not spread
        return (values >> bits) & ((1 << (64 - bits)) - 1)

    numbers = numbers + _signed(0x9E3779B97F4A7C15)
    numbers = (numbers ^ shifted(numbers, 30)) * _signed(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ shifted(numbers, 27)) * _signed(0x94D049BB133111EB)
    return numbers ^ shifted(numbers, 31)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
