"""Backbones: images (B, C, H, W) -> tuple of feature maps (B, C_i, H / s_i, W / s_i)."""

from .convnext_v2 import ConvNeXtV2

__all__ = ['ConvNeXtV2']
