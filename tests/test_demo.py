"""The demo: its stages with fake commands, and once with the real ones (quick variant)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import run_demo  # noqa: E402
from run_demo import Demo, DemoError, Stage, progress_of  # noqa: E402


def python_stage(name, code, tmp_path, settings=None, needs=(), **options):
    """A stage whose command is a line of Python that finds its work dir in `d`."""
    work_dir = tmp_path / 'work' / name
    before = f'import sys, pathlib; d = pathlib.Path({str(work_dir)!r}); d.mkdir(parents=True, exist_ok=True); '
    code = before + code
    return Stage(
        name, f'Stage {name}', lambda: [sys.executable, '-c', code], settings or {}, needs, work_dir, **options
    )


def demo_of(tmp_path, *stages, **options):
    return Demo(tmp_path / 'work', tmp_path / 'data', {stage.name: stage for stage in stages}, **options)


COUNT = "(d / 'runs').open('a').write('x'); "


def num_runs(tmp_path, name):
    return len((tmp_path / 'work' / name / 'runs').read_text())


def test_a_complete_stage_is_not_run_again_unless_something_changed(tmp_path, capsys):
    stage = python_stage('a', COUNT, tmp_path)
    demo_of(tmp_path, stage).run(stage)
    demo_of(tmp_path, stage).run(stage)
    assert num_runs(tmp_path, 'a') == 1 and 'Stage a: complete' in capsys.readouterr().out
    (tmp_path / 'work' / 'a' / 'old').touch()
    changed = python_stage('a', COUNT, tmp_path, settings={'lr': 2})
    demo_of(tmp_path, changed).run(changed)
    assert not (tmp_path / 'work' / 'a' / 'old').exists()  # other settings start from nothing
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'meta.json').write_text('{}')  # other data as well
    capsys.readouterr()
    demo_of(tmp_path, changed).run(changed)
    assert ': complete' not in capsys.readouterr().out
    demo_of(tmp_path, changed, force=True).run(changed)
    assert num_runs(tmp_path, 'a') == 1


def test_a_stage_that_others_need_must_be_complete_with_its_present_settings(tmp_path):
    first, second = python_stage('a', COUNT, tmp_path), python_stage('b', COUNT, tmp_path, needs=('a',))
    with pytest.raises(DemoError, match='--stages a b'):
        demo_of(tmp_path, first, second).run(second)
    for stage in (first, second):
        demo_of(tmp_path, first, second).run(stage)
    changed = python_stage('a', COUNT, tmp_path, settings={'lr': 2})
    with pytest.raises(DemoError, match='needs a'):
        demo_of(tmp_path, changed, second).run(second)


def test_failing_stage_shows_its_last_lines_and_is_resumed(tmp_path, capsys):
    code = (
        "(d / 'last_checkpoint').touch(); print('one'); print('error: broken', file=sys.stderr); "
        "sys.exit(0 if '--resume' in sys.argv else 3)"
    )
    stage = python_stage('a', code, tmp_path)
    with pytest.raises(DemoError, match=r'stage a ended with exit code 3; its whole output: .*a\.log'):
        demo_of(tmp_path, stage).run(stage)
    assert '| error: broken' in capsys.readouterr().err
    demo_of(tmp_path, stage).run(stage)
    marker = json.loads((tmp_path / 'work' / 'stages' / 'a.json').read_text())
    assert marker['complete'] and marker['attempts'] == 2 and marker['command'].endswith('--resume')
    log = (tmp_path / 'work' / 'logs' / 'a.log').read_text().splitlines()
    assert log.count('error: broken') == 2  # the first attempt's log is kept


def test_a_stage_without_its_product_has_failed(tmp_path):
    stage = python_stage('a', 'pass', tmp_path, product=tmp_path / 'product')
    with pytest.raises(DemoError, match='left no'):
        demo_of(tmp_path, stage).run(stage)


def test_progress_lines_of_mmengine():
    train = (
        '01/01 00:00:00 - mmengine - INFO - Epoch(train)  [3][ 10/31]  lr: 1.0e-03  eta: 1 day, 0:01:20  '
        'time: 0.5  loss: 0.7100'
    )
    assert progress_of(train) == 'train [3][10/31]  loss 0.7100  ETA 1 day, 0:01:20'
    assert (
        progress_of('... Iter(train) [ 20/120]  eta: 0:00:31  loss: nan  decode.loss_ce: 1')
        == 'train [20/120]  loss nan  ETA 0:00:31'
    )
    assert progress_of('... Iter(val) [10/64]    time: 0.1') == 'val [10/64]'
    assert progress_of('Loads checkpoint by local backend') is None


def test_markers_from_another_version_or_damaged_run_the_stage_again(tmp_path):
    stage = python_stage('a', COUNT, tmp_path)
    demo_of(tmp_path, stage).run(stage)
    for content in ('{"key": "x", "unknown": 1}', '{half'):
        (tmp_path / 'work' / 'stages' / 'a.json').write_text(content)
        assert demo_of(tmp_path, stage).complete_marker(stage) is None


@pytest.mark.parametrize('sign', [signal.SIGINT, signal.SIGTERM])
def test_interruption_ends_the_command_and_its_children(tmp_path, sign):
    """Ctrl-C in the middle: the demo ends the whole process group; what it started does not go on alone."""
    pids = tmp_path / 'pids'
    code = (
        'import os, subprocess, sys, time, pathlib; child = subprocess.Popen(["sleep", "60"]); '
        f'pathlib.Path({str(pids)!r}).write_text(f"{{os.getpid()}} {{child.pid}}"); time.sleep(60)'
    )
    script = (
        f'import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tools")!r}]\n'
        'import run_demo; from pathlib import Path\n'
        f'command, log = [sys.executable, "-c", {code!r}], Path({str(tmp_path / "log")!r})\n'
        'run_demo.run = lambda args: run_demo.stream(command, log, -1, False)\n'
        f'sys.exit(run_demo.main([]))'
    )
    demo = subprocess.Popen(
        [sys.executable, '-c', script], stderr=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=heed_interrupts
    )
    deadline = time.monotonic() + 60
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert time.monotonic() < deadline and demo.poll() is None
        time.sleep(0.05)
    demo.send_signal(sign)
    assert demo.wait(30) == 130
    assert 'interrupted; the same command goes on from here' in demo.stderr.read()
    for pid in map(int, pids.read_text().split()):
        assert not is_running(pid)


def heed_interrupts():
    """A shell starts its background jobs deaf to Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_running(pid):
    """True for a process that runs; one that has ended and was not yet collected does not."""
    for _ in range(50):
        try:
            state = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == 'Z':
            return False
        time.sleep(0.05)
    return True


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
