"""Checkpoint step 3 of 3: files. Read any checkpoint without executing code, load it into a backbone, write it
atomically.

A file is only ever read as tensors and plain data (weights_only, safetensors). Every way in which a file can be unfit
has its own one-line CheckpointError, and a backbone is either loaded completely or left untouched.

Touch this file for file formats, containers and what is accepted into a backbone; not for names of layouts
(key_rules.py). Guarded by tests/checkpoint/test_load.py.
"""
from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmcnx2.checkpoint.convert import (
    CheckpointError,
    Structure,
    backbone_prefixes,
    check_complete,
    detect_layout,
    measure_structure,
    shown,
    to_canonical,
    without_wrapper,
)
from mmcnx2.checkpoint.key_rules import LAYOUTS, SHARED_NORM

CONTAINERS = ('state_dict', 'model', 'module')
EMA_CONTAINERS = ('model_ema', 'state_dict_ema', 'ema')
INFLATIONS = ('mean', 'copy', 'zero')

# ------------------------------------------------------------------------------------------------------------- reading


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
        raise CheckpointError(f'{path} is no complete safetensors file (truncated or damaged): '
                              f'{_first_line(error)}') from error


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
                'and plain data; where you trust it, save its state dict alone') from error
        raise CheckpointError(f'{path} is damaged or more than plain data: {_first_line(error)}') from error
    except Exception as error:  # bytes of unknown origin: any error of the parsers means an unreadable file
        raise CheckpointError(f'{path} is damaged or no checkpoint: {type(error).__name__}: '
                              f'{_first_line(error)}') from error


