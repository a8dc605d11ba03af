"""Guards mmcnx2/datasets/load_random_resized_crop.py: the crops of the recipe, the pixels of full decoding, less work.

The slow and obvious way beside it: mmcnx2.LoadImage decodes everything, mmpretrain's RandomResizedCrop cuts, Pillow
resizes.
"""

import sys
from pathlib import Path

import mmpretrain.datasets  # noqa: F401  (registers its transforms)
import numpy as np
import pytest
import tifffile
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torchvision.transforms import RandomResizedCrop

from mmcnx2.datasets import LoadImage, LoadRandomResizedCrop, SeededIndex, UnlabelledImages, load_random_resized_crop
from mmcnx2.datasets.load_image import UnreadableImage, read_image
from mmcnx2.datasets.load_random_resized_crop import REDUCTIONS, draw_crop
from mmcnx2.datasets.orientation import TURNS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'faults'))

import bad_images

BASE = Path(__file__).parents[2] / 'configs/_base_/datasets/imagenet_unlabelled_224.py'
COMPLETELY = float('inf')


def picture(height, width, seed=0, detail=12.0):
    """Smooth random colours with fine noise: no two places and no two directions look alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((smooth + rng.normal(0, detail, (height, width, 1))).clip(0, 255).astype(np.uint8))


def saved(path, image, orientation=1, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **options)
    return str(path)


def slow(path, seed, **options):
    """The recipe before: everything decoded, cut, resized by Pillow."""
    np.random.seed(seed)
    crop = dict(type='RandomResizedCrop', backend='pillow', interpolation='bicubic', **options)
    return TRANSFORMS.build(crop)(LoadImage()(dict(img_path=path)))['img']


def quick(path, seed, **options):
    np.random.seed(seed)
    return LoadRandomResizedCrop(**options)(dict(img_path=path))['img']


def apart(one, other):
    return np.abs(one.astype(int) - other)


# ---- which crop


@pytest.mark.parametrize('size', [(375, 500), (500, 375), (1, 1), (3, 700), (700, 3), (1, 9), (224, 224), (61, 100)])
@pytest.mark.parametrize('ranges', [((0.2, 1.0), (3 / 4, 4 / 3)), ((0.9, 1.0), (1.9, 2.1)), ((0.01, 0.02), (0.5, 0.6))])
def test_same_seed_same_crop_as_mmpretrain(size, ranges):
    theirs = TRANSFORMS.get('RandomResizedCrop')(224, *ranges)
    for seed in range(40):
        np.random.seed(seed)
        expected = theirs.rand_crop_params(np.empty(size))
        after = np.random.rand()
        np.random.seed(seed)
        crop = draw_crop(*size, *ranges)
        if min(expected[2:]) > 0:  # theirs may be empty where no shape fits into a picture of one pixel's width
            assert (crop.top, crop.left, crop.height, crop.width) == expected
        assert 0 < crop.height <= size[0] - crop.top and 0 < crop.width <= size[1] - crop.left
        assert np.random.rand() == after  # what is drawn next is the same as well


def test_sizes_shapes_and_places_are_distributed_as_torchvisions():
    height, width, num = 375, 500, 4000
    np.random.seed(0), torch.manual_seed(0)
    ours = [draw_crop(height, width, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(num)]
    ours = np.array([(crop.top, crop.left, crop.height, crop.width) for crop in ours])
    like = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(like, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(num)])

    def measured(crops):
        top, left, rows, columns = crops.T
        with np.errstate(invalid='ignore'):
            places = top / (height - rows), left / (width - columns)
        return [
            rows * columns / (height * width),
            np.log(columns / rows),
            *(place[~np.isnan(place)] for place in places),
        ]

    for mine, other in zip(measured(ours), measured(theirs), strict=True):
        at = np.linspace(0.05, 0.95, 19)
        assert np.abs(np.quantile(mine, at) - np.quantile(other, at)).max() < 0.03


# ---- which pixels


@pytest.mark.parametrize('scale', [64, (48, 80)])
@pytest.mark.parametrize('orientation', TURNS)
def test_completely_decoded_it_is_the_slow_way(tmp_path, orientation, scale):
    """Torch and Pillow round what they add up differently: mostly nothing, often 1, at most 3 of 255."""
    path = saved(tmp_path / 'x.jpg', picture(150, 210), orientation)
    for seed in range(4):
        difference = apart(quick(path, seed, scale=scale, oversampling=COMPLETELY), slow(path, seed, scale=scale))
        assert difference.max() <= 3 and difference.mean() < 0.3


KINDS = {
    '4:4:4.jpg': lambda image, path: image.save(path, quality=95, subsampling=0),
    'progressive.jpg': lambda image, path: image.save(path, progressive=True),
    'gray.jpg': lambda image, path: image.convert('L').save(path),
    'cmyk.jpg': lambda image, path: image.convert('CMYK').save(path),
    'two.mpo': lambda image, path: image.save(path, save_all=True, append_images=[image.rotate(90)]),
    'png': lambda image, path: image.save(path),
    'png_in_disguise.jpg': lambda image, path: image.save(path, 'PNG'),
    'jpeg_in_disguise.png': lambda image, path: image.save(path, 'JPEG'),
    'alpha.png': lambda image, path: image.putalpha(image.convert('L')) or image.save(path),
    'palette.png': lambda image, path: image.quantize(64).save(path),
    'bmp': lambda image, path: image.save(path),
    'tif': lambda image, path: image.save(path),
    'webp': lambda image, path: image.save(path),
    '16 bits.png': lambda image, path: bad_images.sixteen_bits(path, image),
    '16 bits, by planes.tif': lambda image, path: tifffile.imwrite(
        path, np.asarray(image).transpose(2, 0, 1).astype(np.uint16) * 257, photometric='rgb', planarconfig='separate'
    ),
    'array.npy': lambda image, path: np.save(path, np.asarray(image)),
}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('scale', [64, 300])  # smaller and larger than the crop
def test_every_kind_of_file_is_the_slow_way(tmp_path, kind, scale):
    path = tmp_path / f'x.{kind}'
    KINDS[kind](picture(150, 210), path)
    for seed in range(3):
        assert apart(quick(str(path), seed, scale=scale), slow(str(path), seed, scale=scale)).max() <= 3


def test_overshoot_of_bicubic_is_cut_off_at_0_and_255(tmp_path):
    edges = np.zeros((40, 40, 3), np.uint8)
    edges[:, 20:] = 255
    path = saved(tmp_path / 'x.png', Image.fromarray(edges))
    np.save(tmp_path / 'x.npy', edges[..., :1].astype(np.float32))
    values = quick(path, 0, scale=100, crop_ratio_range=(1, 1), aspect_ratio_range=(1, 1))
    assert (values[:, :40] == 0).all() and (values[:, 60:] == 255).all()
    one_channel = dict(in_channels=1, crop_ratio_range=(1, 1), aspect_ratio_range=(1, 1))
    assert quick(str(tmp_path / 'x.npy'), 0, scale=100, **one_channel).max() > 260  # float32 keeps it, as documented


@pytest.mark.parametrize('in_channels', [1, 2, 5])
def test_values_of_any_number_of_channels(tmp_path, in_channels):
    """Each channel as Pillow resizes it alone, in floating point."""
    values = np.random.default_rng(0).normal(size=(90, 70, in_channels)).astype(np.float32) * 1000
    np.save(tmp_path / 'x.npy', values)
    np.random.seed(3)
    crop = draw_crop(90, 70, (0.2, 1.0), (3 / 4, 4 / 3))
    part = values[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    expected = [
        Image.fromarray(part[..., c].copy()).resize((32, 24), Image.Resampling.BICUBIC) for c in range(in_channels)
    ]
    given = quick(str(tmp_path / 'x.npy'), 3, scale=(24, 32), crop_ratio_range=(0.2, 1.0), in_channels=in_channels)
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, np.stack([np.asarray(one) for one in expected], 2), atol=0.05)


def test_a_jpeg_of_other_channels_or_values_than_8_bit_colour(tmp_path):
    path = saved(tmp_path / 'x.jpg', picture(150, 210))
    luminance = quick(path, 2, scale=48, in_channels=1)
    assert luminance.shape == (48, 48, 1) and luminance.dtype == np.float32
    colour = quick(path, 2, scale=48, channel_order='rgb').astype(float)
    assert np.abs(luminance[..., 0] - colour @ [0.299, 0.587, 0.114]).mean() < 1
    stored = quick(path, 2, scale=48, as_stored=True, channel_order='rgb')
    assert stored.dtype == np.float32 and np.abs(stored - colour).max() < 2 and (stored != stored.round()).any()


def test_channel_order_acts(tmp_path):
    red = np.zeros((50, 50, 3), np.uint8)
    red[..., 0] = 250
    for name in ('x.jpg', 'x.png'):
        path = saved(tmp_path / name, Image.fromarray(red))
        bgr, rgb = quick(path, 0, scale=32), quick(path, 0, scale=32, channel_order='rgb')
        assert bgr[5, 5, 2] > 240 > bgr[5, 5, 0] and np.array_equal(bgr[..., ::-1], rgb)


# ---- decoding less


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """A JPEG whose side is no multiple of 8, turned in each of the eight ways."""
    folder = tmp_path_factory.mktemp('large')
    image = picture(907, 1205, detail=25.0)
    return {
        orientation: saved(folder / f'{orientation}.jpg', image, orientation, quality=92)
        for orientation in (1, 2, 3, 6, 7)
    }


def snapped(path, seed, reduction, size):
    """The whole picture, the crop's edges at multiples of the reduction in the stored picture, resized by Pillow."""
    whole = read_image(path)
    np.random.seed(seed)
    crop = draw_crop(*whole.shape[:2], (0.2, 1.0), (3 / 4, 4 / 3))
    marked = np.zeros(whole.shape[:2], bool)
    marked[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width] = True
    with Image.open(path) as image:
        turn = TURNS[image.getexif().get(0x0112, 1)]
        stored = np.asarray(image)
    back = marked[:: -1 if turn.rows_reversed else 1, :: -1 if turn.columns_reversed else 1]
    back = back.T if turn.transposed else back
    rows, columns = np.flatnonzero(back.any(1)), np.flatnonzero(back.any(0))
    top, bottom, left, right = (
        round(edge / reduction) * reduction for edge in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
    )
    part = turn.seen(stored[top:bottom, left:right])
    return np.asarray(Image.fromarray(np.ascontiguousarray(part)).resize(size[::-1], Image.Resampling.BICUBIC))[
        ..., ::-1
    ]


