"""Show what an FCMAE checkpoint fills into hidden cells: one PNG sheet of any pictures, with fixed masks.

    python tools/visualize_reconstruction.py CONFIG CHECKPOINT IMAGES... [--out sheet.png] [--num 8]
        [--mask-ratio 0.6 [0.75 ...]] [--seed 0] [--size 224] [--fill own|nearest|both] [--single-files DIR]

IMAGES are files or folders (searched with their subfolders, in the order of the names). Rows of the sheet: input, and
for every mask ratio what the encoder saw and the reconstruction: visible cells are the input's own pixels, hidden
cells the prediction. A model trained with norm_pix predicts each cell up to its mean and spread; these come from the
hidden cell itself (--fill own) or from the nearest visible cells (--fill nearest, nothing that the model did not
see). During training the hook `reconstruction` of the pretraining configs draws the same sheet. Touch this file for
options; what is shown is in mmcnx2/analysis/reconstruction_sheet.py. Guarded by
tests/analysis/test_visualize_reconstruction.py.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

from mmengine.config import Config

from mmcnx2.analysis.pictures import crop_size, find_pictures, is_shown_in_rgb, load_pictures
from mmcnx2.analysis.reconstruction_sheet import FILLS, reconstruction_sheet
from mmcnx2.analysis.trained_models import load_trained_fcmae
from mmcnx2.engine.run_config import find_config
from mmcnx2.engine.user_errors import explain_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the pretraining run')
    parser.add_argument('checkpoint', help="its checkpoint, or one of the official code's FCMAE with its decoder")
    parser.add_argument('images', nargs='+', help='picture files or folders of them')
    parser.add_argument(
        '--out',
        default='reconstruction.png',
        type=os.path.expanduser,
        help='the sheet to write (PNG); default %(default)s',
    )
    parser.add_argument('--num', type=int, default=8, help='at most so many pictures; default %(default)s')
    parser.add_argument(
        '--mask-ratio', type=float, nargs='+', help="share of hidden cells, one or more; default: the config's"
    )
    parser.add_argument('--seed', type=int, default=0, help='picture i is masked from seed + i; default %(default)s')
    parser.add_argument(
        '--size', type=int, nargs='+', metavar='PX', help="height [and width] in pixels; default: the config's crop"
    )
    parser.add_argument(
        '--fill', choices=FILLS, default='both', help='whose mean and spread hidden cells get; default %(default)s'
    )
    parser.add_argument(
        '--single-files', metavar='DIR', help='write every tile as a PNG of its own into this folder as well'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with explain_errors():
        cfg = Config.fromfile(find_config(args.config))
        paths = find_pictures(args.images, args.num)
        model = load_trained_fcmae(cfg, args.checkpoint)
        pictures = load_pictures(cfg, paths, crop_size(cfg, args.size))
        sheet = reconstruction_sheet(model, pictures, args.mask_ratio, args.seed, args.fill, is_shown_in_rgb(cfg))
        sheet.draw(args.out)
        if args.single_files:
            sheet.write_single_files(args.single_files, [path.stem for path in paths])
        for ratio, error in zip(sheet.ratios, sheet.errors, strict=True):
            print(f'mask ratio {ratio:g}: mean error over hidden cells {error:.4f}')
        print(f'{len(paths)} pictures -> {args.out}')


if __name__ == '__main__':
    main()
