"""Files are read without executing code and refused in one clear line each."""

import argparse
import io
import json
import os
import pickle
import struct
import tarfile
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import torch
from checkpoint_cases import same_tensors
from safetensors.torch import save_file
from torch import nn

from mmcnx2.checkpoint import CheckpointError, read_checkpoint
from mmcnx2.checkpoint.read import read_for_run

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


def _repacked(change=lambda members: None, compression=zipfile.ZIP_STORED, content=WEIGHTS):
    """A torch file whose {name: bytes} went through `change`, packed again."""

    def write(path):
        torch.save(content, path)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        changed = change(members) or members
        with zipfile.ZipFile(path, 'w', compression) as archive:
            for name, data in changed.items():
                archive.writestr(name, data)

    return write


def _edited(edit, content=WEIGHTS):
    """A torch file whose bytes went through `edit`."""

    def write(path):
        torch.save(content, path)
        data = bytearray(path.read_bytes())
        path.write_bytes(edit(data) or data)

    return write


def _member(data, name):
    """(where the bytes of a member of a zip archive begin, where its entry in the directory does)"""
    local, entry = data.index(name), data.rindex(name) - 46
    return local + len(name) + struct.unpack('<H', data[local - 2 : local])[0], entry


def _flip_a_weight(data):
    data[_member(data, b'weights/data/0')[0] + 5] ^= 4


def _another_name_in_front(data):
    position = data.index(b'weights/data/0')
    data[position : position + 14] = b'weights/data/9'


def _claim_more_of_a_member(data):
    entry = _member(data, b'weights/data/0')[1]
    data[entry + 20 : entry + 28] = struct.pack('<2I', 4000, 4000)


def _with_two_ends(data):
    """A second directory behind the first, where another reader might look."""
    with_locator = data[:-22] + b'PK\x06\x07' + struct.pack('<IQI', 0, 10, 1) + data[-22:]
    return with_locator


def _same_name_twice(path):
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path, 'a') as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        archive.writestr('weights/data/0', bytes(24))


def _safetensors(header, num_bytes=8, length=None):
    def write(path):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack('<Q', len(text) if length is None else length) + text + bytes(num_bytes))

    return write


def _claims(shape, begin, end, dtype='F32'):
    return {'a.weight': {'dtype': dtype, 'shape': shape, 'data_offsets': [begin, end]}}


def _legacy(edit):
    def write(path):
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
        path.write_bytes(edit(path.read_bytes()))

    return write


def _saved(content):
    return lambda path: torch.save(content, path)


def _tar(path):
    with tarfile.open(path, 'w') as archive:
        archive.addfile(tarfile.TarInfo('storages'), io.BytesIO())


