"""Checkpoint files, read: weights and plain data from bytes of unknown origin, without executing code.

A file is only ever read as tensors and plain data (weights_only, safetensors). Every way in which a file can be unfit
has its own one-line CheckpointError.

Touch this file for file formats, containers and limits; not for names of layouts (key_rules.py) and not for what fits
a backbone (load.py). Guarded by tests/checkpoint/test_read.py.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmcnx2.checkpoint.convert import CheckpointError, shown

CONTAINERS = ('state_dict', 'model', 'module')
EMA_CONTAINERS = ('model_ema', 'state_dict_ema', 'ema')


def read_checkpoint(path: str | os.PathLike, use_ema: bool = False) -> dict[str, Any]:
    """dict(state_dict={name: tensor}, meta={...}, and whatever else the file holds), on the CPU, without executing
    code.

    Reads torch files (zip and older pickles) and safetensors; the content decides, not the ending. The weights are
    taken from 'state_dict', 'model' or 'module', or from the top level when the file is a bare state dict. With
    `use_ema` they are the averaged ones of 'model_ema', 'state_dict_ema' or 'ema'. (mmengine's EMAHook already saves
    the averaged weights as 'state_dict'.)

    Raises CheckpointError, in one line, for a path that is no checkpoint, a damaged file, a file that would have to
    execute code, and weights that are not finite.
    """
    path = _existing_file(path)
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    checkpoint = _unwrap(content, path, use_ema)
    _check_finite(checkpoint['state_dict'], path)
    return checkpoint


def _existing_file(path: str | os.PathLike) -> Path:
    if '://' in str(path):
        raise CheckpointError(f'{path} is an address; download the file and give its path')
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f'{path} is a folder; give a checkpoint file in it')
    if not path.exists():
        raise CheckpointError(f'checkpoint {path} does not exist')
    try:
        with open(path, 'rb') as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f'cannot read checkpoint {path}: {error.strerror}') from error
    if not start:
        raise CheckpointError(f'checkpoint {path} is an empty file')
    if start.startswith(b'version https://git-lfs'):
        raise CheckpointError(f'{path} is a git-lfs pointer, not the weights; fetch them with `git lfs pull`')
    if start.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
        raise CheckpointError(f'{path} is a web page, not weights; the download got an error or a log-in page')
    return path


def _is_safetensors(path: Path) -> bool:
    with open(path, 'rb') as file:
        start = file.read(9)
    # Eight bytes of header length, then JSON. A torch file starts with 'PK' or a pickle's 0x80.
    return start[8:9] == b'{' or (path.suffix == '.safetensors' and start[:2] not in (b'PK', b'\x80\x02'))


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {'state_dict': tensors, 'meta': dict(file.metadata() or {})}
    except SafetensorError as error:
        raise CheckpointError(
            f'{path} is no complete safetensors file (truncated or damaged): {_first_line(error)}'
        ) from error


def _read_torch(path: Path) -> Any:
    with open(path, 'rb') as file:
        start = file.read(4)
    is_zip = start == b'PK\x03\x04'
    if not is_zip and start[:1] != b'\x80':
        raise CheckpointError(f'{path} is neither a torch file nor safetensors (it begins with {start!r})')
    try:
        if is_zip:
            _require_weights_inside(path)
        with torch.serialization.safe_globals(_plain_data_globals()):
            return torch.load(path, map_location='cpu', weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        refused = _refused_global(str(error))
        if refused:
            raise CheckpointError(
                f'{path} was not read: it asks for the Python object {refused}, and a checkpoint may only hold tensors '
                'and plain data; where you trust it, save its state dict alone'
            ) from error
        raise CheckpointError(f'{path} is damaged or more than plain data: {_first_line(error)}') from error
    except Exception as error:  # bytes of unknown origin: any error of the parsers means an unreadable file
        raise CheckpointError(
            f'{path} is damaged or no checkpoint: {type(error).__name__}: {_first_line(error)}'
        ) from error


def _require_weights_inside(path: Path) -> None:
    """Raise CheckpointError for a zip archive that has no end, or that torch did not write."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f'{path} is truncated: it begins as a torch file but its end is missing ({path.stat().st_size} bytes)'
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not any(name.endswith('data.pkl') for name in names):
        raise CheckpointError(f'{path} is a zip archive without weights ({shown(names, 3)})')


def _history_method(owner: type, name: str) -> Any:
    """What getattr may do for a file: name one of the statistics that mmengine pickles along with each log history."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'GLOBAL getattr({owner!r}, {name!r})')
    return getattr(owner, name)


def _plain_data_globals() -> list:
    """The few classes beside tensors that trainers put into checkpoints: plain data, none of them runs code when
    built."""
    import argparse

    import numpy as np
    from mmengine.logging import HistoryBuffer

    multiarray = np._core.multiarray
    kinds = (np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.uint32, bool)
    dtypes = {type(np.dtype(kind)) for kind in kinds}
    return [
        argparse.Namespace,  # the official training script's `args`
        HistoryBuffer,  # mmengine's message hub
        (_history_method, 'builtins.getattr'),
        (_history_method, '__builtin__.getattr'),
        np.ndarray,
        np.dtype,
        *dtypes,
        multiarray._reconstruct,
        multiarray.scalar,
        (multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),  # as NumPy 1 named them
        (multiarray.scalar, 'numpy.core.multiarray.scalar'),
    ]


def _refused_global(message: str) -> str | None:
    """The name in torch's long message about a pickle that asks for more than plain data; None for other messages."""
    match = re.search(
        r'GLOBAL (getattr\(.*\)|\w+(?:\.\w+)+)(?: was not an allowed| whose module|$)', message, re.MULTILINE
    )
    return match.group(1) if match else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


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


def _is_state_dict(content: Mapping) -> bool:
    return bool(content) and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def _check_finite(state_dict: Mapping[str, Tensor], path: Path) -> None:
    bad = [
        name for name, tensor in state_dict.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if bad:
        raise CheckpointError(f'{path} has NaN or Inf in {len(bad)} of {len(state_dict)} tensors: {shown(bad, 5)}')
