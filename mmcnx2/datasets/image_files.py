"""Step 1 of unlabelled data: a folder, a list file or a glob -> paths of picture files, always in the same order.

Touch this file for where paths come from; not for what is in the files (load_image.py). Guarded by
tests/datasets/test_image_files.py.
"""
from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.logging import print_log

EXTENSIONS = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.webp', '.gif', '.tif', '.tiff', '.ppm', '.pgm',
              '.npy')
NUM_LINES_LOOKED_AT, NUM_NAMED = 20, 3


def find_images(source: str | Path, data_root: str | Path = '', extensions: Sequence[str] = EXTENSIONS) -> list[str]:
    """Paths of the picture files that `source` names.

    Args:
        source: a folder (searched at every depth, links to folders followed; what may not be read below it is left
            out with a warning), a glob (`*`, `?`, `[...]`; `**` for any depth) or a text file with one path per line.
            Relative ones start at `data_root`.
        data_root: see source. In a list file relative lines start here too, and at the list file's folder when it is
            not given.
        extensions: of the files that a folder or a glob contributes, in any case of letters; a list is taken as it
            stands.

    Returns:
        Sorted by name, component by component; a list keeps its order. Names that begin with a dot are passed over in
        folders and globs (editors' and file managers' hidden copies); so are empty lines and those that begin with
        '#' in a list.

    Raises:
        FileNotFoundError: no such folder or file, or none of the first listed files exists.
        ValueError: nothing is found in it.
    """
    given = os.path.expanduser(os.fspath(source))
    root = os.path.expanduser(os.fspath(data_root))
    path = os.path.join(root, given)
    if not given:
        raise ValueError("source='' names nothing; give a folder of pictures, a list file or a glob.")
    extensions = _checked_extensions(extensions)
    if os.path.isdir(path):
        found = _in_folder(path, extensions)
        kind = 'the folder'
    elif os.path.isfile(path):
        found = _in_list(path, data_root, extensions)
        kind = 'the list file'
    elif glob.has_magic(given):
        pattern = os.path.join(glob.escape(root), given)  # brackets in data_root are those of its name
        matches = (name for name in glob.iglob(pattern, recursive=True) if name.lower().endswith(extensions))
        found = sorted((name for name in matches if os.path.isfile(name) or _leads_nowhere(name)), key=components)
        kind = 'the glob'
    else:
        raise FileNotFoundError(f"source='{source}': there is no '{path}' (looked from {os.getcwd()}). Give "
                                'an existing folder of pictures, a list file with one path per line, or a glob such as '
                                'photos/**/*.jpg; relative ones start at data_root.')
    if not found:
        raise ValueError(f"{kind} '{path}' holds no picture. It is searched for {' '.join(extensions)}; put pictures "
                         'there, or set `source`, or `extensions` when yours end otherwise.')
    return found


def lines_of_list(path: str | Path) -> list[tuple[int, str]]:
    """(number, text) of the lines of a list file, without blanks around them; empty ones and comments are left out.

    A name that is not UTF-8 may stand there with its own bytes, as lists of a subset have it, when the file exists.

    Raises:
        ValueError: it is not UTF-8 text (a byte order mark may begin it).
    """
    lines = Path(path).read_text(encoding='utf-8-sig', errors='surrogateescape').splitlines()
    numbered = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    found = [(number, line) for number, line in numbered if line and line[0] != '#']
    for number, line in found:
        if line != printable(line) and not os.path.exists(os.path.join(os.path.dirname(path), line)):
            raise ValueError(f"'{path}' is not a list of paths: line {number} is not UTF-8 text. Give a folder, or a "
                             'text file with one path per line, saved as UTF-8.')
    return found


def components(path: str) -> list[str]:
    """What names are sorted by: 'a/b' stands before 'a-2/b', as in a listing of folders."""
    return path.split(os.sep)


def printable(path: str) -> str:
    r"""The path for a log or a terminal, which refuse the bytes of a name that is not UTF-8: they become \udce9."""
    return path.encode(errors='backslashreplace').decode()


def _in_folder(folder: str, extensions: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    closed: list[str] = []
    seen: set[tuple[int, int]] = set()  # each real folder once: links may run in circles

    def search(path: str) -> None:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            entries = sorted((entry for entry in entries if entry.name[0] != '.'), key=lambda entry: entry.name)
        for entry in entries:
            try:
                is_folder = entry.is_dir()
                if is_folder:
                    search(entry.path)
            except PermissionError:  # lost+found at the root of a disk
                closed.append(entry.path)
                continue
            if not is_folder and entry.name.lower().endswith(extensions) and (entry.is_file() or entry.is_symlink()):
                found.append(entry.path)

    search(folder)
    if closed:
        named = ', '.join(f"'{printable(path)}'" for path in closed[:NUM_NAMED]) + (' ...' * (len(closed) > NUM_NAMED))
        print_log(f"{len(closed)} entries of source='{printable(folder)}' may not be read and are left out: {named}. "
                  'Allow it, or give a folder or a list without them.', 'current', logging.WARNING)
    return found


def _in_list(path: str, data_root: str | Path, extensions: tuple[str, ...]) -> list[str]:
    if path.lower().endswith(extensions):
        raise ValueError(f"source='{path}' is one picture; give the folder it lies in, a list file with one path per "
                         'line, or a glob.')
    base = os.path.expanduser(os.fspath(data_root)) if data_root else os.path.dirname(path)
    listed = [os.path.join(base, os.path.expanduser(line)) for _, line in lines_of_list(path)]
    if listed and not any(os.path.exists(name) for name in listed[:NUM_LINES_LOOKED_AT]):
        raise FileNotFoundError(f"none of the first {min(len(listed), NUM_LINES_LOOKED_AT)} files of the list '{path}' "
                                f"exists, for example '{listed[0]}'. Relative lines start at data_root, here '{base}'; "
                                'set it.')
    return listed


def _checked_extensions(extensions: Sequence[str]) -> tuple[str, ...]:
    if isinstance(extensions, str) or not extensions or not all(isinstance(one, str) and one for one in extensions):
        raise ValueError(f"extensions={extensions!r} must be a list of endings such as ('.jpg', '.png').")
    return tuple('.' + one.lower().lstrip('.') for one in extensions)


def _leads_nowhere(path: str) -> bool:
    """A link to nothing: kept, so that it is reported as a bad file."""
    return os.path.islink(path) and not os.path.exists(path)
