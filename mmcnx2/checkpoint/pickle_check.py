"""Checkpoint files, read: what the pickle inside a torch file would build, found out without building any of it.

`inspect_pickle` follows the opcodes and keeps lists, dicts and numbers, but only *notes* which Python objects the
pickle names and with which arguments it would call them. Whatever is not in the one table of this file is refused, and
so is what the table's objects would do with other arguments than torch, NumPy and mmengine write: a tensor larger than
its storage, an array or byte string of a claimed length, a structure that nests deeper or counts more than the limits.
`plain_data_globals` hands the classes of the same table to torch, which then reads with weights_only=True.

Touch this file to let checkpoints hold another kind of plain data: an entry in `_CALLS`, with a check of its arguments.
Nothing in the table may run code, open a file or allocate what it was only told. Not for files (read.py). Guarded by
tests/checkpoint/test_pickle_check.py.
"""

import argparse
import math
import pickle
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from mmcnx2.checkpoint.convert import CheckpointError

MAX_DEPTH = 100  # an optimiser's state nests about 8 deep
MAX_STEPS = 20_000_000  # opcodes; a 200-layer model with its optimiser has about 100,000
MAX_SHARING = 10  # tensors may count this many times the bytes of the storages that they view
UNSAFE_FLAG = '--unsafe-load (in Python: unsafe_load=True)'
HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
HISTORY_METHODS = ('min', 'max', 'mean', 'current')
NUMBER_KINDS = ('f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'b1')  # of NumPy
STORAGE_BYTES = {
    'Float': 4, 'Double': 8, 'Half': 2, 'BFloat16': 2, 'Long': 8, 'Int': 4, 'Short': 2, 'Char': 1, 'Byte': 1,
    'Bool': 1, 'ComplexFloat': 8, 'ComplexDouble': 16,
}  # fmt: skip
STORAGE_BYTES = {f'torch.{name}Storage': size for name, size in STORAGE_BYTES.items()}
STORAGE_BYTES['torch.storage.UntypedStorage'] = 1
DTYPE_BYTES = {
    'float16': 2, 'bfloat16': 2, 'float32': 4, 'float64': 8, 'complex64': 8, 'complex128': 16, 'bool': 1, 'uint8': 1,
    'uint16': 2, 'uint32': 4, 'uint64': 8, 'int8': 1, 'int16': 2, 'int32': 4, 'int64': 8, 'float8_e4m3fn': 1,
    'float8_e5m2': 1, 'float8_e4m3fnuz': 1, 'float8_e5m2fnuz': 1, 'float8_e8m0fnu': 1,
}  # fmt: skip
# Kinds of tensors that no weights are, by the function that would rebuild them
UNUSABLE = {
    'torch._utils._rebuild_sparse_tensor': 'a sparse tensor; save it with .to_dense()',
    'torch._utils._rebuild_sparse_csr_tensor': 'a sparse tensor; save it with .to_dense()',
    'torch._utils._rebuild_qtensor': 'a quantised tensor; save it with .dequantize()',
    'torch._utils._rebuild_meta_tensor_no_storage': 'a tensor on the meta device, which has no values',
    'torch._utils._rebuild_nested_tensor': 'a nested tensor; save its parts',
    'torch._utils._rebuild_wrapper_subclass': 'a tensor of a special class; save it as a plain tensor',
    'torch._utils._rebuild_device_tensor_from_numpy': 'a tensor of a device that is not here; save it on the CPU',
    'torch._utils._rebuild_device_tensor_from_cpu_tensor': 'a tensor of a device that is not here; save it on the CPU',
    'torch.distributed.tensor.DTensor': 'a tensor in shards; save the whole one (full_tensor())',
    'torch.distributed._shard.sharded_tensor.api.ShardedTensor': 'a tensor in shards; save the whole one',
}


class Named(NamedTuple):
    """A global that the pickle refers to."""

    name: str


@dataclass(eq=False)
class Built:
    """What a call would give: the global that would be called, its arguments, and the state set afterwards."""

    name: str
    args: tuple = ()
    state: Any = None


class Dict(dict):
    """A dict, or what an OrderedDict or Counter would be, with the attributes that the pickle gives it."""

    state: Any = None


@dataclass(eq=False)
class Storage:
    """Values that follow the pickle: what it claims about them."""

    key: str
    item_bytes: int
    num_items: int

    @property
    def num_bytes(self) -> int:
        return self.item_bytes * self.num_items


@dataclass
class Inspection:
    """What a pickle would build, and the bytes that it claims to follow: {key: number}."""

    content: Any = None
    storages: dict[str, int] = field(default_factory=dict)
    tensor_bytes: int = 0


# ------------------------------------------------------------------------------------------------------ the one table


def history_method(owner: type, name: str) -> Any:
    """What getattr may do for a file: name one of the statistics that mmengine pickles along with each log history."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in HISTORY_METHODS:
        raise pickle.UnpicklingError(f'GLOBAL getattr({owner!r}, {name!r})')
    return getattr(owner, name)


def plain_data_globals() -> list:
    """The objects of `_CALLS` that torch does not know by itself, for torch.serialization.safe_globals."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    multiarray = np._core.multiarray
    return [
        argparse.Namespace,  # the official training script's `args`
        HistoryBuffer,  # mmengine's message hub
        (history_method, 'builtins.getattr'),
        (bytes, 'builtins.bytes'),  # the empty one; others are encoded
        slice,
        np.ndarray,
        np.dtype,
        *{type(np.dtype(kind)) for kind in NUMBER_KINDS},
        multiarray._reconstruct,
        multiarray.scalar,
        (multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),  # as NumPy 1 named them
        (multiarray.scalar, 'numpy.core.multiarray.scalar'),
    ]


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise CheckpointError(f'is damaged: {what}')


def _is_size(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= 64 and all(type(n) is int and 0 <= n < 2**62 for n in values)


def _tensor(found: Inspection, storage, offset, size, stride, requires_grad=False, hooks=(), *more) -> Built:
    more = list(more)
    item_bytes = storage.item_bytes if isinstance(storage, Storage) else 0
    if more and isinstance(more[0], Named):  # the dtype of a storage of plain bytes
        item_bytes = DTYPE_BYTES.get(more.pop(0).name.removeprefix('torch.'), 0)
    is_plain = isinstance(storage, Storage) and item_bytes and isinstance(requires_grad, bool) and not hooks
    _require(bool(is_plain) and _is_size((offset,)), 'a tensor is described by something else than a tensor is')
    _require(
        all(isinstance(marks, dict) and all(type(mark) is bool for mark in marks.values()) for marks in more),
        'a tensor has marks that torch does not write',
    )
    _require(
        _is_size(size) and _is_size(stride) and len(size) == len(stride),
        f'a tensor has size {_brief(size)} and stride {_brief(stride)}',
    )
    num_items = storage.num_bytes // item_bytes
    numel = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if numel else 0
    if numel > num_items or last >= max(num_items, 1):
        hint = '; was it expanded? Then save it with .contiguous()' if 0 in stride else ''
        raise CheckpointError(
            f'is damaged: a tensor of size {_brief(size)}, stride {_brief(stride)}, offset {offset} does not fit its '
            f'storage of {num_items} values{hint}'
        )
    found.tensor_bytes += numel * item_bytes
    return Built('torch.Tensor', (numel,))


def _tensor_of_type(found: Inspection, function, new_type, args, state) -> Built:
    is_known = isinstance(function, Named) and function.name.startswith('torch._utils._rebuild_')
    is_tensor = isinstance(new_type, Named) and new_type.name in ('torch.Tensor', 'torch.nn.parameter.Parameter')
    _require(is_known and is_tensor and type(args) is tuple, 'a tensor would be rebuilt by something unknown')
    _require(state is None or isinstance(state, dict), "a tensor's attributes are no dict")
    built = _called(found, function.name, args)
    return Built('torch.Tensor', (built,), state)


def _parameter(found: Inspection, data, requires_grad, hooks, state=None) -> Built:
    _require(isinstance(data, Built) and data.name == 'torch.Tensor' and not hooks, 'a parameter holds no tensor')
    _require(state is None or isinstance(state, dict), "a parameter's attributes are no dict")
    return Built('torch.Tensor', (data,), state)


def _ordered_dict(found: Inspection, items=()) -> Dict:
    if not isinstance(items, dict):
        pairs = [tuple(item) for item in items if isinstance(item, tuple | list)]
        _require(len(pairs) == len(items) and all(len(pair) == 2 for pair in pairs), 'a dict of something else')
        items = dict(pairs)
    built = Dict()
    for key, value in items.items():
        built[_checked_key(key)] = value
    return built


def _set(found: Inspection, items=()) -> set:
    _require(isinstance(items, list), 'a set of something else')
    return {_checked_key(item) for item in items}


def _encoded(found: Inspection, text, encoding) -> bytes:
    _require(isinstance(text, str) and encoding in ('latin1', 'latin-1'), 'bytes in an unknown encoding')
    return text.encode('latin1')


def _bytes(found: Inspection, *args) -> bytes:
    _require(not args, 'bytes of a claimed length')
    return b''


def _bytearray(found: Inspection, *args) -> bytes:
    if len(args) == 2:
        return _encoded(found, *args)
    _require(not args or isinstance(args[0], bytes), 'a byte array of a claimed length')
    return args[0] if args else b''


def _getattr(found: Inspection, owner, name) -> Built:
    if not isinstance(owner, Named) or owner.name != HISTORY or name not in HISTORY_METHODS:
        whose = owner.name if isinstance(owner, Named) else type(owner).__name__
        raise _refused(f'getattr({whose}, {_brief(name)!r})')
    return Built('getattr', (name,))


def _empty_array(found: Inspection, kind, shape, letter) -> Built:
    _require(kind == Named('numpy.ndarray') and shape == (0,) and letter == b'b', 'an array of a claimed length')
    return Built('numpy.ndarray')


def _dtype(found: Inspection, kind, *flags) -> Built:
    if isinstance(kind, str) and kind not in NUMBER_KINDS:
        raise CheckpointError(
            f'was not read: it holds NumPy values of the kind {_brief(kind)!r}, and a checkpoint may '
            f'hold numbers only ({", ".join(NUMBER_KINDS)})'
        )
    _require(isinstance(kind, str) and all(type(flag) in (bool, int) for flag in flags), 'an unknown kind of numbers')
    return Built('numpy.dtype', (kind,))


def _number(found: Inspection, dtype, data) -> Built:
    _require(_is_dtype(dtype) and isinstance(data, bytes), 'a NumPy number of something else')
    _require(len(data) == int(dtype.args[0][1:]), 'a NumPy number of another length than its kind')
    return Built('number')


def _is_dtype(value: Any) -> bool:
    return isinstance(value, Built) and value.name == 'numpy.dtype'


def _plain(name: str, *kinds: type) -> Callable[..., Built]:
    """A call that takes any number of arguments of the given kinds."""

    def call(found: Inspection, *args) -> Built:
        _require(len(args) <= 3 and all(isinstance(arg, kinds) for arg in args), f'{name} of something else')
        return Built(name, args)

    return call


# What a pickle may call, and how: the result is the note of what would come out.
_CALLS: dict[str, Callable] = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _tensor_of_type,
    'torch.Size': _plain('torch.Size', tuple, list),
    'torch.device': _plain('torch.device', str, int),
    'collections.OrderedDict': _ordered_dict,
    'collections.Counter': _ordered_dict,
    'builtins.set': _set,
    'builtins.complex': _plain('complex', float, int),
    'builtins.slice': _plain('slice', int, type(None)),
    'builtins.bytes': _bytes,
    'builtins.bytearray': _bytearray,
    'builtins.getattr': _getattr,
    '_codecs.encode': _encoded,
    'argparse.Namespace': _plain('argparse.Namespace'),
    HISTORY: _plain(HISTORY),
    'numpy.dtype': _dtype,
    **{
        f'numpy.{core}.multiarray.{name}': call
        for core in ('core', '_core')
        for name, call in (('_reconstruct', _empty_array), ('scalar', _number))
    },
}
# What it may only mention, as an argument
_MENTIONED = {
    'numpy.ndarray', 'torch.Tensor', 'torch.nn.parameter.Parameter', *STORAGE_BYTES,
    *(f'torch.{name}' for name in DTYPE_BYTES),
}  # fmt: skip


def allowed_globals() -> set[str]:
    """Full names of everything that a checkpoint may refer to."""
    return set(_CALLS) | _MENTIONED


def _refused(name: str) -> CheckpointError:
    return CheckpointError(
        f'was not read: it asks for the Python object {name}, and a checkpoint may only hold tensors and plain data, '
        f'anything else could run any code. If you trust its origin give {UNSAFE_FLAG}, or save its state dict alone'
    )


# --------------------------------------------------------------------------------------------------------- following it


def inspect_pickle(stream: BinaryIO) -> Inspection:
    """Notes about the pickle that begins at the position of `stream`, which is left behind its end.

    Raises CheckpointError, whose text continues a sentence that begins with the file's name, when the pickle asks for
    anything beyond tensors and plain data, claims what it does not have, or does not make sense.
    """
    try:
        found = _Machine().run(stream)
        _check_depth(found.content)
    except CheckpointError:
        raise
    except (LookupError, ValueError, TypeError, OverflowError, AttributeError) as error:
        raise CheckpointError(f'is damaged: its table of contents makes no sense ({_brief(error)})') from error
    shared = sum(found.storages.values()) * MAX_SHARING
    if found.tensor_bytes > shared:
        raise CheckpointError(f'was not read: its tensors view the same values more than {MAX_SHARING} times over')
    return found


class _Machine:
    """The stack and the memo of an unpickler; its values are notes."""

    def __init__(self) -> None:
        self.found = Inspection()
        self.stack: list = []
        self.below: list[list] = []  # the stacks below each open mark
        self.memo: dict[int, Any] = {}
        self.beyond_torch: str | None = None  # an opcode that torch's reader does not know

    def run(self, stream: BinaryIO) -> Inspection:
        for step, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            if step > MAX_STEPS:
                raise CheckpointError(f'was not read: its table of contents has more than {MAX_STEPS:,} steps')
            if opcode.name == 'STOP':
                break
            self.take(opcode.name, arg)
        if self.beyond_torch:
            raise CheckpointError(
                f'was not read: its pickle has a step that torch does not read ({self.beyond_torch}, '
                'pickle_protocol above 2?); save it again with torch.save and its defaults'
            )
        _require(len(self.stack) == 1 and not self.below, 'its table of contents ends early')
        self.found.content = self.stack.pop()
        return self.found

    def take(self, name: str, arg: Any) -> None:
        stack = self.stack
        if name in ('PROTO', 'FRAME'):
            return
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            stack.append(arg)
        elif name in ('SHORT_BINUNICODE', 'BINUNICODE8', 'BINBYTES', 'SHORT_BINBYTES', 'LONG4'):
            self.beyond_torch = name
            stack.append(arg)
        elif name in ('BINPUT', 'LONG_BINPUT'):
            self.memo[arg] = stack[-1]
        elif name == 'MEMOIZE':
            self.beyond_torch = name
            self.memo[len(self.memo)] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET'):
            stack.append(self.memo[arg])
        elif name == 'MARK':
            self.below.append(stack)
            self.stack = []
        elif name == 'TUPLE':
            self.stack = self.below.pop()
            self.stack.append(tuple(stack))
        elif name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
            count = int(name[-1])
            _require(len(stack) >= count, 'a tuple of fewer values')
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ('APPEND', 'APPENDS'):
            self.fill(list, [stack.pop()] if name == 'APPEND' else self.pop_mark())
        elif name in ('SETITEM', 'SETITEMS'):
            self.fill(dict, [stack.pop(-2), stack.pop()] if name == 'SETITEM' else self.pop_mark())
        elif name == 'GLOBAL':
            stack.append(_named(*arg.split(' ', 1)))
        elif name == 'STACK_GLOBAL':
            self.beyond_torch = name
            attribute, module = stack.pop(), stack.pop()
            stack.append(_named(module, attribute))
        elif name == 'BINPERSID':
            stack.append(self.storage(stack.pop()))
        elif name in ('REDUCE', 'NEWOBJ'):
            args, function = stack.pop(), stack.pop()
            _require(isinstance(function, Named) and type(args) is tuple, 'it calls what cannot be called')
            stack.append(_called(self.found, function.name, args))
        elif name == 'BUILD':
            state = stack.pop()
            _set_state(stack[-1], state)
        elif name == 'INST':
            _named(*arg.split(' ', 1))  # refused by its name where it has one
            self.beyond_torch = name
            raise CheckpointError('was not read: its pickle creates objects in a way that torch never writes (INST)')
        else:
            raise CheckpointError(f'is damaged: its pickle has a step that torch never writes ({name})')

    def pop_mark(self) -> list:
        items, self.stack = self.stack, self.below.pop()
        return items

    def fill(self, kind: type, items: list) -> None:
        target = self.stack[-1]
        _require(isinstance(target, kind), f'it fills a {type(target).__name__} as if it were a {kind.__name__}')
        if kind is list:
            target.extend(items)
            return
        _require(len(items) % 2 == 0, 'a dict has a key without a value')
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value

    def storage(self, reference: Any) -> Storage:
        """The values that ('storage', type, key, location, number of items[, view]) stands for."""
        is_storage = type(reference) is tuple and len(reference) in (5, 6) and reference[0] == 'storage'
        if type(reference) is tuple and reference[:1] == ('module',):
            raise CheckpointError('was not read: it holds a whole module with its source code; save its state dict')
        _require(is_storage, 'it refers to values in an unknown way')
        _, kind, key, location, num_items, *view = reference
        known = (
            isinstance(kind, Named) and isinstance(key, str) and isinstance(location, str) and _is_size((num_items,))
        )
        _require(known and kind.name in STORAGE_BYTES, f'values of an unknown kind ({_brief(kind)})')
        storage = Storage(key, STORAGE_BYTES[kind.name], num_items)
        claimed = self.found.storages.setdefault(key, storage.num_bytes)
        _require(claimed == storage.num_bytes, f'it claims both {claimed} and {storage.num_bytes} bytes of one storage')
        if view and view[0] is not None:  # torch's first format: a part of a storage
            is_view = type(view[0]) is tuple and len(view[0]) == 3 and _is_size(view[0][1:])
            _require(is_view and sum(view[0][1:]) <= num_items, 'a part of a storage lies outside of it')
            storage = Storage(key, storage.item_bytes, view[0][2])
        return storage


_CONSTANTS: dict[str, Callable] = {
    'NONE': lambda: None, 'NEWTRUE': lambda: True, 'NEWFALSE': lambda: False, 'EMPTY_TUPLE': tuple,
    'EMPTY_LIST': list, 'EMPTY_DICT': Dict, 'EMPTY_SET': set,
}  # fmt: skip
_VALUES = ('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINSTRING')


def _named(module: Any, name: Any) -> Named:
    """The global under its name in Python 3; raises CheckpointError unless the table has it."""
    _require(isinstance(module, str) and isinstance(name, str), 'a global without a name')
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    full = f'{IMPORT_MAPPING.get(module, module)}.{name}'
    if full in UNUSABLE:
        raise CheckpointError(f'was not read: it holds {UNUSABLE[full]}')
    if full.startswith(('torch.Q', 'torch.sparse.')):
        raise CheckpointError(f'was not read: it holds quantised or sparse values ({_brief(full)}); save dense ones')
    if full not in _CALLS and full not in _MENTIONED:
        raise _refused(_brief(full))
    return Named(full)


def _called(found: Inspection, name: str, args: tuple) -> Any:
    if name not in _CALLS:
        raise _refused(f'{name}({", ".join(type(arg).__name__ for arg in args)})')
    return _CALLS[name](found, *args)


def _set_state(target: Any, state: Any) -> None:
    """Checks what a pickle puts into an object after making it."""
    if isinstance(target, Dict) or (isinstance(target, Built) and target.name in (HISTORY, 'argparse.Namespace')):
        is_plain = isinstance(state, dict) and all(isinstance(key, str) for key in state)
        _require(is_plain, 'an object has attributes without names')
    elif _is_dtype(target):
        is_plain = type(state) is tuple and len(state) == 8 and state[0] == 3 and state[1] in ('<', '>', '|', '=')
        _require(is_plain and state[2:] == (None, None, None, -1, -1, 0), 'a kind of numbers that NumPy does not write')
    elif isinstance(target, Built) and target.name == 'numpy.ndarray':
        _require(type(state) is tuple and len(state) == 5, 'an array in an unknown form')
        version, shape, dtype, is_fortran, data = state
        is_plain = version == 1 and _is_size(shape) and _is_dtype(dtype) and type(is_fortran) in (bool, int)
        _require(is_plain and isinstance(data, bytes), 'an array in an unknown form')
        _require(len(data) == math.prod(shape) * int(dtype.args[0][1:]), 'an array of another length than its shape')
    else:
        raise CheckpointError(f'is damaged: it changes a {type(target).__name__} that torch never changes')
    target.state = state


def _checked_key(key: Any) -> Any:
    """A key of a dict; one that could make dicts slow or hash code of its own is refused."""
    parts = key if type(key) is tuple else (key,)
    plain = all(
        part is None or type(part) in (str, bytes, bool, float) or (type(part) is int and abs(part) < 2**61)
        for part in parts
    )
    _require(plain, f'a dict has a key of kind {type(key).__name__}')
    return key


def _check_depth(content: Any) -> None:
    """Raises CheckpointError when the structure nests deeper than MAX_DEPTH or contains itself."""
    depths: dict[int, int] = {}  # 0 while the children are being looked at
    waiting = [(content, iter(_children(content)))]
    depths[id(content)] = 0
    while waiting:
        value, children = waiting[-1]
        for child in children:
            if not isinstance(child, dict | list | tuple | set | Built):
                continue
            known = depths.get(id(child))
            if known == 0:
                raise CheckpointError('was not read: it holds a structure that contains itself')
            if known is None:
                depths[id(child)] = 0
                waiting.append((child, iter(_children(child))))
                break
        else:
            waiting.pop()
            depths[id(value)] = 1 + max((depths.get(id(child), 0) for child in _children(value)), default=0)
            if depths[id(value)] > MAX_DEPTH:
                raise CheckpointError(f'was not read: it nests deeper than {MAX_DEPTH} levels')


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
        yield from (key for key in value if type(key) is tuple)
        yield getattr(value, 'state', None)
    elif isinstance(value, Built):
        yield from value.args
        yield value.state
    elif isinstance(value, list | tuple | set):
        yield from value


def _brief(value: Any) -> str:
    """On one line and not long."""
    text = ' '.join(str(value).split())
    return text if len(text) <= 150 else f'{text[:150]} ...'
