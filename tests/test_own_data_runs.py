"""Training and testing on files of one's own through the tools, for each kind of config; and data that are broken: one
line that names the file and the remedy, whether `own_data` is used or not. Shrunken models, two steps.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from own_data_files import coco_options, label_map_options, write_coco, write_label_maps

import mmcnx2  # noqa: F401  (sets the folder of the configs)

ROOT = Path(__file__).resolve().parents[1]
TINY_BACKBONE = 'backbone=dict(arch=dict(_delete_=True, depths=[1, 1, 1, 1], channels=[8, 16, 24, 32]))'
QUICK = 'num_workers=0, persistent_workers=False'
DETECTOR = f"""
_base_ = '{{{{$MMCNX2_CONFIGS:}}}}/coco/%s'
model = dict(
    {TINY_BACKBONE},
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(num_convs=1, in_channels=16, conv_out_channels=16)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=50, max_per_img=20)),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(max_per_img=10)))
train_dataloader = dict(batch_size=2, {QUICK})
val_dataloader = dict({QUICK})
test_dataloader = dict({QUICK})
optim_wrapper = dict(type='OptimWrapper')
default_hooks = dict(logger=dict(interval=1))
"""
MASK_RCNN = DETECTOR % 'mask-rcnn_convnextv2-atto_fpn_8xb4-amp-lsj-3x-fcmae_coco.py'
CASCADE = DETECTOR % 'cascade-mask-rcnn_convnextv2-atto_fpn_8xb2-amp-ms-crop-3x_coco.py'
UPERNET = f"""
_base_ = '{{{{$MMCNX2_CONFIGS:}}}}/ade20k/upernet_convnextv2-atto_8xb2-amp-160k_ade20k-512x512.py'
model = dict(
    {TINY_BACKBONE},
    data_preprocessor=dict(size=(64, 64)),
    decode_head=dict(in_channels=[8, 16, 24, 32], channels=8),
    auxiliary_head=dict(in_channels=24, channels=8),
    test_cfg=dict(crop_size=(64, 64), stride=(42, 42)))
train_dataloader = dict(batch_size=2, {QUICK})
val_dataloader = dict({QUICK})
test_dataloader = dict({QUICK})
train_cfg = dict(max_iters=2, val_interval=2)
optim_wrapper = dict(type='OptimWrapper')
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""
SMALL_LSJ = {
    'train_cfg.max_epochs': '1',
    'train_dataloader.dataset.pipeline.2.scale': '(64, 64)',
    'train_dataloader.dataset.pipeline.3.crop_size': '(64, 64)',
    'train_dataloader.dataset.pipeline.6.size': '(64, 64)',
    'val_dataloader.dataset.pipeline.1.scale': '(64, 64)',
    'model.roi_head.bbox_head.in_channels': '16',
    'model.roi_head.bbox_head.fc_out_channels': '16',
    'model.train_cfg.rcnn.sampler.num': '8',
}
SMALL_MS_CROP = {
    'train_cfg.max_epochs': '1',
    'train_dataloader.dataset.pipeline.3.transforms.0.0.scales': '[(64, 64)]',
    'train_dataloader.dataset.pipeline.3.transforms.1.0.scales': '[(64, 64)]',
    'train_dataloader.dataset.pipeline.3.transforms.1.1.crop_size': '(32, 48)',
    'train_dataloader.dataset.pipeline.3.transforms.1.2.scales': '[(64, 64)]',
    'val_dataloader.dataset.pipeline.1.scale': '(64, 64)',
    **{
        f'model.roi_head.bbox_head.{stage}.{key}': str(value)
        for stage in range(3)
        for key, value in dict(in_channels=16, fc_out_channels=16, conv_out_channels=16, num_shared_convs=1).items()
    },
    **{f'model.train_cfg.rcnn.{stage}.sampler.num': '8' for stage in range(3)},
}


