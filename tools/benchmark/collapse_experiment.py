"""Feature collapse in small: ConvNeXt V1 with FCMAE, V2 with FCMAE, V2 supervised; one budget, several lengths.

    python tools/benchmark/collapse_experiment.py CLASS_FOLDERS --work-dir work_dirs/collapse [--epochs 20 60]
        [--arch atto] [--runs v1-fcmae-20 ... | --report-only] [--out results.md]

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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmcnx2.analysis import collapse_report
from mmcnx2.analysis.activations import AFTER_GRN, BEFORE_GRN
from mmcnx2.analysis.comparison import markdown_table
from mmcnx2.analysis.figures import Line, Panel, draw_curves
from mmcnx2.analysis.pictures import load_pictures
from mmcnx2.analysis.provenance import machine, provenance, versions
from mmcnx2.analysis.run_log import Curve, last_checkpoint, read_run, stored_config
from mmcnx2.analysis.trained_models import load_trained_backbone
from mmcnx2.atomic_write import write_atomically
from mmcnx2.datasets.labelled_images import find_labelled_images

SIZE, BATCH_SIZE = 128, 64
FCMAE = """
_base_ = '{{{{$MMCNX2_CONFIGS:}}}}/demo/fcmae_convnextv2-atto_demo.py'
model = dict(backbone=dict(arch={arch!r}{v1}))
train_dataloader = dict(dataset=dict(source={train!r}))
train_cfg = dict(max_epochs={epochs})
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
            file.write_text('\n'.join(lines) + '\n')
            found[kind] = str(file)
        found[f'num_{name}'] = len(part)
    return found


def is_complete(run: str, args: argparse.Namespace) -> bool:
    return (args.work_dir / run / f'epoch_{run.rsplit("-", 1)[1]}.pth').is_file()


def train(run: str, lists: dict, args: argparse.Namespace) -> None:
    kind, epochs = run.rsplit('-', 1)
    work_dir = args.work_dir / run
    if is_complete(run, args):
        return
    from mmcnx2.models.backbones.convnext_v2 import ARCHS

    text = (SUPERVISED if kind == 'v2-supervised' else FCMAE).format(
        arch=args.arch,
        channels=ARCHS[args.arch]['channels'][-1],
        v1=', use_grn=False, layer_scale_init_value=1e-6' if kind == 'v1-fcmae' else '',
        epochs=int(epochs),
        **lists,
    )
    config = args.work_dir / f'{run}.py'
    config.write_text(text)
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(config), '--work-dir', str(work_dir), '--resume']
    started = time.time()
    with (args.work_dir / f'{run}.log').open('w') as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise SystemExit(f'error: {run} ended with exit code {code}; see {args.work_dir / run}.log')
    print(f'{run}: {time.time() - started:.0f} s', flush=True)


def measure(runs: list[str], lists: dict, args: argparse.Namespace) -> dict:
    paths = Path(lists['held_out']).read_text().split('\n')[:-1]
    results, depths, ends = {}, {}, {}
    v2 = next(run for run in runs if run.startswith('v2'))  # whose config the untrained model is built from
    for run in ['random', *runs]:
        work_dir = args.work_dir / (v2 if run == 'random' else run)
        cfg = Config.fromfile(stored_config(work_dir))
        checkpoint = 'random' if run == 'random' else last_checkpoint(work_dir)
        backbone = load_trained_backbone(cfg, checkpoint)
        images = backbone.images(load_pictures(cfg, paths, (SIZE, SIZE)))
        results[run] = collapse_report.measure_collapse(backbone.model, images.split(16))
        depths[run] = collapse_report.depths_of(backbone.model, list(results[run]))
        if run != 'random':
            log = read_run(work_dir)
            ends[run] = (log.train['loss'].values[0], log.train['loss'].values[-1], log.val.get('accuracy/top1'))
    return dict(results=results, depths=depths, ends=ends, logs={run: read_run(args.work_dir / run) for run in runs})


def name_of(run: str) -> str:
    kind, epochs = run.rsplit('-', 1) if run != 'random' else ('', '')
    return f'{KINDS[kind]}, {epochs} epochs' if kind else 'V2, untrained'


