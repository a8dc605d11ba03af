"""Are the channels of a model all alike? Cosine distance, effective rank, dead and saturated channels per layer.

    python tools/analyze_collapse.py IMAGES... --run NAME CONFIG CHECKPOINT [--run ...] [--out-dir collapse]
        [--num 64] [--size PX] [--layers NAME ...] [--maps LAYER ...] [--seed 0] [--device cpu]

The measure of ConvNeXt V2 (arXiv 2301.00808, section 3), averaged over pictures: (1/C^2) sum_ij (1 - cos(X_i, X_j)) / 2
over all pairs of channels of a layer, 0 when all channels are alike. Without --layers: in every block the output of the
dimension-expansion layer (after GELU), before GRN (`stages.0.1.gelu`) and after it (`stages.0.1.grn`). CONFIG is of any
task; CHECKPOINT a file of any layout, official:NAME, or `random`. All runs see the same whole pictures.

Writes collapse.json, collapse.png (against depth) and maps_RUN_LAYER.png (64 channels of the first picture: dark is
dead, bright is saturated) into --out-dir, and prints the table. Touch this file for options; numbers are in
mmcnx2/analysis/collapse.py, what is shown in collapse_report.py. Guarded by tests/analysis/test_analyze_collapse.py.
"""

import argparse
import json
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmcnx2.analysis import collapse_report
from mmcnx2.analysis.activations import expansion_layers, watching
from mmcnx2.analysis.comparison import plain_table
from mmcnx2.analysis.figures import draw_curves, draw_mosaic
from mmcnx2.analysis.pictures import PictureReader, crop_size, find_pictures
from mmcnx2.analysis.provenance import machine, versions
from mmcnx2.analysis.trained_models import TrainedBackbone, load_trained_backbone
from mmcnx2.atomic_write import write_atomically
from mmcnx2.engine.run_config import find_config
from mmcnx2.engine.user_errors import explain_errors
from mmcnx2.given_path import given_path

CHANNELS = {'auto': None, 'first': True, 'last': False}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='+', help='picture files, folders of them, lists (.txt) or globs')
    parser.add_argument(
        '--run',
        nargs=3,
        action='append',
        required=True,
        metavar=('NAME', 'CONFIG', 'CHECKPOINT'),
        help='a model to look at; repeat it. CHECKPOINT may be `random`',
    )
    parser.add_argument('--out-dir', type=given_path, default=Path('collapse'), help='default: %(default)s')
    parser.add_argument('--num', type=int, default=64, help='at most so many pictures; default %(default)s')
    parser.add_argument(
        '--size', type=int, nargs='+', metavar='PX', help="height [and width] in pixels; default: the config's crop"
    )
    parser.add_argument('--layers', nargs='+', metavar='NAME', help='layers to measure; default: see above')
    parser.add_argument(
        '--channels', choices=CHANNELS, default='auto', help='where outputs of --layers have their channels'
    )
    parser.add_argument('--maps', nargs='*', metavar='LAYER', help='layers to draw; default: those of the middle block')
    parser.add_argument('--seed', type=int, default=0, help='of random weights; default %(default)s')
    parser.add_argument('--batch-size', type=int, default=8, help='default %(default)s')
    parser.add_argument('--device', default='cpu', help='default %(default)s')
    return parser.parse_args(argv)


def draw_maps(
    run: str, backbone: TrainedBackbone, image_1CHW: torch.Tensor, layers: list[str], args: argparse.Namespace
) -> None:
    """A sheet per layer, of one picture; a layer must have as many positions as a stage of the backbone has."""
    height, width = image_1CHW.shape[-2:]
    kept: dict[str, torch.Tensor] = {}
    with torch.no_grad(), watching(backbone.model, layers, kept.__setitem__, CHANNELS[args.channels]):
        backbone.model(image_1CHW)
    for layer, x_1NC in kept.items():
        N, C = x_1NC.shape[1:]
        sizes = [(height // stride, width // stride) for stride in (1, 2, 4, 8, 16, 32, 64)]
        shape = next(((H, W) for H, W in sizes if H * W == N), None)
        if shape is None:
            raise ValueError(f'--maps {layer}: its {N} positions are no map of a {height} x {width} px picture')
        tiles = collapse_report.channel_maps(x_1NC[0], shape)
        draw_mosaic(
            tiles,
            args.out_dir / f'maps_{re.sub("[^A-Za-z0-9.+-]+", "-", run)}_{layer}.png',
            f'{run}, {layer}',
            f'{len(tiles)} of {C} channels of one picture, {shape[0]} x {shape[1]} positions, on one scale: black is '
            '0, white the size that 99% of the values stay below. Dark: dead; bright all over: saturated.',
        )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel('WARNING')  # what is loaded is printed below
    with explain_errors():
        names = [name for name, _, _ in args.run]
        if len(set(names)) < len(names):
            raise ValueError(f'--run: every run needs a name of its own; got {", ".join(names)}')
        paths = find_pictures(args.images, args.num)
        results, depths, origins = {}, {}, {}
        for name, config, checkpoint in args.run:
            cfg = Config.fromfile(find_config(config))
            backbone = load_trained_backbone(cfg, checkpoint, args.seed, args.device)
            reader = PictureReader(cfg, crop_size(cfg, args.size))
            batches = (
                backbone.images(torch.stack([reader(path) for path in paths[first : first + args.batch_size]]))
                for first in range(0, len(paths), args.batch_size)
            )
            own = list(expansion_layers(backbone.model))
            found = collapse_report.measure_collapse(backbone.model, batches, args.layers, CHANNELS[args.channels])
            results[name], origins[name] = found, [config, backbone.origin, backbone.digest, list(reader.size)]
            depths[name] = collapse_report.depths_of(backbone.model, list(found))
            middle = own[len(own) // 2].rpartition('.')[0] if own else None
            default = [layer for layer in own if layer.rpartition('.')[0] == middle]
            drawn = args.maps if args.maps is not None else default
            draw_maps(name, backbone, backbone.images(reader(paths[0])[None]), drawn, args)
        draw_curves(collapse_report.panels(results, depths), args.out_dir / 'collapse.png')
        content = dict(
            command=shlex.join(['python', 'tools/analyze_collapse.py', *(sys.argv[1:] if argv is None else argv)]),
            machine=machine(),
            versions=versions(),
            runs=origins,
            layers={
                run: {layer: dict(depth=depths[run][layer], **one.as_dict()) for layer, one in found.items()}
                for run, found in results.items()
            },
        )
        write_atomically(args.out_dir / 'collapse.json', json.dumps(content, indent=2) + '\n')
        print(plain_table(*collapse_report.table(results)))
        print(f'\n{len(paths)} pictures; figures and collapse.json are in {args.out_dir}')


if __name__ == '__main__':
    main()
