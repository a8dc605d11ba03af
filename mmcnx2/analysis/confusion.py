"""Which classes are taken for which: counts of (truth, prediction) pairs. Arrays in, counts out.

Rows are the truth, columns the prediction. Touch it for how predictions and truth are paired; running a model is in
evaluation.py. Guarded by tests/analysis/test_confusion.py.

Why not the scripts of mmdet and mmseg: they are no importable code, and mmdet's counts a detection once for every
object that it overlaps and an object once for every detection of its class on it, so that rows sum to more than there
are objects. Here each object and each detection is in one pair at most.

Shapes: H W pixels, C classes, N detections, M objects of the truth. Boxes are (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

import numpy as np


def label_confusion(truth: np.ndarray, predicted: np.ndarray, num_classes: int, ignored: int = 255) -> np.ndarray:
    """(C, C) counts of entries by true and predicted label; entries whose true label is `ignored` are left out.

    Args:
        truth, predicted: integer labels, of one shape: pixels of a label map, or one per image.

    Raises:
        ValueError: the shapes differ, or a label that counts is not in 0..C-1.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f'truth has the shape {truth.shape}, predictions {predicted.shape}; they must be the same')
    counts = truth != ignored
    truth, predicted = truth[counts].astype(np.int64), predicted[counts].astype(np.int64)
    for name, labels in (('true', truth), ('predicted', predicted)):
        if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
            found = f'{labels.min()} to {labels.max()}'
            raise ValueError(f'{name} labels run from {found}; there are {num_classes} classes')
    return np.bincount(num_classes * truth + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def intersections_over_unions(confusion: np.ndarray) -> np.ndarray:
    """(C,) intersection over union of each class; NaN for a class that is neither true nor predicted anywhere."""
    both = np.diag(confusion).astype(float)
    either = confusion.sum(0) + confusion.sum(1) - both
    return np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)


def box_overlaps(boxes_N4: np.ndarray, others_M4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, M) intersections over unions, and (N, M) intersections over the areas of the first boxes."""
    corner = np.maximum(boxes_N4[:, None, :2], others_M4[None, :, :2])
    opposite = np.minimum(boxes_N4[:, None, 2:], others_M4[None, :, 2:])
    shared = np.clip(opposite - corner, 0, None).prod(-1)
    areas, other_areas = (np.clip(each[:, 2:] - each[:, :2], 0, None).prod(-1) for each in (boxes_N4, others_M4))
    union = areas[:, None] + other_areas[None] - shared
    return shared / np.maximum(union, 1e-12), shared / np.maximum(areas[:, None], 1e-12)


def detection_confusion(
    boxes_N4: np.ndarray,
    labels_N: np.ndarray,
    scores_N: np.ndarray,
    true_boxes_M4: np.ndarray,
    true_labels_M: np.ndarray,
    num_classes: int,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    ignored_M: np.ndarray | None = None,
) -> np.ndarray:
    """(C + 1, C + 1) counts of one image; the last row is no object (false alarms), the last column nothing found.

    Detections that score the threshold or more choose in the order of their scores: each takes the free object that it
    overlaps most, whatever its class, if the intersection over union reaches the threshold. What stays over on either
    side goes into the last row or column. Objects marked in `ignored_M` (crowds) are not counted, nor are detections
    that find no other object and lie in them by half or more.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    ignored = np.zeros(len(true_labels_M), dtype=bool) if ignored_M is None else np.asarray(ignored_M, dtype=bool)
    ious, insides = box_overlaps(np.reshape(boxes_N4, (-1, 4)), np.reshape(true_boxes_M4, (-1, 4)))
    is_free = ~ignored
    for detection in np.argsort(-scores_N, kind='stable'):
        if scores_N[detection] < score_threshold:
            break
        overlaps = np.where(is_free, ious[detection], -1.0)
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best >= 0 and overlaps[best] >= iou_threshold:
            is_free[best] = False
            counts[true_labels_M[best], labels_N[detection]] += 1
        elif not (insides[detection][ignored] >= 0.5).any():
            counts[num_classes, labels_N[detection]] += 1
    for label in true_labels_M[is_free]:
        counts[label, num_classes] += 1
    return counts
