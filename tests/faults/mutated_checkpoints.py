"""A campaign on damaged and malicious checkpoint files: what do reading, loading and converting make of them?

    python tests/faults/mutated_checkpoints.py --count 1000 --seed 0 [--out report.md]

File N of a seed is always the same file (but for the path of the mark that code in it would leave). Each goes through
`read_checkpoint`, `load_pretrained_backbone` into a model and tools/convert_checkpoint.py, in a worker process with a
limit on its memory, watched by a clock. Allowed is success, where an independent reader (zipfile, json, the standard
unpickler) finds the same finite values, or a CheckpointError of one line. Not allowed: any other exception, a crash, a
mark that a pickle left on the disk, a file that was begun and not finished, a half-loaded model, more than MAX_SECONDS
or MAX_MEMORY. Exit code 1 when any of these was seen.

Touch this file to add kinds of damage (`KINDS`). Not for single cases with their message: those stand in
tests/checkpoint/. A small campaign is part of the tests: tests/faults/test_mutated_checkpoints.py.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import pickle
import platform
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

ARCH = {'depths': [1, 1, 1, 1], 'channels': [8, 16, 24, 32]}
MAX_SECONDS = 10.0  # per file and the three uses of it
MAX_MEMORY = 256 * 2**20  # bytes that one file may add to the process; the files have 0.1 to 0.4 MB
FORMATS = ('zip', 'first', 'safetensors')  # torch's current and first format, and the other one
TERA = 2**40

# ----------------------------------------------------------------------------------------------------- undamaged files


def base_contents() -> dict[str, dict[str, Any]]:
    """What the files hold before they are damaged: a pretraining run's checkpoint, an official one, one of timm."""
    from mmengine.logging import HistoryBuffer

    from mmcnx2.checkpoint import convert_state_dict
    from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2
    from mmcnx2.models.fcmae import FCMAE

    torch.manual_seed(0)
    fcmae = FCMAE(
        backbone={'type': 'mmcnx2.ConvNeXtV2', 'arch': ARCH},
        neck={'type': 'mmcnx2.FCMAEDecoder', 'decoder_channels': 32},
        head={'type': 'mmcnx2.PixelReconstructionHead'},
    )
    classifier = torch.nn.ModuleDict({'backbone': ConvNeXtV2(ARCH, gap_before_final_norm=True)})
    for parameter in (*fcmae.parameters(), *classifier.parameters()):
        parameter.data = 0.3 * torch.randn(parameter.shape) + 0.2
    history = HistoryBuffer()
    for value in (1.0, float('nan'), 0.5):  # a metric may be NaN
        history.update(value)
    ours = dict(classifier.state_dict())
    run = {
        'meta': {'epoch': 3, 'iter': 30, 'cfg': 'model = dict()', 'seed': 0, 'best': np.float32(0.5)},
        'state_dict': OrderedDict(
            (name, tensor) for name, tensor in fcmae.state_dict().items() if 'data_pre' not in name
        ),
        'message_hub': {'log_scalars': OrderedDict(loss=history), 'runtime_info': OrderedDict(iter=30)},
        'optimizer': {
            'state': {0: {'step': torch.tensor(30.0), 'exp_avg': torch.ones(3)}},
            'param_groups': [{'lr': 1e-3}],
        },
        'param_schedulers': [{'last_step': 30, '_get_lr_called_within_step': False}],
    }
    meta = {
        'model': convert_state_dict(ours, source='mmcnx2', target='meta'),
        'epoch': 3,
        'args': argparse.Namespace(lr=1),
    }
    timm = {'state_dict': convert_state_dict(ours, source='mmcnx2', target='timm'), 'meta': {'format': 'pt'}}
    return {'zip': run, 'first': meta, 'safetensors': timm}


def saved(content: Any, form: str) -> bytes:
    from safetensors.torch import save

    if form == 'safetensors':
        weights = {name: tensor.clone().contiguous() for name, tensor in weights_of(content).items()}
        return save(weights, {'format': 'pt'})
    file = io.BytesIO()
    # torch's first format sorts storages by their addresses and names them so, which differs from run to run
    with mock.patch.object(torch.serialization, 'sorted', list, create=True):
        torch.save(content, file, _use_new_zipfile_serialization=form == 'zip')
    numbers: dict[bytes, int] = {}

    def numbered(match: re.Match) -> bytes:
        return b'X\x0f\0\0\0%015d' % numbers.setdefault(match[2], len(numbers))

    data = file.getvalue()
    return data if form == 'zip' else re.sub(rb'X(\x0e|\x0f)\0\0\0(\d{14,15})', numbered, data)


def weights_of(content: dict) -> dict[str, torch.Tensor]:
    return content.get('state_dict') or content['model']


def with_weights(content: dict, weights: dict) -> dict:
    key = 'state_dict' if 'state_dict' in content else 'model'
    return {**content, key: weights}


class Calls:
    """Pickled, it asks for a call of `function` with `args`."""

    def __init__(self, function: Any, *args: Any, state: Any = None):
        self.answer = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.answer


# -------------------------------------------------------------------------------------------------- an independent look


class _Anything(dict):
    """Stands for every object that is not a tensor."""

    def __init__(self, *args):
        super().__init__()

    def __setstate__(self, state):
        pass