NAN = float('nan')
TERA = 2**40


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
    'nan, counted': (
        _saved({'state_dict': {'a': torch.tensor([[1.0, NAN], [NAN, -NAN]]), 'b': torch.ones(1)}}),
        r'NaN or Inf in 1 of 2 tensors: a \(3 of 4 values\)$',
    ),
    'integer weights': (
        _saved({'a.weight': torch.ones(2, dtype=torch.int8), 'a.scale': torch.ones(2)}),
        r'1 of 2 tensors that are not floating-point weights: a.weight \(int8\)',
    ),
    'integers only': (_saved({'steps': torch.ones(2, dtype=torch.int64)}), 'has no floating-point tensors: steps'),
    'bool weights': (_saved({'backbone.grn.gamma': torch.ones(2) > 0}), r'grn.gamma \(bool\)'),
    'complex weights': (_saved({'a': torch.ones(2) * 1j}), r'a \(complex64\)'),
    'float8 weights': (_saved({'a': torch.ones(2).to(torch.float8_e4m3fn)}), r'a \(float8_e4m3fn\)'),
    'sparse weights': (_saved({'a': torch.eye(2).to_sparse()}), 'was not read: it holds a sparse tensor'),
    'weights on meta': (_saved({'a': torch.ones(2, device='meta')}), 'was not read: it holds a tensor on the meta dev'),
    'expanded weights': (_saved({'a': torch.ones(1).expand(TERA)}), r'\(1099511627776,\).* of 1 values.*contiguous'),
    'hdf5': (lambda path: path.write_bytes(b'\x89HDF\r\n\x1a\n'), 'is an HDF5 file'),
    'gzip': (lambda path: path.write_bytes(b'\x1f\x8b\x08'), 'is compressed with gzip'),
    'tar': (_tar, 'is a tar archive: unpack it; where torch before 0.1.10 wrote it'),
    'zeros': (lambda path: path.write_bytes(bytes(1000)), 'begins with zeros: its bytes were never written'),
    'plain pickle': (
        lambda path: path.write_bytes(pickle.dumps({'a': 1}, 2)),
        'a pickle that torch.save did not write',
    ),
    'torchscript': (
        lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path),
        'is a TorchScript program, not weights',
    ),
    'compressed': (
        _repacked(compression=zipfile.ZIP_DEFLATED),
        r'data.pkl, .* are compressed or encrypted, which torch',
    ),
    'zip bomb': (
        _repacked(lambda members: {**members, 'weights/data/7': bytes(10**6)}, zipfile.ZIP_DEFLATED),
        r'was not read: its members claim 1000\d\d\d bytes, the file has \d+ \(a zip bomb\?\)',
    ),
    'a member twice': (_same_name_twice, r'it has members twice \(weights/data/0\)'),
    'a member twice but for capitals': (
        _repacked(lambda members: {**members, 'weights/DATA/0': bytes(24)}),
        r'members twice \(but for capital',
    ),
    'two folders': (
        _repacked(lambda members: {**members, 'other/data/0': bytes(24)}),
        r'several folders \(other, weig',
    ),
    'a storage missing': (
        _repacked(lambda members: {name: data for name, data in members.items() if name != 'weights/data/0'}),
        "claims 24 bytes of values '0', they are not in the file",
    ),
    'a storage cut': (
        _repacked(lambda members: {**members, 'weights/data/0': bytes(20)}),
        "claims 24 bytes of values '0', 20 are",
    ),
    'a storage that is claimed to be huge': (
        _repacked(
            lambda members: {
                **members,
                'weights/data.pkl': members['weights/data.pkl'].replace(
                    b'K\x06tq', b'\x8a\x06' + TERA.to_bytes(6, 'little') + b'tq'
                ),
            }
        ),
        "is damaged: it claims 4398046511104 bytes of values '0', 24 are there",
    ),
    'a bit of a weight': (_edited(_flip_a_weight), 'the checksum of weights/data/0 is not that of its 24 bytes'),
    'another name in front': (_edited(_another_name_in_front), 'weights/data/0 has another name in the directory'),
    'a member that claims more': (_edited(_claim_more_of_a_member), 'claim 4\\d+ bytes, the file has'),
    'bytes behind': (_edited(lambda data: data + b'more'), 'bytes follow its end'),
    'two ends': (_edited(_with_two_ends), 'it has two ends'),
    'cut legacy': (_legacy(lambda data: data[:-8]), 'is truncated: its tensors claim 48 bytes, 40 are there'),
    'longer legacy': (_legacy(lambda data: data + b'more'), 'is damaged: its tensors claim 48 bytes, 52 are there'),
    'legacy that claims a terabyte': (
        _legacy(lambda data: data.replace(b'K\x06Nt', b'\x8a\x06' + TERA.to_bytes(6, 'little') + b'Nt')),
        r'is truncated: its tensors claim 4398046511128 bytes, 48 are there',
    ),
    'safetensors that claim a terabyte': (_safetensors(_claims([TERA], 0, 4 * TERA)), 'no complete safetensors file'),
    'safetensors of another size': (_safetensors(_claims([3], 0, 8)), 'no complete safetensors file'),
    'safetensors with a long header': (
        _safetensors(_claims([2], 0, 8), length=TERA),
        'claims a header of 1099511627776 bytes, the file has',
    ),
    'safetensors with overlapping tensors': (
        _safetensors({**_claims([2], 0, 8), 'b': {'dtype': 'F32', 'shape': [1], 'data_offsets': [4, 8]}}),
        'no complete safetensors file',
    ),
    'safetensors with a name twice': (
        _safetensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
        ),
        'its header names a twice',
    ),
    'safetensors of an unknown kind': (_safetensors(_claims([8], 0, 8, 'F9')), 'no complete safetensors file'),
    'deep safetensors': (_safetensors(b'{"a":' + b'[' * 100_000), 'its header cannot be read'),
    'integer safetensors': (_safetensors(_claims([2], 0, 8, 'I32')), r'a.weight \(int32\)'),
    'inf': (lambda path: save_file({'a': torch.tensor([float('inf')])}, path), 'NaN or Inf in 1 of 1 tensors: a'),
}


@pytest.mark.parametrize('kind', MALFORMED)
def test_each_malformed_file_has_its_own_message(tmp_path, kind):
    make, match = MALFORMED[kind]
    make(tmp_path / 'weights.pth')
    refuse(tmp_path / 'weights.pth', match)


