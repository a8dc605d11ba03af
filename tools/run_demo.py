"""The whole path on pictures that it makes itself: pretrain, then a detector and a segmentor from scratch and from
the checkpoint.

    python tools/run_demo.py [--work-dir work_dirs/demo] [--data data/demo] [--stages NAME ...] [--seeds 1] [--force]
    [--quick]

Every stage is one of the project's ordinary commands, printed as you would type it; its whole output goes to a log
file. A stage that is complete (same settings, same data) is not run again, and an interrupted one goes on from its
last checkpoint, so after Ctrl-C type the same command. Both rows of the table have the same budget and the same
seeds. At the end: a table on the screen, and in the work dir results.json, results.md, pictures and index.html, which
holds everything.

Touch this file for which stages there are; how they are run is in mmcnx2/engine/stages.py, what is shown in
mmcnx2/analysis/demo_report.py, budgets are in configs/demo/. Guarded by tests/test_demo.py.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

from mmcnx2.analysis import demo_report, evaluation
from mmcnx2.analysis.comparison import verdict
from mmcnx2.analysis.metrics import logged_metrics, tested_metrics
from mmcnx2.analysis.provenance import machine, versions
from mmcnx2.analysis.run_facts import RunFacts, read_facts
from mmcnx2.analysis.run_log import last_checkpoint, read_run, stored_config
from mmcnx2.analysis.run_report import Extras
from mmcnx2.engine.run_commands import moved_data_options, resolved, test_command, tool, train_command
from mmcnx2.engine.stages import (
    Marker,
    Stage,
    StageError,
    StageRun,
    code_hash,
    interrupt_on_sigterm,
    now,
    sha256,
    shown,
    stream,
    tell,
)
from mmcnx2.given_path import given_path

CONFIGS = {
    'pretrain': 'fcmae_convnextv2-atto_demo.py',
    'detect': 'mask-rcnn_convnextv2-atto_demo.py',
    'segment': 'upernet_convnextv2-atto_demo.py',
}
DEFAULT_DATA = 'data/demo'  # where the configs look
ROWS = {'scratch': 'from scratch', 'pretrained': 'FCMAE-pretrained'}
TASK_METRICS = {'detect': ('box AP', 'mask AP'), 'segment': ('mIoU',)}
# --quick: enough to see that everything fits together, far too little to learn anything
QUICK_DATA = {'--unlabelled': '16', '--train': '4', '--val': '4'}
QUICK_ITERATIONS = {
    'train_dataloader.batch_size': '2',
    'train_dataloader.num_workers': '0',
    'train_dataloader.persistent_workers': 'False',
    'val_dataloader.num_workers': '0',
    'train_cfg.max_iters': '2',
    'param_scheduler.0.end': '1',
    'param_scheduler.1.begin': '1',
    'default_hooks.checkpoint.interval': '2',
    'default_hooks.logger.interval': '1',
}
QUICK_OPTIONS = {
    'pretrain': {
        'train_dataloader.batch_size': '8',
        'train_dataloader.num_workers': '0',
        'train_dataloader.persistent_workers': 'False',
        'train_cfg.max_epochs': '2',
        'default_hooks.checkpoint.interval': '1',
        'default_hooks.logger.interval': '1',
    },
    'detect': QUICK_ITERATIONS,
    'segment': QUICK_ITERATIONS,
}


# ---- the stages


def folder_hash(folder: Path) -> str:
    """Hash of names and sizes of all files below the folder and of meta.json; 'missing' without the latter."""
    if not (folder / 'meta.json').is_file():
        return 'missing'
    files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob('*') if path.is_file())
    return sha256(json.dumps(files) + (folder / 'meta.json').read_text(encoding='utf-8'))


def metrics_of(work_dir: Path, task: str) -> dict[str, float] | None:
    """The run's metrics in 0..1, of the training's last validation or of a test after it; None without either."""
    try:
        return logged_metrics(read_run(work_dir), TASK_METRICS[task])
    except (KeyError, FileNotFoundError):
        path = work_dir / 'metrics.json'
        return tested_metrics(path, TASK_METRICS[task]) if path.is_file() else None


def train_stage(
    task: str,
    name: str,
    title: str,
    args: argparse.Namespace,
    needs: tuple[str, ...],
    seed: int,
    init_from: Path | None = None,
) -> Stage:
    config = ROOT / 'configs' / 'demo' / CONFIGS[task]
    if not config.is_file():
        raise StageError(f'{config} does not exist')
    work_dir = args.work_dir / name
    options = {'randomness.seed': str(seed), **(QUICK_OPTIONS[task] if args.quick else {})}

    def train(resumes: bool) -> list[str]:
        given = {**options, **moved_data_options(config, DEFAULT_DATA, str(args.data))}
        if init_from is not None:
            given['model.backbone.init_cfg.checkpoint'] = str(last_checkpoint(init_from))
        return train_command(config, work_dir, given, resumes=resumes and (work_dir / 'last_checkpoint').exists())

    def test(resumes: bool) -> list[str] | None:
        """None when training has measured its result; a run that was killed in its last validation has not."""
        if task not in TASK_METRICS or metrics_of(work_dir, task) is not None:
            return None
        checkpoint, out = last_checkpoint(work_dir), work_dir / 'metrics.json'
        return test_command(stored_config(work_dir), checkpoint, work_dir / 'test', out)

    return Stage(
        name,
        title,
        (train, test),
        {**resolved(config, options), 'starts_from': 'pretrain' if init_from else None},
        needs,
        work_dir,
        work_dir / 'last_checkpoint',
    )


def build_stages(args: argparse.Namespace) -> dict[str, Stage]:
    data_command = [
        sys.executable,
        tool('prepare_data.py'),
        'demo',
        '--out',
        str(args.data),
        *(word for pair in QUICK_DATA.items() for word in pair if args.quick),
    ]
    pretrain_dir = args.work_dir / 'pretrain'
    stages = [
        Stage(
            'data',
            'Make the pictures',
            (lambda resumes: data_command,),
            {'quick': QUICK_DATA if args.quick else None},
            product=args.data / 'meta.json',
            reads_data=False,
        ),
        train_stage('pretrain', 'pretrain', 'Pretrain with FCMAE', args, ('data',), 0),
    ]
    for task, noun in (('detect', 'Mask R-CNN'), ('segment', 'UPerNet')):
        for seed in range(args.seeds):
            for row, label in ROWS.items():
                init_from = pretrain_dir if row == 'pretrained' else None
                stages.append(
                    train_stage(
                        task,
                        stage_name(task, row, seed),
                        f'Train {noun}, {label}' + (f', seed {seed}' if args.seeds > 1 else ''),
                        args,
                        ('data', 'pretrain') if init_from else ('data',),
                        seed,
                        init_from,
                    )
                )
    return {stage.name: stage for stage in stages}


def stage_name(task: str, row: str, seed: int) -> str:
    return f'{task}-{row}' + (f'-seed{seed}' if seed else '')


# ---- the report


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def collect_results(demo: StageRun, args: argparse.Namespace) -> dict:
    """Everything that results.json holds, from the markers and the logs of the complete stages."""
    markers = {name: demo.complete_marker(stage) for name, stage in demo.stages.items()}
    rows = []
    for row, label in ROWS.items():
        metrics: dict[str, list[float]] = {name: [] for name in demo_report.METRICS}
        seconds, whole = 0.0, True
        for task in TASK_METRICS:
            for seed in range(args.seeds):
                stage = stage_name(task, row, seed)
                if markers[stage] is None:
                    whole = False
                    continue
                seconds += markers[stage].seconds / args.seeds
                for name, value in (metrics_of(args.work_dir / stage, task) or {}).items():
                    if finite(value) is None:
                        tell(f'warning: {name} of {stage} is {value}, it is left out')
                    else:
                        metrics[name].append(value)
        if row == 'pretrained':
            whole = whole and markers['pretrain'] is not None
            seconds += markers['pretrain'].seconds if markers['pretrain'] else 0.0
        rows.append({'label': label, 'metrics': metrics, 'seconds': round(seconds, 1) if whole else None})
    done = {name: marker for name, marker in markers.items() if marker}
    results = {
        'title': 'mmcnx2 demo: FCMAE pretraining against training from scratch',
        'command': args.command,
        'finished': now(),
        'quick': args.quick,
        'seeds': args.seeds,
        'rows': rows,
        'verdict': verdict(*demo_report.rows_of({'rows': rows}), list(demo_report.METRICS), args.seeds),
        'stages': [
            {
                'name': name,
                'title': demo.stages[name].title,
                'command': marker.command,
                'seconds': round(marker.seconds, 1),
                'attempts': marker.attempts,
                'finished': marker.finished,
                'settings_hash': marker.key,
                'code_hash': marker.code,
            }
            for name, marker in done.items()
        ],
        'total_seconds': round(sum(marker.seconds for marker in done.values()), 1),
        'data': {'folder': str(args.data), 'hash': demo.present_data(), 'meta': read_json(args.data / 'meta.json')},
        'machine': machine(),
        'versions': versions(),
    }
    results['seconds_note'] = seconds_note(markers, args.seeds)
    if args.quick:
        results['verdict'] = ['This was the quick run: a check that the parts fit together. Its figures mean nothing.']
    return results


def seconds_note(markers: Mapping[str, Marker | None], seeds: int) -> str:
    per_seed = ', mean over the seeds' if seeds > 1 else ''
    text = f'Seconds: wall time of training and validation of both models{per_seed}'
    if markers['pretrain']:
        text += f'; the second row includes {markers["pretrain"].seconds:.0f} s of pretraining, which are paid once'
    resumed = [name for name, marker in markers.items() if marker and marker.attempts > 1]
    return f'{text}. ' + (
        f'Resumed after an interruption: {", ".join(resumed)}.' if resumed else 'AP and mIoU lie in 0..1.'
    )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None


def finished_runs(demo: StageRun, args: argparse.Namespace) -> list[RunFacts]:
    """What the complete trainings left, in the order of the stages."""
    names = {'pretrain': 'pretraining'}
    for task in TASK_METRICS:
        for seed in range(args.seeds):
            for row, label in ROWS.items():
                names[stage_name(task, row, seed)] = label + (f', seed {seed}' if seed else '')
    return [
        read_facts(label, args.work_dir / name)
        for name, label in names.items()
        if name in demo.stages and demo.complete_marker(demo.stages[name])
    ]


def draw_reconstruction(demo: StageRun, args: argparse.Namespace) -> tuple[Path, str]:
    """The sheet of the pretraining and its caption."""
    path = args.work_dir / 'reconstruction.png'
    pretrain = demo.stages['pretrain'].work_dir
    command = [
        sys.executable,
        tool('visualize_reconstruction.py'),
        str(stored_config(pretrain)),
        str(last_checkpoint(pretrain)),
        str(args.data / 'coco' / 'val'),
        '--num',
        '8',
        '--out',
        str(path),
    ]
    tell(f'  $ {shown(command)}')
    if stream(command, demo.log_path('reconstruction'), -1, append=False).code:
        raise StageError(f'the reconstruction sheet could not be drawn; its output: {demo.log_path("reconstruction")}')
    return path, 'Validation pictures, which pretraining has not seen: input, what the encoder saw, reconstruction.'


def look_closer(demo: StageRun, runs: list[RunFacts], args: argparse.Namespace) -> Extras:
    """What takes a model: reconstructions, drawn predictions, confused classes, the cost of the models."""
    samples: dict[str, list[tuple[Path, str]]] = {}
    if any(facts.task == 'pretraining' for facts in runs):
        samples['pretraining'] = [draw_reconstruction(demo, args)]
    for task in ('detection', 'segmentation'):
        first_seed = [facts for facts in runs if facts.task == task and 'seed' not in facts.label]
        if first_seed:
            path = args.work_dir / f'{task}s.png'
            samples[task] = [(path, evaluation.draw_samples(task, first_seed, path, num_pictures=4))]
    labelled = [facts for facts in runs if facts.task in evaluation.COUNTERS]
    return Extras(
        costs={facts.folder: evaluation.cost_of(facts) for facts in runs},
        confusions={facts.folder: evaluation.confusion_of(facts) for facts in labelled},
        samples=samples,
    )


def report(demo: StageRun, args: argparse.Namespace) -> None:
    """Write and print the results; drawn again only when the stages or the report's code changed."""
    markers = {name: marker for name, stage in demo.stages.items() if (marker := demo.complete_marker(stage))}
    analysis = Path(demo_report.__file__).parent
    own_code = [
        ROOT / 'tools' / 'run_demo.py',
        ROOT / 'tools' / 'visualize_reconstruction.py',
        *sorted(path for kind in ('py', 'css', 'js') for path in analysis.glob(f'*.{kind}')),
    ]
    key = sha256(
        json.dumps(
            [
                {name: vars(marker) for name, marker in markers.items()},
                args.seeds,
                args.quick,
                [path.read_text(encoding='utf-8') for path in own_code],
            ]
        )
    )
    files = [args.work_dir / name for name in ('results.json', 'results.md', 'index.html')]
    last = demo.read_marker('report')
    if last and last.complete and last.key == key and all(path.exists() for path in files) and not demo.force:
        results = read_json(files[0])
    else:
        tell('\nDraw the report')
        started = time.monotonic()
        results = collect_results(demo, args)
        demo_report.write_results(results, args.work_dir)
        try:
            runs = finished_runs(demo, args)
            demo_report.write_demo_page(results, runs, look_closer(demo, runs, args), files[2])
        except BaseException:
            tell(f'\n{demo_report.result_text(results)}\n')  # the figures stand, whatever happened to the pictures
            raise
        demo.write_marker('report', Marker(key, True, time.monotonic() - started, 1, args.command, now(), code_hash()))
    tell(f'\n{demo_report.result_text(results)}\n\nPage with pictures: {files[2]}')


