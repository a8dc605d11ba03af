"""Work dirs as trainings leave them, written by hand: logs, text logs, configs, checkpoint names, without training.

Touch it for what a test of reports needs to find in a folder. Used by tests/analysis/test_run_facts.py,
tests/analysis/test_run_report.py, tests/test_report.py and tests/test_report_browser.py.
"""

import json
import math
from datetime import datetime, timedelta
from pathlib import Path

from PIL import Image

CONFIG = """
default_scope = '{scope}'
model = dict(type='{model}', backbone=dict(type='mmcnx2.ConvNeXtV2', arch='atto', drop_path_rate={drop_path_rate}))
train_dataloader = dict(batch_size=4, dataset=dict(type='Pictures', pipeline=[dict(type='Load'), dict(type='Flip', prob={flip})]))
train_cfg = dict({schedule})
optim_wrapper = dict(optimizer=dict(type='AdamW', lr={lr}))
randomness = dict(seed={seed})
work_dir = '{work_dir}'
"""  # noqa: E501
HEAD = """{time} - mmengine - INFO -
------------------------------------------------------------
System environment:
    sys.platform: linux
    Python: 3.11.7 (main, May  9 2026) [GCC 12.2.0]
    CUDA available: {cuda}
{gpu}
    PyTorch: 2.12.1+cu130
    MMEngine: 0.10.12

Runtime environment:
    seed: 17
    Distributed launcher: none
    GPU number: {processes}
------------------------------------------------------------
"""


