"""What may stand in a block where GRN stands: variants of GRN, and the layers that the paper compares it with.

All of them take and give the layout's values after the GELU, (..., C), and look at seen positions only, so each can be
pretrained with FCMAE. A backbone chooses one by `response_norm`: a name, or dict(name=..., setting=...).

Touch this file to add a variant or a substitute: a class, and its line in `RESPONSE_NORMS`. Not for GRN as it is
published (grn.py), and not for which positions are seen (layout.py). Their parameters have other names than GRN's
`gamma` and `beta`, so that no converter takes them for GRN. Guarded by tests/models/test_response_norms.py.

Source of the comparison: ConvNeXt V2, arXiv 2301.00808, table 2.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .grn import GRN
from .layer_norm import LayerNorm

if TYPE_CHECKING:
    from .layout import Layout

EPS = 1e-6
AGGREGATIONS = ('l1', 'l2', 'mean')
NORMALISATIONS = ('divisive', 'one_over_sum', 'standardise')
SPATIAL_KERNEL = 7  # of CBAM


def build_response_norm(setting: str | dict, num_channels: int) -> nn.Module:
    """The layer that `setting` names, for C = num_channels; plain GRN, with its fast kernels, for 'grn' without more.

    Raises:
        ValueError: a name or a setting is not known.
    """
    settings = {'name': setting} if isinstance(setting, str) else dict(setting)
    name = settings.pop('name', None)
    if name not in RESPONSE_NORMS:
        raise ValueError(f'response_norm={setting!r}: its name must be one of {", ".join(RESPONSE_NORMS)}.')
    layer = RESPONSE_NORMS[name]
    allowed = list(inspect.signature(layer).parameters)[1:]
    unknown = [key for key in settings if key not in allowed]
    if unknown:
        raise ValueError(
            f'response_norm={setting!r}: {name!r} has no setting {", ".join(unknown)}; it has '
            f'{", ".join(allowed) or "none"}.'
        )
    module = layer(num_channels, **settings)
    return GRN(num_channels, module.eps) if isinstance(module, GRNVariant) and module.is_plain else module


class GRNVariant(nn.Module):
    """GRN with its parts exchanged: y = [x] + scale * (x * N) + shift.

    G_c gathers channel c over its positions, N_c compares G_c with the other channels. scale and shift start at zero as
    in GRN, so a fresh layer is the identity with `residual` and gives zeros without.

    Args:
        num_channels: C.
        aggregation: G: 'l2' or 'l1' norm, or the 'mean' (global average pooling, which may be negative).
        normalisation: N: 'divisive', G / mean of G; 'one_over_sum', 1 / sum of G, alike for all channels;
            'standardise', (G - mean of G) / standard deviation of G. Over the channels, eps added below the line (to
            the variance, for the last).
        residual: add x.
        affine: learn scale and shift per channel; without, they are 1 and 0.
        eps: see normalisation.
    """

    def __init__(
        self,
        num_channels: int,
        aggregation: str = 'l2',
        normalisation: str = 'divisive',
        residual: bool = True,
        affine: bool = True,
        eps: float = EPS,
    ) -> None:
        super().__init__()
        if aggregation not in AGGREGATIONS:
            raise ValueError(f'aggregation={aggregation!r} is not known; choose one of {", ".join(AGGREGATIONS)}.')
        if normalisation not in NORMALISATIONS:
            raise ValueError(
                f'normalisation={normalisation!r} is not known; choose one of {", ".join(NORMALISATIONS)}.'
            )
        self.aggregation, self.normalisation = aggregation, normalisation
        self.residual, self.affine, self.eps = residual, affine, eps
        if affine:
            self.scale = nn.Parameter(torch.zeros(num_channels))
            self.shift = nn.Parameter(torch.zeros(num_channels))

    @property
    def is_plain(self) -> bool:
        """True for GRN as published."""
        parts = (self.aggregation, self.normalisation, self.residual, self.affine)
        return parts == ('l2', 'divisive', True, True)

    def forward(self, x: Tensor, layout: Layout, after_gelu: bool = False) -> Tensor:
        """As GRN.forward."""
        x = F.gelu(x) if after_gelu else x
        gathered = layout.pool(x, self.aggregation)
        if self.normalisation == 'divisive':
            compared = gathered / (gathered.mean(-1, keepdim=True) + self.eps)
        elif self.normalisation == 'one_over_sum':
            compared = (1 / (gathered.sum(-1, keepdim=True) + self.eps)).expand_as(gathered)
        else:
            variance, mean = torch.var_mean(gathered, -1, correction=0, keepdim=True)
            compared = (gathered - mean) / (variance + self.eps).sqrt()
        factor = compared * self.scale if self.affine else compared
        factor = (1 + factor if self.residual else factor).to(x.dtype)
        return torch.addcmul(self.shift.to(x.dtype), x, factor) if self.affine else x * factor

    def extra_repr(self) -> str:
        return f'{self.aggregation}, {self.normalisation}, residual={self.residual}, affine={self.affine}'


class LocalResponseNorm(nn.Module):
    """AlexNet's: x / (k + alpha * mean of x^2 over `size` neighbouring channels)^beta, position by position.

    The mean counts channels beyond the ends as zeros. The defaults are PyTorch's; the paper does not print its own.
    Without parameters.

    Args:
        num_channels: C.
        size: channels in a window; odd, and centred.
        alpha, beta, k: of the formula.
    """

    def __init__(
        self, num_channels: int, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
    ) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f'size={size}: a window around a channel has an odd number of channels.')
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor, layout: Layout, after_gelu: bool = False) -> Tensor:
        """As GRN.forward; the layout is not asked."""
        x = F.gelu(x) if after_gelu else x
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        squares_N1C = wide.square().flatten(0, -2)[:, None]
        around = F.avg_pool1d(squares_N1C, self.size, stride=1, padding=self.size // 2).view(x.shape)
        return (wide / (self.k + self.alpha * around) ** self.beta).to(x.dtype)

    def extra_repr(self) -> str:
        return f'size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}'


class BatchNorm(nn.Module):
    """Batch normalisation over every seen position of all images on the device, whatever `grn_over` says.

    As nn.BatchNorm2d: biased variance in training, running mean and unbiased running variance in evaluation. After
    pretraining the running figures are those of seen positions. Not synchronised between processes; with activation
    checkpointing (`with_cp`) each step counts twice in the running figures.

    Args:
        num_channels: C.
        momentum: share of the newest batch in the running figures.
        eps: added to the variance.
    """

    def __init__(self, num_channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer('running_mean', torch.zeros(num_channels))
        self.register_buffer('running_var', torch.ones(num_channels))

    def forward(self, x: Tensor, layout: Layout, after_gelu: bool = False) -> Tensor:
        """As GRN.forward."""
        x = F.gelu(x) if after_gelu else x
        mean, variance = self._batch_figures(x, layout) if self.training else (self.running_mean, self.running_var)
        factor = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul((self.bias - mean * factor).to(x.dtype), x, factor.to(x.dtype))

    def _batch_figures(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of the batch; the running figures follow."""
        mean = layout.pool(x, 'mean', over='batch')
        variance = layout.pool((x - mean).square(), 'mean', over='batch')
        with torch.no_grad():
            num_positions = layout.pool(torch.ones_like(x[..., :1]), 'l1', over='batch').flatten()
            unbiased = variance.flatten() * num_positions / (num_positions - 1).clamp(min=1)
            self.running_mean.lerp_(mean.flatten().to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return mean, variance

    def extra_repr(self) -> str:
        return f'{self.weight.numel()}, momentum={self.momentum}, eps={self.eps}'


class ChannelLayerNorm(LayerNorm):
    """Layer normalisation over the channels of each position.

    Args:
        num_channels: C.
        eps: added to the variance.
    """

    def __init__(self, num_channels: int, eps: float = EPS) -> None:
        super().__init__(num_channels, eps=eps)

    def forward(self, x: Tensor, layout: Layout, after_gelu: bool = False) -> Tensor:
        """As GRN.forward; the layout is not asked."""
        return super().forward(F.gelu(x) if after_gelu else x)


class _ChannelGate(nn.Sequential):
    """Linear, ReLU, linear: channels -> channels / reduction -> channels."""

    def __init__(self, num_channels: int, reduction: int) -> None:
        if reduction < 1 or num_channels < reduction:
            raise ValueError(f'reduction={reduction}: choose a number from 1 to the {num_channels} channels here.')
        narrow = num_channels // reduction
        super().__init__(nn.Linear(num_channels, narrow), nn.ReLU(), nn.Linear(narrow, num_channels))
        for layer in (self[0], self[2]):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)


