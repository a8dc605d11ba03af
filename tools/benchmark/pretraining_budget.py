"""From how many image views on does FCMAE help? Pretrain with several budgets, then few labels, against scratch.

    python tools/benchmark/pretraining_budget.py [--budgets 1e4 1e5 1e6] [--labels 10 40 200] [--seeds 3]
    [--pictures 10000 | --images SOURCE] [--work-dir work_dirs/pretraining_budget] [--data data/pretraining_budget]
    [--point NAME KEY=VALUE ...] [--pretrain-options KEY=VALUE ...] [--options-for TASK KEY=VALUE ...]

It draws demo scenes (or takes SOURCE, any folder, list or glob of unlabelled pictures), pretrains once per budget with
a schedule of its own, and lets tools/transfer.py train and test detection and segmentation on few labelled scenes, from
scratch and from every budget, at every --point (a name and options, for instance a learning rate; repeat it). At the
end, and after each step on the way, the work dir holds results.md, results.json and gain.png: gain against budget,
paired by seed, and from where on there is one.

After Ctrl-C or a kill the same command goes on, in the middle of a training too. More budgets, seeds or points later:
add them to the command, what is done stays.

Touch this file for the plan of the runs; the statistics are in mmcnx2/analysis/budget_report.py, training and testing
in tools/transfer.py, how stages are kept in mmcnx2/engine/stages.py. Guarded by tests/test_pretraining_budget.py.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

from mmcnx2.analysis import budget_report
from mmcnx2.analysis.figures import draw_gains
from mmcnx2.analysis.provenance import machine, versions
from mmcnx2.analysis.run_log import last_checkpoint, read_run
from mmcnx2.atomic_write import write_atomically
from mmcnx2.datasets.image_files import find_images
from mmcnx2.engine import run_config
from mmcnx2.engine.config_options import option_words
from mmcnx2.engine.run_commands import moved_data_options, resolved, tool, train_command
from mmcnx2.engine.stages import Stage, StageError, StageRun, interrupt_on_sigterm, now, shown, tell
from mmcnx2.engine.user_errors import is_user_error, one_line
from mmcnx2.given_path import given_path

PRETRAIN = 'demo/fcmae_convnextv2-atto_demo.py'
TASKS = ('demo/mask-rcnn_convnextv2-atto_demo.py', 'demo/upernet_convnextv2-atto_demo.py')
DEMO_DATA = 'data/demo'  # where the demo configs look
SCRATCH = 'scratch'
PART = 2000  # scenes are drawn in parts of so many, so that an interrupted drawing loses one part only
NUM_VAL = 100
WARMUP_SHARE = 0.1  # of the steps of a budget


@dataclass(frozen=True)
class Budget:
    """A pretraining: its image views as they were asked for, and its steps, which come as near as whole ones can."""

    asked: int
    steps: int
    warmup_steps: int
    batch_size: int

    @property
    def views(self) -> int:
        return self.steps * self.batch_size

    @property
    def name(self) -> str:
        return f'{self.asked / 1e6:g}M'


@dataclass(frozen=True)
class Point:
    """One point of the grid: options of every task."""

    name: str
    options: tuple[str, ...] = ()


# ---- the plan


def plan_budget(views: float, batch_size: int) -> Budget:
    """Steps and warmup of a budget. ValueError when it is less than two steps or not a whole number."""
    if not math.isfinite(views) or views != int(views) or views < 2 * batch_size:
        raise ValueError(
            f'--budgets {views:g}: a budget is a whole number of image views, at least two steps of {batch_size}'
        )
    steps = math.floor(views / batch_size + 0.5)
    return Budget(int(views), steps, min(steps - 1, max(1, round(WARMUP_SHARE * steps))), batch_size)


def plan_fractions(labels: Sequence[int], num_labelled: int) -> dict[int, float]:
    """Number of labelled pictures -> the share that tools/transfer.py takes. ValueError outside of 1..num_labelled."""
    wrong = [count for count in labels if not 1 <= count <= num_labelled]
    if wrong or len(set(labels)) < len(labels):
        raise ValueError(
            f'--labels {" ".join(map(str, labels))}: different numbers from 1 to --labelled, which is {num_labelled}'
        )
    return {count: float(f'{count / num_labelled:.12g}') for count in labels}


def plan_parts(num_pictures: int, num_labelled: int) -> list[dict[str, int]]:
    """What tools/prepare_data.py draws: parts of the unlabelled pictures, the labelled ones with the first."""
    if num_pictures < 0 or num_labelled < 1:
        raise ValueError('--pictures and --labelled: at least 1 picture each')
    parts = []
    for seed in range(max(1, -(-num_pictures // PART))):
        count = min(PART, num_pictures - seed * PART)
        labelled = {'train': num_labelled, 'val': NUM_VAL} if seed == 0 else {'train': 0, 'val': 0}
        parts.append({'unlabelled': count, **labelled, 'seed': seed})
    return parts


def pretraining_options(budget: Budget, given: Mapping[str, str]) -> dict[str, object]:
    """Options that turn an epoch-based pretraining config with warmup and cosine into this budget's iterations."""
    steps: dict[str, object] = {
        'train_cfg._delete_': True,
        'train_cfg.type': 'IterBasedTrainLoop',
        'train_cfg.max_iters': budget.steps,
        'train_dataloader.sampler.infinite': True,
        'log_processor.by_epoch': False,
        'default_hooks.checkpoint.by_epoch': False,
        'default_hooks.checkpoint.interval': 200,
        'default_hooks.logger.interval': 10,
        'param_scheduler.0.end': budget.warmup_steps,
        'param_scheduler.1.begin': budget.warmup_steps,
    }
    for number in (0, 1):
        steps[f'param_scheduler.{number}.by_epoch'] = False
        steps[f'param_scheduler.{number}.convert_to_iter_based'] = False
    return {**steps, **given}


