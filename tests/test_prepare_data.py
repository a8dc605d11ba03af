"""Guards tools/prepare_data.py: its options reach the scenes, mistakes end in one line."""
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / 'tools' / 'prepare_data.py'
SMALL = ['--unlabelled', '9', '--train', '2', '--val', '3', '--size', '64', '--workers', '2']


@pytest.fixture(scope='module')
def prepare():
    spec = importlib.util.spec_from_file_location('prepare_data', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


def test_options_reach_the_scenes(prepare, tmp_path, capsys):
    out = tmp_path / 'some' / 'demo'
    prepare('demo', '--out', out, *SMALL, '--seed', 5)
    assert 'wrote 9 unlabelled, 2 train, 3 val scenes of 64 px' in capsys.readouterr().out
    settings = json.loads((out / 'meta.json').read_text())['settings']
    assert {key: settings[key] for key in ('unlabelled', 'train', 'val', 'size', 'seed')} == dict(
        unlabelled=9, train=2, val=3, size=64, seed=5)
    assert len(os.listdir(out / 'unlabelled')) == 9
    prepare('demo', '--out', out, *SMALL, '--seed', 5)
    assert 'complete already' in capsys.readouterr().out
    prepare('demo', '--out', out, *SMALL, '--seed', 6, '--force')
    assert 'wrote' in capsys.readouterr().out


def test_a_mistake_ends_in_one_line(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    done = subprocess.run([sys.executable, str(SCRIPT), 'demo', '--out', str(tmp_path)], capture_output=True, text=True,
                          cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and '--out' in done.stderr


def test_help_names_the_data_sets(prepare, capsys):
    with pytest.raises(SystemExit, match='0'):
        prepare('--help')
    assert 'demo' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='2'):
        prepare()
