"""The door of the package: its version, a look at the installed OpenMMLab packages, where configs and tools lie.

Importing it registers the registries (so that 'mmcnx2.X' means something in a config) and sets `$MMCNX2_CONFIGS`, with
which a config inherits one of ours from anywhere: `_base_ = '{{$MMCNX2_CONFIGS:}}/coco/....py'`. It enters the package
into mmengine's list, so that `mmengine.hub.get_config('mmcnx2::coco/....py')` finds the configs of an installed copy.
It imports no model.
Touch it for what must hold before anything else happens; not for code that computes. Guarded by
tests/test_packaging.py.
"""

import os
import warnings
from importlib import metadata
from pathlib import Path

from mmcnx2.version import __version__

# Distribution of the maintained fork, its versions [from, below), and the original distributions with the same import
# name. The ranges equal `install_requires` in setup.cfg (a test compares them); the reasons stand there.
OPENMMLAB = {
    'mmengine': ('onedl-mmengine', '0.10.12', '0.11', ('mmengine', 'mmengine-lite')),
    'mmcv': ('onedl-mmcv', '2.3.6', '2.4', ('mmcv', 'mmcv-full', 'mmcv-lite')),
    'mmdet': ('onedl-mmdetection', '3.5.1', '3.6', ('mmdet',)),
    'mmseg': ('onedl-mmsegmentation', '1.4.2', '1.5', ('mmsegmentation',)),
    'mmpretrain': ('onedl-mmpretrain', '1.3.6', '1.4', ('mmpretrain', 'mmcls')),
}


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, None when it is not installed; reads metadata only, imports nothing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def openmmlab_problems(find=installed_version) -> list[tuple[str, str, bool]]:
    """What is wrong with the installed OpenMMLab packages: (import name, sentence with the remedy, whether the package
    is unusable).

    A missing package is unusable; one outside the tried versions, or installed beside the original of the same import
    name, may work and is not. `find` answers a distribution's version or None.
    """
    problems = []
    for name, (fork, lowest, below, originals) in OPENMMLAB.items():
        version = find(fork)
        present = [f'{original} {find(original)}' for original in originals if find(original)]
        names = ' '.join(text.split()[0] for text in present)
        if version is None and present:
            problems.append(
                (
                    name,
                    f'{name} comes from {", ".join(present)}, which stopped in early 2024; mmcnx2 needs the '
                    f'maintained fork: pip uninstall {names}, then pip install "{fork}>={lowest},<{below}"',
                    True,
                )
            )
        elif version is None:
            problems.append(
                (
                    name,
                    f'{fork} is not installed: pip install "{fork}>={lowest},<{below}", or `make env` in a checkout',
                    True,
                )
            )
        else:
            if not _numbers(lowest) <= _numbers(version) < _numbers(below):
                problems.append(
                    (
                        name,
                        f'{fork} {version} is outside the versions that mmcnx2 is tested with, >={lowest},<{below}: '
                        f'pip install "{fork}>={lowest},<{below}"',
                        False,
                    )
                )
            if present:
                problems.append(
                    (
                        name,
                        f'{fork} {version} and {", ".join(present)} are both installed and overwrite each '
                        f"other's files: pip uninstall {names} {fork}, then pip install {fork}=={version}",
                        False,
                    )
                )
    return problems


def configs_dir() -> Path:
    """Folder of the configs: inside the installed package (`.mim/configs`), else the checkout's `configs/`."""
    return _carried('configs')


def tools_dir() -> Path:
    """Folder of the command line tools: inside the installed package (`.mim/tools`), else the checkout's `tools/`."""
    return _carried('tools')


def _carried(name: str) -> Path:
    package = Path(__file__).resolve().parent
    installed = package / '.mim' / name
    return installed if installed.is_dir() else package.parent / name


def _numbers(version: str) -> tuple[int, ...]:
    """'0.10.12.post1' -> (0, 10, 12): the leading numbers, enough to compare with a range."""
    numbers = []
    for part in version.split('+')[0].split('.'):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _check_openmmlab() -> None:
    for name, sentence, unusable in openmmlab_problems():
        if unusable and name == 'mmengine':  # nothing works without it; the others are asked for by their own tasks
            raise ImportError(sentence)
        warnings.warn(sentence, ImportWarning if unusable else UserWarning, stacklevel=3)


_check_openmmlab()
# always those of this copy: a value inherited from another checkout would lie
os.environ['MMCNX2_CONFIGS'] = str(configs_dir())

# after the check: a missing package should be named by the sentence above
from mmengine.config.utils import MODULE2PACKAGE  # noqa: E402

from mmcnx2 import registry  # noqa: E402

MODULE2PACKAGE['mmcnx2'] = 'mmcnx2'  # import name -> distribution

__all__ = [
    'OPENMMLAB',
    '__version__',
    'configs_dir',
    'installed_version',
    'openmmlab_problems',
    'registry',
    'tools_dir',
]
