"""Files that are either whole or not there: written under a hidden name beside it, then renamed. For every room.

Touch this file for how a file is put in place; not for what is in it. Guarded by tests/test_atomic_write.py.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PARTIAL = '.partial'


def write_atomically(path: str | Path, content: bytes | str, durable: bool = False) -> None:
    """Puts `content` at `path`; what was there before stays until the new file is complete.

    Text becomes UTF-8; of a file name that is none, its own bytes (read them with errors='surrogateescape').
    """
    with open_atomically(path, durable) as file:
        file.write(content.encode(errors='surrogateescape') if isinstance(content, str) else content)


@contextlib.contextmanager
def open_atomically(path: str | Path, durable: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which takes its place at `path` at the end of the block, and vanishes when the block fails.

    Folders are made. Readable for all, as a file that `open` makes usually is. `durable`: it is on the disk, under its
    name, when the block ends, so that a power cut does not leave an empty one; this takes the disk's time.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # hidden: no data format looks at it; with an ending by which left_over finds what a killed process began
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix=PARTIAL)
    try:
        with os.fdopen(handle, 'wb') as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def put_in_place(partial: str | Path, path: str | Path) -> None:
    """Gives a complete file, which somebody else wrote beside it, the name `path`; it is on the disk afterwards."""
    with open(partial, 'rb') as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_folder(Path(path).parent)


def left_over(folder: str | Path) -> list[Path]:
    """Files that a killed process had begun to write in a folder; nobody may be writing there now."""
    return sorted(Path(folder).glob(f'.*{PARTIAL}'))


def _sync_folder(folder: Path) -> None:
    """Puts the names in a folder on the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
