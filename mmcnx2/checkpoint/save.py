"""Checkpoint files, written: a path always holds a whole file, the old one or the new one.

Touch this file for how files reach the disk; not for what stands in them (convert.py, tools/convert_checkpoint.py).
Guarded by tests/checkpoint/test_save.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmcnx2.atomic_write import put_in_place
from mmcnx2.checkpoint.convert import CheckpointError


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
                raise CheckpointError(
                    f'{path.name}: a .safetensors file holds state_dict and meta, not {", ".join(sorted(unknown))}'
                )
            tensors = {
                name: tensor.detach().clone(memory_format=torch.contiguous_format)
                for name, tensor in checkpoint['state_dict'].items()
            }
            meta = {key: str(value) for key, value in checkpoint.get('meta', {}).items()}
            save_file(tensors, temporary, metadata=meta)
        else:
            torch.save(dict(checkpoint), temporary)
        put_in_place(temporary, path)
    except (OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f'cannot write {path}: {reason}') from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
