"""The whole path on pictures that it makes itself: pretrain, then a detector and a segmentor from scratch and from
the checkpoint.

    python tools/run_demo.py [--work-dir work_dirs/demo] [--data data/demo] [--stages NAME ...] [--seeds 1] [--force]
    [--quick]

Every stage is one of the project's ordinary commands, printed as you would type it; its whole output goes to a log
file. A stage that is complete (same settings, same data) is not run again, and an interrupted one goes on from its
last checkpoint, so after Ctrl-C type the same command. Both rows of the table have the same budget and the same
seeds. At the end: a table on the screen, and in the work dir results.json, results.md, pictures and index.html, which
holds everything.

Touch this file for the stages and how they are run; what is shown is in mmcnx2/analysis/demo_report.py, budgets are
in configs/demo/. Guarded by tests/test_demo.py.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

from mmengine.config import Config

import mmcnx2
from mmcnx2.analysis import demo_report
from mmcnx2.analysis.comparison import verdict
from mmcnx2.analysis.run_log import last_checkpoint, read_run, stored_config

CONFIGS = {
    'pretrain': 'fcmae_convnextv2-atto_demo.py',
    'detect': 'mask-rcnn_convnextv2-atto_demo.py',
    'segment': 'upernet_convnextv2-atto_demo.py',
}
DEFAULT_DATA = 'data/demo'  # where the configs look
ROWS = {'scratch': 'from scratch', 'pretrained': 'FCMAE-pretrained'}
TASK_METRICS = {'detect': ('box AP', 'mask AP'), 'segment': ('mIoU',)}
LOG_TAIL_LINES = 15
PROGRESS_EVERY_S = 15.0  # when the output is not a terminal
DISTRIBUTIONS = (
    'torch',
    'torchvision',
    'onedl-mmengine',
    'onedl-mmcv',
    'onedl-mmdetection',
    'onedl-mmsegmentation',
    'onedl-mmpretrain',
    'numpy',
)
# OpenMP threads spin while they wait for each other. Beside other jobs they wait for threads that cannot run: on 2 busy
# cores one pretraining step took 0.9 s with sleeping threads and over 8 s with spinning ones; idle, 0.5 s either way.
COMMAND_ENVIRON = {'OMP_WAIT_POLICY': os.environ.get('OMP_WAIT_POLICY', 'PASSIVE')}
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


class DemoError(Exception):
    """Something that stops the demo, said in one line."""


@dataclass(frozen=True)
class Stage:
    """One command and what its result depends on.

    `make_command` is called when the stage starts, because a later stage needs the path of an earlier one's
    checkpoint. `settings` is what the result depends on apart from the data and the stages in `needs`; folders do not
    belong to it.
    """

    name: str
    title: str
    make_command: Callable[[], list[str]]
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    work_dir: Path | None = None  # of a training stage: owned by the stage, removed before it starts anew
    product: Path | None = None  # must exist after the stage
    reads_data: bool = True
    metrics: tuple[str, ...] = ()  # that its last validation must have measured


@dataclass
class Marker:
    """What is known about a stage on disk."""

    key: str
    complete: bool = False
    seconds: float = 0.0
    attempts: int = 0
    command: str = ''
    finished: str = ''
    code: str = ''
    made_data: str = ''  # of the data stage: hash of what it left


@dataclass
class Demo:
    """The stages of one work dir, run one after the other."""

    work_dir: Path
    data: Path
    stages: dict[str, Stage]
    force: bool = False
    keys: dict[str, str] = field(default_factory=dict)
    lock_fd: int = -1

    def marker_path(self, name: str) -> Path:
        return self.work_dir / 'stages' / f'{name}.json'

    def log_path(self, name: str) -> Path:
        return self.work_dir / 'logs' / f'{name}.log'

    def read_marker(self, name: str) -> Marker | None:
        try:
            return Marker(**json.loads(self.marker_path(name).read_text(encoding='utf-8')))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            tell(f'  {self.marker_path(name)} cannot be read ({error}); the stage is run again')
            return None

    def write_marker(self, name: str, marker: Marker) -> None:
        write_text(self.marker_path(name), json.dumps(vars(marker), indent=1) + '\n')

    def key_of(self, stage: Stage) -> str:
        """Hash of everything that the stage's result depends on, except the code."""
        content = {
            'settings': stage.settings,
            'needs': {need: self.key_of(self.stages[need]) for need in stage.needs},
            'data': self.data_hash() if stage.reads_data else None,
        }
        return sha256(json.dumps(content, sort_keys=True, default=str))

    def data_hash(self) -> str:
        """Hash of the names and sizes of the data files and of meta.json; computed once, after the data stage."""
        if 'data' not in self.keys:
            self.keys['data'] = folder_hash(self.data)
        return self.keys['data']

    def complete_marker(self, stage: Stage) -> Marker | None:
        """The stage's marker when it is complete with the present settings and data, else None."""
        marker = self.read_marker(stage.name)
        if marker is None or not marker.complete or (stage.product and not stage.product.exists()):
            return None
        if not stage.reads_data and marker.made_data != self.data_hash():
            return None  # somebody changed the pictures
        return marker if marker.key == self.key_of(stage) else None

    def metrics_of(self, stage: Stage) -> dict[str, float] | None:
        """The stage's metrics in 0..1, of the training's last validation or of `measure`; None without either."""
        try:
            return demo_report.logged_metrics(read_run(stage.work_dir), stage.metrics)
        except (KeyError, FileNotFoundError):
            path = stage.work_dir / 'metrics.json'
            return demo_report.tested_metrics(path, stage.metrics) if path.is_file() else None

    def measure(self, stage: Stage) -> float:
        """Test the last checkpoint; returns the seconds it took."""
        started = time.monotonic()
        out = stage.work_dir / 'metrics.json'
        config, checkpoint = stored_config(stage.work_dir), last_checkpoint(stage.work_dir)
        command = [sys.executable, tool('test.py'), str(config), str(checkpoint), '--out', str(out)]
        command += ['--work-dir', str(stage.work_dir / 'test')]
        tell(f'  $ {shown(command)}')
        log_path = self.log_path(f'{stage.name}-test')
        if stream(command, log_path, self.lock_fd, append=False) or self.metrics_of(stage) is None:
            raise DemoError(f'{stage.name} could not be measured; the whole output: {log_path}')
        return time.monotonic() - started

    def run(self, stage: Stage) -> None:
        """Run the stage, or say that it is complete already. Raises DemoError when it fails."""
        done = None if self.force else self.complete_marker(stage)
        if done:
            changed = '; mmcnx2 has been edited since, --force runs it again' if done.code != code_hash() else ''
            tell(f'{stage.title}: complete ({done.seconds:.0f} s on {done.finished}{changed})')
            return
        missing = [need for need in stage.needs if not self.complete_marker(self.stages[need])]
        if missing:
            raise DemoError(
                f'stage {stage.name} needs {" and ".join(missing)}, not complete '
                f'for these settings: run --stages {" ".join([*missing, stage.name])}'
            )
        started_before = None if self.force else self.read_marker(stage.name)
        resumes = (
            started_before is not None and started_before.key == self.key_of(stage) and not started_before.complete
        )
        if stage.work_dir and stage.work_dir.exists() and not resumes:
            shutil.rmtree(stage.work_dir)
        command = stage.make_command()
        if resumes and stage.work_dir and (stage.work_dir / 'last_checkpoint').exists():
            command.append('--resume')
        marker = Marker(
            key=self.key_of(stage),
            seconds=started_before.seconds if resumes else 0.0,
            attempts=(started_before.attempts if resumes else 0) + 1,
            command=shown(command),
            code=code_hash(),
        )
        self.write_marker(stage.name, marker)
        tell(f'\n{stage.title}\n  $ {marker.command}')
        started = time.monotonic()
        try:
            code = stream(command, self.log_path(stage.name), self.lock_fd, append=resumes)
        finally:
            marker.seconds += time.monotonic() - started
            self.write_marker(stage.name, marker)
        if code or (stage.product and not stage.product.exists()):
            tail = (
                self.log_path(stage.name).read_text(encoding='utf-8', errors='replace').splitlines()[-LOG_TAIL_LINES:]
            )
            print('\n'.join(f'  | {line}' for line in tail), file=sys.stderr)
            what = f'ended with exit code {code}' if code else f'left no {stage.product}'
            raise DemoError(f'stage {stage.name} {what}; its whole output: {self.log_path(stage.name)}')
        if (
            stage.metrics and self.metrics_of(stage) is None
        ):  # it was killed in its last validation, and training is over
            marker.seconds += self.measure(stage)
        marker.complete, marker.finished = True, now()
        if not stage.reads_data:
            self.keys.clear()  # the data may be new
            marker.made_data = self.data_hash()
        self.write_marker(stage.name, marker)
        tell(f'  done in {marker.seconds:.0f} s')


