"""Published weights by name: 'official:convnextv2_atto_1k_224_fcmae' --> a file on this machine, checked.

name --table--> file name --> $MMCNX2_CHECKPOINTS/FILE when it is there, else fetched to it --> sha256 as at first time

Wherever a checkpoint is read to be loaded or converted, 'official:NAME' may stand in place of a path. The files are
under CC-BY-NC 4.0, and every load says so. Touch this file to add published files; not for how bytes arrive
(mmcnx2/datasets/download.py) and not for what a file holds (read.py, key_rules.py). Guarded by
tests/checkpoint/test_official_weights.py.

Sources: the tables of the official repository's README (file names, accuracies, licence) and of mmpretrain's
configs/convnext_v2/README.md (file names with the start of each file's sha256, accuracies). Neither gives file sizes,
so none stands here: what is shown is derived from the number of parameters.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.logging import print_log

from mmcnx2.atomic_write import write_atomically
from mmcnx2.checkpoint.convert import CheckpointError

SCHEME = 'official:'
FOLDER_VARIABLE = 'MMCNX2_CHECKPOINTS'
LICENCE = 'CC-BY-NC 4.0'
LICENCE_URL = 'https://creativecommons.org/licenses/by-nc/4.0/'
BASE_URLS = {
    'meta': 'https://dl.fbaipublicfiles.com/convnext/convnextv2/',
    'mmpretrain': 'https://download.openmmlab.com/mmclassification/v0/convnext-v2/',
}
NUM_CLASSES = 1000  # of every published classifier; those by way of ImageNet-22K were fine-tuned on 1K in the end
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class OfficialWeights:
    """A published file. `top1` is ImageNet-1K accuracy in per cent as the publisher reports it, None for a backbone
    that was pretrained only. `sha256_start` are the 8 digits that mmpretrain puts into its file names, '' for Meta's.
    """

    name: str
    publisher: str
    path: str
    size: str
    trained: str
    image_size: int  # px
    top1: float | None = None
    sha256_start: str = ''

    @property
    def url(self) -> str:
        return BASE_URLS[self.publisher] + self.path

    @property
    def file_name(self) -> str:
        return self.path.rsplit('/', 1)[-1]

    @property
    def has_classifier(self) -> bool:
        return self.top1 is not None


FCMAE, SUPERVISED, VIA_22K = 'FCMAE on 1K', 'FCMAE, then 1K', 'FCMAE, 22K, then 1K'

# size: top-1 after fine-tuning on ImageNet-1K; {image size: top-1} by way of ImageNet-22K.
_META = {
    'atto': (76.7, {}),
    'femto': (78.5, {}),
    'pico': (80.3, {}),
    'nano': (81.9, {224: 82.1, 384: 83.4}),
    'tiny': (83.0, {224: 83.9, 384: 85.1}),
    'base': (84.9, {224: 86.8, 384: 87.7}),
    'large': (85.8, {224: 87.3, 384: 88.2}),
    'huge': (86.3, {384: 88.7, 512: 88.9}),
}

# size: (digits of the pretrained backbone), (digits, top-1), {image size: (digits, top-1)} in the same order.
_MMPRETRAIN = {
    'atto': ('07514db4', ('23765f83', 76.64), {}),
    'femto': ('adbe2082', ('92a75d75', 78.48), {}),
    'pico': ('147b1b59', ('d20263ca', 80.31), {}),
    'nano': ('3dd1f29e', ('fe1aaaf2', 81.86), {224: ('91fa8ae2', 82.04), 384: ('f951ae87', 83.36)}),
    'tiny': ('80513adc', ('471a86de', 82.94), {224: ('8cc8b8f2', 83.89), 384: ('d8579f84', 85.09)}),
    'base': ('8a798eaf', ('00a70fa4', 84.87), {224: ('c48d16a5', 86.74), 384: ('379425cc', 87.63)}),
    'large': ('bf38df92', ('ef393013', 85.76), {224: ('d9c4dc0c', 87.26), 384: ('9139a1f3', 88.18)}),
    'huge': ('fe43ae6c', ('f795e5b8', 86.25), {384: ('02a4eb35', 88.68), 512: ('ce32e63c', 88.86)}),
}


def _meta_files() -> Iterator[OfficialWeights]:
    for size, (top1, via_22k) in _META.items():
        rows = [('pt_only', '1k_224_fcmae', FCMAE, 224, None), ('im1k', '1k_224_ema', SUPERVISED, 224, top1)]
        rows += [('im22k', f'22k_{px}_ema', VIA_22K, px, accuracy) for px, accuracy in via_22k.items()]
        for folder, ending, trained, px, accuracy in rows:
            name = f'convnextv2_{size}_{ending}'
            yield OfficialWeights(name, 'meta', f'{folder}/{name}.pt', size, trained, px, accuracy)


def _mmpretrain_files() -> Iterator[OfficialWeights]:
    for size, (pretrained, (supervised, top1), via_22k) in _MMPRETRAIN.items():
        rows = [('3rdparty-fcmae_in1k', FCMAE, 224, None, pretrained)]
        rows += [('fcmae-pre_3rdparty_in1k', SUPERVISED, 224, top1, supervised)]
        for px, (digits, accuracy) in via_22k.items():
            ending = '' if px == 224 else f'-{px}px'
            rows.append((f'fcmae-in21k-pre_3rdparty_in1k{ending}', VIA_22K, px, accuracy, digits))
        for what, trained, px, accuracy, digits in rows:
            name = f'convnext-v2-{size}_{what}'
            path = f'{name}_20230104-{digits}.pth'
            yield OfficialWeights(name, 'mmpretrain', path, size, trained, px, accuracy, digits)


OFFICIAL_WEIGHTS = {weights.name: weights for weights in (*_meta_files(), *_mmpretrain_files())}


def official_weights(path: str | os.PathLike) -> OfficialWeights | None:
    """The table's entry for 'official:NAME'; None for an ordinary path. Raises CheckpointError for an unknown name."""
    text = os.fspath(path)
    if not text.startswith(SCHEME):
        return None
    name = text.removeprefix(SCHEME)
    if name not in OFFICIAL_WEIGHTS:
        alike = difflib.get_close_matches(name, OFFICIAL_WEIGHTS, n=3)
        raise CheckpointError(
            f'{text}: no published weights have this name; '
            + (f'near it: {", ".join(alike)}; ' if alike else '')
            + '`python tools/convert_checkpoint.py --list-official` prints all'
        )
    return OFFICIAL_WEIGHTS[name]


