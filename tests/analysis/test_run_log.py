"""Run logs: what mmengine writes, cut and merged as a stopped and resumed run leaves it."""

import json
import math

import pytest

from mmcnx2.analysis.run_log import (
    Curve,
    last_checkpoint,
    mean_smoothed,
    merge_attempts,
    read_run,
    stored_config,
)


def write_attempt(work_dir, name, lines, tail=''):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(json.dumps(line) + '\n' for line in lines) + tail)


def train(step, loss):
    return {'lr': 1e-3, 'loss': loss, 'iter': step, 'step': step}


def test_train_and_val_are_apart(tmp_path):
    write_attempt(
        tmp_path,
        '20260101_000000',
        [
            train(10, 0.9),
            train(20, 0.8),
            {'coco/bbox_mAP': 0.25, 'time': 0.1, 'step': 1},
            {'coco/bbox_mAP': 0.5, 'step': 2},
        ],
    )
    log = read_run(tmp_path)
    assert log.train['loss'] == Curve((10, 20), (0.9, 0.8))
    assert log.val['coco/bbox_mAP'] == Curve((1, 2), (0.25, 0.5))
    assert log.last('coco/bbox_mAP') == 0.5
    assert 'step' not in log.train and 'iter' not in log.train
    with pytest.raises(KeyError, match='coco/bbox_mAP'):
        log.last('mIoU')


def test_resumed_run_replaces_what_did_not_lead_to_the_result(tmp_path):
    # killed at step 30 (half a line left), resumed from the checkpoint of step 10
    write_attempt(tmp_path, '20260101_000000', [train(10, 0.9), train(20, 0.8), train(30, 0.7)], tail='{"lr": 0.1, "lo')
    write_attempt(tmp_path, '20260101_010000', [train(20, 0.75), {'mIoU': 60.0, 'step': 25}])
    log = read_run(tmp_path)
    assert log.train['loss'] == Curve((10, 20), (0.9, 0.75))
    assert log.last('mIoU') == 60.0


def test_validation_of_a_resumed_run_does_not_erase_training():
    merged = merge_attempts([[train(10, 0.9), {'mIoU': 1.0, 'step': 10}], [{'mIoU': 2.0, 'step': 10}]])
    assert merged == [train(10, 0.9), {'mIoU': 2.0, 'step': 10}]


def test_divergence_stays_visible(tmp_path):
    write_attempt(tmp_path, 'a', [train(10, 0.9), train(20, math.nan)])
    assert math.isnan(read_run(tmp_path).train['loss'].values[-1])


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nothing was trained'):
        read_run(tmp_path)
    folder = tmp_path / 'a' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('{"lr": 1\n{"lr": 2, "step": 1}\n')
    with pytest.raises(ValueError, match='line 1'):
        read_run(tmp_path)


def test_mean_smoothed():
    assert mean_smoothed((1.0, 3.0, 5.0), 2) == [1.0, 2.0, 4.0]
    with pytest.raises(ValueError, match='window=0'):
        mean_smoothed((1.0,), 0)


def test_last_checkpoint_is_found_after_a_move(tmp_path):
    with pytest.raises(FileNotFoundError, match='no training'):
        last_checkpoint(tmp_path)
    (tmp_path / 'last_checkpoint').write_text('/somewhere/else/epoch_3.pth')
    with pytest.raises(FileNotFoundError, match='epoch_3'):
        last_checkpoint(tmp_path)
    (tmp_path / 'epoch_3.pth').touch()
    assert last_checkpoint(tmp_path) == tmp_path / 'epoch_3.pth'


def test_stored_config(tmp_path):
    with pytest.raises(FileNotFoundError, match='no config'):
        stored_config(tmp_path)
    (tmp_path / 'a.py').touch()
    assert stored_config(tmp_path) == tmp_path / 'a.py'
