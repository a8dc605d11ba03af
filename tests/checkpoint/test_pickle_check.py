"""A pickle is followed without building anything; what torch may build afterwards is plain data with checked
arguments."""

import argparse
import collections
import io
import itertools
import os
import pickle
import random
import re
import sys
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from mmcnx2.checkpoint import CheckpointError, pickle_check, read_checkpoint
from mmcnx2.checkpoint.pickle_check import allowed_globals, inspect_pickle, plain_data_globals

WEIGHTS = {'layer.weight': torch.arange(6.0).view(2, 3), 'layer.bias': torch.ones(2)}


class Calls:
    """Pickled, it asks for a call of `function` with `args`, and for `state` to be set afterwards."""

    def __init__(self, function, *args, state=None):
        self.function, self.args, self.state = function, args, state

    def __reduce__(self):
        return (self.function, self.args) if self.state is None else (self.function, self.args, self.state)


def inspect(content):
    return inspect_pickle(io.BytesIO(pickle.dumps(content, protocol=2)))


def refuse_saved(path, content, match):
    """torch.save writes it, read_checkpoint refuses it in one line."""
    torch.save({'state_dict': WEIGHTS, 'x': content}, path)
    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(path)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 700


# ------------------------------------------------------------------------------------------------------ what is read


def history(*values):
    buffer = HistoryBuffer()
    for value in values:
        buffer.update(value)
    return buffer


PLAIN = {
    'numbers': [1, -1, 2**40, 2**80, 0.5, float('nan'), True, None, 1 + 2j],
    'text and bytes': ['', 'é', 'x' * 1000, b'', b'\xff\x00', bytearray(b'ab'), bytearray()],
    'nested': {'a': [(1, 2), {3: {4, 5}}], 'empty': [(), [], {}, set()]},
    'kinds of dicts': [collections.OrderedDict(a=1), collections.Counter('abba')],
    'namespace': argparse.Namespace(lr=1e-3, sizes=[1, 2]),
    'numpy': [np.arange(6.0).reshape(2, 3), np.zeros(0), np.zeros((0, 3), np.int32), np.asfortranarray(np.eye(3))],
    'numpy numbers': [np.dtype(kind).type(1) for kind in pickle_check.NUMBER_KINDS],
    'numpy generator': np.random.RandomState(0).get_state(),
    'python generator': random.Random(0).getstate(),
    'torch': [torch.float16, torch.Size([1, 2]), torch.device('cpu'), torch.get_rng_state()],
    'tensors': [torch.tensor(1), torch.zeros(0), torch.zeros(2, 0), torch.arange(12).view(3, 4).t()[1:, ::2]],
    'kinds of tensors': [torch.zeros(3, dtype=getattr(torch, name)) for name in ('bool', 'float16', 'bfloat16')],
    'parameter': nn.Parameter(torch.ones(2)),
    'slice': slice(None, 3),
    'histories': {'loss': history(1.0, float('nan')), 'none yet': HistoryBuffer()},
}


def same(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, np.ndarray | np.generic):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, HistoryBuffer):
        return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(left.data, right.data, strict=True))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and (left == right or left != left)


@pytest.mark.parametrize('old_format', [False, True])
@pytest.mark.parametrize('kind', PLAIN)
def test_plain_data_is_read_as_it_was_saved(tmp_path, kind, old_format):
    content = {'state_dict': WEIGHTS, 'x': PLAIN[kind]}
    torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=not old_format)
    assert same(read_checkpoint(tmp_path / 'a.pth')['x'], PLAIN[kind])


def test_kinds_of_numbers_that_only_the_newer_format_has(tmp_path):
    counter = torch.tensor([1, 2], dtype=torch.uint16)
    torch.save({**WEIGHTS, 'counter': counter}, tmp_path / 'a.pth')
    assert same(read_checkpoint(tmp_path / 'a.pth')['state_dict']['counter'], counter)


def test_a_module_s_state_dict_keeps_its_metadata(tmp_path):
    torch.save(nn.BatchNorm2d(3).state_dict(), tmp_path / 'a.pth')
    assert set(read_checkpoint(tmp_path / 'a.pth')['state_dict']) == set(nn.BatchNorm2d(3).state_dict())


def test_storages_and_their_sizes_are_noted(tmp_path):
    shared = torch.arange(8.0)
    torch.save({'a': shared[:2], 'b': shared[4:], 'c': torch.zeros(3, dtype=torch.int64)}, tmp_path / 'a.pth')
    with zipfile.ZipFile(tmp_path / 'a.pth') as archive:
        found = inspect_pickle(io.BytesIO(archive.read('a/data.pkl')))
    assert found.storages == {'0': 32, '1': 24} and found.tensor_bytes == 8 + 16 + 24


