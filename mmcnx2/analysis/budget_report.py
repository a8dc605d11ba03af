"""From how many image views on does pretraining help? Numbers of many runs in, gains with error bars and words out.

metrics by seed at each point of a grid --> the point each seed gets --> gain paired by seed --> where the gain starts

`results` is what tools/benchmark/pretraining_budget.py collects, metrics in per cent. Nothing is run or read here.
Touch this file for the statistics and for what the report shows; not for the table of one transfer experiment
(transfer_report.py), nor for how the plot looks (figures.py). Guarded by tests/analysis/test_budget_report.py.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats

from .comparison import NOT_RUN, Difference, Row, differences, format_values, markdown_table
from .figures import GainLine, GainPanel
from .provenance import provenance

DECIMALS = 2  # of per cent
CONFIDENCE = 0.95  # one-sided
PLOT_CAPTION = 'Points of per cent, mean over the seeds, paired by seed. Bars: one standard error to each side.'


# ---- statistics


def values_without_own_choice(by_point: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[str, float]]:
    """Seed -> (point, value): each seed's value at the point of the grid that was best on average at the other seeds.

    A value thus has no part in choosing its own point, and a grid does not lift a row by picking lucky runs; every row
    is treated in the same way. With one point there is nothing to choose. A seed is left out when no point has it
    together with another seed. Points are compared over the other seeds that all of them share with this one; between
    equal means the first point of the grid is taken.

    Args:
        by_point: point of the grid -> seed -> value.
    """
    if len(by_point) == 1:
        [(point, values)] = by_point.items()
        return {seed: (point, value) for seed, value in values.items()}
    chosen = {}
    for seed in sorted({seed for values in by_point.values() for seed in values}, key=int):
        candidates = {point: values for point, values in by_point.items() if seed in values}
        shared = set.intersection(*(set(values) for values in candidates.values())) - {seed}
        if shared:
            means = {point: statistics.fmean(values[other] for other in shared) for point, values in candidates.items()}
            best = max(means, key=means.get)
            chosen[seed] = best, candidates[best][seed]
    return chosen


def paired_gain(before: Mapping[str, float], after: Mapping[str, float], metric: str = '') -> Difference | None:
    """Mean over the seeds that both have of (after - before), with its standard error; None without such a seed."""
    seeds = [seed for seed in before if seed in after]
    rows = [Row('', {metric: [values[seed] for seed in seeds]}) for values in (before, after)]
    return next(iter(differences(*rows, [metric])), None)


def lower_limit(gain: Difference) -> float | None:
    """The gain that is exceeded with 95% confidence: Student's t, one-sided, over the paired seeds; None with one.

    With 3 seeds it lies 2.92 standard errors below the mean.
    """
    if gain.standard_error is None:
        return None
    return gain.gain - float(stats.t.ppf(CONFIDENCE, gain.num_seeds - 1)) * gain.standard_error


def is_gain(gain: Difference | None) -> bool:
    """True when the gain is above zero with 95% confidence."""
    limit = None if gain is None else lower_limit(gain)
    return limit is not None and limit > 0


def start_of_gain(gains: Mapping[int, Difference | None]) -> int | None:
    """The smallest budget at which, and at every larger one measured, pretraining gained; None: not reached.

    Args:
        gains: budget -> gain; None where nothing could be compared, which is passed over.
    """
    start = None
    for views in sorted(gains, reverse=True):
        if gains[views] is None:
            continue
        if not is_gain(gains[views]):
            break
        start = views
    return start


# ---- what the runs say


@dataclass(frozen=True)
class Series:
    """One task, metric and number of labelled pictures: the values of each row, and the gain of each budget."""

    task: str
    metric: str
    labels: int
    rows: Mapping[str, Mapping[str, tuple[str, float]]]  # row -> seed -> (point of the grid, value)
    gains: Mapping[int, Difference | None]  # budget (image views asked for) -> against the first row

    @property
    def name(self) -> str:
        return f'{self.task} {self.metric}, {self.labels} labelled'


def series_of(results: Mapping) -> list[Series]:
    """All series of the results, in the order of tasks, metrics and numbers of labelled pictures."""
    found = []
    for task in results['tasks']:
        for metric in task['metrics']:
            for labels in results['labels']:
                by_row = results['values'].get(task['label'], {}).get(metric, {}).get(str(labels), {})
                rows = {row: values_without_own_choice(points) if points else {} for row, points in by_row.items()}
                plain = {row: {seed: value for seed, (_, value) in values.items()} for row, values in rows.items()}
                gains = {
                    budget['asked']: paired_gain(
                        plain.get(results['baseline'], {}), plain.get(budget['name'], {}), metric
                    )
                    for budget in results['budgets']
                }
                found.append(Series(task['label'], metric, labels, rows, gains))
    return found


def views_text(views: float) -> str:
    """'0.1 million'."""
    return f'{views / 1e6:.3g} million'


def gain_text(gain: Difference | None) -> str:
    """'+4.93 ± 1.22', with the standard error; bold when it is above zero with 95% confidence; '-' without values."""
    if gain is None:
        return NOT_RUN
    error = '' if gain.standard_error is None else f' ± {gain.standard_error:.{DECIMALS}f}'
    text = f'{gain.gain:+.{DECIMALS}f}{error}'
    return f'**{text}**' if is_gain(gain) else text


def start_sentences(results: Mapping) -> list[str]:
    """One sentence per series: where the gain starts, or that it was not reached; derived from the numbers alone."""
    sentences = []
    for series in series_of(results):
        measured = {views: gain for views, gain in series.gains.items() if gain is not None}
        if not measured:
            sentences.append(f'{series.name}: nothing to compare yet.')
            continue
        fewest = min(gain.num_seeds for gain in measured.values())
        if fewest < 2:
            sentences.append(f'{series.name}: with one seed a gain cannot be told from chance.')
            continue
        start = start_of_gain(measured)
        if start is None:
            largest = max(measured)
            sentences.append(
                f'{series.name}: a gain was not reached; at the largest budget, {views_text(largest)} image views, it '
                f'is {gain_text(measured[largest]).strip("*")}.'
            )
        else:
            what = 'from the smallest budget tried on' if start == min(measured) else 'and every larger one tried'
            sentences.append(
                f'{series.name}: the gain starts at {views_text(start)} image views ({what}), '
                f'{gain_text(measured[start]).strip("*")}.'
            )
    return sentences


def gain_panels(results: Mapping) -> list[GainPanel]:
    """The plot: a panel per task and metric, a line per number of labelled pictures."""
    panels: dict[tuple[str, str], list[GainLine]] = {}
    for series in series_of(results):
        points = [(views, gain) for views, gain in series.gains.items() if gain is not None]
        line = GainLine(
            f'{series.labels} labelled',
            [views for views, _ in points],
            [gain.gain for _, gain in points],
            [gain.standard_error or 0.0 for _, gain in points],
        )
        panels.setdefault((series.task, series.metric), []).append(line)
    return [
        GainPanel(f'{task}: {metric}', 'image views of pretraining', 'gain over scratch, points', lines)
        for (task, metric), lines in panels.items()
    ]


# ---- tables


def gain_cells(results: Mapping) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the main table: a row per series, its value from scratch, then the gain of each budget."""
    header = [
        '',
        'labelled',
        'from scratch',
        *(f'{views_text(budget["asked"])} views' for budget in results['budgets']),
    ]
    rows = []
    for series in series_of(results):
        scratch = [value for _, value in series.rows.get(results['baseline'], {}).values()]
        rows.append(
            [
                f'{series.task} {series.metric}',
                str(series.labels),
                format_values(scratch, DECIMALS),
                *(gain_text(series.gains[budget['asked']]) for budget in results['budgets']),
            ]
        )
    return header, rows


