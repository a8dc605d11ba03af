"""Prepare data folders.

    python tools/prepare_data.py demo [--out data/demo] [--unlabelled 2000] [--train 64] [--val 64]

`demo` draws pictures with textured objects of six classes, unlabelled ones for pretraining and labelled ones in COCO's
and ADE20K's formats, for trying everything out without a download; about 20 s on two cores. The same settings give the
same bytes; a folder that is complete is left alone.

Touch this file for the command line only, one function per data set; what is drawn and written stands in
mmcnx2/datasets/. Guarded by tests/test_prepare_data.py.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmcnx2.datasets.demo_files import write_demo
from mmcnx2.engine.user_errors import explain_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data_sets = parser.add_subparsers(dest='data_set', required=True, metavar='DATA_SET')
    add_demo(data_sets)
    return parser.parse_args(argv)


def add_demo(data_sets: argparse._SubParsersAction) -> None:
    parser = data_sets.add_parser(
        'demo', help='draw the demo scenes', formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out', default='data/demo', help='folder to write')
    parser.add_argument('--unlabelled', type=int, default=2000, metavar='N', help='pictures without labels')
    parser.add_argument('--train', type=int, default=64, metavar='N', help='labelled pictures to train on')
    parser.add_argument('--val', type=int, default=64, metavar='N', help='labelled pictures to measure on')
    parser.add_argument('--size', type=int, default=192, help='height and width in pixels')
    parser.add_argument('--seed', type=int, default=0, help='of everything')
    parser.add_argument('--workers', type=int, metavar='N', help='processes (default: one per processor)')
    parser.add_argument('--force', action='store_true', help='replace demo scenes with other settings')
    parser.set_defaults(run=prepare_demo)


def prepare_demo(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    written = write_demo(args.out, args.unlabelled, args.train, args.val, args.size, args.seed, args.workers,
                         args.force, progress=_bar)
    what = f'{args.unlabelled} unlabelled, {args.train} train, {args.val} val scenes of {args.size} px in {args.out}'
    print(f'wrote {what} in {time.perf_counter() - started:.0f} s' if written else f'complete already: {what}')


def _bar(steps, total: int):
    with Progress(TextColumn('scenes'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        yield from progress.track(steps, total=total)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.run(args)


if __name__ == '__main__':
    with explain_errors():
        main()
