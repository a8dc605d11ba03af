"""Run logs: what mmengine writes, cut and merged as a stopped and resumed run leaves it."""

import json
import math

import pytest

from mmcnx2.analysis.run_log import (
    Curve,
    best_of,
    last_checkpoint,
    mean_smoothed,
    merge_attempts,
    read_run,
    seconds_of_steps,
    stored_config,
    thinned,
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


def test_validations_that_all_carry_step_0_get_the_training_step_before_them(tmp_path):
    # a loop over iterations whose logger counts epochs, stopped after the validation at 40 and resumed from step 20
    write_attempt(
        tmp_path,
        '20260101_000000',
        [train(10, 1), train(20, 1), {'mIoU': 1.0, 'step': 0}, train(40, 1), {'mIoU': 2.0, 'step': 0}],
    )
    write_attempt(tmp_path, '20260101_010000', [train(30, 1), train(40, 1), {'mIoU': 3.0, 'step': 0}])
    log = read_run(tmp_path)
    assert log.val['mIoU'] == Curve((20, 40), (1.0, 3.0)) and log.val_unit == 'iterations'
    assert log.num_attempts == 2


def test_validations_of_epochs_count_epochs(tmp_path):
    lines = [
        {**train(10, 1), 'epoch': 1},
        {'mIoU': 1.0, 'step': 1},
        {**train(20, 1), 'epoch': 2},
        {'mIoU': 2.0, 'step': 2},
    ]
    write_attempt(tmp_path, 'a', lines)
    log = read_run(tmp_path)
    assert log.val['mIoU'].steps == (1, 2) and log.val_unit == 'epochs'


def test_damage_is_tolerated_when_asked_for(tmp_path):
    assert 'nothing was trained' in read_run(tmp_path, tolerant=True).problems[0]
    write_attempt(
        tmp_path,
        'a',
        [train(10, 0.9)],
        tail='{"loss": 1,\n7\n{"lr": 1, "step": "x"}\n' + json.dumps(train(20, 0.8)) + '\n',
    )
    log = read_run(tmp_path, tolerant=True)
    assert log.train['loss'] == Curve((10, 20), (0.9, 0.8))
    assert [problem.split('scalars.json, ')[1][:8] for problem in log.problems] == ['line 2 i', 'line 3 i', 'line 4 i']
    with pytest.raises(ValueError, match='line 2 is not JSON'):
        read_run(tmp_path)
    write_attempt(tmp_path / 'other', 'b', [])
    assert read_run(tmp_path / 'other', tolerant=True).problems[0].endswith('holds no log entry')


def test_seconds_of_steps(tmp_path):
    lines = [{**train(10, 1), 'time': 0.5}, {**train(20, 1), 'time': math.nan}, {**train(40, 1), 'time': 2.0}]
    write_attempt(tmp_path, 'a', lines)
    assert seconds_of_steps(read_run(tmp_path)) == 10 * 0.5 + 20 * 2.0
    write_attempt(tmp_path / 'other', 'a', [train(10, 1)])
    assert seconds_of_steps(read_run(tmp_path / 'other')) is None


def test_best_is_the_earliest_of_equals_and_no_nan():
    curve = Curve((1, 2, 3, 4), (math.nan, 0.5, 0.1, 0.5))
    assert best_of(curve) == (0.5, 2) and best_of(curve, lowest=True) == (0.1, 3)
    assert best_of(Curve((1,), (math.nan,))) is None and best_of(Curve()) is None


def test_a_thinned_curve_keeps_ends_extremes_and_divergence():
    values = [1.0] * 1000
    values[333], values[777], values[500] = 9.0, -9.0, math.nan
    curve = Curve(tuple(range(1000)), tuple(values))
    kept = thinned(curve, 50)
    assert len(kept.steps) <= 50 and kept.steps[0] == 0 and kept.steps[-1] == 999
    assert {333, 777, 500} <= set(kept.steps) and list(kept.steps) == sorted(set(kept.steps))
    assert all(value is curve.values[step] for step, value in zip(kept.steps, kept.values, strict=True))
    assert thinned(curve, 1000) is curve
    with pytest.raises(ValueError, match='most=3'):
        thinned(curve, 3)


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
