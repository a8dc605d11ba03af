"""What is known about a run from its work dir alone: task, config, curves, checkpoints, tests. Nothing is fatal.

A work dir is what tools/train.py leaves, and mmengine's own tools: folders named by start times with their logs, the
dumped config, checkpoints. What is missing or damaged becomes a sentence in `problems`. Touch it for what is read; not
for how it is shown (run_report.py) nor for what needs a model (evaluation.py). Guarded by
tests/analysis/test_run_facts.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mmcnx2.engine.user_errors import one_line

from .metrics import METRICS, tested_metrics
from .run_log import Curve, RunLog, last_checkpoint, read_run, stored_config

SCOPES = {'mmdet': 'detection', 'mmseg': 'segmentation', 'mmpretrain': 'classification'}
# A metric's name as logged begins so; for runs whose config cannot be read
LOGGED_BY = {'coco/': 'detection', 'mIoU': 'segmentation', 'accuracy/': 'classification'}
OTHER = 'other'
TIME = re.compile(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ', re.MULTILINE)
# What mmengine writes at the start of its log, by the name it has here
ENVIRONMENT = {'python': 'Python', 'torch': 'PyTorch', 'mmengine': 'MMEngine', 'seed': 'seed'}


@dataclass(frozen=True)
class RunFacts:
    """One run.

    Attributes:
        task: pretraining, classification, detection, segmentation or other.
        config: as stored in the work dir, plain dicts; empty when it cannot be read.
        tested: metrics in 0..1 that a test wrote into the work dir; empty when none did.
        checkpoint: the last one, None without any. best_checkpoint: the newest `best_*` file.
        environment: 'processes', 'device', 'seed' and versions ('python', 'torch', 'mmengine') of the last attempt, as
            far as its text log names them.
        started: of the first attempt, as its text log writes it; '' when there is none.
        collapse: step -> layer -> what was measured, from collapse/epoch_N.json, in order; collapse_unit: of the steps.
        wall_seconds: of all attempts, from the first to the last line of their text logs.
        problems: sentences on what is missing or damaged.
    """

    label: str
    folder: Path
    task: str
    config: dict[str, Any]
    log: RunLog
    tested: dict[str, float] = field(default_factory=dict)
    checkpoint: Path | None = None
    best_checkpoint: Path | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    started: str = ''
    wall_seconds: float | None = None
    collapse: dict[int, dict[str, dict]] = field(default_factory=dict)
    collapse_unit: str = 'epochs'
    problems: tuple[str, ...] = ()

    @property
    def is_nothing(self) -> bool:
        """True when the folder holds nothing of a run: no config, no log, no pointer to a checkpoint."""
        return not (is_run(self.folder) or any(self.folder.glob('*.py')))

    @property
    def last_step(self) -> int | None:
        """The last training step that was logged."""
        return max((curve.steps[-1] for curve in self.log.train.values()), default=None)

    @property
    def schedule(self) -> tuple[int, str] | None:
        """(1000, 'iterations') or (18, 'epochs'): what the config asks for."""
        loop = self.config.get('train_cfg') or {}
        if loop.get('max_iters'):
            return int(loop['max_iters']), 'iterations'
        return (int(loop['max_epochs']), 'epochs') if loop.get('max_epochs') else None

    @property
    def images_per_step(self) -> int | None:
        """Batch size times processes; one process where the log does not say."""
        loader = self.config.get('train_dataloader') or {}
        batch_size = loader.get('batch_size') or (loader.get('batch_sampler') or {}).get('batch_size')
        return batch_size * self.environment.get('processes', 1) if batch_size else None


def is_run(folder: Path) -> bool:
    """True for a folder in which a training was started."""
    return any(folder.glob('*/vis_data/scalars.json')) or (folder / 'last_checkpoint').is_file()


def find_runs(place: Path) -> list[Path]:
    """The run that `place` is, else all runs below it, by name; what lies inside a run is none of its own.

    FileNotFoundError when there is nothing of this name, NotADirectoryError for a file. A folder without any run is
    answered as it is: a training may have begun there and logged nothing yet.
    """
    if not place.is_dir():
        kind = NotADirectoryError if place.exists() else FileNotFoundError
        raise kind(f'{place} is no folder; give work dirs of training runs, or a folder that holds some')
    found = [] if is_run(place) else _runs_below(place)
    return found or [place]


def _runs_below(place: Path) -> list[Path]:
    found = []
    for folder in sorted((each for each in place.iterdir() if each.is_dir()), key=lambda path: natural(path.name)):
        found += [folder] if is_run(folder) else _runs_below(folder)
    return found


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which seed2 comes before seed10."""
    return [(int(part), '') if part.isdigit() else (-1, part) for part in re.split(r'(\d+)', name)]


def run_labels(folders: Sequence[Path]) -> list[str]:
    """A name per folder, as short as tells them apart: its own name, with as many parents as it takes."""
    paths = [folder.absolute() for folder in folders]
    labels = []
    for path in paths:
        others = [other for other in paths if other != path]
        depth = 1
        while depth < len(path.parts) - 1 and any(other.parts[-depth:] == path.parts[-depth:] for other in others):
            depth += 1
        labels.append('/'.join(path.parts[-depth:]))
    return labels


