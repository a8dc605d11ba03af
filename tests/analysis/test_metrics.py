"""Which metrics a config measures, and where they are read; also from the configs as they are."""

import json

import pytest
from mmengine.config import Config

import mmcnx2
from mmcnx2.analysis import metrics
from mmcnx2.analysis.metrics import logged_metrics, metric_names
from mmcnx2.analysis.run_log import Curve, RunLog


@pytest.mark.parametrize(
    ('evaluator', 'expected'),
    [
        (dict(type='CocoMetric', metric=['bbox', 'segm']), ('box AP', 'mask AP')),
        (dict(type='mmdet.CocoMetric', metric='bbox'), ('box AP',)),
        (dict(type='CocoMetric', metric='proposal'), ()),
        (dict(type='IoUMetric', iou_metrics=['mIoU', 'mDice']), ('mIoU',)),
        (dict(type='IoUMetric', iou_metrics=['mDice']), ()),
        ([dict(type='IoUMetric'), dict(type='Accuracy', topk=(1, 5))], ('mIoU', 'top-1')),
        (None, ()),
    ],
)
def test_metrics_of_an_evaluator(evaluator, expected):
    assert metric_names(dict(val_evaluator=evaluator)) == expected
    if evaluator:  # the test counts where both are given
        assert metric_names(dict(val_evaluator=dict(type='Accuracy'), test_evaluator=evaluator)) == expected


@pytest.mark.parametrize(
    ('folder', 'expected'), [('coco', {'box AP', 'mask AP'}), ('ade20k', {'mIoU'}), ('imagenet', {'top-1'})]
)
def test_every_task_of_ours_measures_something(folder, expected):
    for path in sorted((mmcnx2.configs_dir() / folder).glob('*.py'))[:2]:
        assert set(metric_names(Config.fromfile(path, import_custom_modules=False))) == expected, path


def test_values_are_shares_of_one(tmp_path):
    log = RunLog(val={'mIoU': Curve((1, 2), (10.0, 62.7)), 'coco/bbox_mAP': Curve((1,), (0.3,))})
    assert logged_metrics(log, ('mIoU', 'box AP')) == {'mIoU': 0.627, 'box AP': 0.3}
    path = tmp_path / 'metrics.json'
    path.write_text(json.dumps({'accuracy/top1': 82.5, 'accuracy/top5': 96}))
    assert metrics.tested_metrics(path, ('top-1',)) == {'top-1': 0.825}
    with pytest.raises(KeyError, match='has no mIoU; it has accuracy/top1'):
        metrics.tested_metrics(path, ('mIoU', 'top-1'))
