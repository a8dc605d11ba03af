"""Guards mmcnx2/datasets/subsets.py: shares are reproducible and nested, and the libraries train on just these."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS
from PIL import Image

from mmcnx2.datasets.subsets import choose, num_chosen, subset_options

NUM = 40


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Forty pictures in each format; COCO has ten more without annotations and one that is too small."""
    root = tmp_path_factory.mktemp('data')
    image = Image.fromarray(np.zeros((40, 40, 3), np.uint8))
    for index in range(NUM):
        for name in (
            f'coco/train/{index:03}.jpg',
            f'ade/images/training/{index % 3}/{index:03}.jpg',
            f'ade/annotations/training/{index % 3}/{index:03}.png',
            f'classes/train/n{index % 4:02}/{index:03} b.JPEG',
        ):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.convert('L' if name.endswith('png') else 'RGB').save(path)
    images = [dict(id=index + 1, file_name=f'{index:03}.jpg', width=40, height=40) for index in range(NUM + 10)]
    images.append(dict(id=99, file_name='small.jpg', width=40, height=31))
    annotations = [
        dict(id=index, image_id=index // 2 + 1, category_id=7, bbox=[1, 1, 9, 9], area=81, iscrowd=0,
             segmentation=[[1, 1, 9, 1, 9, 9]])
        for index in range(2 * NUM)
    ]  # fmt: skip
    annotations.append({**annotations[0], 'id': 999, 'image_id': 99})
    coco = dict(info=dict(year=1), images=images, annotations=annotations, categories=[dict(id=7, name='thing')])
    (root / 'coco/annotations.json').write_text(json.dumps(coco))
    return root