def tell(text: str) -> None:
    print(text, flush=True)


def now() -> str:
    return time.strftime('%Y-%m-%d %H:%M:%S %z')


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shown(command: Iterable[str]) -> str:
    """The command as one would type it: paths below the current folder relative, the interpreter by its name."""
    here = f'{Path.cwd()}{os.sep}'
    words = [word.replace(here, '') for word in command]
    return shlex.join(['python', *words[1:]] if words[0] == sys.executable else words)


def write_text(path: Path, text: str) -> None:
    """Replace the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f'.{path.name}.{os.getpid()}')
    scratch.write_text(text, encoding='utf-8')
    os.replace(scratch, path)


def folder_hash(folder: Path) -> str:
    """Hash of names and sizes of all files below the folder and of meta.json; 'missing' without the latter."""
    if not (folder / 'meta.json').is_file():
        return 'missing'
    files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob('*') if path.is_file())
    return sha256(json.dumps(files) + (folder / 'meta.json').read_text(encoding='utf-8'))


@functools.cache
def code_hash() -> str:
    """Hash of the package's code that takes part in training (all but analysis)."""
    package = Path(mmcnx2.__file__).parent
    files = sorted(path for path in package.rglob('*.py') if 'analysis' not in path.parts and '.mim' not in path.parts)
    return sha256('\0'.join(path.read_text(encoding='utf-8') for path in files))


