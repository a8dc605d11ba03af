"""Ways through a config: every dict in it, the value of a dotted key, the dataset inside its wrappers.

Touch this file for how a config is walked; not for what its settings mean. Guarded by
tests/engine/test_config_nodes.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config


def dicts_in(node: object) -> Iterator[dict]:
    """Every dict at or below a config node."""
    if isinstance(node, Config):
        node = dict(node.items())
    if isinstance(node, dict):
        yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    for child in children:
        yield from dicts_in(child)


def value_at(node: object, key: str) -> Any:
    """The value of a dotted key, None where there is none."""
    for part in key.split('.'):
        if isinstance(node, list | tuple) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict | Config):
            node = node.get(part)
        else:
            return None
    return node


def innermost_dataset(dataset: dict) -> dict:
    """The config of a dataset inside wrappers that hold one, such as RepeatDataset; of several joined ones (`datasets`)
    none is chosen.
    """
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset
