"""One row of an ablation table at a small scale: pretrain, measure the loss on held-out pictures, fine-tune, count what
is right.

demo scenes, drawn in memory --pretrain--> checkpoint --held_out_loss, fine_tune--> numbers

The models are those of the configs, shrunk; the loops are short ones of our own, so that a run takes seconds and no
process is started. Touch this file for how a small run trains; not for the rows (ablations.py) nor for files and
resuming (tools/ablate.py). Guarded by tests/analysis/test_ablations.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image
from torch import Tensor, nn

import mmcnx2
from mmcnx2.checkpoint import load_pretrained_backbone
from mmcnx2.datasets.demo_scenes import CLASSES, draw_scene
from mmcnx2.models.fcmae.masking import random_visible

from .ablations import AblationRow, AblationTable

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PAPER_DECODER_CHANNELS = 512
STREAMS = dict(unlabelled=0, held_out=1, train=2, test=3)  # second word of a scene's seed: no picture is in two sets
EVALUATION_BATCH = 128


@dataclass(frozen=True)
class SmallScale:
    """Sizes of a small sweep; every number that its results depend on. `decoder_channels` stands for the paper's 512,
    other widths in proportion."""

    depths: tuple[int, int, int, int] = (1, 1, 2, 1)
    channels: tuple[int, int, int, int] = (16, 32, 64, 128)
    decoder_channels: int = 128
    scene_size: int = 128
    crop_size: int = 96
    num_unlabelled: int = 256
    num_held_out: int = 128
    num_train: int = 256
    num_test: int = 384
    label_size: int = 64
    epochs: int = 8
    batch_size: int = 8
    lr: float = 3e-3
    fine_tuning_epochs: int = 8
    fine_tuning_batch_size: int = 16
    fine_tuning_lr: float = 2e-3


@dataclass(frozen=True)
class SmallData:
    """Normalised pictures (N, 3, S, S) and class numbers (N,)."""

    unlabelled: Tensor
    held_out: Tensor
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def draw_data(scale: SmallScale, seed: int = 0) -> SmallData:
    """Demo scenes whole, and the largest object of further scenes cut out, with its class."""

    def scenes(stream: str, count: int) -> Iterator:
        return (draw_scene([seed, STREAMS[stream], index], scale.scene_size) for index in range(count))

    def labelled(stream: str, count: int) -> tuple[Tensor, Tensor]:
        pairs = [_largest_object(scene, scale.label_size) for scene in scenes(stream, count)]
        return _normalised([picture for picture, _ in pairs]), torch.tensor([label for _, label in pairs])

    whole = [
        _normalised([np.asarray(scene.image_HWC) for scene in scenes(stream, count)])
        for stream, count in (('unlabelled', scale.num_unlabelled), ('held_out', scale.num_held_out))
    ]
    return SmallData(*whole, *labelled('train', scale.num_train), *labelled('test', scale.num_test))


def _largest_object(scene, size: int) -> tuple[np.ndarray, int]:
    """A square picture around the object that most pixels show, and its class."""
    counts = np.bincount(scene.instance_HW.ravel(), minlength=2)[1:]
    instance = int(counts.argmax()) + 1
    rows, columns = np.nonzero(scene.instance_HW == instance)
    centre_y, centre_x = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    half = max(np.ptp(rows), np.ptp(columns)) / 2 + 4
    box = (centre_x - half, centre_y - half, centre_x + half, centre_y + half)
    picture = Image.fromarray(np.asarray(scene.image_HWC))
    cut = picture.transform((size, size), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    return np.asarray(cut), int(scene.classes[instance - 1])


def _normalised(pictures: list[np.ndarray]) -> Tensor:
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


# ---- models


def pretraining_model(table: AblationTable, row: AblationRow, scale: SmallScale) -> nn.Module:
    """FCMAE of the row's config and options, shrunk."""
    cfg = Config.fromfile(mmcnx2.configs_dir() / table.pretraining)
    cfg.merge_from_dict(dict(row.options))
    model = cfg.model
    model.data_preprocessor = None
    model.backbone.arch = _arch(scale)
    model.neck.decoder_channels = model.neck.decoder_channels * scale.decoder_channels // PAPER_DECODER_CHANNELS
    return MODELS.build(model)


def fine_tuning_backbone(table: AblationTable, row: AblationRow, scale: SmallScale, checkpoint: Path) -> nn.Module:
    """The backbone of the row's fine-tuning config and options, shrunk, with the checkpoint's weights."""
    cfg = Config.fromfile(mmcnx2.configs_dir() / table.fine_tuning)
    cfg.merge_from_dict(row.fine_tuning_options)
    settings = cfg.model.backbone
    change_grn = settings.pop('init_cfg').get('change_grn', False)
    backbone = MODELS.build(dict(settings, arch=_arch(scale), drop_path_rate=0.0))
    load_pretrained_backbone(backbone, checkpoint, change_grn=change_grn)
    return backbone


def _arch(scale: SmallScale) -> dict:
    return dict(depths=list(scale.depths), channels=list(scale.channels))


# ---- training


