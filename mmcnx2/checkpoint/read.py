"""Checkpoint files, read: weights and plain data from bytes of unknown origin, without executing code.

A file is looked at before anything is built from it: its size, its container (the parts of a zip archive, the header
of a safetensors file), its checksums, and what its pickle asks for (pickle_check.py). Only then torch reads it, with
weights_only=True, or safetensors does. Every way in which a file can be unfit has its own one-line CheckpointError.

Touch this file for file formats, containers and limits; not for what a pickle may hold (pickle_check.py), for names of
layouts (key_rules.py) or for what fits a backbone (load.py). Guarded by tests/checkpoint/test_read.py and
tests/faults/mutated_checkpoints.py.
"""

import io
import json
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mmcnx2.checkpoint.convert import CheckpointError, shown
from mmcnx2.checkpoint.pickle_check import inspect_pickle, plain_data_globals

CONTAINERS = ('state_dict', 'model', 'module')
EMA_CONTAINERS = ('model_ema', 'state_dict_ema', 'ema')
MAX_GIB = 16.0  # the largest model with its optimiser and averaged weights has 11
MAX_GIB_VARIABLE = 'MMCNX2_MAX_CHECKPOINT_GIB'
MAX_CONTENTS_BYTES = 2**30  # the pickle of a torch file, without the tensors
MAX_HEADER_BYTES = 100 * 2**20  # of safetensors, its own limit
MAX_MEMBERS = 1_000_000
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # what torch's first format begins with, as a pickled number
WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WEIGHT_NAMES = re.compile(r'(.*\.)?(weight|bias|gamma|beta|kernel|mask_token)')
OTHER_FORMATS = {
    b'\x89HDF': 'an HDF5 file (Keras?)',
    b'\x1f\x8b': 'compressed with gzip; unpack it first',
    b'GGUF': 'a GGUF file',
    b'\x93NUMPY': 'a NumPy array',
    b'version https://git-lfs': 'a git-lfs pointer, not the weights; fetch them with `git lfs pull`',
}

# ------------------------------------------------------------------------------------------------------------- reading


def read_checkpoint(
    path: str | os.PathLike, use_ema: bool = False, *, max_gib: float | None = None, unsafe_load: bool = False
) -> dict[str, Any]:
    """dict(state_dict={name: tensor}, meta={...}, and whatever else the file holds), on the CPU, without executing
    code.

    Reads torch files (zip and older pickles) and safetensors; the content decides, not the ending. The weights are
    taken from 'state_dict', 'model' or 'module', or from the top level when the file is a bare state dict. With
    `use_ema` they are the averaged ones of 'model_ema', 'state_dict_ema' or 'ema'. (mmengine's EMAHook already saves
    the averaged weights as 'state_dict'.)

    A file larger than `max_gib` (else the environment variable MMCNX2_MAX_CHECKPOINT_GIB, else 16) is not read.
    `unsafe_load` reads a torch file by running whatever its pickle asks for: for files of trusted origin only.

    Raises CheckpointError, in one line, for a path that is no checkpoint, a damaged file, a file that would have to
    execute code or claims more than it has, and weights that are not finite floating-point numbers. What stands beside
    the weights (log histories) may hold NaN.
    """
    path = Path(path).expanduser() if '://' not in str(path) else path
    content = read_file(path, max_gib=max_gib, unsafe_load=unsafe_load)
    checkpoint = _unwrap(content, path, use_ema)
    _check_weights(checkpoint['state_dict'], path)
    return checkpoint


def read_for_run(path: str | os.PathLike, map_location: Any = None, unsafe_load: bool = False) -> Any:
    """What a checkpoint file holds, for mmengine's runner: nothing is renamed, weights that are not finite are
    refused."""
    content = read_file(path, map_location=map_location, unsafe_load=unsafe_load)
    parts = [content, *(content.get(key) for key in (*CONTAINERS, 'ema_state_dict'))] if _is_dict(content) else []
    for part in parts:
        if _is_dict(part) and _is_state_dict(part):
            _check_weights(part, path)
    return content


