"""Show what an FCMAE checkpoint fills into hidden cells: one PNG sheet of any pictures, with fixed masks.

    python tools/visualize_reconstruction.py CONFIG CHECKPOINT IMAGES... [--out sheet.png] [--num 8]
        [--mask-ratio 0.6 [0.75 ...]] [--seed 0] [--size 224] [--fill own|nearest|both] [--single-files DIR]

IMAGES are files or folders (searched with their subfolders, in the order of the names). Rows of the sheet: input, and
for every mask ratio what the encoder saw and the reconstruction: visible cells are the input's own pixels, hidden
cells the prediction. A model trained with norm_pix predicts each cell up to its mean and spread; these come from the
hidden cell itself (--fill own) or from the nearest visible cells (--fill nearest, nothing that the model did not
see). Touch this file for options; the arithmetic is in mmcnx2/analysis/reconstruction.py. Guarded by
tests/analysis/test_visualize_reconstruction.py.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from mmcnx2.analysis import reconstruction
from mmcnx2.analysis.figures import PictureRow, draw_sheet
from mmcnx2.atomic_write import open_atomically
from mmcnx2.checkpoint import read_checkpoint
from mmcnx2.engine.user_errors import explain_errors
from mmcnx2.registry import MODELS, TRANSFORMS

PICTURE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.npy')
FILLS = {'own': ('own',), 'nearest': ('nearest',), 'both': ('own', 'nearest')}
ROW_LABELS = {'own': 'filled, own', 'nearest': 'filled, near'}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the pretraining run')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('images', nargs='+', help='picture files or folders of them')
    parser.add_argument('--out', default='reconstruction.png', help='the sheet to write (PNG); default %(default)s')
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


def find_pictures(places: list[str], limit: int) -> list[Path]:
    """At most `limit` files, in the order given; folders are searched with their subfolders, by name."""
    if limit < 1:
        raise ValueError(f'--num {limit}: at least one picture is needed')
    found: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            inside = sorted(path for path in place.rglob('*') if path.suffix.lower() in PICTURE_ENDINGS)
            if not inside:
                raise FileNotFoundError(f'{place} holds no picture ({" ".join(PICTURE_ENDINGS)})')
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise FileNotFoundError(f'{place} is neither a picture nor a folder')
    return found[:limit]


def crop_size(cfg: Config, given: list[int] | None) -> tuple[int, int]:
    """(height, width) in pixels: as given, else of the last transform of the training pipeline that sets one."""
    if given:
        if len(given) > 2 or min(given) < 1:
            raise ValueError(f'--size {given}: give one number (square) or height and width, in pixels')
        return given[0], given[-1]
    for transform in reversed(training_pipeline(cfg)):
        for name in ('crop_size', 'scale', 'size'):
            size = transform.get(name)
            if isinstance(size, int):
                return size, size
            if isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(side, int) for side in size):
                return (size[1], size[0]) if name == 'scale' else tuple(size)  # OpenMMLab's scale is (width, height)
    raise ValueError('the training pipeline of this config names no crop size; give --size')


def training_pipeline(cfg: Config) -> list[dict]:
    dataset = cfg.get('train_dataloader', {}).get('dataset', {})
    while 'pipeline' not in dataset and 'dataset' in dataset:  # wrappers such as RepeatDataset
        dataset = dataset['dataset']
    return list(dataset.get('pipeline', []))


def load_pictures(cfg: Config, paths: list[Path], size: tuple[int, int]) -> torch.Tensor:
    """(B, C, H, W) as the config's own first transform reads them, scaled to cover `size` and cropped in the centre."""
    pipeline = training_pipeline(cfg)
    loader = TRANSFORMS.build(pipeline[0] if pipeline else dict(type='LoadImageFromFile'))
    loader = getattr(loader, 'loader', loader)  # mmcnx2.LoadRandomResizedCrop: whole pictures, not crops
    pictures = []
    for path in paths:
        try:
            loaded = loader({'img_path': str(path), 'sample_idx': 0})
        except ValueError as error:
            raise ValueError(f'{path} cannot be read as a picture: {error}') from error
        if loaded is None or loaded.get('img') is None:
            raise ValueError(f'{path} cannot be read as a picture')
        values = np.atleast_3d(loaded['img'])
        picture = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1))).float()
        scale = max(size[0] / picture.shape[1], size[1] / picture.shape[2])
        resized = [max(side, round(length * scale)) for side, length in zip(size, picture.shape[1:], strict=True)]
        picture = torch.nn.functional.interpolate(picture[None], resized, mode='bicubic', antialias=True)[0].clamp(
            values.min(), values.max()
        )
        top, left = (resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2
        pictures.append(picture[:, top : top + size[0], left : left + size[1]])
    return torch.stack(pictures)


def build_model(cfg: Config, checkpoint: str) -> torch.nn.Module:
    """The pretraining model with the checkpoint's values, all of them and no others."""
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model)
    if not hasattr(model, 'reconstruct'):
        raise ValueError(
            f'{cfg.filename} builds a {type(model).__name__}, which reconstructs nothing; give one of an FCMAE run'
        )
    content = read_checkpoint(checkpoint)
    weights = content.get('state_dict', content)
    needed = model.state_dict()
    missing, foreign = sorted(needed.keys() - weights.keys()), sorted(weights.keys() - needed.keys())
    misshaped = sorted(key for key in needed.keys() & weights.keys() if needed[key].shape != weights[key].shape)
    if missing or foreign or misshaped:
        raise ValueError(
            f'{checkpoint} does not fit {cfg.filename}: {len(missing)} entries are missing, {len(foreign)} foreign, '
            f'{len(misshaped)} have another shape (for example {(missing + foreign + misshaped)[0]}). '
            'Give the config that the run was trained with; it is stored in its work dir.'
        )
    model.load_state_dict(weights)
    return model.eval()


