"""The metrics that tables show, and where a run writes them: box AP, mask AP, mIoU, top-1.

Touch it for another metric. Guarded by tests/analysis/test_metrics.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from .run_log import RunLog

METRICS = {
    'box AP': ('coco/bbox_mAP', 1.0),
    'mask AP': ('coco/segm_mAP', 1.0),
    'mIoU': ('mIoU', 100.0),
    'top-1': ('accuracy/top1', 100.0),
}  # name: (logged as, divisor that brings it to 0..1)


def logged_metrics(log: RunLog, names: Sequence[str]) -> dict[str, float]:
    """The last validation's values of the named metrics, each in 0..1. KeyError names what is missing."""
    return {name: log.last(METRICS[name][0]) / METRICS[name][1] for name in names}


def tested_metrics(path: Path, names: Sequence[str]) -> dict[str, float]:
    """The same from the file that `tools/test.py --out metrics.json` wrote."""
    values = json.loads(path.read_text(encoding='utf-8'))
    missing = [METRICS[name][0] for name in names if METRICS[name][0] not in values]
    if missing:
        raise KeyError(f'{path} has no {" and no ".join(missing)}; it has {", ".join(sorted(values))}')
    return {name: values[METRICS[name][0]] / METRICS[name][1] for name in names}


def metric_names(cfg: Mapping) -> tuple[str, ...]:
    """The metrics that a config's test gives, of METRICS; empty when it measures none of them."""
    evaluators = cfg.get('test_evaluator') or cfg.get('val_evaluator') or ()
    evaluators = [evaluators] if isinstance(evaluators, Mapping) else evaluators
    found: list[str] = []
    for evaluator in evaluators:
        kind = str(evaluator.get('type')).rsplit('.', 1)[-1]
        wanted = evaluator.get('metric', 'bbox') if kind == 'CocoMetric' else ()
        found += [name for name, key in (('box AP', 'bbox'), ('mask AP', 'segm')) if key in wanted]
        if kind == 'IoUMetric' and 'mIoU' in evaluator.get('iou_metrics', ['mIoU']):
            found.append('mIoU')
        if kind == 'Accuracy':
            found.append('top-1')
    return tuple(found)