def transfer_words(
    args: argparse.Namespace,
    point: Point,
    num_seeds: int,
    checkpoints: Mapping[str, str],
    fractions: Iterable[float],
    folder: Path,
) -> list[str]:
    """Arguments of tools/transfer.py for one point of the grid and the seeds 0 to num_seeds - 1."""
    words = [*args.tasks, '--init', SCRATCH]
    for name, checkpoint in checkpoints.items():
        words += ['--init', f'{name}={checkpoint}']
    words += ['--seeds', str(num_seeds), '--fractions', *(f'{fraction:.12g}' for fraction in fractions)]
    words += ['--work-dir', str(folder)]
    if any(moved_data_options(run_config.find_config(task), DEMO_DATA, 'elsewhere') for task in args.tasks):
        words += ['--data', f'{DEMO_DATA}={args.data / "part-0"}']
    options = [*args.task_options, *point.options]
    if options:
        words += ['--cfg-options', *options]
    for options_for in args.options_for:
        words += ['--options-for', *options_for]
    return words


def order_of_transfers(points: Sequence[Point], num_seeds: int) -> list[tuple[int, Point]]:
    """(number of seeds, point): every point with one seed first, so that an early end leaves the grid complete."""
    return [(count, point) for count in range(1, num_seeds + 1) for point in points]


# ---- the stages


def data_stages(args: argparse.Namespace) -> list[Stage]:
    stages = []
    for number, part in enumerate(plan_parts(0 if args.images else args.pictures, args.labelled)):
        folder = args.data / f'part-{number}'
        words = [word for key, value in part.items() for word in (f'--{key}', str(value))]
        command = [sys.executable, tool('prepare_data.py'), 'demo', '--out', str(folder), *words]
        stages.append(
            Stage(
                f'data-{number}',
                f'Draw scenes, part {number}',
                (lambda resumes, command=command: command,),
                part,
                product=folder / 'meta.json',
            )
        )
    return stages


