"""Feature collapse in small: ConvNeXt V1 with FCMAE, V2 with FCMAE, V2 supervised; one budget, several lengths.

    python tools/benchmark/collapse_experiment.py CLASS_FOLDERS --work-dir work_dirs/collapse [--epochs 20 60]
        [--seeds 3] [--arch atto] [--runs v1-fcmae-20-seed0 ... | --report-only] [--out results.md]

CLASS_FOLDERS (see class_folders.py) holds a folder of pictures per class; every tenth picture is held out, FCMAE sees
the others without labels. All runs have the batches, crops, optimiser and learning rate of
configs/demo/fcmae_convnextv2-atto_demo.py. A run that is complete is not trained again, one that was ended goes on;
--runs trains these alone. When all are complete (with --report-only: of those that are), the measures of
tools/analyze_collapse.py on the held-out pictures go into --out (Markdown), a .json and a .png beside it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmcnx2.analysis import collapse_report
from mmcnx2.analysis.activations import AFTER_GRN, BEFORE_GRN
from mmcnx2.analysis.collapse import Collapse
from mmcnx2.analysis.comparison import format_values, markdown_table
from mmcnx2.analysis.figures import Line, Panel, draw_curves
from mmcnx2.analysis.pictures import load_pictures
from mmcnx2.analysis.provenance import machine, provenance, versions
from mmcnx2.analysis.run_log import Curve, RunLog, last_checkpoint, read_run, stored_config
from mmcnx2.analysis.trained_models import load_trained_backbone
from mmcnx2.atomic_write import write_atomically
from mmcnx2.datasets.labelled_images import find_labelled_images
from mmcnx2.engine.user_errors import explain_errors

SIZE, BATCH_SIZE = 128, 64
FCMAE = """
_base_ = '{{{{$MMCNX2_CONFIGS:}}}}/demo/fcmae_convnextv2-atto_demo.py'
model = dict(backbone=dict(arch={arch!r}{v1}))
train_dataloader = dict(dataset=dict(source={train!r}))
train_cfg = dict(max_epochs={epochs})
randomness = dict(seed={seed})
default_hooks = dict(
    checkpoint=dict(interval=10), reconstruction=dict(interval=0),
    collapse=dict(interval=5, images={held_out!r}, num_images=32))
"""
SUPERVISED = """
_base_ = [
    '{{{{$MMCNX2_CONFIGS:}}}}/_base_/models/classifier_convnextv2.py',
    '{{{{$MMCNX2_CONFIGS:}}}}/_base_/runtime/mmpretrain_classification.py']
model = dict(
    backbone=dict(arch={arch!r}), data_preprocessor=dict(num_classes={num_classes}),
    head=dict(num_classes={num_classes}, in_channels={channels},
              init_cfg=dict(_delete_=True, type='TruncNormal', layer='Linear', std=0.02, bias=0.)))
pipeline = [
    dict(type='mmcnx2.LoadImage'),
    dict(type='RandomResizedCrop', scale=128, crop_ratio_range=(0.2, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]
test_pipeline = [
    dict(type='mmcnx2.LoadImage'), dict(type='ResizeEdge', scale=146, edge='short', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=128), dict(type='PackInputs')]
loader = dict(batch_size=64, num_workers=1, persistent_workers=True, collate_fn=dict(type='default_collate'))
train_dataloader = dict(
    drop_last=True, sampler=dict(type='mmcnx2.EpochSeededSampler', shuffle=True), **loader,
    dataset=dict(type='CustomDataset', ann_file={train_labels!r}, data_prefix='', pipeline=pipeline))
val_dataloader = dict(
    sampler=dict(type='DefaultSampler', shuffle=False), **loader,
    dataset=dict(type='CustomDataset', ann_file={held_out_labels!r}, data_prefix='', pipeline=test_pipeline))
val_evaluator = dict(type='Accuracy', topk=(1,))
val_cfg = dict()
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs={epochs}, val_interval={epochs})
randomness = dict(seed={seed})
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.05),
    constructor='mmcnx2.LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0., begin=1, by_epoch=True, convert_to_iter_based=True)]
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=10, save_best=None, max_keep_ckpts=1),
    collapse=dict(type='mmcnx2.CollapseHook', interval=5, images={held_out!r}, num_images=32))
