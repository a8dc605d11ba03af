"""A path always holds a whole file, and what is saved is read back."""

import os
import stat

import pytest
import torch
from checkpoint_cases import same_tensors

from mmcnx2.checkpoint import CheckpointError, read_checkpoint, save_checkpoint_atomically

WEIGHTS = {'layer.weight': torch.arange(6.0).view(2, 3), 'layer.bias': torch.ones(2)}


@pytest.mark.parametrize('name', ['a.pth', 'a.pt', 'a.safetensors'])
def test_what_is_saved_is_read_back(tmp_path, name):
    save_checkpoint_atomically({'state_dict': WEIGHTS, 'meta': {'origin': 'here'}}, tmp_path / name)
    checkpoint = read_checkpoint(tmp_path / name)
    assert same_tensors(checkpoint['state_dict'], WEIGHTS) and checkpoint['meta']['origin'] == 'here'
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize('step', ['os.fsync', 'os.replace'])
@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, name, step, monkeypatch):
    save_checkpoint_atomically({'state_dict': WEIGHTS}, tmp_path / name)
    old = (tmp_path / name).read_bytes()

    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(step, full)
    with pytest.raises(CheckpointError, match=r'cannot write .*No space left on device'):
        save_checkpoint_atomically({'state_dict': {'other': torch.zeros(9)}}, tmp_path / name)
    assert (tmp_path / name).read_bytes() == old and os.listdir(tmp_path) == [name]


def test_views_and_shared_tensors_can_be_saved_as_safetensors(tmp_path):
    base = torch.arange(6.0).view(2, 3)
    save_checkpoint_atomically({'state_dict': {'a': base, 'b': base, 'c': base.T}}, tmp_path / 'a.safetensors')
    assert read_checkpoint(tmp_path / 'a.safetensors')['state_dict']['c'].equal(base.T)


def test_a_saved_file_has_the_usual_permissions(tmp_path):
    (tmp_path / 'usual').touch()
    save_checkpoint_atomically({'state_dict': WEIGHTS}, tmp_path / 'a.pth')
    assert stat.S_IMODE((tmp_path / 'a.pth').stat().st_mode) == stat.S_IMODE((tmp_path / 'usual').stat().st_mode)


@pytest.mark.parametrize(
    ('name', 'content', 'match'),
    [
        ('a.bin', {'state_dict': WEIGHTS}, 'ending says the format'),
        ('a.safetensors', {'state_dict': WEIGHTS, 'optimizer': {}}, 'not optimizer'),
        ('nowhere/a.pth', {'state_dict': WEIGHTS}, 'cannot write'),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, name, content, match):
    with pytest.raises(CheckpointError, match=match):
        save_checkpoint_atomically(content, tmp_path / name)
    assert not os.listdir(tmp_path)
