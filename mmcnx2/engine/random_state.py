"""The states of all random generators of a process, as data that a checkpoint can hold, and back.

Python's, NumPy's and torch's global generators on the CPU, and torch's on the CUDA device in use. Touch this file when
training draws from another generator; not for when states are saved (checkpoint_hook.py). Guarded by
tests/engine/test_random_state.py.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def get_random_state() -> dict[str, Any]:
    """Tensors, numbers and tuples of them only, so that torch reads them with weights_only=True."""
    kind, keys, *position = np.random.get_state()
    state = dict(
        python=random.getstate(),
        numpy=(kind, torch.from_numpy(keys.astype(np.int64)), *position),
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Back to what `get_random_state` gave, wherever its tensors are now. Without a CUDA device that part is left."""
    random.setstate(state['python'])
    kind, keys, *position = state['numpy']
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *position))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
