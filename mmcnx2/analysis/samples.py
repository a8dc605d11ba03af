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

from .figures import PictureRow, colour_table, in_grey, overlay_instances, overlay_labels
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


def detection_rows(
    runs: Sequence[tuple[str, TrainedRun]], num_pictures: int, score_threshold: float
) -> list[PictureRow]:
    """Picture, truth, then each run's instances that score the threshold or more; masks tinted, boxes drawn."""
    dataset = runs[0][1].dataset
    colours = colour_table(len(dataset.metainfo['classes']))
    indices = evenly_spaced(len(dataset), num_pictures)
    pictures = [_picture(dataset, index) for index in indices]
    truth = []
    for index, picture in zip(indices, pictures, strict=True):
        instances = [item for item in dataset.get_data_info(index)['instances'] if item.get('mask')]
        masks = np.array([_decoded(item['mask'], picture.shape[:2]) for item in instances])
        boxes = np.array([item['bbox'] for item in instances])
        truth.append(
            overlay_instances(in_grey(picture), masks, [item['bbox_label'] for item in instances], colours, boxes)
        )
    rows = [PictureRow('picture', pictures), PictureRow('truth', truth)]
    for label, run in runs:
        drawn = []
        for index, picture in zip(indices, pictures, strict=True):
            found = run.predict(index).pred_instances
            found = found[found.scores >= score_threshold].cpu().numpy()
            masks = np.asarray(found.masks)
            drawn.append(overlay_instances(in_grey(picture), masks, found.labels.tolist(), colours, found.bboxes))
        rows.append(PictureRow(label, drawn))
    return rows


def segmentation_rows(runs: Sequence[tuple[str, TrainedRun]], num_pictures: int) -> list[PictureRow]:
    """Picture, truth, then each run's label map, tinted by class; class 0 is background and stays grey."""
    dataset = runs[0][1].dataset
    colours = colour_table(len(dataset.metainfo['classes']) - 1)
    indices = evenly_spaced(len(dataset), num_pictures)
    pictures = [_picture(dataset, index) for index in indices]
    truth = []
    for index, picture in zip(indices, pictures, strict=True):
        with Image.open(dataset.get_data_info(index)['seg_map_path']) as labels:
            truth.append(overlay_labels(in_grey(picture), np.asarray(labels), colours))
    rows = [PictureRow('picture', pictures), PictureRow('truth', truth)]
    for label, run in runs:
        drawn = []
        for index, picture in zip(indices, pictures, strict=True):
            labels = run.predict(index).pred_sem_seg.data[0].cpu().numpy()
            drawn.append(overlay_labels(in_grey(picture), labels, colours))
        rows.append(PictureRow(label, drawn))
    return rows


def class_legend(run: TrainedRun) -> list[tuple[str, tuple[int, ...]]]:
    """(name, RGB) of the classes as the rows above colour them; a segmentor's background has no colour."""
    names = list(run.dataset.metainfo['classes'])
    names = names[1:] if run.scope == 'mmseg' else names
    return [(name, tuple(colour)) for name, colour in zip(names, colour_table(len(names)).tolist(), strict=True)]


def _picture(dataset: torch.utils.data.Dataset, index: int) -> np.ndarray:
    with Image.open(dataset.get_data_info(index)['img_path']) as image:
        return np.asarray(image.convert('RGB'))


def _decoded(mask: dict | list, shape: tuple[int, int]) -> np.ndarray:
    """Bool mask of COCO's polygons or RLE, compressed or not."""
    from pycocotools import mask as coco_mask

    if isinstance(mask, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(mask, *shape))
    elif isinstance(mask['counts'], list):
        mask = coco_mask.frPyObjects(mask, *shape)
    return coco_mask.decode(mask).astype(bool)