class _Reader(pickle._Unpickler):
    """The standard unpickler, whose memo grows by what is in it; it builds tensors, OrderedDicts and stand-ins."""

    def __init__(self, stream, storage: Callable[[str, str, int], torch.Tensor]):
        super().__init__(stream)
        self.storage = storage

    def find_class(self, module, name):
        if module == 'torch' and name.endswith('Storage'):
            return name.removesuffix('Storage')
        if name == '_rebuild_tensor_v2':
            return lambda storage, offset, size, stride, *rest: storage.as_strided(size, stride, offset)
        if name == '_rebuild_parameter':
            return lambda tensor, *rest: tensor
        if name == 'encode':
            return lambda text, kind: text.encode(kind)
        return OrderedDict if name == 'OrderedDict' else _Anything

    def persistent_load(self, reference):
        _, kind, key, _, count, *_ = reference
        return self.storage(kind, key, count)


KINDS_OF_STORAGE = {
    'Float': torch.float32, 'Double': torch.float64, 'Half': torch.float16, 'BFloat16': torch.bfloat16,
    'Long': torch.int64, 'Int': torch.int32, 'Short': torch.int16, 'Char': torch.int8, 'Byte': torch.uint8,
    'Bool': torch.bool,
}  # fmt: skip
KINDS_OF_SAFETENSORS = {'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16, 'F64': torch.float64,
                        'I64': torch.int64, 'I32': torch.int32, 'BOOL': torch.bool, 'U8': torch.uint8}  # fmt: skip


def independent_weights(data: bytes) -> dict[str, torch.Tensor]:
    """The weights of a file as its format's description has them, without torch.load and without safetensors."""
    if data[:2] == b'PK':
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name.split('/', 1)[1]: archive.read(name) for name in archive.namelist()}

        def storage(kind, key, count):
            return torch.frombuffer(bytearray(members[f'data/{key}']), dtype=KINDS_OF_STORAGE[kind])[:count]

        content = _Reader(io.BytesIO(members['data.pkl']), storage).load()
    elif data[:1] == b'\x80' and data[8:9] != b'{':
        stream = io.BytesIO(data)
        storages: dict[str, torch.Tensor] = {}

        def storage(kind, key, count):
            return storages.setdefault(key, torch.zeros(count, dtype=KINDS_OF_STORAGE[kind]))

        for _ in range(3):
            _Reader(stream, storage).load()
        content = _Reader(stream, storage).load()
        for key in _Reader(stream, storage).load():
            count = struct.unpack('<q', stream.read(8))[0]
            values = stream.read(count * storages[key].element_size())
            storages[key].copy_(torch.frombuffer(bytearray(values), dtype=storages[key].dtype))
    else:
        length = struct.unpack('<Q', data[:8])[0]
        content = {}
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != '__metadata__':
                begin, end = (8 + length + offset for offset in entry['data_offsets'])
                values = torch.frombuffer(bytearray(data[begin:end]), dtype=KINDS_OF_SAFETENSORS[entry['dtype']])
                content[name] = values.view(entry['shape'])
    for key in ('state_dict', 'model', 'module'):
        if isinstance(content.get(key), dict):
            return dict(content[key])
    return dict(content)


# ------------------------------------------------------------------------------------------------------ kinds of damage


class Damage:
    """One file: the undamaged contents, a generator of its own, and where a pickle would leave its mark."""

    def __init__(self, contents: dict[str, dict], seed: int, index: int, marks: Path) -> None:
        self.rng = np.random.default_rng((seed, index))
        self.form = str(self.rng.choice(FORMATS))
        self.contents, self.mark = contents, str(marks / f'mark_{index}')
        self.must_be_refused = False

    @property
    def content(self) -> dict:
        return self.contents[self.form]

    def file(self) -> bytearray:
        return bytearray(saved(self.content, self.form))

    def pick(self, options):
        return options[int(self.rng.integers(len(options)))]

    def between(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, max(high, low + 1)))

    def flip(self, data: bytearray, begin: int, end: int) -> bytearray:
        for _ in range(self.pick((1, 1, 2, 8))):
            data[self.between(begin, end)] ^= 1 << self.between(0, 8)
        return data

    def contents_range(self, data: bytes) -> tuple[int, int]:
        """Where the table of contents lies: the pickle(s), or the header."""
        if self.form == 'safetensors':
            return 0, 8 + struct.unpack('<Q', data[:8])[0]
        if self.form == 'zip':
            begin = data.index(b'data.pkl') + 8
            return begin, data.index(b'PK\x07\x08', begin) if b'PK\x07\x08' in data[begin:] else begin + 2000
        sizes = sum(8 + tensor.numel() * tensor.element_size() for tensor in weights_of(self.content).values())
        return 0, len(data) - sizes

    def repacked(self, change: Callable[[dict[str, bytes]], None], compression=zipfile.ZIP_STORED) -> bytes:
        """The zip file with {name: bytes} changed and every checksum right again."""
        self.form = 'zip'
        with zipfile.ZipFile(io.BytesIO(self.file())) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        change(members)
        return packed(members, compression)

    def edited_weights(self, edit: Callable[[dict], Any]) -> bytes:
        weights = dict(weights_of(self.content))
        weights = edit(weights) or weights
        return saved(with_weights(self.content, weights), self.form)


def packed(members: dict[str, bytes] | list[tuple[str, bytes]], compression=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, bytes(data))
    return file.getvalue()


def pickle_name(members: dict[str, bytes]) -> str:
    return next(name for name in members if name.endswith('data.pkl'))


def bits_anywhere(damage: Damage) -> bytes:
    data = damage.file()
    return damage.flip(data, 0, len(data))


def bits_of_the_directory(damage: Damage) -> bytes:
    damage.form = 'zip'
    data = damage.file()
    return damage.flip(data, data.index(b'PK\x01\x02'), len(data))


