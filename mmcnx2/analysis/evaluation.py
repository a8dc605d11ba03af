"""A trained run on its validation set, class by class; its cost; pictures of several runs. What needs a model.

Results are kept beside the run in `WORK_DIR/report/` with a key of what they depend on (config, checkpoint), so that a
second report takes no time. Touch it for what is computed and kept. The counting itself is in confusion.py, drawing in
samples.py, showing in run_report.py. Guarded by tests/test_report.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mmcnx2
from mmcnx2.atomic_write import write_atomically

from .confusion import detection_confusion, label_confusion
from .figures import draw_sheet
from .run_facts import RunFacts
from .run_log import stored_config

KEPT = 'report'  # folder in the work dir
SCORE_THRESHOLD = 0.5  # of a detection that is drawn or counted
IOU_THRESHOLD = 0.5
NOTHING = 'none'  # the class of what was missed or is no object


@dataclass(frozen=True)
class Confusion:
    """Counts of pairs: `counts[i][j]` of true class i taken for class j; what is counted is in `unit`.

    Detection has one more row and column, named 'none', at the end: false alarms and missed objects.
    """

    classes: list[str]
    counts: list[list[int]]
    unit: str
    num_images: int


@dataclass(frozen=True)
class ModelCost:
    """Parameters, and multiply-adds of one image of this height and width."""

    params: int
    flops: int
    height: int
    width: int


# ---- results kept beside the run


def key_of(facts: Sequence[RunFacts], *more: object) -> str:
    """Hash of the configs, the last checkpoints (name, size, time) and whatever else a result depends on."""
    parts: list[object] = [mmcnx2.__version__, *more]
    for each in facts:
        parts.append(stored_config(each.folder).read_text(encoding='utf-8'))
        if each.checkpoint is not None:
            state = each.checkpoint.stat()
            parts += [each.checkpoint.name, state.st_size, state.st_mtime_ns]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def kept_or_made(path: Path, key: str, make: Callable[[], Any], anew: bool = False) -> Any:
    """The result in the file `path` if it has this key, else that of `make`, which is kept there if possible."""
    if not anew:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(path.read_text(encoding='utf-8'))
            if kept['key'] == key:
                return kept['result']
    result = make()
    with contextlib.suppress(OSError):  # a folder that only others may write to
        write_atomically(path, json.dumps({'key': key, 'result': result}, ensure_ascii=False) + '\n')
    return result


# ---- cost


def cost_of(facts: RunFacts) -> ModelCost:
    """Counted from the stored config; raises what model_cost raises for models that it does not know."""

    def make() -> dict[str, int]:
        from mmengine.config import Config

        from .model_cost import model_cost

        with quietly():
            cost = model_cost(Config.fromfile(stored_config(facts.folder)))
        height, width = cost.input_shape
        return asdict(ModelCost(cost.params, cost.flops, height, width))

    key = key_of([facts], 'cost')
    return ModelCost(**kept_or_made(facts.folder / KEPT / 'cost.json', key, make))


# ---- which classes are taken for which


def confusion_of(facts: RunFacts, anew: bool = False) -> Confusion:
    """Of the last checkpoint on the whole validation set of the stored config.

    Segmentation counts pixels, classification images, detection boxes that score 0.5 or more and overlap an object with
    an IoU of 0.5 or more. ValueError for other tasks.
    """

    def make() -> dict[str, Any]:
        from .samples import TrainedRun

        with quietly():
            return asdict(COUNTERS[facts.task](TrainedRun.load(facts.folder)))

    if facts.task not in COUNTERS:
        raise ValueError(f'classes are counted for {", ".join(COUNTERS)}; this run is of {facts.task}')
    key = key_of([facts], 'confusion', SCORE_THRESHOLD, IOU_THRESHOLD)
    return Confusion(**kept_or_made(facts.folder / KEPT / 'confusion.json', key, make, anew))


def _count_pixels(run) -> Confusion:
    counts = np.zeros((len(run.classes),) * 2, dtype=np.int64)
    for sample in run.predict_all():
        truth, predicted = (each.data.squeeze().numpy() for each in (sample.gt_sem_seg, sample.pred_sem_seg))
        counts += label_confusion(truth, predicted, len(run.classes))
    return Confusion(run.classes, counts.tolist(), 'pixels', len(run.dataset))


def _count_images(run) -> Confusion:
    counts = np.zeros((len(run.classes),) * 2, dtype=np.int64)
    for sample in run.predict_all():
        counts += label_confusion(sample.gt_label.numpy(), sample.pred_label.numpy(), len(run.classes), ignored=-1)
    return Confusion(run.classes, counts.tolist(), 'images', len(run.dataset))


def _count_boxes(run) -> Confusion:
    num_classes = len(run.classes)
    counts = np.zeros((num_classes + 1,) * 2, dtype=np.int64)
    for index, sample in enumerate(run.predict_all()):
        instances = run.dataset.get_data_info(index)['instances']
        found = sample.pred_instances.numpy()
        counts += detection_confusion(
            found.bboxes,
            found.labels,
            found.scores,
            np.array([item['bbox'] for item in instances], dtype=float).reshape(-1, 4),
            np.array([item['bbox_label'] for item in instances], dtype=int),
            num_classes,
            SCORE_THRESHOLD,
            IOU_THRESHOLD,
            np.array([item.get('ignore_flag', 0) for item in instances], dtype=bool),
        )
    return Confusion([*run.classes, NOTHING], counts.tolist(), 'objects', len(run.dataset))


COUNTERS = {'classification': _count_images, 'detection': _count_boxes, 'segmentation': _count_pixels}


# ---- pictures


def draw_samples(task: str, runs: Sequence[RunFacts], path: Path, num_pictures: int) -> str:
    """Sheet of validation pictures of the first run's config, truth above the runs; answers its caption."""
    from . import samples

    with quietly():
        loaded = [(facts.label, samples.TrainedRun.load(facts.folder)) for facts in runs]
        if task == 'detection':
            caption = f'Validation pictures: truth, and detections that score {SCORE_THRESHOLD} or more.'
            sheet = samples.detection_sheet(loaded, num_pictures, SCORE_THRESHOLD)
        elif task == 'segmentation':
            caption = 'Validation pictures: truth, and the predicted class of every pixel.'
            sheet = samples.segmentation_sheet(loaded, num_pictures)
        else:
            raise ValueError(f'pictures are drawn for detection and segmentation, not for {task}')
        draw_sheet(sheet.rows, path, legend=sheet.legend)
    return caption


def kept_samples(task: str, runs: Sequence[RunFacts], num_pictures: int, anew: bool = False) -> tuple[Path, str]:
    """(PNG, caption) of such a sheet in the first run's folder; drawn when a run has changed since."""
    path = runs[0].folder / KEPT / f'{task}.png'
    key = key_of(runs, 'samples', num_pictures, [facts.label for facts in runs], SCORE_THRESHOLD)
    caption = kept_or_made(
        path.with_suffix('.json'), key, lambda: draw_samples(task, runs, path, num_pictures), anew or not path.exists()
    )
    return path, caption


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """What libraries print and log while they build models and datasets is dropped."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(disabled)