def is_shown_in_rgb(cfg: Config) -> bool:
    """True when the model's inputs are RGB: the config's reader gives that, or the preprocessor turns BGR round."""
    reader = (training_pipeline(cfg) or [{}])[0]
    preprocessor = cfg.model.get('data_preprocessor') or {}
    turned = any(preprocessor.get(name) for name in ('to_rgb', 'bgr_to_rgb'))
    return turned != (reader.get('channel_order') == 'rgb')


@torch.no_grad()
def make_rows(
    model: torch.nn.Module, cfg: Config, pictures: torch.Tensor, ratios: list[float], seed: int, fills: tuple[str, ...]
) -> tuple[list[PictureRow], list[float]]:
    """Rows of the sheet and, per mask ratio, the mean error over hidden cells in the space of training."""
    from mmcnx2.models.fcmae.masking import random_visible

    preprocessor = model.data_preprocessor
    images_BCHW = preprocessor({'inputs': pictures, 'data_samples': None}, training=False)['inputs']
    grid_shape = reconstruction.grid_shape_of(images_BCHW, model.patch_size)
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)

    in_rgb = model.backbone.in_channels != 3 or is_shown_in_rgb(cfg)

    def shown(images: torch.Tensor) -> list[np.ndarray]:
        pictures = reconstruction.displayable(images, mean, std).numpy()
        return list(pictures if pictures.shape[-1] != 3 or in_rgb else pictures[..., ::-1])

    rows, errors = [PictureRow('input', shown(images_BCHW))], []
    norm_pix = model.head.norm_pix
    for ratio in ratios:
        visible_BGG = random_visible(
            len(images_BCHW), grid_shape, ratio, seeds=[seed + i for i in range(len(images_BCHW))]
        )
        predictions_BLP = model.reconstruct(images_BCHW, visible_BGG)
        arguments = (images_BCHW, visible_BGG, predictions_BLP, model.patch_size, norm_pix)
        errors.append(float(reconstruction.hidden_error(*arguments).mean()))
        suffix = f' {ratio:g}' if len(ratios) > 1 else ''
        hidden = shown(reconstruction.hide_cells(images_BCHW, visible_BGG, model.patch_size))
        grey = reconstruction.hide_cells(torch.full_like(images_BCHW[:, :1], 255.0), visible_BGG, model.patch_size)[
            :, 0
        ].numpy()
        rows.append(
            PictureRow(
                f'masked{suffix}',
                [
                    np.where(seen[..., None] > 0, picture, np.uint8(128))
                    for seen, picture in zip(grey, hidden, strict=True)
                ],
            )
        )
        for fill in fills if norm_pix else fills[:1]:
            rows.append(
                PictureRow(
                    f'{ROW_LABELS[fill]}{suffix}',
                    shown(reconstruction.paste_reconstruction(*arguments, statistics=fill)),
                )
            )
    return rows, errors


def caption(ratios: list[float], errors: list[float], patch_size: int, norm_pix: bool, fills: tuple[str, ...]) -> str:
    measured = ', '.join(f'{error:.3f} at mask ratio {ratio:g}' for ratio, error in zip(ratios, errors, strict=True))
    text = f"Visible cells ({patch_size} px) are the input's own pixels, hidden cells the prediction. "
    if norm_pix:
        origin = {'own': 'the hidden cell itself (own)', 'nearest': 'the nearest visible cells (near)'}
        sources = ' or '.join(origin[fill] for fill in fills)
        text += (
            f'A cell is predicted up to its mean and spread; here these are of {sources}. '
            f'Mean squared error over hidden cells, each normalised: {measured} (a flat cell scores 1).'
        )
    else:
        text += f'Mean squared error over hidden cells, in normalised pixels: {measured}.'
    return text


def write_single_files(rows: list[PictureRow], paths: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        for index, picture in enumerate(row.pictures):
            name = f'{index:03d}_{paths[index].stem}_{re.sub("[, ]+", "-", row.label)}.png'
            pixels = np.ascontiguousarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
            with open_atomically(folder / name) as file:
                Image.fromarray(pixels).save(file, format='PNG')


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with explain_errors():
        cfg = Config.fromfile(args.config)
        paths = find_pictures(args.images, args.num)
        model = build_model(cfg, args.checkpoint)
        ratios = args.mask_ratio or [model.mask_ratio]
        fills = FILLS[args.fill]
        rows, errors = make_rows(
            model, cfg, load_pictures(cfg, paths, crop_size(cfg, args.size)), ratios, args.seed, fills
        )
        draw_sheet(rows, args.out, caption(ratios, errors, model.patch_size, model.head.norm_pix, fills))
        if args.single_files:
            write_single_files(rows, paths, Path(args.single_files))
        for ratio, error in zip(ratios, errors, strict=True):
            print(f'mask ratio {ratio:g}: mean error over hidden cells {error:.4f}')
        print(f'{len(paths)} pictures -> {args.out}')


if __name__ == '__main__':
    main()