def bits_of_the_contents(damage: Damage) -> bytes:
    data = damage.file()
    return damage.flip(data, *damage.contents_range(data))


def bits_of_the_contents_with_right_checksum(damage: Damage) -> bytes:
    def change(members):
        name = pickle_name(members)
        members[name] = damage.flip(bytearray(members[name]), 0, len(members[name]))

    return damage.repacked(change)


def bits_of_a_tensor(damage: Damage) -> bytes:
    data = damage.file()
    damage.must_be_refused = damage.form == 'zip'  # the only format with checksums
    if damage.form != 'zip':
        return damage.flip(data, damage.contents_range(data)[1], len(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = damage.pick([member for member in archive.infolist() if '/data/' in member.filename])
    begin = member.header_offset + 30
    begin += sum(struct.unpack('<2H', data[begin - 4 : begin]))
    return damage.flip(data, begin, begin + member.file_size)


def bits_of_a_tensor_with_right_checksum(damage: Damage) -> bytes:
    def change(members):
        name = damage.pick([name for name in members if '/data/' in name])
        members[name] = damage.flip(bytearray(members[name]), 0, len(members[name]))

    return damage.repacked(change)


def cut(damage: Damage) -> bytes:
    damage.must_be_refused = True
    data = damage.file()
    return data[
        : damage.pick((damage.between(0, len(data)), damage.between(0, 600), len(data) - damage.between(1, 60)))
    ]


def bytes_put_in(damage: Damage) -> bytes:
    data = damage.file()
    position = damage.pick((damage.between(0, len(data)), len(data), damage.between(0, 600)))
    return data[:position] + damage.rng.bytes(damage.pick((1, 4, 64, 5000))) + data[position:]


def bytes_taken_out(damage: Damage) -> bytes:
    data = damage.file()
    position = damage.between(0, len(data) - 1)
    del data[position : position + damage.pick((1, 4, 64, 5000))]
    damage.must_be_refused = True
    return data


def blocks_lost(damage: Damage) -> bytes:
    """Zeros where a disk did not write, or a block of another place."""
    data = damage.file()
    position, size = damage.between(0, len(data)), damage.pick((64, 512, 4096))
    other = damage.between(0, len(data))
    size = min(size, len(data) - position)
    data[position : position + size] = damage.pick((bytes(size), bytes(data[other : other + size]).ljust(size, b'\0')))
    return data


def halves_of_two_files(damage: Damage) -> bytes:
    damage.must_be_refused = True
    first, second = (saved(damage.contents[form], form) for form in damage.rng.permutation(FORMATS)[:2])
    return first[: len(first) // 2] + second[len(second) // 2 :]


def tensors_swapped(damage: Damage) -> bytes:
    def edit(weights):
        one, two = damage.rng.permutation(list(weights))[:2]
        weights[one], weights[two] = weights[two], weights[one]

    return damage.edited_weights(edit)


def names_changed(damage: Damage) -> bytes:
    def edit(weights):
        name = damage.pick(list(weights))
        other = damage.pick(list(weights))
        new = damage.pick((name[:-1], name + 'x', 'module.' + name, '', name.replace('.', '/'), '\n' + name, 'é' + name,
                           other + '.weight', name.replace('0', '7'), name * 50, name.upper()))  # fmt: skip
        return {new if key == name else key: value for key, value in weights.items()}

    return damage.edited_weights(edit)


def members_renamed(damage: Damage) -> bytes:
    def change(members):
        name = damage.pick(list(members))
        data = members.pop(name)
        new = damage.pick((name + 'x', '../' + name, '/' + name, name.split('/', 1)[1], name.upper(), 'other/' + name,
                           name.replace('/', '\\'), damage.pick(list(members))))  # fmt: skip
        members[new] = data

    return damage.repacked(change)


def members_changed(damage: Damage) -> bytes:
    how = damage.pick(('drop', 'swap', 'grow', 'shrink', 'compress', 'bomb', 'twice', 'code', 'comment'))
    damage.must_be_refused = how in ('grow', 'shrink', 'compress', 'bomb', 'twice', 'code', 'comment')

    def change(members):
        values = [name for name in members if '/data/' in name]
        one, two = damage.rng.permutation(values)[:2]
        folder = one.split('/')[0]
        if how == 'drop':
            del members[damage.pick(list(members))]
        elif how == 'swap':
            members[one], members[two] = members[two], members[one]
        elif how in ('grow', 'shrink'):
            members[one] = members[one] + bytes(4) if how == 'grow' else members[one][:-4]
        elif how == 'bomb':
            members[f'{folder}/data/1000'] = bytes(50 * 2**20)
        elif how == 'code':
            members[f'{folder}/constants.pkl'] = members[f'{folder}/code/x.py'] = b'import os'

    data = damage.repacked(change, zipfile.ZIP_DEFLATED if how in ('compress', 'bomb') else zipfile.ZIP_STORED)
    if how in ('twice', 'comment'):
        file = io.BytesIO(data)
        with zipfile.ZipFile(file, 'a') as archive, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            if how == 'twice':
                archive.writestr(damage.pick(archive.namelist()), b'again')
            else:
                archive.comment = b'PK\x05\x06' + bytes(18)
        data = file.getvalue()
    return data


def pickle_with_a_side_effect(damage: Damage) -> bytes:
    """Code that would leave a mark, in many disguises."""
    damage.must_be_refused = True
    damage.form = damage.pick(('zip', 'first'))
    place = damage.pick(PLACES)
    protocol = damage.pick((2, 2, 2, 3, 4, 5))
    payload = damage.pick(PAYLOADS)(damage.mark)
    content = place(damage, payload)
    file = io.BytesIO()
    if damage.rng.random() < 0.15:  # not torch's container at all
        with contextlib.suppress(pickle.PicklingError, TypeError, AttributeError):
            return pickle.dumps(payload, protocol=damage.pick((0, 1, 2, 3, 4, 5)))
    torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=damage.form == 'zip')
    return file.getvalue()


def pickle_by_hand_with_a_side_effect(damage: Damage) -> bytes:
    """Opcodes that no pickler writes like this, as the table of contents or in place of torch's magic number."""
    damage.must_be_refused = True
    mark = f'touch {damage.mark}'.encode()
    text = b'X' + struct.pack('<I', len(mark)) + mark
    short = b'\x8c' + bytes([len(mark)]) + mark if len(mark) < 256 else text
    stack_global = b'\x8c\x05posix\x8c\x06system\x93'
    code = damage.pick((
        b'\x80\x02cposix\nsystem\n' + text + b'\x85R.',
        b'\x80\x02cos\nsystem\n(' + text + b'tR.',
        b'cos\nsystem\n(' + text + b'tR.',
        b'\x80\x02(' + text + b'ios\nsystem\n.',
        b'\x80\x02(cos\nsystem\n' + text + b'o.',
        b'\x80\x02cos\nsystem\n' + text + b'\x85\x81.',
        b'\x80\x04' + stack_global + short + b'\x85R.',
        b'\x80\x04\x95' + struct.pack('<Q', 40 + len(mark)) + stack_global + short + b'\x85R.',
        b'\x80\x02c__builtin__\neval\nX' + struct.pack('<I', 30 + len(mark)) + b'__import__("os").system("' + mark
        + b'")   ' + b'\x85R.',
        b'\x80\x02\x82\x01' + text + b'\x85R.',
        b'\x80\x02}(X\x01\x00\x00\x00acos\nsystem\n' + text + b'\x85Ru.',
        b'\x80\x02' + text + b'Q.',
        b'\x80\x02(X\x06\x00\x00\x00modulecos\nsystem\n' + text + text + b'tQ.',
        b'\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n' + text + b'\x85}tR.',
        b'\x80\x02c__builtin__\ngetattr\ncmmengine.logging.history_buffer\nHistoryBuffer\nX\x08\x00\x00\x00__init__'
        b'\x86R.',
        b'\x80\x02ctorch.serialization\nload\n' + text + b'\x85R.',
        b'\x80\x02ctorch.hub\nload_state_dict_from_url\n' + text + b'\x85R.',
        b'\x80\x02cos\x00\nsystem\n' + text + b'\x85R.',
        b'\x80\x02ctorch\nos.system\n' + text + b'\x85R.',
        b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x05\x00\x00\x00statecos\nsystem\nsb.',
        b'\x80\x04\x8c\x05torch\x8c\x09os.system\x93' + short + b'\x85R.',
    ))  # fmt: skip
    how = damage.pick(('bare', 'contents', 'magic', 'last'))
    if how == 'bare':
        return code
    if how == 'contents':
        return damage.repacked(lambda members: members.update({pickle_name(members): code}))
    damage.form = 'first'
    data = damage.file()
    _, end = damage.contents_range(data)
    return code + data if how == 'magic' else data[: end - 1] + code + data[end:]


PAYLOADS: list[Callable[[str], Any]] = [
    lambda mark: Calls(os.system, f'touch {mark}'),
    lambda mark: Calls(os.mkdir, mark),
    lambda mark: Calls(open, mark, 'w'),
    lambda mark: Calls(eval, f'open({mark!r}, "w")'),
    lambda mark: Calls(exec, f'open({mark!r}, "w")'),
    lambda mark: Calls(subprocess.check_output, ['touch', mark]),
    lambda mark: Calls(subprocess.Popen, ['touch', mark]),
    lambda mark: Calls(getattr, Calls(__import__, 'os'), 'system'),
    lambda mark: Calls(__import__, 'antigravity'),
    lambda mark: Calls(Path.touch, Path(mark)),
    lambda mark: Calls(torch.save, {}, mark),
    lambda mark: Calls(np.save, mark, 1),
    lambda mark: Calls(np.ndarray.tofile, np.zeros(1), mark),
    lambda mark: Calls(torch._tensor._rebuild_from_type_v2, os.mkdir, torch.Tensor, (mark,), {}),
    lambda mark: Calls(torch._utils._rebuild_parameter, Calls(os.mkdir, mark), False, OrderedDict()),
    lambda mark: Calls(OrderedDict, [('a', Calls(os.mkdir, mark))]),
    lambda mark: Calls(argparse.Namespace, state={'a': Calls(os.mkdir, mark)}),
    lambda mark: Calls(map, os.mkdir, [mark]),
    lambda mark: Calls(argparse.FileType('w'), mark),
    lambda mark: Calls(torch.hub.download_url_to_file, 'file:///etc/hostname', mark),
]
PLACES: list[Callable[[Damage, Any], Any]] = [
    lambda damage, payload: payload,
    lambda damage, payload: {**damage.content, 'hook': payload},
    lambda damage, payload: {**damage.content, 'meta': {'a': [{'b': (1, {'c': payload})}]}},
    lambda damage, payload: with_weights(damage.content, {**weights_of(damage.content), 'x.weight': payload}),
    lambda damage, payload: with_weights(damage.content, {'x.weight': payload, **weights_of(damage.content)}),
    lambda damage, payload: {**weights_of(damage.content), 'x': payload},
    lambda damage, payload: {'state_dict': payload},
    lambda damage, payload: {**damage.content, 'optimizer': {'state': {0: {'step': payload}}}},
    lambda damage, payload: {**damage.content, 'args': Calls(argparse.Namespace, state={'lr': payload})},
    lambda damage, payload: {**damage.content, 'message_hub': OrderedDict(log_scalars=[payload])},
    lambda damage, payload: {**damage.content, 'x': Calls(torch._utils._rebuild_tensor_v2, payload, 0, (1,), (1,),
                                                          False, OrderedDict())},
    lambda damage, payload: {**damage.content, 'x': Calls(torch._utils._rebuild_tensor_v2,
                                                          torch.ones(1)._typed_storage(), 0, (1,), (1,), 0, payload)},
    lambda damage, payload: {**damage.content, 'x': Calls(np.dtype, 'f8', state=payload)},
    lambda damage, payload: {**damage.content, 'x': Calls(set, [payload])},
]  # fmt: skip


def safetensors_header(damage: Damage) -> bytes:
    damage.form = 'safetensors'
    data = damage.file()
    length = struct.unpack('<Q', data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = damage.pick([name for name in header if name != '__metadata__'])
    other = damage.pick([name for name in header if name != '__metadata__'])
    entry = header[name]
    begin, end = entry['data_offsets']
    edits = {
        'offsets swapped': lambda: entry.update(data_offsets=[end, begin]),
        'offsets behind': lambda: entry.update(data_offsets=[begin + TERA, end + TERA]),
        'offsets below': lambda: entry.update(data_offsets=[-8, end]),
        'offsets of another': lambda: entry.update(data_offsets=header[other]['data_offsets']),
        'offsets longer': lambda: entry.update(data_offsets=[begin, end + 4]),
        'shape huge': lambda: entry.update(shape=[TERA, TERA]),
        'shape beyond 64 bits': lambda: entry.update(shape=[2**63, 4]),
        'shape transposed': lambda: entry.update(shape=entry['shape'][::-1]),
        'shape negative': lambda: entry.update(shape=[-1]),
        'shape text': lambda: entry.update(shape='8'),
        'kind': lambda: entry.update(
            dtype=damage.pick(('F64', 'F16', 'I32', 'BOOL', 'X9', 'F8_E4M3', 'C64', 'BF16', 3))
        ),
        'dropped': lambda: header.pop(name),
        'renamed': lambda: header.update({name + 'x': header.pop(name)}),
        'swapped': lambda: header.update({name: header[other], other: header[name]}),
        'metadata': lambda: header.update(__metadata__=damage.pick(({'a': 1}, [], 'x', {'a': {'b': {}}}))),
        'entry': lambda: header.update({name: damage.pick((None, [], {}, 3))}),
        'extra': lambda: entry.update(extra=1),
    }
    edits[damage.pick(list(edits))]()
    text = json.dumps(header).encode()
    length = damage.pick((len(text),) * 8 + (len(text) + 1, len(text) - 1, 0, 2**31, TERA, 2**64 - 1))
    return struct.pack('<Q', length) + text + body


def wrong_lengths(damage: Damage) -> bytes:
    """A pickle whose numbers were changed: what a storage has, what a tensor takes from it."""
    damage.form = damage.pick(('zip', 'first'))

    def change(contents: bytes) -> bytes:
        end = b'Nt' if damage.form == 'first' else b't'
        number = struct.pack('<q', damage.pick((TERA, 2**62, 2**63 - 1, -1, -TERA, 10**9)))
        long = b'\x8a\x08' + number
        places = [
            n
            for n in range(len(contents) - 6)
            if contents[n : n + 1] == b'K'
            and (
                contents[n + 2 : n + 2 + len(end)] == end
                or contents[n + 2 : n + 3] in (b'\x85', b'\x86', b'\x87', b'K')
            )
        ]
        place = damage.pick(places)
        new = damage.pick(
            (
                long,
                b'K' + bytes([damage.between(0, 256)]),
                b'M' + damage.rng.bytes(2),
                b'N',
                b'\x88',
                b'G' + b'\x7f' * 8,
            )
        )
        return contents[:place] + new + contents[place + 2 :]

    if damage.form == 'zip':
        return damage.repacked(
            lambda members: members.update({pickle_name(members): change(members[pickle_name(members)])})
        )
    data = damage.file()
    _, end = damage.contents_range(data)
    return change(bytes(data[:end])) + data[end:]


def huge_claims(damage: Damage) -> bytes:
    """Small files that ask for terabytes."""
    damage.must_be_refused = True
    damage.form = damage.pick(('zip', 'first'))
    storage = torch.ones(4)._typed_storage()
    huge = damage.pick((2**31, TERA, 2**50))
    claim = damage.pick((
        lambda: torch.ones(1).expand(huge), lambda: torch.ones(1, 1).expand(huge, 4),
        lambda: torch.empty(huge, device='meta'), lambda: torch.sparse_coo_tensor(size=(huge,)),
        lambda: Calls(bytearray, huge), lambda: Calls(bytes, huge), lambda: Calls(np.ndarray, (huge,)),
        lambda: Calls(np._core.multiarray._reconstruct, np.ndarray, (huge,), b'b'),
        lambda: Calls(torch.FloatTensor, huge),
        lambda: Calls(np._core.multiarray._reconstruct, np.ndarray, (0,), b'b',
                      state=(1, (huge,), np.dtype('f8'), False, b'1234')),
        lambda: Calls(torch._utils._rebuild_tensor_v2, storage, 0, (huge,), (0,), False, OrderedDict()),
        lambda: Calls(torch._utils._rebuild_tensor_v2, storage, 0, (4,), (huge,), False, OrderedDict()),
        lambda: Calls(torch._utils._rebuild_tensor_v2, storage, huge, (1,), (1,), False, OrderedDict()),
        lambda: Calls(torch.Tensor, huge), lambda: Calls(torch.UntypedStorage, huge), lambda: Calls(range, huge),
    ))()  # fmt: skip
    content = damage.pick((
        lambda: {**damage.content, 'x': claim},
        lambda: with_weights(damage.content, {**weights_of(damage.content), 'x.weight': claim}),
    ))()  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return saved(content, damage.form)


def deep_nesting(damage: Damage) -> bytes:
    depth = damage.pick((50, 150, 900, 5000, 100_000))
    damage.must_be_refused = depth > 100
    opening, closing = damage.pick(((b']', b'a'), (b'(', b't'), (b'}K\x00', b's'), (b')', b'\x85')))
    nest = {b't': opening * depth + b'N' + closing * depth, b'\x85': b')' + closing * depth}.get(
        closing, opening * depth + b']' + closing * depth
    )
    damage.form = damage.pick(FORMATS)
    if damage.form == 'safetensors':
        text = b'{"__metadata__":{"a":' + b'[' * depth + b']' * depth + b'}}'
        return struct.pack('<Q', len(text)) + text
    if damage.form == 'zip':

        def change(members):  # one more entry of the outermost dict
            name = pickle_name(members)
            members[name] = members[name].removesuffix(b'u.') + b'X\x04\x00\x00\x00deep' + nest + b'u.'

        return damage.repacked(change)  # fmt: skip
    data = damage.file()
    begin = data.index(b'}q\x00(', data.index(b'type_sizes'))
    return data[: begin + 4] + b'X\x04\x00\x00\x00deep' + nest + data[begin + 4 :]


def values_not_finite(damage: Damage) -> bytes:
    damage.must_be_refused = True

    def edit(weights):
        name = damage.pick(list(weights))
        weights[name] = weights[name].clone()
        value = damage.pick((float('nan'), float('inf'), -float('inf')))
        weights[name].view(-1)[damage.between(0, weights[name].numel())] = value

    return damage.edited_weights(edit)


def kinds_of_numbers(damage: Damage) -> bytes:
    names = ('float16', 'bfloat16', 'float64', 'int64', 'int8', 'bool', 'complex64', 'float8_e4m3fn')
    kind = getattr(torch, damage.pick(names))
    damage.must_be_refused = not kind.is_floating_point or kind == torch.float8_e4m3fn

    def edit(weights):
        for name in damage.rng.permutation(list(weights))[: damage.pick((1, 5, len(weights)))]:
            weights[name] = weights[name].to(kind)

    return damage.edited_weights(edit)


def other_content(damage: Damage) -> bytes:
    damage.must_be_refused = True
    weights = weights_of(damage.content)
    damage.form = damage.pick(('zip', 'first'))
    content = damage.pick((
        None, [], {}, 'text', 3, torch.ones(2), list(weights.values()), {'state_dict': {}}, {'epoch': 3},
        {'state_dict': list(weights.items())}, {'state_dict': {1: torch.ones(2)}}, {'a': weights}, {'model': None},
        {'state_dict': weights, 'model': weights}, {'state_dict': {**weights, 'a': 1}}, {'state_dict': {'a': weights}},
        {b'a': torch.ones(1)}, {('a', 1): torch.ones(1)}, {'stem.weight': torch.ones(1)}, (),
    ))  # fmt: skip
    if isinstance(content, dict) and 'stem.weight' in content:
        damage.must_be_refused = False  # reading it is right; what fits the model is decided later
    return saved(content, damage.form)


def noise(damage: Damage) -> bytes:
    damage.must_be_refused = True
    start = damage.pick((b'PK\x03\x04', b'PK\x05\x06', b'\x80\x02', b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.',
                         b'\x10' + bytes(7) + b'{',
                         b'', b'<html>', b'\x89HDF', b'\0' * 600, b'version https://git-lfs', b'{"a": 1}'))  # fmt: skip
    return start + damage.rng.bytes(damage.pick((0, 1, 20, 5000)))


KINDS: dict[str, tuple[Callable[[Damage], bytes], int]] = {  # what is done, and how often in a round
    'bits anywhere': (bits_anywhere, 3),
    'bits of the zip directory': (bits_of_the_directory, 2),
    'bits of the table of contents': (bits_of_the_contents, 3),
    'the same with right checksum': (bits_of_the_contents_with_right_checksum, 4),
    'bits of a tensor': (bits_of_a_tensor, 3),
    'the same with right checksum (tensor)': (bits_of_a_tensor_with_right_checksum, 2),
    'cut off': (cut, 3),
    'bytes put in': (bytes_put_in, 3),
    'bytes taken out': (bytes_taken_out, 2),
    'blocks lost or misplaced': (blocks_lost, 2),
    'halves of two files': (halves_of_two_files, 1),
    'tensors swapped': (tensors_swapped, 2),
    'names changed': (names_changed, 2),
    'zip members renamed': (members_renamed, 2),
    'zip members changed': (members_changed, 2),
    'code in a pickle': (pickle_with_a_side_effect, 6),
    'code in a pickle made by hand': (pickle_by_hand_with_a_side_effect, 3),
    'safetensors header': (safetensors_header, 3),
    'wrong lengths': (wrong_lengths, 3),
    'huge claims': (huge_claims, 2),
    'deep nesting': (deep_nesting, 2),
    'NaN and Inf': (values_not_finite, 1),
    'other kinds of numbers': (kinds_of_numbers, 2),
    'other content': (other_content, 1),
    'noise': (noise, 1),
}
ROUND = [kind for kind, (_, times) in KINDS.items() for _ in range(times)]


def mutated(contents: dict[str, dict], seed: int, index: int, marks: Path) -> tuple[str, bytes, bool]:
    """(kind, bytes, whether reading must refuse it) of file number `index`."""
    kind = ROUND[index % len(ROUND)]
    damage = Damage(contents, seed, index, marks)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        data = bytes(KINDS[kind][0](damage))
    return kind, data, damage.must_be_refused


# --------------------------------------------------------------------------------------------------------- three uses


class Uses:
    """Reads, loads and converts one file after the other, and notes every answer that is not allowed."""

    def __init__(self, folder: Path) -> None:
        from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2

        self.folder, self.marks = folder / 'files', folder / 'marks'
        for each in (self.folder, self.marks):
            each.mkdir(exist_ok=True)
        self.contents = base_contents()
        self.backbone = ConvNeXtV2(ARCH, gap_before_final_norm=True)
        self.initial = {name: tensor.clone() for name, tensor in self.backbone.state_dict().items()}
        spec = importlib.util.spec_from_file_location('convert_tool', ROOT / 'tools' / 'convert_checkpoint.py')
        self.tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.tool)

    def run(self, seed: int, index: int) -> dict[str, Any]:
        kind, data, must_be_refused = mutated(self.contents, seed, index, self.marks)
        suffix = '.safetensors' if data[8:9] == b'{' else '.pth'
        path = self.folder / f'file_{index}{suffix}'
        path.write_bytes(data)
        memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        answers: dict[str, str] = {}
        wrong: list[str] = []
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for use in ('read', 'load', 'convert'):
                answers[use] = self.answer(getattr(self, use), path, data, wrong)
        seconds = time.perf_counter() - started
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
        path.unlink()
        left = sorted(os.listdir(self.folder))
        for name in left:
            (self.folder / name).unlink()
        if must_be_refused and answers['read'] == 'ok':
            wrong.append('read what must be refused')
        if answers['read'] != 'ok' and (answers['load'] == 'ok' or answers['convert'] == 'ok'):
            wrong.append('used what cannot be read')
        if left:
            wrong.append(f'left {left} behind')
        if os.listdir(self.marks):
            wrong.append('CODE WAS RUN')
        if more > MAX_MEMORY:
            wrong.append(f'took {more / 2**20:.0f} MB')
        if seconds > MAX_SECONDS:
            wrong.append(f'took {seconds:.1f} s')
        return dict(index=index, kind=kind, wrong=wrong, seconds=seconds, memory=more, **answers)

    def answer(self, use: Callable, path: Path, data: bytes, wrong: list[str]) -> str:
        from mmcnx2.checkpoint import CheckpointError

        try:
            problem = use(path, data)
            if problem:
                wrong.append(problem)
            return 'ok'
        except CheckpointError as error:
            text = str(error)
            if not text.isprintable() or len(text) > 1600 or 'MemoryError' in text or 'allocate' in text:
                wrong.append(f'{use.__name__}: no clear line: {text[:300]}')
            return text.replace(str(path), 'FILE')
        except Exception as error:
            wrong.append(f'{use.__name__}: {type(error).__name__}: {str(error)[:300]}')
            return f'{type(error).__name__}'

    def read(self, path: Path, data: bytes) -> str | None:
        from mmcnx2.checkpoint import read_checkpoint

        weights = read_checkpoint(path)['state_dict']
        expected = independent_weights(data)
        return None if same(weights, expected) else 'read: not what the independent reader finds'

    def load(self, path: Path, data: bytes) -> str | None:
        from mmcnx2.checkpoint import CheckpointError, convert_state_dict, load_pretrained_backbone

        self.backbone.load_state_dict(self.initial)
        try:
            report = load_pretrained_backbone(self.backbone, path)
        except CheckpointError:
            if not same(self.backbone.state_dict(), self.initial):
                raise AssertionError('the model was changed although the file was refused') from None
            raise
        weights = independent_weights(data)
        around = ('neck.', 'head.pred.')
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(around)}
        expected = convert_state_dict(weights, source=report['layout'], target='mmcnx2')
        expected = {name.removeprefix('backbone.'): tensor.float() for name, tensor in expected.items()}
        loaded = {name: tensor for name, tensor in self.backbone.state_dict().items() if name not in report['fresh']}
        if not all(torch.isfinite(tensor).all() for tensor in loaded.values()):
            return 'load: the model holds NaN or Inf'
        return None if same(loaded, expected) else 'load: the model is not what the independent reader finds'

    def convert(self, path: Path, data: bytes) -> str | None:
        from mmcnx2.checkpoint import CheckpointError

        out = self.folder / 'converted.safetensors'
        target = 'mmcnx2' if data[:2] != b'PK' else 'meta'
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.tool.main([str(path), str(out), '--target', target])
        except CheckpointError:
            if out.exists():
                raise AssertionError('an output file was written although the file was refused') from None
            raise
        weights = independent_weights(out.read_bytes())
        out.unlink()
        return None if len(weights) == len(independent_weights(data)) else 'convert: tensors were lost'


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def work(folder: Path, seed: int, first: int, end: int) -> None:
    """A worker: one line of JSON before and one after each file, and nothing else, goes to its standard output."""
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)
    uses = Uses(folder)
    uses.run(seed, first)  # imports and caches, so that the memory of the first file counts like that of others
    with open('/proc/self/statm') as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 4 * MAX_MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for index in range(first, end):
        print(json.dumps(dict(begins=index)), file=answers)
        print(json.dumps(uses.run(seed, index)), file=answers)


