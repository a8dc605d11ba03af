"""Guards mmcnx2/datasets/ade20k_files.py: a small full release becomes the right label maps, lacks are named."""

import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from mmcnx2.datasets import ade20k_files
from mmcnx2.datasets.ade20k_files import check_ade20k, classes_of_objects, convert_full_release, label_map

WALL, SKY, DOOR, DOUBLE_DOOR, CRT, PROJECTION, POT, FLOWERPOT = 2978, 2420, 774, 783, 3109, 2254, 1974, 1981
NAMES = {
    WALL: 'wall',
    SKY: 'sky',
    DOOR: 'door',
    DOUBLE_DOOR: 'double door',
    CRT: 'screen, CRT screen',
    PROJECTION: 'screen, silver screen, projection screen',
    POT: 'pot',
    FLOWERPOT: 'pot, flowerpot',
    1910: 'plant, flora, plant life',
}
CLASSES = {WALL: 1, SKY: 3, DOOR: 15, DOUBLE_DOOR: 15, CRT: 142, PROJECTION: 131, POT: 0, FLOWERPOT: 126, 1910: 18}


def write_picture(folder, name, numbers_HW, names=NAMES, size=None):
    """A picture of the release: numbers of objects in its label image, their names in its JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers_HW = np.asarray(numbers_HW)
    seg = np.stack([numbers_HW // 256 * 10, numbers_HW % 256, np.arange(numbers_HW.size).reshape(numbers_HW.shape)], -1)
    Image.fromarray(seg.astype(np.uint8)).save(folder / f'{name}_seg.png')
    height, width = size or numbers_HW.shape
    Image.fromarray(np.full((height, width, 3), 99, np.uint8)).save(folder / f'{name}.jpg', quality=90)
    if names is not None:
        present = [number for number in np.unique(numbers_HW).tolist() if number in names]
        objects = [dict(id=i, name=names[number], name_ndx=number) for i, number in enumerate(present)]
        content = json.dumps(dict(annotation=dict(filename=f'{name}.jpg', object=objects)))
        (folder / f'{name}.json').write_text(content)


@pytest.fixture
def release(tmp_path):
    root = tmp_path / 'ADE20K_2021_17_01'
    train = root / 'images' / 'ADE' / 'training'
    write_picture(train / 'urban' / 'street', 'ADE_train_00000001', [[WALL, SKY, DOOR], [DOUBLE_DOOR, CRT, 0]])
    write_picture(train / 'work_place' / 'x', 'ADE_train_00000002', [[PROJECTION, POT, FLOWERPOT], [1910, 0, 0]])
    write_picture(train / 'outliers', 'ADE_frame_00000007', [[WALL, WALL]])
    write_picture(root / 'images' / 'ADE' / 'validation' / 'y', 'ADE_val_00000001', [[SKY, WALL]])
    (root / 'index_ade20k.pkl').write_bytes(pickle.dumps('never read'))
    # parts and instances lie beside them
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(train / 'urban/street/ADE_train_00000001_parts_1.png')
    return root


def labels(out, name, split='training'):
    return np.asarray(Image.open(out / 'annotations' / split / f'{name}.png')).tolist()


def test_objects_become_classes(release, tmp_path):
    out = tmp_path / 'out'
    result = convert_full_release(release, out, num_workers=1)
    assert labels(out, 'ADE_train_00000001') == [[1, 3, 15], [15, 142, 0]]
    assert labels(out, 'ADE_train_00000002') == [[131, 0, 126], [18, 0, 0]]
    assert labels(out, 'ADE_val_00000001', 'validation') == [[3, 1]]
    source = release / 'images/ADE/training/urban/street/ADE_train_00000001.jpg'
    assert (out / 'images/training/ADE_train_00000001.jpg').read_bytes() == source.read_bytes()
    assert sorted(os.listdir(out)) == ['annotations', 'from_full_release.json', 'images']
    assert result.num_images == dict(training=3, validation=1) and result.num_there == 0 and result.num_beyond == 1
    assert result.without_names == [] and result.images_of_class[1] == 3 and result.images_of_class[15] == 1
    assert len(result.absent_classes) == 150 - 7 and 'building, edifice' in result.absent_classes
    assert 'wall' not in result.absent_classes


def test_several_processes_and_going_on(release, tmp_path):
    train = release / 'images' / 'ADE' / 'training'
    for number in range(10, 30):
        write_picture(train, f'ADE_train_{number:08}', [[WALL, SKY]])
    out, one = tmp_path / 'out', tmp_path / 'one'
    seen = []
    convert_full_release(release, out, num_workers=2, progress=lambda steps, total: seen.append(total) or steps)
    convert_full_release(release, one, num_workers=1)
    assert seen == [24]
    names = sorted(path.relative_to(out) for path in out.rglob('*') if path.is_file())
    assert len(names) == 49 and all((out / name).read_bytes() == (one / name).read_bytes() for name in names)
    (out / 'annotations/training/ADE_train_00000010.png').unlink()
    result = convert_full_release(release, out, num_workers=1)
    assert result.num_there == 23 and labels(out, 'ADE_train_00000010') == [[1, 3]]


def test_pictures_of_the_challenge_only(release, tmp_path):
    result = convert_full_release(release, tmp_path / 'out', challenge_only=True)
    assert result.num_images == dict(training=2, validation=1) and result.num_beyond == 1
    assert sorted(os.listdir(tmp_path / 'out/images/training')) == ['ADE_train_00000001.jpg', 'ADE_train_00000002.jpg']


@pytest.mark.parametrize(
    ('shape', 'short_side', 'expected'),
    [((20, 31), 10, (10, 16)), ((31, 20), 10, (16, 10)), ((20, 31), 0, (20, 31)), ((9, 40), 10, (9, 40)),
     ((20, 20), 10, (20, 20))],
)  # fmt: skip
def test_large_pictures_are_reduced_as_in_the_challenge(release, tmp_path, shape, short_side, expected):
    numbers = np.full(shape, WALL)
    numbers[:, : shape[1] // 2] = SKY
    write_picture(release / 'images/ADE/training', 'ADE_train_00000009', numbers)
    convert_full_release(release, tmp_path / 'out', short_side)
    label = np.array(labels(tmp_path / 'out', 'ADE_train_00000009'))
    image = Image.open(tmp_path / 'out/images/training/ADE_train_00000009.jpg')
    assert label.shape == expected == image.size[::-1] and set(label.ravel().tolist()) == {1, 3}


def test_numbers_serve_where_names_are_missing(release, tmp_path):
    folder = release / 'images/ADE/training'
    write_picture(folder, 'ADE_train_00000003', [[WALL, 246, 5]], names=None)
    write_picture(folder, 'ADE_train_00000004', [[WALL, SKY, 1]])
    (folder / 'ADE_train_00000004.json').write_bytes(b'{"annotation": {cut')
    result = convert_full_release(release, tmp_path / 'out')
    assert labels(tmp_path / 'out', 'ADE_train_00000003') == [[1, 89, 0]]
    assert labels(tmp_path / 'out', 'ADE_train_00000004') == [[1, 3, 0]]
    assert [os.path.basename(path) for path in result.without_names] == [
        'ADE_train_00000003_seg.png',
        'ADE_train_00000004_seg.png',
    ]


def test_json_that_is_not_utf8_is_read(release, tmp_path):
    folder = release / 'images/ADE/training'
    write_picture(folder, 'ADE_train_00000003', [[5]], names={5: 'sky'})
    path = folder / 'ADE_train_00000003.json'
    path.write_bytes(
        path.read_bytes().replace(b'"filename"', b'"caf\xe9\t", "filename"').replace(b'"caf', b'"x": "caf')
    )
    convert_full_release(release, tmp_path / 'out')
    assert labels(tmp_path / 'out', 'ADE_train_00000003') == [[3]]


def test_a_release_that_numbers_otherwise_goes_by_names(release, tmp_path):
    """2978 is 'sky' here: then a number without a name says nothing either."""
    folder = release / 'images/ADE/training'
    write_picture(folder, 'ADE_train_00000003', [[WALL, 7, 312]], names={WALL: 'sky', 7: 'wall'})
    table, has_names = classes_of_objects(folder / 'ADE_train_00000003_seg.png')
    assert has_names and (table[WALL], table[7], table[312]) == (3, 1, 0)
    write_picture(folder, 'ADE_train_00000004', [[WALL, 7, 312]], names={WALL: 'wall', 7: 'thing'})
    table, _ = classes_of_objects(folder / 'ADE_train_00000004_seg.png')
    assert (table[WALL], table[7], table[312]) == (1, 0, 2)


def test_every_number_of_the_coding():
    numbers = np.arange(3200).reshape(1, -1)
    seg = np.stack([numbers // 256 * 10, numbers % 256, numbers * 0], -1).astype(np.uint8)
    table = {number: number % 151 for number in range(3200)}
    assert (label_map(seg, table) == numbers % 151).all()


def test_mistakes_are_explained(release, tmp_path):
    out = tmp_path / 'out'
    with pytest.raises(ValueError, match=r"no folder '.*gone'"):
        convert_full_release(tmp_path / 'gone', out)
    with pytest.raises(ValueError, match='short_side=-1'):
        convert_full_release(release, out, short_side=-1)
    empty = tmp_path / 'empty'
    empty.mkdir()
    with pytest.raises(ValueError, match=r"holds no \*_seg.png below a folder 'training'"):
        convert_full_release(empty, out)
    (release / 'images/ADE/training/outliers/ADE_frame_00000007.jpg').unlink()
    with pytest.raises(ValueError, match=r'1 \*_seg.png have no picture beside them \(ADE_frame_00000007_seg.png\)'):
        convert_full_release(release, out)
    assert not out.exists()


def test_other_pictures_are_not_mixed(release, tmp_path):
    out = tmp_path / 'out'
    (out / 'images' / 'training').mkdir(parents=True)
    with pytest.raises(ValueError, match='holds pictures that are not of a conversion'):
        convert_full_release(release, out)
    convert_full_release(release, tmp_path / 'new')
    with pytest.raises(ValueError, match=r"was converted with \{'short_side': 512\}, not \{'short_side': 0\}"):
        convert_full_release(release, tmp_path / 'new', short_side=0)


def test_broken_files_of_a_release_are_named(release, tmp_path):
    folder = release / 'images/ADE/training'
    write_picture(folder, 'ADE_train_00000003', [[WALL, SKY]], size=(5, 5))
    with pytest.raises(ValueError, match=r"ADE_train_00000003_seg.png' has \(2, 1\) pixels, its picture \(5, 5\)"):
        convert_full_release(release, tmp_path / 'a')
    (folder / 'ADE_train_00000003_seg.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match=r"ADE_train_00000003_seg.png' or its picture cannot be read"):
        convert_full_release(release, tmp_path / 'b')


# ---- checks


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A complete copy of a challenge of 6 and 4 pictures."""
    monkeypatch.setattr(ade20k_files, 'NUM_PUBLISHED', dict(training=(6, 'ADE_train'), validation=(4, 'ADE_val')))
    root = tmp_path / 'ade'
    for split, (num, prefix) in ade20k_files.NUM_PUBLISHED.items():
        for kind, mode, suffix in (('images', 'RGB', 'jpg'), ('annotations', 'L', 'png')):
            (root / kind / split).mkdir(parents=True)
            for number in range(1, num + 1):
                image = Image.new(mode, (8, 6), 150 if mode == 'L' else (1, 2, 3))
                image.save(root / kind / split / f'{prefix}_{number:08}.{suffix}')
    return root


