"""`own_data`: what it changes in a config, wherever classes and files stand, and what it refuses."""

import copy
import json
import re
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope
from own_data_files import CLASSES, coco_options, label_map_options, write_coco, write_label_maps

from mmcnx2.datasets.annotation_checks import stems_in
from mmcnx2.engine.own_data import apply_own_data, check_class_lists, find_suffixes, palette, read_class_names

CONFIGS = Path(__file__).parents[2] / 'configs'
DETECTION = [
    'coco/mask-rcnn_convnextv2-atto_fpn_8xb4-amp-lsj-3x-fcmae_coco.py',
    'coco/cascade-mask-rcnn_convnextv2-atto_fpn_8xb2-amp-ms-crop-3x_coco.py',
    'demo/mask-rcnn_convnextv2-atto_demo.py',
]
SEGMENTATION = [
    'ade20k/upernet_convnextv2-atto_8xb2-amp-160k_ade20k-512x512.py',
    'ade20k/upernet_convnextv2-base_8xb2-amp-160k_ade20k-640x640.py',
    'demo/upernet_convnextv2-atto_demo.py',
]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """The same files for all tests of this module; a test that spoils some writes its own."""
    return write_all(tmp_path_factory.mktemp('own'))


def write_all(folder):
    write_coco(folder / 'coco')
    write_label_maps(folder / 'maps')
    return folder


def config(name, options):
    cfg = Config.fromfile(CONFIGS / name)
    cfg.merge_from_dict(options)
    return cfg


def detection(files, name=DETECTION[0], **changes):
    return config(name, {**coco_options(files / 'coco'), **{key.replace('__', '.'): changes[key] for key in changes}})


def segmentation(files, name=SEGMENTATION[0], **changes):
    return config(
        name, {**label_map_options(files / 'maps'), **{key.replace('__', '.'): changes[key] for key in changes}}
    )


def class_counts(node):
    """Every num_classes of a model, the backbone's and transforms' included."""
    return [int(number) for number in re.findall(r"'num_classes': (\d+)", str(node))]


def loaders(cfg):
    return [cfg[f'{split}_dataloader'] for split in ('train', 'val', 'test')]


# ---- what changes


@pytest.mark.parametrize('name', DETECTION)
def test_detection(files, name):
    cfg = detection(files, name)
    summary = apply_own_data(cfg)
    assert summary == 'own_data: 3 classes (red fox, owl, vole), 4 images in train, 2 images in val'
    counts = class_counts(cfg.model)
    assert set(counts) == {3} and len(counts) == (4 if 'cascade' in name else 2)
    init_default_scope('mmdet')
    for loader, split in zip(loaders(cfg), ('train', 'val', 'val'), strict=True):
        dataset = DATASETS.build(loader.dataset)
        assert dataset.metainfo['classes'] == tuple(CLASSES) and len(dataset.metainfo['palette']) == 3
        assert dataset.cat_ids == [3, 7, 20]
        assert len(dataset) == dict(train=4, val=2)[split]
        assert len(dataset[0]['data_samples'].metainfo['img_path']) > 0
        assert {instance['bbox_label'] for instance in dataset.get_data_info(0)['instances']} == {0, 1, 2}
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.ann_file == str(files / 'coco/val.json')


@pytest.mark.parametrize('name', SEGMENTATION)
def test_segmentation(files, name):
    cfg = segmentation(files, name)
    assert apply_own_data(cfg) == 'own_data: 3 classes (red fox, owl, vole), 4 images in train, 2 images in val'
    assert class_counts(cfg.model) == [3, 3]
    init_default_scope('mmseg')
    for loader, split in zip(loaders(cfg), ('train', 'val', 'val'), strict=True):
        types = [step.type for step in loader.dataset.pipeline]
        assert types[types.index('LoadAnnotations') + 1] == 'mmcnx2.CheckLabelMap'
        assert types.count('mmcnx2.CheckLabelMap') == 1
        dataset = DATASETS.build(loader.dataset)
        assert dataset.metainfo['classes'] == tuple(CLASSES) and not dataset.reduce_zero_label
        assert len(dataset) == dict(train=4, val=2)[split]
        values = dataset[0]['data_samples'].gt_sem_seg.data.unique().tolist()
        assert set(values) <= {0, 1, 2, 255} and 0 in values
    if 'tta_pipeline' in cfg:
        assert 'CheckLabelMap' not in str(cfg.tta_pipeline)  # a second alternative there, and no more a check
        assert "'reduce_zero_label': True" not in str(cfg.tta_pipeline)


