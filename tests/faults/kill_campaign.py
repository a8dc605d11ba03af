"""Training that is killed again and again, resumed each time, and held against a run that was left alone.

    python tests/faults/kill_campaign.py [--kills 60] [--processes 1 2] [--workers 0] [--out TABLE.md] [--seed 0]

A micro FCMAE with drop path trains on random pictures on the CPU and saves every few iterations. It is killed in three
ways in turn: SIGKILL at a random moment; SIGTERM, after which it has to save and end with exit code 75; SIGKILL of all
processes while a checkpoint is being written, told by its unfinished file. Then it is started again with --resume. All
losses that any of its attempts logged have to be those of the undisturbed run, bit by bit, and so have the final
weights; no more than one checkpoint interval may be trained twice. A run takes several kills; there are as many runs as
are needed.

Touch it for how runs are killed; what a run does about it stands in mmcnx2/engine. A short one is part of the tests:
tests/faults/test_kill_campaign.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmcnx2.atomic_write import left_over  # noqa: E402
from mmcnx2.checkpoint import read_checkpoint  # noqa: E402

CONFIG = f"""
_base_ = '{ROOT}/configs/demo/fcmae_convnextv2-atto_demo.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=[1, 1, 1, 1], channels=[8, 16, 24, 32]), drop_path_rate=0.3),
    neck=dict(decoder_channels=256))  # a checkpoint of some megabytes: time to kill it while it is written