def read_file(
    path: str | os.PathLike, *, map_location: Any = 'cpu', max_gib: float | None = None, unsafe_load: bool = False
) -> Any:
    """What the file holds, as it was saved; of a safetensors file dict(state_dict=..., meta=...).

    Arguments and errors as for `read_checkpoint`; the weights are not looked at.
    """
    path = _existing_file(path, max_gib)
    if _is_safetensors(path):
        return _read_safetensors(path)
    _check_torch_file(path, unsafe_load)
    try:
        if unsafe_load:
            return torch.load(path, map_location=map_location, weights_only=False)
        with torch.serialization.safe_globals(plain_data_globals()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # bytes of unknown origin: any error of the parsers means an unreadable file
        raise CheckpointError(
            f'{path} is damaged or no checkpoint: {type(error).__name__}: {_first_line(error)}'
        ) from error


def _existing_file(path: str | os.PathLike, max_gib: float | None) -> Path:
    if '://' in str(path):
        raise CheckpointError(f'{path} is an address; download the file and give its path')
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f'{path} is a folder; give a checkpoint file in it')
    if not path.exists():
        raise CheckpointError(f'checkpoint {path} does not exist')
    if not path.is_file():
        raise CheckpointError(f'{path} is no ordinary file')
    try:
        with open(path, 'rb') as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f'cannot read checkpoint {path}: {error.strerror}') from error
    if not start:
        raise CheckpointError(f'checkpoint {path} is an empty file')
    if start.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
        raise CheckpointError(f'{path} is a web page, not weights; the download got an error or a log-in page')
    for beginning, what in OTHER_FORMATS.items():
        if start.startswith(beginning):
            raise CheckpointError(f'{path} is {what}')
    if start[257:262] == b'ustar':
        raise CheckpointError(
            f'{path} is a tar archive: unpack it; where torch before 0.1.10 wrote it, load it there '
            'and save its state dict again'
        )
    if not start.strip(b'\0'):
        raise CheckpointError(f'{path} begins with zeros: its bytes were never written (a full or failing disk?)')
    limit = _limit_gib(max_gib)
    size_gib = path.stat().st_size / 2**30
    if size_gib > limit:
        raise CheckpointError(
            f'{path} has {size_gib:.3g} GiB, more than the limit of {limit:g}; where that is right, '
            f'set {MAX_GIB_VARIABLE} (or max_gib=) higher'
        )
    return path


def _limit_gib(max_gib: float | None) -> float:
    given = os.environ.get(MAX_GIB_VARIABLE) if max_gib is None else max_gib
    try:
        limit = MAX_GIB if given in (None, '') else float(given)
    except (TypeError, ValueError):
        limit = 0.0
    if not limit > 0:
        raise CheckpointError(f'{MAX_GIB_VARIABLE} (or max_gib) is {given!r}; it must be a number of GiB above 0')
    return limit


# --------------------------------------------------------------------------------------------------------- safetensors


def _is_safetensors(path: Path) -> bool:
    with open(path, 'rb') as file:
        start = file.read(9)
    if start[:4] == b'PK\x03\x04':
        return False
    # Eight bytes of header length, then JSON. A pickle begins with 0x80.
    return start[8:9] == b'{' or (path.suffix == '.safetensors' and start[:2] != b'\x80\x02')


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    _check_safetensors_header(path)
    try:
        with safe_open(path, framework='pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {'state_dict': tensors, 'meta': dict(file.metadata() or {})}
    except Exception as error:  # its own kind for most damages, others for kinds of numbers that torch lacks
        raise CheckpointError(
            f'{path} is no complete safetensors file (truncated or damaged): {_first_line(error)}'
        ) from error


def _check_safetensors_header(path: Path) -> None:
    """What the library does not tell clearly: lengths beyond the file, names given twice."""
    size = path.stat().st_size
    with open(path, 'rb') as file:
        length = struct.unpack('<Q', file.read(8).ljust(8, b'\0'))[0]
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f'{path} is no complete safetensors file (truncated or damaged): it claims a header '
                f'of {length} bytes, the file has {size}'
            )
        text = file.read(length)
    twice: list[str] = []

    def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(_doubles([name for name, _ in pairs]))
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=without_doubles)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f'{path} is no complete safetensors file (truncated or damaged): its header cannot be '
            f'read: {_first_line(error)}'
        ) from error
    if twice or not isinstance(header, dict):
        raise CheckpointError(
            f'{path} is damaged: its header names {shown(twice, 3) or "no tensors"}{" twice" if twice else ""}'
        )


# --------------------------------------------------------------------------------------------------------- torch files


