"""Mathematics of the models: no registry, no config, no file access."""

from .depthwise import DepthwiseConv
from .grn import GRN
from .layer_norm import LayerNorm
from .layout import DenseLayout, Layout, VisibleLayout
from .linear import Linear
from .minkowski_layout import MinkowskiLayout
from .patch_linear import PatchLinear

__all__ = [
    'GRN',
    'DenseLayout',
    'DepthwiseConv',
    'LayerNorm',
    'Layout',
    'Linear',
    'MinkowskiLayout',
    'PatchLinear',
    'VisibleLayout',
]
