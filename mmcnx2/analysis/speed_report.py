"""Results of step_comparison.py as Markdown and JSON; numbers in, text out.

Touch it for how a table looks. Not for measuring. Guarded by tests/analysis/test_step_comparison.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from mmcnx2.analysis.comparison import NOT_RUN, listed, markdown_table
from mmcnx2.analysis.operator_shares import GROUPS
from mmcnx2.analysis.provenance import provenance
from mmcnx2.analysis.step_comparison import FORWARD, MEMORY, STEP
from mmcnx2.analysis.step_floor import ASSUMPTIONS

PHASES = {
    STEP: 'forward and backward pass of the sum of squares of all outputs',
    FORWARD: 'forward pass that keeps no gradients',
}
METHOD = (
    'Every round runs each candidate once, every other round in reverse order; times are medians of the rounds with '
    'their quartiles, ratios are medians of the ratios within a round. Differences are the largest absolute difference '
    'as a share of the largest value, for gradients of the worst parameter tensor. Peak memory is what the process (on '
    'a GPU: the allocator) grows by during a step: activations, gradients and workspaces, without the parameters. Page '
    'faults are those of one step.'
)
NUM_OPERATORS = 12


def milliseconds(seconds: float) -> str:
    """Three significant digits or whole milliseconds."""
    return f'{1000 * seconds:.0f}' if seconds >= 0.1 else f'{1000 * seconds:.3g}'


def timing_table(case: Mapping) -> str:
    """A row per candidate; ratios to the first one."""
    rows = case['candidates']
    phases = [phase for phase in (STEP, FORWARD) if phase in rows[0]]
    base = rows[0]
    header = ['']
    for phase in phases:
        header += [f'{phase}, ms', 'quartiles', 'ratio']
    header += ['peak, MB', 'ratio', 'page faults', 'outputs differ by', *(['gradients differ by'] * (STEP in phases))]
    table = []
    for row in rows:
        cells = [row['name']]
        for phase in phases:
            low, high = row[phase]['quartiles']
            ratio = row[phase]['median'] / base[phase]['median']
            cells += [
                milliseconds(row[phase]['median']),
                f'{milliseconds(low)} to {milliseconds(high)}',
                f'{ratio:.3f}',
            ]
        peak, base_peak = row['peak_bytes'], base['peak_bytes']
        cells.append(NOT_RUN if peak is None else f'{peak / 1e6:.0f}')
        cells.append(f'{peak / base_peak:.2f}' if peak and base_peak else NOT_RUN)
        cells.append(f'{row["page_faults"][phases[0]]}')
        cells += _parity_cells(row['parity'], STEP in phases)
        table.append(cells)
    return markdown_table(header, table)


def _parity_cells(parity: Mapping | None, with_gradients: bool) -> list[str]:
    if parity is None:
        return ['reference', *(['reference'] * with_gradients)]
    kinds = ['outputs', *(['gradients'] * with_gradients)]
    cells = ['not comparable' if parity[kind] is None else f'{parity[kind]:.1e}' for kind in kinds]
    return cells if parity['is_same'] else [f'**{cell}, DIFFERENT**' for cell in cells]


def different(case: Mapping) -> list[str]:
    """Names of candidates that do not compute what they should."""
    return [row['name'] for row in case['candidates'] if row['parity'] and not row['parity']['is_same']]


def parity_sentence(case: Mapping) -> str:
    """What is compared with what."""
    groups: dict[tuple, list[str]] = {}
    for row in case['candidates']:
        if row['parity']:
            key = (row['parity']['against'], row['parity']['condition'])
            groups.setdefault(key, []).append(row['name'])
    texts = []
    for (against, condition), names in groups.items():
        others = [name if name != against else f'{name} itself' for name in names]
        texts.append(f'{listed(others)} against {against} in float32{f", {condition}" if condition else ""}')
    return f'Parity: {"; ".join(texts)}.' if texts else ''


def comparison_lines(case: Mapping) -> list[str]:
    """'* ours / the fastest peer: step 0.790 (0.785 to 0.796) of timm; ...', one per comparison."""
    by_label: dict[str, list[str]] = {}
    for each in case['comparisons']:
        spread = f' ({each["low"]:.3f} to {each["high"]:.3f})' if 'low' in each else ''
        if each['phase'] == MEMORY:
            text = f'{MEMORY} {each["ratio"]:.2f}'
        else:
            text = f'{each["phase"]} {each["ratio"]:.3f}{spread}'
        by_label.setdefault(each['label'], []).append(f'{text} of {each["against"]}')
    return [f'* {label}: {"; ".join(texts)}' for label, texts in by_label.items()]


def profile_sections(case: Mapping) -> list[str]:
    """Per candidate: groups beside their floors, then the operators that take longest."""
    parts = []
    floors = case.get('floors', {})
    for name, profile in case.get('profiles', {}).items():
        floor = floors.get(name)
        total = profile['seconds']
        in_operators = sum(profile['groups'].values())
        rows = []
        for group in GROUPS:
            seconds = profile['groups'][group]
            least = floor['groups'].get(group) if floor else None
            rows.append(
                [
                    group,
                    milliseconds(seconds),
                    f'{seconds / total:.1%}',
                    milliseconds(least) if least is not None else NOT_RUN,
                    f'{seconds / least:.2f}' if least else NOT_RUN,
                ]
            )
        outside = max(0.0, total - in_operators)
        rows.append(['outside operators', milliseconds(outside), f'{outside / total:.1%}', NOT_RUN, NOT_RUN])
        rows.append(
            [
                'together',
                milliseconds(total),
                '100%',
                milliseconds(floor['seconds']) if floor else NOT_RUN,
                f'{total / floor["seconds"]:.2f}' if floor else NOT_RUN,
            ]
        )
        longest = [
            [
                each['name'],
                each['group'],
                milliseconds(each['seconds']),
                f'{each["seconds"] / total:.1%}',
                str(each['calls']),
            ]
            for each in profile['operators'][:NUM_OPERATORS]
        ]
        parts += [
            f'### Operators: {name}, {profile["phase"]}',
            markdown_table(['under the profiler', 'ms', 'share', 'floor, ms', 'measured / floor'], rows),
            markdown_table(['longest', 'of', 'ms', 'share', 'calls'], longest),
        ]
        if floor:
            parts.append(
                f'Floor of {name}: {floor["multiply_adds"] / 1e9:.2f} G multiply-adds, '
                f'{floor["moved_bytes"] / 1e6:.0f} MB moved outside matrix products.'
            )
    if 'machine_speed' in case:
        speed = case['machine_speed']
        copies = speed['copies']
        parts += [
            ASSUMPTIONS,
            f'This machine: {speed["peak_multiply_adds_per_second"] / 1e9:.1f} G multiply-adds per second in a square '
            f'float32 product, {speed["product_multiply_adds_per_second"] / 1e9:.1f} over the shapes of these steps; '
            f'copies at {copies[0]["bytes_per_second"] / 1e9:.0f} GB/s ({copies[0]["moved_bytes"] / 1e6:.1f} MB moved) '
            f'to {copies[-1]["bytes_per_second"] / 1e9:.0f} GB/s ({copies[-1]["moved_bytes"] / 1e6:.0f} MB).',
        ]
    return parts


def case_sections(case: Mapping) -> list[str]:
    """All paragraphs of one table; `case` has a title and what `measure` found."""
    notes = [f'* {row["name"]}: {"; ".join(row["notes"])}' for row in case['candidates'] if row['notes']]
    notes += [f'* not run: {text}' for text in case.get('not_run', ())]
    wrong = different(case)
    parts = [
        f'## {case["title"]}',
        timing_table(case),
        f'Medians of {case["num_rounds"]} interleaved rounds. {parity_sentence(case)}'.strip(),
        f'**{listed(wrong)}: other outputs or gradients than the reference.**' if wrong else '',
        '\n'.join(comparison_lines(case)),
        '\n'.join(notes),
        *profile_sections(case),
    ]
    return [part for part in parts if part]


def page(results: Mapping) -> str:
    """The Markdown file: every table, how it was measured, command, machine and versions."""
    parts = [f'# {results["title"]}']
    for case in results['cases']:
        parts += case_sections(case)
    parts += ['## How', how(results)]
    return '\n\n'.join(parts) + '\n'


def how(results: Mapping) -> str:
    """Method, command, machine."""
    phases = '; '.join(f'{name}: {words}' for name, words in PHASES.items())
    setup = ', '.join(f'{name} {value}' for name, value in results['setup'].items())
    return '\n\n'.join([f'{phases}. {METHOD}', f'```\n{results["command"]}\n```', f'{setup}; {provenance(results)}'])


def to_json(results: Mapping) -> str:
    return json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False) + '\n'