def _check_torch_file(path: Path, unsafe_load: bool) -> None:
    """Raise CheckpointError unless the container is whole and the pickle in it holds tensors and plain data only."""
    size = path.stat().st_size
    with open(path, 'rb') as file:
        start = file.read(4)
        if start != b'PK\x03\x04' and start[:1] != b'\x80':
            raise CheckpointError(f'{path} is neither a torch file nor safetensors (it begins with {start!r})')
        try:
            if start[:1] == b'\x80':
                if not unsafe_load:
                    _check_legacy(file, size)
                return
            members = _zip_members(file, size)
            contents, claimed = _contents_of_zip(file, members)
            _check_checksums(file, members)
            if not unsafe_load:
                claims = inspect_pickle(io.BytesIO(contents)).storages
                for key, num_bytes in claims.items():
                    if claimed.get(key) != num_bytes:
                        there = f'{claimed[key]} are there' if key in claimed else 'they are not in the file'
                        raise CheckpointError(f'is damaged: it claims {num_bytes} bytes of values {key!r}, {there}')
        except CheckpointError as error:
            raise CheckpointError(f'{path} {error}') from error
        except (OSError, ValueError, struct.error, zipfile.BadZipFile, LookupError, NotImplementedError) as error:
            raise CheckpointError(f'{path} is damaged: {_first_line(error)}') from error