def _require_weights_inside(path: Path) -> None:
    """Raise CheckpointError for a zip archive that has no end, or that torch did not write."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f'{path} is truncated: it begins as a torch file but its end is missing '
                              f'({path.stat().st_size} bytes)')
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
        np.ndarray, np.dtype, *dtypes,
        multiarray._reconstruct, multiarray.scalar,
        (multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),  # as NumPy 1 named them
        (multiarray.scalar, 'numpy.core.multiarray.scalar'),
    ]


def _refused_global(message: str) -> str | None:
    """The name in torch's long message about a pickle that asks for more than plain data; None for other messages."""
    match = re.search(r'GLOBAL (getattr\(.*\)|\w+(?:\.\w+)+)(?: was not an allowed| whose module|$)', message,
                      re.MULTILINE)
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
    bad = [name for name, tensor in state_dict.items()
           if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise CheckpointError(f'{path} has NaN or Inf in {len(bad)} of {len(state_dict)} tensors: {shown(bad, 5)}')


# ------------------------------------------------------------------------------------------------------------- loading


def load_pretrained_backbone(backbone: nn.Module, path: str | os.PathLike, *, source: str = 'auto',
                             prefix: str | None = None, keep_final_norm: bool = False, use_ema: bool = False,
                             inflate: str | None = None) -> dict[str, Any]:
    """Load a checkpoint of any layout into an mmcnx2.ConvNeXtV2, all of it or nothing; returns what was done and logs
    one line.

    Takes the backbone out of whatever it stands in: our pretraining run, a detector, a classifier, an official file.
    The result is dict(layout, num_tensors, fresh, left_out): `fresh` are the backbone's tensors that keep their
    initial values.

    Only output norms may be missing (a pretraining run has none). Output norms that the backbone does not have are
    left out. The norm of a *classifier* was trained on pooled features: it goes into a backbone that pools
    (gap_before_final_norm), into a dense backbone's norm3 only with `keep_final_norm`.

    Args:
        backbone: its state dict has mmcnx2's names, without prefix. path: see `read_checkpoint`. source: a layout's
        name instead of detecting it. prefix: where the backbone stands in the file, when the file holds several or an
        unknown name ('student.backbone.'). use_ema: take the averaged weights. inflate: when the file's stem has
        another number of input channels than the backbone: 'mean' gives every channel the
            mean filter, 'copy' repeats the filters in order (both times old / new channels), 'zero' adds filters of
            zeros; only 'mean' can make fewer channels. Without it other channels are an error.

    Raises CheckpointError; the backbone is then unchanged.
    """
    if inflate is not None and inflate not in INFLATIONS:
        raise CheckpointError(f'inflate={inflate!r} is not known; choose one of {", ".join(INFLATIONS)}')
    state_dict = read_checkpoint(path, use_ema)['state_dict']
    try:
        layout, state_dict = _backbone_part(state_dict, source, prefix)
        canonical, _ = to_canonical(state_dict, layout)
        structure = measure_structure(canonical)
        check_complete(canonical, structure, lambda name: name, (), f'layout {layout}')
        new, left_out = _fit(canonical, structure, backbone, keep_final_norm, inflate)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error

    own = backbone.state_dict()
    fresh = [name for name in own if name not in new]
    backbone.load_state_dict({**{name: own[name] for name in fresh}, **new})
    notes = [f'{shown(fresh)} start fresh'] if fresh else []
    notes += [f'left out {shown(left_out)}'] if left_out else []
    print_log('; '.join([f'{len(new)} tensors of layout {layout} from {path}', *notes]), logger='current')
    grns = [tensor for name, tensor in new.items() if '.grn.' in name]
    if grns and not any(tensor.any() for tensor in grns):
        print_log(f'every GRN parameter of {path} is 0: GRN does nothing. Did a converter lose them?',
                  logger='current', level=logging.WARNING)
    return {'layout': layout, 'num_tensors': len(new), 'fresh': fresh, 'left_out': left_out}


def _backbone_part(state_dict: dict[str, Tensor], source: str, prefix: str | None) -> tuple[str, dict[str, Tensor]]:
    """(layout, the names that belong to the backbone). Heads, necks and decoders around it are not looked at."""
    state_dict = without_wrapper(state_dict)
    if prefix is not None:
        state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()
                      if name.startswith(prefix)}
        if not state_dict:
            raise CheckpointError(f'no name starts with prefix={prefix!r}')
    if source != 'auto' and source not in LAYOUTS:
        raise CheckpointError(f'unknown source layout {source!r}; allowed: auto, {", ".join(LAYOUTS)}')
    layout = detect_layout(state_dict) if source == 'auto' else source
    stands_under = backbone_prefixes(state_dict, layout)
    if len(stands_under) == 1 and stands_under[0]:
        state_dict = {name: tensor for name, tensor in state_dict.items() if name.startswith(stands_under[0])}
    return layout, state_dict


def _fit(canonical: dict[str, Tensor], structure: Structure, backbone: nn.Module, keep_final_norm: bool,
         inflate: str | None) -> tuple[dict[str, Tensor], list[str]]:
    """(the backbone's tensors by its own names, names left out) once it is certain that they fit."""
    own = backbone.state_dict()
    model = measure_structure(to_canonical(own, 'mmcnx2')[0])
    if (structure.depths, structure.channels) != (model.depths, model.channels):
        raise CheckpointError(f'checkpoint of another architecture: it is {_arch_name(structure)}, the model is '
                              f'{_arch_name(model)}; set arch or the checkpoint accordingly')
    names = {name.removeprefix('backbone.'): tensor for name, tensor in canonical.items()
             if name.startswith('backbone.')}
    final_norm = {name.replace('final_norm', SHARED_NORM): names.pop(name) for name in list(names)
                  if name.startswith('final_norm.')}
    pools = getattr(backbone, 'gap_before_final_norm', False)
    left_out = [name for name in names if re.fullmatch(r'norm[0-3]\.\w+', name) and name not in own]
    if keep_final_norm or pools:
        names.update(final_norm)
    else:
        left_out += [f'the classifier\'s {name}' for name in final_norm]
    if pools and not final_norm:  # a dense task's norm3 was trained on every position, not on pooled features
        left_out += [name for name in names if name.startswith(f'{SHARED_NORM}.') and name not in left_out]
    names = {name: tensor for name, tensor in names.items() if name not in left_out}

    stem = 'downsample_layers.0.0.weight'
    if structure.in_channels != model.in_channels:
        if inflate is None:
            raise CheckpointError(
                f'the checkpoint was trained with {structure.in_channels} input channels, the model has '
                f'in_channels={model.in_channels}; choose inflate={"|".join(INFLATIONS)} or set in_channels')
        names[stem] = inflate_stem(names[stem], model.in_channels, inflate)
    needed = [name for name in own if not re.fullmatch(r'norm[0-3]\.\w+', name)]
    missing = [name for name in needed if name not in names]
    unexpected = [name for name in names if name not in own]
    if missing or unexpected:
        raise CheckpointError(
            'the model and the checkpoint have different parts (V1 has layer scale and no GRN, V2 the reverse); only '
            f'in the model: {shown(missing) or "none"}; only in the checkpoint: {shown(unexpected) or "none"}')
    wrong = [f'{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}' for name, tensor in names.items()
             if tensor.shape != own[name].shape]
    if wrong:
        raise CheckpointError(f'{len(wrong)} tensors have another shape than the model: {shown(wrong)}')
    return names, left_out


