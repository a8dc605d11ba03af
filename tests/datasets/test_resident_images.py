"""Guards mmcnx2/datasets/resident_images.py: the crops of a batch are those that LoadRandomResizedCrop would cut."""

import numpy as np
import pytest
import torch
from mmengine.registry import FUNCTIONS
from PIL import Image
from torch.utils.data import DataLoader

from mmcnx2.datasets import ResidentImages, SeededDataset, SeededIndex, whole_batch
from mmcnx2.datasets.load_random_resized_crop import draw_crop, resized
from mmcnx2.datasets.resident_images import resize_weights

SIDE = 96


def made(folder, side=SIDE, scale=128, flip_prob=0.5, **options):
    crop = {key: options.pop(key) for key in ('crop_ratio_range', 'aspect_ratio_range') if key in options}
    pipeline = [
        dict(type='mmcnx2.LoadRandomResizedCrop', scale=scale, **crop),
        dict(type='RandomFlip', prob=flip_prob),
        dict(type='PackInputs'),
    ]
    return ResidentImages(folder, **{'pipeline': pipeline, 'side': side, 'device': 'cpu', **options})


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(SIDE, SIDE)] * 3 + [(60, 120)]):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(0, 9, (1, 1, 3))
        Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(tmp_path / f'{number}.png')
    return tmp_path


def stored_bgr(folder, number):
    return np.asarray(Image.open(folder / f'{number}.png').convert('RGB'))[..., ::-1]


@pytest.mark.parametrize('size', [24, 96, 160])
def test_crops_are_resized_as_one_by_one(folder, monkeypatch, size):
    """Made smaller, kept and made larger; 8 bits once instead of twice, so single values differ by 1."""
    images = made(folder, scale=size, flip_prob=0)
    boxes = [(0, 0, 96, 96), (5, 10, 60, 40), (40, 3, 56, 90)]
    monkeypatch.setattr(images, '_draw', lambda sizes: torch.tensor(boxes, dtype=torch.float64))
    inputs = images.__getitems__([0, 2, 1])['inputs']
    assert inputs.dtype == torch.uint8
    for got, number, (top, left, height, width) in zip(inputs, [0, 2, 1], boxes, strict=True):
        part = stored_bgr(folder, number)[top : top + height, left : left + width]
        difference = got.permute(1, 2, 0).int() - torch.from_numpy(resized(part, (size, size)).astype(np.int32))
        assert difference.abs().max() <= 2
        assert difference.float().abs().mean() < 0.3


def test_mirroring_turns_columns_round(folder, monkeypatch):
    crops = []
    for flip_prob in (0, 1):
        images = made(folder, scale=32, flip_prob=flip_prob)
        monkeypatch.setattr(images, '_draw', lambda sizes: torch.tensor([[5.0, 10.0, 60.0, 40.0]]))
        crops.append(images.__getitems__([1])['inputs'])
    assert torch.equal(crops[0].flip(-1), crops[1])
    assert not torch.equal(*crops)


@pytest.mark.parametrize(
    ('size', 'ratios'), [((96, 96), (3 / 4, 4 / 3)), ((60, 120), (3 / 4, 4 / 3)), ((40, 200), (0.9, 1.1))]
)
def test_crops_are_drawn_as_one_by_one(folder, size, ratios):
    """The distribution of draw_crop: quartiles of top, left, height and width over 20,000 crops, to 2 px; the last
    case has crops that do not fit."""
    images = made(folder, crop_ratio_range=(0.2, 1.0), aspect_ratio_range=ratios)
    torch.manual_seed(0)
    np.random.seed(0)
    got = images._draw(torch.tensor([size], dtype=torch.float64).repeat(20000, 1))
    got = got * torch.tensor(size, dtype=torch.float64).repeat(2) / SIDE
    crops = (draw_crop(*size, (0.2, 1.0), ratios) for _ in range(20000))
    expected = torch.tensor([(crop.top, crop.left, crop.height, crop.width) for crop in crops], dtype=torch.float64)
    shares = torch.tensor([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], dtype=torch.float64)
    torch.testing.assert_close(got.quantile(shares, 0), expected.quantile(shares, 0), rtol=0, atol=2)
    assert (got[:, :2] >= 0).all()
    assert (got[:, :2] + got[:, 2:] <= torch.tensor(size, dtype=torch.float64) + 1e-6).all()


