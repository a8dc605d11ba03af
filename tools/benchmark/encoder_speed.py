"""Time of one encoder step (forward + backward) in each layout, side by side in one run.

    python tools/benchmark/encoder_speed.py --arch tiny --batch-size 8 --image-size 224 --mask-ratio 0.6

Prints a Markdown table: the median of each layout, and the ratio to the dense encoder that sees the whole picture.
Runs are interleaved, so a machine whose speed drifts slows all layouts alike; quote the ratios. `--fcmae` times the
whole pretraining step (decoder and loss included) for the masked layouts. With `--out FILE` table and settings go
into a file.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from mmengine.registry import MODELS

import mmcnx2
from mmcnx2.models.fcmae.masking import num_visible_cells, random_visible


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='tiny')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--image-size', type=int, default=224)
    parser.add_argument('--mask-ratio', type=float, default=0.6)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--bf16', action='store_true', help='under bf16 autocast; float32 otherwise')
    parser.add_argument('--fcmae', action='store_true', help='whole pretraining step for the masked layouts')
    parser.add_argument('--runs', type=int, default=7, help='counted runs of each layout, after one warm-up')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--out', type=Path, help='Markdown file to write')
    return parser.parse_args()


def build_steps(args: argparse.Namespace) -> dict[str, Callable[[], torch.Tensor]]:
    """{name: function that runs one forward pass and returns the scalar to differentiate}; parameters are shared."""
    torch.manual_seed(0)
    model = MODELS.build(dict(type='mmcnx2.FCMAE', backbone=dict(type='mmcnx2.ConvNeXtV2', arch=args.arch)))
    model = model.to(args.device)
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=args.device)
    cells = args.image_size // model.patch_size
    visible = random_visible(args.batch_size, (cells, cells), args.mask_ratio, args.device)

    def encoder(layout: str) -> Callable[[], torch.Tensor]:
        def step() -> torch.Tensor:
            if layout == 'whole':
                return model.backbone(images)[-1].square().mean()
            model.layout = layout
            return model.encode(images, visible).square().mean()

        return step

    def pretraining(layout: str) -> Callable[[], torch.Tensor]:
        def step() -> torch.Tensor:
            model.layout = layout
            return model.loss(images, visible=visible)['loss']

        return step

    step_of = pretraining if args.fcmae else encoder
    what = 'FCMAE' if args.fcmae else 'encoder'
    return {
        'encoder, dense, whole picture': encoder('whole'),
        f'{what}, dense, masked': step_of('dense'),
        f'{what}, visible cells': step_of('visible'),
    }


def time_steps(steps: dict[str, Callable[[], torch.Tensor]], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each run, the layouts taking turns."""

    def once(step: Callable[[], torch.Tensor]) -> float:
        wait = torch.cuda.synchronize if args.device.startswith('cuda') else lambda: None
        wait()
        started = time.perf_counter()
        with torch.autocast(args.device.split(':')[0], torch.bfloat16, enabled=args.bf16):
            value = step()
        value.backward()
        wait()
        return time.perf_counter() - started

    for step in steps.values():
        once(step)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.runs):
        for name, step in steps.items():
            seconds[name].append(once(step))
    return seconds


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    seconds = time_steps(build_steps(args), args)
    base = statistics.median(next(iter(seconds.values())))
    num_cells = (args.image_size // 32) ** 2
    lines = [
        f'mmcnx2 {mmcnx2.__version__}, torch {torch.__version__}, Python {platform.python_version()}, '
        f'{args.threads} threads on {platform.processor() or platform.machine()}, {args.device}, '
        f'{"bf16 autocast" if args.bf16 else "float32"}; {args.arch}, batch {args.batch_size}, {args.image_size} px, '
        f'{num_visible_cells(num_cells, args.mask_ratio)} of {num_cells} cells visible, medians of {args.runs} '
        'interleaved runs',
        '',
        '| step (forward + backward) | time / dense whole picture | fastest to slowest run |',
        '|---|---|---|',
    ]
    for name, values in seconds.items():
        spread = f'{min(values) / base:.2f} to {max(values) / base:.2f}'
        lines.append(f'| {name} | {statistics.median(values) / base:.3f} | {spread} |')
    report = '\n'.join(lines) + '\n'
    print(report)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report)


if __name__ == '__main__':
    main()
