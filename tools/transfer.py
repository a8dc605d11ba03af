"""What is a checkpoint worth? Train and test tasks from several initialisations, and put the results into one table.

    python tools/transfer.py CONFIG [CONFIG ...] --init scratch --init NAME=CHECKPOINT [--seeds 3]
    [--fractions 1 0.25] [--gpus N] [--tta] [--work-dir work_dirs/transfer] [--dry-run]
    [--cfg-options KEY=VALUE ...] [--options-for TASK KEY=VALUE ...] [--data OLD=NEW]

Every run is one of the project's ordinary commands, printed as you would type it; its whole output goes to a log file.
After a failure the others go on; after Ctrl-C or a kill the same command goes on, and it tries again what failed. What
cannot work (a checkpoint of another architecture, a pretraining config) is found before anything runs. The final
checkpoint of each run counts, not its best one. Seed s is that of the run and of its subset of the training images,
so at one seed and fraction all initialisations see the same images.

Several at once: start the same command again, for other GPUs (CUDA_VISIBLE_DEVICES) or as a job array; each takes the
next run that nobody works on, and every one writes the table of what is there.

The pictures themselves are not looked at: after a change of them use --force, or another work dir.

The work dir holds results.md, results.csv (a line per initialisation, fraction, task and metric), results.json, and
runs/, logs/ and subsets/. Exit code 1: a run failed, or nothing could be started.

Touch this file for what is compared; how runs are kept is in mmcnx2/engine/stages.py, how the table looks in
mmcnx2/analysis/transfer_report.py. Guarded by tests/test_transfer.py.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import logging
import math
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

try:
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    from mmcnx2.analysis import transfer_report
    from mmcnx2.analysis.metrics import METRICS, metric_names, tested_metrics
    from mmcnx2.analysis.model_cost import Cost, build_on_meta, model_cost
    from mmcnx2.analysis.provenance import machine, versions
    from mmcnx2.analysis.run_log import last_checkpoint, read_run, stored_config
    from mmcnx2.atomic_write import write_atomically
    from mmcnx2.checkpoint import CheckpointError, load_pretrained_backbone
    from mmcnx2.datasets.subsets import subset_options
    from mmcnx2.engine import run_config
    from mmcnx2.engine.config_card import read_card
    from mmcnx2.engine.config_nodes import innermost_dataset
    from mmcnx2.engine.config_options import option_words, read_options
    from mmcnx2.engine.run_commands import (
        moved_data_options,
        resolved,
        test_command,
        train_command,
    )
    from mmcnx2.engine.stages import (
        Stage,
        StageBusyError,
        StageError,
        StageRun,
        interrupt_on_sigterm,
        now,
        shown,
        tell,
    )
    from mmcnx2.engine.user_errors import is_user_error, one_line
    from mmcnx2.given_path import given_path
    from mmcnx2.models.backbones import ConvNeXtV2
except ImportError as error:
    sys.exit(
        f'error: {error}. Is this the interpreter of the environment? `make -s which-python` prints it, `python '
        'tools/doctor.py` says what is missing'
    )

SCRATCH = 'scratch'
CHECKPOINT_KEY = 'model.backbone.init_cfg.checkpoint'


@dataclass(frozen=True)
class Init:
    """Where the backbone starts: a checkpoint, or random weights."""

    name: str
    checkpoint: Path | None = None

    @property
    def digest(self) -> str | None:
        """SHA-256 of the file."""
        if self.checkpoint is None:
            return None
        with self.checkpoint.open('rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()


@dataclass(eq=False)
class Task:
    """A config with its options."""

    path: Path
    cfg: Config
    words: list[str]  # options as they were given
    moved: dict[str, str]  # options that only say where the data lie
    label: str = ''
    metrics: tuple[str, ...] = ()
    published: dict[str, float] = field(default_factory=dict)

    @property
    def schedule(self) -> str:
        """'1000 iterations' or '36 epochs'."""
        loop = self.cfg.train_cfg
        return f'{loop.max_iters} iterations' if loop.get('max_iters') else f'{loop.get("max_epochs")} epochs'


@dataclass(frozen=True)
class Run:
    """One training and its test."""

    task: Task
    init: Init
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        return f'{self.task.path.stem}-{self.init.name}-{self.fraction:g}-seed{self.seed}'

    @property
    def test_name(self) -> str:
        return f'{self.name}-test'

    def __str__(self) -> str:
        images = transfer_report.share(self.fraction)
        return f'{self.task.label}, {self.init.name}, {images} of the images, seed {self.seed}'


# ---- what is asked for, and whether it can work


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='tasks with labels; not pretraining')
    parser.add_argument(
        '--init',
        action='append',
        default=[],
        metavar='NAME=CHECKPOINT',
        help='where the backbone starts, or the word scratch; repeat it. The others are compared with the first',
    )
    parser.add_argument('--seeds', type=int, default=3, help='runs per cell, with the seeds 0, 1, ... (default: 3)')
    parser.add_argument(
        '--fractions', type=float, nargs='+', default=[1.0], help='of the training images, such as 1 0.25 (default: 1)'
    )
    parser.add_argument('--gpus', type=int, default=1, help='processes per run; more than 1: through torchrun')
    parser.add_argument('--tta', action='store_true', help='test with the test-time augmentation of the configs')
    parser.add_argument('--work-dir', type=given_path, default=Path('work_dirs/transfer'), help='default: %(default)s')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help='for every task'
    )
    parser.add_argument(
        '--options-for',
        nargs='+',
        action='append',
        default=[],
        metavar='TASK KEY=VALUE',
        help='name of a config without .py, and options for it alone; repeat it for other tasks',
    )
    parser.add_argument(
        '--data',
        action='append',
        default=[],
        metavar='OLD=NEW',
        help='what the configs read from the folder OLD lies in NEW, for instance data/coco=/datasets/coco; repeat it',
    )
    parser.add_argument('--max-hours', type=float, default=math.inf, help='start no further run after so many hours')
    parser.add_argument('--force', action='store_true', help='run again what is complete')
    parser.add_argument('--dry-run', action='store_true', help='check everything, print the commands, run nothing')
    args = parser.parse_args(argv)
    args.command = shlex.join(['python', 'tools/transfer.py', *(sys.argv[1:] if argv is None else argv)])
    return args


@dataclass
class Problems:
    """Everything that cannot work, collected so that it is said at once."""

    sentences: list[str] = field(default_factory=list)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """A user's mistake inside the block becomes a sentence."""
        try:
            yield
        except Exception as error:
            if not is_user_error(error) and not isinstance(error, CheckpointError):
                raise
            self.add(one_line(error))

    def add(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def stop_if_any(self) -> None:
        if self.sentences:
            count = f'{len(self.sentences)} problems, nothing was run' if len(self.sentences) > 1 else ''
            lines = [count, *(f'  {sentence}' for sentence in self.sentences)] if count else self.sentences
            raise StageError('\n'.join(lines))


def check_numbers(args: argparse.Namespace, problems: Problems) -> None:
    if args.seeds < 1:
        problems.add(f'--seeds {args.seeds}: at least one run per cell is needed')
    if args.gpus < 1:
        problems.add(f'--gpus {args.gpus}: at least one process is needed')
    wrong = [fraction for fraction in args.fractions if not 0 < fraction <= 1]
    if wrong:
        problems.add(f'--fractions {" ".join(map(str, wrong))}: a share of the images lies above 0 and at most at 1')
    if len(set(args.fractions)) < len(args.fractions):
        problems.add('--fractions names the same share twice')


def read_inits(args: argparse.Namespace, problems: Problems) -> list[Init]:
    inits: list[Init] = []
    for text in args.init:
        name, equals, path = text.partition('=')
        if not equals and text != SCRATCH:
            problems.add(f'--init {text}: write NAME=CHECKPOINT, NAME being what the table calls it, or {SCRATCH}')
        elif equals and (name == SCRATCH or not re.fullmatch(r'[A-Za-z0-9][\w.+]*(?:-[\w.+]+)*', name)):
            problems.add(
                f'--init {text}: the name {name!r} cannot be used; letters, digits and . _ + - make a name, and '
                f'{SCRATCH} means random weights'
            )
        elif name in [init.name for init in inits]:
            problems.add(f'--init {name} is given twice; every initialisation needs a name of its own')
        else:
            inits.append(Init(name, Path(path).expanduser().absolute() if equals else None))
    if not args.init:
        problems.add(f'no --init: give NAME=CHECKPOINT or {SCRATCH}, and repeat it for what is to be compared')
    for init in inits:
        if init.checkpoint and not init.checkpoint.is_file():
            problems.add(f'--init {init.name}: checkpoint {init.checkpoint} does not exist')
    return inits


def load_task(name: str, words: list[str], args: argparse.Namespace, problems: Problems) -> Task:
    """Raises what `Problems.noting` takes when the config is no task; notes what else is wrong with it."""
    path = run_config.find_config(name).absolute()
    moved: dict[str, str] = {}
    for pair in args.data:
        old, _, new = pair.partition('=')
        moved.update(moved_data_options(path, old, os.path.expanduser(new)))
    options = read_options([*option_words(moved), *words]) or None
    given = argparse.Namespace(config=str(path), cfg_options=options, work_dir=None, launcher='none', local_rank=0)
    cfg = run_config.load_config(given)
    if cfg.model.get('type', '').rsplit('.', 1)[-1] == 'FCMAE':
        raise ValueError(
            f'{path} pretrains a backbone, it is no task to measure a checkpoint on. Give tasks with labels '
            '(detection, segmentation, classification), and the checkpoint of that run as --init NAME=CHECKPOINT'
        )
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if not cfg.get(key):
            raise ValueError(f'{path} has no {key}: it describes no training')
    metrics = metric_names(cfg)
    if not metrics:
        raise ValueError(f'{path} measures none of {", ".join(METRICS)}: there is nothing to put into the table')
    missing = [key for key in ('tta_model', 'tta_pipeline') if args.tta and not cfg.get(key)]
    if missing:
        problems.add(f'{path} has no {" and no ".join(missing)}, which --tta needs')
    if not isinstance(cfg.model.get('backbone'), dict):
        raise ValueError(f'{path} has no model.backbone, so no checkpoint can be put into it')
    task = Task(path, cfg, words, moved, metrics=metrics)
    if any(fraction < 1 for fraction in args.fractions):
        training_set(cfg)
    with problems.noting():
        check_data_exist(cfg)
    task.published = published_figures(path)
    return task


def check_data_exist(cfg: Config) -> None:
    """Raises when a folder or annotation file of training or validation is not there."""
    for name in ('train_dataloader', 'val_dataloader'):
        dataset = innermost_dataset((cfg.get(name) or {}).get('dataset') or {})
        root, annotations = dataset.get('data_root') or '', dataset.get('ann_file') or ''
        for path in (root, os.path.join(root, annotations)):
            if path and '://' not in path and not os.path.exists(path):
                raise FileNotFoundError(
                    f'{cfg.filename}, {name}: {path} does not exist. tools/prepare_data.py makes or checks the data; '
                    'where they lie elsewhere, give --data OLD=NEW'
                )


def published_figures(path: Path) -> dict[str, float]:
    try:
        return read_card(path).published
    except ValueError:  # somebody's own config needs no card
        return {}


def read_tasks(args: argparse.Namespace, problems: Problems) -> list[Task]:
    extra: dict[str, list[str]] = {}
    for stem, *words in args.options_for:
        extra.setdefault(stem.removesuffix('.py'), []).extend(words)
        if not words:
            problems.add(f'--options-for {stem}: no options; write --options-for TASK KEY=VALUE ...')
    tasks: list[Task] = []
    for name in args.configs:
        with problems.noting():
            tasks.append(load_task(name, [*args.cfg_options, *extra.pop(Path(name).stem, [])], args, problems))
    for stem in extra:
        problems.add(f'--options-for {stem}: no such task; there are {", ".join(Path(c).stem for c in args.configs)}')
    stems = [task.path.stem for task in tasks]
    for stem in sorted({stem for stem in stems if stems.count(stem) > 1}):
        problems.add(f'{stem} is given twice; every task needs a name of its own')
    for pair in args.data:
        old, _, new = pair.partition('=')
        if not old or not new:
            problems.add(f'--data {pair}: write OLD=NEW, two folders')
        elif old != new and tasks and not any(moved_data_options(task.path, old, new) for task in tasks):
            problems.add(f'--data {pair}: no task reads anything from {old}')
    short = [stem.split('_')[0] for stem in stems]
    for task in tasks:
        first = task.path.stem.split('_')[0]
        task.label = first if short.count(first) == 1 else task.path.stem
    return tasks


def check_init(init: Init, task: Task) -> None:
    """Raises CheckpointError when the checkpoint does not fit the task's backbone; nothing is computed."""
    backbone_cfg = task.cfg.model.backbone.to_dict()
    options = {k: v for k, v in (backbone_cfg.pop('init_cfg', None) or {}).items() if k not in ('type', 'checkpoint')}
    with DefaultScope.overwrite_default_scope(task.cfg.default_scope):
        backbone = build_on_meta(backbone_cfg)
    if not isinstance(backbone, ConvNeXtV2):
        tell(f'note: whether {init.name} fits {task.label} shows when it runs: {type(backbone).__name__} is not ours')
        return
    logging.disable(logging.WARNING)  # each run says for itself what it loaded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # weights that go into a model without memory
            load_pretrained_backbone(backbone, init.checkpoint, **options)
    except CheckpointError as error:
        raise CheckpointError(f'--init {init.name} does not fit {task.path.stem}: {error}') from error
    finally:
        logging.disable(logging.NOTSET)


def training_set(cfg: Config) -> tuple[str, dict]:
    """(key, config) of the training set, below wrappers such as RepeatDataset."""
    key, dataset = 'train_dataloader.dataset', cfg.train_dataloader.dataset
    while 'dataset' in dataset:
        key, dataset = f'{key}.dataset', dataset['dataset']
    if 'datasets' in dataset:
        raise ValueError(f'{cfg.filename}: --fractions cannot take a share of several joined training sets')
    return key, dataset


# ---- the runs


def init_options(run: Run) -> dict[str, object]:
    """Options that put the initialisation into the task."""
    given = run.task.cfg.model.backbone.get('init_cfg') or {}
    if run.init.checkpoint is None:
        return {CHECKPOINT_KEY: None} if given.get('checkpoint') else {}
    kind = {} if given.get('type') == 'Pretrained' else {'model.backbone.init_cfg.type': 'Pretrained'}
    return {**kind, CHECKPOINT_KEY: str(run.init.checkpoint)}


def subset_words(run: Run, work_dir: Path) -> list[str]:
    """Options that leave the run its share of the training images; writes the files that they name."""
    if run.fraction == 1:
        return []
    key, dataset = training_set(run.task.cfg)
    changed = subset_options(dataset, run.fraction, run.seed, work_dir / 'subsets' / run.task.path.stem)
    return option_words({f'{key}.{name}': value for name, value in changed.items()})


def training_command(run: Run, folder: Path, args: argparse.Namespace, resumes: bool) -> list[str]:
    options: dict[str, object] = {'randomness.seed': run.seed, **init_options(run), **run.task.moved}
    command = train_command(run.task.path, folder, options, args.gpus, resumes)
    return [*command, *run.task.words, *subset_words(run, args.work_dir)]


def stages_of(run: Run, args: argparse.Namespace, digests: Mapping[str, str | None]) -> tuple[Stage, Stage]:
    """Training and testing of a run."""
    folder = args.work_dir / 'runs' / run.name
    out = folder / 'test' / 'metrics.json'

    def train(resumes: bool) -> list[str]:
        return training_command(run, folder, args, resumes and (folder / 'last_checkpoint').exists())

    def test(resumes: bool) -> list[str] | None:
        """None when training's last validation was this very test."""
        measured = None if args.tta else final_validation(folder)
        if measured is None:
            flags = ['--tta'] if args.tta else []
            checkpoint = last_checkpoint(folder)
            return test_command(stored_config(folder), checkpoint, folder / 'test', out, args.gpus, flags)
        write_atomically(out, transfer_report.result_json(measured))
        tell("  measured by the training's last validation")
        return None

    def check(resumes: bool) -> None:
        """A detector that found nothing at all, for instance, has no AP."""
        tested_metrics(out, run.task.metrics)

    settings = {
        **resolved(run.task.path, run.task.words),
        'starts_from': digests[run.init.name],
        'fraction': run.fraction,
        'seed': run.seed,
        'gpus': args.gpus,
    }
    return (
        Stage(run.name, f'Train {run}', (train,), settings, (), folder, folder / 'last_checkpoint'),
        Stage(run.test_name, f'Test {run}', (test, check), {'tta': args.tta}, (run.name,), folder / 'test', out),
    )


def final_validation(folder: Path) -> dict[str, float] | None:
    """What the training's last validation measured, when it measured the final checkpoint as the test would."""
    cfg = Config.fromfile(stored_config(folder), import_custom_modules=False)
    same = all(
        not cfg.get(f'test_{kind}') or part(cfg[f'test_{kind}']) == part(cfg.get(f'val_{kind}') or {})
        for kind, part in (('dataloader', lambda loader: loader.get('dataset')), ('evaluator', lambda each: each))
    )
    try:
        log = read_run(folder)
    except FileNotFoundError:
        return None
    loop = cfg.train_cfg
    end = loop.get('max_iters') or loop.get('max_epochs')
    only_at_end = loop.get('val_interval', 1) >= end
    keys = [METRICS[name][0] for name in metric_names(cfg)]
    measured = {key: log.val[key] for key in keys if key in log.val}
    if not same or len(measured) < len(keys):
        return None
    if not all(only_at_end or curve.steps[-1] == end for curve in measured.values()):
        return None
    return {key: curve.values[-1] for key, curve in measured.items()}


def runs_in_order(tasks: list[Task], inits: list[Init], fractions: list[float], num_seeds: int) -> list[Run]:
    """Seed by seed, so that an early end leaves whole rows with fewer seeds."""
    return [
        Run(task, init, fraction, seed)
        for seed in range(num_seeds)
        for fraction in fractions
        for task in tasks
        for init in inits
    ]


def check_earlier_results(runs: list[Run], kept: StageRun, problems: Problems) -> None:
    """Results of other settings are never overwritten."""
    for run in runs:
        marker, stage = kept.read_marker(run.name), kept.stages[run.name]
        if marker and stage.work_dir.exists() and marker.key != kept.key_of(stage):
            problems.add(
                f'{stage.work_dir} holds a run with other settings, another checkpoint or another version of the '
                'config; choose another --work-dir, or delete that folder'
            )


# ---- the table


def memory_of(folder: Path, peak_rss_mb: float) -> tuple[float, str]:
    """Peak memory of a training in MB: of the GPU where the log has it, else of the largest process."""
    try:
        logged = read_run(folder).train.get('memory')
    except FileNotFoundError:  # a config without mmengine's local log
        logged = None
    return (max(logged.values), 'GPU') if logged else (round(peak_rss_mb, 1), 'largest process')


def collect_cell(runs: list[Run], kept: StageRun) -> dict[str, Any]:
    """The runs of one task, initialisation and fraction: values by seed, metrics in per cent."""
    names = ('train_seconds', 'test_seconds', 'memory_mb')
    cell: dict[str, Any] = {'metrics': {}, 'failed': [], 'running': [], 'memory_of': '', **{name: {} for name in names}}
    for run in runs:
        seed = str(run.seed)
        stages = kept.stages[run.name], kept.stages[run.test_name]
        markers = [kept.complete_marker(stage) for stage in stages]
        if markers[0]:
            cell['train_seconds'][seed] = round(markers[0].seconds, 1)
            cell['memory_mb'][seed], cell['memory_of'] = memory_of(stages[0].work_dir, markers[0].peak_rss_mb)
        if all(markers):
            cell['test_seconds'][seed] = round(markers[1].seconds, 1)
            for name, value in tested_metrics(stages[1].product, run.task.metrics).items():
                if math.isfinite(value):
                    cell['metrics'].setdefault(name, {})[seed] = round(100 * value, 6)
                else:
                    tell(f'warning: {name} of {run} is {value}, it is left out')
        elif failures(run, kept):
            cell['failed'].append(run.seed)
        elif any(kept.is_busy(stage.name) for stage in stages):
            cell['running'].append(run.seed)
    return cell


def failures(run: Run, kept: StageRun) -> list[str]:
    """How the last attempt of the run failed; empty when it did not."""
    found = []
    for name in (run.name, run.test_name):
        marker = kept.read_marker(name)
        if marker and marker.failure and not marker.complete and marker.key == kept.key_of(kept.stages[name]):
            found.append(marker.failure)
    return found


def task_entry(task: Task, args: argparse.Namespace) -> dict[str, Any]:
    cost = cost_of(task)
    return {
        'label': task.label,
        'config': shown([str(task.path)]),
        'metrics': list(task.metrics),
        'published': {name: value for name, value in task.published.items() if name in task.metrics},
        'params': cost.params if cost else None,
        'flops': cost.flops if cost else None,
        'flops_of': f'{cost.input_shape[1]} x {cost.input_shape[0]} px' if cost else None,
        'schedule': task.schedule,
        'images_per_step': args.gpus * task.cfg.train_dataloader.get('batch_size', 1),
    }


@functools.cache
def cost_of(task: Task) -> Cost | None:
    """Parameters and FLOPs of the task's model, counted once; None, with a note, where that is not possible."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # each run says for itself what its model warns of
            return model_cost(task.cfg)
    except Exception as error:  # somebody's own model may be of any kind, and the table does not depend on it
        tell(f'note: params and FLOPs of {task.label} are not in the table: {one_line(error)}')
        return None


def notes(tasks: list[Task], rows: list[dict], args: argparse.Namespace) -> list[str]:
    """What a reader must know of the figures."""
    spread = f' ± sample standard deviation over the seeds 0 to {args.seeds - 1}' if args.seeds > 1 else ' of seed 0'
    found = [
        f'Metrics in per cent{spread}, of the final checkpoint, not the best'
        + ('; with test-time augmentation.' if args.tta else '.')
    ]
    if any(fraction < 1 for fraction in args.fractions):
        found.append(
            'A run draws its subset of the training images with its own seed; at one seed all initialisations see the '
            'same images.'
        )
        by_epoch = [task.label for task in tasks if not task.cfg.train_cfg.get('max_iters')]
        by_iteration = [task.label for task in tasks if task.label not in by_epoch]
        if by_iteration:
            found.append(f'Fewer images, the same number of iterations: {", ".join(by_iteration)}.')
        if by_epoch:
            found.append(f'Fewer images, the same number of epochs, so fewer iterations: {", ".join(by_epoch)}.')
    for task in tasks:
        written_for = task.cfg.get('auto_scale_lr', {}).get('base_batch_size')
        images = args.gpus * task.cfg.train_dataloader.get('batch_size', 1)
        if written_for and written_for != images and not task.cfg.auto_scale_lr.get('enable'):
            found.append(
                f'{task.label}: {images} images per step; the config is written for {written_for}, and its learning '
                'rate was not scaled (--cfg-options auto_scale_lr.enable=True does).'
            )
    kinds = sorted({cell['memory_of'] for row in rows for cell in row['tasks'].values() if cell['memory_of']})
    found.append(
        'Seconds: wall time of training with its validations, mean over the seeds. GB: peak memory of training'
        + (f' ({" or ".join(kinds)}).' if kinds else '.')
    )
    if any(task.published for task in tasks):
        found.append("Published: what the config's card quotes, for its own initialisation, test and number of GPUs.")
    return found


def collect_results(
    runs: list[Run],
    tasks: list[Task],
    inits: list[Init],
    digests: Mapping[str, str | None],
    kept: StageRun,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Everything that results.json holds."""
    rows = []
    for fraction in args.fractions:
        for init in inits:
            cells = {}
            for task in tasks:
                mine = [run for run in runs if (run.task, run.init, run.fraction) == (task, init, fraction)]
                cells[task.label] = collect_cell(mine, kept)
            rows.append({'init': init.name, 'fraction': fraction, 'tasks': cells})
    done = {name: marker for name, stage in kept.stages.items() if (marker := kept.complete_marker(stage))}
    results = {
        'title': f'Transfer: {", ".join(init.name for init in inits)} on {", ".join(task.label for task in tasks)}',
        'command': args.command,
        'finished': now(),
        'seeds': list(range(args.seeds)),
        'fractions': args.fractions,
        'gpus': args.gpus,
        'tta': args.tta,
        'inits': [
            {
                'name': init.name,
                'checkpoint': str(init.checkpoint) if init.checkpoint else None,
                'sha256': digests[init.name],
            }
            for init in inits
        ],
        'tasks': [task_entry(task, args) for task in tasks],
        'rows': rows,
        'failures': [sentence for run in runs for sentence in failures(run, kept)],
        'stages': [
            {
                'name': name,
                'title': kept.stages[name].title,
                'command': marker.command,
                'seconds': round(marker.seconds, 1),
                'attempts': marker.attempts,
                'finished': marker.finished,
                'settings_hash': marker.key,
                'code_hash': marker.code,
            }
            for name, marker in done.items()
        ],
        'machine': machine(),
        'versions': versions(),
    }
    results['notes'] = notes(tasks, rows, args)
    results['verdict'] = transfer_report.verdicts(results)
    return results


def write_results(results: Mapping, work_dir: Path) -> None:
    """results.json, results.csv and results.md, each replaced in one step."""
    write_atomically(work_dir / 'results.json', transfer_report.result_json(results))
    write_atomically(work_dir / 'results.csv', transfer_report.result_csv(results))
    write_atomically(work_dir / 'results.md', transfer_report.result_markdown(results))


# ---- the command


def print_commands(runs: list[Run], kept: StageRun, args: argparse.Namespace) -> None:
    """--dry-run. The subsets are written, so that the lines can be run as they stand."""
    for run in runs:
        train, test = kept.stages[run.name], kept.stages[run.test_name]
        states = ['complete' if kept.complete_marker(stage) else 'to be run' for stage in (train, test)]
        folder = train.work_dir
        flags = ['--tta'] if args.tta else []
        test_words = test_command(
            folder / run.task.path.name, Path('CHECKPOINT'), folder / 'test', test.product, args.gpus, flags
        )
        final = f'"$(cat {shlex.quote(str(folder / "last_checkpoint"))})"'
        tell(f'\n{train.title}: {states[0]}\n  $ {shown(training_command(run, folder, args, False))}')
        tell(f'{test.title}: {states[1]}\n  $ {shown(test_words).replace("CHECKPOINT", final)}')


def do_run(run: Run, kept: StageRun) -> str | None:
    """Train and test; a sentence when it failed."""
    try:
        for name in (run.name, run.test_name):
            kept.run(kept.stages[name])
    except StageBusyError:
        tell(f'{run}: being run by another process, skipped')
    except StageError as error:
        return str(error)
    return None


def run(args: argparse.Namespace) -> int:
    problems = Problems()
    check_numbers(args, problems)
    inits, tasks = read_inits(args, problems), read_tasks(args, problems)
    for init in inits:
        for task in tasks:
            if init.checkpoint and init.checkpoint.is_file():
                with problems.noting():
                    check_init(init, task)
    problems.stop_if_any()
    digests = {init.name: init.digest for init in inits}
    runs = runs_in_order(tasks, inits, args.fractions, args.seeds)
    stages = [stage for each in runs for stage in stages_of(each, args, digests)]
    kept = StageRun(args.work_dir, {stage.name: stage for stage in stages}, force=args.force)
    if not args.force:
        check_earlier_results(runs, kept, problems)
    problems.stop_if_any()
    tell(
        f'{len(runs)} runs: {len(tasks)} tasks, {len(inits)} initialisations, {len(args.fractions)} fractions, '
        f'{args.seeds} seeds; results go to {args.work_dir}'
    )
    if args.dry_run:
        print_commands(runs, kept, args)
        return 0
    deadline, failed, not_started = time.monotonic() + 3600 * args.max_hours, [], 0
    for number, each in enumerate(runs, 1):
        if time.monotonic() >= deadline:
            not_started += 1
            continue
        tell(f'\n--- run {number} of {len(runs)}: {each}')
        sentence = do_run(each, kept)
        if sentence:
            tell(f'  failed: {sentence}')
            failed.append(sentence)
        write_results(collect_results(runs, tasks, inits, digests, kept, args), args.work_dir)
    results = collect_results(runs, tasks, inits, digests, kept, args)
    write_results(results, args.work_dir)
    tell(f'\n{transfer_report.result_text(results)}\n')
    for name in ('results.md', 'results.csv', 'results.json'):
        tell(f'{args.work_dir / name}')
    if not_started:
        tell(f'{not_started} of {len(runs)} runs were not started (--max-hours); the same command goes on from here')
    if failed:
        lines = '\n'.join(f'  {sentence}' for sentence in failed)
        print(
            f'error: {len(failed)} of {len(runs)} runs failed; the same command tries them again\n{lines}',
            file=sys.stderr,
        )
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    interrupt_on_sigterm()
    try:
        return run(args)
    except KeyboardInterrupt:
        print('\ninterrupted; the same command goes on from here', file=sys.stderr)
        return 130
    except (StageError, OSError, ValueError, KeyError) as error:
        print(f'error: {error if isinstance(error, StageError) else one_line(error)}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
