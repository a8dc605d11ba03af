"""What a config's model costs: its parameters, and the multiply-adds of one image, counted without computing anything.

Models are built and run on the meta device, where tensors have shapes and no values: the largest takes a fraction of a
second and no memory. Touch it for what is counted; not for what papers say (published_costs.py) or for printing
(tools/benchmark/model_cost.py). Guarded by tests/analysis/test_model_cost.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import mmcnx2  # noqa: F401  (its registries)
from mmcnx2.models.fcmae.masking import random_visible
from mmcnx2.models.layers import DenseLayout, VisibleLayout

# Detectors are counted as in the literature: boxes and masks of this many RoIs, whatever the image holds
NUM_BOX_ROIS, NUM_MASK_ROIS = 1000, 100
# COCO's test scale is 1333 x 800 at most; figures are quoted at this height and width
COCO_TEST_SCALE, COCO_SHAPE = (1333, 800), (800, 1280)

# Operators that multiply by weights
WEIGHT_PRODUCTS = ('aten.convolution', 'aten.addmm', 'aten.mm')


@dataclass(frozen=True)
class Cost:
    """Cost of one image of `input_shape` (height, width) in a forward pass at test time.

    `params` counts every parameter of the model, frozen ones and heads that only training uses too. `flops_by_part`
    has the multiply-adds of each part that the image runs through. `attention_flops`, contained in them, are those of
    products of two activations, which counters that look at layers only do not see.
    """

    input_shape: tuple[int, int]
    params: int
    flops_by_part: dict[str, int]
    attention_flops: int

    @property
    def flops(self) -> int:
        return sum(self.flops_by_part.values())


def model_cost(cfg: Config, input_shape: tuple[int, int] | None = None) -> Cost:
    """Parameters and multiply-adds of the model of a config, for one image.

    A multiply-add counts once, as in the papers ('FLOPs' there). Counted are convolutions, linear layers and products
    of activations; not biases, norms, activations, pooling and resizing, together below 1.5% in these models.

    * Detectors: backbone, neck and RPN head on the image, each box head on 1000 RoIs, each mask head on 100. RoIAlign,
      NMS and proposals are left out.
    * Segmentors: without the auxiliary head, which only training runs; its parameters count.
    * FCMAE: encoder, decoder and head of one pretraining step, forward. With layout='visible' the depthwise
      convolutions count for the whole map, as they are computed, and everything else for the visible cells.

    Args:
        cfg: a whole config; it is not changed.
        input_shape: height and width in px. None takes them from the config: the test scale of a segmentor, 800 x 1280
            for a detector tested at 1333 x 800 (its own test scale otherwise), the crop of a classifier and of FCMAE.

    Raises:
        ValueError: the model is of another kind, or the config does not say the image size.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        model = build_on_meta(cfg.model)
    height, width = input_shape or input_shape_of(cfg)
    num_channels = cfg.model.get('backbone', {}).get('in_channels', 3)
    images = torch.empty(1, num_channels, height, width, device='meta')
    count = _Count()
    if hasattr(model, 'mask_ratio'):
        _run_fcmae(model, images, count)
    elif hasattr(model, 'roi_head') and hasattr(model, 'rpn_head'):
        _run_detector(model, images, count)
    elif hasattr(model, 'decode_head'):
        count('decode_head', model.decode_head, _features(model, images, count))
    elif hasattr(model, 'head') and hasattr(model, 'backbone'):
        count('head', model.head, _features(model, images, count))
    else:
        raise ValueError(
            f'the cost of {cfg.model.type} cannot be counted; known are FCMAE, classifiers with a head, two-stage '
            'detectors and segmentors with a decode_head'
        )
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost((height, width), params, count.flops_by_part, count.attention_flops)


def build_on_meta(model_cfg: dict) -> nn.Module:
    """The model in evaluation mode, without values. The default scope must be set; the config is not changed."""
    with torch.device('meta'), _LinspaceOnCPU():
        return MODELS.build(copy.deepcopy(model_cfg)).eval()


