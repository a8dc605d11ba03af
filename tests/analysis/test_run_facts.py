"""What is read from work dirs written by hand, whole and damaged."""

from pathlib import Path

import pytest
import work_dirs_by_hand as by_hand

from mmcnx2.analysis.run_facts import find_runs, natural, read_facts, run_labels


def test_a_run_that_was_resumed(tmp_path):
    by_hand.segmentation_run(tmp_path)
    facts = read_facts('mine', tmp_path)
    assert (facts.label, facts.task, facts.problems) == ('mine', 'segmentation', ())
    assert facts.log.train['loss'].steps == tuple(range(5, 101, 5))
    assert facts.log.val['mIoU'].steps == (25, 50, 75, 100) and facts.log.val_unit == 'iterations'
    assert facts.log.num_attempts == 2
    assert facts.last_step == 100 and facts.schedule == (100, 'iterations')
    assert facts.checkpoint == tmp_path / 'iter_100.pth'
    assert facts.wall_seconds == 30 + 90
    versions = {'python': '3.11.7', 'torch': '2.12.1+cu130', 'mmengine': '0.10.12', 'seed': '17'}
    assert facts.environment == {'processes': 1, 'device': 'CPU', **versions} and facts.images_per_step == 4
    assert facts.started == '2026/01/01 00:00:00'


def test_processes_and_device_of_the_text_log(tmp_path):
    by_hand.pretraining_run(tmp_path)
    facts = read_facts('p', tmp_path)
    assert facts.task == 'pretraining' and facts.schedule == (4, 'epochs')
    assert (facts.environment['processes'], facts.environment['device']) == (2, 'NVIDIA Test')
    assert facts.images_per_step == 8 and facts.collapse == {}


def test_task_without_a_config_is_told_by_what_was_logged(tmp_path):
    for make, task in (
        (by_hand.detection_run, 'detection'),
        (by_hand.segmentation_run, 'segmentation'),
        (by_hand.classification_run, 'classification'),
        (by_hand.pretraining_run, 'other'),  # a loss alone says nothing
    ):
        folder = tmp_path / task
        make(folder)
        for path in folder.glob('*.py'):
            path.unlink()
        facts = read_facts(task, folder)
        assert facts.task == task and facts.config == {}
        assert facts.problems == (
            f'{task}: its config cannot be read: {folder} holds no config (*.py): no training was started there',
        )


def test_damage_is_named_and_the_rest_is_read(tmp_path):
    by_hand.segmentation_run(tmp_path)
    path = tmp_path / '20260101_120000' / 'vis_data' / 'scalars.json'
    lines = path.read_text().splitlines()
    lines[2] = '{"loss": 0.1, "st'
    path.write_text('\n'.join(lines))
    (tmp_path / 'upernet_demo.py').write_text('model = dict(')
    (tmp_path / 'last_checkpoint').write_text('/gone/iter_90.pth')
    (tmp_path / 'metrics.json').write_text('{')
    facts = read_facts('x', tmp_path)
    assert facts.log.train['loss'].steps == (*range(5, 61, 5), *range(70, 101, 5))
    said = ' | '.join(facts.problems)
    for words in ('config cannot be read', 'line 3 is not JSON', 'iter_90.pth', 'test results cannot be read'):
        assert words in said
    assert len(facts.problems) == 4 and all(problem.startswith('x: ') for problem in facts.problems)


def test_a_loss_that_is_not_finite_is_said(tmp_path):
    by_hand.write_config(tmp_path)
    lines = by_hand.train_lines(range(1, 5))
    lines[2]['loss'] = lines[3]['loss'] = float('nan')
    by_hand.write_attempt(tmp_path, lines)
    assert read_facts('x', tmp_path).problems == ('x: the loss is not finite in 2 log entries, first at step 3',)


