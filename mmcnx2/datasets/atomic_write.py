"""Files that are either whole or not there: written under a hidden name beside it, then renamed.

Touch this file for how a file is put in place; not for what is in it. Guarded by tests/datasets/test_atomic_write.py.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | Path, content: bytes) -> None:
    """Puts `content` at `path`; what was there before stays until the new file is complete."""
    with open_atomically(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its place at `path` at the end of the block, and vanishes when the block fails.

    Folders are made. Readable for all, as a file that `open` makes usually is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix='.')  # hidden: no data format looks at it
    try:
        with os.fdopen(handle, 'wb') as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