def test_complete_copy(copy):
    found = check_ade20k(copy)
    assert found.problems == [] and not found.archives
    assert 'is complete: training 6 pairs, validation 4 pairs; 48 pairs per split looked at' in found.summary


def test_missing_files_are_counted_and_named(copy):
    for number in (1, 3, 4, 5):
        (copy / f'images/training/ADE_train_{number:08}.jpg').unlink()
    (copy / 'annotations/validation/ADE_val_00000002.png').unlink()
    found = check_ade20k(copy)
    assert len(found.problems) == 2 and found.archives == {'ADEChallengeData2016.zip'}
    assert (
        "images/training': 4 of 6 files are missing (ADE_train_00000001.jpg, ADE_train_00000003.jpg, "
        in (found.problems[0])
    )
    assert '_00000004.jpg ...): unpack ADEChallengeData2016.zip, or run `prepare_data.py ade20k' in found.problems[0]
    assert "annotations/validation': 1 of 4 files are missing (ADE_val_00000002.png)" in found.problems[1]


def test_missing_folders(tmp_path):
    found = check_ade20k(tmp_path)
    assert [problem.split(' is missing')[0].split('/')[-2:] for problem in found.problems] == [
        ['images', "training' with 20,210 images"],
        ['annotations', "training' with 20,210 annotations"],
        ['images', "validation' with 2,000 images"],
        ['annotations', "validation' with 2,000 annotations"],
    ]


