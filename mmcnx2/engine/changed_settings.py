"""What a resumed run is told when its config no longer says what its checkpoint goes on with.

config in the checkpoint, config now --> settings that differ, and which of the two acts --> one warning

A checkpoint brings the learning rates, the other numbers of the optimiser and the whole schedule with it, and mmengine
puts them over those of the config without a word. Touch this file for which settings are looked at and what is said of
them; not for what a checkpoint holds (checkpoint_hook.py). Guarded by tests/engine/test_changed_settings.py.
"""

from __future__ import annotations

import ast
from typing import Any

from mmengine.config import Config, ConfigDict

from .config_nodes import value_at

# Nodes of a config that stand in the checkpoint as states, which are put over what the config says
RESTORED = ('optim_wrapper.optimizer', 'optim_wrapper.paramwise_cfg', 'param_scheduler')
LENGTHS = ('train_cfg.max_epochs', 'train_cfg.max_iters')
BATCH_SIZE = 'train_dataloader.batch_size'
ABSENT = 'not set'
ENDINGS = {
    'kept': 'the value of the checkpoint goes on to act',
    'misfit': 'the states of the checkpoint are put into parts of another kind or number, and what follows is neither',
    'longer': 'training goes on for longer, but the schedule ends where it does in the checkpoint, and after that the '
    'learning rate stays as it is',
    'shorter': 'training ends earlier, but the schedule ends where it does in the checkpoint, so that the learning '
    'rate does not come down to its end',
    'batch': 'batches have the new size, but the learning rate and the schedule stay as they were made for the old one',
}


def explain_changes(stored: str, cfg: Config, checkpoint: str) -> str:
    """The warning about all settings that differ between the text of the config in a checkpoint and the config now; ''
    when none does.

    Only settings that the checkpoint overrules are looked at, and those on which a schedule depends. Others (clipping,
    accumulated gradients, precision, hooks, data) act as the config says.
    """
    before, now = read_settings(stored), read_settings(cfg.pretty_text)
    lines = [
        f'{name}: {_shown(old)} in the checkpoint, {_shown(new)} now; {ENDINGS[kind]}'
        for name, old, new, kind in _changes(before, now)
    ]
    if not lines:
        return ''
    return '\n  '.join(
        [
            'The config is not the one of the checkpoint that this run goes on from:',
            *lines,
            'To train with what the config says now, start a new run from these weights, without --resume: '
            f'--work-dir OTHER_DIR --cfg-options load_from={checkpoint}',
        ]
    )


def restore_settings(stored: str, cfg: Config) -> None:
    """Writes into the config what a checkpoint overrules anyway, so that later checkpoints name what has acted."""
    before, now = read_settings(stored), read_settings(cfg.pretty_text)
    for name in {name for path, *_, kind in _changes(before, now) for name in RESTORED if path.startswith(name)}:
        *parents, last = name.split('.')
        parent, value = cfg, value_at(before, name)
        for key in parents:
            parent = parent[key]
        if value is not None:
            parent[last] = ConfigDict(value) if isinstance(value, dict) else value


def read_settings(text: str) -> dict[str, Any]:
    """{name: value} of the text of a config, as mmengine writes it into checkpoints; {} for anything else.

    Nothing in it is run, for a checkpoint can come from anywhere: what is no plain value stays text.
    """
    try:
        statements = ast.parse(text).body
        return {
            statement.targets[0].id: _value_of(statement.value)
            for statement in statements
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return {}


def _value_of(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        parts = [_value_of(argument) for argument in node.args]  # {...}, around names that are no identifiers
        parts += [{keyword.arg: _value_of(keyword.value)} for keyword in node.keywords]
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(node, ast.Dict):
        return {_value_of(key): _value_of(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.List | ast.Tuple):
        values = [_value_of(value) for value in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any, str]]:
    """(name, value in the checkpoint, value now, kind of ENDINGS) of every setting that differs."""
    if not before or not now:  # no config in the checkpoint, or one that cannot be read
        return []
    found = []
    for name in RESTORED:
        old, new = _leaves(value_at(before, name), name), _leaves(value_at(now, name), name)
        for path in sorted({*old, *new}):
            if old.get(path, ABSENT) != new.get(path, ABSENT):
                is_kind = path.endswith('.type') or (name == 'param_scheduler' and _is_missing(path, before, now))
                found.append((path, old.get(path, ABSENT), new.get(path, ABSENT), 'misfit' if is_kind else 'kept'))
    for path in (*LENGTHS, BATCH_SIZE):
        old, new = value_at(before, path), value_at(now, path)
        if value_at(now, 'param_scheduler') and old != new and isinstance(old, int) and isinstance(new, int):
            kind = 'batch' if path == BATCH_SIZE else 'longer' if new > old else 'shorter'
            found.append((path, old, new, kind))
    return found


def _is_missing(path: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """True when the schedule that a path lies in is there on one side only."""
    schedule = '.'.join(path.split('.')[:2])
    return (value_at(before, schedule) is None) != (value_at(now, schedule) is None)


def _leaves(node: Any, path: str) -> dict[str, Any]:
    """{path: value} of what is below a node; lists of numbers and the like are values."""
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list | tuple) and any(isinstance(child, dict) for child in node):
        children = enumerate(node)
    else:
        return {} if node is None else {path: list(node) if isinstance(node, tuple) else node}
    return {place: leaf for key, child in children for place, leaf in _leaves(child, f'{path}.{key}').items()}


def _shown(value: Any) -> str:
    return value if value is ABSENT else f'{value!r}'
