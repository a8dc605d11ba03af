"""Checkpoint: what a module's `init_cfg` asks for, where it is ours to load (load.py) instead of mmengine's.

mmengine's own loading takes what fits and only warns of the rest. Touch this file for which forms of init_cfg are
understood; not for how a file gets into a model (load.py). Guarded by tests/checkpoint/test_init_cfg.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PRETRAINED = 'Pretrained'
# Of mmengine's: weights are read on the CPU and copied to wherever the model is, so it changes nothing.
WITHOUT_EFFECT = ('map_location',)


def pretrained_entry(init_cfg: Mapping | Sequence[Mapping] | None) -> Mapping | None:
    """The dict(type='Pretrained', ...) that init_cfg is, alone or as a list of one; None when it is of another kind.

    Raises:
        ValueError: it stands in a list beside others, which its weights would replace or which would replace them.
    """
    entries = [init_cfg] if isinstance(init_cfg, Mapping) else list(init_cfg or [])
    found = [entry for entry in entries if entry.get('type') == PRETRAINED]
    if found and len(entries) > 1:
        others = [entry.get('type') for entry in entries if entry not in found] or 'another one'
        raise ValueError(f"init_cfg has type='Pretrained' beside {others}; it sets all weights: give it alone")
    return found[0] if found else None


def pretrained_options(init_cfg: Mapping | Sequence[Mapping] | None, load: Callable) -> dict[str, Any] | None:
    """Keyword arguments for `load`, `path` among them (None: random weights are meant); None when init_cfg is not
    'Pretrained'.

    Args:
        init_cfg: as given to a module.
        load: load_pretrained_backbone or load_pretrained_fcmae; its keyword arguments are the keys allowed here.

    Raises:
        TypeError: a key that `load` does not know.
        ValueError: see `pretrained_entry`.
    """
    entry = pretrained_entry(init_cfg)
    if entry is None:
        return None
    options = {key: value for key, value in entry.items() if key not in ('type', *WITHOUT_EFFECT)}
    path = options.pop('checkpoint', None)
    parameters = inspect.signature(load).parameters.values()
    allowed = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    unknown = [key for key in options if key not in allowed]
    if unknown:
        raise TypeError(f"init_cfg has the unknown keys {unknown}; beside 'type' and 'checkpoint' it takes {allowed}")
    return {'path': path, **options}
