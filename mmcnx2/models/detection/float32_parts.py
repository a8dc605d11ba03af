"""Detector parts that keep scores, boxes and masks in float32 under bfloat16 autocast.

mmcv's RoIAlign and NMS know float32 and float16 only. And mmdet rounds box coordinates to the precision of the
features: at 1000 px neighbouring bfloat16 numbers are 4 px apart (float16: 0.5 px). With these parts backbone, neck and
the layers of all heads run in bfloat16; RoIs, RoIAlign, decoding, losses and NMS in float32. Without autocast they
compute what mmdet's do.
Touch it for precision; not for what the parts compute, which is mmdet's. Guarded by
tests/models/test_float32_parts.py.
"""

from collections.abc import Sequence

import torch
from mmdet.models import ConvFCBBoxHead, FCNMaskHead, RPNHead, SingleRoIExtractor
from torch import Tensor

from mmcnx2.registry import MODELS


@MODELS.register_module()
class Float32RPNHead(RPNHead):
    """mmdet's RPNHead whose scores and box deltas leave in float32."""

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Scores (B, A, H, W) and box deltas (B, 4 A, H, W), one of each per level."""
        scores, deltas = super().forward(x)
        return [score.float() for score in scores], [delta.float() for delta in deltas]


@MODELS.register_module()
class Float32RoIExtractor(SingleRoIExtractor):
    """mmdet's SingleRoIExtractor on float32 features and boxes, whatever precision the features come in."""

    def forward(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """RoI features (N, C, P, P) of maps (B, C, H, W) per level and RoIs (N, 5): image, x1, y1, x2, y2 px."""
        with torch.autocast(rois.device.type, enabled=False):
            return super().forward(tuple(feat.float() for feat in feats), rois.float(), roi_scale_factor)


@MODELS.register_module()
class Float32BBoxHead(ConvFCBBoxHead):
    """mmdet's ConvFCBBoxHead (with num_shared_fcs=2 its Shared2FCBBoxHead) whose scores and box deltas leave in
    float32.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores (N, classes + 1) and box deltas (N, 4 or 4 classes) of RoI features (N, C, P, P)."""
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


@MODELS.register_module()
class Float32MaskHead(FCNMaskHead):
    """mmdet's FCNMaskHead whose mask logits leave in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Mask logits (N, classes, 2 P, 2 P) of RoI features (N, C, P, P)."""
        return super().forward(x).float()
