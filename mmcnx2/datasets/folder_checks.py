"""Is a published data set complete? What the checks of single data sets share: counting, naming, looking into pictures.

Touch this file for how something missing is said; not for what belongs to a data set (coco_files.py, ade20k_files.py,
imagenet_files.py) or what is wrong inside annotations (annotation_checks.py). Guarded by
tests/datasets/test_folder_checks.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .annotation_checks import evenly_spread, image_size

NUM_NAMED = 3


@dataclass
class Findings:
    """What a check found: one sentence per problem, what is there in a line, and which archives would help."""

    problems: list[str] = field(default_factory=list)
    summary: str = ''
    archives: set[str] = field(default_factory=set)  # names

    def add(self, problem: str, archive: str | None = None) -> None:
        """A problem, and the archive that mends it."""
        self.problems.append(problem)
        if archive is not None:
            self.archives.add(archive)

    @property
    def complete(self) -> bool:
        return not self.problems


def files_in(folder: str | Path, suffixes: tuple[str, ...]) -> list[str]:
    """Sorted names of the files right in a folder that end so, in any case of letters; hidden ones are passed over."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != '.' and entry.name.lower().endswith(suffixes))


def folders_in(folder: str | Path) -> list[str]:
    """Sorted names of the folders right in a folder; hidden ones are passed over."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != '.' and entry.is_dir())


def missing_sentence(folder: str | Path, expected: Iterable[str], present: Iterable[str], remedy: str) -> str | None:
    """How many of the expected files are missing from a folder, and the first names; None when they are all there."""
    expected, present = list(expected), set(present)
    missing = [name for name in expected if name not in present]
    if not missing:
        return None
    return f"'{folder}': {len(missing):,} of {len(expected):,} files are missing ({named(missing)}): {remedy}"


def named(names: Sequence[str]) -> str:
    """The first names of a list."""
    return ', '.join(names[:NUM_NAMED]) + (' ...' if len(names) > NUM_NAMED else '')


def unreadable_sentence(paths: Sequence[Path], num_spot_checks: int | None, remedy: str) -> list[str]:
    """[] or one sentence: which of the pictures looked at, spread evenly, have no header that can be read."""
    looked_at = evenly_spread(paths, num_spot_checks)
    broken = [str(path) for path in looked_at if not _is_readable(path)]
    if not broken:
        return []
    return [f'{len(broken)} of {len(looked_at)} pictures looked at cannot be read ({named(broken)}): {remedy}']


def _is_readable(path: Path) -> bool:
    try:
        return min(image_size(path)) > 0
    except OSError:
        return False
