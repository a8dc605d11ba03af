"""ConvNeXt V2 (and V1, by its flags): images -> feature maps. The one definition of its blocks, stages and parameter
names.

The block is written against layouts (layers/layout.py), so detection, segmentation, classification and FCMAE run this
same code. Parameter names equal those of the official dense models. Touch this file for the architecture; not for
masking, kernels or checkpoint formats. Guarded by tests/models/test_convnext_v2.py and
tests/models/test_official_parity.py.

Sources: ConvNeXt V2, arXiv 2301.00808 (V1: arXiv 2201.03545); sizes and names from their released code.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from mmcnx2.checkpoint import load_pretrained_backbone, pretrained_options
from mmcnx2.registry import MODELS

from ..layers import DenseLayout, DepthwiseConv, LayerNorm, Layout, Linear, PatchLinear, build_response_norm, mlp
from ..layers.kernel_choice import check_kernels

NORM_EPS = 1e-6
STRIDES = (4, 8, 16, 32)

ARCHS: dict[str, dict[str, list[int]]] = {
    'atto': dict(depths=[2, 2, 6, 2], channels=[40, 80, 160, 320]),
    'femto': dict(depths=[2, 2, 6, 2], channels=[48, 96, 192, 384]),
    'pico': dict(depths=[2, 2, 6, 2], channels=[64, 128, 256, 512]),
    'nano': dict(depths=[2, 2, 8, 2], channels=[80, 160, 320, 640]),
    'tiny': dict(depths=[3, 3, 9, 3], channels=[96, 192, 384, 768]),
    'small': dict(depths=[3, 3, 27, 3], channels=[96, 192, 384, 768]),  # V1 only
    'base': dict(depths=[3, 3, 27, 3], channels=[128, 256, 512, 1024]),
    'large': dict(depths=[3, 3, 27, 3], channels=[192, 384, 768, 1536]),
    'xlarge': dict(depths=[3, 3, 27, 3], channels=[256, 512, 1024, 2048]),  # V1 only
    'huge': dict(depths=[3, 3, 27, 3], channels=[352, 704, 1408, 2816]),
}


def resolve_arch(arch: str | dict) -> tuple[list[int], list[int]]:
    """(depths, channels) of a named size, or of `dict(depths=[...], channels=[...])` after checking it."""
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(
                f"arch='{arch}' is not known; choose one of {', '.join(ARCHS)}, or give "
                'dict(depths=[...], channels=[...]).'
            )
        arch = ARCHS[arch]
    if not isinstance(arch, Mapping):
        raise ValueError(f'arch={arch!r}: give a name ({", ".join(ARCHS)}) or dict(depths=[...], channels=[...]).')
    if set(arch) != {'depths', 'channels'}:
        raise ValueError(f"arch has the keys {sorted(arch)}; it needs exactly 'depths' and 'channels'.")
    depths, channels = list(arch['depths']), list(arch['channels'])
    are_numbers = all(isinstance(number, int) and number >= 1 for number in depths + channels)
    if not len(depths) == len(channels) == len(STRIDES) or not are_numbers:
        raise ValueError(
            f'arch needs {len(STRIDES)} depths and {len(STRIDES)} channels, whole numbers from 1 on; got '
            f'depths={depths}, channels={channels}.'
        )
    return depths, channels


class ConvNeXtV2Block(nn.Module):
    """Depthwise 7 x 7 convolution, then work per position (norm, 4x wider MLP with GRN), added to the input.

    Args:
        num_channels: C.
        drop_path_rate: probability that a sample skips the block in training.
        use_grn: GRN after the GELU (V2).
        layer_scale_init_value: start of a learnt factor per channel (V1: 1e-6); 0 for none.
        response_norm: what stands in GRN's place (layers/response_norms.py).
    """

    def __init__(
        self,
        num_channels: int,
        drop_path_rate: float = 0.0,
        use_grn: bool = True,
        layer_scale_init_value: float = 0.0,
        response_norm: str | dict = 'grn',
    ) -> None:
        super().__init__()
        if not use_grn and response_norm not in ('grn', {'name': 'grn'}):
            raise ValueError(
                f'use_grn=False leaves nothing where response_norm={response_norm!r} could stand; set use_grn=True, or '
                'leave response_norm out.'
            )
        self.dwconv = DepthwiseConv(num_channels, kernel_size=7)
        self.norm = LayerNorm(num_channels, eps=NORM_EPS)
        self.pwconv1 = Linear(num_channels, 4 * num_channels)
        self.grn = build_response_norm(response_norm, 4 * num_channels) if use_grn else None
        self.pwconv2 = Linear(4 * num_channels, num_channels)
        self.gamma = (
            nn.Parameter(torch.full((num_channels,), layer_scale_init_value)) if layer_scale_init_value > 0 else None
        )
        self.drop_path = StochasticDepth(drop_path_rate, mode='row') if drop_path_rate > 0 else nn.Identity()
        for layer in (self.pwconv1, self.pwconv2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Values of the same shape, in any layout."""
        y = self.norm(self.dwconv(x, layout), layout)
        y = mlp(y, self.pwconv1, self.grn, self.pwconv2, layout)
        if self.gamma is not None:
            y = y * self.gamma
        return x + self.drop_path(y)