# ---- running a command

PROGRESS = re.compile(r'(?P<kind>Epoch|Iter)\((?P<mode>\w+)\)\s+(?P<where>(?:\[[^\]]*\])+)')


def progress_of(line: str) -> str | None:
    """'train [3][10/31]  loss 0.71  ETA 0:01:20' of a line of mmengine's log; None when it reports no progress."""
    found = PROGRESS.search(line)
    if not found:
        return None
    parts = [f'{found["mode"]} {re.sub(" +", "", found["where"])}']
    for name, pattern in (('loss', r'\bloss: (\S+)'), ('ETA', r'\beta: ((?:\d+ days?, )?\S+)')):
        value = re.search(pattern, line)
        if value:
            parts.append(f'{name} {value[1]}')
    return '  '.join(parts)


def stream(command: list[str], log_path: Path, lock_fd: int, append: bool) -> int:
    """Run the command with its output in the log file and its progress on one line; returns its exit code.

    The command is a process group of its own: when the demo is interrupted or dies of an exception, the whole group
    is ended. It inherits the lock of the work dir, so that a second demo cannot start beside a command that outlived
    the first.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    is_terminal = sys.stdout.isatty()
    started, last_shown = time.monotonic(), -math.inf
    with log_path.open('a' if append else 'w', encoding='utf-8') as log:
        log.write(f'$ {shown(command)}\n')
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors='replace',
            bufsize=1,
            env={**os.environ, **COMMAND_ENVIRON, 'PYTHONUNBUFFERED': '1'},
            start_new_session=True,
            pass_fds=(lock_fd,) if lock_fd >= 0 else (),
        )
        try:
            for line in process.stdout:
                log.write(line)
                log.flush()
                progress = progress_of(line)
                if progress and (is_terminal or time.monotonic() - last_shown >= PROGRESS_EVERY_S):
                    text = f'  {progress}  ({time.monotonic() - started:.0f} s)'
                    print(
                        f'\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}' if is_terminal else text,
                        end='' if is_terminal else '\n',
                        flush=True,
                    )
                    last_shown = time.monotonic()
            return process.wait()
        finally:
            if is_terminal:
                print('\r\x1b[K', end='', flush=True)
            end_group(process)


def end_group(process: subprocess.Popen) -> None:
    """End the command and its workers, politely at first."""
    if process.poll() is not None:
        return
    for sign, patience_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, sign)
            process.wait(patience_s)
            return
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


# ---- the stages


def resolved(config: Path, options: Mapping[str, str]) -> dict:
    """What the config says, without its comments and layout, and the options on top."""
    return {'config': Config.fromfile(config, import_custom_modules=False).to_dict(), 'options': dict(options)}


def data_options(config: Path, data: Path) -> dict[str, str]:
    """Options that point every path of the config from data/demo to `data`; none when that is where it looks."""
    if data == Path(DEFAULT_DATA):
        return {}
    options: dict[str, str] = {}

    def walk(node: Any, place: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f'{place}.{key}' if place else key)
        elif isinstance(node, (list, tuple)):
            for index, value in enumerate(node):
                walk(value, f'{place}.{index}')
        elif isinstance(node, str) and (node == DEFAULT_DATA or node.startswith(f'{DEFAULT_DATA}/')):
            options[place] = f'{data}{node[len(DEFAULT_DATA) :]}'

    walk(Config.fromfile(config, import_custom_modules=False).to_dict(), '')
    return {key: value for key, value in options.items() if '.' in key}  # plain variables of the file act on nothing


def tool(name: str) -> str:
    return str(ROOT / 'tools' / name)


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
        raise DemoError(f'{config} does not exist')
    work_dir = args.work_dir / name
    options = {'randomness.seed': str(seed), **(QUICK_OPTIONS[task] if args.quick else {})}

    def command() -> list[str]:
        given = {**options, **data_options(config, args.data)}
        if init_from is not None:
            given['model.backbone.init_cfg.checkpoint'] = str(last_checkpoint(init_from))
        return [
            sys.executable,
            tool('train.py'),
            str(config),
            '--work-dir',
            str(work_dir),
            '--cfg-options',
            *(f'{key}={value}' for key, value in given.items()),
        ]

    return Stage(
        name,
        title,
        command,
        {**resolved(config, options), 'starts_from': 'pretrain' if init_from else None},
        needs,
        work_dir,
        work_dir / 'last_checkpoint',
        metrics=TASK_METRICS.get(task, ()),
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
            lambda: list(data_command),
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


def collect_results(demo: Demo, args: argparse.Namespace) -> dict:
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
                for name, value in (demo.metrics_of(demo.stages[stage]) or {}).items():
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
        'data': {'folder': str(args.data), 'hash': demo.data_hash(), 'meta': read_json(args.data / 'meta.json')},
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


def machine() -> dict[str, Any]:
    import torch

    try:
        models = re.findall(r'^model name\s*: (.*)$', Path('/proc/cpuinfo').read_text(encoding='utf-8'), re.MULTILINE)
    except OSError:
        models = []
    return {
        'processor': models[0] if models else platform.processor() or platform.machine(),
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'accelerator': torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'no GPU',
        'platform': platform.platform(),
    }


def versions() -> dict[str, str]:
    found = {'mmcnx2': mmcnx2.__version__, 'python': platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = 'not installed'
    return found


@contextmanager
def quietly(log_path: Path) -> Iterator[None]:
    """What the libraries print goes into a file."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open('w', encoding='utf-8') as log, redirect_stdout(log), redirect_stderr(log):
        yield


