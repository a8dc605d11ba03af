"""The table of a transfer experiment: a row per initialisation and fraction of the images, columns per task.

From `results` as tools/transfer.py collects them (metrics in per cent by seed, seconds, memory) to text, Markdown,
CSV and JSON. Nothing is run or read here. Touch it for what the table shows. Guarded by tests/test_transfer.py.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence

from .comparison import NOT_RUN, Row, Wording, format_values, markdown_table, plain_table, verdict
from .provenance import provenance

DECIMALS = 2  # of per cent
CSV_COLUMNS = (
    'init',
    'fraction',
    'task',
    'config',
    'metric',
    'mean',
    'std',
    'num_seeds',
    'values',
    'failed_seeds',
    'published',
    'train_seconds',
    'test_seconds',
    'memory_mb',
    'memory_of',
    'params',
    'flops',
)


def share(fraction: float) -> str:
    """'25%'."""
    return f'{100 * fraction:.4g}%'


def mean(values: Mapping[str, float]) -> float | None:
    return statistics.fmean(values.values()) if values else None


def value_text(cell: Mapping, metric: str, num_seeds: int) -> str:
    """'35.10 ± 0.40'; what is missing is said: 'failed', 'running', '-', or '35.10 (1 of 3, 2 failed)'."""
    values = list(cell['metrics'].get(metric, {}).values())
    state = [f'{len(cell[name])} {name}' for name in ('failed', 'running') if cell[name]]
    if not values:
        return next((name for name in ('failed', 'running') if cell[name]), NOT_RUN)
    text = format_values(values, DECIMALS)
    return text if len(values) == num_seeds else f'{text} ({", ".join([f"{len(values)} of {num_seeds}", *state])})'


def result_cells(results: Mapping) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: init, share of the images, metrics, then seconds and memory of training."""
    tasks, seeds = results['tasks'], results['seeds']
    header = ['', 'images', *(f'{task["label"]} {metric}' for task in tasks for metric in task['metrics'])]
    header += [f'{task["label"]} {what}' for task in tasks for what in ('seconds', 'GB')]
    rows = []
    for row in results['rows']:
        line = [row['init'], share(row['fraction'])]
        cells = row['tasks']
        line += [value_text(cells[task['label']], metric, len(seeds)) for task in tasks for metric in task['metrics']]
        for task in tasks:
            seconds, memory = (mean(cells[task['label']][name]) for name in ('train_seconds', 'memory_mb'))
            line.append(NOT_RUN if seconds is None else f'{seconds:.0f}')
            line.append(NOT_RUN if memory is None else f'{memory / 1024:.2f}')
        rows.append(line)
    if any(task['published'] for task in tasks):
        line = ['published', share(1)]
        line += [
            f'{task["published"][metric]:g}' if metric in task['published'] else NOT_RUN
            for task in tasks
            for metric in task['metrics']
        ]
        rows.append([*line, *[NOT_RUN] * (2 * len(tasks))])
    return header, rows


def task_cells(results: Mapping) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of tasks: what does not depend on the initialisation."""
    rows = [
        [
            task['label'],
            task['config'],
            NOT_RUN if task['params'] is None else f'{task["params"] / 1e6:.1f}M',
            NOT_RUN if task['flops'] is None else f'{task["flops"] / 1e9:.1f}G ({task["flops_of"]})',
            task['schedule'],
        ]
        for task in results['tasks']
    ]
    return ['task', 'config', 'params', 'FLOPs', 'schedule'], rows


def verdicts(results: Mapping) -> list[str]:
    """In words, per fraction: every other init against the first one, pairs by seed."""
    texts = []
    tasks = results['tasks']
    names = [f'{task["label"]} {metric}' for task in tasks for metric in task['metrics']]
    for fraction in results['fractions']:
        first, *others = [row for row in results['rows'] if row['fraction'] == fraction]
        for other in others:
            before: dict[str, list[float]] = {}
            after: dict[str, list[float]] = {}
            for task in tasks:
                for metric in task['metrics']:
                    pair = [row['tasks'][task['label']]['metrics'].get(metric, {}) for row in (first, other)]
                    both = [seed for seed in pair[0] if seed in pair[1]]
                    name = f'{task["label"]} {metric}'
                    before[name], after[name] = ([values[seed] for seed in both] for values in pair)
            against = 'from scratch' if first['init'] == 'scratch' else f'with {first["init"]}'
            said = verdict(
                Row(first['init'], before),
                Row(other['init'], after),
                names,
                len(results['seeds']),
                Wording(other['init'], against, f'{first["init"]} -> {other["init"]}', DECIMALS),
            )
            texts.append(f'{share(fraction)} of the images: {" ".join(said)}')
    return texts


def result_text(results: Mapping) -> str:
    """What is printed at the end."""
    parts = [plain_table(*result_cells(results)), *results['verdict'], *results['notes']]
    return '\n\n'.join([*parts, plain_table(*task_cells(results))])


def result_markdown(results: Mapping) -> str:
    parts = [
        f'# {results["title"]}',
        markdown_table(*result_cells(results)),
        *results['verdict'],
        *(f'* {note}' for note in results['notes']),
        '## Tasks',
        markdown_table(*task_cells(results)),
        '## How',
        f'```\n{results["command"]}\n```',
        provenance(results),
    ]
    return '\n\n'.join(parts) + '\n'


def result_csv(results: Mapping) -> str:
    """One line per init, fraction, task and metric; figures in per cent, several values joined by ';'."""
    file = io.StringIO()
    table = csv.DictWriter(file, CSV_COLUMNS, lineterminator='\n')
    table.writeheader()
    for row in results['rows']:
        for task in results['tasks']:
            cell = row['tasks'][task['label']]
            for metric in task['metrics']:
                values = list(cell['metrics'].get(metric, {}).values())
                table.writerow(
                    {
                        'init': row['init'],
                        'fraction': row['fraction'],
                        'task': task['label'],
                        'config': task['config'],
                        'metric': metric,
                        'mean': _number(statistics.fmean(values)) if values else '',
                        'std': _number(statistics.stdev(values)) if len(values) > 1 else '',
                        'num_seeds': len(values),
                        'values': _joined(values),
                        'failed_seeds': ';'.join(map(str, cell['failed'])),
                        'published': task['published'].get(metric, ''),
                        'train_seconds': _joined(cell['train_seconds'].values()),
                        'test_seconds': _joined(cell['test_seconds'].values()),
                        'memory_mb': _joined(cell['memory_mb'].values()),
                        'memory_of': cell['memory_of'],
                        'params': '' if task['params'] is None else task['params'],
                        'flops': '' if task['flops'] is None else task['flops'],
                    }
                )
    return file.getvalue()


def result_json(results: Mapping) -> str:
    return json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False) + '\n'


def _number(value: float) -> str:
    return f'{value:.6g}'


def _joined(values: Sequence[float]) -> str:
    return ';'.join(_number(value) for value in values)