# --------------------------------------------------------------------------------------------------- what is refused


def test_every_allowed_global_is_known_to_torch_or_handed_to_it():
    """The table and the list for torch do not come apart."""
    handed = {f'{entry.__module__}.{entry.__name__}' for entry in plain_data_globals() if not isinstance(entry, tuple)}
    handed |= {entry[1] for entry in plain_data_globals() if isinstance(entry, tuple)}
    known = set(torch._weights_only_unpickler._get_allowed_globals())
    assert allowed_globals() <= handed | known
    kinds_of_numbers = {name for name in handed if name.startswith('numpy.dtypes.')}
    assert handed - kinds_of_numbers <= allowed_globals()


ARGUMENTS = [
    (), ('/no/x',), ('cpu',), (3,), (1, 2.5), (b'x',), ([],), ([1, 2],), ((),), ((2, 3),), ({},), ({'a': 1},), (None,),
    (None, 3), ('f8', False, True), ('a', 'latin1'), ('a', 'zlib'), ('os', 'system'),
]  # fmt: skip
TELLING = ('open', 'os.', 'subprocess.', 'exec', 'socket.', 'shutil.', 'ctypes.', 'urllib.', 'tempfile.', 'code.')


class Listener:
    """The names of the interpreter's audit events that tell of a file, a process or code, while it listens."""

    def __init__(self):
        self.listens, self.events = False, []

    def __call__(self, event, args):
        if self.listens and event.startswith(TELLING) and event != 'code.__new__':
            self.events.append(event)


def test_nothing_on_the_list_touches_the_machine_when_it_is_built():
    """Each global is called with many arguments, first as a note, and as torch would call it where the notes allow it;
    the interpreter's own audit events tell whether a file, a process or code was touched."""
    listener, built = Listener(), []
    sys.addaudithook(listener)  # cannot be taken back
    pickled = [pickle.dumps(args, protocol=2)[2:-1] for args in ARGUMENTS]
    for listener.listens in (False, True):  # what is imported the first time is not the file's doing
        for name in sorted(allowed_globals()):
            for args, way in itertools.product(pickled, (b'R', b'\x81')):
                stream = b'\x80\x02c' + '\n'.join(name.rsplit('.', 1)).encode() + b'\n' + args + way + b'.'
                try:
                    inspect_pickle(io.BytesIO(stream))
                except CheckpointError:
                    continue
                with torch.serialization.safe_globals(plain_data_globals()):
                    try:
                        result = torch._weights_only_unpickler.load(io.BytesIO(stream), encoding='utf-8')
                    except (pickle.UnpicklingError, TypeError, ValueError, RuntimeError):
                        continue  # torch refuses more than we do
                assert not callable(result)
                built.append(name)
    assert listener.events == []
    os.listdir('.')
    assert listener.events == ['os.listdir']  # it does listen
    listener.listens = False
    assert {'collections.OrderedDict', 'argparse.Namespace', 'numpy.dtype', pickle_check.HISTORY} <= set(built)


HUGE = 2**40
CLAIMS = {
    'bytes': Calls(bytes, HUGE),
    'bytearray': Calls(bytearray, HUGE),
    'array by its class': Calls(np.ndarray, (HUGE,)),
    'array to fill': Calls(np._core.multiarray._reconstruct, np.ndarray, (HUGE,), b'b'),
    'array of another length': Calls(np._core.multiarray._reconstruct, np.ndarray, (0,), b'b',
                                     state=(1, (HUGE,), np.dtype('f8'), False, b'12345678')),
    'number of another length': Calls(np._core.multiarray.scalar, np.dtype('f8'), b'1234'),
    'objects': np.array([{}], dtype=object),
    'texts': np.array(['a']),
    'structure': np.zeros(1, dtype=[('a', 'f4')]),
    'dtype with a state': Calls(np.dtype, 'f8', False, True, state=(3, '<', None, None, None, HUGE, 1, 0)),
    'tensor by its class': Calls(torch.FloatTensor, HUGE),
    'tensor by its name': Calls(torch.Tensor, HUGE),
    'codec': Calls(__import__('_codecs').encode, 'a', 'zlib'),
    'history with arguments': Calls(HistoryBuffer, [1], [1]),
    'namespace with arguments': Calls(argparse.Namespace, 1),
    'rebuilt by anything': Calls(torch._tensor._rebuild_from_type_v2, bytes, torch.Tensor, (HUGE,), {}),
    'attributes without names': Calls(collections.OrderedDict, state={1: 2}),
    'slots': Calls(argparse.Namespace, state=(None, {'a': 1})),
}  # fmt: skip


