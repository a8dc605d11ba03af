"""mmengine's files on a local disk, written so that a path always holds a whole file, also after a kill or a power cut.

A config names it as `backend_args=dict(backend='mmcnx2_atomic')`; mmcnx2.CheckpointHook does so by itself. Touch this
file for how mmengine's writing reaches mmcnx2/atomic_write.py. Guarded by tests/engine/test_checkpoint_hook.py.
"""

from __future__ import annotations

from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from mmcnx2.atomic_write import write_atomically

ATOMIC = 'mmcnx2_atomic'


class AtomicBackend(LocalBackend):
    """LocalBackend whose `put` and `put_text` replace a file in one step, flushed to the disk."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, obj, durable=True)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        write_atomically(filepath, obj.encode(encoding), durable=True)


register_backend(ATOMIC, AtomicBackend, force=True)
