"""Makes small JPEG copies of large photographs, once, so that pretraining reads them quickly in every epoch.

    python tools/shrink_images.py /data/photographs /data/photographs_512
    python tools/train.py CONFIG --cfg-options train_dataloader.dataset.source=/data/photographs_512

SOURCE is a folder (at any depth), a glob or a list file. The copies have the same paths, a shorter side of at most 512
px (--shorter-side) and no EXIF data; the camera's rotation is applied. JPEG files that are small enough already are
copied as they are. An interrupted call goes on where it was when it is given again; shrunken.json in OUT says where the
copies come from and which files could not be read, and training refuses a folder whose copies are not all made.

Touch this file for the command line only; what a copy is stands in mmcnx2/datasets/shrunken_copies.py. Guarded by
tests/datasets/test_shrunken_copies.py.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmcnx2.datasets.shrunken_copies import MARK_FILE, QUALITY, SHORTER_SIDE, shrink
from mmcnx2.engine.config_options import option_words
from mmcnx2.engine.user_errors import explain_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='folder, glob or list file of the photographs')
    parser.add_argument('out', help='folder for the copies, outside the folder of the originals')
    parser.add_argument('--shorter-side', type=int, default=SHORTER_SIDE, metavar='PX', help='at most (%(default)s)')
    parser.add_argument('--quality', type=int, default=QUALITY, help='of the JPEG files (%(default)s)')
    parser.add_argument(
        '--max-bad-share', type=float, default=0.1, metavar='SHARE', help='of files that cannot be read (%(default)s)'
    )
    parser.add_argument('--workers', type=int, metavar='N', help='processes (default: one per processor)')
    return parser.parse_args(argv)


def bar(steps, total: int):
    with Progress(TextColumn('pictures'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        yield from progress.track(steps, total=total)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    started = time.perf_counter()
    result = shrink(
        args.source,
        args.out,
        args.shorter_side,
        args.quality,
        max_bad_share=args.max_bad_share,
        num_workers=args.workers,
        progress=bar,
    )
    print(
        f'{args.out}: {result.num_shrunken:,} pictures shrunken, {result.num_as_they_were:,} copied as they were, '
        f'{result.num_there:,} there before ({time.perf_counter() - started:.0f} s)'
    )
    if result.left_out:
        print(f'{len(result.left_out):,} could not be read; {Path(args.out, MARK_FILE)} says which and why')
    words = option_words({'train_dataloader.dataset.source': args.out})
    print(f'train on them: --cfg-options {shlex.join(words)}')


if __name__ == '__main__':
    with explain_errors():
        main()
