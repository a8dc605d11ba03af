"""Guards mmcnx2/datasets/atomic_write.py: a failed write leaves the old file, and nothing beside it."""

import os

import pytest

from mmcnx2.datasets.atomic_write import open_atomically, write_atomically


def test_folders_are_made_and_others_may_read(tmp_path):
    path = tmp_path / 'a' / 'b.txt'
    write_atomically(path, b'one')
    write_atomically(path, b'two')
    assert path.read_bytes() == b'two' and path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ['b.txt']


def test_a_failed_write_changes_nothing(tmp_path):
    path = tmp_path / 'b.txt'
    path.write_bytes(b'old')
    with pytest.raises(KeyboardInterrupt), open_atomically(path) as file:
        file.write(b'ne')
        assert path.read_bytes() == b'old'
        raise KeyboardInterrupt
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['b.txt']
