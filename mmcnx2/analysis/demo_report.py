"""The demo's results as files: results.json and .md, curves, sheets of samples, and the page that holds them all.

Everything is drawn from the finished results and the work dirs of the stages; nothing is trained or measured here.
Touch it for what the demo shows. The order of the stages and their commands are in tools/run_demo.py. Guarded by
tests/test_demo.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmcnx2.atomic_write import write_atomically

from .comparison import Row, markdown_table, plain_table, table_cells
from .figures import Line, Panel, draw_curves, draw_sheet
from .metrics import METRICS as LOGGED_AS
from .page import Code, Picture, Section, Table, Text, build_page, write_page
from .provenance import provenance
from .run_log import Curve, RunLog, mean_smoothed, read_run

METRICS = ('box AP', 'mask AP', 'mIoU')
SCORE_THRESHOLD = 0.5


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


def _loss_line(label: str, log: RunLog) -> Line:
    curve = log.train.get('loss', Curve((), ()))
    window = max(1, len(curve.values) // 20)
    return Line(label, curve, mean_smoothed(curve.values, window) if window > 1 else None)


def curve_panels(work_dirs: Mapping[str, Mapping[str, Path]]) -> list[Panel]:
    """A panel of training loss per task, one per metric measured more than once. `work_dirs[task][line label]`."""
    panels = []
    for task, folders in work_dirs.items():
        logs = {label: read_run(folder) for label, folder in folders.items()}
        reference = (1.0, 'a flat cell scores 1') if task == 'FCMAE pretraining' else None
        panels.append(
            Panel(
                f'{task}: loss',
                'training steps',
                'loss (no unit)',
                [_loss_line(label, log) for label, log in logs.items()],
                reference,
            )
        )
        for metric in METRICS:
            key, divisor = LOGGED_AS[metric]
            curves = {
                label: log.val[key] for label, log in logs.items() if len(log.val.get(key, Curve((), ())).steps) > 1
            }
            if curves:
                panels.append(
                    Panel(
                        f'{task}: {metric}',
                        'validation after ... epochs or steps',
                        metric,
                        [
                            Line(label, Curve(curve.steps, tuple(value / divisor for value in curve.values)))
                            for label, curve in curves.items()
                        ],
                    )
                )
    return panels


def draw_samples(kind: str, work_dirs: Mapping[str, Path], path: Path, num_pictures: int) -> str:
    """Sheet of validation pictures, truth above the runs; answers its caption. `kind`: detection or segmentation."""
    from . import samples  # imports the OpenMMLab libraries, seconds that nothing else here needs

    runs = [(label, samples.TrainedRun.load(folder)) for label, folder in work_dirs.items()]
    if kind == 'detection':
        caption = f'Validation pictures: truth, and detections that score {SCORE_THRESHOLD} or more.'
        rows = samples.detection_rows(runs, num_pictures, SCORE_THRESHOLD)
    else:
        caption = 'Validation pictures: truth, and the predicted class of every pixel. Background stays grey.'
        rows = samples.segmentation_rows(runs, num_pictures)
    draw_sheet(rows, path, caption, legend=samples.class_legend(runs[0][1]))
    return caption


def draw_loss_curves(work_dirs: Mapping[str, Mapping[str, Path]], path: Path) -> str:
    draw_curves(curve_panels(work_dirs), path)
    return 'Training losses: single log entries pale, their running mean strong.'


def write_demo_page(results: Mapping, pictures: Sequence[tuple[Path, str]], path: Path) -> Path:
    """The page: table, words, pictures (path, caption), times, commands."""
    header, cells = table_cells(rows_of(results), list(METRICS))
    commands = '\n\n'.join(stage['command'] for stage in results['stages'])
    return write_page(
        build_page(
            results['title'],
            [
                Section('Result', [Table(header, cells), Text([*results['verdict'], results['seconds_note']])]),
                Section('Pictures', [Picture(picture, caption) for picture, caption in pictures]),
                Section('Wall time', [Table(*stage_cells(results))]),
                Section('Commands', [Text([f'Everything: {results["command"]}. Its stages:']), Code(commands)]),
            ],
            footer=provenance(results),
        ),
        path,
    )