log_processor = dict(window_size=10)
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend='gloo'))
"""
KINDS = {'v1-fcmae': 'V1, FCMAE', 'v2-fcmae': 'V2, FCMAE', 'v2-supervised': 'V2, supervised'}


def write_lists(folders: Path, work_dir: Path) -> dict[str, str]:
    """The split as lists of files; the same at every call."""
    images = find_labelled_images(folders)
    pairs = [(str(Path(path).absolute()), label) for path, label in zip(images.paths, images.labels, strict=True)]
    parts = dict(train=[pair for i, pair in enumerate(pairs) if i % 10], held_out=pairs[::10])
    found = dict(num_classes=len(images.classes))
    work_dir.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        for kind, lines in ((name, [path for path, _ in part]), (f'{name}_labels', [f'{p} {n}' for p, n in part])):
            file = (work_dir / f'{kind}.txt').absolute()
            write_atomically(file, '\n'.join(lines) + '\n')  # parallel calls read it
            found[kind] = str(file)
        found[f'num_{name}'] = len(part)
    return found


class Run(NamedTuple):
    kind: str
    epochs: int
    seed: int

    @property
    def folder(self) -> str:
        return f'{self.kind}-{self.epochs}-seed{self.seed}'

    @property
    def name(self) -> str:
        """What all seeds of it are called in tables and figures."""
        return f'{KINDS[self.kind]}, {self.epochs} epochs'


UNTRAINED = 'V2, untrained'


def is_complete(run: Run, args: argparse.Namespace) -> bool:
    return (args.work_dir / run.folder / f'epoch_{run.epochs}.pth').is_file()


def train(run: Run, lists: dict, args: argparse.Namespace) -> None:
    if is_complete(run, args):
        return
    from mmcnx2.models.backbones.convnext_v2 import ARCHS

    text = (SUPERVISED if run.kind == 'v2-supervised' else FCMAE).format(
        arch=args.arch,
        channels=ARCHS[args.arch]['channels'][-1],
        v1=', use_grn=False, layer_scale_init_value=1e-6' if run.kind == 'v1-fcmae' else '',
        epochs=run.epochs,
        seed=run.seed,
        **lists,
    )
    work_dir = args.work_dir / run.folder
    config = args.work_dir / f'{run.folder}.py'
    write_atomically(config, text)
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(config), '--work-dir', str(work_dir), '--resume']
    started = time.time()
    with (args.work_dir / f'{run.folder}.log').open('w') as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise ChildProcessError(f'{run.folder} ended with exit code {code}; see {args.work_dir / run.folder}.log')
    print(f'{run.folder}: {time.time() - started:.0f} s', flush=True)


@dataclass
class Measured:
    """All seeds of a run: what was measured in each layer, and what their logs say."""

    layers: list[dict[str, Collapse]] = field(default_factory=list)
    depths: dict[str, float] = field(default_factory=dict)
    logs: list[RunLog] = field(default_factory=list)

    def values(self, layer: str, value: Callable[[Collapse], float]) -> list[float]:
        return [value(seed[layer]) for seed in self.layers]

    def average(self) -> dict[str, Collapse]:
        """Distance and effective rank as means over the seeds; the rest is that of the first."""
        return {
            layer: replace(
                one,
                distance=fmean(self.values(layer, lambda found: found.distance)),
                effective_rank=fmean(self.values(layer, lambda found: found.effective_rank)),
            )
            for layer, one in self.layers[0].items()
        }


def measure(runs: list[Run], lists: dict, args: argparse.Namespace) -> dict[str, Measured]:
    paths = Path(lists['held_out']).read_text(errors='surrogateescape').split('\n')[:-1]
    found: dict[str, Measured] = {}
    v2 = next(run for run in runs if run.kind.startswith('v2'))  # whose config the untrained model is built from
    for run in [None, *runs]:
        work_dir = args.work_dir / (run or v2).folder
        cfg = Config.fromfile(stored_config(work_dir))
        backbone = load_trained_backbone(cfg, last_checkpoint(work_dir) if run else 'random')
        images = backbone.images(load_pictures(cfg, paths, (SIZE, SIZE)))
        measured = found.setdefault(run.name if run else UNTRAINED, Measured())
        measured.layers.append(collapse_report.measure_collapse(backbone.model, images.split(16)))
        measured.depths = collapse_report.depths_of(backbone.model, list(measured.layers[-1]))
        if run:
            measured.logs.append(read_run(work_dir))
    return found


def share_of_rank(one: Collapse) -> float:
    return one.effective_rank / one.max_rank


def summary_rows(name: str, measured: Measured) -> list[list[str]]:
    """A row for all layers before GRN and one for those after it: each value over the blocks, then over the seeds."""
    end = []
    if measured.logs:
        losses = [log.train['loss'].values for log in measured.logs]
        end.append(f'{fmean(loss[0] for loss in losses):.3f} to {format_values([loss[-1] for loss in losses])}')
        accuracies = [log.val['accuracy/top1'].values[-1] for log in measured.logs if 'accuracy/top1' in log.val]
        if accuracies:
            end.append(f'held-out top-1 {format_values(accuracies, 1)}')
    rows = []
    for ending, label in ((BEFORE_GRN, 'before GRN'), (AFTER_GRN, 'after GRN')):
        seeds = [[one for layer, one in found.items() if layer.endswith(f'.{ending}')] for found in measured.layers]
        if not seeds[0]:
            continue
        rows.append(
            [
                name,
                label,
                format_values([fmean(one.distance for one in seed) for seed in seeds]),
                format_values([min(one.distance for one in seed) for seed in seeds]),
                format_values([fmean(map(share_of_rank, seed)) for seed in seeds]),
                str(sum(one.num_dead for seed in seeds for one in seed)),
                str(sum(one.num_saturated for seed in seeds for one in seed)),
                ', '.join(end) or '-',
            ]
        )
    return rows


def layer_rows(name: str, measured: Measured) -> list[list[str]]:
    return [
        [
            name,
            layer,
            format_values(measured.values(layer, lambda one: one.distance)),
            format_values(measured.values(layer, share_of_rank)),
        ]
        for layer in measured.layers[0]
    ]


def training_line(name: str, measured: Measured) -> Line:
    """Distance before GRN in training, the mean over blocks and seeds."""
    curves = [
        curve
        for log in measured.logs
        for layer, curve in log.val.items()
        if layer.startswith('collapse/distance/') and layer.endswith(f'.{BEFORE_GRN}')
    ]
    return Line(name, Curve(curves[0].steps, tuple(map(fmean, zip(*(curve.values for curve in curves), strict=True)))))


def report(found: dict[str, Measured], lists: dict, args: argparse.Namespace) -> None:
    header = ['run', 'layer', 'mean distance', 'least distance', 'eff. rank / possible', 'dead', 'saturated', 'loss']
    ending = f' {max(args.epochs)} epochs'
    shown = {name: one for name, one in found.items() if name == UNTRAINED or name.endswith(ending)}
    panels = collapse_report.panels(
        {name: one.average() for name, one in shown.items()}, {name: one.depths for name, one in shown.items()}
    )[:3]  # distance and rank before GRN, distance after it
    lines = [training_line(name, one) for name, one in shown.items() if one.logs]
    panels.append(Panel('Cosine distance in training, before GRN', 'epoch', 'mean over blocks', lines))
    draw_curves(panels, args.out.with_suffix('.png'))
    command = shlex.join(['python', 'tools/benchmark/collapse_experiment.py', *sys.argv[1:]])
    origin = dict(machine=machine(), versions=versions(), finished=time.strftime('%Y-%m-%d'))
    layers = {
        name: {
            layer: dict(depth=measured.depths[layer], seeds=[seed[layer].as_dict() for seed in measured.layers])
            for layer in measured.depths
        }
        for name, measured in found.items()
    }
    write_atomically(
        args.out.with_suffix('.json'), json.dumps(dict(command=command, **origin, layers=layers), indent=1) + '\n'
    )
    text = [
        '# Feature collapse in small',
        markdown_table(header, [row for name, one in found.items() for row in summary_rows(name, one)]),
        f'{args.arch}, {SIZE} px, batches of {BATCH_SIZE}, {lists["num_train"]} photographs to train on and '
        f'{lists["num_held_out"]} held out, which are measured (whole pictures, {SIZE} px from the centre); '
        f'{args.seeds} seeds, mean ± sample standard deviation. Distance: (1/C^2) sum_ij (1 - cos) / 2, mean over '
        'pictures; 0.5 is orthogonal. Mean and least over the blocks; dead and saturated summed over blocks and seeds. '
        'Loss: first and last that was logged.',
        f'![distance]({args.out.with_suffix(".png").name})',
        '## Every layer',
        markdown_table(
            ['run', 'layer', 'distance', 'eff. rank / possible'],
            [row for name, one in found.items() for row in layer_rows(name, one)],
        ),
        '## How',
        f'```\n{command}\n```',
        provenance(origin),
    ]
    write_atomically(args.out, '\n\n'.join(text) + '\n')
    print('\n\n'.join(text[:3]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folders', type=Path)
    parser.add_argument('--work-dir', type=Path, required=True)
    parser.add_argument('--epochs', type=int, nargs='+', default=[20, 60])
    parser.add_argument('--arch', default='atto')
    parser.add_argument('--seeds', type=int, default=3, help='how many: 0, 1, ... (default: %(default)s)')
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--runs', nargs='+', metavar='RUN', help='train these alone, report nothing')
    which.add_argument('--report-only', action='store_true', help='train nothing, report the runs that are complete')
    parser.add_argument('--out', type=Path, default=Path('collapse.md'))
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel('WARNING')
    torch.set_num_threads(1)
    lists = write_lists(args.folders, args.work_dir)
    runs = [Run(kind, epochs, seed) for seed in range(args.seeds) for epochs in args.epochs for kind in KINDS]
    unknown = set(args.runs or ()) - {run.folder for run in runs}
    if unknown:
        parser.error(f'--runs: no {", ".join(sorted(unknown))}; there are {", ".join(run.folder for run in runs)}')
    if args.report_only:
        runs = [run for run in runs if is_complete(run, args)]
    for run in runs:
        if not args.runs or run.folder in args.runs:
            train(run, lists, args)
    if not args.runs:
        report(measure(sorted(runs, key=lambda run: run.epochs), lists, args), lists, args)


if __name__ == '__main__':
    with explain_errors():
        main()
