"""The pure parts of tools/make_env.py, and what it prints; building is proved by every run of the tests themselves."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / 'tools' / 'make_env.py'


@pytest.fixture(scope='module')
def make_env():
    spec = importlib.util.spec_from_file_location('make_env', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOCK = """\
# a comment
numpy==2.2.6 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via torch
onedl-mmcv==2.3.6 \\
    --hash=sha256:cc
pywin32==311 ; sys_platform == 'win32' \\
    --hash=sha256:dd
pywin32==310 ; python_full_version < '3.8' \\
    --hash=sha256:ee
"""


def test_split_lock_keeps_hashes_and_tells_markers_apart(make_env):
    entries = make_env.split_lock(LOCK)
    assert list(entries) == [
        'numpy',
        'onedl-mmcv',
        "pywin32 ; sys_platform == 'win32'",
        "pywin32 ; python_full_version < '3.8'",
    ]
    assert entries['numpy'] == 'numpy==2.2.6 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb'
    assert make_env.pinned_version(entries['onedl-mmcv']) == '2.3.6'


def test_split_lock_of_our_lock_loses_no_package(make_env):
    text = (ROOT / 'requirements.lock').read_text()
    entries = make_env.split_lock(text)
    assert len(entries) == sum('==' in line and not line.startswith((' ', '#')) for line in text.splitlines())
    assert all('--hash=sha256:' in entry for entry in entries.values())
    assert {make_env.COMPILED, *make_env.BUILD_TOOLS} <= set(entries)
    assert sum(entry.count('--hash') for entry in entries.values()) == text.count('    --hash=')


def test_the_key_changes_with_the_lock_and_with_python_only(make_env):
    key = make_env.env_key(LOCK, '3.11')
    assert key == make_env.env_key(LOCK, '3.11')
    assert key != make_env.env_key(LOCK + '#', '3.11')
    assert key != make_env.env_key(LOCK, '3.12')
    assert key.endswith('-py3.11')


def fake_python(folder: Path, name: str, answer: str) -> str:
    path = folder / name
    path.write_text(f'#!/bin/sh\n{answer}\n')
    path.chmod(0o755)
    return str(path)


def test_find_python_takes_the_named_one_or_says_what_it_saw(make_env, monkeypatch, tmp_path):
    good = fake_python(tmp_path, 'good', 'echo 3.12')
    monkeypatch.setenv('MMCNX2_PYTHON', good)
    assert make_env.find_python() == (good, '3.12')
    for answer, seen in (('echo 3.9', '3.9'), ('exit 127', 'not usable')):
        monkeypatch.setenv('MMCNX2_PYTHON', fake_python(tmp_path, 'bad', answer))
        with pytest.raises(SystemExit, match=f'bad: {seen}'):
            make_env.find_python()


def test_find_python_passes_over_a_shim_that_does_not_start(make_env, monkeypatch, tmp_path):
    fake_python(tmp_path, 'python3.11', 'exit 127')
    fake_python(tmp_path, 'python3.12', 'echo 3.12')
    monkeypatch.delenv('MMCNX2_PYTHON', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    assert make_env.find_python() == ('python3.12', '3.12')


def test_an_environment_whose_interpreter_is_gone_is_not_ready(make_env, tmp_path):
    (tmp_path / 'bin').mkdir()
    (tmp_path / '.complete').touch()
    assert not make_env.is_ready(tmp_path)
    fake_python(tmp_path / 'bin', 'python', 'echo 3.11')
    assert make_env.is_ready(tmp_path)
    (tmp_path / '.complete').unlink()
    assert not make_env.is_ready(tmp_path)


def test_only_dead_or_old_builds_are_removed(make_env, tmp_path):
    host = make_env.socket.gethostname()
    dead = subprocess.Popen(['true'])
    dead.wait()
    names = {
        'live': f'building-{host}-{os.getpid()}',
        'dead': f'building-{host}-{dead.pid}',
        'elsewhere': f'building-other-host-{dead.pid}',
        'old': 'building-other-host-1',
    }
    for name in names.values():
        (tmp_path / name).mkdir()
    long_ago = time.time() - make_env.STALE_S - 60
    os.utime(tmp_path / names['old'], (long_ago, long_ago))
    make_env.remove_stale_builds(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {names['live'], names['elsewhere']}


def test_what_is_missing_is_said_before_anything_is_downloaded(make_env, monkeypatch, tmp_path):
    monkeypatch.setenv('MMCNX2_CACHE', str(tmp_path))
    monkeypatch.setattr(make_env.shutil, 'disk_usage', lambda path: make_env.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(SystemExit, match='GB are free'):
        make_env.check_machine(sys.executable, '3.11', LOCK)
    monkeypatch.setattr(make_env.shutil, 'disk_usage', lambda path: make_env.shutil._ntuple_diskusage(0, 0, 1e12))
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(SystemExit, match="no C\\+\\+ compiler 'no-such-compiler'"):
        make_env.check_machine(sys.executable, '3.11', LOCK)
    monkeypatch.setenv('CXX', 'sh')
    no_headers = fake_python(tmp_path, 'python-without-headers', f'echo {tmp_path}')
    with pytest.raises(SystemExit, match=r'Python\.h'):
        make_env.check_machine(no_headers, '3.11', LOCK)
    kept = tmp_path / 'wheels' / f'torch-1_cuda-none_{make_env.compiled_tag("3.11")}' / 'onedl_mmcv-2.3.6-cp311.whl'
    kept.parent.mkdir(parents=True)
    kept.touch()  # compiled before: no compiler is needed
    make_env.check_machine(no_headers, '3.11', LOCK)


def test_print_interpreter_prints_one_line_and_builds_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, '--print-interpreter'],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, 'MMCNX2_CACHE': str(tmp_path)},
    )
    assert done.stdout.count('\n') == 1
    assert done.stdout.startswith(str(tmp_path))
    assert done.stdout.endswith('/bin/python\n')
    assert not list(tmp_path.iterdir())
