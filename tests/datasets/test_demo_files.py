"""Guards mmcnx2/datasets/demo_files.py: three formats say the same, the libraries read them, others lose nothing."""
import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmcnx2.datasets import demo_files
from mmcnx2.datasets.demo_files import segmentation_of, write_demo
from mmcnx2.datasets.demo_scenes import CLASSES, draw_scene

SETTINGS = dict(num_unlabelled=4, num_train=5, num_val=12, size=96, seed=2, num_workers=1)
SPLITS = [('train', 'training', 5), ('val', 'validation', 12)]


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'demo'
    assert write_demo(out, **SETTINGS)
    return out


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def decoded(segmentation, size):
    if isinstance(segmentation, list):
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, size, size))).astype(bool)
    return coco_mask.decode(coco_mask.frPyObjects(segmentation, size, size)).astype(bool)


# The formats

def test_same_settings_same_bytes(demo, tmp_path):
    write_demo(tmp_path / 'again', **{**SETTINGS, 'num_workers': 2})
    assert contents(tmp_path / 'again') == contents(demo)
    write_demo(tmp_path / 'other', **{**SETTINGS, 'seed': 3})
    pictures = contents(tmp_path / 'other')
    assert all(pictures[name] != content for name, content in contents(demo).items() if name.endswith('.jpg'))


def test_more_scenes_leave_the_first_as_they_are(demo, tmp_path):
    write_demo(tmp_path, **{**SETTINGS, 'num_unlabelled': 6, 'num_val': 9})
    now = contents(tmp_path)
    assert all(now[name] == content for name, content in contents(demo).items() if name.endswith(('jpg', 'png')) and
               name in now)
    assert len([name for name in now if name.startswith('unlabelled')]) == 6


def test_no_scene_is_in_two_sets(demo):
    unlabelled_and_coco = [content for name, content in contents(demo).items() if name.endswith('.jpg') and
                           not name.startswith('ade')]
    assert len(set(unlabelled_and_coco)) == len(unlabelled_and_coco) == 4 + 5 + 12


def test_pictures_are_the_scenes(demo):
    scene = draw_scene([2, demo_files.STREAMS['val'], 3], 96)
    for name in ('coco/val/000003.jpg', 'ade/images/validation/000003.jpg'):
        picture = np.asarray(Image.open(demo / name)).astype(int)
        assert np.abs(picture - scene.image_HWC).mean() < 8
    assert np.array_equal(np.asarray(Image.open(demo / 'ade/annotations/validation/000003.png')), scene.label_HW)


@pytest.mark.parametrize(('split', 'ade_split', 'count'), SPLITS)
def test_instances_equal_the_label_map_at_every_pixel(demo, split, ade_split, count):
    coco = COCO(str(demo / f'coco/annotations/instances_{split}.json'))
    assert len(coco.imgs) == count and [coco.cats[index + 1]['name'] for index in range(6)] == list(CLASSES)
    for image_id, image in coco.imgs.items():
        assert (demo / 'coco' / split / image['file_name']).is_file()
        label_file = demo / 'ade/annotations' / ade_split / image['file_name'].replace('jpg', 'png')
        label_HW = np.asarray(Image.open(label_file))
        rebuilt, covered = np.zeros_like(label_HW), np.zeros(label_HW.shape, int)
        for annotation in coco.imgToAnns[image_id]:
            mask = coco.annToMask(annotation).astype(bool)
            rebuilt[mask] = annotation['category_id']
            covered += mask
            rows, columns = np.nonzero(mask)
            left, top, width, height = annotation['bbox']
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
            assert annotation['area'] == mask.sum() > 0 and annotation['iscrowd'] == 0
        assert np.array_equal(rebuilt, label_HW) and covered.max() == 1


def test_polygons_where_possible_run_lengths_where_needed(demo):
    kinds = {}
    for split, _, _ in SPLITS:
        for annotation in json.loads((demo / f'coco/annotations/instances_{split}.json').read_text())['annotations']:
            kinds.setdefault(CLASSES[annotation['category_id'] - 1], []).append(type(annotation['segmentation']))
    assert list in kinds['square'] and dict in kinds['ring']
    everything = [kind for of_class in kinds.values() for kind in of_class]
    assert everything.count(list) > everything.count(dict) > 0


