"""The demo once with the real commands (quick variant), and its messages. How stages are run is tested in
tests/engine/test_stages.py.
"""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from demo_runs import run_quick

from mmcnx2.analysis.confusion import intersections_over_unions
from mmcnx2.engine.config_options import read_options

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import run_demo  # noqa: E402


def test_user_errors_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_demo.main(['--stages', 'everything']) == 1
    error = capsys.readouterr().err
    assert (
        error.startswith('error: unknown stage everything; the stages are data pretrain detect-scratch')
        and error.count('\n') == 1
    )
    assert run_demo.main(['--seeds', '0']) == 1
    assert capsys.readouterr().err == 'error: --seeds 0: at least one run per row is needed\n'


def test_folders_with_blanks_reach_the_training(tmp_path):
    folder = tmp_path / 'my demo, (1)'
    args = run_demo.parse_args(['--quick', '--work-dir', str(folder), '--data', str(tmp_path / 'my data')])
    checkpoint = folder / 'pretrain' / 'epoch_2.pth'
    checkpoint.parent.mkdir(parents=True)
    (folder / 'pretrain' / 'last_checkpoint').write_text(str(checkpoint))
    checkpoint.touch()
    words = run_demo.build_stages(args)['segment-pretrained'].commands[0](False)
    given = read_options(words[words.index('--cfg-options') + 1 :])
    assert given['model.backbone.init_cfg.checkpoint'] == str(checkpoint)
    assert given['train_dataloader.dataset.data_root'] == f'{tmp_path}/my data/ade'
    assert given['train_cfg.max_iters'] == 2 and given['train_dataloader.persistent_workers'] is False


@pytest.mark.slow
def test_quick_run_from_end_to_end(quick_demo):
    folder, done = quick_demo
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.search(
        r'box AP +mask AP +mIoU +seconds\n-+\nfrom scratch +[\d.]+ +[\d.]+ +[\d.]+ +\d+\n'
        r'FCMAE-pretrained +[\d.]+ +[\d.]+ +[\d.]+ +\d+\n',
        done.stdout,
    ), done.stdout
    assert '$ python' in done.stdout and 'tools/train.py' in done.stdout
    work = folder / 'work'
    results = json.loads((work / 'results.json').read_text())
    assert [row['label'] for row in results['rows']] == ['from scratch', 'FCMAE-pretrained']
    for row in results['rows']:
        assert set(row['metrics']) == {'box AP', 'mask AP', 'mIoU'} and all(
            len(values) == 1 for values in row['metrics'].values()
        )
    assert [stage['name'] for stage in results['stages']] == [
        'data',
        'pretrain',
        'detect-scratch',
        'detect-pretrained',
        'segment-scratch',
        'segment-pretrained',
    ]
    assert (
        results['machine']['cores'] >= 1
        and results['versions']['torch']
        and results['command']
        and results['data']['meta']
    )
    assert 'figures mean nothing' in ' '.join(results['verdict'])
    for name in ('results.md', 'reconstruction.png', 'detections.png', 'segmentations.png'):
        assert (work / name).stat().st_size > 0
    page = (work / 'index.html').read_text()
    assert re.findall(r'<h2>(.*?)</h2>', page) == [
        'Result', 'Pretraining', 'Detection', 'Segmentation', 'Cost', 'Wall time', 'Commands',
    ]  # fmt: skip
    assert page.count('<figure class="picture"><img') == 3


@pytest.mark.slow
def test_the_page_counts_the_pixels_that_the_metric_counted(quick_demo):
    work = quick_demo[0] / 'work'
    results = json.loads((work / 'results.json').read_text())
    for row, name in enumerate(('scratch', 'pretrained')):
        kept = json.loads((work / f'segment-{name}' / 'report' / 'confusion.json').read_text())['result']
        ious = intersections_over_unions(np.array(kept['counts']))
        assert kept['unit'] == 'pixels' and kept['num_images'] == 4 and sum(map(sum, kept['counts'])) == 4 * 192 * 192
        assert np.nanmean(ious) == pytest.approx(results['rows'][row]['metrics']['mIoU'][0], abs=5.1e-5)
        boxes = json.loads((work / f'detect-{name}' / 'report' / 'confusion.json').read_text())['result']
        objects = json.loads((quick_demo[0] / 'data' / 'coco' / 'annotations' / 'instances_val.json').read_text())
        found = np.bincount([each['category_id'] for each in objects['annotations']], minlength=7)[1:]
        assert np.array(boxes['counts'])[:-1].sum(1).tolist() == found.tolist()


@pytest.mark.slow
def test_only_the_pretrained_row_starts_from_the_checkpoint(quick_demo):
    stages = {
        stage['name']: stage['command']
        for stage in json.loads((quick_demo[0] / 'work' / 'results.json').read_text())['stages']
    }
    for task in ('detect', 'segment'):
        scratch, pretrained = stages[f'{task}-scratch'].split(), stages[f'{task}-pretrained'].split()
        added = [word for word in pretrained if word not in scratch]
        assert [word.split('=')[0] for word in added if '=' in word] == [
            'model.backbone.init_cfg.checkpoint',
        ]
        assert 'init_cfg' not in stages[f'{task}-scratch']  # and the rest, seed and budget, is equal


@pytest.mark.slow
def test_second_quick_run_returns_at_once(quick_demo):
    started = time.monotonic()
    done = run_quick(quick_demo[0])
    assert done.returncode == 0 and done.stdout.count(': complete (') == 6 and 'FCMAE-pretrained' in done.stdout
    assert time.monotonic() - started < 20


@pytest.mark.slow
def test_corrupt_checkpoint_between_stages_stops_the_demo(quick_demo):
    folder, _ = quick_demo
    pointer = folder / 'work' / 'pretrain' / 'last_checkpoint'
    checkpoint = folder / 'work' / 'pretrain' / Path(pointer.read_text().strip()).name
    whole = checkpoint.read_bytes()
    try:
        checkpoint.write_bytes(whole[: len(whole) // 2])
        done = run_quick(folder, '--force', '--stages', 'segment-pretrained', 'report')
    finally:
        checkpoint.write_bytes(whole)
    assert done.returncode == 1
    assert checkpoint.name in done.stderr and 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        'error: stage segment-pretrained ended with exit code 1; its whole output: '
    )
    assert 'box AP' not in done.stdout  # no table from half a demo