def picture_list(args: argparse.Namespace) -> Path:
    """The file that names the unlabelled pictures; the same bytes for the same pictures."""
    if args.images:
        paths = find_images(Path(args.images).expanduser().absolute())
    else:
        parts = plan_parts(args.pictures, args.labelled)
        paths = [
            path for n in range(len(parts)) for path in find_images((args.data / f'part-{n}/unlabelled').absolute())
        ]
    path = args.work_dir.absolute() / 'pictures.txt'
    write_atomically(path, ''.join(f'{each}\n' for each in paths))
    return path


def pretrain_stage(args: argparse.Namespace, budget: Budget, needs: tuple[str, ...]) -> Stage:
    config, folder = run_config.find_config(args.pretrain).absolute(), args.work_dir / f'pretrain-{budget.name}'
    options = pretraining_options(budget, args.pretrain_given)

    def train(resumes: bool) -> list[str]:
        source = {'train_dataloader.dataset.source': str(picture_list(args))}
        command = train_command(config, folder, pretraining_options(budget, {}), resumes=resumes)
        return [*command, *args.pretrain_options, *option_words(source)]  # given words as they were given

    return Stage(
        f'pretrain-{budget.name}',
        f'Pretrain with {budget_report.views_text(budget.asked)} image views',
        (train,),
        {**resolved(config, options), 'images': args.images},
        needs,
        folder,
        folder / 'last_checkpoint',
    )


def transfer_stage(
    args: argparse.Namespace, point: Point, num_seeds: int, budgets: Sequence[Budget], needs: tuple[str, ...]
) -> Stage:
    folder = args.work_dir / 'transfer' / point.name
    fractions = plan_fractions(args.labels, args.labelled).values()

    def words(checkpoints: Mapping[str, str]) -> list[str]:
        return transfer_words(args, point, num_seeds, checkpoints, fractions, folder)

    def transfer(resumes: bool) -> list[str]:
        checkpoints = {
            budget.name: str(last_checkpoint(args.work_dir / f'pretrain-{budget.name}')) for budget in budgets
        }
        return [sys.executable, tool('transfer.py'), *words(checkpoints)]

    return Stage(
        f'transfer-{point.name}-{num_seeds}',
        f'Train the tasks at {point.name}, seed {num_seeds - 1}',
        (transfer,),
        {
            'words': words({budget.name: '' for budget in budgets}),
            'tasks': [resolved(run_config.find_config(task), None) for task in args.tasks],
        },
        needs,
        product=folder / 'results.json',
    )


def build_stages(args: argparse.Namespace) -> dict[str, Stage]:
    """All stages in their order: data, pretraining from small to large, then the tasks seed by seed."""
    data = data_stages(args)
    names = tuple(stage.name for stage in data)
    pretrainings = [pretrain_stage(args, budget, names) for budget in args.plans]
    needs = (*names, *(stage.name for stage in pretrainings))
    transfers = [
        transfer_stage(args, point, count, args.plans, needs)
        for count, point in order_of_transfers(args.points, args.seeds)
    ]
    return {stage.name: stage for stage in [*data, *pretrainings, *transfers]}


# ---- the results


def collect_values(
    transfers: Mapping[str, Mapping], labels: Mapping[int, float]
) -> dict[str, dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]]]:
    """task -> metric -> number of labels -> row -> point -> seed -> value in per cent.

    `transfers` is point -> what tools/transfer.py wrote, `labels` number of labels -> fraction.
    """
    count_of = {fraction: str(count) for count, fraction in labels.items()}
    values: dict = {}
    for point, results in transfers.items():
        for row in results['rows']:
            count = count_of.get(row['fraction'])
            if count is None:
                continue
            for task, cell in row['tasks'].items():
                for metric, by_seed in cell['metrics'].items():
                    by_row = values.setdefault(task, {}).setdefault(metric, {}).setdefault(count, {})
                    by_row.setdefault(row['init'], {})[point] = dict(by_seed)
    return values


