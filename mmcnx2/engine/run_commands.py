"""The commands of an experiment as lists of words: training and testing on one or several GPUs, with options.

They are the project's ordinary commands, so each line that an experiment prints can be typed by hand. Touch this file
when tools/train.py or tools/test.py change their arguments; running them is done in stages.py. Guarded by
tests/test_transfer.py and tests/test_demo.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

import mmcnx2
from mmcnx2.engine.config_options import option_words


def tool(name: str) -> str:
    return str(mmcnx2.tools_dir() / name)


def train_command(
    config: Path, work_dir: Path, options: Mapping[str, object], gpus: int = 1, resumes: bool = False
) -> list[str]:
    """tools/train.py, or tools/dist_train.sh for several GPUs. `resumes`: go on from the newest checkpoint, if any."""
    if gpus > 1:
        start = ['bash', tool('dist_train.sh'), str(config), str(gpus)]
    else:
        start = [sys.executable, tool('train.py'), str(config)]
    words = [*start, '--work-dir', str(work_dir)]
    if resumes:
        words.append('--resume')
    return [*words, '--cfg-options', *option_words(options)] if options else words


def test_command(
    config: Path, checkpoint: Path, work_dir: Path, out: Path, gpus: int = 1, flags: Sequence[str] = ()
) -> list[str]:
    """tools/test.py, or tools/dist_test.sh for several GPUs; the metrics go to the file `out`."""
    if gpus > 1:
        start = ['bash', tool('dist_test.sh'), str(config), str(checkpoint), str(gpus)]
    else:
        start = [sys.executable, tool('test.py'), str(config), str(checkpoint)]
    return [*start, '--work-dir', str(work_dir), '--out', str(out), *flags]


def resolved(config: Path, options: object) -> dict:
    """What the config says, without its comments and layout, and the options on top."""
    return {'config': Config.fromfile(config, import_custom_modules=False).to_dict(), 'options': options}


def moved_data_options(config: Path, old: str, new: str) -> dict[str, str]:
    """Options that point every path of the config that lies at or below the folder `old` to `new` instead."""
    old, new = old.rstrip('/'), new.rstrip('/') or '/'
    options: dict[str, str] = {}
    if old == new:
        return options

    def walk(node: Any, place: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f'{place}.{key}' if place else key)
        elif isinstance(node, (list, tuple)):
            for index, value in enumerate(node):
                walk(value, f'{place}.{index}')
        elif isinstance(node, str) and (node == old or node.startswith(f'{old}/')):
            options[place] = f'{new}{node[len(old) :]}'

    walk(Config.fromfile(config, import_custom_modules=False).to_dict(), '')
    return {key: value for key, value in options.items() if '.' in key}  # plain variables of the file act on nothing
