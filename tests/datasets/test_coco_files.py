"""Guards mmcnx2/datasets/coco_files.py: what a copy of COCO lacks is named, with the archive that holds it."""

import json

import pytest
from mmengine.config import Config
from PIL import Image

from mmcnx2.datasets import coco_files
from mmcnx2.datasets.coco_files import check_coco

NUM = dict(train=(5, 10), val=(3, 6))


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A complete copy of a COCO with 5 and 3 images."""
    monkeypatch.setattr(coco_files, 'NUM_PUBLISHED', NUM)
    root = tmp_path / 'coco'
    (root / 'annotations').mkdir(parents=True)
    for split, (num_images, num_annotations) in NUM.items():
        (root / f'{split}2017').mkdir()
        images = [dict(id=i + 1, file_name=f'{i:012}.jpg', width=20, height=10) for i in range(num_images)]
        for image in images:
            Image.new('RGB', (20, 10)).save(root / f'{split}2017' / image['file_name'])
        annotations = [
            dict(id=i + 1, image_id=i // 2 + 1, category_id=1, bbox=[1, 1, 5, 5], area=25, iscrowd=0,
                 segmentation=[[1, 1, 6, 1, 6, 6]])
            for i in range(num_annotations)
        ]  # fmt: skip
        coco = dict(images=images, annotations=annotations, categories=[dict(id=1, name='person')])
        (root / 'annotations' / f'instances_{split}2017.json').write_text(json.dumps(coco))
    return root


def change(path, **changes):
    coco = json.loads(path.read_text())
    for key, value in changes.items():
        coco[key] = value(coco[key])
    path.write_text(json.dumps(coco))


def test_published_numbers():
    assert dict(train=(118_287, 860_001), val=(5_000, 36_781)) == coco_files.NUM_PUBLISHED
    assert [archive.name for archive in coco_files.ARCHIVES] == [
        'annotations_trainval2017.zip', 'val2017.zip', 'train2017.zip']  # fmt: skip


def test_complete_copy(copy):
    found = check_coco(copy)
    assert found.problems == [] and not found.archives
    assert found.summary == (
        f'COCO 2017 in {copy} is complete: train 5 images, val 3 images; annotations and 48 images per split looked at'
    )
    assert check_coco(copy, 0).summary.endswith('no spot checks')


def test_nothing_there(tmp_path):
    found = check_coco(tmp_path)
    assert len(found.problems) == 4 and len(found.archives) == 3
    assert f"folder '{tmp_path}/train2017' with 118,287 images is missing: unpack train2017.zip" in found.problems[0]
    assert f"file '{tmp_path}/annotations/instances_val2017.json' is missing" in found.problems[3]


def test_missing_images_are_counted_and_named(copy):
    for index in (0, 2, 3, 4):
        (copy / f'train2017/{index:012}.jpg').unlink()
    found = check_coco(copy)
    assert found.archives == {'train2017.zip'} and len(found.problems) == 1
    assert (
        "train2017': 4 of 5 files are missing (000000000000.jpg, 000000000002.jpg, 000000000003.jpg ...): unpack "
        in (found.problems[0])
    )


def test_missing_annotations_leave_the_count(copy):
    (copy / 'annotations/instances_val2017.json').unlink()
    assert check_coco(copy).archives == {'annotations_trainval2017.zip'}
    (copy / 'val2017/000000000000.jpg').unlink()
    found = check_coco(copy)
    assert found.archives == {'annotations_trainval2017.zip', 'val2017.zip'}
    assert any("val2017' holds 2 of 3 images" in problem for problem in found.problems)


def test_cut_annotations(copy):
    path = copy / 'annotations/instances_train2017.json'
    path.write_text(path.read_text()[:-100])
    (problem,) = check_coco(copy).problems
    assert 'is not JSON' in problem and '--download' in problem
    path.unlink()
    (copy / 'annotations/instances_val2017.json').rename(path)
    problems = check_coco(copy).problems
    assert any('lists 3 images and 6 annotations, the published file 5 and 10' in problem for problem in problems)


def test_spot_checks_look_into_images_and_annotations(copy):
    Image.new('RGB', (10, 20)).save(copy / 'val2017/000000000002.jpg')
    change(
        copy / 'annotations/instances_train2017.json', annotations=lambda all: [{**all[0], 'category_id': 9}, *all[1:]]
    )
    problems = check_coco(copy).problems
    assert len(problems) == 2 and 'category_id' in problems[0] and '000000000002.jpg' in problems[1]
    assert check_coco(copy, 0).complete


@pytest.mark.parametrize('name', ['coco_lsj_1024', 'coco_ms_crop'])
def test_share_is_of_the_training_set_of_our_configs(name):
    dataset = Config.fromfile(f'configs/_base_/datasets/{name}.py').train_dataloader.dataset
    ours = {**coco_files.training_set('data/coco/')}
    assert {key: dataset[key] for key in ours} == ours and set(dataset) - set(ours) == {'pipeline'}
