"""Views of one image become one result: mirrored back, duplicates removed, each box with its own mask."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmengine.structures import InstanceData

from mmcnx2.models.detection import InstanceTTAModel

H, W = 20, 30


class Detector(BaseModel):
    """Gives back the samples that it gets: predictions are made by the test."""

    def forward(self, inputs, data_samples, mode):
        assert mode == 'predict' and not any(sample.metainfo['flip'] for sample in data_samples)
        return data_samples


def view(boxes, scores, labels, flip=None, with_masks=True):
    """A sample whose masks are its boxes, both in px of the (mirrored) original image."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    instances = InstanceData(bboxes=boxes, scores=torch.tensor(scores), labels=torch.tensor(labels, dtype=torch.long))
    if with_masks:
        masks = torch.zeros(len(boxes), H, W, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        instances.masks = masks
    sample = DetDataSample(metainfo=dict(ori_shape=(H, W), flip=flip is not None, flip_direction=flip or 'horizontal'))
    sample.pred_instances = instances
    return sample


def merge(*views, nms=None, max_per_img=100):
    model = InstanceTTAModel(
        module=Detector(), tta_cfg=dict(nms=nms or dict(type='nms', iou_threshold=0.5), max_per_img=max_per_img)
    )
    data = dict(inputs=[[torch.zeros(1)] for _ in views], data_samples=[[sample] for sample in views])
    return model.test_step(data)[0].pred_instances


@pytest.mark.parametrize(
    ('flip', 'mirrored'),
    [('horizontal', [20, 3, 26, 9]), ('vertical', [4, 11, 10, 17]), ('diagonal', [20, 11, 26, 17])],
)
def test_a_mirrored_view_finds_the_same_object(flip, mirrored):
    found = merge(view([[4, 3, 10, 9]], [0.6], [2]), view([mirrored], [0.9], [2], flip))
    assert found.bboxes.tolist() == [[4, 3, 10, 9]] and found.labels.tolist() == [2]
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.masks.shape == (1, H, W) and found.masks[0, 3:9, 4:10].all() and found.masks.sum() == 36


def test_each_box_keeps_its_own_mask_and_the_best_come_first():
    found = merge(
        view([[0, 0, 5, 5], [10, 10, 20, 18]], [0.3, 0.8], [0, 1]),
        view([[10, 10, 20, 17]], [0.7], [1]),  # the second object again, a little smaller
        view([[0, 0, 5, 5]], [0.5], [1]),  # the first place, another class
    )
    assert found.scores.tolist() == pytest.approx([0.8, 0.5, 0.3]) and found.labels.tolist() == [1, 1, 0]
    for box, mask in zip(found.bboxes.int().tolist(), found.masks, strict=True):
        x1, y1, x2, y2 = box
        assert mask[y1:y2, x1:x2].all() and mask.sum() == (x2 - x1) * (y2 - y1)


def test_soft_nms_lowers_scores_instead():
    views = view([[0, 0, 10, 10]], [0.9], [0]), view([[0, 0, 10, 8]], [0.8], [0])
    assert len(merge(*views)) == 1
    soft = merge(*views, nms=dict(type='soft_nms', iou_threshold=0.5))
    assert soft.scores.tolist() == pytest.approx([0.9, 0.8 * (1 - 0.8)])
    assert len(merge(*views, nms=dict(type='soft_nms', iou_threshold=0.5), max_per_img=1)) == 1


def test_no_masks_and_nothing_found():
    assert 'masks' not in merge(view([[0, 0, 5, 5]], [0.5], [0], with_masks=False))
    nothing = merge(view([], [], []), view([], [], [], 'horizontal'))
    assert len(nothing) == 0 and nothing.masks.shape == (0, H, W)
