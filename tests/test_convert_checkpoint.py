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
from mmcnx2.checkpoint.convert import inflate_stem
from mmcnx2.checkpoint.key_rules import LAYOUTS

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location('convert_checkpoint', ROOT / 'tools/convert_checkpoint.py')
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture(scope='module')
def state_dict():
    with safe_open(ROOT / 'tests/data/fcmae_micro_batch1.safetensors', 'pt') as file:
        return {
            name.removeprefix('state_dict/'): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
            if name.startswith('state_dict/')
        }


@pytest.fixture
def source(tmp_path, state_dict):
    torch.save({'model': state_dict}, tmp_path / 'official.pth')
    return tmp_path / 'official.pth'


def run(*arguments, cwd):
    command = [sys.executable, str(ROOT / 'tools/convert_checkpoint.py'), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def four_channels(how, number=4):
    return '--in-channels', number, '--inflate', how


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


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('out.pth', ['--target', 'mmcnx2', '--in-channels', '4'], '--in-channels and --inflate belong together'),
        ('out.pth', ['--target', 'mmcnx2', '--inflate', 'zero'], '--in-channels and --inflate belong together'),
        ('out.pth', ['--target', 'timm', *DROP_DECODER, *four_channels('mean', 3)], 'has 3 input channels already'),
        ('out.pth', ['--target', 'timm', *DROP_DECODER, *four_channels('mean', 0)], 'at least 1 input channel'),
        ('out.pth', ['--target', 'timm', *DROP_DECODER, *four_channels('zero', 1)], "only 'mean' can"),
        ('out.pth', ['--target', 'mmcnx2', *four_channels('mean')], 'predicts the pixels of 3 channels'),
        ('out.pth', ['--target', 'timm'], 'layout timm has no place for 15 tensors'),
        ('out.pth', ['--target', 'mmcnx2', '--source', 'huggingface'], 'not a huggingface checkpoint'),
        ('out.pth', ['--target', 'mmcnx2', '--drop', 'nothing.*'], 'matches no name'),
        ('out.pth', ['--target', 'mmcnx2', '--expect-missing', 'x', '--verify'], 'cannot be combined'),
        ('out.bin', ['--target', 'mmcnx2'], 'the ending says the format'),
        ('nowhere/out.pth', ['--target', 'mmcnx2'], 'does not exist'),
        ('official.pth', ['--target', 'mmcnx2'], 'IN and OUT are the same file'),
    ],
)
def test_every_error_is_one_line_and_leave_no_file(tmp_path, source, name, arguments, message):
    before = source.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        tool.main([str(source), str(tmp_path / name), *map(str, arguments)])
    assert message in str(caught.value) and '\n' not in str(caught.value)
    assert os.listdir(tmp_path) == ['official.pth'] and source.read_bytes() == before


@pytest.mark.parametrize('target', LAYOUTS)
@pytest.mark.parametrize('how', ['mean', 'copy', 'zero'])
def test_other_input_channels(tmp_path, source, state_dict, target, how, capsys):
    out = tmp_path / 'four.safetensors'
    runs = [] if target in ('meta-sparse', 'meta') else ['--verify']
    tool.main([str(source), str(out), '--target', target, *DROP_DECODER, *map(str, four_channels(how)), *runs])
    assert 'now 4 input channels' in capsys.readouterr().out
    written = read_checkpoint(out)
    assert (written['meta']['in_channels'], written['meta']['inflate']) == ('4', how)
    ours = convert_state_dict(written['state_dict'], source=target, target='mmcnx2')
    old = convert_state_dict(state_dict, source='meta-sparse', target='mmcnx2')
    stem = 'backbone.downsample_layers.0.0.weight'
    assert ours[stem].equal(inflate_stem(old[stem], 4, how)) and ours[stem].shape[1] == 4
    assert all(tensor.equal(old[name]) for name, tensor in ours.items() if name != stem)


def test_published_weights_are_taken_by_name_and_the_licence_goes_along(tmp_path, source, monkeypatch, capsys):
    monkeypatch.setenv('MMCNX2_CHECKPOINTS', str(tmp_path))
    source.rename(tmp_path / 'convnextv2_atto_1k_224_fcmae.pt')
    tool.main(['official:convnextv2_atto_1k_224_fcmae', str(tmp_path / 'ours.pth'), '--target', 'mmcnx2'])
    assert 'NO COMMERCIAL USE' in capsys.readouterr().out
    tool.main([str(tmp_path / 'ours.pth'), str(tmp_path / 'again.safetensors'), '--target', 'meta'])
    for name in ('ours.pth', 'again.safetensors'):
        assert 'CC-BY-NC 4.0' in read_checkpoint(tmp_path / name)['meta']['licence']
    meta = read_checkpoint(tmp_path / 'ours.pth')['meta']
    assert meta['source_url'].endswith('/pt_only/convnextv2_atto_1k_224_fcmae.pt')
    assert meta['source_file'] == 'convnextv2_atto_1k_224_fcmae.pt'


def test_the_published_weights_are_listed_without_further_arguments(capsys):
    with pytest.raises(SystemExit) as ended:
        tool.main(['--list-official'])
    assert ended.value.code == 0
    assert 'convnextv2_huge_22k_512_ema' in capsys.readouterr().out


def test_the_tables_that_were_used_are_identified(tmp_path, source, monkeypatch):
    digests = []
    for name, marker in (('a', '.dwconv.kernel'), ('b', '.dwconv.kernel'), ('c', 'dwconv.kernel')):
        monkeypatch.setitem(LAYOUTS, 'meta-sparse', LAYOUTS['meta-sparse']._replace(marker=marker))
        tool.main([str(source), str(tmp_path / f'{name}.pth'), '--target', 'mmcnx2'])
        digests.append(read_checkpoint(tmp_path / f'{name}.pth')['meta']['rules_sha256'])
    assert digests[0] == digests[1] != digests[2] and len(digests[0]) == 64


def test_the_command_ends_with_the_line_and_code_1(tmp_path):
    done = run('nothing.pth', 'out.pth', '--target', 'timm', cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, 'error: checkpoint nothing.pth does not exist\n')


def test_a_file_that_needs_more_than_plain_data_takes_a_flag(tmp_path, state_dict):
    torch.save({'model': state_dict, 'when': Path('x')}, tmp_path / 'official.pth')
    arguments = [str(tmp_path / 'official.pth'), str(tmp_path / 'a.pth'), '--target', 'mmcnx2']
    with pytest.raises(CheckpointError, match=r'asks for the Python object pathlib\.\w+, .* give --unsafe-load'):
        tool.main(arguments)
    assert not (tmp_path / 'a.pth').exists()
    tool.main([*arguments, '--unsafe-load'])
    assert len(read_checkpoint(tmp_path / 'a.pth')['state_dict']) == len(state_dict)
