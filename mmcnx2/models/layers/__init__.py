"""Mathematics of the models: no registry, no config, no file access."""

from .block_mlp import mlp
from .depthwise import DepthwiseConv
from .grn import GRN
from .layer_norm import LayerNorm
from .layout import DenseLayout, Layout, LeakingLayout, VisibleLayout
from .linear import Linear
from .minkowski_layout import MinkowskiLayout
from .patch_linear import PatchLinear
from .response_norms import build_response_norm

__all__ = [
    'GRN',
    'DenseLayout',
    'DepthwiseConv',
    'LayerNorm',
    'Layout',
    'LeakingLayout',
    'Linear',
    'MinkowskiLayout',
    'PatchLinear',
    'VisibleLayout',
    'build_response_norm',
    'mlp',
]
