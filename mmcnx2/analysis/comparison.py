"""Two rows of results side by side, and in words what their numbers say: numbers in, text out.

The words are derived from the numbers alone, so they say "gained nothing" when that is what came out. Touch it for
another wording or another table form. Not for reading files. Guarded by tests/analysis/test_comparison.py.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NOT_RUN = '-'


@dataclass(frozen=True)
class Row:
    """One line of the table: metric name -> one value per seed (empty: not run), and the seconds of the whole row."""

    label: str
    values: Mapping[str, Sequence[float]]
    seconds: float | None = None


def format_values(values: Sequence[float], decimals: int = 3) -> str:
    """'0.312' for one value, 'mean ± sample standard deviation' for several, '-' for none."""
    if not values:
        return NOT_RUN
    if len(values) == 1:
        return f'{values[0]:.{decimals}f}'
    return f'{statistics.fmean(values):.{decimals}f} ± {statistics.stdev(values):.{decimals}f}'


def table_cells(rows: Sequence[Row], metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text: label, the metrics, seconds."""
    return (
        ['', *metrics, 'seconds'],
        [
            [
                row.label,
                *(format_values(row.values.get(metric, ())) for metric in metrics),
                NOT_RUN if row.seconds is None else f'{row.seconds:.0f}',
            ]
            for row in rows
        ],
    )


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table for a terminal: first column to the left, the others to the right, a rule under the header."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return '  '.join(
            [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]
        )

    return '\n'.join([line(header), '-' * (sum(widths) + 2 * (len(widths) - 1)), *map(line, rows)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table for a Markdown file."""
    lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in lines)


@dataclass(frozen=True)
class Difference:
    """`gain` = mean over the seeds of (treated - baseline), paired by seed; `standard_error` is None with one seed."""

    metric: str
    baseline: float
    treated: float
    gain: float
    standard_error: float | None
    num_seeds: int

    @property
    def is_clear(self) -> bool:
        """True when the gain, up or down, is larger than two standard errors; never with one seed."""
        return self.standard_error is not None and abs(self.gain) > 2 * self.standard_error


def differences(baseline: Row, treated: Row, metrics: Sequence[str]) -> list[Difference]:
    """One Difference per metric that both rows have for the same number of seeds; metrics with a NaN are left out."""
    found = []
    for metric in metrics:
        before, after = list(baseline.values.get(metric, ())), list(treated.values.get(metric, ()))
        if not before or len(before) != len(after) or any(math.isnan(value) for value in before + after):
            continue
        gains = [b - a for a, b in zip(before, after, strict=True)]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None
        found.append(
            Difference(
                metric, statistics.fmean(before), statistics.fmean(after), statistics.fmean(gains), error, len(gains)
            )
        )
    return found


@dataclass(frozen=True)
class Wording:
    """How a verdict calls its two rows, and how many decimals it writes."""

    treated: str = 'pretraining'
    baseline: str = 'from scratch'
    arrow: str = 'From scratch -> pretrained'
    decimals: int = 3


def verdict(
    baseline: Row, treated: Row, metrics: Sequence[str], num_seeds: int, wording: Wording | None = None
) -> list[str]:
    """Paragraphs that say what the two rows show, from their numbers alone.

    `num_seeds` is what was asked for; a metric that fewer seeds have in both rows says how many.
    """
    wording = wording or Wording()
    decimals, with_it = wording.decimals, wording.treated
    found = differences(baseline, treated, metrics)
    if not found:
        return ['The two rows cannot be compared yet: a row has no results.']
    raised = [difference.metric for difference in found if round(difference.gain, decimals) > 0]
    if not raised:
        all_names = listed([difference.metric for difference in found])
        summary = (
            f'{with_it[0].upper()}{with_it[1:]} gained nothing here: none of {all_names} is higher than '
            f'{wording.baseline}.'
        )
    elif len(raised) == len(found):
        verb = 'is' if len(raised) == 1 else 'are'
        summary = f'With {with_it} {listed(raised)} {verb} higher than {wording.baseline}.'
    else:
        others = [difference.metric for difference in found if difference.metric not in raised]
        summary = (
            f'The result is mixed: with {with_it} {listed(raised)} {"is" if len(raised) == 1 else "are"} higher, '
            f'{listed(others)} {"is" if len(others) == 1 else "are"} not.'
        )
    details = '; '.join(
        f'{d.metric} {d.baseline:.{decimals}f} -> {d.treated:.{decimals}f} ({d.gain:+.{decimals}f}'
        + ('' if d.standard_error is None else f', standard error {d.standard_error:.{decimals}f}')
        + ('' if d.num_seeds == num_seeds else f', {d.num_seeds} of {num_seeds} seeds')
        + ')'
        for d in found
    )
    if num_seeds == 1:
        caution = (
            'One seed per row: how much such a figure varies from run to run was not measured, so a small '
            'difference may be chance. --seeds 3 measures it.'
        )
    else:
        clear = [difference.metric for difference in found if difference.is_clear]
        caution = f'{num_seeds} seeds per row. ' + (
            f'Larger than two standard errors: the difference in {listed(clear)}.'
            if clear
            else 'No difference is larger than two standard errors, so none can be told from chance.'
        )
    return [summary, f'{wording.arrow}: {details}.', caution]


def listed(names: Sequence[str]) -> str:
    """'a, b and c'."""
    return names[0] if len(names) == 1 else ', '.join(names[:-1]) + ' and ' + names[-1]
