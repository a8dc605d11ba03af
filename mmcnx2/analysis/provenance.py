"""On what machine and with which versions a result was made: no number is written down without them.

Touch it for what is recorded. Guarded by tests/test_demo.py.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mmcnx2

DISTRIBUTIONS = (
    'torch',
    'torchvision',
    'onedl-mmengine',
    'onedl-mmcv',
    'onedl-mmdetection',
    'onedl-mmsegmentation',
    'onedl-mmpretrain',
    'numpy',
)


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, accelerator, operating system."""
    import torch

    try:
        models = re.findall(r'^model name\s*: (.*)$', Path('/proc/cpuinfo').read_text(encoding='utf-8'), re.MULTILINE)
    except OSError:
        models = []
    return {
        'processor': models[0] if models else platform.processor() or platform.machine(),
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'accelerator': torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'no GPU',
        'platform': platform.platform(),
    }


def versions(*others: str) -> dict[str, str]:
    """Version of mmcnx2, Python and the packages that take part in training, and of `others` (distributions)."""
    found = {'mmcnx2': mmcnx2.__version__, 'python': platform.python_version()}
    for name in (*DISTRIBUTIONS, *others):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = 'not installed'
    return found


def provenance_now() -> str:
    """One line: that a page was made now, here, with these versions; the runs on it may be of other machines."""
    named = ', '.join(f'{name} {version}' for name, version in versions().items())
    return f'Page made on {time.strftime("%Y-%m-%d %H:%M %z")} with {named}.'


def provenance(results: Mapping) -> str:
    """One line: machine, versions and date of `results`, which has 'machine', 'versions' and 'finished'."""
    machine, versions = (
        results['machine'],
        ', '.join(f'{name} {version}' for name, version in results['versions'].items()),
    )
    hardware = f'{machine["processor"]}, {machine["cores"]} cores, {machine["accelerator"]}'
    return f'{hardware}; {versions}; {results["finished"]}.'
