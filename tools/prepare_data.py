"""Prepare data folders: make, fetch, convert, check them, and take shares of them.

    python tools/prepare_data.py demo [--out data/demo] [--unlabelled 2000] [--train 64] [--val 64]
    python tools/prepare_data.py coco [--root data/coco] [--download]
    python tools/prepare_data.py ade20k [--root data/ade/ADEChallengeData2016] [--download | --full-release FOLDER]
    python tools/prepare_data.py imagenet [--root data/imagenet] [--download | --from-archives FOLDER]
    python tools/prepare_data.py imagenet22k [--root data/imagenet22k] [--download | --from-archives FILE_OR_FOLDER]

`demo` draws pictures with textured objects of six classes, unlabelled ones for pretraining and labelled ones in COCO's
and ADE20K's formats, for trying everything out without a download; about 20 s on two cores. The same settings give the
same bytes; a folder that is complete is left alone.

The others say in one line that a data set is complete, or in one line each what is missing and what to do, with exit
code 1. --download goes on where an earlier call was interrupted, and fetches nothing that is in place.

With --fraction 0.1 a data set that is complete gets lists of a tenth of its training pictures, the same at every call,
and the options that make our configs train on them are printed.

Touch this file for the command line only, one function per data set; what is drawn, fetched and checked stands in
mmcnx2/datasets/. Guarded by tests/test_prepare_data.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mmcnx2.datasets import ade20k_files, coco_files, demo_files, imagenet_files
from mmcnx2.datasets.download import Archive, check_free, fetch, unpack_zip
from mmcnx2.datasets.folder_checks import Findings
from mmcnx2.datasets.subsets import subset_options
from mmcnx2.engine.config_options import option_words
from mmcnx2.engine.user_errors import explain_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data_sets = parser.add_subparsers(dest='data_set', required=True, metavar='DATA_SET')
    add_demo(data_sets)
    coco = add_published(data_sets, 'coco', 'COCO 2017', 'data/coco', prepare_coco)
    ade20k = add_published(data_sets, 'ade20k', 'ADE20K', 'data/ade/ADEChallengeData2016', prepare_ade20k)
    for one in (coco, ade20k):
        one.add_argument('--download', action='store_true', help='fetch and unpack what is missing')
        one.add_argument(
            '--archives',
            type=os.path.expanduser,
            metavar='FOLDER',
            help='where archives are kept (default: downloads beside root)',
        )
        one.add_argument('--mirror', metavar='URL', help='address that holds the same archives')
    ade20k.add_argument(
        '--full-release',
        type=os.path.expanduser,
        metavar='FOLDER',
        help='make the 150 classes out of ADE20K_2021_17_01',
    )
    ade20k.add_argument(
        '--short-side',
        type=int,
        default=ade20k_files.SHORT_SIDE,
        metavar='PX',
        help='larger pictures of the full release are reduced to this; 0 keeps them (default: %(default)s)',
    )
    ade20k.add_argument(
        '--challenge-only', action='store_true', help='leave out pictures that only the full release has'
    )
    ade20k.add_argument('--workers', type=int, metavar='N', help='processes (default: one per processor)')
    imagenet = add_published(data_sets, 'imagenet', 'ImageNet-1K', 'data/imagenet', prepare_imagenet)
    imagenet22k = add_published(data_sets, 'imagenet22k', 'ImageNet-22K', 'data/imagenet22k', prepare_imagenet22k)
    for one in (imagenet, imagenet22k):
        one.add_argument('--download', action='store_true', help='say where the archives come from')
        one.add_argument(
            '--from-archives',
            type=os.path.expanduser,
            metavar='PATH',
            help='sort the pictures of archives into class folders',
        )
    imagenet.add_argument('--no-checksums', action='store_true', help='unpack without reading the archives beforehand')
    return parser.parse_args(argv)


def add_demo(data_sets: argparse._SubParsersAction) -> None:
    parser = data_sets.add_parser(
        'demo', help='draw the demo scenes', formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--out', default='data/demo', type=os.path.expanduser, help='folder to write')
    parser.add_argument('--unlabelled', type=int, default=2000, metavar='N', help='pictures without labels')
    parser.add_argument('--train', type=int, default=64, metavar='N', help='labelled pictures to train on')
    parser.add_argument('--val', type=int, default=64, metavar='N', help='labelled pictures to measure on')
    parser.add_argument('--size', type=int, default=192, help='height and width in pixels')
    parser.add_argument('--seed', type=int, default=0, help='of everything, the shares too')
    parser.add_argument('--workers', type=int, metavar='N', help='processes (default: one per processor)')
    parser.add_argument('--force', action='store_true', help='replace demo scenes with other settings')
    parser.add_argument('--fraction', type=float, metavar='SHARE', help='list this share of the training pictures')
    parser.set_defaults(run=prepare_demo)


def add_published(
    data_sets: argparse._SubParsersAction, name: str, title: str, root: str, run
) -> argparse.ArgumentParser:
    parser = data_sets.add_parser(name, help=f'check or make a copy of {title}')
    parser.add_argument(
        '--root', default=root, type=os.path.expanduser, metavar='FOLDER', help='of the data set (default: %(default)s)'
    )
    parser.add_argument(
        '--num-spot-checks',
        type=_natural_number,
        default=48,
        metavar='N',
        help='pictures and annotations to look into, spread evenly (default: %(default)s); 0: names and numbers only',
    )
    parser.add_argument('--fraction', type=float, metavar='SHARE', help='list this share of the training pictures')
    parser.add_argument('--seed', type=int, default=0, help='of the share (default: %(default)s)')
    parser.add_argument(
        '--out',
        metavar='FOLDER',
        type=os.path.expanduser,
        help='for the lists of the share (default: beside the annotations)',
    )
    parser.set_defaults(run=run)
    return parser


def _natural_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is not a number, 0 or more')
    return int(text)


# ---- one function per data set


def prepare_demo(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    written = demo_files.write_demo(
        args.out,
        args.unlabelled,
        args.train,
        args.val,
        args.size,
        args.seed,
        args.workers,
        args.force,
        progress=_steps('scenes'),
    )
    what = f'{args.unlabelled} unlabelled, {args.train} train, {args.val} val scenes of {args.size} px in {args.out}'
    print(f'wrote {what} in {time.perf_counter() - started:.0f} s' if written else f'complete already: {what}')
    if args.fraction is not None:
        for task, (dataset, folder) in demo_training_sets(Path(args.out)).items():
            tell_share(task, dataset, args.fraction, args.seed, folder)


def prepare_coco(args: argparse.Namespace) -> None:
    root = Path(args.root)
    if args.download:
        needed = coco_files.check_coco(root, num_spot_checks=0).archives
        download([archive for archive in coco_files.ARCHIVES if archive.name in needed], root, args)
    tell_findings(coco_files.check_coco(root, args.num_spot_checks))
    if args.fraction is not None:
        folder = args.out or root / 'annotations'
        tell_share('detection', coco_files.training_set(root), args.fraction, args.seed, folder)


def prepare_ade20k(args: argparse.Namespace) -> None:
    root = Path(args.root)
    if args.download and args.full_release:
        raise ValueError('--download fetches the files of the challenge, --full-release converts others: give one.')
    if args.download:
        needed = ade20k_files.check_ade20k(root, num_spot_checks=0).archives
        archives = [archive for archive in ade20k_files.ARCHIVES if archive.name in needed]
        download(archives, root, args, strip=ade20k_files.FOLDER_IN_ARCHIVE)
    if args.full_release:
        tell_conversion(
            ade20k_files.convert_full_release(
                args.full_release, root, args.short_side, args.challenge_only, args.workers, _steps('pictures')
            )
        )
    tell_findings(ade20k_files.check_ade20k(root, args.num_spot_checks))
    if args.fraction is not None:
        tell_share('segmentation', ade20k_files.training_set(root), args.fraction, args.seed, args.out or root)


def prepare_imagenet(args: argparse.Namespace) -> None:
    if args.from_archives:
        with _amount(bytes_=True) as progress:
            num = imagenet_files.unpack_imagenet(
                args.from_archives, args.root, not args.no_checksums, progress, progress.tell
            )
        print(f'wrote {num:,} images')
    found = imagenet_files.check_imagenet(args.root, args.num_spot_checks)
    if args.download and not found.complete:
        print(imagenet_files.HOW_TO_GET)
    tell_findings(found)
    if args.fraction is not None:
        for task, dataset in imagenet_files.training_sets(args.root).items():
            tell_share(task, dataset, args.fraction, args.seed, Path(args.out or args.root, task))


def prepare_imagenet22k(args: argparse.Namespace) -> None:
    if args.from_archives:
        with _amount(bytes_=Path(args.from_archives).is_file()) as progress:
            num = imagenet_files.unpack_imagenet22k(args.from_archives, args.root, progress, progress.tell)
        print(f'wrote {num:,} images')
    found = imagenet_files.check_imagenet22k(args.root, args.num_spot_checks)
    if args.download and not found.complete:
        print(imagenet_files.HOW_TO_GET_22K)
    tell_findings(found)
    if args.fraction is not None:
        for task, dataset in imagenet_files.training_sets_22k(args.root).items():
            tell_share(task, dataset, args.fraction, args.seed, args.out or args.root)


# ---- what they share


def demo_training_sets(out: Path) -> dict[str, tuple[dict, Path]]:
    """The training sets of the demo configs by task, and where their lists go."""
    coco = dict(
        type='CocoDataset',
        data_root=str(out / 'coco'),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True),
    )
    ade = dict(
        type='BaseSegDataset',
        data_root=str(out / 'ade'),
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
    )
    unlabelled = dict(type='mmcnx2.UnlabelledImages', source=str(out / 'unlabelled'))
    return dict(
        pretraining=(unlabelled, out),
        detection=(coco, out / 'coco' / 'annotations'),
        segmentation=(ade, out / 'ade'),
    )


def download(archives: Sequence[Archive], root: Path, args: argparse.Namespace, strip: str = '') -> None:
    """Fetches and unpacks the archives one after the other; what is in place is not fetched or written again."""
    if not archives:
        return
    folder = Path(args.archives) if args.archives else root.parent / 'downloads'
    folder.mkdir(parents=True, exist_ok=True)
    if args.mirror:
        archives = [
            Archive(f'{args.mirror.rstrip("/")}/{archive.name}', archive.checksum, archive.num_bytes)
            for archive in archives
        ]
    lacking = sum(archive.num_bytes or 0 for archive in archives if not (folder / archive.name).is_file())
    check_free(folder, lacking, 'fetching the archives')
    for archive in archives:
        with _amount(bytes_=True) as progress:
            progress.tell(f'{archive.url} -> {folder / archive.name}')
            path = fetch(archive, folder, progress, progress.tell)
        with _amount(bytes_=False) as progress:
            progress.tell(f'unpacking {path.name}')
            num = unpack_zip(path, root, strip, progress)
        print(f'{path.name}: {num:,} files unpacked')
    print(f'the archives in {folder} are not needed any more')


def tell_findings(found: Findings) -> None:
    """One line for a complete data set; one per problem otherwise, and the end."""
    if found.complete:
        print(found.summary)
        return
    for problem in found.problems:
        print(f'missing or wrong: {problem}', file=sys.stderr)
    raise SystemExit(1)


def tell_conversion(result: ade20k_files.Conversion) -> None:
    numbers = ', '.join(f'{num:,} {split}' for split, num in result.num_images.items())
    print(f'converted {numbers} pictures, {result.num_there:,} of them before')
    if result.num_beyond:
        print(f'{result.num_beyond:,} pictures are not in the challenge; --challenge-only leaves them out')
    if result.without_names:
        first = result.without_names[0]
        print(f'{len(result.without_names):,} pictures have no JSON with names ({first} ...): objects went by number')
    if not result.num_there and result.absent_classes:
        print(f'{len(result.absent_classes)} classes never occurred: {"; ".join(result.absent_classes)}')


def tell_share(task: str, dataset: dict, fraction: float, seed: int, folder: str | Path) -> None:
    changed = subset_options(dataset, fraction, seed, Path(folder).absolute())
    words = shlex.join(option_words({f'train_dataloader.dataset.{key}': value for key, value in changed.items()}))
    print(f'{task}: {f"--cfg-options {words}" if words else "all of it needs no option"}')


def _steps(name: str):
    """A progress bar over steps whose number is known."""

    def bar(steps, total: int):
        with Progress(TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
            yield from progress.track(steps, total=total)

    return bar


class _Amount:
    """A progress bar that is told how much is done; one task per total."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.task = progress, progress.add_task('', total=None)

    def __call__(self, done: int, total: int | None) -> None:
        self.progress.update(self.task, completed=done, total=total)

    def tell(self, line: str) -> None:
        self.progress.console.print(line, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _amount(bytes_: bool) -> Iterator[_Amount]:
    """A progress bar of bytes, or of files."""
    columns = (DownloadColumn(), TransferSpeedColumn()) if bytes_ else (MofNCompleteColumn(),)
    with Progress(BarColumn(), TaskProgressColumn(), *columns, TimeRemainingColumn()) as progress:
        yield _Amount(progress)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.run(args)


if __name__ == '__main__':
    with explain_errors():
        main()