def test_reduced_zero_label_reaches_data_and_check(files):
    cfg = segmentation(files, own_data__classes=['a', 'b'], own_data__reduce_zero_label=True)
    apply_own_data(cfg)
    init_default_scope('mmseg')
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert set(dataset[0]['data_samples'].gt_sem_seg.data.unique().tolist()) == {0, 1, 255}
    assert "'reduce_zero_label': False" not in str(cfg.tta_pipeline)


@pytest.mark.parametrize('make', [detection, segmentation])
def test_applying_twice_or_dumping_between_changes_nothing(files, make, tmp_path):
    cfg = make(files)
    apply_own_data(cfg)
    once = copy.deepcopy(cfg.to_dict())
    apply_own_data(cfg)
    assert cfg.to_dict() == once
    cfg.dump(tmp_path / 'dumped.py')
    again = Config.fromfile(tmp_path / 'dumped.py')
    assert again.to_dict() == once
    apply_own_data(again, training=False)
    assert again.to_dict() == once


def test_a_config_of_ten_lines_and_test_files_of_their_own(files, tmp_path):
    (tmp_path / 'mine.py').write_text(
        f"""
_base_ = '{{{{$MMCNX2_CONFIGS:}}}}/{DETECTION[0]}'
own_data = dict(
    train=dict(annotations='{files}/coco/train.json', images='{files}/coco/train'),
    val=dict(annotations='{files}/coco/val.json', images='{files}/coco/val'),
    test=dict(annotations='{files}/coco/train.json', images='{files}/coco/train'))
"""
    )
    cfg = Config.fromfile(tmp_path / 'mine.py')
    apply_own_data(cfg, training=False)
    assert cfg.test_dataloader.dataset.ann_file == cfg.test_evaluator.ann_file == str(files / 'coco/train.json')
    assert cfg.val_dataloader.dataset.ann_file == cfg.val_evaluator.ann_file == str(files / 'coco/val.json')


def test_testing_asks_for_the_test_files_only(files, tmp_path):
    cfg = detection(files)
    apply_own_data(cfg)
    cfg.own_data.train.annotations = cfg.own_data.train.images = 'not/here'
    assert apply_own_data(cfg, training=False) == 'own_data: 3 classes (red fox, owl, vole), 2 images in test'
    with pytest.raises(FileNotFoundError, match='not/here'):
        apply_own_data(cfg)
    cfg = segmentation(files)
    cfg.own_data.train.images = cfg.own_data.train.labels = 'not/here'
    assert apply_own_data(cfg, training=False).endswith('2 images in test')
    with pytest.raises(FileNotFoundError, match='not/here'):
        apply_own_data(cfg)


def test_without_own_data_nothing_happens():
    cfg = config(DETECTION[0], {})
    before = copy.deepcopy(cfg.to_dict())
    assert apply_own_data(cfg) is None and cfg.to_dict() == before


def test_small_images_are_not_left_out(files):
    cfg = detection(files)
    assert cfg.train_dataloader.dataset.filter_cfg.min_size == 32
    apply_own_data(cfg)
    assert cfg.train_dataloader.dataset.filter_cfg == dict(filter_empty_gt=True)


def test_wrapped_datasets(files):
    for make in (detection, segmentation):
        cfg = make(files)
        cfg.train_dataloader.dataset = ConfigDict(type='RepeatDataset', times=3, dataset=cfg.train_dataloader.dataset)
        apply_own_data(cfg)
        assert cfg.train_dataloader.dataset.type == 'RepeatDataset'
        assert str(files) in str(cfg.train_dataloader.dataset.dataset)
        cfg.train_dataloader.dataset = ConfigDict(type='ConcatDataset', datasets=[cfg.val_dataloader.dataset] * 2)
        with pytest.raises(ValueError, match='2 datasets in one'):
            apply_own_data(cfg)


def test_heads_that_write_no_class_count(files):
    cfg = detection(files)
    del cfg.model.roi_head.mask_head['num_classes']  # 80 by default
    cfg.model.backbone.num_classes = 1000
    apply_own_data(cfg)
    assert cfg.model.roi_head.mask_head.num_classes == 3
    assert cfg.model.backbone.num_classes == 1000 and 'num_classes' not in cfg.model.rpn_head
    cfg.model.roi_head.bbox_head.loss_cls.class_weight = [1.0] * 81
    with pytest.raises(ValueError, match='bbox_head weighs 81 classes'):
        apply_own_data(cfg)
    cfg.model = ConfigDict(type='MaskRCNN')
    with pytest.raises(ValueError, match='no head'):
        apply_own_data(cfg)


# ---- the command line


