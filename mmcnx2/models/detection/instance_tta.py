"""Test at several scales and mirrored, boxes with their masks. mmdet's own merges boxes and refuses masks.

Touch it for how the views of one image become one result; the views themselves are `tta_pipeline` of the configs.
Guarded by tests/models/test_instance_tta.py.
"""

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.structures import InstanceData

from mmcnx2.registry import MODELS

FLIPPED_DIMS = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


@MODELS.register_module()
class InstanceTTAModel(DetTTAModel):
    """One result per image from its views: all boxes, NMS per class, and each remaining box keeps its own view's mask.

    `tta_cfg` has `nms` (as in a detector's test_cfg.rcnn) and `max_per_img`. Predictions of the views must be in px of
    the original image, as mmdet's detectors give them (rescale=True); mirrored ones are mirrored back here.
    """

    def test_step(self, data: dict) -> list[DetDataSample]:
        """One sample per image of the views in `data`: inputs and data_samples, a list per view."""
        for view in data['data_samples']:
            for sample in view:
                # The detector must not know: mmdet's CascadeRoIHead would mirror the masks of its stages too.
                mirrored = sample.metainfo['flip_direction'] if sample.metainfo.get('flip') else None
                sample.set_metainfo(dict(mirrored=mirrored, flip=False, flip_direction=None))
        return super().test_step(data)

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        """The first view's sample with the merged instances: bboxes (N, 4) px, scores (N,) highest first, labels (N,)
        and, when the detector has them, masks (N, H, W) bool.
        """
        merged = InstanceData.cat([self._mirrored_back(sample) for sample in data_samples])
        if len(merged):
            boxes_and_scores, kept = batched_nms(merged.bboxes, merged.scores, merged.labels, self.tta_cfg['nms'])
            kept = kept[: self.tta_cfg['max_per_img']]
            merged = merged[kept]
            merged.scores = boxes_and_scores[: len(kept), -1]  # soft-NMS has lowered some
        result = data_samples[0]
        result.pred_instances = merged
        return result

    @staticmethod
    def _mirrored_back(sample: DetDataSample) -> InstanceData:
        found = sample.pred_instances
        back = InstanceData(bboxes=found.bboxes, scores=found.scores, labels=found.labels)
        if 'masks' in found:
            back.masks = found.masks
        direction = sample.metainfo['mirrored']
        if direction:
            back.bboxes = bbox_flip(found.bboxes, sample.metainfo['ori_shape'], direction)
            if 'masks' in found:
                back.masks = torch.flip(found.masks, FLIPPED_DIMS[direction])
        return back
