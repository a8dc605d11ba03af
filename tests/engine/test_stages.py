"""Stages with fake commands: what is run again and what is not, failures, resuming, locks, interruption."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmcnx2.engine.stages import Stage, StageBusyError, StageError, StageRun, progress_of, stream

ROOT = Path(__file__).resolve().parents[2]


def python_stage(name, code, tmp_path, settings=None, needs=(), **options):
    """A stage whose command is a line of Python that finds its work dir in `d`."""
    work_dir = tmp_path / 'work' / name
    before = f'import sys, pathlib; d = pathlib.Path({str(work_dir)!r}); d.mkdir(parents=True, exist_ok=True); '
    code = before + code

    def command(resumes):
        return [
            sys.executable,
            '-c',
            code,
            *(['--resume'] if resumes and (work_dir / 'last_checkpoint').exists() else []),
        ]

    return Stage(name, f'Stage {name}', (command,), settings or {}, needs, work_dir, **options)


def kept(tmp_path, *stages, **options):
    """The stages in a work dir; their data is the file `data`."""
    data = tmp_path / 'data'
    by_name = {stage.name: stage for stage in stages}
    return StageRun(tmp_path / 'work', by_name, lambda: data.read_text() if data.exists() else 'missing', **options)


COUNT = "(d / 'runs').open('a').write('x'); "


def num_runs(tmp_path, name):
    return len((tmp_path / 'work' / name / 'runs').read_text())


def test_a_complete_stage_is_not_run_again_unless_something_changed(tmp_path, capsys):
    stage = python_stage('a', COUNT, tmp_path)
    kept(tmp_path, stage).run(stage)
    kept(tmp_path, stage).run(stage)
    assert num_runs(tmp_path, 'a') == 1 and 'Stage a: complete' in capsys.readouterr().out
    (tmp_path / 'work' / 'a' / 'old').touch()
    changed = python_stage('a', COUNT, tmp_path, settings={'lr': 2})
    kept(tmp_path, changed).run(changed)
    assert not (tmp_path / 'work' / 'a' / 'old').exists()  # other settings start from nothing
    (tmp_path / 'data').write_text('new')  # other data as well
    capsys.readouterr()
    kept(tmp_path, changed).run(changed)
    assert ': complete' not in capsys.readouterr().out
    kept(tmp_path, changed, force=True).run(changed)
    assert num_runs(tmp_path, 'a') == 1


def test_a_training_that_is_not_the_stages_own_is_put_aside(tmp_path, capsys):
    """Begun by hand in the stage's folder, or with other settings before."""
    folder = tmp_path / 'work' / 'a'
    folder.mkdir(parents=True)
    (folder / 'last_checkpoint').write_text('iter_15625.pth')
    (folder / 'iter_15625.pth').write_text('weights')
    stage = python_stage('a', COUNT, tmp_path)
    kept(tmp_path, stage).run(stage)
    (aside,) = (tmp_path / 'work').glob('a.before-*')
    assert (aside / 'iter_15625.pth').read_text() == 'weights'
    assert num_runs(tmp_path, 'a') == 1 and not (folder / 'iter_15625.pth').exists()
    assert f'it is kept as {aside}' in capsys.readouterr().out


def test_a_stage_that_others_need_must_be_complete_with_its_present_settings(tmp_path):
    first, second = python_stage('a', COUNT, tmp_path), python_stage('b', COUNT, tmp_path, needs=('a',))
    with pytest.raises(StageError, match='--stages a b'):
        kept(tmp_path, first, second).run(second)
    for stage in (first, second):
        kept(tmp_path, first, second).run(stage)
    changed = python_stage('a', COUNT, tmp_path, settings={'lr': 2})
    with pytest.raises(StageError, match='needs a'):
        kept(tmp_path, changed, second).run(second)


