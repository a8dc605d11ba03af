"""Training while the disk fills up, turns read-only, or the images vanish: what is printed, what is left.

    sudo python tests/faults/full_disk.py [--out report.md]        needs root, for it mounts small file systems

Each case trains a micro FCMAE through tools/train.py in a work dir of its own, does the damage at a known moment, and
looks at the exit code, the lines on stderr and the files. What must hold: exit code 1, one line `error: ...` and no
traceback (torchrun adds its own to several processes), no unfinished file, every checkpoint whole; and when the damage
is mended, --resume ends the run. Exit code 1 when it does not. The same without root, at smaller scale, is part of the
tests: tests/faults/test_disk_faults.py. Touch this file to add a case (`CASES`).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmcnx2.atomic_write import left_over  # noqa: E402
from mmcnx2.checkpoint import read_checkpoint  # noqa: E402

CONFIG = f"""
_base_ = '{ROOT}/configs/demo/fcmae_convnextv2-atto_demo.py'
arch = dict(_delete_=True, depths=[1, 1, 1, 1], channels=[8, 16, 24, 32])
model = dict(backbone=dict(arch=arch), neck=dict(decoder_channels=32))
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(source='images'))
train_cfg = dict(max_epochs=6)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2), logger=dict(interval=1))
"""
NUM_IMAGES = 64  # 8 steps per epoch
MEGABYTE = 1 << 20
ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1', 'PYTHON': sys.executable}


@dataclass
class Case:
    """What happens to a run: before it starts, once its first checkpoint is there, and how that is mended."""

    name: str
    before: Callable[[Path], object] = lambda folder: None
    during: Callable[[Path], object] | None = None
    mend: Callable[[Path], object] = lambda folder: None
    size_mb: float = 64  # of the file system of the work dir
    options: list[str] = field(default_factory=list)
    num_processes: int = 1


def mount(folder: Path, options: str) -> None:
    subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(['mount', '-o', f'remount,{options}', folder / 'disk'], check=True)


def cover(folder: Path) -> None:
    """Puts a read-only view of the work dir over it: a file system with open files cannot be made read-only."""
    run = folder / 'disk/run'
    subprocess.run(['mount', '--bind', run, run], check=True)
    subprocess.run(['mount', '-o', 'remount,bind,ro', run], check=True)


def uncover(folder: Path) -> None:
    subprocess.run(['umount', folder / 'disk/run'], check=True)


def fill(folder: Path) -> None:
    """Writes until nothing fits any more."""
    with (folder / 'disk/ballast').open('wb', buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def empty(folder: Path) -> None:
    (folder / 'disk/ballast').unlink()


CASES = [
    Case('full while a checkpoint is written', size_mb=4, mend=lambda folder: remount(folder, 'size=64m')),
    Case('full while a checkpoint is written, two processes', size_mb=4,
         mend=lambda folder: remount(folder, 'size=64m'), num_processes=2),
    Case('full while the log is written', during=fill, mend=empty, options=['default_hooks.checkpoint.interval=2']),
    Case('full before the start', before=fill, mend=empty),
    Case('read-only before the start', before=lambda folder: remount(folder, 'ro'),
         mend=lambda folder: remount(folder, 'rw')),
    Case('read-only in mid-run', during=cover, mend=uncover),
    Case('images vanish in mid-run', during=lambda folder: (folder / 'images').rename(folder / 'elsewhere'),
         mend=lambda folder: (folder / 'elsewhere').rename(folder / 'images')),
]  # fmt: skip


def write_images(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((128, 96), Image.Resampling.BICUBIC).save(folder / f'{index}.png')


def train(folder: Path, options: list[str], num_processes: int) -> subprocess.Popen:
    command = [sys.executable, ROOT / 'tools/train.py', 'config.py']
    if num_processes > 1:
        command = ['bash', ROOT / 'tools/dist_train.sh', 'config.py', str(num_processes)]
    command += ['--work-dir', 'disk/run', *options]
    with (folder / 'stdout').open('w') as out, (folder / 'stderr').open('w') as err:
        return subprocess.Popen(command, cwd=folder, stdout=out, stderr=err, env=ENVIRONMENT)


def wait_for_checkpoint(folder: Path, process: subprocess.Popen, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not (folder / 'disk/run/last_checkpoint').exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f'no checkpoint was written: {(folder / "stderr").read_text()[-2000:]}')
        time.sleep(0.02)


def own_lines(folder: Path, case: Case) -> list[str]:
    """What stands on stderr; of several processes what ours say, for torchrun adds a page on those that failed."""
    lines = (folder / 'stderr').read_text().splitlines()
    return [line for line in lines if line and (case.num_processes == 1 or line.startswith('error'))]


def problems_of(folder: Path, code: int, said: list[str]) -> list[str]:
    run = folder / 'disk/run'
    found = []
    if code != 1:
        found.append(f'exit code {code}')
    if len(said) != 1 or not said[0].startswith('error: '):
        found.append('stderr is not one line: error')
    if 'Traceback (most recent' in (folder / 'stdout').read_text():
        found.append('a traceback on stdout')
    if run.exists() and left_over(run):
        found.append(f'unfinished: {left_over(run)}')
    return found


def examine(case: Case) -> tuple[list[str], list[str]]:
    """Lines of the report, and what is wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / 'config.py').write_text(CONFIG)
        write_images(folder / 'images')
        (folder / 'disk').mkdir()
        mount(folder / 'disk', f'size={int(case.size_mb * MEGABYTE)}')
        process = None
        try:
            case.before(folder)
            process = train(folder, ['--cfg-options', *case.options] if case.options else [], case.num_processes)
            if case.during:
                wait_for_checkpoint(folder, process)
                case.during(folder)
            code = process.wait(timeout=300)
            said = own_lines(folder, case)
            left = sorted(path for path in (folder / 'disk').rglob('*') if path.is_file())
            sizes = [f'{path.relative_to(folder / "disk")} ({path.stat().st_size:,} B)' for path in left]
            problems = problems_of(folder, code, said)
            checkpoints = [path for path in left if path.suffix == '.pth']
            for path in checkpoints:
                read_checkpoint(path)  # raises when it is not whole
            case.mend(folder)
            process = train(folder, ['--resume'], case.num_processes)
            resumed = process.wait(timeout=300)
            if resumed or not (folder / 'disk/run/epoch_6.pth').exists():
                problems.append(f'--resume ended with {resumed}: {(folder / "stderr").read_text()[-500:]}')
        finally:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            subprocess.run(['umount', '--recursive', folder / 'disk'], check=True)
    shown = [size for size in sizes if 'vis_data' not in size and not size.endswith('.py')]
    lines = [f'## {case.name}', '', f'exit code {code}', '', '```', *said, '```', '', 'left: ' + '; '.join(shown), '',
             f'{len(checkpoints)} checkpoints, all whole; after mending, --resume ended with exit code {resumed}', '',
             *(f'WRONG: {problem}' for problem in problems)]  # fmt: skip
    return [line.replace(scratch, '') for line in lines], problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--case', help='only those whose name has this in it')
    parser.add_argument('--out', type=Path, help='write the report there as well')
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit('error: mounting file systems needs root; tests/faults/test_disk_faults.py does without')
    report, failed = [], False
    for case in CASES:
        if args.case is None or args.case in case.name:
            lines, problems = examine(case)
            print('\n'.join(lines), flush=True)
            report += lines
            failed |= bool(problems)
    if args.out:
        args.out.write_text('\n'.join(report) + '\n')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