@pytest.fixture
def sets(root):
    return dict(
        coco=dict(
            type='CocoDataset', data_root=f'{root}/coco/', ann_file='annotations.json', data_prefix=dict(img='train/'),
            metainfo=dict(classes=('thing',)), filter_cfg=dict(filter_empty_gt=True, min_size=32), pipeline=[]),
        label_maps=dict(
            type='BaseSegDataset', data_root=f'{root}/ade', metainfo=dict(classes=('a', 'b')),
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'), pipeline=[]),
        class_folders=dict(
            type='CustomDataset', data_root=f'{root}/classes', data_prefix='train', pipeline=[]),
        unlabelled=dict(type='mmcnx2.UnlabelledImages', source='train', data_root=f'{root}/classes', pipeline=[]),
    )  # fmt: skip


KINDS = ('coco', 'label_maps', 'class_folders', 'unlabelled')
SCOPES = dict(coco='mmdet.', label_maps='mmseg.', class_folders='mmpretrain.', unlabelled='')


def pictures(dataset: dict, kind: str) -> list[tuple]:
    """What a library's own dataset would train on: picture and label."""
    built = DATASETS.build({**dataset, 'type': SCOPES[kind] + dataset['type']})
    infos = [built.get_data_info(index) for index in range(len(built))]
    keys = ('img_path', 'seg_map_path', 'gt_label', 'img_id')
    return [tuple(os.path.realpath(v) if isinstance(v, str) else v for v in map(info.get, keys)) for info in infos]


@pytest.mark.parametrize('kind', KINDS)
def test_the_library_trains_on_the_share_alone(sets, kind, tmp_path):
    whole = pictures(sets[kind], kind)
    assert len(whole) == NUM
    changed = subset_options(sets[kind], 0.3, 0, tmp_path / 'new')
    share = pictures({**sets[kind], **changed}, kind)
    assert len(share) == 12 and set(share) < set(whole)
    assert share == [one for one in whole if one in share], 'in another order'
    (path,) = changed.values()
    assert Path(path).is_absolute() and Path(path).parent == tmp_path / 'new' and os.listdir(tmp_path / 'new')
    assert 'fraction-0.3_seed-0' in path


@pytest.mark.parametrize('kind', KINDS)
def test_shares_are_reproducible_nested_and_follow_the_seed(sets, kind, tmp_path):
    def share(fraction, seed, folder):
        changed = subset_options(ConfigDict(sets[kind]), fraction, seed, tmp_path / folder)
        return Path(*changed.values()).read_bytes(), set(pictures({**sets[kind], **changed}, kind))

    small, large = share(0.1, 0, 'a'), share(0.5, 0, 'a')
    assert small[1] < large[1]
    assert share(0.1, 0, 'b') == small
    assert share(0.1, 1, 'a')[1] != small[1]
    assert len(os.listdir(tmp_path / 'a')) == 3, 'one file took the place of another'


def test_a_share_does_not_depend_on_where_the_data_lie(sets, root, tmp_path):
    moved = tmp_path / 'elsewhere'
    moved.symlink_to(root / 'classes')
    here = subset_options(sets['unlabelled'], 0.2, 0, tmp_path / 'a')
    there = subset_options({**sets['unlabelled'], 'data_root': str(moved)}, 0.2, 0, tmp_path / 'b')
    names = [[os.path.basename(line) for line in Path(one['source']).read_text().splitlines()] for one in (here, there)]
    assert names[0] == names[1] and len(names[0]) == 8


def test_coco_keeps_everything_of_its_images(sets, tmp_path):
    coco = json.loads(Path(subset_options(sets['coco'], 0.25, 0, tmp_path)['ann_file']).read_text())
    ids = {image['id'] for image in coco['images']}
    assert len(ids) == 10 and 99 not in ids
    assert sorted(annotation['image_id'] for annotation in coco['annotations']) == sorted([*ids, *ids])
    assert coco['info'] == dict(year=1) and coco['categories'] == [dict(id=7, name='thing')]


def test_coco_without_a_filter_counts_every_image(sets, tmp_path):
    without = {**sets['coco'], 'filter_cfg': None}
    coco = json.loads(Path(subset_options(without, 0.99, 0, tmp_path)['ann_file']).read_text())
    assert len(coco['images']) == 50
    filters = dict(filter_empty_gt=True, min_size=1000)
    with pytest.raises(ValueError, match=r"annotations.json': filter_cfg=.*1000.* leaves out every image"):
        subset_options({**sets['coco'], 'filter_cfg': filters}, 0.5, 0, tmp_path)


def test_every_class_keeps_its_share_and_at_least_one(sets, tmp_path):
    def per_class(fraction):
        changed = subset_options(sets['class_folders'], fraction, 0, tmp_path)
        labels = [label for _, _, label, _ in pictures({**sets['class_folders'], **changed}, 'class_folders')]
        return [labels.count(label) for label in range(4)]

    assert per_class(0.3) == [3, 3, 3, 3]
    assert per_class(1e-6) == [1, 1, 1, 1]


def test_class_folders_without_labels_are_one_heap(sets, tmp_path):
    heap = {**sets['class_folders'], 'with_label': False}
    share = pictures({**heap, **subset_options(heap, 0.1, 0, tmp_path)}, 'class_folders')
    assert len(share) == 4 and {label for _, _, label, _ in share} == {None}


@pytest.mark.parametrize('kind', ['coco', 'label_maps', 'unlabelled'])
def test_at_least_one_picture_stays(sets, kind, tmp_path):
    assert len(pictures({**sets[kind], **subset_options(sets[kind], 1e-9, 0, tmp_path)}, kind)) == 1


@pytest.mark.parametrize('kind', KINDS)
def test_all_of_it_is_the_set_itself(sets, kind, tmp_path):
    assert subset_options(sets[kind], 1, 0, tmp_path) == {} and not os.listdir(tmp_path)


def test_a_list_is_taken_as_the_whole(sets, root, tmp_path):
    some = tmp_path / 'some.txt'
    some.write_text('\n'.join(f'{index % 3}/{index:03}' for index in range(10)))
    listed = {**sets['label_maps'], 'ann_file': str(some)}
    share = pictures({**listed, **subset_options(listed, 0.5, 0, tmp_path)}, 'label_maps')
    assert len(share) == 5 and set(share) < set(pictures(listed, 'label_maps'))


def test_numbers_are_rounded_to_the_nearest():
    assert [num_chosen(num, 0.1) for num in (1, 4, 5, 14, 15, 25)] == [1, 1, 1, 1, 2, 3]
    assert num_chosen(3, 1) == 3
    # Written down once: whoever changes the ranks changes everybody's subsets.
    assert sorted(choose(map(str, range(20)), 0.25, 0)) == ['0', '1', '17', '19', '4']


@pytest.mark.parametrize('fraction', [0, -0.1, 1.1, '0.1', True, None, float('nan')])
def test_impossible_fraction(sets, fraction, tmp_path):
    with pytest.raises(ValueError, match=r'fraction=.* above 0 and up to 1'):
        subset_options(sets['coco'], fraction, 0, tmp_path)


@pytest.mark.parametrize('seed', [-1, 0.5, '1', True])
def test_impossible_seed(sets, seed, tmp_path):
    with pytest.raises(ValueError, match=r'seed=.* whole number'):
        subset_options(sets['coco'], 0.5, seed, tmp_path)


def test_dataset_that_has_no_share(sets, tmp_path):
    for dataset, error, words in (
        (dict(type='RepeatDataset'), TypeError, 'no share can be taken.*RepeatDataset.*Possible are'),
        (dict(type='mmdet.LVISDatasett'), ValueError, 'no dataset is called'),
        (dict(type='CIFAR10'), TypeError, 'no share can be taken.*CIFAR10'),
        (dict(), TypeError, 'needs a `type`'),
        (dict(type='CityscapesDataset'), ValueError, "write 'mmdet.CityscapesDataset' or 'mmseg.CityscapesDataset'"),
        (dict(type='CocoDataset'), ValueError, '`ann_file`'),
        ({**sets['coco'], 'indices': 10}, ValueError, 'indices=10'),
    ):
        with pytest.raises(error, match=words):
            subset_options(dataset, 0.5, 0, tmp_path)


def test_type_given_as_a_class(sets, tmp_path):
    from mmseg.datasets import BaseSegDataset

    assert subset_options({**sets['label_maps'], 'type': BaseSegDataset}, 0.5, 0, tmp_path)


def test_missing_files_are_named(sets, tmp_path):
    empty = tmp_path / 'empty'
    (empty / 'images/training').mkdir(parents=True)
    for dataset, error, words in (
        ({**sets['coco'], 'ann_file': 'none.json'}, FileNotFoundError, 'none.json'),
        ({**sets['label_maps'], 'data_root': str(empty)}, ValueError, 'cannot be read, or is empty'),
        ({**sets['label_maps'], 'data_root': str(tmp_path / 'gone')}, FileNotFoundError, 'gone'),
        ({**sets['class_folders'], 'type': 'ImageNet'}, ValueError, r'number of subfolders \(4\)'),
        ({**sets['unlabelled'], 'source': 'gone'}, FileNotFoundError, 'gone'),
    ):
        with pytest.raises(error, match=words):
            subset_options(dataset, 0.5, 0, tmp_path)


def test_file_names_that_a_list_cannot_hold(tmp_path):
    (tmp_path / 'a\nb.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match='line break'):
        subset_options(dict(type='mmcnx2.UnlabelledImages', source=str(tmp_path)), 0.5, 0, tmp_path)