def test_failing_stage_shows_its_last_lines_and_is_resumed(tmp_path, capsys):
    code = (
        "(d / 'last_checkpoint').touch(); print('one'); print('error: broken', file=sys.stderr); "
        "sys.exit(0 if '--resume' in sys.argv else 3)"
    )
    stage = python_stage('a', code, tmp_path)
    with pytest.raises(StageError, match=r'stage a ended with exit code 3; its whole output: .*a\.log'):
        kept(tmp_path, stage).run(stage)
    assert '| error: broken' in capsys.readouterr().err
    kept(tmp_path, stage).run(stage)
    marker = json.loads((tmp_path / 'work' / 'stages' / 'a.json').read_text())
    assert marker['complete'] and marker['attempts'] == 2 and marker['command'].endswith('--resume')
    log = (tmp_path / 'work' / 'logs' / 'a.log').read_text().splitlines()
    assert log.count('error: broken') == 2  # the first attempt's log is kept


def test_a_stage_without_its_product_has_failed(tmp_path):
    stage = python_stage('a', 'pass', tmp_path, product=tmp_path / 'product')
    with pytest.raises(StageError, match='left no'):
        kept(tmp_path, stage).run(stage)


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
    kept(tmp_path, stage).run(stage)
    for content in ('{"key": "x", "unknown": 1}', '{half'):
        (tmp_path / 'work' / 'stages' / 'a.json').write_text(content)
        assert kept(tmp_path, stage).complete_marker(stage) is None


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
        'import run_demo; from pathlib import Path; from mmcnx2.engine.stages import stream\n'
        f'command, log = [sys.executable, "-c", {code!r}], Path({str(tmp_path / "log")!r})\n'
        'run_demo.run = lambda args: stream(command, log, -1, False)\n'
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


def test_commands_of_a_stage_follow_each_other_and_only_the_missing_ones_are_repeated(tmp_path):
    work_dir = tmp_path / 'work' / 'a'

    def python(code):
        return [sys.executable, '-c', f'import pathlib, sys; d = pathlib.Path({str(work_dir)!r}); {code}']

    stage = Stage(
        'a',
        'Stage a',
        (
            lambda resumes: python(f'd.mkdir(parents=True, exist_ok=True); {COUNT}'),
            lambda resumes: None,  # nothing to do
            lambda resumes: python("sys.exit(0 if (d / 'repaired').exists() else 4)"),
        ),
        {},
        work_dir=work_dir,
    )
    run = kept(tmp_path, stage)
    with pytest.raises(StageError, match='exit code 4'):
        run.run(stage)
    assert 'exit code 4' in run.read_marker('a').failure
    (work_dir / 'repaired').touch()
    run.run(stage)
    marker = run.read_marker('a')
    assert marker.complete and marker.failure == '' and num_runs(tmp_path, 'a') == 1
    assert marker.command.count('\n') == 1  # both commands, one line each


def test_two_processes_never_run_the_same_stage(tmp_path):
    stage = python_stage('a', COUNT, tmp_path)
    run, other = kept(tmp_path, stage), kept(tmp_path, stage)
    with other.locked('a'):
        assert run.is_busy('a') and not run.is_busy('b')
        with pytest.raises(StageBusyError, match='another process'):
            run.run(stage)
    assert not run.is_busy('a')
    run.run(stage)


def test_a_command_that_outlives_its_parent_holds_the_lock(tmp_path):
    run = kept(tmp_path)
    with run.locked('a') as lock_fd:
        child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE, pass_fds=(lock_fd,))
    assert run.is_busy('a')
    child.communicate(b'\n')
    assert not run.is_busy('a')


def test_peak_memory_is_that_of_the_command_not_of_earlier_ones(tmp_path):
    own = bytearray(200 * 2**20)  # nor that of the process that starts it
    peaks = [
        stream([sys.executable, '-c', f'bytearray({size_mb} * 2**20)'], tmp_path / 'log', -1, False).peak_rss_mb
        for size_mb in (300, 1)
    ]
    assert 300 < peaks[0] < 350 and 1 < peaks[1] < 50 and own