def local_file(path: str | os.PathLike) -> str | os.PathLike:
    """Where the weights lie on this machine: `path` as it is, or for 'official:NAME' the published file.

    That is looked for in `weights_folder()` and fetched into it when it is not there. Its sha256 is written beside it
    (FILE.sha256) the first time and compared from then on; mmpretrain's names hold its start. Logs the licence, as a
    warning, each time.

    Raises CheckpointError: an unknown name, no connection, or a file that is not the one that came first.
    """
    weights = official_weights(path)
    if weights is None:
        return path
    print_log(
        f'{weights.name} is published under {LICENCE} ({LICENCE_URL}): NO COMMERCIAL USE, and the authors of '
        'ConvNeXt V2 must be named. That holds for these weights, whatever the licence of this software is.',
        logger='current',
        level=logging.WARNING,
    )
    file = weights_folder() / weights.file_name
    if not file.is_file():
        _fetch(weights, file)
    _check_sha256(weights, file)
    return file


def weights_folder() -> Path:
    """$MMCNX2_CHECKPOINTS; without it the folder in which PyTorch's own downloads lie (torch.hub)."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given).expanduser() if given else Path(torch.hub.get_dir()) / 'checkpoints'


def _fetch(weights: OfficialWeights, file: Path) -> None:
    from mmcnx2.datasets.download import (
        Archive,
        fetch,
    )  # the data sets import mmpretrain; this package is imported by all

    by_hand = f'Fetch {weights.url} another way and put it into {file.parent} ({FOLDER_VARIABLE} names the folder)'
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _one_process_at_a_time(file):
            if not file.is_file():
                print_log(f'fetching {weights.url} to {file.parent}', logger='current')
                fetch(Archive(weights.url), file.parent, _Progress(weights.file_name), _tell)
    except (OSError, ValueError) as error:
        what = ' '.join(str(error).split()).partition('. ')[0]  # the advice that follows speaks of data sets
        raise CheckpointError(f'{SCHEME}{weights.name} was not fetched: {what}. {by_hand}') from error


@contextlib.contextmanager
def _one_process_at_a_time(file: Path) -> Iterator[None]:
    """The processes of a distributed run ask for the same file: one fetches it, the others wait."""
    with open(file.with_name(f'.{file.name}.lock'), 'wb') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_sha256(weights: OfficialWeights, file: Path) -> None:
    with open(file, 'rb') as content:
        found = hashlib.file_digest(content, 'sha256').hexdigest()
    record = file.with_name(f'{file.name}.sha256')
    recorded = record.read_text().split()[:1] if record.is_file() else []
    if recorded and recorded != [found]:
        raise CheckpointError(
            f'{file} is not the file that was recorded first: its sha256 is {found}, {record.name} says {recorded[0]}. '
            f'Delete it to have it fetched anew, or {record.name} where the change was meant'
        )
    if not found.startswith(weights.sha256_start):
        raise CheckpointError(
            f'{file} is damaged or another file: its sha256 begins with {found[:8]}, the published one with '
            f'{weights.sha256_start}. Delete it and {record.name} to have it fetched anew'
        )
    if not recorded:
        try:
            write_atomically(record, f'{found}  {file.name}\n'.encode())
        except OSError as error:
            print_log(f'the sha256 of {file}, {found}, is not recorded beside it: {error.strerror}', logger='current')


class _Progress:
    """A line in the log now and then while a file arrives."""

    def __init__(self, file_name: str) -> None:
        self.file_name, self.last_line = file_name, time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        if time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            of = f' of {total / 1e6:.0f}' if total else ''
            _tell(f'{self.file_name}: {done / 1e6:.0f}{of} MB')


def _tell(line: str) -> None:
    print_log(line, logger='current')


# ------------------------------------------------------------------------------------------------------ the table


def num_parameters(size: str, has_classifier: bool) -> int:
    """Of a backbone, with the norm and the 1000 classes of a classifier where it has them."""
    from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2  # the backbone imports this package

    with torch.device('meta'):
        backbone = ConvNeXtV2(size, out_norm=has_classifier)
    classifier = NUM_CLASSES * (backbone.channels[-1] + 1) if has_classifier else 0
    return sum(parameter.numel() for parameter in backbone.parameters()) + classifier


def table() -> str:
    """Every published file, a line each, and the licence."""
    counts = {
        key: num_parameters(*key)
        for key in dict.fromkeys((w.size, w.has_classifier) for w in OFFICIAL_WEIGHTS.values())
    }
    lines = [f'{"name":<57} {"trained by":<19} {"px":>3} {"top-1":>6} {"parameters":>10} {"about":>9}  of']
    for weights in OFFICIAL_WEIGHTS.values():
        count = counts[weights.size, weights.has_classifier]
        top1 = '' if weights.top1 is None else str(weights.top1)
        lines.append(
            f'{weights.name:<57} {weights.trained:<19} {weights.image_size:>3} {top1:>6} {count / 1e6:>9.1f}M '
            f'{4 * count / 1e6:>6.0f} MB  {weights.publisher}'
        )
    lines += [
        '',
        'px: of the images in the last training. top-1: on ImageNet-1K, as the publisher reports it.',
        'about: 4 bytes per parameter; no file sizes are published. mmpretrain converted the weights of meta.',
        f'Use: {SCHEME}NAME in place of a path. A file is looked for in {weights_folder()}',
        f'({FOLDER_VARIABLE} names another folder) and fetched to it when it is not there.',
        f'LICENCE of all of them: {LICENCE} ({LICENCE_URL}). NO COMMERCIAL USE.',
    ]
    return '\n'.join(lines)