def write_config(folder: Path, name: str = 'model_task.py', **changes: object) -> None:
    values = dict(
        scope='mmdet',
        model='MaskRCNN',
        drop_path_rate=0.1,
        flip=0.5,
        schedule="type='IterBasedTrainLoop', max_iters=100",
        lr=0.001,
        seed=0,
        work_dir=folder,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(CONFIG.format(**{**values, **changes}))


def write_attempt(
    folder: Path,
    lines: list[dict],
    start: str = '20260101_000000',
    seconds: int = 60,
    processes: int = 1,
    gpu: str = '',
) -> None:
    """One start of a run: scalars.json and a text log that lasts `seconds`."""
    attempt = folder / start
    (attempt / 'vis_data').mkdir(parents=True)
    (attempt / 'vis_data' / 'scalars.json').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    began = datetime.strptime(start, '%Y%m%d_%H%M%S')
    ended = began + timedelta(seconds=seconds)
    head = HEAD.format(
        time=f'{began:%Y/%m/%d %H:%M:%S}',
        cuda=bool(gpu),
        gpu=f'    GPU 0: {gpu}' if gpu else '',
        processes=processes,
    )
    (attempt / f'{start}.log').write_text(f'{head}{ended:%Y/%m/%d %H:%M:%S} - mmengine - INFO - done\n')


def finish(folder: Path, checkpoint: str) -> None:
    """The names that a run leaves at its end; nobody can load the file."""
    (folder / checkpoint).write_bytes(b'no checkpoint')
    (folder / 'last_checkpoint').write_text(str(folder / checkpoint))


def train_lines(steps: range, start: float = 2.0, end: float = 0.5, total: int = 100, **more: float) -> list[dict]:
    """Training entries whose loss falls from `start` to `end`, with a wobble, and whose learning rate falls to 0."""
    return [
        {
            'base_lr': 1e-3 * (1 - step / total),
            'lr': 1e-4 * (1 - step / total),
            'data_time': 0.01,
            'loss': start * (end / start) ** (step / total) * (1 + 0.05 * math.sin(step)),
            'loss_cls': 0.6 * start * (end / start) ** (step / total),
            'loss_bbox': 0.4 * start * (end / start) ** (step / total),
            'grad_norm': 3.0 + math.sin(step),
            'time': 0.25,
            'iter': step,
            'step': step,
            **more,
        }
        for step in steps
    ]


def merged(train: list[dict], validations: dict[int, dict]) -> list[dict]:
    """The entries in the order in which a run writes them; a validation follows the step it is keyed by."""
    lines = []
    for line in train:
        lines.append(line)
        if line['step'] in validations:
            lines.append(validations[line['step']])
    return lines


def detection_run(folder: Path, best: float = 0.4, **config: object) -> None:
    """100 iterations, validated at 50 and 100 by a logger that counts epochs (so with step 0)."""
    write_config(folder, 'mask-rcnn_demo.py', **config)
    validations = {
        50: {'coco/bbox_mAP': best, 'coco/segm_mAP': best - 0.05, 'coco/bbox_mAP_50': 0.6, 'time': 0.1, 'step': 0},
        100: {'coco/bbox_mAP': best - 0.1, 'coco/segm_mAP': best, 'coco/bbox_mAP_50': 0.55, 'time': 0.1, 'step': 0},
    }
    write_attempt(folder, merged(train_lines(range(2, 101, 2)), validations))
    finish(folder, 'iter_100.pth')


def segmentation_run(folder: Path, **config: object) -> None:
    """100 iterations, stopped at 60, resumed from 50; validated every 25 by a logger that counts iterations."""
    write_config(folder, 'upernet_demo.py', scope='mmseg', model='EncoderDecoder', **config)
    first = {25: {'mIoU': 30.0, 'mAcc': 40.0, 'step': 25}, 50: {'mIoU': 45.5, 'mAcc': 50.0, 'step': 50}}
    second = {75: {'mIoU': 61.25, 'mAcc': 70.0, 'step': 75}, 100: {'mIoU': 60.0, 'mAcc': 71.0, 'step': 100}}
    write_attempt(folder, merged(train_lines(range(5, 61, 5)), first), '20260101_000000', 30)
    write_attempt(folder, merged(train_lines(range(55, 101, 5), start=1.8), second), '20260101_120000', 90)
    finish(folder, 'iter_100.pth')


def pretraining_run(folder: Path) -> None:
    """4 epochs of 10 iterations on two processes with a GPU."""
    write_config(
        folder, 'fcmae_demo.py', scope='mmpretrain', model='mmcnx2.FCMAE',
        schedule="type='EpochBasedTrainLoop', max_epochs=4",
    )  # fmt: skip
    lines = [
        {**line, 'epoch': 1 + (line['step'] - 1) // 10, 'memory': 2048 + line['step']}
        for line in train_lines(range(5, 41, 5), start=1.0, end=0.7, total=40)
    ]
    write_attempt(folder, lines, seconds=4000, processes=2, gpu='NVIDIA Test')
    finish(folder, 'epoch_4.pth')


def measured_layers(distances: list[float], num_dead: int = 0) -> dict[str, dict]:
    """What mmcnx2.CollapseHook writes for a backbone with so many blocks; after GRN channels are a tenth less alike."""
    layers = {}
    for place, distance in enumerate(distances):
        for ending, value in (('gelu', distance), ('grn', 1.1 * distance)):
            layers[f'stages.0.{place}.{ending}'] = {
                'num_images': 16, 'num_channels': 160, 'distance': value, 'distance_std': 0.01, 'effective_rank': 20.0,
                'max_rank': 160, 'num_dead': num_dead, 'num_saturated': None if place == 0 else 2,
            }  # fmt: skip
    return layers


def pictures_during_training(folder: Path, measured: dict[int, dict[str, dict]]) -> None:
    """What the hooks of pretraining leave in a work dir: a sheet and a measurement per epoch that is in `measured`."""
    for epoch, layers in measured.items():
        for place, content in (('reconstructions', None), ('collapse', json.dumps(layers, indent=2) + '\n')):
            path = folder / place / f'epoch_{epoch}.{"json" if content else "png"}'
            path.parent.mkdir(exist_ok=True)
            if content:
                path.write_text(content)
            else:
                Image.new('RGB', (30, 20), (200, 10 * epoch, 0)).save(path)
        log = next(folder.glob('*/vis_data/scalars.json'))
        lines = []
        for line in log.read_text().splitlines(keepends=True):
            lines.append(line)
            if json.loads(line).get('iter') == 10 * epoch:  # ten iterations per epoch
                lines.append(json.dumps({'reconstruction/error_0.6': 1 - epoch / 10, 'step': epoch}) + '\n')
        log.write_text(''.join(lines))


def classification_run(folder: Path) -> None:
    """3 epochs, validated after each."""
    write_config(
        folder, 'convnextv2_in1k.py', scope='mmpretrain', model='ImageClassifier',
        schedule="type='EpochBasedTrainLoop', max_epochs=3", lr=0.02,
    )  # fmt: skip
    lines = [
        {**line, 'epoch': 1 + (line['step'] - 1) // 10}
        for line in train_lines(range(10, 31, 10), start=7.0, end=3.0, total=30)
    ]
    validations = {
        10 * epoch: {'accuracy/top1': top1, 'accuracy/top5': 2 * top1, 'step': epoch}
        for epoch, top1 in ((1, 10.0), (2, 30.0), (3, 25.0))
    }
    write_attempt(folder, merged(lines, validations))
    finish(folder, 'epoch_3.pth')