log_processor = dict(window_size=1)
"""
NUM_IMAGES, BATCH_SIZE = 40, 8  # of all processes together; 5 iterations in an epoch
INTERVAL = 4  # iterations between checkpoints, so that they fall into the middle of epochs
NUM_EPOCHS = 10
KINDS = ('SIGKILL', 'SIGTERM', 'SIGKILL while saving')
SAVED_AND_LEFT = 75
PATIENCE_S = 300.0
Losses = dict[int, float]


@dataclass
class Result:
    """What became of one kill."""

    kind: str
    num_processes: int
    exit_code: int
    left_a_part: bool  # of a checkpoint that was being written
    seconds: float  # from the start of the process to its end
    last_iter: int  # trained before the kill
    resumed_at: int | None = None  # iterations that the next attempt did not train again
    identical: bool = False

    @property
    def num_lost(self) -> int | None:
        return None if self.resumed_at is None else self.last_iter - self.resumed_at

    @property
    def good(self) -> bool:
        if self.num_lost is None or not self.identical:
            return False
        if self.kind == 'SIGTERM':
            return self.exit_code == SAVED_AND_LEFT and self.num_lost == 0
        return 0 <= self.num_lost <= INTERVAL  # a kill while saving comes after the iteration that is saved


@dataclass
class Campaign:
    folder: Path
    num_workers: int = 0
    rng: random.Random = field(default_factory=random.Random)
    tell: Callable[[str], None] = print

    def __post_init__(self) -> None:
        (self.folder / 'config.py').write_text(CONFIG)
        pixels = np.random.default_rng(0)
        for number in range(NUM_IMAGES):
            coarse = Image.fromarray(pixels.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            path = self.folder / 'images' / f'{number}.png'
            path.parent.mkdir(exist_ok=True)
            coarse.resize((128, 96), Image.Resampling.BICUBIC).save(path)

    def command(self, work_dir: Path, num_processes: int) -> list[str]:
        start = [sys.executable, str(ROOT / 'tools/train.py'), str(self.folder / 'config.py')]
        if num_processes > 1:
            start = ['bash', str(ROOT / 'tools/dist_train.sh'), str(self.folder / 'config.py'), str(num_processes)]
        return [
            *start, f'--work-dir={work_dir}', '--resume', '--cfg-options',
            f'train_dataloader.dataset.source={self.folder / "images"}',
            f'train_dataloader.batch_size={BATCH_SIZE // num_processes}',
            f'train_dataloader.num_workers={self.num_workers}',
            f'train_dataloader.persistent_workers={self.num_workers > 0}',
            f'train_cfg.max_epochs={NUM_EPOCHS}', 'default_hooks.logger.interval=1',
            'default_hooks.checkpoint.by_epoch=False', f'default_hooks.checkpoint.interval={INTERVAL}',
        ]  # fmt: skip

    def start(self, work_dir: Path, num_processes: int) -> subprocess.Popen:
        work_dir.mkdir(exist_ok=True)
        with (work_dir / 'output.txt').open('a') as log:
            environ = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': ''}
            return subprocess.Popen(
                self.command(work_dir, num_processes), cwd=ROOT, env=environ, stdout=log, stderr=log
            )

    def undisturbed(self, num_processes: int) -> tuple[Path, Losses]:
        work_dir = self.folder / f'undisturbed_{num_processes}'
        process = self.start(work_dir, num_processes)
        if process.wait() != 0:
            raise RuntimeError(f'The undisturbed run failed:\n{(work_dir / "output.txt").read_text()[-3000:]}')
        return work_dir, attempts(work_dir)[0]

    def run(self, name: str, num_processes: int, kinds: list[str], reference: tuple[Path, Losses]) -> list[Result]:
        """One run, killed in the ways `kinds` one after the other as long as it goes on, then left to end."""
        work_dir, results = self.folder / name, []
        for kind in [*kinds, None]:
            known, started = len(attempts(work_dir)), time.monotonic()
            process = self.start(work_dir, num_processes)
            killed = kind is not None and self.kill(process, kind, work_dir, known)
            code = process.wait(PATIENCE_S)
            tried = attempts(work_dir)
            if len(tried) > known and results and results[-1].resumed_at is None:
                results[-1].resumed_at = min(tried[known]) - 1
            if not killed:
                break
            if len(tried) > known:
                last_iter, left_a_part = max(tried[-1]), bool(left_over(work_dir))
                seconds = time.monotonic() - started
                results.append(Result(kind, num_processes, code, left_a_part, seconds, last_iter))
                self.tell(f'{name}: {kind} after iteration {last_iter}, exit code {code}, {seconds:.1f} s')
        whole_dir, losses = reference
        identical = code == 0 and all(attempt.items() <= losses.items() for attempt in attempts(work_dir))
        identical = identical and set().union(*attempts(work_dir)) == set(losses) and same_weights(work_dir, whole_dir)
        for result in results:
            result.identical = identical and not left_over(work_dir)
        if not all(result.good for result in results):
            self.tell(f'{name} is not as it should be; look at {work_dir}')
        return results

    def kill(self, process: subprocess.Popen, kind: str, work_dir: Path, known: int) -> bool:
        """Kills at a random moment; False when training has ended before."""
        num_iters, delay_s = self.rng.randint(1, 2 * INTERVAL), self.rng.uniform(0, 0.2)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return False
            tried = attempts(work_dir)
            if len(tried) > known and len(tried[-1]) >= num_iters:
                break
            time.sleep(0.02)
        if kind == 'SIGKILL while saving':
            while not any(work_dir.glob('.*.pth.*')):
                if process.poll() is not None:
                    return False
                time.sleep(0.0005)
        else:
            time.sleep(delay_s)
        if process.poll() is not None:
            return False
        if kind == 'SIGTERM':
            process.terminate()
        else:
            kill_all(process.pid)
        return True


def kill_all(pid: int) -> None:
    """SIGKILL to a process and all below it, stopped first so that none can start another."""
    pids = [pid]
    for each in pids:
        try:
            os.kill(each, signal.SIGSTOP)
            children = Path(f'/proc/{each}/task/{each}/children').read_text().split()
        except (ProcessLookupError, FileNotFoundError):
            continue
        pids += map(int, children)
    for each in pids:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue


def attempts(work_dir: Path) -> list[Losses]:
    """{iteration: loss} of each start that got as far as an iteration, in their order."""
    found = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        lines = path.read_text().splitlines()
        entries = [json.loads(line) for line in lines if line.endswith('}')]  # the last may be half a line
        if entries:
            found.append({entry['step']: entry['loss'] for entry in entries})
    return found


def same_weights(work_dir: Path, other_dir: Path) -> bool:
    name = f'iter_{NUM_EPOCHS * NUM_IMAGES // BATCH_SIZE}.pth'
    one, other = (read_checkpoint(folder / name)['state_dict'] for folder in (work_dir, other_dir))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def table(results: list[Result]) -> str:
    lines = [
        f'| processes | killed by | kills | resumed | bit-identical | most iterations lost (interval {INTERVAL}) | '
        'part of a file left | as it should be | seconds per kill |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    groups = sorted({(result.num_processes, KINDS.index(result.kind)) for result in results})
    for num_processes, kind in groups:
        group = [one for one in results if (one.num_processes, one.kind) == (num_processes, KINDS[kind])]
        lost = [one.num_lost for one in group if one.num_lost is not None]
        columns = [
            num_processes, KINDS[kind], len(group), len(lost), sum(one.identical for one in group),
            max(lost, default='-'), sum(one.left_a_part for one in group), sum(one.good for one in group),
            f'{sum(one.seconds for one in group) / len(group):.1f}',
        ]  # fmt: skip
        lines.append(f'| {" | ".join(map(str, columns))} |')
    lines.append(f'\n{sum(one.good for one in results)} of {len(results)} as it should be.')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=60)
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2], help='numbers of processes, in turn')
    parser.add_argument('--workers', type=int, default=0, help='workers of each data loader')
    parser.add_argument('--out', type=Path, help='Markdown file for the table, written after every run')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', type=Path, help='keep everything here (default: a temporary folder)')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix='mmcnx2-kills-') as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        campaign = Campaign(folder, args.workers, random.Random(args.seed), lambda text: print(text, flush=True))
        references = {number: campaign.undisturbed(number) for number in args.processes}
        results, number = [], 0
        while len(results) < args.kills:
            num_processes = args.processes[number % len(args.processes)]
            num_kills = min(6, args.kills - len(results))
            kinds = [KINDS[(len(results) + i) % len(KINDS)] for i in range(num_kills)]
            results += campaign.run(f'run_{number}', num_processes, kinds, references[num_processes])
            number += 1
            text = (
                f'`python {" ".join(sys.argv)}`, {time.strftime("%Y-%m-%d")}, Python {platform.python_version()}, '
                f'torch {torch.__version__}\n\n{table(results)}\n'
            )
            if args.out:
                args.out.write_text(text)
        print(f'\n{text}')
    sys.exit(not all(result.good for result in results))


if __name__ == '__main__':
    main()