def budget_entry(budget: Budget, args: argparse.Namespace, kept: StageRun, num_pictures: int) -> dict[str, Any] | None:
    """What is reported of a pretraining; None when it is not complete."""
    stage = kept.stages[f'pretrain-{budget.name}']
    marker = kept.complete_marker(stage)
    if marker is None:
        return None
    losses = read_run(stage.work_dir).train.get('loss')
    return {
        'name': budget.name,
        'asked': budget.asked,
        'views': budget.views,
        'distinct_pictures': min(num_pictures, budget.views),
        'steps': budget.steps,
        'warmup_steps': budget.warmup_steps,
        'batch_size': budget.batch_size,
        'loss': losses.values[-1] if losses else None,
        'seconds': round(marker.seconds, 1),
        'attempts': marker.attempts,
        'command': marker.command,
    }


def collect_results(args: argparse.Namespace, kept: StageRun) -> dict[str, Any] | None:
    """Everything that results.json holds; None before the first transfer has results."""
    paths = {point.name: args.work_dir / 'transfer' / point.name / 'results.json' for point in args.points}
    transfers = {name: json.loads(path.read_text(encoding='utf-8')) for name, path in paths.items() if path.exists()}
    if not transfers:
        return None
    listed = args.work_dir / 'pictures.txt'
    num_pictures = len(listed.read_text(encoding='utf-8').splitlines()) if listed.exists() else 0
    entries = [budget_entry(budget, args, kept, num_pictures) for budget in args.plans]
    return {
        'title': 'From how many image views on does FCMAE help?',
        'command': args.command,
        'finished': now(),
        'baseline': SCRATCH,
        'budgets': [entry for entry in entries if entry],
        'others': args.others,
        'labels': args.labels,
        'seeds': list(range(args.seeds)),
        'grid': [{'name': point.name, 'options': [*args.task_options, *point.options]} for point in args.points],
        'tasks': next(iter(transfers.values()))['tasks'],
        'values': collect_values(transfers, plan_fractions(args.labels, args.labelled)),
        'pictures': {'source': args.images or 'demo scenes', 'count': num_pictures},
        'plot': 'gain.png',
        'machine': machine(),
        'versions': versions(),
    }


def write_results(args: argparse.Namespace, kept: StageRun) -> None:
    """results.json, results.md and gain.png, each replaced in one step."""
    results = collect_results(args, kept)
    if results is None:
        return
    write_atomically(args.work_dir / 'results.json', budget_report.result_json(results))
    write_atomically(args.work_dir / 'results.md', budget_report.result_markdown(results))
    draw_gains(budget_report.gain_panels(results), args.work_dir / 'gain.png', budget_report.PLOT_CAPTION)


# ---- the command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--work-dir', type=given_path, default=Path('work_dirs/pretraining_budget'), help='default: %(default)s'
    )
    parser.add_argument(
        '--data',
        type=given_path,
        default=Path('data/pretraining_budget'),
        help='folder of the scenes (default: %(default)s)',
    )
    parser.add_argument(
        '--budgets', type=float, nargs='+', default=[1e5, 1e6], metavar='VIEWS', help='image views (default: 1e5 1e6)'
    )
    parser.add_argument(
        '--others', type=float, nargs='*', default=[1e6, 1e7], metavar='VIEWS',
        help='budgets whose cost on this machine the report states when they were not run (default: 1e6 1e7)',
    )  # fmt: skip
    parser.add_argument('--pictures', type=int, default=10000, help='distinct unlabelled scenes (default: %(default)s)')
    parser.add_argument('--images', metavar='SOURCE', help='pretrain on these pictures instead: folder, list or glob')
    parser.add_argument('--labelled', type=int, default=200, help='labelled scenes to draw (default: %(default)s)')
    parser.add_argument(
        '--labels', type=int, nargs='+', default=[10, 40, 200], metavar='N', help='how many of them are trained on'
    )
    parser.add_argument('--seeds', type=int, default=3, help='runs per cell (default: %(default)s)')
    parser.add_argument('--pretrain', default=PRETRAIN, metavar='CONFIG', help='default: %(default)s')
    parser.add_argument('--tasks', nargs='+', default=list(TASKS), metavar='CONFIG', help='default: those of the demo')
    parser.add_argument(
        '--point', nargs='+', action='append', default=[], metavar=('NAME', 'KEY=VALUE'),
        help='a point of the grid at which every row is trained; repeat it (default: one, the configs as they are)',
    )  # fmt: skip
    parser.add_argument('--pretrain-options', nargs='+', action='extend', default=[], metavar='KEY=VALUE')
    parser.add_argument('--task-options', nargs='+', action='extend', default=[], metavar='KEY=VALUE')
    parser.add_argument(
        '--options-for', nargs='+', action='append', default=[], metavar='TASK KEY=VALUE', help='see tools/transfer.py'
    )
    parser.add_argument('--report', action='store_true', help='write the report of what is there, run nothing')
    parser.add_argument('--dry-run', action='store_true', help='say what would be run, run nothing')
    args = parser.parse_args(argv)
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word != '--report']  # it measures nothing
    args.command = shlex.join(['python', 'tools/benchmark/pretraining_budget.py', *words])
    return args