def read_facts(label: str, folder: Path) -> RunFacts:
    """Everything that the work dir tells. Never raises for what is in it."""
    problems: list[str] = []

    def attempt(what: str, read, fallback):
        try:
            return read()
        except Exception as error:  # whatever lies in the folder, the other runs are to be shown
            problems.append(f'{label}: {what}: {one_line(error)}')
            return fallback

    config = attempt('its config cannot be read', lambda: read_config(folder), {})
    log = attempt('its log cannot be read', lambda: read_run(folder, tolerant=True), RunLog())
    problems += [f'{label}: {problem}' for problem in log.problems]
    problems += [f'{label}: {sentence}' for sentence in _divergences(log)]
    text_logs = attempt('its text logs cannot be read', lambda: _text_logs(folder), [])
    seconds = [elapsed for text in text_logs if (elapsed := _elapsed(text)) is not None]
    collapse, unit = attempt('its feature collapse cannot be read', lambda: _collapse(folder), ({}, 'epochs'))
    pointer = folder / 'last_checkpoint'
    checkpoint = attempt('its last checkpoint', lambda: last_checkpoint(folder), None) if pointer.exists() else None
    return RunFacts(
        label=label,
        folder=folder,
        task=task_of(config, log),
        config=config,
        log=log,
        tested=attempt('its test results cannot be read', lambda: _tested(folder), {}),
        checkpoint=checkpoint,
        best_checkpoint=max(folder.glob('best_*.pth'), key=lambda path: path.stat().st_mtime, default=None),
        environment=_environment(text_logs[-1]) if text_logs else {},
        started=next(iter(TIME.findall(text_logs[0])), '') if text_logs else '',
        wall_seconds=sum(seconds) if seconds else None,
        collapse=collapse,
        collapse_unit=unit,
        problems=tuple(problems),
    )


def read_config(folder: Path) -> dict[str, Any]:
    from mmengine.config import Config

    return Config.fromfile(stored_config(folder), import_custom_modules=False).to_dict()


def task_of(config: Mapping, log: RunLog) -> str:
    """By the config; where there is none, by the names of what was logged."""
    if str((config.get('model') or {}).get('type', '')).rsplit('.', 1)[-1] == 'FCMAE':
        return 'pretraining'
    if config.get('default_scope') in SCOPES:
        return SCOPES[config['default_scope']]
    for beginning, task in LOGGED_BY.items():
        if any(name.startswith(beginning) for name in log.val):
            return task
    return OTHER


def _divergences(log: RunLog) -> list[str]:
    loss = log.train.get('loss', Curve())
    bad = [step for step, value in zip(loss.steps, loss.values, strict=True) if not math.isfinite(value)]
    return [f'the loss is not finite in {len(bad)} log entries, first at step {bad[0]}'] if bad else []


def _tested(folder: Path) -> dict[str, float]:
    for path in (folder / 'metrics.json', folder / 'test' / 'metrics.json'):
        if path.is_file():
            values = json.loads(path.read_text(encoding='utf-8'))
            return tested_metrics(path, [name for name, (logged, _) in METRICS.items() if logged in values])
    return {}


def _text_logs(folder: Path) -> list[str]:
    """The text logs of the attempts that trained, oldest first."""
    attempts = sorted(path.parent.parent for path in folder.glob('*/vis_data/scalars.json'))
    paths = [attempt / f'{attempt.name}.log' for attempt in attempts]
    return [path.read_text(encoding='utf-8', errors='replace') for path in paths if path.is_file()]


def _elapsed(text: str) -> float | None:
    """Seconds between the first and the last line that carry a time."""
    times = TIME.findall(text)
    if len(times) < 2:
        return None
    first, last = (datetime.strptime(each, '%Y/%m/%d %H:%M:%S') for each in (times[0], times[-1]))
    return (last - first).total_seconds()


def _environment(text: str) -> dict[str, Any]:
    """Versions, seed, 'processes' and 'device' from what mmengine writes at the start of its log."""
    found: dict[str, Any] = {}
    for name, written in ENVIRONMENT.items():
        if value := re.search(rf'^\s*{written}: (\S+)', text, re.MULTILINE):
            found[name] = value[1]
    processes = re.search(r'^\s*GPU number: (\d+)\s*$', text, re.MULTILINE)
    if processes:
        found['processes'] = max(int(processes[1]), 1)
    device = re.search(r'^\s*GPU 0[\d,]*: (.+)$', text, re.MULTILINE)
    if device:
        found['device'] = device[1].strip()
    elif re.search(r'^\s*CUDA available: False\s*$', text, re.MULTILINE):
        found['device'] = 'CPU'
    return found


def _collapse(folder: Path) -> tuple[dict[int, dict[str, dict]], str]:
    """What mmcnx2.CollapseHook wrote during training, and what its steps count: epochs, where there are both."""
    by_unit: dict[str, dict[int, dict[str, dict]]] = {'epochs': {}, 'iterations': {}}
    for path in sorted((folder / 'collapse').glob('*.json'), key=lambda path: natural(path.name)):
        named = re.fullmatch(r'(epoch|iter)_(\d+)', path.stem)
        if named is None:
            continue
        try:
            layers = json.loads(path.read_text(encoding='utf-8'))
            is_whole = all(
                math.isfinite(found['distance'] + found['num_channels'] + found['num_dead'])
                for found in layers.values()
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            is_whole = False
        if not is_whole:
            raise ValueError(f'{path} is not what the hook writes: per layer distance, num_channels, num_dead')
        by_unit['epochs' if named[1] == 'epoch' else 'iterations'][int(named[2])] = layers
    return next(((found, unit) for unit, found in by_unit.items() if found), ({}, 'epochs'))
