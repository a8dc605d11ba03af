"""Where the configs of several runs differ, and only there: configs in, one entry per differing key out.

Touch it for what counts as a difference. Not for reading files or for how it is shown (run_report.py). Guarded by
tests/analysis/test_config_differences.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_SET = 'not set'
_ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """`key`: dotted path, list places as numbers; `values`: per config its value as Python writes it, or NOT_SET."""

    key: str
    values: tuple[str, ...]


def config_differences(configs: Sequence[Mapping], ignored: Sequence[str] = ('work_dir',)) -> list[Difference]:
    """The keys that not all configs have with the same value, in the order in which they appear.

    A branch that only some configs have is one entry with everything in it. Lists of the same length are compared place
    by place where dicts stand in them; other lists as a whole. Tuples equal lists. `ignored`: top-level keys.
    """
    if len(configs) < 2:
        return []
    return [
        Difference(key, tuple(NOT_SET if value is _ABSENT else repr(value) for value in values))
        for key, values in _differing('', [_plain(config) for config in configs])
        if key not in ignored
    ]


def _differing(key: str, nodes: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    if all(_same(node, nodes[0]) for node in nodes):
        return
    if all(isinstance(node, dict) for node in nodes):
        names = dict.fromkeys(name for node in nodes for name in node)
        children = [(str(name), [node.get(name, _ABSENT) for node in nodes]) for name in names]
    elif all(isinstance(node, list) and len(node) == len(nodes[0]) for node in nodes) and any(
        isinstance(item, dict) for item in nodes[0]
    ):
        children = [(str(place), list(items)) for place, items in enumerate(zip(*nodes, strict=True))]
    else:
        yield key, nodes
        return
    for name, values in children:
        yield from _differing(f'{key}.{name}' if key else name, values)


def _same(a: Any, b: Any) -> bool:
    """Equal, where True is not 1, at any depth."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(value, b[name]) for name, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _plain(node: Any) -> Any:
    """The same with dict and list alone, whatever kinds of them the config has."""
    if isinstance(node, Mapping):
        return {name: _plain(value) for name, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    return node