# --------------------------------------------------------------------------------------------------------- the campaign


def worker_command(folder: Path, seed: int, first: int, end: int) -> list[str]:
    return [sys.executable, __file__, '--worker', str(folder), '--seed', str(seed), '--range', str(first), str(end)]


def campaign(
    count: int, seed: int, folder: Path, first: int = 0, tell: Callable[[str], None] = lambda line: None
) -> list[dict]:
    """What every file led to. A worker that dies or hangs is counted for the file that it was at, and replaced."""
    results: list[dict] = []
    index, end = first, first + count
    while index < end:
        command = worker_command(folder, seed, index, end)
        environ = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
        with (
            open(folder / 'stderr.txt', 'w+') as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environ) as worker,
        ):
            begun, deadline, rest = None, time.monotonic() + 120, b''
            while True:
                ready, _, _ = select.select([worker.stdout], [], [], max(0.0, deadline - time.monotonic()))
                piece = os.read(worker.stdout.fileno(), 2**16) if ready else b''
                if not piece:
                    break
                *lines, rest = (rest + piece).split(b'\n')
                for line in lines:
                    answer = json.loads(line)
                    if 'begins' in answer:
                        begun, deadline = answer['begins'], time.monotonic() + 3 * MAX_SECONDS
                        continue
                    results.append(answer)
                    index, begun = answer['index'] + 1, None
                    if answer['wrong']:
                        tell(f'file {answer["index"]} ({answer["kind"]}): {"; ".join(answer["wrong"])}')
                    elif index % 100 == 0:
                        tell(f'{index - first} of {count} files, {sum(bool(each["wrong"]) for each in results)} wrong')
            hangs = not ready
            if hangs:
                worker.kill()
            code = worker.wait()
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [''])[-1][:300]
        if index >= end:
            break
        if begun is None:
            raise RuntimeError(f'the worker ended before file {index} (exit code {code}): {last}')
        what = 'hangs' if hangs else f'ended the process ({signal.Signals(-code).name if code < 0 else code}): {last}'
        kind = ROUND[begun % len(ROUND)]
        results.append(
            dict(index=begun, kind=kind, wrong=[what], seconds=0.0, memory=0, read=what, load=what, convert=what)
        )
        tell(f'file {begun} ({kind}): {what}')
        index = begun + 1
    return results


