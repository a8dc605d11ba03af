"""The paper's ablation tables at a small scale, beside the paper's numbers; or the commands that run them in full.

    python tools/ablate.py TABLE [TABLE ...] [--seeds 3] [--epochs N] [--work-dir work_dirs/ablate] [--max-seconds S]
    python tools/ablate.py --list
    python tools/ablate.py TABLE --commands

Each row is pretrained on demo scenes that are drawn in memory (no data, no GPU), measured on held-out pictures, and
fine-tuned to tell the six kinds of object apart. A run is kept with everything that it depends on, so after Ctrl-C,
and after --max-seconds, the same command goes on; a row that stands in two tables runs once. The work dir holds
results.md, results.json and runs/.

Touch this file for the command line and for what is kept; rows and wording are in mmcnx2/analysis/ablations.py, the
training in mmcnx2/analysis/ablation_runs.py. Guarded by tests/test_ablate.py.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import math
import shlex
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

import torch
from mmengine.logging import MMLogger

import mmcnx2
from mmcnx2.analysis.ablation_runs import SmallData, SmallScale, draw_data, run_row, settings_of
from mmcnx2.analysis.ablations import TABLES, MeasuredRow, find_table, table_markdown
from mmcnx2.analysis.provenance import machine, provenance, versions
from mmcnx2.atomic_write import write_atomically
from mmcnx2.engine.config_options import option_words
from mmcnx2.engine.stages import now
from mmcnx2.engine.user_errors import explain_errors
from mmcnx2.given_path import given_path
from mmcnx2.models.fcmae.masking import num_visible_cells

CELL = 32  # px, of every config

SCALE_HELP = dict(
    epochs='of pretraining', num_unlabelled='pictures of pretraining', fine_tuning_epochs='of fine-tuning',
    num_train='pictures of fine-tuning', batch_size='of pretraining', lr='of pretraining',
    fine_tuning_lr='of fine-tuning', crop_size='px of pretraining', scene_size='px of the drawn scenes',
    decoder_channels="stands for the paper's 512",
)  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tables', nargs='*', metavar='TABLE', help='see --list')
    parser.add_argument('--list', action='store_true', help='the tables, their rows and options')
    parser.add_argument('--commands', action='store_true', help='print the commands of the full size, run nothing')
    parser.add_argument('--seeds', type=int, default=3, help='runs per row, with the seeds 0, 1, ... (default: 3)')
    parser.add_argument('--work-dir', type=given_path, default=Path('work_dirs/ablate'), help='default: %(default)s')
    parser.add_argument('--max-seconds', type=float, default=math.inf, help='start no further run after so many')
    for each in fields(SmallScale):
        if each.name in SCALE_HELP:
            flag, default = '--' + each.name.replace('_', '-'), each.default
            parser.add_argument(flag, type=type(default), default=default, help=f'{SCALE_HELP[each.name]} ({default})')
    parser.add_argument('--channels', type=int, nargs=4, default=list(SmallScale.channels), help='of the four stages')
    parser.add_argument('--depths', type=int, nargs=4, default=list(SmallScale.depths), help='of the four stages')
    args = parser.parse_args(argv)
    args.command = shlex.join(['python', 'tools/ablate.py', *(sys.argv[1:] if argv is None else argv)])
    return args


def list_tables() -> None:
    for name, table in TABLES.items():
        print(f'{name}: {table.title}; configs/{table.pretraining}')
        for row in table.rows:
            published = '' if row.published is None else f'  [{row.published:g}]'
            print(f'  {row.name}{published}  {" ".join(option_words(row.options))}'.rstrip())


def print_commands(names: list[str]) -> None:
    """Two commands per row, as they would be typed on one machine."""
    for name in names:
        table = find_table(name)
        for row in table.rows:
            work_dir = f'work_dirs/{name}-{row.name}'.replace(' ', '-').replace('/', 'over')
            first = ['python', 'tools/train.py', f'configs/{table.pretraining}', '--work-dir', work_dir]
            if row.options:
                first += ['--cfg-options', *option_words(row.options)]
            checkpoint = f'model.backbone.init_cfg.checkpoint={work_dir}/epoch_800.pth'
            second = ['python', 'tools/train.py', f'configs/{table.fine_tuning}', '--work-dir', f'{work_dir}-ft']
            second += ['--cfg-options', checkpoint, *option_words(row.fine_tuning_options)]
            print(f'# {table.title}: {row.name}\n{shlex.join(first)}\n{shlex.join(second)}')


def file_of(settings: dict, work_dir: Path) -> Path:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return work_dir / 'runs' / f'{digest}.json'


def kept_result(settings: dict, work_dir: Path) -> dict | None:
    path = file_of(settings, work_dir)
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None


def measured(names: list[str], scale: SmallScale, seeds: int, work_dir: Path) -> dict[str, list[MeasuredRow]]:
    """What is there of each table; a row counts the seeds that every row of its table has."""
    found: dict[str, list[MeasuredRow]] = {}
    for name in names:
        table = find_table(name)
        results = {
            row.name: [kept_result(settings_of(table, row, scale, seed), work_dir) for seed in range(seeds)]
            for row in table.rows
        }
        common = [seed for seed in range(seeds) if all(each[seed] for each in results.values())]
        found[name] = [
            MeasuredRow(
                row.name,
                row.published,
                *([results[row.name][seed][key] for seed in common] for key in ('top1', 'loss', 'seconds')),
            )
            for row in table.rows
        ]
    return found


def write_results(names: list[str], scale: SmallScale, args: argparse.Namespace) -> str:
    """Writes results.md and results.json; returns the tables."""
    tables = measured(names, scale, args.seeds, args.work_dir)
    results = dict(
        command=args.command,
        scale=vars(scale),
        seeds=args.seeds,
        tables={name: [vars(row) for row in rows] for name, rows in tables.items()},
        machine=machine(),
        versions=versions(),
        finished=now(),
    )
    text = '\n\n'.join(table_markdown(name, rows) for name, rows in tables.items())
    settings = ', '.join(f'{key} {value}' for key, value in results['scale'].items())
    head = (
        "# The paper's ablations at a small scale\n\nThe paper: ConvNeXt base, 800 epochs of ImageNet-1K, then 100 of "
        'fine-tuning. Here: a small network on demo scenes, the numbers being mean ± standard deviation over the '
        'seeds; a difference counts when it exceeds two standard errors, paired by seed, with the same sign at every '
        'seed. With so few seeds and so many rows some differences that count are chance.'
    )
    document = f'{head}\n\n{text}\n\n## How\n\n```\n{args.command}\n```\n\n{settings}.\n\n{provenance(results)}\n'
    write_atomically(args.work_dir / 'results.json', json.dumps(results, indent=1) + '\n')
    write_atomically(args.work_dir / 'results.md', document)
    return text


def pictures(scale: SmallScale, work_dir: Path) -> SmallData:
    """Drawn once; kept in the work dir."""
    sizes = json.dumps(vars(scale), sort_keys=True) + mmcnx2.__version__
    path = work_dir / f'pictures-{hashlib.sha256(sizes.encode()).hexdigest()[:16]}.pt'
    if not path.is_file():
        data = draw_data(scale)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(vars(data), buffer)
        write_atomically(path, buffer.getvalue())
        return data
    return SmallData(**torch.load(path))


def sweep(names: list[str], scale: SmallScale, args: argparse.Namespace) -> int:
    """Runs what is missing, seed by seed; returns how many runs are left."""
    todo = {}
    for seed in range(args.seeds):
        for name in names:
            table = find_table(name)
            for row in table.rows:
                settings = settings_of(table, row, scale, seed)
                if kept_result(settings, args.work_dir) is None:
                    todo.setdefault(file_of(settings, args.work_dir), (table, row, seed, settings))
    start, data, left = time.monotonic(), None, len(todo)
    for path, (table, row, seed, settings) in todo.items():
        if time.monotonic() - start > args.max_seconds:
            break
        data = data or pictures(scale, args.work_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        result = run_row(table, row, scale, data, seed, path.parent)
        result['seconds'] = round(time.monotonic() - began, 1)
        write_atomically(path, json.dumps(dict(settings=settings, **result), indent=1) + '\n')
        left -= 1
        print(
            f'{table.title}: {row.name}, seed {seed}: top-1 {result["top1"]:.1f}, loss {result["loss"]:.4f}, '
            f'{result["seconds"]:.0f} s',
            flush=True,
        )
    return left


def check_sizes(names: list[str], scale: SmallScale) -> None:
    """Raises ValueError where a row could not run."""
    if scale.crop_size % CELL or not 0 < scale.crop_size <= scale.scene_size:
        raise ValueError(
            f'--crop-size {scale.crop_size} --scene-size {scale.scene_size}: a crop is a multiple of {CELL} px and no '
            'larger than the scene'
        )
    num_cells = (scale.crop_size // CELL) ** 2
    for name in names:
        ratio = max(row.options.get('model.mask_ratio', 0.0) for row in find_table(name).rows)
        if num_visible_cells(num_cells, ratio) < 1:
            raise ValueError(
                f'{name}: {ratio:g} hides all of the {num_cells} cells of a {scale.crop_size} px crop; give '
                '--crop-size 128 or more (and a --scene-size that is larger)'
            )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with explain_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    if args.list:
        list_tables()
        return
    if not args.tables:
        raise ValueError(f'name at least one table: {", ".join(TABLES)} (--list says what they are)')
    for name in args.tables:
        find_table(name)
    if args.seeds < 1:
        raise ValueError(f'--seeds {args.seeds}: at least one run per row is needed')
    if args.commands:
        print_commands(args.tables)
        return
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    given = {each.name: getattr(args, each.name) for each in fields(SmallScale) if hasattr(args, each.name)}
    scale = replace(SmallScale(), **{key: tuple(v) if isinstance(v, list) else v for key, v in given.items()})
    check_sizes(args.tables, scale)
    left = sweep(args.tables, scale, args)
    print(write_results(args.tables, scale, args))
    print(f'\n{args.work_dir / "results.md"}')
    if left:
        print(f'{left} runs are left; the same command goes on from here')


if __name__ == '__main__':
    main()