def small_upernet() -> dict[str, str]:
    return {
        'train_dataloader.dataset.pipeline.3.scale': '(96, 96)',
        'train_dataloader.dataset.pipeline.4.crop_size': '(64, 64)',
        'val_dataloader.dataset.pipeline.1.scale': '(96, 96)',
        'param_scheduler.0.start_factor': '1.0',
        'param_scheduler.0.end': '1',
        'param_scheduler.1.begin': '1',
    }


@pytest.fixture(autouse=True)
def inside_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def words(options: dict[str, str]) -> list[str]:
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]


def write_files(folder: Path) -> None:
    write_coco(folder / 'coco')
    write_label_maps(folder / 'maps')


def the_error(err: str) -> str:
    """The line of an error; there is one, and no traceback on the screen."""
    lines = [line for line in err.splitlines() if line.startswith('error')]
    assert len(lines) == 1 and 'Traceback' not in err, err
    return lines[0]


# ---- sound data


RUNS = {
    'mask-rcnn': (MASK_RCNN, SMALL_LSJ, 'coco', 'coco/segm_mAP', 'epoch_1.pth'),
    'cascade': (CASCADE, SMALL_MS_CROP, 'coco', 'coco/bbox_mAP', 'epoch_1.pth'),
    'upernet': (UPERNET, small_upernet(), 'maps', 'mIoU', 'iter_2.pth'),
}


@pytest.mark.parametrize('name', RUNS)
def test_two_steps_and_a_test_of_the_dumped_config(name, call, tmp_path):
    text, options, kind, metric, checkpoint = RUNS[name]
    write_files(tmp_path)
    (tmp_path / 'mine.py').write_text(text)
    own = coco_options(Path('coco')) if kind == 'coco' else label_map_options(Path('maps'))
    code, out, err = call('train', 'mine.py', '--work-dir', 'run', *words({**options, **own}))
    assert code == 0, err[-3000:]
    assert 'own_data: 3 classes (red fox, owl, vole), 4 images in train, 2 images in val' in out
    steps = [json.loads(line) for line in next((tmp_path / 'run').glob('*/vis_data/scalars.json')).open()]
    losses = [step['loss'] for step in steps if 'loss' in step]
    assert len(losses) == 2 and all(0 < loss < 50 for loss in losses)
    # the config that the run wrote down is whole: it needs no option, nor the training files
    (tmp_path / kind / 'train').rename(tmp_path / 'away') if kind == 'coco' else None
    code, _, err = call('test', 'run/mine.py', f'run/{checkpoint}', '--work-dir', 'tested', '--out', 'metrics.json')
    assert code == 0, err[-3000:]
    assert metric in json.loads((tmp_path / 'metrics.json').read_text())


def test_a_checkpoint_of_other_classes_starts_what_fits(call, tmp_path):
    write_files(tmp_path)
    (tmp_path / 'mine.py').write_text(UPERNET)
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.save(dict(state_dict=MODELS.build(Config.fromfile('mine.py').model).state_dict()), '150-classes.pth')
    options = {**small_upernet(), **label_map_options(Path('maps')), 'load_from': '150-classes.pth'}
    code, out, err = call('train', 'mine.py', '--work-dir', 'run', *words(options))
    assert code == 0, err[-3000:]
    assert 'of 150-classes.pth, layers of another size are left out' in out

    assert 'size mismatch for decode_head.conv_seg.weight' in out and 'size mismatch for backbone' not in out
    code, _, err = call('test', 'run/mine.py', '150-classes.pth')
    assert code == 1
    assert '150-classes.pth does not fit the model' in the_error(err) and 'conv_seg' in the_error(err)


# ---- broken data


def spoil_coco(change):
    def spoil(folder: Path) -> None:
        path = folder / 'coco/train.json'
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return spoil


def spoil_label(change):
    def spoil(folder: Path) -> None:
        path = folder / 'maps/labels/train/p1_mask.png'
        cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))

    return spoil