def test_spot_checks_look_into_pairs(copy):
    Image.new('L', (8, 6), 151).save(copy / 'annotations/training/ADE_train_00000006.png')
    assert any('151' in problem and 'ADE_train_00000006' in problem for problem in check_ade20k(copy).problems)
    assert check_ade20k(copy, num_spot_checks=0).complete
    Image.new('L', (8, 7), 150).save(copy / 'annotations/validation/ADE_val_00000001.png')
    assert any('ADE_val_00000001' in problem for problem in check_ade20k(copy).problems)


def test_pictures_beyond_the_challenge_are_no_mistake(copy):
    for kind, suffix in (('images', 'jpg'), ('annotations', 'png')):
        source = copy / kind / 'training' / f'ADE_train_00000001.{suffix}'
        (copy / kind / 'training' / f'ADE_frame_00000001.{suffix}').write_bytes(source.read_bytes())
    found = check_ade20k(copy)
    assert found.complete and 'and 1 beyond the challenge' in found.summary


def test_share_is_of_the_training_set_of_our_configs(copy):
    from mmengine.config import Config

    dataset = Config.fromfile('configs/_base_/datasets/ade20k_512.py').train_dataloader.dataset
    ours = ade20k_files.training_set(dataset.data_root)
    assert {key: dataset[key] for key in ours} == ours and set(dataset) - set(ours) == {'pipeline'}