def grid_cells(results: Mapping) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of every cell at every point of the grid: mean, spread, and how many seeds."""
    rows = []
    for task in results['tasks']:
        for metric in task['metrics']:
            for labels in results['labels']:
                by_row = results['values'].get(task['label'], {}).get(metric, {}).get(str(labels), {})
                for row, points in by_row.items():
                    cells = []
                    for point in results['grid']:
                        values = list(points.get(point['name'], {}).values())
                        missing = '' if len(values) in (0, len(results['seeds'])) else f' ({len(values)} seeds)'
                        cells.append(format_values(values, DECIMALS) + missing)
                    rows.append([f'{task["label"]} {metric}', str(labels), row, *cells])
    return ['', 'labelled', 'starts from', *(point['name'] for point in results['grid'])], rows


def budget_cells(results: Mapping) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of pretrainings."""
    rows = [
        [
            views_text(budget['asked']),
            f'{budget["views"]:,}',
            f'{budget["distinct_pictures"]:,}',
            f'{budget["steps"]:,} x {budget["batch_size"]}',
            NOT_RUN if budget['loss'] is None else f'{budget["loss"]:.3f}',
            f'{budget["seconds"]:.0f}',
            f'{_images_per_second(budget):.0f}',
        ]
        for budget in results['budgets']
    ]
    return ['budget', 'image views', 'distinct pictures', 'steps x batch', 'last loss', 'seconds', 'images/s'], rows