@pytest.mark.parametrize('orientation', [1, 2, 3, 6, 7])
def test_decoded_smaller_it_looks_as_decoded_completely(large, orientation, decoded):
    for scale, reduction in (((80, 70), 2), ((40, 36), 4), ((20, 18), 8)):
        differences = []
        for seed in range(5):
            given = quick(large[orientation], seed, scale=scale, crop_ratio_range=(0.2, 1.0))
            used = decoded.pop()[0]
            differences.append(apart(given, snapped(large[orientation], seed, used, scale)))
            shift = apart(given, slow(large[orientation], seed, scale=scale, crop_ratio_range=(0.2, 1.0)))
            assert used >= reduction and np.sqrt(np.square(shift).mean()) < 5  # edges a quarter of a pixel away at most
        differences = np.stack([np.sqrt(np.square(difference).mean()) for difference in differences])
        assert differences.max() < 1.5, (scale, differences)  # of 255, with strong noise: 44 dB


@pytest.fixture
def decoded(monkeypatch):
    """Of each JPEG read: (reduction, size of the crop before it is resized)."""
    seen, original = [], load_random_resized_crop.resized

    def resized(values_HWC, size):
        seen.append([drafts.pop(), values_HWC.shape[:2]])
        return original(values_HWC, size)

    drafts = []
    chosen = LoadRandomResizedCrop._reduced

    def reduced(self, crop, size):
        answer = chosen(self, crop, size)
        drafts.append(answer[0])
        return answer

    monkeypatch.setattr(load_random_resized_crop, 'resized', resized)
    monkeypatch.setattr(LoadRandomResizedCrop, '_reduced', reduced)
    return seen


