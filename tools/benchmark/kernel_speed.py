"""Times the Triton kernels against PyTorch's operators on a GPU: each kernel, and the whole encoder step.

    python tools/benchmark/kernel_speed.py --archs tiny base large --batch-sizes 64 128 256

Before anything is timed, values and gradients of the two are compared. Each kernel is timed forward and backward with
CUDA events, the two taking turns, the L2 cache cleared and the launches queued beforehand, so that the time is the
GPU's alone. Its rate is the bytes that it must move over its time, given as a share of what a plain copy reaches on the
same card in the same run. The encoder step (visible cells, bf16 autocast, forward and backward) is timed as it runs,
launches included, with its peak memory. Writes kernel_speed_CARD_DATE.md and .json into `--out`.

Compiling takes Triton several seconds per step and size when it sees them first. `--compile-processes 8` lets so many
processes fill its cache side by side before anything is timed; they share the card, and need about 1 GiB of it each.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import mmcnx2
from mmcnx2.atomic_write import write_atomically
from mmcnx2.engine.captured_step import record_graph
from mmcnx2.models.backbones.convnext_v2 import ARCHS, NORM_EPS, STRIDES
from mmcnx2.models.fcmae.fcmae import LAYOUTS
from mmcnx2.models.fcmae.masking import random_visible
from mmcnx2.models.layers import GRN, DenseLayout, DepthwiseConv, LayerNorm, Layout, VisibleLayout, triton_kernels

KERNELS = ('torch', 'triton')
OURS = 'visible, Triton'
WAYS = {  # of the encoder step -> layout (None: no mask), kernels, whether replayed from a CUDA graph
    OURS: ('visible', 'triton', True),
    'visible, PyTorch': ('visible', 'torch', True),
    'masked dense, PyTorch': ('dense', 'torch', True),
    'no mask, Triton': (None, 'triton', True),
    'no mask, PyTorch': (None, 'torch', True),
    'visible, Triton, no graph': ('visible', 'triton', False),
    'visible, PyTorch, no graph': ('visible', 'torch', False),
}
CELL_SIZE = 32  # px
CACHE_BYTES = 256 * 2**20  # more than the L2 cache of any card
QUEUE_CYCLES = 4_000_000  # about 2 ms in which the launches of a run queue up
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # norm of the difference over norm


class Case(NamedTuple):
    """One step by both implementations. `functions` take no arguments and read `leaves`; the bytes are those of the
    kernel's passes over the values."""

    name: str
    leaves: list[Tensor]
    functions: dict[str, Callable[[], Tensor]]
    num_bytes: dict[str, int]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--archs', nargs='+', default=['tiny', 'base', 'large'], choices=list(ARCHS))
    parser.add_argument('--batch-sizes', nargs='+', type=int, default=[64, 128, 256], help='of the encoder step')
    parser.add_argument('--kernel-batch-size', type=int, default=64, help='of the single kernels')
    parser.add_argument('--image-size', type=int, default=224, help='px')
    parser.add_argument('--mask-ratio', type=float, default=0.6)
    parser.add_argument('--float32', action='store_true', help='instead of bf16')
    parser.add_argument('--runs', type=int, default=10, help='counted runs of each, after three to warm up')
    parser.add_argument('--compile-processes', type=int, default=0, help='that compile all kernels beforehand')
    parser.add_argument('--rounds', type=int, default=2, help='of so many runs of each encoder step')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'results', help='folder')
    return parser.parse_args()