def pretrain(model: nn.Module, images: Tensor, scale: SmallScale, seed: int) -> None:
    """FCMAE in place: random crops and flips, AdamW, a tenth of the steps warmup, then cosine to 0."""
    generator = torch.Generator().manual_seed(seed)
    steps_per_epoch = len(images) // scale.batch_size
    optimizer = torch.optim.AdamW(_without_decay(model, 0.05), lr=scale.lr, betas=(0.9, 0.95))
    batches = _batches(images, None, scale.batch_size, scale.epochs, generator)
    model.train()
    for step, (batch, _) in enumerate(batches):
        _set_lr(optimizer, scale.lr, step, scale.epochs * steps_per_epoch)
        top, left = torch.randint(scale.scene_size - scale.crop_size + 1, (2,), generator=generator).tolist()
        crops = batch[..., top : top + scale.crop_size, left : left + scale.crop_size]
        seeds = torch.randint(2**31, (len(crops),), generator=generator)
        visible = random_visible(len(crops), _grid(model, crops), model.mask_ratio, seeds=seeds)
        _step(optimizer, model.loss(crops, visible=visible)['loss'])


@torch.no_grad()
def held_out_loss(model: nn.Module, images: Tensor, crop_size: int) -> float:
    """Mean loss in evaluation mode on the centre of each picture, with masks that depend on its place alone."""
    model.eval()
    start = (images.shape[-1] - crop_size) // 2
    images = images[..., start : start + crop_size, start : start + crop_size]
    visible = random_visible(len(images), _grid(model, images), model.mask_ratio, seeds=range(len(images)))
    parts = [
        model.loss(images[i : i + EVALUATION_BATCH], visible=visible[i : i + EVALUATION_BATCH])['loss'].item()
        * len(images[i : i + EVALUATION_BATCH])
        for i in range(0, len(images), EVALUATION_BATCH)
    ]
    return sum(parts) / len(images)


def fine_tune(backbone: nn.Module, data: SmallData, scale: SmallScale, seed: int) -> float:
    """Top-1 in per cent on the test pictures after training backbone and a linear classifier together."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(backbone, nn.Linear(scale.channels[-1], len(CLASSES)))
    steps = scale.fine_tuning_epochs * (len(data.train) // scale.fine_tuning_batch_size)
    optimizer = torch.optim.AdamW(_without_decay(model, 0.05), lr=scale.fine_tuning_lr)
    model.train()
    batches = _batches(data.train, data.train_labels, scale.fine_tuning_batch_size, scale.fine_tuning_epochs, generator)
    for step, (images, labels) in enumerate(batches):
        _set_lr(optimizer, scale.fine_tuning_lr, step, steps)
        _step(optimizer, F.cross_entropy(model[1](backbone(images)[0]), labels))
    model.eval()
    with torch.no_grad():
        logits = [model[1](backbone(part)[0]) for part in data.test.split(EVALUATION_BATCH)]
    return 100 * (torch.cat(logits).argmax(1) == data.test_labels).double().mean().item()


def run_row(
    table: AblationTable, row: AblationRow, scale: SmallScale, data: SmallData, seed: int, folder: Path
) -> dict[str, float]:
    """dict(top1, loss) of one row and seed; the checkpoint in between is kept in `folder` as it would be by a run."""
    torch.manual_seed(seed)
    model = pretraining_model(table, row, scale)
    pretrain(model, data.unlabelled, scale, seed)
    loss = held_out_loss(model, data.held_out, scale.crop_size)
    checkpoint = folder / 'pretrained.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    torch.manual_seed(seed)
    backbone = fine_tuning_backbone(table, row, scale, checkpoint)
    return dict(top1=fine_tune(backbone, data, scale, seed), loss=loss)


def settings_of(table: AblationTable, row: AblationRow, scale: SmallScale, seed: int) -> dict:
    """What a run's result depends on, apart from the code; alike for a row that stands in two tables."""
    return dict(
        pretraining=table.pretraining,
        fine_tuning=table.fine_tuning,
        options=dict(row.options),
        fine_tuning_options=row.fine_tuning_options,
        scale=asdict(scale),
        seed=seed,
    )


def _grid(model: nn.Module, images: Tensor) -> tuple[int, int]:
    return images.shape[-2] // model.patch_size, images.shape[-1] // model.patch_size


def _without_decay(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weights decay; biases, norms, GRN and the mask token do not."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [dict(params=decayed, weight_decay=weight_decay), dict(params=others, weight_decay=0.0)]


def _set_lr(optimizer: torch.optim.Optimizer, lr: float, step: int, num_steps: int) -> None:
    warmup = max(1, num_steps // 10)
    share = (
        (step + 1) / warmup if step < warmup else (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup))) / 2
    )
    for group in optimizer.param_groups:
        group['lr'] = lr * share


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _batches(
    images: Tensor, labels: Tensor | None, batch_size: int, epochs: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Whole batches in a new order each epoch, each mirrored or not."""
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for places in order[: len(order) // batch_size * batch_size].split(batch_size):
            batch = images[places]
            if torch.rand((), generator=generator) < 0.5:
                batch = batch.flip(-1)
            yield batch, None if labels is None else labels[places]
