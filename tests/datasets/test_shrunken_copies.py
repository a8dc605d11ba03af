"""Guards mmcnx2/datasets/shrunken_copies.py and tools/shrink_images.py: copies show the originals, all or none."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmcnx2.datasets import LoadImage, UnlabelledImages, shrunken_copies
from mmcnx2.datasets.load_image import read_image
from mmcnx2.datasets.shrunken_copies import shrink
from mmcnx2.engine.config_options import read_options

SETTINGS = dict(shorter_side=96, num_workers=1)


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def originals(tmp_path):
    """Large and small ones of several kinds, at two depths."""
    folder = tmp_path / 'originals'
    (folder / 'deeper').mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(300, 400).save(folder / 'large.jpg', quality=95)
    picture(800, 1000, 1).save(folder / 'deeper' / 'turned.JPG', exif=exif, quality=95)
    picture(90, 200, 2).save(folder / 'small.jpeg', quality=95)
    picture(200, 130, 3).save(folder / 'x.png')
    picture(64, 48, 4).save(folder / 'deeper' / 'small.png')
    picture(300, 400, 5).convert('CMYK').save(folder / 'cmyk.jpg', quality=95)
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / 'copies'


NAMES = {'cmyk.jpg', 'deeper/small.png.jpg', 'deeper/turned.JPG', 'large.jpg', 'small.jpeg', 'x.png.jpg'}


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != 'shrunken.json'
    }


def test_copies_show_the_originals_smaller_and_as_seen(originals, out):
    result = shrink(originals, out, **SETTINGS)
    assert contents(out).keys() == NAMES
    sizes = {name: Image.open(out / name).size for name in NAMES}
    assert sizes == {
        'cmyk.jpg': (128, 96), 'deeper/small.png.jpg': (48, 64), 'deeper/turned.JPG': (96, 120),
        'large.jpg': (128, 96), 'small.jpeg': (200, 90), 'x.png.jpg': (96, 148),
    }  # fmt: skip
    for name in NAMES:
        original = read_image(originals / name.removesuffix('.jpg') if '.png' in name else originals / name)
        expected = Image.fromarray(original).resize(sizes[name], Image.Resampling.BICUBIC)
        copy = Image.open(out / name)
        assert copy.mode == 'RGB' and 0x0112 not in copy.getexif()
        difference = np.abs(np.asarray(copy).astype(int) - np.asarray(expected))
        assert difference.mean() < 4, name  # JPEG, 4:2:0, of 255
    assert (result.num_shrunken, result.num_as_they_were, result.num_there, result.left_out) == (5, 1, 0, {})


def test_nothing_is_warned_of(originals, out, recwarn):
    torch.set_warn_always(True)  # otherwise torch warns once in a process
    try:
        shrink(originals, out, **SETTINGS)
    finally:
        torch.set_warn_always(False)
    assert not [str(warning.message) for warning in recwarn if 'writ' in str(warning.message)]


def test_what_is_small_enough_is_copied_byte_by_byte(originals, out):
    shrink(originals, out, **SETTINGS)
    assert (out / 'small.jpeg').read_bytes() == (originals / 'small.jpeg').read_bytes()


def test_settings_act(originals, tmp_path):
    sizes = {}
    for name, settings in dict(low=dict(quality=60), high=dict(quality=95), large=dict(shorter_side=200)).items():
        shrink(originals, tmp_path / name, **{**SETTINGS, **settings})
        sizes[name] = (tmp_path / name / 'large.jpg').stat().st_size
    assert sizes['low'] < 0.8 * sizes['high'] < sizes['large']
    assert Image.open(tmp_path / 'large' / 'large.jpg').size == (267, 200)


def test_several_processes_write_the_same_bytes(originals, out, tmp_path):
    for index in range(8):
        picture(200, 220, 10 + index).save(originals / f'{index}.jpg')
    results = [shrink(originals, folder, 96, num_workers=num) for folder, num in ((out, 1), (tmp_path / 'two', 2))]
    assert contents(out) == contents(tmp_path / 'two')
    assert results[0] == results[1] and results[0].num_shrunken == 13


# ---- again, interrupted, changed


def test_a_second_call_writes_nothing_and_a_changed_original_is_copied_again(originals, out):
    for path in originals.rglob('*.*'):
        os.utime(path, (1.2e9, 1.2e9))
    shrink(originals, out, **SETTINGS)
    inodes = {name: (out / name).stat().st_ino for name in NAMES}
    again = shrink(originals, out, **SETTINGS)
    assert (again.num_there, again.num_shrunken, again.num_as_they_were) == (6, 0, 0)
    assert {name: (out / name).stat().st_ino for name in NAMES} == inodes
    picture(300, 400, 77).save(originals / 'large.jpg')
    os.utime(originals / 'large.jpg', (1e9, 1e9))  # older than the copy: another picture all the same
    assert shrink(originals, out, **SETTINGS).num_shrunken == 1
    assert np.abs(read_image(out / 'large.jpg').mean() - read_image(originals / 'large.jpg').mean()) < 1


def test_an_interrupted_call_leaves_whole_files_and_is_not_trained_on(originals, out, monkeypatch):
    shrink_one, calls = shrunken_copies.small_picture, []

    def killed_at_the_third(path, shorter_side):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return shrink_one(path, shorter_side)

    monkeypatch.setattr(shrunken_copies, 'small_picture', killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        shrink(originals, out, **SETTINGS)
    (out / '.large.jpg.abc.partial').write_bytes(b'half a file')  # as a kill leaves it
    first = contents(out)
    with pytest.raises(ValueError, match=rf"'{out}'.*not all have been made.*shrink_images.py again"):
        UnlabelledImages(out)
    with pytest.raises(ValueError, match='not all have been made'):
        UnlabelledImages(out / 'deeper')
    monkeypatch.undo()
    assert shrink(originals, out, **SETTINGS).num_there == 2
    assert contents(out).keys() == NAMES
    assert all(contents(out)[name] == content for name, content in first.items() if 'partial' not in name)
    assert len(UnlabelledImages(out, pipeline=[LoadImage()])) == 6


def test_the_option_for_training_can_be_typed(originals, tmp_path, call):
    out = tmp_path / 'my copies, (small)'
    code, told, _ = call('shrink_images', originals, out, '--shorter-side', 96, '--workers', 1)
    words = shlex.split(told.splitlines()[-1].split('--cfg-options ')[1])
    assert code == 0 and read_options(words) == {'train_dataloader.dataset.source': str(out)}


def test_where_copies_come_from_is_written_down(originals, out):
    shrink(originals, out, **SETTINGS)
    mark = json.loads((out / 'shrunken.json').read_text())
    assert mark['source'] == str(originals) and mark['settings'] == dict(shorter_side=96, quality=95)
    assert mark['complete'] and mark['num_pictures'] == 6 and {'mmcnx2', 'pillow', 'torch'} <= mark['versions'].keys()


# ---- what cannot be read


def test_unreadable_files_are_left_out_and_named(originals, out):
    content = (originals / 'small.jpeg').read_bytes()
    (originals / 'small.jpeg').write_bytes(content[:-300])  # cut short: nothing may be copied byte by byte either
    (originals / 'text.jpg').write_text('<html>')
    with pytest.raises(ValueError, match=r"2 of 7 .*max_bad_share=0\.1.*small\.jpeg': damaged.*text\.jpg': not a pict"):
        shrink(originals, out, **SETTINGS)
    with pytest.raises(ValueError, match='not all have been made'):
        UnlabelledImages(out)
    result = shrink(originals, out, **SETTINGS, max_bad_share=0.5)
    assert [Path(path).name for path in result.left_out] == ['small.jpeg', 'text.jpg']
    assert contents(out).keys() == NAMES - {'small.jpeg'}
    assert json.loads((out / 'shrunken.json').read_text())['left_out'] == result.left_out


def test_names_that_are_not_utf8_keep_their_bytes(originals, out):
    good, bad = os.fsdecode(b'caf\xe9.png'), os.fsdecode(b'caf\xe9.jpg')
    picture(64, 48).save(originals / good)
    (originals / bad).write_text('<html>')
    result = shrink(originals, out, **SETTINGS, max_bad_share=0.5)
    assert [Path(path).name for path in result.left_out] == [bad]
    assert json.loads((out / 'shrunken.json').read_text())['left_out'] == result.left_out
    assert contents(out).keys() == NAMES | {f'{good}.jpg'}
    assert shrink(originals, out, **SETTINGS, max_bad_share=0.5).num_there == 7


def test_a_copy_of_what_has_become_unreadable_goes(originals, out):
    shrink(originals, out, **SETTINGS)
    (originals / 'large.jpg').write_text('no more')
    os.utime(originals / 'large.jpg', (1e9, 1e9))
    assert shrink(originals, out, **SETTINGS, max_bad_share=0.5).left_out.keys() == {str(originals / 'large.jpg')}
    assert contents(out).keys() == NAMES - {'large.jpg'}


# ---- folders that are not ours, settings


def test_other_files_other_settings_and_strangers_are_refused(originals, out):
    out.mkdir()
    (out / 'mine.txt').write_text('mine')
    with pytest.raises(ValueError, match='holds other files'):
        shrink(originals, out, **SETTINGS)
    assert os.listdir(out) == ['mine.txt']
    (out / 'mine.txt').unlink()
    shrink(originals, out, **SETTINGS)
    with pytest.raises(ValueError, match=r"'shorter_side': 96.*'shorter_side': 64"):
        shrink(originals, out, 64)
    picture(64, 64).save(out / 'stranger.png')
    with pytest.raises(ValueError, match=r'1 pictures that are no copies.*stranger\.png'):
        shrink(originals, out, **SETTINGS)
    with pytest.raises(ValueError, match='not all have been made'):
        UnlabelledImages(out)
    for inside in (originals, originals / 'copies'):
        with pytest.raises(ValueError, match='in the folder of the originals'):
            shrink(originals, inside, **SETTINGS)
    (originals / 'f').write_text('')
    with pytest.raises(ValueError, match='is a file'):
        shrink(originals, out / 'large.jpg', **SETTINGS)


def test_two_originals_never_share_a_copy(originals, out):
    picture(64, 64).save(originals / 'x.png.jpg')
    with pytest.raises(ValueError, match=r"x\.png' and .*x\.png\.jpg' would have the same copy"):
        shrink(originals, out, **SETTINGS)
    assert not out.exists()


def test_lists_and_globs(originals, out, tmp_path):
    (tmp_path / 'list.txt').write_text('originals/large.jpg\noriginals/deeper/turned.JPG\n')
    shrink(tmp_path / 'list.txt', out, **SETTINGS)
    assert contents(out).keys() == {'large.jpg', 'deeper/turned.JPG'}
    shrink(originals / '*.png', tmp_path / 'globbed', **SETTINGS)
    assert contents(tmp_path / 'globbed').keys() == {'x.png.jpg'}


@pytest.mark.parametrize(
    'settings', [dict(shorter_side=8), dict(quality=101), dict(max_bad_share=1.5), dict(num_workers=0)]
)
def test_settings_out_of_range_are_named(originals, out, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        shrink(originals, out, **settings)


def test_the_tool_says_what_it_did_and_how_to_go_on(originals, out, call):
    code, said, _ = call('shrink_images', originals, out, '--shorter-side', 96, '--quality', 90, '--workers', 1)
    assert code == 0 and '5 pictures shrunken, 1 copied as they were, 0 there before' in said
    assert f'train_dataloader.dataset.source={out}' in said
    assert json.loads((out / 'shrunken.json').read_text())['settings'] == dict(shorter_side=96, quality=90)
    (originals / 'text.jpg').write_text('<html>')
    code, said, _ = call('shrink_images', originals, out, '--shorter-side', 96, '--quality', 90, '--max-bad-share', 0.5)
    assert '6 there before' in said and '1 could not be read; ' in said
