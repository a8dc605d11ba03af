"""Runs side by side as sections of a page: results, cost, curves, pictures, confused classes, differences of configs.

A section per task. Facts in (run_facts.py), sections out (page.py); nothing is computed from a model here. Touch it for
what the page says of runs. The demo puts its own table before it (demo_report.py). Guarded by
tests/analysis/test_run_report.py.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .comparison import NOT_RUN
from .config_differences import config_differences
from .confusion import intersections_over_unions
from .evaluation import NOTHING, Confusion, ModelCost
from .figures import Line, Matrix, Panel
from .metrics import METRICS
from .page import Cell, Charts, Code, Folded, Heading, Notice, Part, Picture, Section, Table, Text, number_cell
from .run_facts import OTHER, RunFacts, natural
from .run_log import Curve, best_of, mean_smoothed, seconds_of_steps, stored_config

TITLES = {
    'pretraining': 'Pretraining',
    'classification': 'Classification',
    'detection': 'Detection',
    'segmentation': 'Segmentation',
    OTHER: 'Other runs',
}  # in this order
FLAT_CELL = (1.0, 'a flat cell scores 1')
LEARNING_RATES = ('base_lr', 'lr')  # the first that was logged; 'lr' alone is that of the first layer under layer decay
MANY_DIFFERENCES = 12  # beyond so many rows they are folded
MANY_CLASSES = 25
MANY_COMMANDS = 4
# Folders of a work dir whose pictures are shown; the training hooks write into the plural and `collapse`
RECONSTRUCTIONS, ANALYSES = ('reconstruction', 'reconstructions'), ('analysis', 'collapse')
MOST_SHEETS = 4  # of a series of pictures; all but the last are folded
RECONSTRUCTION_ERROR = 'reconstruction/error_'  # and the mask ratio; mmcnx2.ReconstructionHook logs it
# Layers that mmcnx2.CollapseHook measured and that are shown together, by the end of their names
COLLAPSE_KINDS = {'before GRN': '.gelu', 'after GRN': '.grn'}
MOST_PARTS = 8  # curves of parts of the loss


@dataclass(frozen=True)
class Extras:
    """What takes a model to know, as far as it was computed: by folder of the run, pictures by task."""

    costs: Mapping[Path, ModelCost] = field(default_factory=dict)
    confusions: Mapping[Path, Confusion] = field(default_factory=dict)
    samples: Mapping[str, Sequence[tuple[Path, str]]] = field(default_factory=dict)


def run_sections(runs: Sequence[RunFacts], extras: Extras | None = None) -> list[Section]:
    """A section per task that occurs, and one on what the runs cost; runs in the order given."""
    extras = extras or Extras()
    by_task = {task: [facts for facts in runs if facts.task == task] for task in TITLES}
    return [
        *(Section(TITLES[task], task_parts(mine, extras)) for task, mine in by_task.items() if mine),
        Section('Cost', [cost_table([facts for mine in by_task.values() for facts in mine], extras.costs), COST_NOTE]),
    ]


def task_parts(runs: Sequence[RunFacts], extras: Extras) -> list[Part]:
    """Everything about the runs of one task."""
    parts: list[Part] = [results_table(runs)]
    charts = metric_panels(runs) + [panel for panel in (loss_panel(runs), learning_rate_panel(runs)) if panel]
    if charts:
        parts.append(Charts(charts))
    more = more_panels(runs)
    if more:
        parts.append(Folded('More curves: parts of the loss, gradients', [Charts(more)]))
    pictures: list[Part] = [Picture(path, caption) for path, caption in extras.samples.get(runs[0].task, ())]
    for facts in runs:
        pictures += pictures_of(facts.folder, RECONSTRUCTIONS, facts.label)
    if pictures:
        parts += [Heading('Pictures'), *pictures]
    parts += collapse_parts(runs)
    counted = {facts.label: extras.confusions[facts.folder] for facts in runs if facts.folder in extras.confusions}
    parts += confusion_parts(counted)
    analysis = [part for facts in runs for part in pictures_of(facts.folder, ANALYSES, facts.label)]
    if analysis:
        parts += [Heading('Analysis'), *analysis]
    parts += difference_parts(runs)
    others = other_metrics(runs)
    if others:
        parts.append(Folded('All that was measured beside the training, last values as logged', [others]))
    return parts


def problems_notice(problems: Sequence[str]) -> list[Section]:
    """A section that names what could not be read or done; nothing without any."""
    return [Section('Not everything could be read', [Notice(problems)])] if problems else []


# ---- tables


def share_text(value: float) -> str:
    return f'{value:.3f}'


def loss_text(value: float) -> str:
    return f'{value:.4g}'


def at_text(step: int, unit: str) -> str:
    return f'epoch {step}' if unit == 'epochs' else f'iter {step}'


def metric_curve(facts: RunFacts, metric: str) -> Curve:
    """The metric in 0..1 over the validations; empty when it was not measured."""
    logged, divisor = METRICS[metric]
    curve = _validated(facts, logged)
    return Curve(curve.steps, tuple(value / divisor for value in curve.values))


def measured_metrics(runs: Sequence[RunFacts]) -> list[str]:
    return [name for name in METRICS if any(metric_curve(facts, name).steps or name in facts.tested for facts in runs)]


def results_table(runs: Sequence[RunFacts]) -> Table:
    """Per run: last and best value of each metric and what a test found, some losses, how far it got."""
    columns: list[tuple[str, Callable[[RunFacts], Cell]]] = []
    for metric in measured_metrics(runs):
        if any(metric_curve(facts, metric).steps for facts in runs):
            columns.append((metric, lambda facts, m=metric: _last_cell(metric_curve(facts, m), share_text)))
        if any(len(metric_curve(facts, metric).steps) > 1 for facts in runs):
            columns.append((f'best {metric}', lambda facts, m=metric: _best_cell(facts, m)))
        if any(metric in facts.tested for facts in runs):
            columns.append((f'{metric}, tested', lambda facts, m=metric: _value_cell(facts.tested.get(m), share_text)))
    for name in reconstruction_errors(runs):
        columns.append((_error_title(name), lambda facts, n=name: _last_cell(_validated(facts, n), loss_text)))
    columns += [
        ('last loss', lambda facts: _last_cell(_loss(facts), loss_text)),
        ('lowest loss', _lowest_cell),
        ('steps', _steps_cell),
        ('state', lambda facts: Cell(state_of(facts))),
    ]
    return Table(
        ['run', *(name for name, _ in columns)],
        [[facts.label, *(read(facts) for _, read in columns)] for facts in runs],
    )


def _validated(facts: RunFacts, name: str) -> Curve:
    return facts.log.val.get(name, Curve())


def reconstruction_errors(runs: Sequence[RunFacts]) -> list[str]:
    """Names as logged, one per mask ratio: the error over hidden cells of the pictures on the sheets."""
    return sorted({name for facts in runs for name in facts.log.val if name.startswith(RECONSTRUCTION_ERROR)})


def _error_title(name: str) -> str:
    return f'error of the sheet, {name.removeprefix(RECONSTRUCTION_ERROR)} hidden'


def _loss(facts: RunFacts) -> Curve:
    return facts.log.train.get('loss', Curve())


def _value_cell(value: float | None, text: Callable[[float], str]) -> Cell:
    return number_cell(value, 'nan' if value is None or math.isnan(value) else text(value))


def _last_cell(curve: Curve, text: Callable[[float], str]) -> Cell:
    return _value_cell(curve.values[-1] if curve.values else None, text)


def _best_cell(facts: RunFacts, metric: str) -> Cell:
    best = best_of(metric_curve(facts, metric))
    if best is None:
        return Cell(NOT_RUN)
    return Cell(f'{share_text(best[0])} ({at_text(best[1], facts.log.val_unit)})', best[0])


def _lowest_cell(facts: RunFacts) -> Cell:
    best = best_of(_loss(facts), lowest=True)
    return Cell(NOT_RUN) if best is None else Cell(f'{loss_text(best[0])} ({at_text(best[1], "iterations")})', best[0])


def _steps_cell(facts: RunFacts) -> Cell:
    step = facts.last_step
    return Cell(NOT_RUN) if step is None else Cell(f'{step:,}', step)


def state_of(facts: RunFacts) -> str:
    """'complete, 2 starts', 'at 250 of 1000 iterations', 'no checkpoint'; '-' when the schedule is not known.


    From the last checkpoint's name, epoch_N.pth or iter_N.pth.
    """
    if facts.checkpoint is None:
        return 'no checkpoint'
    named = re.fullmatch(r'(epoch|iter)_(\d+)', facts.checkpoint.stem)
    if facts.schedule is None or named is None:
        return NOT_RUN
    end, unit = facts.schedule
    reached = int(named[2])
    if (named[1] == 'epoch') != (unit == 'epochs'):
        return f'at {named[1]} {reached}; {end} {unit} were asked for'
    resumed = f', {facts.log.num_attempts} starts' if facts.log.num_attempts > 1 else ''
    return ('complete' if reached >= end else f'at {reached} of {end} {unit}') + resumed


COST_NOTE = Text(
    [
        'Training: the logged time of a step times the steps, without validations and start-up; in all: from the first '
        'to the last line of the text logs, over all starts. FLOPs are multiply-adds of one image of the size given.'
    ]
)
COST_HEADER = (
    'run', 'task', 'training', 'in all', 'per step', 'images seen', 'memory', 'parameters', 'FLOPs', 'machine'
)  # fmt: skip


def cost_table(runs: Sequence[RunFacts], costs: Mapping[Path, ModelCost]) -> Table:
    """Per run: time, images, memory, parameters and FLOPs; what is not known is '-'."""
    rows = []
    for facts in runs:
        seconds, wall = seconds_of_steps(facts.log), facts.wall_seconds
        times = [value for value in facts.log.train.get('time', Curve()).values if math.isfinite(value)]
        step_time = statistics.median(times) if times else None
        images = facts.images_per_step * facts.last_step if facts.images_per_step and facts.last_step else None
        memory = max(facts.log.train.get('memory', Curve()).values, default=None)
        cost = costs.get(facts.folder)
        where = facts.environment.get('device', NOT_RUN)
        count = facts.environment.get('processes', 1)
        rows.append(
            [
                facts.label,
                Cell(facts.task),
                number_cell(seconds, duration(seconds or 0)),
                number_cell(wall, duration(wall or 0)),
                number_cell(step_time, f'{step_time or 0:.3g} s'),
                number_cell(images, f'{images or 0:,}'),
                number_cell(memory, f'{(memory or 0) / 1024:.2f} GB'),
                number_cell(cost.params if cost else None, f'{cost.params / 1e6:.2f} M' if cost else ''),
                number_cell(
                    cost.flops if cost else None,
                    f'{cost.flops / 1e9:.3g} G ({cost.width} x {cost.height})' if cost else '',
                ),
                where if count == 1 else f'{count} x {where}',
            ]
        )
    return Table(COST_HEADER, rows)


def duration(seconds: float) -> str:
    """'42 s', '12 min 05 s', '3 h 20 min'."""
    whole = round(seconds)
    if whole < 60:
        return f'{seconds:.3g} s'
    if whole < 3600:
        return f'{whole // 60} min {whole % 60:02d} s'
    return f'{whole // 3600} h {whole % 3600 // 60:02d} min'


def difference_parts(runs: Sequence[RunFacts]) -> list[Part]:
    """Where the configs of the runs differ; folded when there is much of it."""
    known = [facts for facts in runs if facts.config]
    if len(known) < 2:
        return []
    found = config_differences([_settings(facts.config) for facts in known])
    if not found:
        return [Heading('Configs'), Text(['The configs are equal, apart from the work dir.'])]
    table = Table(['key', *(facts.label for facts in known)], [[each.key, *each.values] for each in found], words=True)
    count = f'{len(found)} keys differ' if len(found) > 1 else '1 key differs'
    shown = Folded(f'{count}, apart from the work dir', [table]) if len(found) > MANY_DIFFERENCES else table
    return [Heading('Where the configs differ'), shown]


def _settings(config: Mapping) -> Mapping:
    """The config as it was before the run was resumed: where it went on is no difference."""
    return {**config, 'resume': False, 'load_from': None} if config.get('resume') else config


def other_metrics(runs: Sequence[RunFacts]) -> Table | None:
    """Every number that no training step logged, a row per name, its last value; None when there is none."""
    names = dict.fromkeys(name for facts in runs for name in facts.log.val)
    if not names:
        return None
    curves = [[facts.log.val.get(name, Curve()) for facts in runs] for name in names]
    rows = [
        [name, *(_last_cell(curve, lambda value: f'{value:.5g}') for curve in mine)]
        for name, mine in zip(names, curves, strict=True)
    ]
    return Table(['measured', *(facts.label for facts in runs)], rows)


# ---- charts


def smoothed_line(label: str, curve: Curve, style: int) -> Line:
    """With a running mean over a twentieth of the entries where there are enough of them."""
    window = max(1, len(curve.values) // 20)
    return Line(label, curve, mean_smoothed(curve.values, window) if window > 1 else None, style)


def loss_panel(runs: Sequence[RunFacts]) -> Panel | None:
    lines = [smoothed_line(facts.label, _loss(facts), style) for style, facts in enumerate(runs) if _loss(facts).steps]
    reference = FLAT_CELL if runs[0].task == 'pretraining' else None
    return Panel('training loss', 'iterations', 'training loss', lines, reference) if lines else None


def learning_rate_panel(runs: Sequence[RunFacts]) -> Panel | None:
    lines = []
    for style, facts in enumerate(runs):
        name = next((name for name in LEARNING_RATES if name in facts.log.train), None)
        if name:
            lines.append(Line(facts.label, facts.log.train[name], style=style))
    return Panel('learning rate', 'iterations', 'learning rate', lines) if lines else None


def metric_panels(runs: Sequence[RunFacts]) -> list[Panel]:
    """A panel per metric, and per error of the sheets, that a run measured more than once, and per unit in which its
    validations are counted.
    """
    wanted = [(metric, lambda facts, m=metric: metric_curve(facts, m), None) for metric in measured_metrics(runs)]
    wanted += [
        (_error_title(name), lambda facts, n=name: _validated(facts, n), FLAT_CELL)
        for name in reconstruction_errors(runs)
    ]
    panels = []
    for title, curve_of, reference in wanted:
        for unit in ('epochs', 'iterations'):
            lines = [
                Line(facts.label, curve_of(facts), style=style)
                for style, facts in enumerate(runs)
                if facts.log.val_unit == unit and curve_of(facts).steps
            ]
            if any(len(line.curve.steps) > 1 for line in lines):
                panels.append(Panel(title, unit, title, lines, reference))
    return panels


def more_panels(runs: Sequence[RunFacts]) -> list[Panel]:
    """Parts of the loss, when there are several, and the norm of the gradients."""
    names = dict.fromkeys(name for facts in runs for name in facts.log.train)
    parts = [name for name in names if 'loss' in name and name != 'loss']
    wanted = (parts[:MOST_PARTS] if len(parts) > 1 else []) + [name for name in names if name == 'grad_norm']
    return [
        Panel(
            name,
            'iterations',
            name,
            [
                smoothed_line(facts.label, facts.log.train[name], style)
                for style, facts in enumerate(runs)
                if name in facts.log.train
            ],
        )
        for name in wanted
    ]


# ---- confused classes


def confusion_parts(confusions: Mapping[str, Confusion]) -> list[Part]:
    """A matrix per run, and a table of the classes of all runs."""
    if not confusions:
        return []
    some = next(iter(confusions.values()))
    matrices = [
        Matrix(label, 'predicted', 'true', each.classes, each.classes, each.counts)
        for label, each in confusions.items()
    ]
    return [
        Heading('Which classes are taken for which'),
        Text([CONFUSION_NOTES[some.unit]]),
        Charts(matrices),
        *(
            Folded(f'All {len(table.rows)} classes', [table]) if len(table.rows) > MANY_CLASSES else table
            for table in class_tables(confusions)
        ),
        Text([CLASS_NOTE]),
    ]


CONFUSION_NOTES = {
    'pixels': 'Validation pixels: the share of the true class, in per cent, that was given to each class.',
    'images': 'Validation images: the share of the true class, in per cent, that was given to each class.',
    'objects': (
        'Validation objects and detections that score 0.5 or more, paired where they overlap with an IoU of 0.5 or '
        f'more, whatever their class. Last column: objects that nothing was paired with; row "{NOTHING}": detections '
        'without an object, by class. Shares of the row in per cent.'
    ),
}


def class_tables(confusions: Mapping[str, Confusion]) -> list[Table]:
    """Per class, runs side by side; runs with the same classes share a table."""
    groups: dict[tuple[str, ...], dict[str, Confusion]] = {}
    for label, each in confusions.items():
        groups.setdefault((each.unit, *each.classes), {})[label] = each
    return [_class_table(group) for group in groups.values()]


def _class_table(confusions: Mapping[str, Confusion]) -> Table:
    some = next(iter(confusions.values()))
    classes = [name for name in some.classes if not (some.unit == 'objects' and name == NOTHING)]
    truth = np.array(some.counts).sum(1)
    columns = {f'true {some.unit}': [Cell(f'{int(count):,}', int(count)) for count in truth]}
    for measure, cells_of in CLASS_MEASURES.items():
        if measure != 'IoU' or some.unit == 'pixels':
            for label, each in confusions.items():
                columns[f'{measure}: {label}'] = cells_of(np.array(each.counts), each.classes)
    return Table(
        ['class', *columns], [[name, *(cells[row] for cells in columns.values())] for row, name in enumerate(classes)]
    )


def _share_cell(value: float) -> Cell:
    """'-' where there is nothing of the class to take a share of."""
    return number_cell(None if math.isnan(value) else float(value), share_text(value))


def _ratio(hits: np.ndarray, of: np.ndarray) -> np.ndarray:
    return np.divide(hits, of, out=np.full(len(hits), np.nan), where=of > 0)


def _worst(counts: np.ndarray, row: int, classes: Sequence[str]) -> str:
    """'ring (12%)': the wrong class that most of the row went to; '-' without any."""
    wrong = counts[row].astype(float)
    wrong[row] = 0
    place = int(wrong.argmax())
    return f'{classes[place]} ({100 * wrong[place] / counts[row].sum():.3g}%)' if wrong[place] else NOT_RUN


def _shares(hits_of: int) -> Callable[[np.ndarray, Sequence[str]], list[Cell]]:
    """Cells of the diagonal by the sums over an axis: 1 for what was found, 0 for what was right of it."""
    return lambda counts, classes: [
        _share_cell(value) for value in _ratio(np.diag(counts).astype(float), counts.sum(hits_of))
    ]


# Columns of the table of classes, runs side by side within each
CLASS_MEASURES: dict[str, Callable[[np.ndarray, Sequence[str]], list[Cell]]] = {
    'IoU': lambda counts, classes: [_share_cell(value) for value in intersections_over_unions(counts)],
    'found': _shares(1),
    'right': _shares(0),
    'mostly taken for': lambda counts, classes: [Cell(_worst(counts, row, classes)) for row in range(len(counts))],
}
CLASS_NOTE = (
    'Found: the share of the true ones that were given their class (recall); right: the share of those given a class '
    'that are of it (precision).'
)


# ---- feature collapse, as it was measured during training


def collapse_parts(runs: Sequence[RunFacts]) -> list[Part]:
    """Table and curves of how alike the channels are; nothing when no run measured it."""
    measured = [(style, facts) for style, facts in enumerate(runs) if facts.collapse]
    if not measured:
        return []
    rows, panels = [], {}
    for style, facts in measured:
        last = max(facts.collapse)
        for kind, layers in _by_kind(facts.collapse[last]).items():
            distances = [layer['distance'] for layer in layers]
            counts = [sum(layer.get(name) or 0 for layer in layers) for name in COLLAPSE_COUNTS]
            rows.append(
                [
                    f'{facts.label}, {kind}',
                    Cell(at_text(last, facts.collapse_unit), last),
                    Cell(share_text(statistics.fmean(distances)), statistics.fmean(distances)),
                    Cell(share_text(min(distances)), min(distances)),
                    *(Cell(f'{count:,}', count) for count in counts),
                ]
            )
            depths = [place / max(len(layers) - 1, 1) for place in range(len(layers))]
            curve = Curve(tuple(depths), tuple(distances))
            over_depth = panels.setdefault((f'distance {kind} by depth', 'depth (first block 0, last 1)'), [])
            over_depth.append(Line(facts.label, curve, style=style))
            over_time = panels.setdefault((f'mean distance {kind}', facts.collapse_unit), [])
            over_time.append(Line(facts.label, _mean_distances(facts, kind), style=style))
    charts = [
        Panel(title, x_label, 'cosine distance', lines)
        for (title, x_label), lines in panels.items()
        if any(len(line.curve.steps) > 1 for line in lines)
    ]
    return [
        Heading('Feature collapse'),
        Table(COLLAPSE_HEADER, rows),
        Text([COLLAPSE_NOTE]),
        *([Charts(charts)] if charts else []),
    ]


COLLAPSE_HEADER = (
    'run, layers', 'measured at', 'mean distance', 'least distance', 'dead', 'saturated', 'of channels'
)  # fmt: skip
COLLAPSE_COUNTS = ('num_dead', 'num_saturated', 'num_channels')
COLLAPSE_NOTE = (
    'Distance: the mean cosine distance over all pairs of channels of a layer, 0 when all say the same (collapse), 0.5 '
    'when they have nothing in common; over the layers, mean and least. Dead: channels that stay at about zero; '
    'saturated: channels that hardly vary over a picture; both summed over the layers.'
)


def _by_kind(layers: Mapping[str, Mapping]) -> dict[str, list[Mapping]]:
    """What was measured of the layers, in their order: before GRN, after it, and all others together."""
    found: dict[str, list[Mapping]] = {}
    for name, layer in layers.items():
        kind = next((kind for kind, ending in COLLAPSE_KINDS.items() if name.endswith(ending)), 'named layers')
        found.setdefault(kind, []).append(layer)
    return found


def _mean_distances(facts: RunFacts, kind: str) -> Curve:
    """The mean over the layers of a kind, at each measurement that has any."""
    means = {
        step: statistics.fmean(layer['distance'] for layer in layers)
        for step, measured in facts.collapse.items()
        if (layers := _by_kind(measured).get(kind))
    }
    return Curve(tuple(means), tuple(means.values()))


# ---- where runs come from


def origin_section(runs: Sequence[RunFacts]) -> Section:
    """When and with which versions the runs were made, and commands that make them once more."""
    rows, commands = [], []
    for facts in runs:
        config, checkpoint = stored_config_or_none(facts.folder), facts.checkpoint
        known = facts.environment
        rows.append(
            [
                facts.label,
                config.name if config else NOT_RUN,
                checkpoint.name if checkpoint else NOT_RUN,
                facts.started or NOT_RUN,
                *(known.get(name, NOT_RUN) for name in ORIGINS),
                str(facts.folder),
            ]
        )
        if config:
            commands.append(_command_of(facts, config))
    header = ['run', 'config', 'last checkpoint', 'started', *ORIGINS, 'folder']
    parts: list[Part] = [Table(header, rows, words=True)]
    if commands:
        code = Code('\n'.join(commands))
        parts += [
            Text(['The stored configs hold all options. To train the runs once more:']),
            Folded(f'{len(commands)} commands', [code]) if len(commands) > MANY_COMMANDS else code,
        ]
    return Section('How the runs were made', parts)


ORIGINS = ('seed', 'python', 'torch', 'mmengine')  # of RunFacts.environment


def _command_of(facts: RunFacts, config: Path) -> str:
    """The training from the beginning: a run that was resumed has stored where it went on."""
    processes = facts.environment.get('processes', 1)
    words = ['python', 'tools/train.py', str(config)]
    if processes > 1:
        words = ['bash', 'tools/dist_train.sh', str(config), str(processes)]
    from_start = ['--cfg-options', 'resume=False', 'load_from=None'] if facts.config.get('resume') else []
    return shlex.join([*words, '--work-dir', f'{facts.folder}-again', *from_start])


def stored_config_or_none(folder: Path) -> Path | None:
    try:
        return stored_config(folder)
    except FileNotFoundError:
        return None


# ---- pictures of others


def pictures_of(folder: Path, names: Sequence[str], label: str = '') -> list[Part]:
    """The pictures below these folders of a work dir: the last of each series, the earlier ones folded."""
    parts: list[Part] = []
    for series in (series for name in names for series in series_below(folder / name, label)):
        parts.append(series[-1])
        if len(series) > 1:
            parts.append(Folded(f'Earlier: {len(series) - 1} of them', series[:-1]))
    return parts


def series_below(folder: Path, label: str = '') -> list[list[Picture]]:
    """The PNG files in a folder and below, each with the caption that a JSON file of the same stem gives.

    Of a series (names that differ in their numbers alone) the first, the last and some between are taken.
    """
    series: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob('*.png'), key=lambda path: natural(str(path.relative_to(folder)))):
        series.setdefault(re.sub(r'\d+', '#', str(path.relative_to(folder))), []).append(path)
    found = []
    for paths in series.values():
        count = len(paths)
        places = sorted({round(k * (count - 1) / (MOST_SHEETS - 1)) for k in range(MOST_SHEETS)}) if count > 1 else [0]
        left_out = f' (one of {count})' if count > len(places) else ''
        names = [(f'{label}: ' if label else '') + caption_of(paths[place]) + left_out for place in places]
        found.append([Picture(paths[place], name) for place, name in zip(places, names, strict=True)])
    return found


def caption_of(path: Path) -> str:
    """'caption' or 'title' of the JSON file beside a picture, else its own name in words, with the 'command' if any.

    A sheet that a training hook drew is named by its folder as well: 'reconstructions, epoch 6'.
    """
    try:
        told = json.loads(path.with_suffix('.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        told = {}
    told = told if isinstance(told, dict) else {}
    given, title, command = (
        told[name] if isinstance(told.get(name), str) else '' for name in ('caption', 'title', 'command')
    )
    name = re.sub(r'[_-]+', ' ', path.stem)
    if re.fullmatch(r'(epoch|iter) \d+', name):
        name = f'{path.parent.name}, {name}'
    return given or title or (f'{name} ({command})' if command else name)