def kernel_cases(num_channels: int, positions_per_side: int, visible_BGG: Tensor, dtype: torch.dtype) -> Iterator[Case]:
    """The steps of a block at one stage, on visible cells and, for the convolution, on the whole map too."""
    C, P, device = num_channels, positions_per_side, visible_BGG.device
    (B, rows, columns), num_cells = visible_BGG.shape, int(visible_BGG.sum())
    visible = {name: VisibleLayout(visible_BGG, kernels=name) for name in KERNELS}
    dense = {name: DenseLayout(kernels=name) for name in KERNELS}
    conv = DepthwiseConv(C, 7).to(device)
    norm = LayerNorm(C, eps=NORM_EPS).to(device)
    grn = GRN(4 * C).to(device)
    nn.init.normal_(grn.gamma)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype).requires_grad_()

    def normalised(layout: Layout) -> Tensor:
        return norm(x, layout).to(dtype)  # as the linear layer that follows casts it

    def bytes_of(x: Tensor, forward: int, backward: int) -> dict[str, int]:
        return dict(forward=forward * x.nbytes, backward=backward * x.nbytes)

    x = values(B, num_cells // B, P, P, C)
    yield Case(
        f'depthwise 7 x 7, visible, P={P}, C={C}',
        [x, *conv.parameters()],
        {name: partial(layout.conv, x, conv) for name, layout in visible.items()},
        bytes_of(x, 2, 3),
    )
    whole = values(B, rows * P, columns * P, C)
    yield Case(
        f'depthwise 7 x 7, whole map, {rows * P} x {columns * P}, C={C}',
        [whole, *conv.parameters()],
        {name: partial(layout.conv, whole, conv) for name, layout in dense.items()},
        bytes_of(whole, 2, 3),
    )
    hidden = values(B, num_cells // B, P, P, 4 * C)
    yield Case(
        f'GELU + GRN, P={P}, F={4 * C}',
        [hidden, *grn.parameters()],
        {name: partial(grn, hidden, layout, after_gelu=True) for name, layout in visible.items()},
        bytes_of(hidden, 3, 5),
    )
    yield Case(
        f'LayerNorm, P={P}, C={C}',
        [x, *norm.parameters()],
        {name: partial(normalised, layout) for name, layout in visible.items()},
        bytes_of(x, 2, 3),
    )


def autocast_of(dtype: torch.dtype, device: torch.device):
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def largest_error(case: Case, dtype: torch.dtype) -> float:
    """Largest relative difference between the two implementations, over the result and all gradients."""
    results = {}
    for name, function in case.functions.items():
        with autocast_of(dtype, case.leaves[0].device):
            out = function()
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
        results[name] = [out, *torch.autograd.grad(out, case.leaves, grad)]
    return max(
        ((a.double() - b.double()).norm() / a.double().norm()).item() for a, b in zip(*results.values(), strict=True)
    )


def stages_of(archs: list[str]) -> Iterator[tuple[str, int, int]]:
    """(arch, channels, positions per side of a cell) of each."""
    for arch in archs:
        for stride, num_channels in zip(STRIDES, ARCHS[arch]['channels'], strict=True):
            yield arch, num_channels, CELL_SIZE // stride


def run_once(num_channels: int, positions_per_side: int, visible_BGG: Tensor, dtype: torch.dtype, device: str) -> str:
    """Every step of a stage once, forward and backward, which leaves its kernels compiled in Triton's cache."""
    torch.set_num_threads(1)
    for case in kernel_cases(num_channels, positions_per_side, visible_BGG.to(device), dtype):
        with autocast_of(dtype, case.leaves[0].device):
            out = case.functions['triton']()
        torch.autograd.grad(out, case.leaves, torch.zeros_like(out))
    return f'P={positions_per_side}, C={num_channels}'


def compile_side_by_side(
    stages: set[tuple[int, int]], visible_BGG: Tensor, dtype: torch.dtype, device: str, num_processes: int
) -> None:
    """Fills Triton's cache for the stages (channels, positions per side of a cell) in processes of their own."""
    with ProcessPoolExecutor(num_processes, mp_context=get_context('spawn')) as pool:
        jobs = [pool.submit(run_once, C, P, visible_BGG.cpu(), dtype, device) for C, P in sorted(stages)]
        for job in jobs:
            print(f'compiled: {job.result()}', flush=True)


def seconds_of(prepare: Callable[[], object], step: Callable[[object], object], clear: Tensor) -> float:
    """GPU time of `step`, whose launches queue up behind a pause."""
    prepared = prepare()
    clear.zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(QUEUE_CYCLES)
    start.record()
    step(prepared)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def time_case(case: Case, dtype: torch.dtype, num_runs: int, clear: Tensor) -> dict[str, dict[str, list[float]]]:
    """{'forward' | 'backward': {implementation: seconds of each run}}."""
    device = case.leaves[0].device
    seconds = {part: {name: [] for name in case.functions} for part in ('forward', 'backward')}

    def forward(function: Callable[[], Tensor]) -> Tensor:
        with autocast_of(dtype, device):
            return function()

    for run in range(-3, num_runs):
        for name, function in case.functions.items():

            def with_gradient(function=function):
                out = forward(function)
                return out, torch.randn_like(out)

            times = {
                'forward': seconds_of(lambda: None, lambda _, f=function: forward(f), clear),
                'backward': seconds_of(
                    with_gradient, lambda pair: torch.autograd.grad(pair[0], case.leaves, pair[1]), clear
                ),
            }
            if run >= 0:
                for part, value in times.items():
                    seconds[part][name].append(value)
    return seconds


def copy_bytes_per_second(num_runs: int) -> float:
    """What a plain copy of 1 GiB moves, read and written."""
    clear = torch.empty(CACHE_BYTES, dtype=torch.uint8, device='cuda')
    source = torch.randint(255, (2**30,), dtype=torch.uint8, device=clear.device)
    target = torch.empty_like(source)
    seconds = [seconds_of(lambda: None, lambda _: target.copy_(source), clear) for _ in range(num_runs + 3)][3:]
    return 2 * source.nbytes / statistics.median(seconds)


def encoder_step(
    arch: str | dict, batch_size: int, args: argparse.Namespace, way: str, device: str
) -> Callable[[], None]:
    """Forward and backward of the encoder in one of the WAYS; parameters and images are the same for equal arguments.
    """
    layout, kernels, _ = WAYS[way]
    torch.manual_seed(0)
    config = dict(type='mmcnx2.FCMAE', backbone=dict(type='mmcnx2.ConvNeXtV2', arch=arch, kernels=kernels))
    with torch.device(device):
        model = MODELS.build(config)
        images = torch.randn(batch_size, 3, args.image_size, args.image_size)
    grid = (args.image_size // CELL_SIZE,) * 2
    visible_BGG = random_visible(batch_size, grid, args.mask_ratio, device)
    dtype = torch.float32 if args.float32 else torch.bfloat16
    layout = LAYOUTS[layout](visible_BGG, kernels=kernels) if layout else None

    def step() -> None:
        model.zero_grad()
        with autocast_of(dtype, images.device):
            loss = model.backbone(images, layout)[-1].float().square().mean()
        loss.backward()

    return step


def replayed(step: Callable[[], None]) -> Callable[[], None]:
    """The step, recorded as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    replay, _ = record_graph(step, stream)
    return partial(lambda _: replay(), step)  # with the step, whose tensors the graph reads


def time_encoder(arch: str, batch_size: int, args: argparse.Namespace) -> dict[str, dict[str, float] | None]:
    """{way: images per second and peak GiB}; None where the memory does not suffice. One after the other, each in
    blocks of runs that take turns, so that a card that slows down slows all."""
    seconds: dict[str, list[float]] = {}
    result: dict[str, dict[str, float] | None] = {}
    for way in [*WAYS] * args.rounds:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            step = encoder_step(arch, batch_size, args, way, 'cuda')
            for _ in range(3):
                step()
            if WAYS[way][2]:
                step = replayed(step)
                step()
            for _ in range(args.runs):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                step()
                end.record()
                end.synchronize()
                seconds.setdefault(way, []).append(start.elapsed_time(end) / 1e3)
        except torch.OutOfMemoryError:
            result[way] = None
            continue
        finally:
            step = None
        result[way] = dict(
            images_per_second=batch_size / statistics.median(seconds[way]),
            peak_gib=torch.cuda.max_memory_allocated() / 2**30,
        )
    return result


def report_of(results: dict) -> str:
    """Markdown of what was measured."""
    copy_rate = results['copy_bytes_per_second']
    lines = [
        f'# Triton kernels on {results["card"]}, {results["date"]}',
        '',
        f'`python {" ".join(results["command"])}`; {results["versions"]}. {results["dtype"]}, '
        f'{results["image_size"]} px, mask ratio {results["mask_ratio"]}. Medians of {results["runs"]} runs that take '
        f'turns. A plain copy moves {copy_rate / 1e12:.2f} TB/s; rates are shares of that.',
        '',
        f'## Kernels, batch {results["kernel_batch_size"]}',
        '',
        '| step | | PyTorch, us | Triton, us | PyTorch / Triton | rate of Triton |',
        '|---|---|---|---|---|---|',
    ]
    for case in results['kernels']:
        for part in ('forward', 'backward'):
            by_torch, by_triton = (statistics.median(case['seconds'][part][name]) for name in ('torch', 'triton'))
            rate = case['num_bytes'][part] / by_triton / copy_rate
            lines.append(
                f'| {case["name"]} | {part} | {by_torch * 1e6:.1f} | {by_triton * 1e6:.1f} | '
                f'{by_torch / by_triton:.2f} | {rate:.0%} |'
            )
    lines += [
        '',
        f'## Encoder step, forward and backward: images per second, and how often {OURS} is faster',
        '',
    ]
    ways = [way for way in WAYS if any(way in row for row in results['encoder'])]
    for key, form in (('images_per_second', '{:.0f}'), ('peak_gib', '{:.1f} GiB')):
        lines += [f'| arch | batch | {" | ".join(ways)} |', '|---|---' + '|---' * len(ways) + '|']
        for row in results['encoder']:
            cells = [row['arch'], str(row['batch_size'])]
            for way in ways:
                cell = form.format(row[way][key]) if row.get(way) else 'out of memory'
                if key == 'images_per_second' and way != OURS and row.get(way) and row.get(OURS):
                    cell += f' ({row[OURS][key] / row[way][key]:.2f})'
                cells.append(cell)
            lines.append(f'| {" | ".join(cells)} |')
        lines.append('')
    return '\n'.join(lines)


def write(results: dict, folder: Path) -> Path:
    """Both files; returns their path without the ending."""
    card = re.sub(r'[^a-z0-9]+', '-', results['card'].lower()).strip('-')
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f'kernel_speed_{card}_{results["date"]}'
    write_atomically(folder / f'{target.name}.json', json.dumps(results, indent=1) + '\n')
    write_atomically(folder / f'{target.name}.md', report_of(results))
    return target


def main() -> None:
    args = parse_args()
    if not torch.cuda.is_available():
        sys.exit('error: there is no GPU here; kernel_speed.py times the Triton kernels on one.')
    dtype = torch.float32 if args.float32 else torch.bfloat16
    grid = (args.image_size // CELL_SIZE,) * 2
    if args.compile_processes > 0:
        stages = {(num_channels, P) for _, num_channels, P in stages_of(args.archs)}
        visible_BGG = random_visible(args.kernel_batch_size, grid, args.mask_ratio, 'cpu')
        compile_side_by_side(stages, visible_BGG, dtype, 'cuda', args.compile_processes)
    results = dict(
        date=datetime.date.today().isoformat(),
        card=torch.cuda.get_device_name(),
        command=sys.argv,
        versions=f'mmcnx2 {mmcnx2.__version__}, torch {torch.__version__}, triton {triton_kernels.triton.__version__}, '
        f'Python {platform.python_version()}',
        dtype=str(dtype).removeprefix('torch.'),
        image_size=args.image_size,
        mask_ratio=args.mask_ratio,
        runs=args.runs,
        kernel_batch_size=args.kernel_batch_size,
        copy_bytes_per_second=copy_bytes_per_second(args.runs),
        kernels=[],
        encoder=[],
    )
    for arch in args.archs:
        for batch_size in args.batch_sizes:
            row = dict(arch=arch, batch_size=batch_size, **time_encoder(arch, batch_size, args))
            results['encoder'].append(row)
            print(row)
            target = write(results, args.out)
    clear = torch.empty(CACHE_BYTES, dtype=torch.uint8, device='cuda')
    for arch, num_channels, positions_per_side in stages_of(args.archs):
        visible_BGG = random_visible(args.kernel_batch_size, grid, args.mask_ratio, 'cuda')
        for case in kernel_cases(num_channels, positions_per_side, visible_BGG, dtype):
            error = largest_error(case, dtype)
            if not error < LARGEST_ERROR[dtype]:
                sys.exit(f'error: {arch}: {case.name}: the implementations differ by {error:.1e}; nothing is timed.')
            seconds = time_case(case, dtype, args.runs, clear)
            name = f'{arch}: {case.name}'
            results['kernels'].append(dict(name=name, num_bytes=case.num_bytes, error=error, seconds=seconds))
            target = write(results, args.out)
            print(name, {part: {k: statistics.median(v) for k, v in s.items()} for part, s in seconds.items()})
    print(f'\n{report_of(results)}\nwritten to {target}.md and .json')


if __name__ == '__main__':
    main()
