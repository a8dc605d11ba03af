"""The demo once with the real commands (quick variant), and its messages. How stages are run is tested in
tests/engine/test_stages.py.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


@pytest.fixture(scope='module')
def quick(tmp_path_factory):
    """One whole quick run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp('demo')
    return folder, run_quick(folder)


def run_quick(folder, *options):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tools' / 'run_demo.py'),
            '--quick',
            '--work-dir',
            'work',
            '--data',
            'data',
            *options,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    return done


@pytest.mark.slow
def test_quick_run_from_end_to_end(quick):
    folder, done = quick
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
    for name in ('results.md', 'loss_curves.png', 'reconstruction.png', 'detections.png', 'segmentations.png'):
        assert (work / name).stat().st_size > 0
    page = (work / 'index.html').read_text()
    assert page.count('data:image/png;base64,') == 4
    outside = [
        address
        for address in re.findall(r'(?:src|href|srcset|action)\s*=\s*"([^"]*)"', page)
        if not address.startswith('data:')
    ]
    assert outside == [] and '<script' not in page and 'url(' not in page


@pytest.mark.slow
def test_only_the_pretrained_row_starts_from_the_checkpoint(quick):
    stages = {
        stage['name']: stage['command']
        for stage in json.loads((quick[0] / 'work' / 'results.json').read_text())['stages']
    }
    for task in ('detect', 'segment'):
        scratch, pretrained = stages[f'{task}-scratch'].split(), stages[f'{task}-pretrained'].split()
        added = [word for word in pretrained if word not in scratch]
        assert [word.split('=')[0] for word in added if '=' in word] == [
            'model.backbone.init_cfg.checkpoint',
        ]
        assert 'init_cfg' not in stages[f'{task}-scratch']  # and the rest, seed and budget, is equal


@pytest.mark.slow
def test_second_quick_run_returns_at_once(quick):
    started = time.monotonic()
    done = run_quick(quick[0])
    assert done.returncode == 0 and done.stdout.count(': complete (') == 6 and 'FCMAE-pretrained' in done.stdout
    assert time.monotonic() - started < 20


@pytest.mark.slow
def test_corrupt_checkpoint_between_stages_stops_the_demo(quick):
    folder, _ = quick
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