def check_args(args: argparse.Namespace) -> None:
    """Adds what follows from the arguments: plans, points, options. ValueError when something cannot be."""
    if args.seeds < 1:
        raise ValueError(f'--seeds {args.seeds}: at least one run per cell is needed')
    if not args.images and args.pictures < 1:
        raise ValueError(f'--pictures {args.pictures}: at least 1 picture is needed')
    if any('=' not in word for word in args.pretrain_options):
        raise ValueError(f'--pretrain-options {" ".join(args.pretrain_options)}: write KEY=VALUE')
    args.pretrain_given = dict(word.split('=', 1) for word in args.pretrain_options)
    args.points = [Point(name, tuple(options)) for name, *options in args.point] or [Point('config')]
    names = [point.name for point in args.points]
    if len(set(names)) < len(names) or any('=' in name or '/' in name for name in names):
        raise ValueError(f'--point: every point needs a name of its own without = and /, not {" ".join(names)}')
    cfg = run_config.Config.fromfile(run_config.find_config(args.pretrain), import_custom_modules=False)
    kinds = [scheduler.get('type') for scheduler in cfg.get('param_scheduler') or []]
    if kinds != ['LinearLR', 'CosineAnnealingLR']:
        raise ValueError(f'--pretrain {args.pretrain}: its param_scheduler must be LinearLR and CosineAnnealingLR')
    batch_size = int(args.pretrain_given.get('train_dataloader.batch_size', cfg.train_dataloader.batch_size))
    args.plans = sorted((plan_budget(views, batch_size) for views in args.budgets), key=lambda budget: budget.asked)
    if len({budget.name for budget in args.plans}) < len(args.plans):
        raise ValueError(f'--budgets {" ".join(map(str, args.budgets))}: the same budget twice')
    plan_fractions(args.labels, args.labelled)


def run(args: argparse.Namespace) -> None:
    check_args(args)
    stages = build_stages(args)
    kept = StageRun(args.work_dir, stages)
    if args.dry_run:
        for name, stage in stages.items():
            tell(f'{stage.title} ({name}): {"complete" if kept.complete_marker(stage) else "to be run"}')
        return
    if not args.report:
        for stage in stages.values():
            is_new = kept.complete_marker(stage) is None
            kept.run(stage)
            if is_new and stage.name.startswith('transfer'):
                write_results(args, kept)
    write_results(args, kept)
    path = args.work_dir / 'results.md'
    if not path.exists():
        raise StageError(f'nothing has been measured yet in {args.work_dir}')
    tell(f'\n{path.read_text(encoding="utf-8")}\n{shown([str(path)])}')


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    interrupt_on_sigterm()
    try:
        run(args)
    except KeyboardInterrupt:
        print('\ninterrupted; the same command goes on from here', file=sys.stderr)
        return 130
    except Exception as error:
        if not isinstance(error, StageError) and not is_user_error(error):
            raise
        print(f'error: {error if isinstance(error, StageError) else one_line(error)}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
