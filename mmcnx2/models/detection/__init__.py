"""Parts of detectors, imported by `configs/_base_/runtime/mmdet.py`: it is the one room of models that needs mmdet."""

from .float32_parts import Float32BBoxHead, Float32MaskHead, Float32RoIExtractor, Float32RPNHead
from .instance_tta import InstanceTTAModel

__all__ = ['Float32BBoxHead', 'Float32MaskHead', 'Float32RPNHead', 'Float32RoIExtractor', 'InstanceTTAModel']
