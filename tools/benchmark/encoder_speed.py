"""One step of the masked encoder in each layout, beside the dense encoder of this project and of others.

    python tools/benchmark/encoder_speed.py --arch atto tiny base
    python tools/benchmark/encoder_speed.py --layouts dense visible --profile
    python tools/benchmark/encoder_speed.py --curve

What is compared (`--layouts`): `dense`, our encoder on the whole picture, no mask; `masked`, the same on the masked
picture, every position computed; `visible`, visible cells only; `minkowski`, as sparse tensors; `spark`, the masked
dense way of mmpretrain's SparK; `timm`, `huggingface`, `mmpretrain`, their dense backbones. All run on the same weights
and in turns; that they compute the same is checked in the same run, and the exit code is 1 when one does not. `--curve`
has the cost of a step against batch size, resolution and mask ratio instead, as table and plot. `--fcmae` takes the
whole pretraining step of our masked layouts, decoder and loss included. Touch this file for what is compared; how it is
measured stands in mmcnx2/analysis/step_comparison.py. Guarded by tests/test_benchmarks.py.
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
from torch import Tensor, nn

import mmcnx2  # noqa: F401  (its registries)
from mmcnx2.analysis import cost_curve, speed_settings
from mmcnx2.analysis.peer_backbones import (
    NAMES,
    PEERS,
    build_spark,
    peer_candidates,
    randomise,
    without_widening_biases,
)
from mmcnx2.analysis.speed import interleave, num_rounds_within, time_once, waiter
from mmcnx2.analysis.speed_report import case_sections, different
from mmcnx2.analysis.step_comparison import (
    COMPILED,
    MEMORY,
    Candidate,
    Comparison,
    Options,
    compiled,
    measure,
    steps_of,
)
from mmcnx2.analysis.step_floor import encoder_work, positions_per_stage
from mmcnx2.engine.user_errors import explain_errors
from mmcnx2.models.fcmae.fcmae import LAYOUTS
from mmcnx2.models.fcmae.masking import random_visible
from mmcnx2.models.layers.minkowski_layout import import_minkowski_engine

OWN = {
    'dense': 'mmcnx2, dense',
    'masked': 'mmcnx2, masked dense',
    'visible': 'mmcnx2, visible',
    'minkowski': 'mmcnx2, minkowski',
}
SPARK = "mmpretrain's SparK"
LAYOUT_OF = {'masked': 'dense', 'visible': 'visible', 'minkowski': 'minkowski'}
CHOICES = (*OWN, 'spark', *PEERS)
OFFICIAL_WAY = "the steps around the library by PyTorch's operators, as in the official code; --kernels cpp takes ours"
PATCH_SIZE = 32
SPARK_CONDITION = 'with the biases of pwconv1 at 0, which its GRN sums over hidden positions'
CURVE = {
    'batch_size': (1, 2, 4, 8, 16, 32),
    'size': (96, 128, 160, 192, 224, 288, 384),
    'mask_ratio': (0, 0.25, 0.5, 0.6, 0.75, 0.9),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--layouts', nargs='+', choices=CHOICES, metavar='WAY', help=f'of {", ".join(CHOICES)}; default: all there are'
    )
    parser.add_argument('--mask-ratio', type=float, default=0.6)
    parser.add_argument('--fcmae', action='store_true', help='whole pretraining step of the masked layouts of ours')
    parser.add_argument('--curve', action='store_true', help='cost against batch size, resolution and mask ratio')
    parser.add_argument('--batch-sizes', nargs='+', type=int, default=CURVE['batch_size'], help='of the curve')
    parser.add_argument('--sizes', nargs='+', type=int, default=CURVE['size'], help='of the curve, px')
    parser.add_argument('--mask-ratios', nargs='+', type=float, default=CURVE['mask_ratio'], help='of the curve')
    speed_settings.add_options(parser)
    return parser.parse_args(argv)


def unavailable(size: tuple[int, int]) -> dict[str, str]:
    """{layout: why it cannot run here, on pictures of this size}."""
    found = {}
    try:
        import_minkowski_engine()
    except ImportError as error:
        found['minkowski'] = f'minkowski: {str(error).split(": ")[0]}'
    for name, package in (('timm', 'timm'), ('huggingface', 'transformers'), ('mmpretrain', 'mmpretrain')):
        if find_spec(package) is None:
            found[name] = f'{NAMES[name]}: it is not installed'
    if 'mmpretrain' in found:
        found['spark'] = f'{SPARK}: mmpretrain is not installed'
    elif size[0] != size[1]:
        found['spark'] = f'{SPARK}: it takes square pictures only'
    return found


def chosen_layouts(args: argparse.Namespace, default: Sequence[str] = CHOICES) -> tuple[list[str], list[str]]:
    """(layouts to run, in the order of CHOICES; sentences about those of the default that cannot run)."""
    missing = unavailable(args.size)
    if args.layouts:
        wrong = [missing[name] for name in args.layouts if name in missing]
        if wrong:
            raise ValueError(f'--layouts: {"; ".join(wrong)}')
        wanted, not_run = args.layouts, []
    else:
        wanted = [name for name in default if name not in missing]
        not_run = [missing[name] for name in default if name in missing]
    if args.fcmae:
        wanted = [name for name in wanted if name in OWN]
    return [name for name in CHOICES if name in wanted], not_run


def cells_of(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] % PATCH_SIZE or size[1] % PATCH_SIZE:
        raise ValueError(f'--size {size[0]}x{size[1]}: both must be multiples of {PATCH_SIZE} px, the size of a cell')
    return size[0] // PATCH_SIZE, size[1] // PATCH_SIZE


class Inputs:
    """Model, images and visible cells of one table; everything that is compared gets these."""

    def __init__(
        self,
        arch: str,
        batch_size: int,
        size: tuple[int, int],
        mask_ratio: float,
        args: argparse.Namespace,
        model: nn.Module | None = None,
    ) -> None:
        device = args.device
        if model is None:
            torch.manual_seed(0)
            backbone = dict(type='mmcnx2.ConvNeXtV2', arch=arch, kernels=args.kernels)
            model = randomise(MODELS.build(dict(type='mmcnx2.FCMAE', backbone=backbone)))
        self.fcmae = model.to(device)
        self.backbone = self.fcmae.backbone
        generator = torch.Generator().manual_seed(1)
        self.images_BCHW = torch.randn(batch_size, 3, *size, generator=generator).to(device)
        self.visible_BGG = random_visible(batch_size, cells_of(size), mask_ratio, device, seeds=list(range(batch_size)))

    @property
    def share(self) -> float:
        """Of the cells, that which is visible."""
        return self.visible_BGG.float().mean().item()


def own_candidate(layout: str, inputs: Inputs, is_fcmae: bool, reference: str | None) -> Candidate:
    """Ours in one layout. `reference`: the candidate that a masked one equals."""
    share = 1.0 if layout == 'dense' else inputs.share
    backbone, images, visible = inputs.backbone, inputs.images_BCHW, inputs.visible_BGG
    positions = positions_per_stage(len(images), *images.shape[-2:], share)

    def work(with_backward: bool) -> list:
        return encoder_work(backbone.depths, backbone.channels, positions, with_backward=with_backward)

    if layout == 'dense':
        return Candidate(OWN[layout], backbone, lambda run: run(images), work=work)
    equals = reference if reference != OWN[layout] else None
    if is_fcmae:
        fcmae = inputs.fcmae

        def loss(run: Callable) -> Sequence[Tensor]:
            fcmae.layout = LAYOUT_OF[layout]
            return [fcmae.loss(images, visible=visible)['loss']]

        return Candidate(OWN[layout], fcmae, loss, equals, notes=('the whole pretraining step',))
    make_layout = LAYOUTS[LAYOUT_OF[layout]]
    is_official = layout == 'minkowski' and backbone.kernels == 'auto'
    kernels = 'torch' if is_official else backbone.kernels

    def encode(run: Callable) -> Sequence[Tensor]:
        return run(images, make_layout(visible, kernels=kernels))

    return Candidate(OWN[layout], backbone, encode, equals, work=work, notes=(OFFICIAL_WAY,) if is_official else ())


def spark_candidate(arch: str, inputs: Inputs, reference: str | None) -> Candidate:
    peer = build_spark(arch, inputs.backbone.state_dict(), inputs.visible_BGG).to(inputs.images_BCHW.device)
    return Candidate(
        SPARK,
        peer,
        lambda run: run(inputs.images_BCHW),
        reference,
        peer.gradients,
        condition=(lambda mine, theirs: without_widening_biases(mine.model, theirs.model), SPARK_CONDITION),
        notes=('its GRN sums over hidden positions as well, so features differ while those biases are not 0',),
    )


def build_candidates(
    layouts: Sequence[str], arch: str, inputs: Inputs, args: argparse.Namespace, options: Options, say: Callable
) -> list[Candidate]:
    own = [name for name in layouts if name in OWN]
    masked = next((OWN[name] for name in own if name != 'dense'), None)  # the slow, obvious form comes first
    found = [own_candidate(name, inputs, args.fcmae, masked) for name in own]
    if 'spark' in layouts:
        found.append(spark_candidate(arch, inputs, masked))
    peers = [name for name in layouts if name in PEERS]
    equals = OWN['dense'] if 'dense' in layouts else None
    backbone = inputs.backbone
    found += peer_candidates(peers, arch, backbone, inputs.images_BCHW, equals, options, False, args.memory_format, say)
    if args.compile:
        names = {OWN['dense'], OWN['visible'], *(NAMES[name] for name in peers)}
        found += [compiled(each) for each in found if each.name in names]
    return found


def comparisons() -> list[Comparison]:
    dense, masked, visible, minkowski = OWN.values()
    peers = tuple(NAMES.values())
    peers_compiled = tuple(f'{name}{COMPILED}' for name in peers)
    everywhere = ('forward', 'step', MEMORY)
    return [
        Comparison('visible / own dense', visible, (dense,), everywhere),
        Comparison("visible / the fastest peer's dense, both eager", visible, peers, everywhere),
        Comparison("visible, eager / the fastest peer's dense, compiled", visible, peers_compiled),
        Comparison("visible, compiled / the fastest peer's dense, compiled", f'{visible}{COMPILED}', peers_compiled),
        Comparison('own masked dense / visible', masked, (visible,), everywhere),
        Comparison("SparK's masked dense / visible", SPARK, (visible,), everywhere),
        Comparison('minkowski / visible', minkowski, (visible,), everywhere),
    ]


def run_case(arch: str, dtype: str, args: argparse.Namespace, say: Callable[[str], None]) -> dict:
    """One table."""
    options = speed_settings.options_of(args, dtype)
    if args.compile and args.fcmae:
        raise ValueError('--fcmae has no compiled form here: leave out --compile')
    layouts, not_run = chosen_layouts(args)
    inputs = Inputs(arch, args.batch_size, args.size, args.mask_ratio, args)
    candidates = build_candidates(layouts, arch, inputs, args, options, say)
    num_cells = inputs.visible_BGG[0].numel()
    num_visible = int(inputs.visible_BGG[0].sum())
    settings = dict(
        arch=arch, batch_size=args.batch_size, size=list(args.size), mask_ratio=args.mask_ratio, num_cells=num_cells,
        num_visible=num_visible, dtype=dtype, device=args.device, kernels=args.kernels,
    )  # fmt: skip
    title = (
        f'{arch}, batch {args.batch_size}, {args.size[0]} x {args.size[1]} px, {num_visible} of {num_cells} cells '
        f'visible, {dtype}, {args.device}'
    )
    found = measure(candidates, comparisons(), options, say)
    return dict(title=title, settings=settings, not_run=not_run, **found)


def run_curve(arch: str, dtype: str, args: argparse.Namespace, say: Callable[[str], None]) -> dict:
    """Seconds of every point of the curve, all points taking turns."""
    options = speed_settings.options_of(args, dtype)
    layouts, _ = chosen_layouts(args, ('visible', 'dense'))
    if set(layouts) - {'dense', 'masked', 'visible', 'minkowski'}:
        raise ValueError(f'--curve has our own layouts only ({", ".join(OWN)})')
    base = cost_curve.Point(args.batch_size, args.size[0], args.mask_ratio)
    points = cost_curve.points(base, args.batch_sizes, args.sizes, args.mask_ratios)
    model, steps, shares = None, {}, {}
    for point in points:
        size = (point.size, point.size)
        inputs = Inputs(arch, point.batch_size, size, point.mask_ratio, args, model)
        model, shares[point] = inputs.fcmae, inputs.share
        for layout in layouts:
            if layout == 'dense' and point.mask_ratio != base.mask_ratio:
                continue  # it has no mask
            candidate = own_candidate(layout, inputs, args.fcmae, None)
            steps[layout, point] = steps_of(candidate, options)[options.phases[-1]]
    wait = waiter(args.device)
    seconds = 0.0
    for number, ((layout, point), step) in enumerate(steps.items(), 1):
        say(f'warm-up {number} of {len(steps)}: {layout}, {point}')
        time_once(step, wait)
        seconds += time_once(step, wait)
    num_rounds = args.runs or num_rounds_within(args.seconds, seconds)
    say(f'{num_rounds} rounds of about {seconds:.1f} s')
    timings = interleave(steps, num_rounds, wait, after_round=lambda done: say(f'round {done} of {num_rounds}'))
    measured = [
        cost_curve.Measured(layout, point, 1.0 if layout == 'dense' else shares[point], timing.median, timing.quartiles)
        for (layout, point), timing in timings.items()
    ]
    title = f'{arch}, {dtype}, {args.device}: one {"forward pass" if args.forward_only else "step"}'
    return cost_curve.summarise(title, base, measured) | dict(num_rounds=num_rounds)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    command = ['python', 'tools/benchmark/encoder_speed.py', *(sys.argv[1:] if argv is None else argv)]
    say = speed_settings.progress(args.quiet)
    results = speed_settings.begin(
        args, 'Cost of an encoder step' if args.curve else 'Encoder: masked and dense, ours and others', command
    )
    name = args.name or ('encoder_curve' if args.curve else 'encoder_speed')
    markdown = cost_curve.page if args.curve else speed_settings.page
    wrong: list[str] = []
    for arch in args.arch:
        for dtype in args.dtype:
            say(f'{arch}, {dtype}')
            case = (run_curve if args.curve else run_case)(arch, dtype, args, say)
            sections = cost_curve.sections(case) if args.curve else case_sections(case)
            print('\n\n'.join(sections), end='\n\n', flush=True)
            wrong += [] if args.curve else [f'{each} ({arch}, {dtype})' for each in different(case)]
            results['cases'].append(case)
            paths = speed_settings.save(results, args.out, name, args.device, markdown)
    if args.curve and args.out:
        results['plot'] = cost_curve.draw(results['cases'], paths[0].with_suffix('.png')).name
        speed_settings.save(results, args.out, name, args.device, markdown)
    if wrong:
        raise ValueError(f'other outputs or gradients than the reference: {", ".join(wrong)}')


if __name__ == '__main__':
    with explain_errors():
        main()