def report(results: list[dict], command: str) -> str:
    """Markdown: outcomes by kind of damage, and how the refusals begin."""
    import safetensors

    by_kind = defaultdict(list)
    for result in results:
        by_kind[result['kind']].append(result)
    wrong = [result for result in results if result['wrong']]
    lines = [
        f'# {len(results)} mutated checkpoints: {len(wrong)} not as they must be', '',
        f'`{command}`, {time.strftime("%Y-%m-%d")}; Python {platform.python_version()}, torch {torch.__version__}, '
        f'NumPy {np.__version__}, safetensors {safetensors.__version__}, {platform.system()} {platform.machine()}. '
        f'Slowest file {max(result["seconds"] for result in results):.2f} s, largest growth of the process '
        f'{max(result["memory"] for result in results) / 2**20:.0f} MB.', '',
        '| damage | files | refused | read as the independent reader | loaded into the model | converted | wrong |',
        '|---|---|---|---|---|---|---|',
    ]  # fmt: skip
    for kind, group in [*((kind, by_kind[kind]) for kind in KINDS if by_kind[kind]), ('all', results)]:
        ok = {use: sum(result[use] == 'ok' for result in group) for use in ('read', 'load', 'convert')}
        num_wrong = sum(bool(result['wrong']) for result in group)
        lines.append(f'| {kind} | {len(group)} | {len(group) - ok["read"]} | {ok["read"]} | {ok["load"]} | '
                     f'{ok["convert"]} | {num_wrong} |')  # fmt: skip
    begins = Counter(' '.join(result['read'].split()[:6]) for result in results if result['read'] != 'ok')
    lines += ['', 'How the refusals begin:', '', *(f'* {times} x {text}' for text, times in begins.most_common(25))]
    if wrong:
        lines += [
            '',
            'Wrong:',
            '',
            *(f'* {each["index"]} ({each["kind"]}): {"; ".join(each["wrong"])}' for each in wrong),
        ]
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=1000, help='number of files')
    parser.add_argument('--seed', type=int, default=0, help='other files')
    parser.add_argument('--first', type=int, default=0, help='number of the first file, to repeat a few')
    parser.add_argument('--out', metavar='FILE', help='write the report there too')
    parser.add_argument('--keep', metavar='FILE', help='write file number --first there and end')
    parser.add_argument('--worker', metavar='FOLDER', help=argparse.SUPPRESS)
    parser.add_argument('--range', type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(Path(args.worker), args.seed, *args.range)
        return
    if args.keep:
        kind, data, _ = mutated(base_contents(), args.seed, args.first, Path(tempfile.gettempdir()))
        Path(args.keep).write_bytes(data)
        print(f'{args.keep}: file {args.first} of seed {args.seed}, {kind}, {len(data)} bytes. It may hold code')
        return
    with tempfile.TemporaryDirectory() as folder:
        results = campaign(args.count, args.seed, Path(folder), args.first, lambda line: print(line, flush=True))
    text = report(results, f'python tests/faults/mutated_checkpoints.py --count {args.count} --seed {args.seed}')
    print(text)
    if args.out:
        Path(args.out).write_text(text)
    if any(result['wrong'] for result in results):
        raise SystemExit(1)


if __name__ == '__main__':
    main()