class SqueezeExcite(nn.Module):
    """Squeeze and excitation (arXiv 1709.01507): x times a gate per channel, sigmoid(MLP(mean over positions)).

    Args:
        num_channels: C.
        reduction: how many times narrower the MLP is inside. With 16 ConvNeXt base has the paper's 109M parameters.
    """

    def __init__(self, num_channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.gate = _ChannelGate(num_channels, reduction)

    def forward(self, x: Tensor, layout: Layout, after_gelu: bool = False) -> Tensor:
        """As GRN.forward; the mean is each image's, whatever `grn_over` says."""
        x = F.gelu(x) if after_gelu else x
        return x * self.gate(layout.pool(x, 'mean', over='image').to(x.dtype)).sigmoid().to(x.dtype)


class CBAM(nn.Module):
    """Convolutional block attention (arXiv 1807.06521): a gate per channel, then one per position.

    The channels' gate is sigmoid(MLP(mean) + MLP(maximum)) over an image's seen positions, the positions' one
    sigmoid(7 x 7 convolution of [mean, maximum] over channels), into which hidden positions enter as zeros. As in its
    formula, without the batch norm that its code puts behind that convolution. Not for layout='minkowski', which has
    depthwise convolutions only.

    Args:
        num_channels: C.
        reduction: as in SqueezeExcite.
    """

    def __init__(self, num_channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.gate = _ChannelGate(num_channels, reduction)
        self.spatial = nn.Conv2d(2, 1, SPATIAL_KERNEL, padding=SPATIAL_KERNEL // 2)
        nn.init.trunc_normal_(self.spatial.weight, std=0.02)
        nn.init.zeros_(self.spatial.bias)

    def forward(self, x: Tensor, layout: Layout, after_gelu: bool = False) -> Tensor:
        """As GRN.forward; always within an image, whatever `grn_over` says."""
        x = F.gelu(x) if after_gelu else x
        pooled = (layout.pool(x, how, over='image').to(x.dtype) for how in ('mean', 'max'))
        x = x * sum(self.gate(each) for each in pooled).sigmoid().to(x.dtype)
        over_channels = torch.cat([x.mean(-1, keepdim=True), x.amax(-1, keepdim=True)], dim=-1)
        return x * layout.conv(over_channels, self.spatial).sigmoid().to(x.dtype)


RESPONSE_NORMS: dict[str, type[nn.Module]] = {
    'grn': GRNVariant,
    'lrn': LocalResponseNorm,
    'bn': BatchNorm,
    'ln': ChannelLayerNorm,
    'se': SqueezeExcite,
    'cbam': CBAM,
}
