"""Files are read without executing code and refused in one clear line each."""

import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from checkpoint_cases import same_tensors
from safetensors.torch import save_file
from torch import nn

from mmcnx2.checkpoint import CheckpointError, read_checkpoint

WEIGHTS = {'layer.weight': torch.arange(6.0).view(2, 3), 'layer.bias': torch.ones(2)}


def refuse(path, match, **options):
    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(path, **options)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 600


# ------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    'content',
    [
        WEIGHTS,
        {'state_dict': WEIGHTS, 'meta': {'epoch': 3}},
        {'model': WEIGHTS, 'args': argparse.Namespace(lr=1e-3), 'epoch': 3},
        {'module': WEIGHTS},
    ],
)
@pytest.mark.parametrize('old_format', [False, True])
def test_every_container_gives_its_weights(tmp_path, content, old_format):
    path = tmp_path / 'weights.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    checkpoint = read_checkpoint(path)
    assert same_tensors(checkpoint['state_dict'], WEIGHTS)
    assert isinstance(checkpoint['meta'], dict)
    assert 'model' not in checkpoint and ('args' in checkpoint) == ('args' in content)


def test_the_content_decides_about_the_format_not_the_ending(tmp_path):
    save_file(WEIGHTS, tmp_path / 'weights.pth', metadata={'origin': 'here'})
    checkpoint = read_checkpoint(tmp_path / 'weights.pth')
    assert same_tensors(checkpoint['state_dict'], WEIGHTS) and checkpoint['meta'] == {'origin': 'here'}
    torch.save(WEIGHTS, tmp_path / 'weights.safetensors')
    assert same_tensors(read_checkpoint(tmp_path / 'weights.safetensors')['state_dict'], WEIGHTS)


def test_averaged_weights_are_taken_on_request_only(tmp_path):
    path = tmp_path / 'weights.pth'
    averaged = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    torch.save({'model': WEIGHTS, 'model_ema': averaged}, path)
    assert same_tensors(read_checkpoint(path)['state_dict'], WEIGHTS)
    assert same_tensors(read_checkpoint(path, use_ema=True)['state_dict'], averaged)
    for content in ({'model': WEIGHTS}, WEIGHTS):
        torch.save(content, path)
        refuse(path, 'no averaged weights', use_ema=True)


def test_a_checkpoint_of_a_real_run_is_read(tmp_path):
    """mmengine pickles log histories, with their statistics functions, and NumPy values."""
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, inputs, mode='tensor'):
            return {'loss': self.layer(torch.stack(inputs)).square().mean()}

    class Data(torch.utils.data.Dataset):
        metainfo = {'classes': ('a', 'b'), 'palette': [(1, 2, 3)]}

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {'inputs': torch.ones(2)}

    runner = Runner(
        Model(),
        str(tmp_path),
        experiment_name='a_real_run',
        default_hooks={'logger': {'type': 'LoggerHook', 'interval': 1}},
        train_dataloader={'dataset': Data(), 'batch_size': 2, 'sampler': {'type': 'DefaultSampler'}},
        train_cfg={'by_epoch': True, 'max_epochs': 1},
        custom_hooks=[{'type': 'EMAHook'}],
        optim_wrapper={'optimizer': {'type': 'AdamW', 'lr': 1e-3}},
        param_scheduler=[{'type': 'CosineAnnealingLR', 'T_max': 1}],
    )
    runner.train()
    checkpoint = read_checkpoint(tmp_path / 'epoch_1.pth')
    assert set(checkpoint['state_dict']) == {'layer.weight', 'layer.bias'}
    assert {'optimizer', 'message_hub', 'param_schedulers', 'ema_state_dict'} <= set(checkpoint)
    assert len(checkpoint['message_hub']['log_scalars']['train/loss'].data[0]) == 2
    assert checkpoint['meta']['dataset_meta']['classes'] == ('a', 'b')


def test_numpy_values_are_read(tmp_path):
    torch.save(
        {'state_dict': WEIGHTS, 'meta': {'best': np.float64(0.5), 'step': np.int64(7), 'curve': np.arange(3.0)}},
        tmp_path / 'weights.pth',
    )
    meta = read_checkpoint(tmp_path / 'weights.pth')['meta']
    assert (meta['best'], meta['step'], list(meta['curve'])) == (0.5, 7, [0, 1, 2])


# ------------------------------------------------------------------------------------------------- refusing


class LeavesAMark:
    """Unpickled carelessly, it creates a folder."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


class GetsAnything:
    """Asks for an attribute by name, as mmengine's histories do, but of something else."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.mark.parametrize('old_format', [False, True])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path, old_format):
    torch.save(
        {'state_dict': WEIGHTS, 'hook': LeavesAMark(tmp_path / 'mark')},
        tmp_path / 'weights.pth',
        _use_new_zipfile_serialization=not old_format,
    )
    refuse(tmp_path / 'weights.pth', r'was not read: it asks for the Python object (posix|nt)\.mkdir,')
    assert not (tmp_path / 'mark').exists()


