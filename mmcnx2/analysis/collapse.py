"""How alike are the channels of a layer? Mean cosine distance, dead and saturated channels, effective rank.

Values in, numbers out. With X_i the values of channel i at all positions of one picture (a vector), the distance of
ConvNeXt V2 (arXiv 2301.00808, section 3, "feature cosine distance analysis") is

    (1 / C^2) sum_ij (1 - cos(X_i, X_j)) / 2

over all pairs of channels, i = j included, averaged over pictures: 0 when all channels say the same, and at most 1/2
((1 - 1/C) / 2 when they are orthogonal). The sum over all pairs is the squared norm of the sum of the unit vectors,
|sum_i X_i / |X_i||^2 = sum_ij cos(X_i, X_j), so it costs O(C N) and not O(C^2 N), and is exact.

Touch this file for what is measured; where values come from is in activations.py, plots are in figures.py. Guarded by
tests/analysis/test_collapse.py.

Shapes: B pictures, N positions, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

DEAD_SHARE = 0.01
FLAT_SHARE = 0.1


def cosine_distance(x_BNC: Tensor) -> Tensor:
    """distance_B (float64): the mean cosine distance over all pairs of channels, in [0, 1/2].

    A channel that is exactly zero at every position of a picture has no direction: it is left out of that picture's
    mean, which then runs over the pairs of the others (`CollapseMeter` counts it as dead). Without any other channel
    the distance is 0.
    """
    x_BNC = x_BNC.double()
    norms_BC = torch.linalg.vector_norm(x_BNC, dim=1)
    inverse_BC = torch.where(norms_BC > 0, 1 / norms_BC, 0.0)
    total_BN = torch.einsum('bnc,bc->bn', x_BNC, inverse_BC)
    counts_B = (norms_BC > 0).sum(1).clamp(min=1)
    distance_B = (1 - total_BN.square().sum(1) / counts_B.square()) / 2
    return torch.where((norms_BC > 0).any(1), distance_B, 0.0).clamp(min=0)


def effective_rank(x_BNC: Tensor) -> Tensor:
    """rank_B (float64): exp of the entropy of the singular values, made to sum to 1, of each picture's (N, C) matrix.

    Between 1 (all channels are multiples of one map) and min(N, C); 0 for a picture without any value. Nothing is
    subtracted first. Source: Roy and Vetterli, "The effective rank" (EUSIPCO 2007). The singular values are roots of
    eigenvalues in float64, which is exact to about 1e-3 of the rank.
    """
    x_BNC = x_BNC.double()
    _, N, C = x_BNC.shape
    gram = x_BNC @ x_BNC.mT if N < C else x_BNC.mT @ x_BNC
    values_BK = torch.linalg.eigvalsh(gram).clamp(min=0)
    noise_B1 = values_BK[:, -1:] * values_BK.shape[1] * torch.finfo(torch.float64).eps
    values_BK = torch.where(values_BK > noise_B1, values_BK, 0.0).sqrt()
    total_B1 = values_BK.sum(1, keepdim=True)
    shares_BK = torch.where(total_B1 > 0, values_BK / total_B1, 0.0)
    rank_B = torch.exp(-torch.special.xlogy(shares_BK, shares_BK).sum(1))
    return torch.where(total_B1[:, 0] > 0, rank_B, 0.0)


@dataclass(frozen=True)
class Collapse:
    """What a layer's channels have to say, over `num_images` pictures.

    Attributes:
        distance, distance_std: mean of `cosine_distance` over the pictures, and its standard deviation (0 for one).
        effective_rank: mean of `effective_rank`; it cannot exceed `max_rank`, the smaller of positions and channels.
        num_dead: channels whose root mean square stays below 1% of that of the average channel in every picture.
        num_saturated: channels that are not dead and whose values vary, in every picture, by less than 10% of their
            root mean square (standard deviation over positions); None where the layer has one position per picture.
    """

    num_images: int
    num_channels: int
    distance: float
    distance_std: float
    effective_rank: float
    max_rank: int
    num_dead: int
    num_saturated: int | None

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


class CollapseMeter:
    """Takes a layer's values batch by batch and keeps two numbers per channel and two per picture."""

    def __init__(self) -> None:
        self._distances: list[float] = []
        self._ranks: list[float] = []
        self._max_rank = 0
        self._has_positions = False
        self._loudest_C: Tensor | None = None  # largest root mean square so far, over that of the average channel
        self._liveliest_C: Tensor | None = None  # largest standard deviation so far, over the root mean square

    def add(self, x_BNC: Tensor) -> None:
        """Values of B more pictures.

        Raises:
            ValueError: the shape has no (B, N, C), or another C than before.
        """
        if x_BNC.ndim != 3 or 0 in x_BNC.shape:
            raise ValueError(f'values of the shape {tuple(x_BNC.shape)}; give (pictures, positions, channels)')
        if self._loudest_C is not None and len(self._loudest_C) != x_BNC.shape[2]:
            raise ValueError(f'{x_BNC.shape[2]} channels after {len(self._loudest_C)}: another layer?')
        for x_NC in x_BNC.detach():  # one at a time: float64 copies of a batch would be large
            x_1NC = x_NC.double()[None]
            self._distances.append(float(cosine_distance(x_1NC)))
            self._ranks.append(float(effective_rank(x_1NC)))
            rms_C = x_1NC[0].square().mean(0).sqrt()
            std_C = x_1NC[0].std(0, correction=0)
            average = rms_C.mean()
            loud_C = torch.where(average > 0, rms_C / average, 0.0).cpu()
            lively_C = torch.where(rms_C > 0, std_C / rms_C, 0.0).cpu()
            first = self._loudest_C is None
            self._loudest_C = loud_C if first else torch.maximum(self._loudest_C, loud_C)
            self._liveliest_C = lively_C if first else torch.maximum(self._liveliest_C, lively_C)
        self._max_rank = max(self._max_rank, min(x_BNC.shape[1:]))
        self._has_positions |= x_BNC.shape[1] > 1

    @property
    def dead_C(self) -> Tensor:
        """Bool per channel: dead in every picture so far."""
        return self._loudest_C < DEAD_SHARE

    @property
    def saturated_C(self) -> Tensor:
        """Bool per channel: not dead, and flat in every picture so far."""
        return ~self.dead_C & (self._liveliest_C < FLAT_SHARE)

    def result(self) -> Collapse:
        """Raises ValueError before any picture was added."""
        if self._loudest_C is None:
            raise ValueError('no picture was added, so nothing was measured')
        distances = torch.tensor(self._distances, dtype=torch.float64)
        return Collapse(
            num_images=len(distances),
            num_channels=len(self._loudest_C),
            distance=float(distances.mean()),
            distance_std=float(distances.std()) if len(distances) > 1 else 0.0,
            effective_rank=sum(self._ranks) / len(self._ranks),
            max_rank=self._max_rank,
            num_dead=int(self.dead_C.sum()),
            num_saturated=int(self.saturated_C.sum()) if self._has_positions else None,
        )


def summary(layers: Iterable[Collapse]) -> str:
    """One line over several layers: mean and least distance, dead and saturated channels of all of them."""
    layers = list(layers)
    channels = sum(layer.num_channels for layer in layers)
    distances = [layer.distance for layer in layers]
    return (
        f'distance {sum(distances) / len(distances):.3f} (least {min(distances):.3f}), '
        f'{sum(layer.num_dead for layer in layers)} dead and '
        f'{sum(layer.num_saturated or 0 for layer in layers)} saturated of {channels} channels'
    )