def _images_per_second(budget: Mapping) -> float:
    return budget['views'] / max(budget['seconds'], 0.1)  # seconds are written with one decimal


def costs_not_run(results: Mapping) -> list[str]:
    """What the budgets that were not run would take on this machine, at the speed of the largest one that was."""
    if not results['budgets']:
        return []
    largest = max(results['budgets'], key=lambda budget: budget['views'])
    speed = _images_per_second(largest)
    done = {budget['asked'] for budget in results['budgets']}
    return [
        f'{views_text(views)} image views: not run; {views / speed / 3600:.1f} hours here, at the {speed:.0f} images/s '
        f'of the pretraining with {views_text(largest["asked"])}.'
        for views in results['others']
        if views not in done
    ]


def notes(results: Mapping) -> list[str]:
    """What a reader must know of the figures."""
    found = [
        'Gain: mean over the seeds of (pretrained - scratch) in points, paired by seed, ± its standard error. Bold: '
        "above zero with 95% confidence (Student's t, one-sided); of many such tests one in twenty is bold by chance. "
        'The gain starts at the smallest budget that is bold together with every larger one tried.',
        'A seed is that of the run and of its choice of labelled pictures; at one seed all rows see the same labelled '
        'pictures. One pretraining per budget, so how much a pretraining differs from another of its kind is not in '
        'the error bars.',
        'Each pretraining has a schedule of its own: linear warmup, then a cosine that ends at 0 at its budget.',
        'Metrics in per cent, of the final checkpoint, not the best. Seconds: wall time of all attempts with their '
        'starts.',
    ]
    if len(results['grid']) > 1:
        points = '; '.join(
            f'{point["name"]}: {" ".join(point["options"]) or "as the config"}' for point in results['grid']
        )
        found.append(
            f'Every row, scratch too, was trained at each point of the same grid ({points}), and each seed gets the '
            'point that was best on average at the other seeds.'
        )
    elif results['grid'][0]['options']:
        found.append(f'Options of every row: {" ".join(results["grid"][0]["options"])}.')
    return found


def result_markdown(results: Mapping) -> str:
    parts = [
        f'# {results["title"]}',
        *(f'* {sentence}' for sentence in start_sentences(results)),
        markdown_table(*gain_cells(results)),
        f'![Gain against the budget]({results["plot"]})',
        *(f'* {note}' for note in notes(results)),
        '## Pretraining',
        markdown_table(*budget_cells(results)),
        *(f'* {sentence}' for sentence in costs_not_run(results)),
        '## Every row at every point of the grid',
        markdown_table(*grid_cells(results)),
        '## How',
        f'```\n{results["command"]}\n```',
        *(
            f'* {task["label"]}: {task["config"]}, {task["schedule"]} of {task["images_per_step"]}'
            for task in results['tasks']
        ),
        provenance(results),
    ]
    return '\n\n'.join(parts) + '\n'


def result_json(results: Mapping) -> str:
    """The results with their statistics, for other programs."""
    statistics_ = [
        {
            'task': series.task,
            'metric': series.metric,
            'labels': series.labels,
            'chosen': {row: dict(values) for row, values in series.rows.items()},
            'gains': {
                str(views): None
                if gain is None
                else {
                    'gain': gain.gain,
                    'standard_error': gain.standard_error,
                    'num_seeds': gain.num_seeds,
                    'lower_limit': lower_limit(gain),
                }
                for views, gain in series.gains.items()
            },
            'starts_at': start_of_gain(series.gains),
        }
        for series in series_of(results)
    ]
    content = {**results, 'series': statistics_, 'sentences': start_sentences(results)}
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + '\n'