def test_later_objects_lie_on_earlier_ones(demo):
    """A ring laid over another object hides it under its band and shows it through its hole."""
    for index in range(200):
        scene = draw_scene([0, index])
        for number, class_index in enumerate(scene.classes, start=1):
            if CLASSES[class_index] != 'ring':
                continue
            rows, columns = np.nonzero(scene.instance_HW == number)
            inside = scene.instance_HW[rows.min():rows.max() + 1, columns.min():columns.max() + 1]
            middle = inside[inside.shape[0] // 2, inside.shape[1] // 2]
            if 0 < middle < number:
                under = decoded(segmentation_of(scene.instance_HW == middle), 192)
                assert not (under & (scene.instance_HW == number)).any()
                return
    pytest.fail('no ring lay on another object in 200 scenes')


def test_segmentation_of_awkward_masks():
    """Against pycocotools: holes, pieces, corner contacts, single pixels, the whole picture, its border."""
    rng = np.random.default_rng(0)
    masks = {name: np.zeros((12, 15), bool) for name in ('pixel', 'hole', 'pieces', 'corner', 'border', 'line')}
    masks['pixel'][3, 4] = True
    masks['hole'][2:9, 3:10] = True
    masks['hole'][4:6, 5:7] = False
    masks['pieces'][1:3, 1:3] = masks['pieces'][7:9, 7:9] = True
    masks['corner'][2:4, 2:4] = masks['corner'][4:6, 4:6] = True
    masks['border'][:, :4] = masks['border'][0] = True
    masks['line'][5, 2:14] = True
    masks['all'] = np.ones((12, 15), bool)
    masks |= {f'random {index}': rng.random((12, 15)) < share for index, share in enumerate((0.1, 0.5, 0.9, 0.97))}
    kinds = {}
    for name, mask in masks.items():
        segmentation = json.loads(json.dumps(segmentation_of(mask)))
        kinds[name] = type(segmentation)
        runs = coco_mask.frPyObjects(segmentation, 12, 15)
        runs = coco_mask.merge(runs) if isinstance(runs, list) else runs
        assert np.array_equal(coco_mask.decode(runs).astype(bool), mask), name
    assert [name for name, kind in kinds.items() if kind is list] == ['pixel', 'border', 'line', 'all']


def test_polygons_of_many_turned_shapes_decode_exactly():
    for index in range(25):
        scene = draw_scene([7, index])
        for number in range(1, len(scene.classes) + 1):
            mask = scene.instance_HW == number
            assert np.array_equal(decoded(segmentation_of(mask), 192), mask)


# The libraries

def test_mmdet_reads_and_scores_them(demo):
    """Ground truth given back as the answer scores 1.0 in CocoMetric; training's masks equal the label map."""
    import mmdet.datasets.transforms  # noqa: F401
    from mmdet.datasets import CocoDataset
    from mmdet.evaluation import CocoMetric
    annotations = str(demo / 'coco/annotations/instances_val.json')
    dataset = CocoDataset(
        ann_file=annotations, data_prefix=dict(img=str(demo / 'coco/val')), metainfo=dict(classes=CLASSES),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True)])
    metric = CocoMetric(ann_file=annotations, metric=['bbox', 'segm'])
    metric.dataset_meta = dataset.metainfo
    assert len(dataset) == 12
    for index in range(len(dataset)):
        results = dataset[index]
        masks_NHW = results['gt_masks'].masks.astype(bool)
        label_HW = np.asarray(Image.open(demo / f'ade/annotations/validation/{index:06d}.png'))
        rebuilt = np.zeros_like(label_HW)
        for mask, label in zip(masks_NHW, results['gt_bboxes_labels'], strict=True):
            rebuilt[mask] = label + 1
        assert np.array_equal(rebuilt, label_HW) and not results['gt_ignore_flags'].any()
        predicted = dict(bboxes=torch.tensor(results['gt_bboxes'].tensor.tolist()), scores=torch.ones(len(masks_NHW)),
                         labels=torch.tensor(results['gt_bboxes_labels']), masks=torch.tensor(masks_NHW))
        metric.process({}, [dict(img_id=results['img_id'], ori_shape=results['ori_shape'], pred_instances=predicted)])
    scores = metric.evaluate(len(dataset))
    assert scores['coco/bbox_mAP'] == 1.0 and scores['coco/segm_mAP'] == 1.0