def inflate_stem(weight_OIYX: Tensor, in_channels: int, how: str) -> Tensor:
    """The stem's filters for another number of input channels; see `load_pretrained_backbone` for the three ways."""
    old = weight_OIYX.shape[1]
    if in_channels < old and how != 'mean':
        raise CheckpointError(f"inflate={how!r} cannot make {in_channels} input channels of {old}; only 'mean' can")
    if how == 'mean':
        return weight_OIYX.mean(dim=1, keepdim=True).repeat(1, in_channels, 1, 1) * (old / in_channels)
    if how == 'copy':
        return weight_OIYX[:, torch.arange(in_channels) % old] * (old / in_channels)
    inflated = weight_OIYX.new_zeros(weight_OIYX.shape[0], in_channels, *weight_OIYX.shape[2:])
    inflated[:, :old] = weight_OIYX
    return inflated


def _arch_name(structure: Structure) -> str:
    """'atto' (depths, channels), the sizes being those of the backbone."""
    from mmcnx2.models.backbones.convnext_v2 import ARCHS  # the backbone imports this package
    same = [name for name, arch in ARCHS.items()
            if (tuple(arch['depths']), tuple(arch['channels'])) == (structure.depths, structure.channels)]
    shape = f'depths={list(structure.depths)}, channels={list(structure.channels)}'
    return f"'{same[0]}' ({shape})" if same else shape


# ------------------------------------------------------------------------------------------------------------- writing


def save_checkpoint_atomically(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Write a .pth, .pt or .safetensors so that `path` always holds a whole file: the old one, or the new one.

    It is written beside `path`, flushed to the disk and renamed. A .safetensors file takes dict(state_dict=...,
    meta={str: str}) and nothing else; the others take anything that torch saves.
    """
    path = Path(path).expanduser()
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    if path.suffix not in ('.pth', '.pt', '.safetensors'):
        raise CheckpointError(f'cannot save {path.name!r}: the ending says the format; use .pth, .pt or .safetensors')
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import save_file
            unknown = set(checkpoint) - {'state_dict', 'meta'}
            if unknown:
                raise CheckpointError(f'{path.name}: a .safetensors file holds state_dict and meta, not '
                                      f'{", ".join(sorted(unknown))}')
            tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format)
                       for name, tensor in checkpoint['state_dict'].items()}
            meta = {key: str(value) for key, value in checkpoint.get('meta', {}).items()}
            save_file(tensors, temporary, metadata=meta)
            with open(temporary, 'rb+') as file:
                os.fsync(file.fileno())
        else:
            with open(temporary, 'wb') as file:
                torch.save(dict(checkpoint), file)
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f'cannot write {path}: {_first_line(error)}') from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
