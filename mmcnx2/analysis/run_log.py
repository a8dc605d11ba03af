"""A training run read back from its work dir: the numbers of `<start time>/vis_data/scalars.json`, config and last
checkpoint.

A run that was stopped and resumed has several of these folders, and the later one starts again at its checkpoint:
lines of the earlier ones from that step on did not lead to the result and are dropped. Touch it when mmengine changes
its files; not for plots. Guarded by tests/analysis/test_run_log.py.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Curve:
    """One logged quantity: `values[i]` at `steps[i]` (iterations; epochs for validation in epoch-based runs)."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class RunLog:
    """`train` and `val`: name -> Curve. A line with a loss or a learning rate is of training, others of validation."""

    train: dict[str, Curve] = field(default_factory=dict)
    val: dict[str, Curve] = field(default_factory=dict)

    def last(self, name: str) -> float:
        """Last validation value of `name`; KeyError lists what there is."""
        if name not in self.val:
            raise KeyError(f'{name!r} was not logged in a validation; logged are {sorted(self.val)}')
        return self.val[name].values[-1]


def _is_training(line: dict) -> bool:
    return 'lr' in line or 'base_lr' in line or any(name == 'loss' or name.startswith('loss_') for name in line)


def _lines(path: Path) -> list[dict]:
    """The JSON objects of a file, one per line; a last line that a killed process left half written is dropped."""
    lines = []
    texts = path.read_text(encoding='utf-8').splitlines()
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            if number < len(texts):
                raise ValueError(f'{path}, line {number} is not JSON: {error}') from error
    return lines


def merge_attempts(attempts: list[list[dict]]) -> list[dict]:
    """Lines of one run in order; an attempt replaces what earlier ones logged from its first step on.

    Training and validation are looked at apart, since their steps may count different things.
    """
    merged: list[dict] = []
    for lines in attempts:
        for is_training in (True, False):
            steps = [line['step'] for line in lines if 'step' in line and _is_training(line) == is_training]
            if steps:
                merged = [line for line in merged if _is_training(line) != is_training or line['step'] < min(steps)]
        merged += [line for line in lines if 'step' in line]
    return merged


def curves_of(lines: list[dict]) -> dict[str, Curve]:
    """Name -> Curve over all numbers of the lines but their counters; NaN stays, since a diverged run must show."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name not in ('step', 'iter', 'epoch') and is_number:
                points.setdefault(name, []).append((int(line['step']), float(value)))
    return {name: Curve(*map(tuple, zip(*pairs, strict=True))) for name, pairs in points.items()}


def read_run(work_dir: str | Path) -> RunLog:
    """The curves of the run in `work_dir`, over all its attempts. FileNotFoundError when nothing was logged there."""
    paths = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not paths:
        raise FileNotFoundError(
            f'no */vis_data/scalars.json in {work_dir}: nothing was trained there, or without the local visualizer'
        )
    lines = merge_attempts([_lines(path) for path in paths])
    return RunLog(
        train=curves_of([line for line in lines if _is_training(line)]),
        val=curves_of([line for line in lines if not _is_training(line)]),
    )


def mean_smoothed(values: tuple[float, ...], window: int) -> list[float]:
    """Trailing mean: entry i averages the last `window` values up to i (fewer at the start)."""
    if window < 1:
        raise ValueError(f'window={window}; it must be at least 1')
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def last_checkpoint(work_dir: str | Path) -> Path:
    """The checkpoint that a run's `last_checkpoint` names, found also when the folder was moved since."""
    pointer = Path(work_dir) / 'last_checkpoint'
    if not pointer.is_file():
        raise FileNotFoundError(f'{pointer} does not exist: no training has stored a checkpoint in this folder')
    named = Path(pointer.read_text(encoding='utf-8').strip())
    for path in (Path(work_dir) / named.name, named):
        if path.is_file():
            return path
    raise FileNotFoundError(f'{pointer} names {named}, which does not exist')


def stored_config(work_dir: str | Path) -> Path:
    """Path of the config, with all its options, that tools/train.py stored in the work dir."""
    paths = sorted(Path(work_dir).glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise FileNotFoundError(f'{work_dir} holds no config (*.py): no training was started there')
    return paths[-1]