def draw_pictures(demo: Demo, args: argparse.Namespace) -> list[tuple[Path, str]]:
    """Draw what the complete stages allow; (file, caption) of each picture."""
    finished = {name for name, stage in demo.stages.items() if demo.complete_marker(stage)}
    folders = {
        task: {
            ROWS[row] + (f', seed {seed}' if seed else ''): args.work_dir / stage_name(task, row, seed)
            for seed in range(args.seeds)
            for row in ROWS
            if stage_name(task, row, seed) in finished
        }
        for task in TASK_METRICS
    }
    curves = {
        'FCMAE pretraining': {'pretraining': args.work_dir / 'pretrain'} if 'pretrain' in finished else {},
        'Mask R-CNN': folders['detect'],
        'UPerNet': folders['segment'],
    }
    pictures = []
    if any(curves.values()):
        path = args.work_dir / 'loss_curves.png'
        pictures.append(
            (path, demo_report.draw_loss_curves({task: runs for task, runs in curves.items() if runs}, path))
        )
    if 'pretrain' in finished:
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
        if stream(command, demo.log_path('reconstruction'), demo.lock_fd, append=False):
            raise DemoError(
                f'the reconstruction sheet could not be drawn; its output: {demo.log_path("reconstruction")}'
            )
        pictures.append(
            (path, 'Validation pictures, which pretraining has not seen: input, what the encoder saw, reconstruction.')
        )
    for task, kind in (('detect', 'detection'), ('segment', 'segmentation')):
        first_seed = {label: folder for label, folder in folders[task].items() if 'seed' not in label}
        if first_seed:
            path = args.work_dir / f'{kind}s.png'
            with quietly(demo.log_path(f'{kind}s')):
                caption = demo_report.draw_samples(kind, first_seed, path, num_pictures=4)
            pictures.append((path, caption))
    return pictures