@pytest.mark.parametrize('write', [torch.save, save_file])
def test_the_size_of_a_file_is_limited_and_the_limit_can_be_raised(tmp_path, monkeypatch, write):
    path = tmp_path / 'weights.pth'
    write({'a': torch.ones(2**18)}, path)
    monkeypatch.setenv('MMCNX2_MAX_CHECKPOINT_GIB', '0.0005')
    refuse(
        path, r'has 0.00097[78] GiB, more than the limit of 0.0005; .*MMCNX2_MAX_CHECKPOINT_GIB \(or max_gib=\) higher'
    )
    assert read_checkpoint(path, max_gib=0.001)['state_dict']['a'].sum() == 2**18
    monkeypatch.setenv('MMCNX2_MAX_CHECKPOINT_GIB', '0.001')
    assert read_checkpoint(path)['state_dict']['a'].sum() == 2**18
    refuse(path, 'more than the limit of 0.0005', max_gib=0.0005)
    for wrong in ('much', '-1', 'nan', '0'):
        monkeypatch.setenv('MMCNX2_MAX_CHECKPOINT_GIB', wrong)
        refuse(path, f"is '{wrong}'; it must be a number of GiB above 0")


def test_a_file_of_claimed_size_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / 'weights.pth', 'wb') as file:
        file.write(b'PK\x03\x04')
        file.truncate(17 * 2**30)  # a hole: takes no space
    refuse(tmp_path / 'weights.pth', 'has 17 GiB, more than the limit of 16;')


@pytest.mark.parametrize('kind', ['a storage that is claimed to be huge', 'legacy that claims a terabyte', 'zip bomb',
                                  'safetensors that claim a terabyte', 'expanded weights'])  # fmt: skip
def test_a_claim_allocates_nothing(tmp_path, kind, monkeypatch):
    """Neither torch nor safetensors is asked to build anything."""
    MALFORMED[kind][0](tmp_path / 'weights.pth')
    if 'safetensors' not in kind:
        monkeypatch.setattr('torch.load', lambda *args, **options: pytest.fail('torch.load was called'))
    tracemalloc.start()
    refuse(tmp_path / 'weights.pth', MALFORMED[kind][1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


def test_a_file_written_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, tmp_path / 'weights.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert same_tensors(read_checkpoint(tmp_path / 'weights.pth')['state_dict'], WEIGHTS)


def test_counters_and_indices_may_be_integers(tmp_path):
    state_dict = {**WEIGHTS, 'bn.num_batches_tracked': torch.tensor(3), 'mask': torch.ones(2) > 0}
    torch.save(state_dict, tmp_path / 'weights.pth')
    assert same_tensors(read_checkpoint(tmp_path / 'weights.pth')['state_dict'], state_dict)


def test_nan_beside_the_weights_is_nobodys_business_and_in_them_cannot_be_allowed(tmp_path, monkeypatch):
    from mmengine.logging import HistoryBuffer

    loss = HistoryBuffer()
    loss.update(NAN)
    beside = {'message_hub': {'log_scalars': {'loss': loss}}, 'optimizer': {'state': {0: {'x': torch.tensor(NAN)}}}}
    torch.save({'state_dict': WEIGHTS, **beside}, tmp_path / 'weights.pth')
    for read in (read_checkpoint, read_for_run):
        assert np.isnan(read(tmp_path / 'weights.pth')['message_hub']['log_scalars']['loss'].data[0]).all()
    broken = {'a': torch.tensor([NAN])}
    for content in ({'state_dict': broken}, broken, {'state_dict': WEIGHTS, 'ema_state_dict': broken}):
        torch.save(content, tmp_path / 'weights.pth')
        for unsafe_load in (False, True):
            with pytest.raises(CheckpointError, match='NaN or Inf in 1 of 1 tensors: a'):
                read_for_run(tmp_path / 'weights.pth', unsafe_load=unsafe_load)


def test_code_is_run_only_where_a_person_asked_for_it(tmp_path):
    torch.save({'state_dict': WEIGHTS, 'hook': LeavesAMark(tmp_path / 'mark')}, tmp_path / 'weights.pth')
    refuse(tmp_path / 'weights.pth', r'give --unsafe-load \(in Python: unsafe_load=True\)')
    assert not (tmp_path / 'mark').exists()
    assert same_tensors(read_checkpoint(tmp_path / 'weights.pth', unsafe_load=True)['state_dict'], WEIGHTS)
    assert (tmp_path / 'mark').exists()
    torch.save({'hook': LeavesAMark(tmp_path / 'mark')}, tmp_path / 'weights.pth')
    refuse(tmp_path / 'weights.pth', 'is damaged or no checkpoint: FileExistsError', unsafe_load=True)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / 'weights.pth')
    refuse(tmp_path / 'weights.pth', 'is no ordinary file')


def test_names_of_a_file_cannot_write_on_the_screen(tmp_path):
    """A line break, a control code that clears the screen, and no end of letters."""
    for name in ('a\nb', '\x1b[2J', 'a' * 10_000):
        save_file({name: torch.tensor([float('inf')])}, tmp_path / 'weights.pth')
        with pytest.raises(CheckpointError, match='NaN or Inf in 1 of 1 tensors') as caught:
            read_checkpoint(tmp_path / 'weights.pth')
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1600


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
