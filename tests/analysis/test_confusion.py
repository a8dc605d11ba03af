"""Confusion counts: by hand, and against slow loops."""

import numpy as np
import pytest

from mmcnx2.analysis.confusion import (
    box_overlaps,
    detection_confusion,
    intersections_over_unions,
    label_confusion,
)


def test_label_confusion_equals_a_loop():
    generator = np.random.default_rng(0)
    truth, predicted = (generator.integers(0, 4, (13, 17)) for _ in range(2))
    truth[generator.random(truth.shape) < 0.2] = 255
    expected = np.zeros((4, 4), int)
    for t, p in zip(truth.ravel(), predicted.ravel(), strict=True):
        if t != 255:
            expected[t, p] += 1
    assert np.array_equal(label_confusion(truth, predicted, 4), expected)
    assert np.array_equal(label_confusion(truth.astype(np.uint8), predicted.astype(np.uint8), 4), expected)


def test_many_classes_do_not_overflow_small_integers():
    labels = np.array([149], np.uint8)
    assert label_confusion(labels, labels, 150)[149, 149] == 1


def test_labels_outside_and_shapes_that_differ():
    with pytest.raises(ValueError, match='true labels run from 0 to 3; there are 3 classes'):
        label_confusion(np.array([0, 3]), np.array([0, 1]), 3)
    with pytest.raises(ValueError, match='predicted labels run from -1 to 0'):
        label_confusion(np.array([0, 1]), np.array([0, -1]), 3)
    with pytest.raises(ValueError, match=r'\(2,\).*\(1,\)'):
        label_confusion(np.array([0, 1]), np.array([0]), 3)


def test_intersections_over_unions():
    counts = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    ious = intersections_over_unions(counts)
    assert ious[:2].tolist() == [6 / 9, 3 / 6] and np.isnan(ious[2])


def test_box_overlaps():
    ious, insides = box_overlaps(np.array([[0.0, 0, 2, 2], [5, 5, 6, 6]]), np.array([[1.0, 0, 4, 2]]))
    assert ious.tolist() == [[2 / 8], [0]] and insides.tolist() == [[0.5], [0]]


BOX = [0.0, 0, 10, 10]
SHIFTED = [0.0, 1, 10, 11]  # IoU with BOX: 90 / 110
FAR = [50.0, 50, 60, 60]


def count(boxes, labels, scores, true_boxes, true_labels, **more):
    return detection_confusion(
        np.array(boxes, float).reshape(-1, 4),
        np.array(labels, int),
        np.array(scores, float),
        np.array(true_boxes, float).reshape(-1, 4),
        np.array(true_labels, int),
        2,
        **more,
    ).tolist()


def test_right_wrong_class_missed_and_false_alarm():
    # rows: true 0, true 1, no object; columns: found as 0, found as 1, not found
    assert count([BOX], [0], [0.9], [BOX], [0]) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert count([SHIFTED], [1], [0.9], [BOX], [0]) == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert count([FAR], [1], [0.9], [BOX], [0]) == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert count([], [], [], [BOX, FAR], [0, 1]) == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
    assert count([BOX], [1], [0.9], [], []) == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_low_scores_do_not_count():
    assert count([BOX], [0], [0.49], [BOX], [0]) == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert count([BOX], [0], [0.49], [BOX], [0], score_threshold=0.4) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_the_higher_score_chooses_first_and_each_is_in_one_pair_at_most():
    # both lie on the object: the surer one takes it, the other is a false alarm
    counts = count([BOX, SHIFTED], [0, 1], [0.6, 0.8], [BOX], [0])
    assert counts == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    # two objects: the first detection takes the one that it overlaps more, the second what is left
    counts = count([BOX, BOX], [0, 1], [0.9, 0.8], [SHIFTED, BOX], [1, 0])
    assert counts == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_an_overlap_of_exactly_the_threshold_counts():
    half = [0.0, 0, 10, 5]  # IoU with BOX: 50 / 100
    assert count([half], [0], [0.9], [BOX], [0]) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert count([half], [0], [0.9], [BOX], [0], iou_threshold=0.51) == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_crowds_are_neither_missed_nor_false_alarms():
    crowd = np.array([True])
    inside = [1.0, 1, 4, 4]
    assert count([inside], [0], [0.9], [BOX], [1], ignored_M=crowd) == [[0] * 3] * 3
    assert count([], [], [], [BOX], [1], ignored_M=crowd) == [[0] * 3] * 3
    assert count([FAR], [0], [0.9], [BOX], [1], ignored_M=crowd) == [[0] * 3, [0] * 3, [1, 0, 0]]