def _check_legacy(file: BinaryIO, size: int) -> None:
    """torch's first format: five pickles (a number, a version, the machine, the content, the storages' names), then
    the values of each storage behind their count."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        magic = inspect_pickle(stream)
        if magic.content != LEGACY_MAGIC:
            raise CheckpointError(
                'is a pickle that torch.save did not write; load it where it comes from and save its '
                'weights with torch.save'
            )
        for _ in ('version', 'machine'):
            inspect_pickle(stream)
        found, keys = inspect_pickle(stream), inspect_pickle(stream).content
        values_begin = stream.tell()
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(found.storages):
            raise CheckpointError('is damaged: its list of storages is not that of its tensors')
        needed = sum(found.storages.values()) + 8 * len(keys)
        if needed != size - values_begin:
            what = 'truncated' if needed > size - values_begin else 'damaged'
            raise CheckpointError(f'is {what}: its tensors claim {needed} bytes, {size - values_begin} are there')


def _zip_members(file: BinaryIO, size: int) -> dict[str, tuple[int, int, int]]:
    """{name: (where its bytes begin, their number, checksum)} of an archive as torch writes them: nothing compressed,
    nothing twice, nothing before, between or behind that two readers could understand differently."""
    file.seek(max(size - 98, 0))
    end = file.read()
    if not zipfile.is_zipfile(file):
        raise CheckpointError(f'is truncated: it begins as a torch file but its end is missing ({size} bytes)')
    if end[-22:-18] != b'PK\x05\x06' or end[-2:] != b'\0\0':
        raise CheckpointError('is damaged: bytes follow its end')
    if end[-42:-38] == b'PK\x06\x07' and struct.unpack('<Q', end[-34:-26])[0] != size - 98:
        raise CheckpointError('is damaged: it has two ends')
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    names = [info.filename for info in infos]
    if any(re.fullmatch('[^/]*/constants.pkl', name) for name in names):
        raise CheckpointError(
            'is a TorchScript program, not weights; load it with torch.jit.load and save its state dict'
        )
    if not any(re.fullmatch('[^/]*/data.pkl', name) for name in names):
        raise CheckpointError(f'is a zip archive without weights ({shown(names, 3)})')
    if len(infos) > MAX_MEMBERS:
        raise CheckpointError(f'was not read: it has {len(infos)} members, more than {MAX_MEMBERS}')
    doubles = _doubles(names)
    if doubles or len({name.lower() for name in names}) < len(names):
        raise CheckpointError(f'is damaged: it has members twice ({shown(doubles, 3) or "but for capital letters"})')
    total = sum(info.file_size for info in infos)
    if total > size:
        raise CheckpointError(f'was not read: its members claim {total} bytes, the file has {size} (a zip bomb?)')
    odd = [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1]
    if odd:
        raise CheckpointError(
            f'was not read: {shown(odd, 3)} are compressed or encrypted, which torch never does; '
            'unpack the archive and pack it with `zip -0 -r`'
        )
    members, previous_end = {}, 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b'PK\x03\x04' or info.header_offset < previous_end:
            raise CheckpointError(f'is damaged: member {info.filename} does not begin where the directory says')
        name_length, extra_length = struct.unpack('<2H', header[26:30])
        if file.read(name_length) != info.orig_filename.encode('utf-8' if info.flag_bits & 0x800 else 'cp437'):
            raise CheckpointError(f'is damaged: member {info.filename} has another name in the directory')
        begin = info.header_offset + 30 + name_length + extra_length
        previous_end = begin + info.file_size
        if info.compress_size != info.file_size or previous_end > size:
            raise CheckpointError(f'is damaged: member {info.filename} has not the length that it claims')
        members[info.filename] = begin, info.file_size, info.CRC
    return members


def _contents_of_zip(file: BinaryIO, members: dict[str, tuple[int, int, int]]) -> tuple[bytes, dict[str, int]]:
    """(the pickle, {storage's key: its bytes}) of a torch file."""
    folders = {name.split('/')[0] for name in members}
    if len(folders) > 1:
        raise CheckpointError(f'is damaged: it has members of several folders ({shown(sorted(folders), 3)})')
    folder = folders.pop()
    begin, length, _ = members[f'{folder}/data.pkl']
    if length > MAX_CONTENTS_BYTES:
        raise CheckpointError(f'was not read: its table of contents has {length} bytes, more than {MAX_CONTENTS_BYTES}')
    file.seek(begin)
    data = f'{folder}/data/'
    return file.read(length), {
        name.removeprefix(data): length for name, (_, length, _) in members.items() if name.startswith(data)
    }


def _check_checksums(file: BinaryIO, members: dict[str, tuple[int, int, int]]) -> None:
    """torch writes checksums and does not compare them itself."""
    if not any(checksum for _, _, checksum in members.values()):
        return  # torch.serialization.set_crc32_options(False)
    for name, (begin, length, checksum) in members.items():
        file.seek(begin)
        found, left = 0, length
        while left:
            piece = file.read(min(left, 2**22))
            if not piece:
                break
            found, left = zlib.crc32(piece, found), left - len(piece)
        if found != checksum:
            raise CheckpointError(f'is damaged: the checksum of {name} is not that of its {length} bytes')


# -------------------------------------------------------------------------------------------------------- what it holds


def _unwrap(content: Any, path: Path, use_ema: bool) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, not a dict of weights')
    if not use_ema and _is_state_dict(content):
        return {'state_dict': dict(content), 'meta': {}}
    names = EMA_CONTAINERS if use_ema else CONTAINERS
    found = [name for name in names if isinstance(content.get(name), Mapping) and _is_state_dict(content[name])]
    if not found:
        what = f'no averaged weights ({", ".join(EMA_CONTAINERS)})' if use_ema else 'no tensors'
        raise CheckpointError(f'{path} holds {what}; its entries: {shown(content, 5)}')
    if len(found) > 1:
        raise CheckpointError(f'{path} holds weights under {" and ".join(found)}; save the wanted ones alone')
    checkpoint = {key: value for key, value in content.items() if key not in (*CONTAINERS, *EMA_CONTAINERS)}
    meta = checkpoint.get('meta')
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    return {**checkpoint, 'state_dict': dict(content[found[0]]), 'meta': meta}


def _is_dict(content: Any) -> bool:
    return isinstance(content, Mapping)


def _is_state_dict(content: Mapping) -> bool:
    return bool(content) and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def _check_weights(state_dict: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Raise CheckpointError unless the weights are finite floating-point numbers; counters and indices may be
    integers."""
    odd = {name: what for name, tensor in state_dict.items() if (what := _odd_kind(name, tensor))}
    if odd:
        kinds = ', '.join(f'{name} ({what})' for name, what in list(odd.items())[:5])
        rest = f' and {len(odd) - 5} more' if len(odd) > 5 else ''
        raise CheckpointError(
            f'{path} has {len(odd)} of {len(state_dict)} tensors that are not floating-point weights: {kinds}{rest}'
        )
    if not any(tensor.is_floating_point() for tensor in state_dict.values()):
        raise CheckpointError(f'{path} has no floating-point tensors: {shown(state_dict, 5)}')
    bad = {
        name: int((~torch.isfinite(tensor)).sum())
        for name, tensor in state_dict.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    }
    if bad:
        listed = [f'{name} ({count} of {state_dict[name].numel()} values)' for name, count in bad.items()]
        raise CheckpointError(f'{path} has NaN or Inf in {len(bad)} of {len(state_dict)} tensors: {shown(listed, 5)}')


def _odd_kind(name: str, tensor: Tensor) -> str | None:
    """Why a tensor cannot be what its name says; None when it can."""
    if tensor.layout != torch.strided:
        return 'sparse'
    if tensor.is_quantized:
        return 'quantised'
    if tensor.is_meta:
        return 'without values, on the meta device'
    if tensor.dtype in WEIGHT_DTYPES:
        return None
    is_counter = not (tensor.is_floating_point() or tensor.is_complex() or WEIGHT_NAMES.fullmatch(name))
    return None if is_counter else str(tensor.dtype).removeprefix('torch.')


def _doubles(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
