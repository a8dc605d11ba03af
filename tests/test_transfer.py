"""The transfer command: its logic with stubs in place of training and testing, and once with the real ones (two steps).

Running and resuming stages is tested in tests/engine/test_stages.py.
"""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmcnx2.analysis import transfer_report
from mmcnx2.datasets.demo_files import write_demo
from mmcnx2.engine import run_commands
from mmcnx2.engine.config_options import read_options
from mmcnx2.models.backbones import ConvNeXtV2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import transfer  # noqa: E402

DETECT = 'demo/mask-rcnn_convnextv2-atto_demo.py'
SEGMENT = 'demo/upernet_convnextv2-atto_demo.py'
SEGMENT_STEM = Path(SEGMENT).stem
# In place of train.py and test.py: results follow from seed, initialisation and fraction, so tables can be worked out
STUB_TRAIN = """
import json, pathlib, re, sys
args = sys.argv[1:]
work = pathlib.Path(args[args.index('--work-dir') + 1])
options = dict(word.split('=', 1) for word in args if '=' in word)
fraction = float(re.search(r'-([0-9.]+)-seed', work.name)[1])
if any((work.parents[2] / f'break-{name}').exists() for name in (work.name, 'all')):
    sys.exit('out of memory')
value = 0.1 * fraction + 0.01 * int(options['randomness.seed'])
value += 0.02 if 'model.backbone.init_cfg.checkpoint' in options else 0
log = work / 'now' / 'vis_data' / 'scalars.json'
log.parent.mkdir(parents=True)
evaluator = "type='IoUMetric'" if 'upernet' in args[0] else "type='CocoMetric', metric=['bbox', 'segm']"
(work / pathlib.Path(args[0]).name).write_text(f'''
train_cfg = dict(max_iters=900, val_interval={options.get('train_cfg.val_interval', 900)})
val_dataloader = test_dataloader = dict(dataset=dict())
val_evaluator = test_evaluator = dict({evaluator})
''')
lines = [dict(lr=1, loss=1, memory=2048, step=1), dict(step=1)]
lines[1].update({'mIoU': 100 * value} if 'upernet' in args[0] else {'coco/bbox_mAP': value, 'coco/segm_mAP': value / 2})
log.write_text(chr(10).join(map(json.dumps, lines)))
(work / 'arguments.json').write_text(json.dumps(args))
(work / 'iter_1.pth').touch()
(work / 'last_checkpoint').write_text(str(work / 'iter_1.pth'))
"""
STUB_TEST = """
import json, pathlib, sys
args = sys.argv[1:]
out = pathlib.Path(args[args.index('--out') + 1])
out.parent.mkdir(parents=True, exist_ok=True)
if pathlib.Path('find-nothing').exists():
    out.write_text('{}')
    sys.exit()
out.write_text(json.dumps({'mIoU': 77 if '--tta' in args else 55, 'coco/bbox_mAP': .3, 'coco/segm_mAP': .2}))
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'demo'
    write_demo(folder, 1, 8, 2, 64, 0, 1, False)
    return folder


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('checkpoint') / 'atto.pth'
    torch.save({'state_dict': ConvNeXtV2('atto').state_dict()}, path)
    return path


@pytest.fixture
def call(tmp_path, data, monkeypatch, capfd):
    """Runs the command with the stubs in a folder of its own: (exit code, stdout, stderr)."""
    for name, text in (('train.py', STUB_TRAIN), ('test.py', STUB_TEST)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(run_commands, 'tool', lambda name: str(tmp_path / name))
    monkeypatch.setenv('LOCAL_RANK', '0')  # so that what load_config sets is taken back
    monkeypatch.chdir(tmp_path)

    def run(*args):
        code = transfer.main([*map(str, args), '--data', f'data/demo={data}', '--work-dir', 'work'])
        return code, *capfd.readouterr()

    return run


def results_in(folder):
    return json.loads((folder / 'work' / 'results.json').read_text())


# ---- the table


def test_a_row_per_init_and_fraction_with_mean_and_spread(call, tmp_path, checkpoint):
    code, out, err = call(
        DETECT, SEGMENT, '--init', 'scratch', '--init', f'FCMAE={checkpoint}', '--seeds', 2, '--fractions', 1
    )
    assert code == 0, err
    results = results_in(tmp_path)
    assert [(row['init'], row['fraction']) for row in results['rows']] == [('scratch', 1), ('FCMAE', 1)]
    cell = results['rows'][0]['tasks']['mask-rcnn']
    assert cell['metrics'] == {'box AP': {'0': 10, '1': 11}, 'mask AP': {'0': 5, '1': 5.5}}
    assert cell['memory_mb'] == {'0': 2048, '1': 2048} and cell['memory_of'] == 'GPU'
    assert re.search(
        r'^scratch +100% +10\.50 ± 0\.71 +5\.25 ± 0\.35 +10\.50 ± 0\.71 +\d+ +2\.00 +\d+ +2\.00$', out, re.MULTILINE
    ), out
    # the gain is 2 points at every seed, so its standard error is 0 although the seeds differ
    assert 'With FCMAE mask-rcnn box AP, mask-rcnn mask AP and upernet mIoU are higher than from scratch' in out
    assert 'scratch -> FCMAE: mask-rcnn box AP 10.50 -> 12.50 (+2.00, standard error 0.00)' in out
    lines = list(csv.DictReader((tmp_path / 'work' / 'results.csv').open()))
    assert len(lines) == 2 * 3
    line = next(line for line in lines if (line['init'], line['metric']) == ('FCMAE', 'mIoU'))
    assert (line['mean'], line['std'], line['values'], line['num_seeds']) == ('12.5', '0.707107', '12;13', '2')
    assert int(line['params']) > 3e6 and line['memory_of'] == 'GPU'
    assert {entry['name']: len(entry['sha256'] or '') for entry in results['inits']} == {'scratch': 0, 'FCMAE': 64}
    assert results['machine']['cores'] >= 1 and results['versions']['torch'] and len(results['stages']) == 16
    markdown = (tmp_path / 'work' / 'results.md').read_text()
    assert '| FCMAE | 100% | 12.50 ± 0.71 |' in markdown and 'not the best' in markdown


def test_every_init_of_a_seed_sees_the_same_images(call, tmp_path, checkpoint):
    call(SEGMENT, '--init', 'scratch', '--init', f'A={checkpoint}', '--seeds', 2, '--fractions', 1, 0.5)
    subset = {}
    for seed in (0, 1):
        for init in ('scratch', 'A'):
            for fraction in ('1', '0.5'):
                folder = tmp_path / 'work' / 'runs' / f'{SEGMENT_STEM}-{init}-{fraction}-seed{seed}'
                words = json.loads((folder / 'arguments.json').read_text())
                subset[seed, init, fraction] = [word for word in words if f'{tmp_path}/work/subsets' in word]
    assert all(words == [] for (_, _, fraction), words in subset.items() if fraction == '1')
    for seed in (0, 1):
        assert subset[seed, 'scratch', '0.5'] == subset[seed, 'A', '0.5'] != []
    files = [Path(subset[seed, 'A', '0.5'][0].split('=', 1)[1]) for seed in (0, 1)]
    assert all(len(path.read_text().split()) == 4 for path in files)  # half of 8
    assert [row['fraction'] for row in results_in(tmp_path)['rows']] == [1, 1, 0.5, 0.5]


def test_published_figures_stand_under_the_table():
    cell = {'metrics': {}, 'failed': [], 'running': [], 'train_seconds': {}, 'memory_mb': {}, 'memory_of': ''}
    task = {'label': 'upernet', 'metrics': ['mIoU'], 'published': {'mIoU': 52.1}}
    results = {'tasks': [task], 'seeds': [0], 'rows': [{'init': 'A', 'fraction': 1.0, 'tasks': {'upernet': cell}}]}
    _, rows = transfer_report.result_cells(results)
    assert rows == [['A', '100%', '-', '-', '-'], ['published', '100%', '52.1', '-', '-']]


def test_options_reach_their_tasks_only(call, tmp_path):
    code, out, _ = call(
        DETECT,
        SEGMENT,
        '--init',
        'scratch',
        '--seeds',
        1,
        '--dry-run',
        '--cfg-options',
        'train_cfg.max_iters=7',
        '--options-for',
        SEGMENT_STEM,
        'optim_wrapper.optimizer.lr=5',
    )
    assert code == 0 and not (tmp_path / 'work' / 'runs').exists()
    trains = [line for line in out.splitlines() if 'train.py' in line]
    assert ['lr=5' in line for line in trains] == [False, True]
    assert all(
        'train_cfg.max_iters=7' in line and 'data/demo/' not in line.replace('configs/demo/', '') for line in trains
    )
    assert 'test.py' in out and '"$(cat work/runs/' in out


def test_data_in_a_folder_with_blanks_and_commas_reach_the_training(call, data, tmp_path, capfd):
    there = tmp_path / 'my data, (new)'
    there.symlink_to(data)
    assert (
        transfer.main([SEGMENT, '--init', 'scratch', '--seeds', '1', '--dry-run', '--data', f'data/demo={there}']) == 0
    )
    words = shlex.split(next(line for line in capfd.readouterr().out.splitlines() if 'train.py' in line))
    given = read_options(words[words.index('--cfg-options') + 1 :])
    assert given['val_dataloader.dataset.data_root'] == f'{there.name}/ade'  # as it is shown


# ---- failures, resuming, testing


def test_the_others_go_on_after_a_failure_and_the_same_command_tries_again(call, tmp_path, checkpoint):
    broken = tmp_path / f'break-{SEGMENT_STEM}-scratch-1-seed1'
    broken.touch()
    args = (SEGMENT, '--init', 'scratch', '--init', f'A={checkpoint}', '--seeds', 3)
    code, out, err = call(*args)
    assert code == 1
    assert (
        '1 of 6 runs failed' in err and f'{broken.name.removeprefix("break-")}.log' in err and '| out of memory' in err
    )
    assert '11.00 ± 1.41 (2 of 3, 1 failed)' in out
    assert '2 of 3 seeds' in out  # pairs by seed: seed 1 has no partner
    assert '(+2.00, standard error 0.00' in out
    broken.unlink()
    code, out, _ = call(*args)
    assert code == 0 and out.count(': complete (') == 10 and '11.00 ± 1.00' in out and 'failed' not in out


def test_all_seeds_failed_is_said_in_the_table(call, tmp_path):
    (tmp_path / 'break-all').touch()
    code, out, _ = call(SEGMENT, '--init', 'scratch', '--seeds', 2)
    assert code == 1 and re.search(r'^scratch +100% +failed', out, re.MULTILINE)
    assert results_in(tmp_path)['rows'][0]['tasks']['upernet']['failed'] == [0, 1]


def test_a_run_is_tested_unless_its_last_validation_was_the_test(call, tmp_path):
    args = (SEGMENT, '--init', 'scratch', '--seeds', 1, '--options-for', SEGMENT_STEM, 'tta_pipeline=[1]')
    _, out, _ = call(*args)
    assert "measured by the training's last validation" in out and 'test.py' not in out
    _, out, _ = call(*args, '--tta')  # another test of the same training
    assert 'test.py' in out and '77.00' in out and ': complete (' in out
    # step 1 of 900: that validation did not see the final checkpoint
    _, out, _ = call(*args, '--cfg-options', 'train_cfg.val_interval=1', '--force')
    assert 'test.py' in out and '55.00' in out


def test_a_test_without_its_metric_has_failed(call, tmp_path):
    (tmp_path / 'find-nothing').touch()
    args = (SEGMENT, '--init', 'scratch', '--seeds', 1, '--cfg-options', 'train_cfg.val_interval=1')
    code, out, err = call(*args)
    assert code == 1 and 'metrics.json has no mIoU' in err and re.search(r'^scratch +100% +failed', out, re.MULTILINE)
    (tmp_path / 'find-nothing').unlink()
    code, out, _ = call(*args)
    assert code == 0 and '55.00' in out and 'train.py' not in out  # only the test is tried again


def test_results_of_other_settings_are_not_overwritten(call, tmp_path):
    args = (SEGMENT, '--init', 'scratch', '--seeds', 1)
    call(*args)
    code, _, err = call(*args, '--cfg-options', 'train_cfg.max_iters=5')
    assert code == 1 and 'other settings' in err and err.count('\n') == 1
    code, _, _ = call(*args, '--cfg-options', 'train_cfg.max_iters=5', '--force')
    assert code == 0, err


def test_no_run_is_started_after_the_given_hours(call, tmp_path):
    code, out, _ = call(SEGMENT, '--init', 'scratch', '--seeds', 2, '--max-hours', 0)
    assert code == 0 and '2 of 2 runs were not started' in out and not (tmp_path / 'work' / 'runs').exists()


def test_several_gpus_go_through_the_launchers():
    train = run_commands.train_command(Path('c.py'), Path('w'), {'a': 1}, gpus=4, resumes=True)
    assert train[0] == 'bash' and train[1].endswith('dist_train.sh')
    assert train[2:] == ['c.py', '4', '--work-dir', 'w', '--resume', '--cfg-options', 'a=1']
    test = run_commands.test_command(Path('c.py'), Path('k.pth'), Path('w'), Path('o.json'), 4, ['--tta'])
    assert test[1].endswith('dist_test.sh')
    assert test[2:] == ['c.py', 'k.pth', '4', '--work-dir', 'w', '--out', 'o.json', '--tta']


# ---- what cannot work is found before anything runs


def test_all_problems_are_listed_at_once(call, tmp_path, checkpoint):
    other = tmp_path / 'pico.pth'
    torch.save({'state_dict': ConvNeXtV2('pico').state_dict()}, other)
    (tmp_path / 'no_card.py').write_text('model = dict(type="ToyModel")')
    code, _, err = call(
        SEGMENT,
        'demo/fcmae_convnextv2-atto_demo.py',
        'nowhere.py',
        'no_card.py',
        '--init',
        f'good={checkpoint}',
        '--init',
        f'pico={other}',
        '--init',
        'gone=gone.pth',
        '--init',
        'nothing',
        '--init',
        f'a/b={checkpoint}',
        '--fractions',
        '0',
        '--seeds',
        '0',
        '--options-for',
        'unknown',
        'a=1',
        '--options-for',
        SEGMENT_STEM,
        'tta_pipeline=None',
        '--data',
        'data/mars=x',
        '--tta',
    )
    assert code == 1 and not (tmp_path / 'work' / 'runs').exists()
    lines = err.splitlines()
    assert re.fullmatch(r'error: \d+ problems, nothing was run', lines[0]), err
    assert int(re.findall(r'\d+', lines[0])[0]) == len(lines) - 1
    for expected in (
        '--seeds 0',
        '--fractions 0',
        '--init gone: checkpoint',
        '--init nothing: write',
        "the name 'a/b'",
        'pretrains a backbone',
        "'nowhere.py' does not exist",
        'has no train_dataloader',
        '--options-for unknown: no such task',
        '--data data/mars=x: no task',
        'has no tta_pipeline, which --tta needs',
    ):
        assert any(expected in line for line in lines[1:]), (expected, err)


def test_a_checkpoint_of_another_architecture_is_found_for_each_task(call, tmp_path):
    other = tmp_path / 'pico.pth'
    torch.save({'state_dict': ConvNeXtV2('pico').state_dict()}, other)
    code, _, err = call(DETECT, SEGMENT, '--init', f'pico={other}')
    assert code == 1 and err.count('--init pico does not fit') == 2 and "'pico'" in err and "'atto'" in err


def test_missing_data_and_missing_inits_are_said(call, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert transfer.main([SEGMENT]) == 1
    err = capfd.readouterr().err
    assert 'no --init' in err and 'data/demo/ade does not exist' in err and '--data OLD=NEW' in err


# ---- the real thing


@pytest.mark.slow
def test_two_real_steps_from_scratch_and_from_a_checkpoint(tmp_path, data, checkpoint):
    options = [
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'val_dataloader.num_workers=0',
        'train_cfg.max_iters=2',
        'param_scheduler.0.end=1',
        'param_scheduler.1.begin=1',
        'default_hooks.logger.interval=1',
    ]
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tools' / 'transfer.py'),
            SEGMENT,
            '--init',
            'scratch',
            '--init',
            f'A={checkpoint}',
            '--seeds',
            '1',
            '--fractions',
            '0.5',
            '--data',
            f'data/demo={data}',
            '--work-dir',
            'work',
            '--cfg-options',
            *options,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = results_in(tmp_path)
    cells = [row['tasks']['upernet'] for row in results['rows']]
    assert all(set(cell['metrics']) == {'mIoU'} and 0 <= cell['metrics']['mIoU']['0'] <= 100 for cell in cells)
    assert all(cell['memory_of'] == 'largest process' and cell['memory_mb']['0'] > 200 for cell in cells)
    logs = [
        (tmp_path / 'work' / 'logs' / f'{SEGMENT_STEM}-{init}-0.5-seed0.log').read_text() for init in ('scratch', 'A')
    ]
    assert 'starts from random weights' in logs[0] and f'from {checkpoint}' in logs[1]
    assert cells[0]['metrics'] != cells[1]['metrics']
