"""What the two speed benchmarks share at the shell: their options, the state of the machine, the files they write.

Touch it for an option of both. Not for what one of them compares (tools/benchmark/). Guarded by
tests/test_benchmarks.py.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from mmcnx2.analysis.provenance import machine, versions
from mmcnx2.analysis.speed import keep_freed_memory
from mmcnx2.analysis.speed_report import page, to_json
from mmcnx2.analysis.step_comparison import DTYPES, Options
from mmcnx2.atomic_write import write_atomically
from mmcnx2.models.layers.kernel_choice import KERNELS

ALLOCATORS = {
    'default': 'as the system gives it',
    'keep': 'glibc keeps freed memory, as jemalloc and tcmalloc do',
}
ENVIRONMENT = ('OMP_NUM_THREADS', 'GLIBC_TUNABLES', 'LD_PRELOAD', 'THP_MEM_ALLOC_ENABLE', 'ONEDNN_MAX_CPU_ISA')
PEER_DISTRIBUTIONS = ('timm', 'transformers')


def size(text: str) -> tuple[int, int]:
    """(height, width) of '224' or '800x1216'."""
    found = re.fullmatch(r'(\d+)(?:x(\d+))?', text)
    if not found or min(int(each) for each in found.groups(default='1')) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no size: give pixels as 224, or height and width as 800x1216')
    return int(found[1]), int(found[2] or found[1])


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of both benchmarks."""
    parser.add_argument('--arch', nargs='+', default=['tiny'], help='one table each (default: tiny)')
    parser.add_argument('--batch-size', type=int, default=8, metavar='B')
    parser.add_argument('--size', type=size, default=(224, 224), metavar='PX', help='224, or height x width: 800x1216')
    parser.add_argument('--dtype', nargs='+', choices=list(DTYPES), default=['fp32'], help='bf16 is under autocast')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--forward-only', action='store_true', help='inference; no training step')
    parser.add_argument('--kernels', choices=KERNELS, default='auto', help='of our own models')
    parser.add_argument('--compile', action='store_true', help='each candidate under torch.compile as well')
    parser.add_argument(
        '--memory-format',
        choices=('auto', 'contiguous', 'channels_last'),
        default='auto',
        help='of the other libraries; auto tries both and keeps the faster',
    )
    parser.add_argument('--allocator', choices=list(ALLOCATORS), default='default', help=f'keep: {ALLOCATORS["keep"]}')
    parser.add_argument('--seconds', type=float, default=60, help='for the 3 to 15 rounds of a table')
    parser.add_argument('--runs', type=int, metavar='N', help='rounds, instead of --seconds')
    parser.add_argument('--no-memory', action='store_true', help='leave out peak memory')
    parser.add_argument('--profile', action='store_true', help='share of each operator, and its floor')
    parser.add_argument('--out', type=Path, metavar='FOLDER', help='write NAME_DEVICE_DATE.md and .json there')
    parser.add_argument('--name', help='NAME of the files')
    parser.add_argument('--quiet', action='store_true', help='no progress lines')


def options_of(args: argparse.Namespace, dtype: str) -> Options:
    return Options(
        device=args.device,
        dtype=dtype,
        with_backward=not args.forward_only,
        seconds=args.seconds,
        num_rounds=args.runs,
        with_memory=not args.no_memory,
        with_profile=args.profile,
    )


def begin(args: argparse.Namespace, title: str, command: Sequence[str]) -> dict:
    """Sets threads and allocator; the results so far: title, command, machine, versions, setup.

    Raises:
        ValueError: a setting cannot be had here.
    """
    for name in ('batch_size', 'threads', 'runs'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f'--{name.replace("_", "-")} is {getattr(args, name)}; it must be 1 or more')
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(f'--device {args.device}: this torch sees no GPU; leave it out for the CPU')
    torch.set_num_threads(args.threads)
    if args.allocator == 'keep' and not keep_freed_memory():
        raise ValueError('--allocator keep needs glibc; leave it out')
    setup = {
        'threads': args.threads,
        'allocator': ALLOCATORS[args.allocator],
        'load before': f'{os.getloadavg()[0]:.2f}',
        'kernels of ours': args.kernels,
        'instruction set': torch.backends.cpu.get_cpu_capability(),
    }
    setup |= {name: os.environ[name] for name in ENVIRONMENT if os.environ.get(name)}
    return dict(
        title=title,
        command=' '.join(command),
        setup=setup,
        machine=machine(),
        versions=versions(*PEER_DISTRIBUTIONS),
        finished='',
        cases=[],
    )


def progress(is_quiet: bool) -> Callable[[str], None]:
    """Prints what is done at the moment, with the seconds since the beginning."""
    started = time.perf_counter()

    def say(text: str) -> None:
        if not is_quiet:
            print(f'[{time.perf_counter() - started:5.0f} s] {text}', file=sys.stderr, flush=True)

    return say


def save(
    results: dict, folder: Path | None, name: str, device: str, markdown: Callable[[Mapping], str] = page
) -> list[Path]:
    """Dates the results and writes the JSON and the Markdown file, each whole or not at all; nothing without a
    folder. Answers their paths.
    """
    now = datetime.datetime.now(datetime.UTC)
    results['finished'] = f'{now:%Y-%m-%d %H:%M} UTC'
    if folder is None:
        return []
    paths = [folder / f'{name}_{device.split(":")[0]}_{now:%Y-%m-%d}.{ending}' for ending in ('json', 'md')]
    for path, text in zip(paths, (to_json(results), markdown(results)), strict=True):
        write_atomically(path, text)
    return paths
