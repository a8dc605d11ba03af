"""Our dense ConvNeXt V2 beside those of timm, transformers and mmpretrain: same weights, same maps, same run.

    python tools/benchmark/backbone_speed.py --arch tiny base
    python tools/benchmark/backbone_speed.py --size 800x1216 --batch-size 1 --outputs 4
    python tools/benchmark/backbone_speed.py --compile --dtype fp32 bf16

Forward pass (inference) and training step (forward and backward pass of the sum of squares of the maps). Every returned
map has its LayerNorm, as detection and segmentation use them; timm has none of its own and gets its own class for it.
That all compute the same is checked in the same run, and the exit code is 1 when one does not. Touch this file for what
is compared; how it is measured stands in mmcnx2/analysis/step_comparison.py. Guarded by tests/test_benchmarks.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

import torch
from mmengine.registry import MODELS

import mmcnx2  # noqa: F401  (its registries)
from mmcnx2.analysis import speed_settings
from mmcnx2.analysis.peer_backbones import NAMES, PEERS, peer_candidates, randomise
from mmcnx2.analysis.speed_report import case_sections, different
from mmcnx2.analysis.step_comparison import COMPILED, MEMORY, Candidate, Comparison, compiled, measure
from mmcnx2.analysis.step_floor import encoder_work, positions_per_stage
from mmcnx2.engine.user_errors import explain_errors

OURS = 'mmcnx2'
OUTPUTS = {1: (3,), 4: (0, 1, 2, 3)}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--libraries', nargs='*', choices=PEERS, metavar='NAME', help=f'of {", ".join(PEERS)}; default: all there are'
    )
    parser.add_argument('--outputs', type=int, choices=list(OUTPUTS), default=1, help='the last map, or all four')
    speed_settings.add_options(parser)
    return parser.parse_args(argv)


def chosen_libraries(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(libraries to run; sentences about those that are not installed)."""
    packages = dict(zip(PEERS, ('timm', 'transformers', 'mmpretrain'), strict=True))
    missing = [name for name in PEERS if find_spec(packages[name]) is None]
    if args.libraries is not None:
        wrong = [name for name in args.libraries if name in missing]
        if wrong:
            raise ValueError(f'--libraries: {", ".join(packages[name] for name in wrong)} is not installed')
        return [name for name in PEERS if name in args.libraries], []
    return [name for name in PEERS if name not in missing], [f'{NAMES[name]}: it is not installed' for name in missing]


def run_case(arch: str, dtype: str, args: argparse.Namespace, say: Callable[[str], None]) -> dict:
    """One table."""
    options = speed_settings.options_of(args, dtype)
    libraries, not_run = chosen_libraries(args)
    torch.manual_seed(0)
    config = dict(type='mmcnx2.ConvNeXtV2', arch=arch, out_indices=OUTPUTS[args.outputs], kernels=args.kernels)
    ours = randomise(MODELS.build(config))
    if min(args.size) < ours.total_stride:
        raise ValueError(
            f'--size {args.size[0]}x{args.size[1]}: the backbone needs at least {ours.total_stride} px a side'
        )
    ours = ours.to(args.device)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(args.batch_size, ours.in_channels, *args.size, generator=generator).to(args.device)

    def work(with_backward: bool) -> list:
        positions = positions_per_stage(args.batch_size, *args.size)
        return encoder_work(ours.depths, ours.channels, positions, ours.in_channels, with_backward)

    candidates = [Candidate(OURS, ours, lambda run: run(images), work=work)]
    candidates += peer_candidates(libraries, arch, ours, images, OURS, options, True, args.memory_format, say)
    if args.compile:
        candidates += [compiled(each) for each in candidates]
    peers = tuple(NAMES[name] for name in libraries)
    peers_compiled = tuple(f'{name}{COMPILED}' for name in peers)
    comparisons = [
        Comparison('ours / the fastest peer, both eager', OURS, peers, ('forward', 'step', MEMORY)),
        Comparison('ours / the fastest peer, both compiled', f'{OURS}{COMPILED}', peers_compiled),
        Comparison('ours, eager / the fastest peer, compiled', OURS, peers_compiled),
        Comparison('ours, compiled / ours, eager', f'{OURS}{COMPILED}', (OURS,)),
    ]
    settings = dict(
        arch=arch, batch_size=args.batch_size, size=list(args.size), outputs=args.outputs, dtype=dtype,
        device=args.device,
    )  # fmt: skip
    outputs = 'the last map' if args.outputs == 1 else 'all four maps'
    title = f'{arch}, batch {args.batch_size}, {args.size[0]} x {args.size[1]} px, {outputs}, {dtype}, {args.device}'
    return dict(title=title, settings=settings, not_run=not_run, **measure(candidates, comparisons, options, say))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    command = ['python', 'tools/benchmark/backbone_speed.py', *(sys.argv[1:] if argv is None else argv)]
    say = speed_settings.progress(args.quiet)
    results = speed_settings.begin(args, 'Dense backbone: ours and others', command)
    wrong: list[str] = []
    for arch in args.arch:
        for dtype in args.dtype:
            say(f'{arch}, {dtype}')
            case = run_case(arch, dtype, args, say)
            print('\n\n'.join(case_sections(case)), end='\n\n', flush=True)
            wrong += [f'{each} ({arch}, {dtype})' for each in different(case)]
            results['cases'].append(case)
            speed_settings.save(results, args.out, args.name or 'backbone_speed', args.device)
    if wrong:
        raise ValueError(f'other outputs or gradients than the reference: {", ".join(wrong)}')


if __name__ == '__main__':
    with explain_errors():
        main()