def test_a_subset_of_the_training_images_takes_the_place_of_the_file(files, tmp_path):
    content = json.loads((files / 'coco/train.json').read_text())
    content['images'] = content['images'][:1]
    content['annotations'] = [one for one in content['annotations'] if one['image_id'] == 100]
    (tmp_path / 'subset.json').write_text(json.dumps(content))
    options = {'train_dataloader.dataset.ann_file': str(tmp_path / 'subset.json'), **coco_options(files / 'coco')}
    cfg = config(DETECTION[0], options)
    assert '1 images in train' in apply_own_data(cfg, options=options)
    assert cfg.train_dataloader.dataset.ann_file == options['train_dataloader.dataset.ann_file']
    apply_own_data(cfg)  # as from a dumped config, without the options
    assert cfg.train_dataloader.dataset.ann_file == options['train_dataloader.dataset.ann_file']

    (tmp_path / 'subset.txt').write_text('p1\n')
    options = {'train_dataloader.dataset.ann_file': str(tmp_path / 'subset.txt'), **label_map_options(files / 'maps')}
    cfg = config(SEGMENTATION[0], options)
    apply_own_data(cfg, options=options)
    init_default_scope('mmseg')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == 1 and dataset.get_data_info(0)['seg_map_path'].endswith('p1_mask.png')


def test_other_options_that_own_data_decides_are_refused(files):
    for key, value in (('val_evaluator.ann_file', 'x.json'), ('model.roi_head.bbox_head.num_classes', 9)):
        options = {key: value, **coco_options(files / 'coco')}
        with pytest.raises(ValueError, match=f'own_data decides {re.escape(key)} itself'):
            apply_own_data(config(DETECTION[0], options), options=options)
    options = {
        'train_dataloader.dataset.pipeline.2.scale': (64, 64),
        'train_dataloader.batch_size': 1,
        **label_map_options(files / 'maps'),
    }
    apply_own_data(config(SEGMENTATION[0], options), options=options)


# ---- what is refused


INCOMPLETE = {
    'no val': (detection, {'own_data.val': None}, 'own_data.val=None'),
    'unknown key': (detection, {'own_data.val.labels': 'x'}, 'unknown keys: val.labels'),
    'unknown top key': (segmentation, {'own_data.images': 'x'}, 'unknown keys: images. Allowed here: train, val, test'),
    'a path': (detection, {'own_data.train': 'my/train'}, 'own_data.train='),
    'check': (detection, {'own_data.check': 'no'}, "own_data.check='no'"),
    'reduce': (segmentation, {'own_data.reduce_zero_label': 1}, 'own_data.reduce_zero_label=1'),
    'one class': (segmentation, {'own_data.classes': ['a']}, 'has 1 classes; .* background is a class'),
    'too many': (segmentation, {'own_data.classes': [str(i) for i in range(255)]}, '255 classes'),
    'a suffix alone': (segmentation, {'own_data.val.image_suffix': '.jpg'}, 'image_suffix and label_suffix; give both'),
    'task': (detection, {'default_scope': 'mmpretrain'}, "this config is of 'mmpretrain'"),
    'evaluator': (detection, {'val_evaluator.type': 'VOCMetric'}, 'val_evaluator of type CocoMetric'),
}


@pytest.mark.parametrize('case', INCOMPLETE)
def test_what_own_data_must_be(files, case):
    make, change, message = INCOMPLETE[case]
    cfg = make(files)
    cfg.merge_from_dict(change)
    with pytest.raises(ValueError, match=message):
        apply_own_data(cfg)


def test_missing_parts_are_named(files):
    cfg = config(DETECTION[0], {'own_data.train.annotations': 'a.json'})
    with pytest.raises(
        ValueError, match=r'missing: own_data\.train\.images, own_data\.val\.annotations, own_data\.val'
    ):
        apply_own_data(cfg)
    cfg = segmentation(files)
    del cfg.own_data['classes']
    with pytest.raises(ValueError, match=r'own_data\.classes is missing: a text file'):
        apply_own_data(cfg)


def test_problems_of_files_are_listed_unless_the_check_is_off(tmp_path):
    files = write_all(tmp_path)
    content = json.loads((files / 'coco/train.json').read_text())
    content['annotations'][0]['category_id'] = 8
    del content['annotations'][1]['iscrowd']
    (files / 'coco/train.json').write_text(json.dumps(content))
    (files / 'coco/val/sub folder/1.png').unlink()
    with pytest.raises(
        ValueError, match=r'3 problems(.|\n)*\(1\) .*train.json(.|\n)*\(2\)(.|\n)*\(3\) .*val.json.*1\.png'
    ):
        apply_own_data(detection(files))
    assert apply_own_data(detection(files, own_data__check=False))
    with pytest.raises(ValueError, match='3 problems'):
        apply_own_data(
            segmentation(files, own_data__classes=['a', 'b'], own_data__val__images=str(files / 'maps/images/train'))
        )
    assert apply_own_data(segmentation(files, own_data__classes=['a', 'b'], own_data__check=False))


