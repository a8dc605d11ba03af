"""What trained detectors and segmentors say about a few validation pictures, drawn beside the truth.

The pictures, their preprocessing and their truth come from the validation set of the config that the run stored in
its work dir, so nothing here knows a dataset. Touch it for which pictures are shown and how. Metrics are not computed
here. Guarded by tests/test_demo.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image

from mmcnx2.checkpoint import read_checkpoint

from .figures import PictureRow, colour_table, overlay_instances, overlay_labels
from .run_log import last_checkpoint, stored_config


@dataclass
class TrainedRun:
    """A run's model in eval mode and its validation set."""

    scope: str
    model: torch.nn.Module
    dataset: torch.utils.data.Dataset

    @classmethod
    def load(cls, work_dir: str | Path) -> TrainedRun:
        """From the config and the last checkpoint in a work dir; every entry must fit."""
        cfg = Config.fromfile(stored_config(work_dir))
        scope = cfg.get('default_scope', 'mmengine')
        cfg.model.get('backbone', {}).pop('init_cfg', None)  # the checkpoint below holds the backbone too
        with DefaultScope.overwrite_default_scope(scope):
            model = MODELS.build(cfg.model)
            dataset = DATASETS.build(cfg.val_dataloader.dataset)
        content = read_checkpoint(last_checkpoint(work_dir))
        model.load_state_dict(content.get('state_dict', content))
        return cls(scope, model.eval(), dataset)

    @torch.no_grad()
    def predict(self, index: int) -> object:
        """The data sample of picture `index` with predictions."""
        with DefaultScope.overwrite_default_scope(self.scope):
            return self.model.test_step(pseudo_collate([self.dataset[index]]))[0]


def evenly_spaced(total: int, wanted: int) -> list[int]:
    """At most `wanted` indices of 0..total-1, spread over the whole range."""
    wanted = min(total, wanted)
    return [(2 * i + 1) * total // (2 * wanted) for i in range(wanted)]


def _picture(run: TrainedRun, index: int) -> np.ndarray:
    info = run.dataset.get_data_info(index)
    with Image.open(info['img_path']) as image:
        return np.asarray(image.convert('RGB'))


def detection_rows(
    runs: Sequence[tuple[str, TrainedRun]], num_pictures: int, score_threshold: float
) -> list[PictureRow]:
    """Truth, then each run's instances with a score of at least the threshold; masks tinted, boxes drawn."""
    from pycocotools import mask as coco_mask

    dataset = runs[0][1].dataset
    colours = colour_table(len(dataset.metainfo['classes']))
    indices = evenly_spaced(len(dataset), num_pictures)
    truth = []
    for index in indices:
        picture = _picture(runs[0][1], index)
        instances = [item for item in dataset.get_data_info(index)['instances'] if not item.get('ignore_flag')]
        masks = [
            _decoded(item['mask'], picture.shape[:2], coco_mask) for item in instances if item.get('mask') is not None
        ]
        truth.append(
            overlay_instances(
                picture,
                np.array(masks).reshape(-1, *picture.shape[:2]),
                [item['bbox_label'] for item in instances if item.get('mask') is not None],
                colours,
                np.array([item['bbox'] for item in instances]).reshape(-1, 4),
            )
        )
    rows = [PictureRow('truth', truth)]
    for label, run in runs:
        drawn = []
        for index in indices:
            found = run.predict(index).pred_instances
            found = found[found.scores >= score_threshold].cpu().numpy()
            drawn.append(
                overlay_instances(
                    _picture(run, index), np.asarray(found.masks), found.labels.tolist(), colours, found.bboxes
                )
            )
        rows.append(PictureRow(label, drawn))
    return rows


def _decoded(mask: dict | list, shape: tuple[int, int], coco_mask) -> np.ndarray:
    """Bool mask of COCO's polygons or RLE, compressed or not."""
    if isinstance(mask, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(mask, *shape))
    elif isinstance(mask['counts'], list):
        mask = coco_mask.frPyObjects(mask, *shape)
    return coco_mask.decode(mask).astype(bool)


def segmentation_rows(runs: Sequence[tuple[str, TrainedRun]], num_pictures: int) -> list[PictureRow]:
    """Truth, then each run's label map, tinted by class; class 0 is background and stays clear."""
    dataset = runs[0][1].dataset
    colours = colour_table(len(dataset.metainfo['classes']) - 1)
    indices = evenly_spaced(len(dataset), num_pictures)
    truth = []
    for index in indices:
        with Image.open(dataset.get_data_info(index)['seg_map_path']) as labels:
            truth.append(overlay_labels(_picture(runs[0][1], index), np.asarray(labels), colours))
    rows = [PictureRow('truth', truth)]
    for label, run in runs:
        rows.append(
            PictureRow(
                label,
                [
                    overlay_labels(_picture(run, index), run.predict(index).pred_sem_seg.data[0].cpu().numpy(), colours)
                    for index in indices
                ],
            )
        )
    return rows