def test_a_bare_pickle_with_code_is_not_run(tmp_path):
    (tmp_path / 'weights.pth').write_bytes(pickle.dumps(LeavesAMark(tmp_path / 'mark'), protocol=2))
    refuse(tmp_path / 'weights.pth', 'weights.pth (was not read|is damaged)')
    assert not (tmp_path / 'mark').exists()


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(np.ndarray, 'tofile'), (np.ndarray, 'min'), (np.dtype, '__class__'), (argparse.Namespace, '__init__')],
)
def test_getattr_gives_a_file_nothing_but_log_statistics(tmp_path, owner, name):
    torch.save({'state_dict': WEIGHTS, 'x': GetsAnything(owner, name)}, tmp_path / 'weights.pth')
    refuse(tmp_path / 'weights.pth', f'asks for the Python object getattr.*{name}')


def test_getattr_gives_no_other_attribute_of_a_history(tmp_path):
    from mmengine.logging import HistoryBuffer

    torch.save({'state_dict': WEIGHTS, 'x': GetsAnything(HistoryBuffer, '__init__')}, tmp_path / 'weights.pth')
    refuse(tmp_path / 'weights.pth', 'asks for the Python object getattr')


def _truncated(path, write, share=0.7):
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _flipped(path):
    torch.save({'state_dict': {'a': torch.arange(4000.0)}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b'data.pkl') + 60] ^= 0xFF
    path.write_bytes(bytes(content))


def _zip_of_text(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('readme.txt', 'hello')


MALFORMED = {
    'missing': (lambda path: None, 'does not exist'),
    'folder': (lambda path: path.mkdir(), 'is a folder'),
    'empty': (lambda path: path.touch(), 'is an empty file'),
    'truncated zip': (lambda path: _truncated(path, lambda path: torch.save(WEIGHTS, path)), 'is truncated'),
    'truncated old format': (
        lambda path: _truncated(path, lambda path: torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)),
        'is damaged',
    ),
    'truncated safetensors': (
        lambda path: _truncated(path, lambda path: save_file(WEIGHTS, path)),
        r'no complete safetensors file \(truncated or damaged\)',
    ),
    'flipped bits': (_flipped, 'is damaged'),
    'other zip': (_zip_of_text, r'zip archive without weights \(readme.txt\)'),
    'text': (lambda path: path.write_text('hello, I am a text'), 'neither a torch file nor safetensors'),
    'web page': (lambda path: path.write_text('\n<!DOCTYPE html><html>404</html>'), 'is a web page'),
    'lfs pointer': (
        lambda path: path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\n'),
        'is a git-lfs pointer',
    ),
    'no dict': (lambda path: torch.save(torch.zeros(2), path), 'holds a Tensor, not a dict'),
    'no tensors': (
        lambda path: torch.save({'epoch': 3, 'state_dict': {}}, path),
        'no tensors; its entries: epoch, state_dict',
    ),
    'two sets of weights': (
        lambda path: torch.save({'state_dict': WEIGHTS, 'model': WEIGHTS}, path),
        'under state_dict and model',
    ),
    'nan': (
        lambda path: torch.save({'a': torch.ones(2), 'b': torch.tensor([1.0, float('nan')])}, path),
        'NaN or Inf in 1 of 2 tensors: b',
    ),
    'inf': (lambda path: save_file({'a': torch.tensor([float('inf')])}, path), 'NaN or Inf in 1 of 1 tensors: a'),
}


@pytest.mark.parametrize('kind', MALFORMED)
def test_each_malformed_file_has_its_own_message(tmp_path, kind):
    make, match = MALFORMED[kind]
    make(tmp_path / 'weights.pth')
    refuse(tmp_path / 'weights.pth', match)


def test_an_address_is_refused():
    refuse('https://example.org/weights.pth', 'is an address')


def test_no_damage_of_a_file_ends_without_a_message(tmp_path):
    """Bits flipped and ends cut at random: the file is read, or refused with a CheckpointError; nothing else comes
    out."""
    generator = np.random.default_rng(0)
    for suffix, write in (('pth', torch.save), ('safetensors', save_file)):
        whole = tmp_path / f'whole.{suffix}'
        write(WEIGHTS, whole)
        content, path = whole.read_bytes(), tmp_path / f'damaged.{suffix}'
        num_refused = 0
        for _ in range(100):
            damaged = bytearray(content)
            for position in generator.integers(0, len(damaged), size=3):
                damaged[position] ^= 1 << int(generator.integers(8))
            length = generator.integers(1, len(damaged)) if generator.random() < 0.3 else len(damaged)
            path.write_bytes(bytes(damaged[:length]))
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                num_refused += 1
                assert '\n' not in str(error)
        assert num_refused > 30