def test_categories_of_val_in_another_order_are_never_accepted(tmp_path):
    """mmdet numbers classes in the order of each file: AP would compare foxes with owls, without an error."""
    files = write_all(tmp_path)
    content = json.loads((files / 'coco/val.json').read_text())
    content['categories'].reverse()
    (files / 'coco/val.json').write_text(json.dumps(content))
    for check in (True, False):
        with pytest.raises(
            ValueError, match=r"val\.json': its `categories` are vole, owl, red fox; .* red fox, owl, vole"
        ):
            apply_own_data(detection(files, own_data__check=check))


def test_classes_written_by_hand_must_be_those_of_the_file(files):
    def by_hand(classes):
        cfg = config(DETECTION[2], {})
        cfg.train_dataloader.dataset.update(
            data_root=str(files / 'coco'), ann_file='train.json', metainfo=dict(classes=classes)
        )
        cfg.val_dataloader.dataset.ann_file = 'none.json'
        return cfg

    check_class_lists(by_hand(tuple(CLASSES)))
    check_class_lists(by_hand(('red fox', 'vole')))  # the others are left out on purpose
    for wrong in (('red_fox', 'owl', 'vole'), ('owl', 'red fox', 'vole')):
        with pytest.raises(
            ValueError, match=r"train_dataloader: classes .*train\.json' in their order, red fox, owl, vole"
        ):
            check_class_lists(by_hand(wrong))
        check_class_lists(by_hand(wrong), training=False)
        wrapped = by_hand(wrong)
        wrapped.train_dataloader.dataset = ConfigDict(type='RepeatDataset', dataset=wrapped.train_dataloader.dataset)
        with pytest.raises(ValueError, match='red fox, owl, vole'):
            check_class_lists(wrapped)


# ---- names, suffixes, colours


def test_class_names(tmp_path):
    (tmp_path / 'a.txt').write_text('\ufeffred fox\n owl \n\nvole\n', encoding='utf-8')
    (tmp_path / 'a.json').write_text('["red fox", "owl", "vole"]')
    assert read_class_names(tmp_path / 'a.txt') == read_class_names(tmp_path / 'a.json') == tuple(CLASSES)
    assert read_class_names(CLASSES) == tuple(CLASSES)
    (tmp_path / 'b.json').write_text('{"a": 1}')
    (tmp_path / 'c.json').write_text('{')
    (tmp_path / 'd.txt').write_text('\n')
    for wrong, message in (
        ('b.json', 'gives no list of names'), ('c.json', 'is not JSON'), ('d.txt', 'gives no list of names'),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_class_names(tmp_path / wrong)
    with pytest.raises(ValueError, match='names a class twice: owl'):
        read_class_names(['owl', 'owl'])
    with pytest.raises(FileNotFoundError, match='which does not exist'):
        read_class_names(str(tmp_path / 'none.txt'))


def test_suffixes(files, tmp_path):
    folder = files / 'maps'
    assert find_suffixes(folder / 'images/train', folder / 'labels/train') == ('.jpeg', '_mask.png')
    for name in ('i/a.jpg', 'i/a1.jpg', 'i/b/c.jpg', 'l/a.png', 'l/a1.png', 'l/b/c.png', 'x/other.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_suffixes(tmp_path / 'i', tmp_path / 'l') == ('.jpg', '.png')
    with pytest.raises(ValueError, match="such as 'a'"):
        find_suffixes(tmp_path / 'i', tmp_path / 'x')
    (tmp_path / 'i/d.JPG').touch()
    with pytest.raises(ValueError, match=r'found: 3 \.jpg, 1 \.JPG'):
        find_suffixes(tmp_path / 'i', tmp_path / 'l')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='found: none'):
        find_suffixes(tmp_path / 'empty', tmp_path / 'l')
    with pytest.raises(FileNotFoundError, match='is not a folder'):
        find_suffixes(tmp_path / 'none', tmp_path / 'l')


def test_suffixes_of_linked_folders_and_beside_hidden_files(tmp_path):
    for name in ('site/a.jpg', 'site/b.jpg', 'i/.thumb.png', 'i/.trash/x.bmp', 'maps/a.png', 'maps/b.png', 'l/.a.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'i/1').symlink_to(tmp_path / 'site')
    (tmp_path / 'l/1').symlink_to(tmp_path / 'maps')
    assert find_suffixes(tmp_path / 'i', tmp_path / 'l') == ('.jpg', '.png')
    assert stems_in(tmp_path / 'i', '.jpg') == stems_in(tmp_path / 'l', '.png') == {'1/a', '1/b'}


def test_colours_differ():
    colours = palette(150)
    assert len(set(colours)) == 150 and all(0 <= part <= 255 for colour in colours for part in colour)
    assert palette(3) == colours[:3]
