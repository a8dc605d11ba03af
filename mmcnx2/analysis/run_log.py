"""A training run read back from its work dir: the numbers of `<start time>/vis_data/scalars.json`, config and last
checkpoint.

A run that was stopped and resumed has several of these folders, and the later one starts again at its checkpoint:
lines of the earlier ones from that step on did not lead to the result and are dropped. Touch it when mmengine changes
its files; not for plots. Guarded by tests/analysis/test_run_log.py.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Curve:
    """One logged quantity: `values[i]` at `steps[i]` (iterations; epochs for validation in epoch-based runs)."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class RunLog:
    """`train` and `val`: name -> Curve. A line with a loss or a learning rate is of training, others of validation.

    `val_unit`: what the steps of `val` count, 'epochs' or 'iterations'. `problems`: sentences on what could not be
    read; `num_attempts`: how often the run was started and logged something.
    """

    train: dict[str, Curve] = field(default_factory=dict)
    val: dict[str, Curve] = field(default_factory=dict)
    val_unit: str = 'iterations'
    problems: tuple[str, ...] = ()
    num_attempts: int = 0

    def last(self, name: str) -> float:
        """Last validation value of `name`; KeyError lists what there is."""
        if name not in self.val:
            raise KeyError(f'{name!r} was not logged in a validation; logged are {sorted(self.val)}')
        return self.val[name].values[-1]


def _is_training(line: dict) -> bool:
    return 'lr' in line or 'base_lr' in line or any(name == 'loss' or name.startswith('loss_') for name in line)


def _lines(path: Path) -> tuple[list[dict], list[str]]:
    """The JSON objects of a file, one per line, that have a step, and sentences about the lines that are none.

    A last line that a killed process left half written is dropped without a word.
    """
    lines, problems = [], []
    texts = path.read_text(encoding='utf-8', errors='replace').splitlines()
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            if number < len(texts):
                problems.append(f'{path}, line {number} is not JSON: {error}')
            continue
        if not isinstance(line, dict) or not _is_number(line.get('step', 0)) or not math.isfinite(line.get('step', 0)):
            problems.append(f'{path}, line {number} is no log entry: {text[:80]}')
        elif 'step' in line:
            lines.append(line)
    return lines, problems


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63  # what a damaged log holds beyond is no count
    return isinstance(value, float)


def _placed_validations(lines: list[dict]) -> tuple[list[dict], list[bool]]:
    """The lines of one attempt in which every validation has a step, and for each whose step can be told apart, whether
    it counts epochs.

    A loop over iterations whose logger counts epochs writes 0 for every validation; such a one gets the last training
    step that was logged before it.
    """
    placed, last, by_epoch = [], None, []
    for line in lines:
        if _is_training(line):
            last = line
        elif last is not None:
            by_epoch.append(line['step'] == last.get('epoch'))
            if line['step'] == 0:
                line = {**line, 'step': last['step']}
        placed.append(line)
    return placed, by_epoch


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
            if name not in ('step', 'iter', 'epoch') and _is_number(value):
                points.setdefault(name, []).append((int(line['step']), float(value)))
    return {name: Curve(*map(tuple, zip(*pairs, strict=True))) for name, pairs in points.items()}


def read_run(work_dir: str | Path, tolerant: bool = False) -> RunLog:
    """The curves of the run in `work_dir`, over all its attempts.

    Raises, unless `tolerant`, when nothing was logged there (FileNotFoundError) or a line cannot be read (ValueError).
    With `tolerant` the rest is read, and `problems` of the answer names what is wrong.
    """
    paths = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    attempts, problems, by_epoch = [], [], []
    if not paths:
        place = f'no */vis_data/scalars.json in {work_dir}'
        problem = f'{place}: nothing was trained there, or without the local visualizer'
        if not tolerant:
            raise FileNotFoundError(problem)
        problems.append(problem)
    for path in paths:
        try:
            lines, found = _lines(path)
        except OSError as error:
            if not tolerant:
                raise
            lines, found = [], [f'{path} cannot be read: {error.strerror}']
        if found and not tolerant:
            raise ValueError(found[0])
        lines, counts_epochs = _placed_validations(lines)
        problems += found
        attempts.append(lines)
        by_epoch += counts_epochs
    if paths and not any(attempts):
        problems.append(f'{paths[-1]} holds no log entry')
    lines = merge_attempts(attempts)
    return RunLog(
        train=curves_of([line for line in lines if _is_training(line)]),
        val=curves_of([line for line in lines if not _is_training(line)]),
        val_unit='epochs' if by_epoch and all(by_epoch) else 'iterations',
        problems=tuple(problems),
        num_attempts=sum(bool(lines) for lines in attempts),
    )


def seconds_of_steps(log: RunLog) -> float | None:
    """What the training steps took: the logged mean time of a step times the steps since the line before.

    Steps that an interruption undid are not in it, nor are validations and start-up. None when no time was logged.
    """
    time = log.train.get('time')
    if time is None:
        return None
    before = (0, *time.steps[:-1])
    return sum(
        value * (step - last)
        for value, step, last in zip(time.values, time.steps, before, strict=True)
        if math.isfinite(value)
    )


def best_of(curve: Curve, lowest: bool = False) -> tuple[float, int] | None:
    """(best value, its step), the earliest of equals; None when no value is finite."""
    finite = [(value, step) for value, step in zip(curve.values, curve.steps, strict=True) if math.isfinite(value)]
    return (min if lowest else max)(finite, key=lambda point: point[0]) if finite else None


def thinned(curve: Curve, most: int) -> Curve:
    """The curve with about `most` points at most: the first, the last, and the lowest and highest of every stretch.

    A value that is not finite stays when it is the first of its stretch, so a run that diverged still shows it.
    """
    if most < 4:
        raise ValueError(f'most={most}; it must be at least 4')
    count = len(curve.steps)
    if count <= most:
        return curve
    num_stretches = (most - 2) // 3 or 1
    kept = {0, count - 1}
    for k in range(num_stretches):
        stretch = range(k * count // num_stretches, (k + 1) * count // num_stretches)
        finite = [i for i in stretch if math.isfinite(curve.values[i])]
        kept.update([i for i in stretch if not math.isfinite(curve.values[i])][:1])
        if finite:
            kept.update((min(finite, key=curve.values.__getitem__), max(finite, key=curve.values.__getitem__)))
    indices = sorted(kept)
    return Curve(tuple(curve.steps[i] for i in indices), tuple(curve.values[i] for i in indices))


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