@pytest.mark.parametrize('kind', CLAIMS)
def test_allowed_objects_are_refused_with_arguments_that_nobody_writes(tmp_path, kind):
    """Each of these is on the list by its name; called like this it would allocate what it was told, or more."""
    refuse_saved(tmp_path / 'a.pth', CLAIMS[kind], 'a.pth (is damaged|was not read): ')


@pytest.mark.parametrize(
    ('content', 'match'),
    [
        (Calls(np.ndarray, (3,)), r'asks for the Python object numpy.ndarray\(tuple\)'),
        (np.array(['a']), "holds NumPy values of the kind 'U1', and a checkpoint may hold numbers only"),
        (Calls(torch._tensor._rebuild_from_type_v2, dict, torch.Tensor, (), {}), 'Python object builtins.dict'),
        (
            Calls(torch._tensor._rebuild_from_type_v2, collections.OrderedDict, torch.Tensor, (), {}),
            'rebuilt by something unknown',
        ),
        ({2**61: 1}, 'a dict has a key of kind int'),
        ({(1, (2,)): 1}, 'a dict has a key of kind tuple'),
        ({np.float64(1): 1}, 'a dict has a key of kind Built'),
        ({2**61}, 'a dict has a key of kind int'),
    ],
)
def test_what_is_wrong_is_said(content, match):
    with pytest.raises(CheckpointError, match=match):
        inspect(content)


def storage(num_items, view=b'', key=b'0'):
    """Opcodes of a reference to float32 values."""
    name = b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00'
    return name + key + b'X\x03\x00\x00\x00cpuK' + bytes([num_items]) + view + b'tQ'


def test_one_storage_has_one_size():
    """Two references that disagree: the second could reach beyond what the file has."""
    both = b'\x80\x02]' + storage(8) + b'a' + storage(8) + b'a.'
    assert inspect_pickle(io.BytesIO(both)).storages == {'0': 32}
    with pytest.raises(CheckpointError, match='it claims both 32 and 36 bytes of one storage'):
        inspect_pickle(io.BytesIO(b'\x80\x02]' + storage(8) + b'a' + storage(9) + b'a.'))


@pytest.mark.parametrize(('begin', 'count', 'fits'), [(0, 8, True), (3, 5, True), (3, 6, False), (9, 0, False)])
def test_a_part_of_a_storage_lies_inside_of_it(begin, count, fits):
    view = b'(X\x01\x00\x00\x00vK' + bytes([begin]) + b'K' + bytes([count]) + b't'
    stream = io.BytesIO(b'\x80\x02' + storage(8, view) + b'.')
    if fits:
        assert inspect_pickle(stream).content.num_items == count
        return
    with pytest.raises(CheckpointError, match='a part of a storage lies outside of it'):
        inspect_pickle(stream)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('function', [os.system, eval, exec, open, __import__, os.mkdir, pickle.loads,
                                      torch.load, np.load, np.fromfile, torch.hub.load])  # fmt: skip
def test_every_other_object_is_named(function, protocol):
    content = {'x': [Calls(function, 'a')]}
    name = re.sub(r'^_?(io|pickle)', r'_?\1', rf'{function.__module__}\.{function.__name__}')
    with pytest.raises(CheckpointError, match=rf'asks for the Python object {name}.*--unsafe-load'):
        inspect_pickle(io.BytesIO(pickle.dumps(content, protocol=protocol)))


def test_other_protocols_of_plain_data_say_what_to_do(tmp_path):
    torch.save({'state_dict': WEIGHTS}, tmp_path / 'a.pth', pickle_protocol=4)
    with pytest.raises(CheckpointError, match=r'does not read.*pickle_protocol above 2'):
        read_checkpoint(tmp_path / 'a.pth')


def tensor_call(*args):
    return Calls(torch._utils._rebuild_tensor_v2, torch.arange(4.0)._typed_storage(), *args)


