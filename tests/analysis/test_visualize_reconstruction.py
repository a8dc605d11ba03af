"""tools/visualize_reconstruction.py on a tiny model: what it writes, what its options do, how it refuses."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools'))

import visualize_reconstruction as tool

from mmcnx2.registry import MODELS

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='mmcnx2.FCMAE',
    backbone=dict(type='mmcnx2.ConvNeXtV2', arch=dict(depths=[1, 1, 1, 1], channels=[4, 8, 8, 16])),
    neck=dict(decoder_channels=16), mask_ratio=0.5,
    data_preprocessor=dict(type='mmpretrain.SelfSupDataPreprocessor', mean=[123.675, 116.28, 103.53],
                           std=[58.395, 57.12, 57.375], to_rgb=True))
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='mmcnx2.LoadImage'), dict(type='RandomResizedCrop', scale=(64, 96)), dict(type='PackInputs')]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A config (pictures of 96 x 64 px, width first), a checkpoint and three pictures, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(CONFIG)
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile('config.py').model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, 'checkpoint.pth')
    Path('pictures/deeper').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ('a.png', 'b.png', 'deeper/c.png'):
        Image.fromarray(rng.integers(0, 256, (64, 96, 3), np.uint8)).save(Path('pictures') / name)
    return tmp_path


def tiles(pattern):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(Path('tiles').glob(pattern))}


def test_visible_cells_are_the_inputs_own_pixels(folder, capsys):
    tool.main(['config.py', 'checkpoint.pth', 'pictures', '--out', 'new/sheet.png', '--single-files', 'tiles'])
    assert Image.open('new/sheet.png').size[0] > 500
    assert '3 pictures -> new/sheet.png' in capsys.readouterr().out
    assert len(tiles('*')) == 3 * 4  # input, masked, filled twice
    for index, name in enumerate(('a', 'b', 'c')):
        row = {
            part: tiles(f'{index:03d}_{name}_{part}.png').popitem()[1]
            for part in ('input', 'masked', 'filled-own', 'filled-near')
        }
        source = np.asarray(Image.open(next(Path('pictures').rglob(f'{name}.png'))))
        assert np.array_equal(row['input'], source)  # red stays red
        cells = [(slice(y, y + 32), slice(x, x + 32)) for y in (0, 32) for x in (0, 32, 64)]
        hidden = [cell for cell in cells if (row['masked'][cell] == 128).all()]
        assert len(hidden) == 3
        for cell in cells:
            is_hidden = cell in hidden
            for part in ('filled-own', 'filled-near'):
                assert np.array_equal(row[part][cell], source[cell]) != is_hidden


def test_options_act(folder):
    base = ['config.py', 'checkpoint.pth', 'pictures', '--single-files', 'tiles', '--num', '1']

    def masked(*options):
        for path in Path('tiles').glob('*'):
            path.unlink()
        tool.main([*base, *options])
        return tiles('*')

    first = masked()
    assert first.keys() == {'000_a_input.png', '000_a_masked.png', '000_a_filled-own.png', '000_a_filled-near.png'}
    again, other_seed = masked(), masked('--seed', '3')
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first['000_a_masked.png'], other_seed['000_a_masked.png'])
    ratios = masked('--mask-ratio', '0.2', '0.8', '--fill', 'nearest')
    assert ratios.keys() == {
        '000_a_input.png',
        '000_a_masked-0.2.png',
        '000_a_filled-near-0.2.png',
        '000_a_masked-0.8.png',
        '000_a_filled-near-0.8.png',
    }
    assert (ratios['000_a_masked-0.2.png'] == 128).sum() < (ratios['000_a_masked-0.8.png'] == 128).sum()
    assert masked('--size', '32', '128')['000_a_input.png'].shape == (32, 128, 3)


def test_a_loader_of_crops_shows_whole_pictures(folder):
    shown = []
    for steps in (
        "dict(type='mmcnx2.LoadImage'), dict(type='RandomResizedCrop', scale=(64, 96))",
        "dict(type='mmcnx2.LoadRandomResizedCrop', scale=(64, 96))",
    ):
        Path('config.py').write_text(
            CONFIG.replace("dict(type='mmcnx2.LoadImage'), dict(type='RandomResizedCrop', scale=(64, 96))", steps)
        )
        assert steps in Path('config.py').read_text()
        tool.main(['config.py', 'checkpoint.pth', 'pictures', '--single-files', 'tiles'])
        shown.append(tiles('*'))
    assert all(np.array_equal(shown[0][name], shown[1][name]) for name in shown[0])


def test_without_norm_pix_there_is_one_way_to_fill(folder):
    Path('config.py').write_text(CONFIG.replace('mask_ratio=0.5,', 'mask_ratio=0.5, head=dict(norm_pix=False),'))
    tool.main(['config.py', 'checkpoint.pth', 'pictures/a.png', '--single-files', 'tiles'])
    assert len(tiles('*')) == 3


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(images='nowhere'), 'nowhere is neither a picture nor a folder'),
        (dict(images='empty'), "'empty' holds no picture"),
        (dict(images='text.png'), 'text.png cannot be read as a picture'),
        (dict(options=['--size', '50']), '50 x 50 px do not divide into cells of 32 px'),
        (dict(options=['--mask-ratio', '1']), 'mask_ratio=1'),
        (dict(options=['--num', '0']), '--num 0'),
        (dict(config=CONFIG.replace('[4, 8, 8, 16]', '[8, 8, 8, 16]')), 'checkpoint.pth: checkpoint of another'),
        (dict(config="model = dict(type='mmcnx2.ConvNeXtV2', arch='atto')"), 'ConvNeXtV2, which reconstructs nothing'),
        (dict(checkpoint='text.png'), 'text.png'),
    ],
)
def test_mistakes_are_one_line(folder, capsys, change, words):
    Path('empty').mkdir()
    Path('text.png').write_text('no picture')
    Path('config.py').write_text(change.get('config', CONFIG))
    with pytest.raises(SystemExit) as stopped:
        tool.main(
            [
                'config.py',
                change.get('checkpoint', 'checkpoint.pth'),
                change.get('images', 'pictures'),
                *change.get('options', []),
            ]
        )
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 1 and lines[-1].startswith('error: ') and words in lines[-1], lines
    assert 'Traceback' not in '\n'.join(lines) and not Path('reconstruction.png').exists()
