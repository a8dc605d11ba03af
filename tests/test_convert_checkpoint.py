"""The conversion command: its output, its provenance, and errors in one line with no file left behind."""
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mmcnx2.checkpoint import CheckpointError, convert_state_dict, read_checkpoint

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location('convert_checkpoint', ROOT / 'tools/convert_checkpoint.py')
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture(scope='module')
def state_dict():
    with safe_open(ROOT / 'tests/data/fcmae_micro_batch1.safetensors', 'pt') as file:
        return {name.removeprefix('state_dict/'): file.get_tensor(name) for name in file.keys()  # noqa: SIM118
                if name.startswith('state_dict/')}


@pytest.fixture
def source(tmp_path, state_dict):
    torch.save({'model': state_dict}, tmp_path / 'official.pth')
    return tmp_path / 'official.pth'


def run(*arguments, cwd):
    command = [sys.executable, str(ROOT / 'tools/convert_checkpoint.py'), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


DROP_DECODER = ('--drop', 'decoder.*', 'proj.*', 'pred.*', 'mask_token')


def test_it_converts_and_says_where_the_file_comes_from(tmp_path, source, state_dict):
    done = run(source, tmp_path / 'ours.safetensors', '--target', 'mmcnx2', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '81 of 81 tensors, meta-sparse -> mmcnx2' in done.stdout
    checkpoint = read_checkpoint(tmp_path / 'ours.safetensors')
    expected = convert_state_dict(state_dict, source='meta-sparse', target='mmcnx2')
    assert checkpoint['state_dict'].keys() == expected.keys()
    assert all(tensor.equal(expected[name]) for name, tensor in checkpoint['state_dict'].items())
    meta = checkpoint['meta']
    assert meta['source_sha256'] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (meta['source_file'], meta['source_layout']) == ('official.pth', 'meta-sparse')
    assert (meta['target_layout'], meta['source_tensors'], meta['target_tensors']) == ('mmcnx2', '81', '81')
    assert meta['mmcnx2_version']

    tool.main([str(tmp_path / 'ours.safetensors'), str(tmp_path / 'back.pth'), '--target', 'meta-sparse'])
    content = torch.load(tmp_path / 'back.pth', weights_only=True)
    assert content['meta']['source_layout'] == 'mmcnx2' and json.dumps(content['meta'])
    assert content['model'].keys() == state_dict.keys()
    assert all(content['model'][name].equal(tensor) for name, tensor in state_dict.items())


def test_verify_compares_outputs(tmp_path, source, capsys):
    tool.main([str(source), str(tmp_path / 'timm.safetensors'), '--target', 'timm', *DROP_DECODER, '--verify'])
    output = capsys.readouterr().out
    assert '66 of 81 tensors' in output and 'timm features' in output


@pytest.mark.parametrize(('name', 'arguments', 'message'), [
    ('out.pth', ['--target', 'timm'], "layout timm has no place for 15 tensors"),
    ('out.pth', ['--target', 'mmcnx2', '--source', 'huggingface'], 'not a huggingface checkpoint'),
    ('out.pth', ['--target', 'mmcnx2', '--drop', 'nothing.*'], 'matches no name'),
    ('out.pth', ['--target', 'mmcnx2', '--expect-missing', 'x', '--verify'], 'cannot be combined'),
    ('out.bin', ['--target', 'mmcnx2'], 'the ending says the format'),
    ('nowhere/out.pth', ['--target', 'mmcnx2'], 'does not exist'),
    ('official.pth', ['--target', 'mmcnx2'], 'IN and OUT are the same file'),
])
def test_every_error_is_one_line_and_leave_no_file(tmp_path, source, name, arguments, message):
    before = source.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        tool.main([str(source), str(tmp_path / name), *arguments])
    assert message in str(caught.value) and '\n' not in str(caught.value)
    assert os.listdir(tmp_path) == ['official.pth'] and source.read_bytes() == before


def test_the_command_ends_with_the_line_and_code_1(tmp_path):
    done = run('nothing.pth', 'out.pth', '--target', 'timm', cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, 'error: checkpoint nothing.pth does not exist\n')