def test_a_wide_picture_is_stored_square_and_cut_in_its_own_proportions(folder):
    images = made(folder)
    images.__getitems__([3])
    assert images._sizes_N2[3].tolist() == [60, 120]
    boxes = images._draw(images._sizes_N2[3:].repeat(1000, 1))
    ratio = (boxes[:, 3] * 120 / SIDE) / (boxes[:, 2] * 60 / SIDE)
    assert 0.7 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.4  # rounded to whole pixels of the file
    expected = resized(stored_bgr(folder, 3), (SIDE, SIDE))
    assert torch.equal(images._pictures_NCSS[3].permute(1, 2, 0), torch.from_numpy(expected))


def test_weights_outside_of_the_part_are_zero():
    weights = resize_weights(torch.tensor([10.0, 0.0]), torch.tensor([20.0, 40.0]), 40, 8)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 8))
    assert (weights[0, :, :10] == 0).all() and (weights[0, :, 30:] == 0).all()
    assert (weights[1, 0, :2] > 0).all() and (weights[1, -1, -2:] > 0).all()


def test_a_data_loader_gives_whole_batches_also_through_the_training_loops(folder):
    pipeline = [dict(type='mmcnx2.LoadRandomResizedCrop', scale=(32, 48)), dict(type='PackInputs')]
    config = dict(type='mmcnx2.ResidentImages', source=str(folder), side=64, pipeline=pipeline, device='cpu')
    images = SeededDataset(config)
    collate = FUNCTIONS.get('mmcnx2.whole_batch')
    assert collate is whole_batch
    batches = list(DataLoader(images, batch_size=2, collate_fn=collate))
    assert [batch['inputs'].shape for batch in batches] == [(2, 3, 32, 48)] * 2
    assert batches[0]['data_samples'] is None
    assert images[SeededIndex(0, 1)]['inputs'].shape == (3, 32, 48)


def test_a_data_set_of_single_samples_keeps_its_seeds():
    class Noise(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return torch.rand(1).item()

    noise = SeededDataset(Noise())
    assert noise.__getitems__([SeededIndex(0, 5), SeededIndex(1, 5)])[0] == noise[SeededIndex(1, 5)]


def test_mistakes_are_named(folder, monkeypatch):
    crop, pack = dict(type='LoadRandomResizedCrop', scale=32), dict(type='PackInputs')
    for wrong in (
        [],
        [crop],
        [pack],
        [crop, dict(type='ColorJitter'), pack],
        [crop, dict(type='RandomFlip', prob=0.5, direction='vertical'), pack],
        [crop, dict(type='RandomFlip', prob=[0.5, 0.1]), pack],
        [crop, dict(type='PackInputs', meta_keys=('img_path',))],
    ):
        with pytest.raises(ValueError, match='makes one pipeline'):
            made(folder, pipeline=wrong)
    with pytest.raises(ValueError, match='3 channels'):
        made(folder, pipeline=[dict(crop, in_channels=1), pack])
    with pytest.raises(ValueError, match='crop_ratio_range'):
        made(folder, crop_ratio_range=(0.5, 0.2))
    with pytest.raises(ValueError, match='side=0'):
        made(folder, side=0)
    loader = DataLoader(made(folder), batch_size=2, num_workers=1, collate_fn=whole_batch)
    with pytest.raises(ValueError, match='num_workers=0'):
        next(iter(loader))
    images = made(folder, side=1024, device='cuda')
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (10 * 2**20, 2**30))
    with pytest.raises(ValueError, match='need 12 MB, more than 70% of the 10 MB free on cuda'):
        images.__getitems__([0])


def test_a_bad_file_is_replaced_and_named(folder):
    (folder / '4.png').write_bytes(b'no picture')
    images = made(folder, max_bad_share=0.5)
    assert images.__getitems__([4])['inputs'].float().std() > 1
    assert images.dataset.bad_files == [str(folder / '4.png')]
