"""What a model gets of a picture file: which part is cut, in which order of colours, and how it is normalised."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmcnx2.analysis.pictures import (
    PictureReader,
    build_preprocessor,
    crop_size,
    find_pictures,
    is_shown_in_rgb,
    load_pictures,
    preprocessed,
    training_pipeline,
)

MEAN, STD = [10.0, 20.0, 30.0], [1.0, 2.0, 4.0]


def config(*pipeline, **top) -> Config:
    return Config(
        dict(default_scope='mmpretrain', model={}, train_dataloader=dict(dataset=dict(pipeline=list(pipeline))), **top)
    )


READ = dict(type='mmcnx2.LoadImage')


def test_places_are_taken_in_the_order_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('b/2.png', 'b/deeper/1.png', 'a.png', 'c.jpg'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4)).save(name)
    Path('list.txt').write_text('a.png\nb/2.png\n')
    assert list(map(str, find_pictures(['c.jpg', 'b']))) == ['c.jpg', 'b/2.png', 'b/deeper/1.png']
    assert list(map(str, find_pictures(['b', 'c.jpg'], limit=1))) == ['b/2.png']
    assert list(map(str, find_pictures(['list.txt', '*.jpg']))) == ['a.png', 'b/2.png', 'c.jpg']
    with pytest.raises(FileNotFoundError, match='nowhere is neither a picture nor a folder'):
        find_pictures(['nowhere'])


def test_crop_size_is_that_of_the_last_transform_that_sets_one():
    assert crop_size(config(READ, dict(type='RandomResizedCrop', scale=96), dict(type='PackInputs'))) == (96, 96)
    assert crop_size(config(READ, dict(type='Resize', scale=(96, 64)))) == (64, 96)  # (width, height)
    training = dict(type='RandomResizedCrop', scale=(96, 64))  # (height, width)
    assert crop_size(config(READ, training)) == (96, 64)
    assert crop_size(config(dict(type='mmcnx2.LoadRandomResizedCrop', scale=(96, 64)))) == (96, 64)
    assert crop_size(config(READ, dict(scale=256), dict(type='CenterCrop', crop_size=(32, 64)))) == (32, 64)
    assert crop_size(config(READ), [48]) == (48, 48)
    assert crop_size(config(READ), [48, 64]) == (48, 64)
    with pytest.raises(ValueError, match='give --size'):
        crop_size(config(READ))
    with pytest.raises(ValueError, match='--size'):
        crop_size(config(READ), [1, 2, 3])


def test_the_pipeline_is_found_inside_wrappers():
    inner = dict(type='X', pipeline=[READ])
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type='RepeatDataset', times=2, dataset=inner))))
    assert training_pipeline(cfg) == [READ]
    assert training_pipeline(Config(dict(train_dataloader=None))) == []


def test_a_picture_of_the_right_size_keeps_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    rgb = PictureReader(config(dict(type='mmcnx2.LoadImage', channel_order='rgb')), (32, 48))(tmp_path / 'a.png')
    assert torch.equal(rgb, torch.from_numpy(pixels).permute(2, 0, 1).float())
    assert torch.equal(PictureReader(config(READ), (32, 48))(tmp_path / 'a.png'), rgb.flip(0))  # mmcv's order
    assert torch.equal(PictureReader(config(), (32, 48))(tmp_path / 'a.png'), rgb.flip(0))  # mmcv's own reader
    assert torch.equal(PictureReader(config(READ), (32, 32))(tmp_path / 'a.png'), rgb.flip(0)[:, :, 8:40])


def test_crop_share_leaves_a_margin(tmp_path):
    """A frame 8 px wide around 64 x 64: 7/8 of 64 is 56, so 4 px of it are cut off on each side."""
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[8:56, 8:56] = 0
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    cut = PictureReader(config(READ), (56, 56), crop_share=0.875)(tmp_path / 'a.png')
    assert torch.equal(cut, torch.from_numpy(pixels[4:60, 4:60]).permute(2, 0, 1).float())
    small = load_pictures(config(READ), [tmp_path / 'a.png'], (28, 28), crop_share=0.875)
    assert small.shape == (1, 3, 28, 28) and small[0, 0, 14, 14] == 0
    assert small.min() >= 0 and small.max() <= 255  # bicubic overshoots
    with pytest.raises(ValueError, match='crop_share=0'):
        PictureReader(config(READ), (28, 28), crop_share=0)


@pytest.mark.parametrize('reader', [READ, dict(type='LoadImageFromFile')])
def test_a_broken_file_is_named(tmp_path, reader):
    (tmp_path / 'broken.png').write_text('no picture')
    with pytest.raises(ValueError, match=r'broken\.png cannot be read as a picture'):
        PictureReader(config(reader), (8, 8))(tmp_path / 'broken.png')


@pytest.mark.parametrize(
    'preprocessor',
    [
        dict(type='mmpretrain.SelfSupDataPreprocessor', to_rgb=True),
        dict(type='mmpretrain.ClsDataPreprocessor', to_rgb=True, batch_augments=dict(augments=dict(type='Mixup'))),
        dict(type='mmdet.DetDataPreprocessor', bgr_to_rgb=True, pad_size_divisor=1),
        dict(type='mmseg.SegDataPreProcessor', bgr_to_rgb=True, size=(64, 64), test_cfg=dict(size_divisor=32)),
        dict(to_rgb=True),  # mmpretrain: the type may be left out, and it may stand beside the model
    ],
    ids=lambda one: one.get('type', 'no type').split('.')[-1],
)
def test_every_library_normalises_alike(preprocessor):
    preprocessor = dict(preprocessor, mean=MEAN, std=STD)
    if 'type' in preprocessor:
        cfg = Config(dict(default_scope=preprocessor['type'].split('.')[0], model=dict(data_preprocessor=preprocessor)))
    else:
        cfg = Config(dict(default_scope='mmpretrain', model={}, data_preprocessor=preprocessor))
    pictures = torch.rand(2, 3, 8, 8) * 255
    images = preprocessed(pictures, build_preprocessor(cfg))
    expected = (pictures.flip(1) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(images, expected)
    assert is_shown_in_rgb(cfg)


def test_which_models_see_rgb():
    def model(turned, order=None):
        reader = dict(READ, channel_order=order) if order else READ
        cfg = config(reader)
        cfg.model = dict(data_preprocessor=dict(type='X', to_rgb=turned))
        return is_shown_in_rgb(cfg)

    assert [model(True), model(False), model(False, 'rgb'), model(True, 'rgb')] == [True, False, True, False]
    assert torch.equal(preprocessed(torch.ones(1, 3, 2, 2), build_preprocessor(config(READ))), torch.ones(1, 3, 2, 2))