@pytest.mark.parametrize('oversampling', [1, 2, 3.5])
def test_a_reduced_crop_keeps_room_and_no_greater_reduction_would(large, decoded, oversampling):
    loader = dict(crop_ratio_range=(0.01, 1.0), aspect_ratio_range=(0.2, 5), oversampling=oversampling)
    reductions = set()
    for orientation in (1, 6):
        for seed in range(40):
            scale = np.exp(np.random.default_rng(seed).uniform(1.5, 4.8, 2)).round().astype(int).tolist()
            quick(large[orientation], seed, scale=scale, **loader)
            reduction, size = decoded.pop()
            reductions.add(reduction)
            if reduction > 1:
                assert all(has >= oversampling * needs for has, needs in zip(size, scale, strict=True))
            if reduction < 8:
                assert any(has // 2 - 1 <= oversampling * needs for has, needs in zip(size, scale, strict=True))
    assert reductions == {1, *REDUCTIONS}


def test_pillow_decodes_no_more_than_that(large, monkeypatch):
    """What `draft` was asked for is what is decoded: an eighth of the side, a 64th of the pixels."""
    sizes = []
    crop = Image.Image.crop
    monkeypatch.setattr(Image.Image, 'crop', lambda self, box: sizes.append(self.size) or crop(self, box))
    quick(large[1], 0, scale=30, crop_ratio_range=(0.5, 1.0))
    quick(large[1], 0, scale=30, crop_ratio_range=(0.5, 1.0), oversampling=COMPLETELY)
    assert sizes == [(151, 114), (1205, 907)]


# ---- in the recipe


def test_base_of_the_pretraining_configs_delivers_the_recipe(tmp_path):
    """Crops of 224 px of 20% to 100% of the area, bicubic, half of them mirrored: typed again, the slow way."""
    paths = [saved(tmp_path / f'{index}.jpg', picture(300, 420, index), orientation=1 + index) for index in range(8)]
    pipeline = Config.fromfile(BASE).train_dataloader.dataset.pipeline
    init_default_scope('mmpretrain')
    expected = [
        dict(type='mmcnx2.LoadImage'),
        dict(
            type='RandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.0), backend='pillow', interpolation='bicubic'
        ),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackInputs'),
    ]
    ours, theirs = (UnlabelledImages(tmp_path, pipeline=steps) for steps in (pipeline, expected))
    flips = set()
    for index, path in enumerate(paths):
        mine, other = (dataset[SeededIndex(index, 100 + index)] for dataset in (ours, theirs))
        assert mine['inputs'].shape == (3, 224, 224) and mine['inputs'].dtype == torch.uint8
        assert (mine['inputs'].int() - other['inputs'].int()).abs().max() <= 3
        known, known_before = mine['data_samples'].metainfo, other['data_samples'].metainfo
        assert known['img_path'] == path and known['img_shape'] == (224, 224)
        assert all(known[key] == known_before[key] for key in ('ori_shape', 'flip', 'sample_idx', 'sample_seed'))
        flips.add(known['flip'])
    assert flips == {True, False}


def test_the_seed_alone_decides(tmp_path):
    for index in range(3):
        saved(tmp_path / f'{index}.jpg', picture(700, 900, index))
    dataset = UnlabelledImages(tmp_path, pipeline=[LoadRandomResizedCrop(64), dict(type='mmpretrain.PackInputs')])
    first = dataset[SeededIndex(1, 7)]['inputs']
    np.random.rand(5)
    assert torch.equal(dataset[SeededIndex(1, 7)]['inputs'], first)
    assert not torch.equal(dataset[SeededIndex(1, 8)]['inputs'], first)


@pytest.mark.parametrize('kind', bad_images.KINDS)
def test_bad_files_are_refused_as_by_the_other_loader(tmp_path, kind):
    ending, write, wrong = bad_images.KINDS[kind]
    path = tmp_path / f'x.{ending}'
    write(path, picture(90, 120))
    if wrong is None:
        assert apart(quick(str(path), 1, scale=32), slow(str(path), 1, scale=32)).max() <= 3
        return
    with pytest.raises(UnreadableImage, match=r'.{5}') as refused:
        quick(str(path), 1, scale=32)
    assert refused.value.kind == wrong


def test_a_large_jpeg_that_is_cut_short_is_refused_at_any_reduction(tmp_path, large):
    path = tmp_path / 'x.jpg'
    path.write_bytes(Path(large[1]).read_bytes()[:-20_000])
    for scale in (30, 500):
        with pytest.raises(UnreadableImage) as refused:
            quick(str(path), 0, scale=scale, crop_ratio_range=(1, 1))
        assert refused.value.kind == 'damaged'


def test_missing_files_folders_and_broken_exif(tmp_path, monkeypatch):
    for path in (tmp_path, tmp_path / 'nowhere.jpg'):
        with pytest.raises(UnreadableImage) as refused:
            quick(str(path), 0, scale=32)
        assert refused.value.kind == 'cannot be opened'
    for number, exif in enumerate((b'Exif\0\0MM\0*\xff\xff\xff\xff garbage', b'Exif\0\0')):
        picture(90, 120).save(tmp_path / f'{number}.jpg', exif=exif)
        path = str(tmp_path / f'{number}.jpg')
        assert apart(quick(path, 1, scale=32), slow(path, 1, scale=32)).max() <= 3
    path = saved(tmp_path / 'x.jpg', picture(90, 120), orientation=9)
    expected = slow(path, 1, scale=32)
    assert apart(quick(path, 1, scale=32), expected).max() <= 3

    def broken(image):
        raise SyntaxError('not a TIFF file')

    monkeypatch.setattr(JpegImageFile, 'getexif', broken)
    assert apart(quick(path, 1, scale=32), expected).max() <= 3


def test_a_mistake_in_the_crop_is_not_taken_for_a_bad_file(tmp_path, monkeypatch):
    path = saved(tmp_path / 'x.jpg', picture(90, 120))

    def wrong(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(load_random_resized_crop, 'draw_crop', wrong)
    with pytest.raises(ZeroDivisionError):
        quick(path, 0, scale=32)


def test_max_pixels_acts(tmp_path):
    path = saved(tmp_path / 'x.jpg', picture(24, 40))
    assert quick(path, 0, scale=32, max_pixels=960).shape == (32, 32, 3)
    with pytest.raises(UnreadableImage, match='max_pixels=959'):
        quick(path, 0, scale=32, max_pixels=959)


@pytest.mark.parametrize(
    'options',
    [
        dict(scale=0),
        dict(scale=(1, 2, 3)),
        dict(crop_ratio_range=(0.5, 0.2)),
        dict(crop_ratio_range=(0.0, 1.0)),
        dict(aspect_ratio_range=(2, 1)),
        dict(oversampling=0.9),
        dict(oversampling=float('nan')),
        dict(in_channels=0),
    ],
)
def test_settings_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LoadRandomResizedCrop(**{'scale': 32, **options})
