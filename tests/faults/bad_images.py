"""Pretraining on a folder with bad images of twelve kinds: what trains, what is skipped, what the report says.

    python tests/faults/bad_images.py [--bad 200] [--good 600] [--workers 2] [--out report.md]

Writes the folder, trains a micro FCMAE on it for two epochs through tools/train.py, with the ordinary limit on bad
files, and compares skipped_images.txt with what was written. Exit code 1 when they differ, when the run fails, or when
its memory shows that a picture of 20000 x 20000 pixels was decoded. A small one is part of the tests:
tests/faults/test_bad_images.py. Touch this file to add a kind (`KINDS`); what is done about one stands in
mmcnx2/datasets/load_image.py.
"""

import argparse
import os
import platform
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CONFIG = f"""
_base_ = '{ROOT}/configs/demo/fcmae_convnextv2-atto_demo.py'
arch = dict(_delete_=True, depths=[1, 1, 1, 1], channels=[8, 16, 24, 32])
model = dict(backbone=dict(arch=arch), neck=dict(decoder_channels=32))
train_dataloader = dict(batch_size=20)
train_cfg = dict(max_epochs=2)
"""
MOST_MEMORY = 1.8e9  # bytes; a run takes about 1 GB, and a decoded bomb 1.2 GB more


def picture(rng: np.random.Generator, width: int = 120, height: int = 90) -> Image.Image:
    """Smooth random colours."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def truncated_jpeg(path: Path, image: Image.Image) -> None:
    image.save(path, 'JPEG', quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def palette(path: Path, image: Image.Image) -> None:
    image.quantize(32).save(path, 'PNG', transparency=3)


def alpha(path: Path, image: Image.Image) -> None:
    image.putalpha(image.convert('L'))
    image.save(path, 'PNG')


def sixteen_bits(path: Path, image: Image.Image) -> None:
    Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) * 257).save(path, 'PNG')


def rotated(path: Path, image: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, 'JPEG', exif=exif)


def bomb(path: Path, image: Image.Image) -> None:
    """A PNG of a hundred bytes whose header claims 20000 x 20000."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    header = struct.pack('>IIBBBBB', 20000, 20000, 8, 2, 0, 0, 0)
    chunks = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'0')) + chunk(b'IEND', b'')
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunks)


def animation(path: Path, image: Image.Image) -> None:
    image.save(path, 'GIF', save_all=True, append_images=[image.rotate(90)])


# name -> (ending, writer, what the report calls it, or None: it trains)
KINDS: dict[str, tuple[str, Callable[[Path, Image.Image], object], str | None]] = {
    'truncated JPEG': ('jpg', truncated_jpeg, 'damaged'),
    'zero bytes': ('jpg', lambda path, image: path.write_bytes(b''), 'empty'),
    'PNG named .jpg': ('jpg', lambda path, image: image.save(path, 'PNG'), None),
    'CMYK': ('jpg', lambda path, image: image.convert('CMYK').save(path, 'JPEG'), None),
    '16 bits': ('png', sixteen_bits, None),
    'palette': ('png', palette, None),
    'alpha': ('png', alpha, None),
    'EXIF-rotated': ('jpg', rotated, None),
    '1 x 1': ('png', lambda path, image: image.resize((1, 1)).save(path), None),
    '20000 x 20000 header': ('png', bomb, 'too large'),
    'animated GIF': ('gif', animation, None),
    'text named .jpg': ('jpg', lambda path, image: path.write_text('<html>404 not found</html>'), 'not a picture'),
}


def write_images(folder: Path, num_bad: int, num_good: int) -> dict[Path, str]:
    """Writes them, mixed by name, and returns the kind of each bad one."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(num_bad + num_good)
    kinds = {}
    for number, place in enumerate(order):
        if number >= num_bad:
            picture(rng).save(folder / f'{place:05d}.jpg', quality=90)
            continue
        name = list(KINDS)[number % len(KINDS)]
        ending, write, _ = KINDS[name]
        path = folder / f'{place:05d}.{ending}'
        write(path, picture(rng))
        kinds[path] = name
    return kinds


def train(folder: Path, work_dir: Path, num_workers: int) -> subprocess.CompletedProcess:
    """Two epochs through the tool."""
    config = work_dir.parent / 'bad_images_config.py'
    config.write_text(CONFIG)
    command = [
        sys.executable, ROOT / 'tools' / 'train.py', config, '--work-dir', work_dir, '--cfg-options',
        f'train_dataloader.dataset.source={folder}', f'train_dataloader.num_workers={num_workers}',
        f'train_dataloader.persistent_workers={num_workers > 0}',
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def read_report(work_dir: Path) -> dict[Path, str]:
    """{file: what was wrong with it} of skipped_images.txt."""
    path = work_dir / 'skipped_images.txt'
    lines = path.read_text().splitlines() if path.exists() else []
    return {Path(file): kind for kind, _, file in (line.partition('\t') for line in lines if line[0] != '#')}


def differences(kinds: dict[Path, str], skipped: dict[Path, str]) -> list[str]:
    """What the report says otherwise than it should, in words."""
    expected = {path: KINDS[name][2] for path, name in kinds.items() if KINDS[name][2]}
    return [
        f'{path.name} ({kinds.get(path, "good")}): expected {expected.get(path, "to train")}, '
        f'reported {skipped.get(path, "nothing")}'
        for path in sorted({*expected, *skipped})
        if expected.get(path) != skipped.get(path)
    ]


def table(kinds: dict[Path, str], skipped: dict[Path, str]) -> str:
    lines = ['| kind | files | trained | skipped as |', '|---|---|---|---|']
    for name, number in Counter(kinds.values()).items():
        found = Counter(skipped[path] for path, kind in kinds.items() if kind == name and path in skipped)
        said = ', '.join(f'{kind} ({count})' for kind, count in found.items()) or '-'
        lines.append(f'| {name} | {number} | {number - found.total()} | {said} |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--bad', type=int, default=200, help='bad images (200)')
    parser.add_argument('--good', type=int, default=600, help='good ones (600)')
    parser.add_argument('--workers', type=int, default=2, help='of the data loader (2)')
    parser.add_argument('--out', type=Path, help='write the report there as well')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, work_dir = Path(scratch, 'images'), Path(scratch, 'run')
        kinds = write_images(folder, args.bad, args.good)
        done = train(folder, work_dir, args.workers)
        skipped = read_report(work_dir)
        checkpoint = (work_dir / 'epoch_2.pth').exists()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    wrong = differences(kinds, skipped)
    failed = done.returncode or wrong or not checkpoint or peak > MOST_MEMORY
    log = [line.replace(f'{scratch}/', '') for line in done.stdout.splitlines() if 'could not be used' in line]
    text = '\n'.join([
        f'# {args.bad} bad images of {len(KINDS)} kinds among {args.good} good ones', '',
        f'Python {platform.python_version()}, {platform.machine()}, {args.workers} workers; exit code '
        f'{done.returncode}, largest process {peak / 1e9:.2f} GB (at most {MOST_MEMORY / 1e9:.1f} are allowed)', '',
        table(kinds, skipped), '', 'The end of the log:', '', *log, '', *(f'WRONG: {line}' for line in wrong[:20]),
    ])  # fmt: skip
    print(text)
    if args.out:
        args.out.write_text(text)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:])
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