def test_mmseg_reads_them(demo):
    from mmseg.datasets import BaseSegDataset
    dataset = BaseSegDataset(
        data_root=str(demo / 'ade'), data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        img_suffix='.jpg', seg_map_suffix='.png', reduce_zero_label=False,
        metainfo=dict(classes=('background', *CLASSES)),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='mmseg.LoadAnnotations', reduce_zero_label=False)])
    assert len(dataset) == 5
    for index in range(5):
        results = dataset[index]
        label_HW = draw_scene([2, demo_files.STREAMS['train'], index], 96).label_HW
        assert np.array_equal(results['gt_seg_map'], label_HW) and results['img'].shape == (96, 96, 3)


# The folder

def test_meta_tells_settings_counts_and_versions(demo):
    meta = json.loads((demo / 'meta.json').read_text())
    assert meta['complete'] and meta['settings']['seed'] == 2 and meta['classes'] == list(CLASSES)
    assert set(meta['versions']) == {'mmcnx2', 'numpy', 'pillow', 'python'}
    written = json.loads((demo / 'coco/annotations/instances_val.json').read_text())['annotations']
    assert sum(meta['instances']['val']) == len(written)


def test_a_complete_folder_is_left_alone(demo):
    times = {path: path.stat().st_mtime_ns for path in demo.rglob('*')}
    assert not write_demo(demo, **{**SETTINGS, 'num_workers': 2, 'force': True})
    assert {path: path.stat().st_mtime_ns for path in demo.rglob('*')} == times


def test_an_interrupted_or_damaged_folder_is_finished(demo, tmp_path, monkeypatch):
    def interrupt(steps, total):
        for number, step in enumerate(steps):
            if number == 9:
                raise KeyboardInterrupt
            yield step

    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path, **SETTINGS, progress=interrupt)
    assert write_demo(tmp_path, **SETTINGS)
    assert contents(tmp_path) == contents(demo)
    (tmp_path / 'ade/annotations/training/000002.png').unlink()
    assert write_demo(tmp_path, **SETTINGS) and contents(tmp_path) == contents(demo)


def test_other_settings_need_force(tmp_path):
    small = dict(num_unlabelled=3, num_train=1, num_val=1, size=64, num_workers=1)
    write_demo(tmp_path, **small)
    with pytest.raises(ValueError, match=r'unlabelled is 3, not 2.*--force.*--out'):
        write_demo(tmp_path, **{**small, 'num_unlabelled': 2})
    (tmp_path / 'notes.txt').write_text('mine')
    assert write_demo(tmp_path, **{**small, 'num_unlabelled': 2}, force=True)
    assert len(os.listdir(tmp_path / 'unlabelled')) == 2 and (tmp_path / 'notes.txt').read_text() == 'mine'


@pytest.mark.parametrize('force', [False, True])
def test_folders_of_others_are_not_touched(tmp_path, force):
    (tmp_path / 'coco').mkdir()
    (tmp_path / 'coco' / 'instances.json').write_text('precious')
    with pytest.raises(ValueError, match='other files'):
        write_demo(tmp_path, **SETTINGS, force=force)
    assert contents(tmp_path) == {'coco/instances.json': b'precious'}
    with pytest.raises(ValueError, match='is a file'):
        write_demo(tmp_path / 'coco' / 'instances.json', **SETTINGS, force=force)


@pytest.mark.parametrize('wrong', [dict(num_train=-1), dict(size=20), dict(seed=-1), dict(num_workers=0),
                                   dict(num_unlabelled=0, num_train=0, num_val=0)])
def test_settings_out_of_range_are_named(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).removeprefix('num_')):
        write_demo(tmp_path, **{**SETTINGS, **wrong})
    assert not contents(tmp_path)


def test_label_maps_are_plain_grey_pngs(demo):
    """Whatever library reads them: one channel, values are class numbers."""
    with Image.open(io.BytesIO((demo / 'ade/annotations/training/000000.png').read_bytes())) as image:
        assert image.mode == 'L' and max(image.getdata()) <= len(CLASSES)