def least_and_mean(layers: dict, ending: str) -> tuple[float, float, float, int, int] | None:
    chosen = [one for name, one in layers.items() if name.endswith(f'.{ending}')]
    if not chosen:
        return None
    distances = [one.distance for one in chosen]
    return (
        sum(distances) / len(distances),
        min(distances),
        sum(one.effective_rank / one.max_rank for one in chosen) / len(chosen),
        sum(one.num_dead for one in chosen),
        sum(one.num_saturated for one in chosen),
    )


def report(found: dict, runs: list[str], lists: dict, args: argparse.Namespace) -> None:
    header = ['run', 'layer', 'mean distance', 'least distance', 'eff. rank / possible', 'dead', 'saturated', 'loss']
    rows = []
    for run, layers in found['results'].items():
        for ending, label in ((BEFORE_GRN, 'before GRN'), (AFTER_GRN, 'after GRN')):
            numbers = least_and_mean(layers, ending)
            if numbers is None:
                continue
            first, last, accuracy = found['ends'].get(run, (None, None, None))
            end = '-' if first is None else f'{first:.3f} to {last:.3f}'
            end += f', held-out top-1 {accuracy.values[-1]:.1f}' if accuracy else ''
            rows.append([name_of(run), label, *(f'{value:.3f}' for value in numbers[:3]), *map(str, numbers[3:]), end])
    results = {name_of(run): layers for run, layers in found['results'].items()}
    depths = {name_of(run): layers for run, layers in found['depths'].items()}
    longest = max(args.epochs)
    shown = {name: one for name, one in results.items() if name.endswith(f' {longest} epochs') or 'untrained' in name}
    panels = collapse_report.panels(shown, depths)[:3]  # distance and rank before GRN, distance after it
    lines = []
    for run in runs:
        if not run.endswith(f'-{longest}'):
            continue
        curves = [
            c for n, c in found['logs'][run].val.items() if n.startswith('collapse/distance/') and n.endswith('.gelu')
        ]
        means = tuple(sum(values) / len(values) for values in zip(*(curve.values for curve in curves), strict=True))
        lines.append(Line(name_of(run), Curve(curves[0].steps, means)))
    panels.append(Panel('Cosine distance in training, before GRN', 'epoch', 'mean over blocks', lines))
    draw_curves(panels, args.out.with_suffix('.png'))
    command = shlex.join(['python', 'tools/benchmark/collapse_experiment.py', *sys.argv[1:]])
    origin = dict(machine=machine(), versions=versions(), finished=time.strftime('%Y-%m-%d'))
    layers = {
        run: {name: dict(depth=depths[run][name], **one.as_dict()) for name, one in found.items()}
        for run, found in results.items()
    }
    content = dict(command=command, **origin, layers=layers)
    write_atomically(args.out.with_suffix('.json'), json.dumps(content, indent=1) + '\n')
    layer_table = markdown_table(*collapse_report.table(results))
    text = [
        '# Feature collapse in small',
        markdown_table(header, rows),
        f'{args.arch}, {SIZE} px, batches of {BATCH_SIZE}, {lists["num_train"]} photographs to train on and '
        f'{lists["num_held_out"]} held out, which are measured (whole pictures, {SIZE} px from the centre). Distance: '
        '(1/C^2) sum_ij (1 - cos) / 2, mean over pictures; 0.5 is orthogonal. Mean and least over the blocks; dead and '
        'saturated summed over them. Loss: first and last that was logged.',
        f'![distance]({args.out.with_suffix(".png").name})',
        '## Every layer',
        layer_table,
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
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--runs', nargs='+', metavar='RUN', help='train these alone, report nothing')
    which.add_argument('--report-only', action='store_true', help='train nothing, report the runs that are complete')
    parser.add_argument('--out', type=Path, default=Path('collapse.md'))
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel('WARNING')
    torch.set_num_threads(1)
    lists = write_lists(args.folders, args.work_dir)
    runs = [f'{kind}-{epochs}' for epochs in args.epochs for kind in KINDS]
    if args.report_only:
        runs = [run for run in runs if is_complete(run, args)]
    for run in args.runs or runs:
        train(run, lists, args)
    if not args.runs:
        report(measure(runs, lists, args), runs, lists, args)


if __name__ == '__main__':
    main()