# ---- the command line


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--work-dir',
        type=given_path,
        help='where everything is written; default work_dirs/demo (--quick: work_dirs/demo_quick)',
    )
    parser.add_argument(
        '--data',
        type=given_path,
        help=f'folder of the pictures; default {DEFAULT_DATA} (--quick: {DEFAULT_DATA}_quick)',
    )
    parser.add_argument('--stages', nargs='+', metavar='NAME', help='only these; an unknown name lists them all')
    parser.add_argument(
        '--seeds', type=int, default=1, help='train detector and segmentor so often per row (pretraining once)'
    )
    parser.add_argument('--force', action='store_true', help='run the stages again although they are complete')
    parser.add_argument('--quick', action='store_true', help='a check of about a minute that everything fits together')
    args = parser.parse_args(argv)
    suffix = '_quick' if args.quick else ''
    args.work_dir = args.work_dir or Path(f'work_dirs/demo{suffix}')
    args.data = args.data or Path(f'{DEFAULT_DATA}{suffix}')
    args.command = shlex.join(['python', 'tools/run_demo.py', *(sys.argv[1:] if argv is None else argv)])
    return args


def run(args: argparse.Namespace) -> None:
    if args.seeds < 1:
        raise StageError(f'--seeds {args.seeds}: at least one run per row is needed')
    stages = build_stages(args)
    wanted = args.stages or [*stages, 'report']
    unknown = [name for name in wanted if name not in stages and name != 'report']
    if unknown:
        raise StageError(f'unknown stage {" ".join(unknown)}; the stages are {" ".join([*stages, "report"])}')
    demo = StageRun(args.work_dir, stages, lambda: folder_hash(args.data), args.force)
    for name, stage in stages.items():
        if name in wanted:
            demo.run(stage)
    if 'report' in wanted:
        with demo.locked('report'):
            report(demo, args)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    interrupt_on_sigterm()
    try:
        run(args)
    except KeyboardInterrupt:
        print('\ninterrupted; the same command goes on from here', file=sys.stderr)
        return 130
    except (StageError, OSError, ValueError, KeyError) as error:
        print(
            f'error: {error.args[0] if isinstance(error, (StageError, KeyError)) and error.args else error}',
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