def input_shape_of(cfg: Config) -> tuple[int, int]:
    """(height, width) for which the cost of a config is quoted; see `model_cost`."""
    if 'roi_head' in cfg.model or 'decode_head' in cfg.model:
        loader, transform = 'test_dataloader', 'Resize'
    else:
        loader, transform = 'train_dataloader', 'RandomResizedCrop'
    pipeline = cfg.get(loader, {}).get('dataset', {}).get('pipeline', ())
    scale = next((step.get('scale') for step in _steps(pipeline) if step.get('type', '').endswith(transform)), None)
    if scale is None:
        raise ValueError(
            f'{loader} has no {transform} with a scale, which would say the image size; give input_shape=(height, '
            'width)'
        )
    if isinstance(scale, int):
        return scale, scale
    if 'roi_head' in cfg.model and tuple(scale) == COCO_TEST_SCALE:
        return COCO_SHAPE
    return tuple(scale) if transform == 'RandomResizedCrop' else (scale[1], scale[0])  # Resize: (width, height)


class _LinspaceOnCPU(TorchFunctionMode):
    """Backbones read their drop path rates out of a linspace, and a meta tensor has nothing to read."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


class _Count:
    """Runs parts of a model and adds up their multiply-adds by name."""

    def __init__(self) -> None:
        self.flops_by_part: dict[str, int] = {}
        self.attention_flops = 0

    def __call__(self, name: str, part: nn.Module, *inputs):
        """The outputs of `part`."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            outputs = part(*inputs)
        # torch counts a multiply-add as two; there is no entry when nothing was counted
        by_operator = {str(op): flops // 2 for op, flops in counter.get_flop_counts().get('Global', {}).items()}
        self.flops_by_part[name] = self.flops_by_part.get(name, 0) + sum(by_operator.values())
        self.attention_flops += sum(flops for op, flops in by_operator.items() if op not in WEIGHT_PRODUCTS)
        return outputs


def _features(model: nn.Module, images: Tensor, count: _Count):
    maps = count('backbone', model.backbone, images)
    return count('neck', model.neck, maps) if getattr(model, 'neck', None) is not None else maps


def _run_detector(model: nn.Module, images: Tensor, count: _Count) -> None:
    count('rpn_head', model.rpn_head, _features(model, images, count))
    for kind, num_rois in (('bbox', NUM_BOX_ROIS), ('mask', NUM_MASK_ROIS)):
        if getattr(model.roi_head, f'with_{kind}'):
            heads = _as_list(getattr(model.roi_head, f'{kind}_head'))
            extractor = _as_list(getattr(model.roi_head, f'{kind}_roi_extractor'))[0]
            size = extractor.roi_layers[0].output_size
            rois = torch.empty(num_rois, extractor.out_channels, *size, device='meta')
            for head in heads:  # a cascade has several
                count(f'{kind}_head', head, rois)


def _run_fcmae(model: nn.Module, images: Tensor, count: _Count) -> None:
    height, width = images.shape[-2:]
    if height % model.patch_size or width % model.patch_size:
        raise ValueError(f'{height} x {width} px: both must be multiples of patch_size={model.patch_size}')
    grid_shape = (height // model.patch_size, width // model.patch_size)
    visible_BGG = random_visible(1, grid_shape, model.mask_ratio, seeds=[0])
    if model.layout == 'visible':
        layout = VisibleLayout(visible_BGG)
        layout.cells_N = layout.cells_N.to('meta')  # which cells are seen needs values; the rest only shapes
    else:
        layout = DenseLayout(visible_BGG.to('meta'))
    *skips_BCHW, features_BCHW = count('backbone', model.backbone, images, layout)
    visible_BHW = torch.empty(1, *features_BCHW.shape[-2:], dtype=torch.bool, device='meta')
    decoded_BHWC = count('neck', model.neck, features_BCHW, visible_BHW, *skips_BCHW)
    count('head', model.head, decoded_BHWC, model.patch_size)


def _steps(pipeline) -> Iterator[dict]:
    for step in pipeline:
        yield step
        if isinstance(step.get('transforms'), list | tuple):
            yield from _steps([inner for inner in step['transforms'] if isinstance(inner, dict)])


def _as_list(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]