def test_garbage_is_no_reason_to_stop(tmp_path):
    (tmp_path / 'a' / 'vis_data').mkdir(parents=True)
    (tmp_path / 'a' / 'vis_data' / 'scalars.json').write_bytes(bytes(range(256)) * 20)
    (tmp_path / 'a' / 'a.log').write_bytes(bytes(range(256)))
    facts = read_facts('x', tmp_path)
    assert facts.log.train == {} and facts.last_step is None and len(facts.problems) >= 2
    huge = (
        '{"loss": 1, "lr": 1, "step": 1e999}\n{"loss": 1'
        + '0' * 400
        + ', "lr": 1, "step": 1}\n[]\n'
        + '[' * 100000
        + '\n1\n'
    )
    (tmp_path / 'a' / 'vis_data' / 'scalars.json').write_text(huge)
    assert read_facts('x', tmp_path).problems


def test_collapse_that_was_measured_during_training(tmp_path):
    by_hand.pretraining_run(tmp_path)
    by_hand.pictures_during_training(tmp_path, {2: by_hand.measured_layers([0.4]), 10: by_hand.measured_layers([0.3])})
    (tmp_path / 'collapse' / 'iter_7.json').write_text('{}')
    (tmp_path / 'collapse' / 'collapse.json').write_text('{"command": "tools/analyze_collapse.py"}')
    facts = read_facts('x', tmp_path)
    assert list(facts.collapse) == [2, 10] and facts.collapse_unit == 'epochs' and facts.problems == ()
    assert facts.collapse[10]['stages.0.0.gelu']['distance'] == 0.3
    for path in (tmp_path / 'collapse').glob('epoch_*'):
        path.rename(path.with_name(path.name.replace('epoch', 'iter')))
    assert read_facts('x', tmp_path).collapse_unit == 'iterations'
    for damage in ('{', '[]', '{"a": 1}', '{"a": {"distance": NaN, "num_channels": 1, "num_dead": 1}}', '{"a": {}}'):
        (tmp_path / 'collapse' / 'iter_3.json').write_text(damage)
        facts = read_facts('x', tmp_path)
        assert facts.collapse == {} and len(facts.problems) == 1 and 'iter_3.json is not what the' in facts.problems[0]


def test_nothing_of_a_run(tmp_path):
    (tmp_path / 'a.txt').touch()
    assert read_facts('x', tmp_path).is_nothing
    (tmp_path / 'config.py').touch()
    assert not read_facts('x', tmp_path).is_nothing
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'last_checkpoint').write_text('gone.pth')
    assert not read_facts('x', tmp_path / 'run').is_nothing


def test_tests_are_read_where_tools_leave_them(tmp_path):
    by_hand.detection_run(tmp_path)
    (tmp_path / 'test').mkdir()
    (tmp_path / 'test' / 'metrics.json').write_text('{"coco/bbox_mAP": 0.33, "coco/bbox_mAP_50": 0.5}')
    assert read_facts('x', tmp_path).tested == {'box AP': 0.33}


def test_runs_below_a_folder_and_what_lies_inside_a_run(tmp_path):
    for name in ('seed10', 'seed2', 'deep/er/seed1'):
        by_hand.detection_run(tmp_path / 'runs' / name)
    by_hand.detection_run(tmp_path / 'runs' / 'seed2' / 'test')  # tests of a run are none of their own
    (tmp_path / 'runs' / 'logs').mkdir()
    names = [str(path.relative_to(tmp_path / 'runs')) for path in find_runs(tmp_path / 'runs')]
    assert names == ['deep/er/seed1', 'seed2', 'seed10']
    assert find_runs(tmp_path / 'runs' / 'seed2') == [tmp_path / 'runs' / 'seed2']
    assert find_runs(tmp_path / 'runs' / 'logs') == [tmp_path / 'runs' / 'logs']
    with pytest.raises(FileNotFoundError, match='nowhere is no folder'):
        find_runs(tmp_path / 'nowhere')
    (tmp_path / 'file').touch()
    with pytest.raises(NotADirectoryError, match='file is no folder'):
        find_runs(tmp_path / 'file')


def test_labels_are_as_short_as_they_can_be():
    assert run_labels([Path('/w/a/run'), Path('/w/b/run'), Path('/w/c')]) == ['a/run', 'b/run', 'c']
    assert run_labels([Path('/w/a')]) == ['a']
    assert sorted(['s10', 's2', 's1x'], key=natural) == ['s1x', 's2', 's10']