def report(demo: Demo, args: argparse.Namespace) -> None:
    """Write and print the results; drawn again only when the stages or the report's code changed."""
    markers = {name: marker for name, stage in demo.stages.items() if (marker := demo.complete_marker(stage))}
    own_code = [
        ROOT / 'tools' / 'run_demo.py',
        ROOT / 'tools' / 'visualize_reconstruction.py',
        *sorted(Path(demo_report.__file__).parent.glob('*.py')),
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
            demo_report.write_demo_page(results, draw_pictures(demo, args), files[2])
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
        type=Path,
        help='where everything is written; default work_dirs/demo (--quick: work_dirs/demo_quick)',
    )
    parser.add_argument(
        '--data', type=Path, help=f'folder of the pictures; default {DEFAULT_DATA} (--quick: {DEFAULT_DATA}_quick)'
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
        raise DemoError(f'--seeds {args.seeds}: at least one run per row is needed')
    stages = build_stages(args)
    wanted = args.stages or [*stages, 'report']
    unknown = [name for name in wanted if name not in stages and name != 'report']
    if unknown:
        raise DemoError(f'unknown stage {" ".join(unknown)}; the stages are {" ".join([*stages, "report"])}')
    args.work_dir.mkdir(parents=True, exist_ok=True)
    with (args.work_dir / '.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(
                f'{args.work_dir} is in use by another run of the demo, or by a command that it left behind'
            ) from None
        demo = Demo(args.work_dir, args.data, stages, args.force, lock_fd=lock.fileno())
        for name, stage in stages.items():
            if name in wanted:
                demo.run(stage)
        if 'report' in wanted:
            report(demo, args)


def stop(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, stop)
    try:
        run(args)
    except KeyboardInterrupt:
        print('\ninterrupted; the same command goes on from here', file=sys.stderr)
        return 130
    except (DemoError, OSError, ValueError, KeyError) as error:
        print(
            f'error: {error.args[0] if isinstance(error, (DemoError, KeyError)) and error.args else error}',
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