def out_of_the_image(content: dict) -> None:
    content['annotations'][2]['segmentation'] = [[5, 5, 99, 5, 25, 30]]


BROKEN = {
    'no category': (
        MASK_RCNN, spoil_coco(lambda content: content['annotations'][2].pop('category_id')),
        ["coco/train.json': no category_id in annotation 3 (image 'sub folder/0.png')", 'give it the id of one'],
    ),
    'category id gap': (
        MASK_RCNN, spoil_coco(lambda content: content['annotations'][2].update(category_id=8)),
        ["coco/train.json': a category_id that `categories` lacks in annotation 3", 'one of 3, 7, 20'],
    ),
    'polygon outside': (
        CASCADE, spoil_coco(out_of_the_image),
        ["coco/train.json': a polygon that reaches outside its image in annotation 3", 'cut it off at the edge'],
    ),
    'missing image': (
        CASCADE, lambda folder: (folder / 'coco/train/sub folder/2.png').unlink(),
        ["coco/train.json': no file for image 'coco/train/sub folder/2.png' (id 102)", 'add the file'],
    ),
    'value beyond the classes': (
        UPERNET, spoil_label(lambda label: np.where(label == 2, 9, label).astype(np.uint8)),
        ["values beyond the classes in label map 'maps/labels/train/p1_mask.png' (9)", 'add the missing classes'],
    ),
    'other size': (
        UPERNET, spoil_label(lambda label: label[:, 2:]),
        ["maps/labels/train/p1_mask.png', 56 x 70 instead of 56 x 72 of 'maps/images/train/p1.jpeg'", 'make both from'],
    ),
    'missing label': (
        UPERNET, lambda folder: (folder / 'maps/labels/train/p1_mask.png').unlink(),
        ["no label map for image 'p1.jpeg'", 'add it'],
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', BROKEN)
def test_broken_data_stop_before_training(name, call, tmp_path):
    text, spoil, expected = BROKEN[name]
    write_files(tmp_path)
    spoil(tmp_path)
    (tmp_path / 'mine.py').write_text(text)
    own = coco_options(Path('coco')) if text is not UPERNET else label_map_options(Path('maps'))
    code, _, err = call('train', 'mine.py', '--work-dir', 'run', *words(own))
    assert code == 1
    for part in expected:
        assert part in the_error(err)


WITHOUT_CHECK = {
    'missing image': (MASK_RCNN, SMALL_LSJ, BROKEN['missing image'][1], ['coco/train/sub folder/2.png']),
    'value beyond the classes': (
        UPERNET,
        small_upernet(),
        BROKEN['value beyond the classes'][1],
        ["label map 'maps/labels/train/p1_mask.png' of 'maps/images/train/p1.jpeg' holds 9; with 3 classes", 'add the'],
    ),
    'other size': (
        UPERNET,
        small_upernet(),
        BROKEN['other size'][1],
        ["label map 'maps/labels/train/p1_mask.png' of 'maps/images/train/p1.jpeg' is 56 x 70", 'make both from'],
    ),
}


@pytest.mark.parametrize('name', WITHOUT_CHECK)
def test_broken_data_stop_training_in_a_worker(name, call, tmp_path):
    """What the checks at the start do not open, a worker process meets."""
    text, options, spoil, expected = WITHOUT_CHECK[name]
    write_files(tmp_path)
    spoil(tmp_path)
    (tmp_path / 'mine.py').write_text(text)
    own = coco_options(Path('coco')) if text is not UPERNET else label_map_options(Path('maps'))
    workers = {'own_data.check': 'False', 'train_dataloader.num_workers': '1', 'train_dataloader.batch_size': '4'}
    code, _, err = call('train', 'mine.py', '--work-dir', 'run', *words({**options, **own, **workers}))
    assert code == 1
    for part in expected:
        assert part in the_error(err)
