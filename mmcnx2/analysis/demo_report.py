"""The demo's results as files: results.json and .md, and the page that holds everything.

All of it comes from the finished results and the work dirs of the stages; nothing is trained here. The page is that of
any report on runs (run_report.py) with the demo's own table, verdict and commands around it. Touch it for what the demo
shows. The order of the stages and their commands are in tools/run_demo.py. Guarded by tests/test_demo.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmcnx2.atomic_write import write_atomically

from .comparison import Row, markdown_table, plain_table, table_cells
from .page import Code, Section, Table, Text, build_page, write_page
from .plotly_script import packed_plotly
from .provenance import provenance
from .run_facts import RunFacts
from .run_report import Extras, problems_notice, run_sections

METRICS = ('box AP', 'mask AP', 'mIoU')


def rows_of(results: Mapping) -> list[Row]:
    return [Row(row['label'], row['metrics'], row['seconds']) for row in results['rows']]


def stage_cells(results: Mapping) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of wall times, with the total in the last row."""
    rows = [[stage['title'], f'{stage["seconds"]:.0f}'] for stage in results['stages']]
    return ['stage', 'seconds'], [*rows, ['total', f'{results["total_seconds"]:.0f}']]


def result_text(results: Mapping) -> str:
    """What the demo prints at its end."""
    header, cells = table_cells(rows_of(results), list(METRICS))
    parts = [
        plain_table(header, cells),
        '\n'.join(results['verdict']),
        results['seconds_note'],
        plain_table(*stage_cells(results)),
    ]
    return '\n\n'.join(parts)


def write_results(results: Mapping, work_dir: Path) -> None:
    """results.json and results.md, each replaced in one step."""
    header, cells = table_cells(rows_of(results), list(METRICS))
    markdown = [
        f'# {results["title"]}',
        markdown_table(header, cells),
        *results['verdict'],
        results['seconds_note'],
        '## Wall time of the stages',
        markdown_table(*stage_cells(results)),
        '## How',
        f'```\n{results["command"]}\n```',
        provenance(results),
    ]
    for name, text in (
        ('results.json', json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False)),
        ('results.md', '\n\n'.join(markdown)),
    ):
        write_atomically(work_dir / name, text + '\n')


def write_demo_page(results: Mapping, runs: Sequence[RunFacts], extras: Extras, path: Path) -> Path:
    """The page: table and words, the runs as in any report, wall times, commands."""
    header, cells = table_cells(rows_of(results), list(METRICS))
    stages, times = stage_cells(results)
    commands = '\n\n'.join(stage['command'] for stage in results['stages'])
    problems = [problem for facts in runs for problem in facts.problems]
    return write_page(
        build_page(
            results['title'],
            [
                Section('Result', [Table(header, cells), Text([*results['verdict'], results['seconds_note']])]),
                *problems_notice(problems),
                *run_sections(runs, extras),
                Section('Wall time', [Table(stages, times[:-1], foot=times[-1:])]),
                Section('Commands', [Text([f'Everything: {results["command"]}. Its stages:']), Code(commands)]),
            ],
            footer=provenance(results),
            plotly=packed_plotly(),
        ),
        path,
    )