@MODELS.register_module()
class ConvNeXtV2(BaseModule):
    """Feature maps (B, C_i, H / s_i, W / s_i) at strides s = 4, 8, 16, 32, of images (B, in_channels, H, W) of any
    size >= 32.

    ConvNeXt V1 is `use_grn=False, layer_scale_init_value=1e-6`.

    Args:
        arch: a name of `ARCHS`, or dict(depths=[4 numbers], channels=[4 numbers]).
        in_channels: channels of the images.
        out_indices: stages (0 to 3, negative from the end) whose maps are returned, always in the order of the stages.
        out_norm: LayerNorm `norm{i}` on each returned map.
        drop_path_rate: of the last block; it grows linearly from 0 at the first.
        use_grn: V2.
        layer_scale_init_value: V1: 1e-6; 0 for none.
        frozen_stages: how many stages, from the stem on, are neither trained nor put into training mode.
        with_cp: recompute each block in the backward pass to save memory.
        init_cfg: dict(type='Pretrained', checkpoint=PATH) loads strictly, from a pretraining run or from any layout
            that mmcnx2.checkpoint knows; further keys are passed to `load_pretrained_backbone`. None as PATH: random
            weights, and a line in the log that says so.
        gap_before_final_norm: for classification: the last map is averaged over positions before its norm, and returned
            as (B, C). Needs out_norm and the last stage in out_indices.
        kernels: 'auto', 'torch', 'cpp' or 'triton': which implementation computes, with equal results up to rounding
            (layers/kernel_choice.py).
        response_norm: what stands in GRN's place: 'grn', 'lrn', 'bn', 'ln', 'se', 'cbam', or dict(name='grn',
            aggregation='l1', ...) with the settings of layers/response_norms.py.

    Raises:
        ValueError: an argument is out of its range; the message says which and what is allowed.
    """

    total_stride = STRIDES[-1]

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        out_norm: bool = True,
        drop_path_rate: float = 0.0,
        use_grn: bool = True,
        layer_scale_init_value: float = 0.0,
        frozen_stages: int = 0,
        with_cp: bool = False,
        init_cfg: dict | None = None,
        *,
        gap_before_final_norm: bool = False,
        kernels: str = 'auto',
        response_norm: str | dict = 'grn',
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.depths, self.channels = resolve_arch(arch)
        num_stages = len(self.depths)
        if in_channels < 1:
            raise ValueError(f'in_channels={in_channels}: images need at least 1 channel.')
        indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
        if not indices or not all(-num_stages <= i < num_stages for i in indices):
            raise ValueError(f'out_indices={out_indices}: choose stages from {-num_stages} to {num_stages - 1}.')
        if not 0 <= frozen_stages <= num_stages:
            raise ValueError(f'frozen_stages={frozen_stages}: choose 0 (none) to {num_stages} (all).')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate={drop_path_rate}: choose a probability in [0, 1).')
        if layer_scale_init_value < 0:
            raise ValueError(f'layer_scale_init_value={layer_scale_init_value}: choose 0 (none) or more (V1: 1e-6).')
        check_kernels(kernels)
        self.in_channels, self.with_cp, self.frozen_stages = in_channels, with_cp, frozen_stages
        self.kernels = kernels
        self.out_indices = sorted({i % num_stages for i in indices})
        self.gap_before_final_norm = gap_before_final_norm
        if gap_before_final_norm and not (out_norm and num_stages - 1 in self.out_indices):
            raise ValueError(
                'gap_before_final_norm=True averages the last map before its norm: set out_norm=True and have '
                f'stage {num_stages - 1} in out_indices (it is {self.out_indices}).'
            )

        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(
                    PatchLinear(in_channels, self.channels[0], patch_size=4),
                    LayerNorm(self.channels[0], eps=NORM_EPS),
                )
            ]
        )
        for narrow, wide in zip(self.channels, self.channels[1:], strict=False):
            self.downsample_layers.append(
                nn.Sequential(LayerNorm(narrow, eps=NORM_EPS), PatchLinear(narrow, wide, patch_size=2))
            )
        rates = iter(torch.linspace(0, drop_path_rate, sum(self.depths), device='cpu').tolist())
        self.stages = nn.ModuleList(
            nn.ModuleList(
                ConvNeXtV2Block(width, next(rates), use_grn, layer_scale_init_value, response_norm)
                for _ in range(depth)
            )
            for depth, width in zip(self.depths, self.channels, strict=True)
        )
        for i in self.out_indices:
            self.add_module(f'norm{i}', LayerNorm(self.channels[i], eps=NORM_EPS) if out_norm else nn.Identity())
        self._freeze()

    def forward(self, images_BCHW: Tensor, layout: Layout | None = None) -> tuple[Tensor, ...]:
        """Tuple of contiguous maps (B, C_i, H // s_i, W // s_i), one per out index; (B, C) last with
        gap_before_final_norm.

        Args:
            images_BCHW: normalised images; sides that a stride does not divide lose their remainder, as in the
            official code.
            layout: DenseLayout when None. With a layout of visible cells, hidden cells of the maps are zero.
        """
        _, C, H, W = images_BCHW.shape
        if self.in_channels != C:
            raise ValueError(
                f'the images have {C} channels, the backbone was built with in_channels={self.in_channels}.'
            )
        if min(H, W) < self.total_stride:
            raise ValueError(f'the images are {H} x {W} px; the backbone needs at least {self.total_stride} px a side.')
        layout = layout or DenseLayout(kernels=self.kernels)
        x = layout.from_images(images_BCHW)
        maps = []
        for i, (downsample, blocks) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = downsample(x)
            for block in blocks:
                if self.with_cp and torch.is_grad_enabled():
                    x = checkpoint(block, x, layout, use_reentrant=False)
                else:
                    x = block(x, layout)
            if i in self.out_indices:
                norm = getattr(self, f'norm{i}')
                if self.gap_before_final_norm and i == len(self.stages) - 1:
                    maps.append(norm(layout.to_map(x).mean(dim=(2, 3))))
                else:
                    maps.append(layout.to_map(norm(x)))
        return tuple(maps)

    def get_layer_depth(self, param_name: str, prefix: str = '', grouping: str = 'single') -> tuple[int, int]:
        """(layer_id, num_layers) of a parameter for layer-wise learning-rate decay: scale = rate ** (num_layers - 1 -
        layer_id).

        Groupings: 'single' gives every block its own id; 'group' puts three blocks of stage 3 in one (the official 12
        groups for 27 blocks, mmdet's layer_wise; 3 + ceil(depth / 3) for other depths); 'stage_wise' has one id per
        stage. In 'single' the stem has id 1 and id 0 stays unused, as in the official code.

        Args:
            param_name: full name; one outside `prefix` (a head) gets the last id.
            prefix: where the backbone stands in the model, such as 'backbone.'.
        """
        before = [sum(self.depths[:i]) for i in range(len(self.depths))]
        if grouping == 'single':
            last = sum(self.depths) + 1
            downsample_ids = [count + 1 for count in before]
            block_ids = [
                [count + j + 1 for j in range(depth)] for count, depth in zip(before, self.depths, strict=True)
            ]
        elif grouping == 'group':
            num_groups = 3 + math.ceil(self.depths[2] / 3)
            last = num_groups + 1
            downsample_ids = [0, 2, 3, num_groups]
            block_ids = [
                [1] * self.depths[0],
                [2] * self.depths[1],
                [3 + j // 3 for j in range(self.depths[2])],
                [num_groups] * self.depths[3],
            ]
        elif grouping == 'stage_wise':
            last = (12 if self.depths[2] > 9 else 6) + 1
            downsample_ids = [0] * 4
            block_ids = [[i + 1] * depth for i, depth in enumerate(self.depths)]
        else:
            raise ValueError(f"grouping='{grouping}' is not known; choose 'single', 'group' or 'stage_wise'.")
        parts = param_name.removeprefix(prefix).split('.') if param_name.startswith(prefix) else ['']
        if parts[0] == 'downsample_layers':
            return downsample_ids[int(parts[1])], last + 1
        if parts[0] == 'stages':
            return block_ids[int(parts[1])][int(parts[2])], last + 1
        return last, last + 1

    def init_weights(self) -> None:
        """Load `init_cfg`'s checkpoint, strictly; with checkpoint=None the weights stay as drawn, with one warning."""
        options = pretrained_options(self.init_cfg, load_pretrained_backbone)
        if options is None:
            super().init_weights()
        elif not self.is_init:
            if options['path'] is None:
                print_log(
                    'The backbone starts from random weights: init_cfg has checkpoint=None. Give a file with '
                    '--cfg-options model.backbone.init_cfg.checkpoint=PATH',
                    'current',
                    logging.WARNING,
                )
            else:
                load_pretrained_backbone(self, **options)
            self.is_init = True

    def train(self, mode: bool = True) -> ConvNeXtV2:
        """As nn.Module.train; frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        for i in range(self.frozen_stages):
            for module in (self.downsample_layers[i], self.stages[i]):
                module.eval()
                module.requires_grad_(False)