@pytest.mark.parametrize(('offset', 'size', 'stride'), [
    (0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 3), (3, 1)), (0, (HUGE,), (0,)), (0, (5,), (0,)), (-1, (2,), (1,)),
    (0, (2,), (-1,)), (0, (2,), (4,)), (0, (2,), (1, 1)), (0, (-2,), (1,)), (2**63, (1,), (1,)),
    (0, (2**63, 0), (1, 1)), (0, (1,) * 65, (1,) * 65), (4, (1,), (1,)), (0.0, (1,), (1,)), (0, [2], [1]),
])  # fmt: skip
def test_tensors_that_do_not_fit_their_storage_are_refused(tmp_path, offset, size, stride):
    refuse_saved(tmp_path / 'a.pth', tensor_call(offset, size, stride, False, collections.OrderedDict()),
                 'is damaged: ')  # fmt: skip


def test_hooks_of_a_tensor_are_refused(tmp_path):
    hooks = collections.OrderedDict({0: 1})
    refuse_saved(tmp_path / 'a.pth', tensor_call(0, (2,), (1,), False, hooks), 'something else than a tensor is')


@pytest.mark.parametrize(('make', 'match'), [
    (lambda: torch.eye(3).to_sparse(), 'holds a sparse tensor; save it with .to_dense'),
    (lambda: torch.eye(3).to_sparse_csr(), 'holds a sparse tensor'),
    (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), 'quantised'),
    (lambda: torch.empty(3, device='meta'), 'on the meta device, which has no values'),
    (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), 'holds a nested tensor'),
    (lambda: nn.Linear(2, 2), r'Python object torch\.nn\.modules\.linear\.Linear'),
])  # fmt: skip
@pytest.mark.filterwarnings('ignore')
def test_unusable_tensors_are_told_apart(tmp_path, make, match):
    refuse_saved(tmp_path / 'a.pth', make(), match)


def nested(depth):
    content = []
    for _ in range(depth - 1):
        content = [content]
    return content


def test_nesting_and_cycles_are_limited():
    inspect(nested(99))
    deep = b'\x80\x02' + b']' * 100_000 + b'a' * 99_999 + b'.'
    for stream in (pickle.dumps(nested(101), protocol=2), deep):
        with pytest.raises(CheckpointError, match='nests deeper than 100 levels'):
            inspect_pickle(io.BytesIO(stream))
    around = []
    around.append({'around': around})
    with pytest.raises(CheckpointError, match='contains itself'):
        inspect(around)


def test_depth_is_found_through_shared_parts_without_walking_them_twice():
    """Sixty lists, each twice in the next: 2**60 ways, one walk."""
    content = []
    for _ in range(60):
        content = [content, content]
    inspect(content)
    above = content
    for _ in range(50):
        above = [above]
    for deep in (above, [content, above]):  # reached from above, or known already when it is reached
        with pytest.raises(CheckpointError, match='nests deeper'):
            inspect(deep)


def test_the_number_of_steps_is_limited(monkeypatch):
    monkeypatch.setattr(pickle_check, 'MAX_STEPS', 1000)
    inspect(list(range(400)))
    with pytest.raises(CheckpointError, match='more than 1,000 steps'):
        inspect(list(range(2000)))


def test_one_storage_seen_too_often_is_refused(tmp_path):
    view = torch.zeros(1000)
    torch.save({'state_dict': {f'a{n}': view.view(1000) for n in range(10)}}, tmp_path / 'a.pth')
    assert len(read_checkpoint(tmp_path / 'a.pth')['state_dict']) == 10
    torch.save({'state_dict': {f'a{n}': view.view(1000) for n in range(11)}}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='the same values more than 10 times over'):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize('stream', [
    b'', b'\x80', b'\x80\x02', b'\x80\x02.', b'\x80\x02K', b'\x80\x02h\x05.', b'\x80\x02(K\x01.', b'\x80\x02K\x01a.',
    b'\x80\x02}K\x01s.', b'\x80\x02}(K\x01u.', b'\x80\x02}]K\x01s.', b'\x80\x02K\x01Q.', b'\x80\x02X\xff\xff\xff\xffa.',
    b'\x80\x02X\x01\x00\x00\x00\xff.', b'\x80\x02cos\n.', b'\x80\x02c\n\n.', b'\x80\x02K\x01K\x02.', b'\x80\x02t.',
    b'\x80\x02K\x01)R.', b'\x80\x02)}b.', b'\x80\x020.', b'\x80\x02\x85.', b'\x80\x02r\xff\xff\xff\xff.', b'\xff.',
    b'\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa.', b'\x80\x02\x8b\xff\xff\xff\x7f.',
])  # fmt: skip
def test_pickles_that_make_no_sense_are_refused(stream):
    with pytest.raises(CheckpointError):
        inspect_pickle(io.BytesIO(stream))
