"""What trained detectors and segmentors say about a few validation pictures, drawn beside the truth.

The pictures, their preprocessing and their truth come from the validation set of the config that the run stored in
its work dir, so nothing here knows a dataset. Touch it for which pictures are shown and how. Metrics are not computed
here, classes not counted (evaluation.py). Guarded by tests/test_demo.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image

from mmcnx2.checkpoint import read_checkpoint

from .figures import PictureRow, colour_table, in_grey, overlay_instances, overlay_labels
from .run_log import last_checkpoint, stored_config


@dataclass
class TrainedRun:
    """A run's model in eval mode, on the GPU where there is one, and its validation set."""

    scope: str
    model: torch.nn.Module
    dataset: torch.utils.data.Dataset

    @classmethod
    def load(cls, work_dir: str | Path) -> TrainedRun:
        """From the config and the last checkpoint in a work dir; every entry must fit."""
        cfg = Config.fromfile(stored_config(work_dir))
        scope = cfg.get('default_scope', 'mmengine')
        if not cfg.get('val_dataloader'):
            raise ValueError(f'{stored_config(work_dir)} has no val_dataloader: there are no pictures to look at')
        cfg.model.get('backbone', {}).pop('init_cfg', None)  # the checkpoint below holds the backbone too
        with DefaultScope.overwrite_default_scope(scope):
            model = MODELS.build(cfg.model)
            dataset = DATASETS.build(cfg.val_dataloader.dataset)
        content = read_checkpoint(last_checkpoint(work_dir))
        model.load_state_dict(content.get('state_dict', content))
        return cls(scope, model.eval().to(get_device()), dataset)

    @property
    def classes(self) -> list[str]:
        names = self.dataset.metainfo.get('classes')
        if not names:
            raise ValueError('its validation set does not name its classes (metainfo of the dataset)')
        return list(names)

    @torch.no_grad()
    def predict(self, index: int) -> object:
        """The data sample of picture `index` with predictions, on the CPU."""
        with DefaultScope.overwrite_default_scope(self.scope):
            return self.model.test_step(pseudo_collate([self.dataset[index]]))[0].cpu()

    @torch.no_grad()
    def predict_all(self) -> Iterator[object]:
        """The data samples of all pictures in order, on the CPU; large sets are read by several processes."""
        loader = torch.utils.data.DataLoader(
            self.dataset, collate_fn=pseudo_collate, num_workers=4 if len(self.dataset) > 500 else 0
        )
        with DefaultScope.overwrite_default_scope(self.scope):
            for data in loader:
                yield self.model.test_step(data)[0].cpu()


@dataclass(frozen=True)
class Sheet:
    """Rows of pictures and (name, RGB) of the classes that occur in them."""

    rows: Sequence[PictureRow]
    legend: Sequence[tuple[str, tuple[int, ...]]]


def evenly_spaced(total: int, wanted: int) -> list[int]:
    """At most `wanted` indices of 0..total-1, spread over the whole range."""
    wanted = min(total, wanted)
    return [(2 * i + 1) * total // (2 * wanted) for i in range(wanted)]


def detection_sheet(runs: Sequence[tuple[str, TrainedRun]], num_pictures: int, score_threshold: float) -> Sheet:
    """Picture, truth, then each run's instances that score the threshold or more; masks tinted, boxes drawn."""
    dataset = runs[0][1].dataset
    colours = colour_table(len(dataset.metainfo['classes']))
    indices = evenly_spaced(len(dataset), num_pictures)
    pictures = [_picture(dataset, index) for index in indices]
    seen: set[int] = set()

    def drawn(picture: np.ndarray, masks: np.ndarray, labels: list[int], boxes: np.ndarray) -> np.ndarray:
        seen.update(labels)
        return overlay_instances(in_grey(picture), masks, labels, colours, boxes)

    truth = []
    for index, picture in zip(indices, pictures, strict=True):
        instances = dataset.get_data_info(index)['instances']
        shape = picture.shape[:2]
        masks = [_decoded(item['mask'], shape) if item.get('mask') else np.zeros(shape, bool) for item in instances]
        boxes = np.array([item['bbox'] for item in instances])
        truth.append(drawn(picture, np.array(masks), [item['bbox_label'] for item in instances], boxes))
    rows = [PictureRow('picture', pictures), PictureRow('truth', truth)]
    for label, run in runs:
        predicted = []
        for index, picture in zip(indices, pictures, strict=True):
            found = run.predict(index).pred_instances
            found = found[found.scores >= score_threshold].numpy()
            no_masks = np.zeros((len(found.labels), *picture.shape[:2]), bool)
            masks = np.asarray(found.masks) if 'masks' in found else no_masks
            predicted.append(drawn(picture, masks, found.labels.tolist(), found.bboxes))
        rows.append(PictureRow(label, predicted))
    return Sheet(rows, _legend(runs[0][1].classes, colours, seen))


def segmentation_sheet(runs: Sequence[tuple[str, TrainedRun]], num_pictures: int) -> Sheet:
    """Picture, truth, then each run's label map, tinted by class; a first class named background stays grey."""
    dataset, classes = runs[0][1].dataset, runs[0][1].classes
    num_grey = 1 if classes[0].lower() == 'background' else 0
    colours = colour_table(len(classes) - num_grey)
    indices = evenly_spaced(len(dataset), num_pictures)
    pictures = [_picture(dataset, index) for index in indices]
    seen: set[int] = set()

    def drawn(picture: np.ndarray, labels: torch.Tensor) -> np.ndarray:
        labels = labels.squeeze().numpy().astype(int)
        seen.update(np.unique(labels).tolist())
        # 0 stays grey, and so does what lies beyond the classes: pixels without a truth
        return overlay_labels(in_grey(picture), labels + 1 - num_grey, colours)

    samples = [[run.predict(index) for index in indices] for _, run in runs]
    truth = [drawn(picture, sample.gt_sem_seg.data) for picture, sample in zip(pictures, samples[0], strict=True)]
    rows = [PictureRow('picture', pictures), PictureRow('truth', truth)]
    for (label, _), mine in zip(runs, samples, strict=True):
        predicted = [drawn(picture, sample.pred_sem_seg.data) for picture, sample in zip(pictures, mine, strict=True)]
        rows.append(PictureRow(label, predicted))
    return Sheet(rows, _legend(classes[num_grey:], colours, {label - num_grey for label in seen}))


def _legend(names: Sequence[str], colours: np.ndarray, seen: set[int]) -> list[tuple[str, tuple[int, ...]]]:
    """(name, RGB) of the classes in `seen`."""
    return [
        (name, tuple(colour))
        for label, (name, colour) in enumerate(zip(names, colours.tolist(), strict=True))
        if label in seen
    ]


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
