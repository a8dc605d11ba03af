"""Guards mmcnx2.atomic_write.py: a failed write leaves the old file, and nothing beside it."""

import os

import pytest

from mmcnx2 import atomic_write
from mmcnx2.atomic_write import open_atomically, write_atomically


def test_folders_are_made_and_others_may_read(tmp_path):
    path = tmp_path / 'a' / 'b.txt'
    write_atomically(path, b'one')
    write_atomically(path, b'two')
    assert path.read_bytes() == b'two' and path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ['b.txt']


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path):
    path = tmp_path / 'list.txt'
    write_atomically(path, 'é ' + os.fsdecode(b'caf\xe9.jpg'))
    assert path.read_bytes() == 'é '.encode() + b'caf\xe9.jpg'


def test_a_failed_write_changes_nothing(tmp_path):
    path = tmp_path / 'b.txt'
    path.write_bytes(b'old')
    with pytest.raises(KeyboardInterrupt), open_atomically(path) as file:
        file.write(b'ne')
        assert path.read_bytes() == b'old'
        raise KeyboardInterrupt
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['b.txt']


def test_a_durable_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ('fsync', 'replace'):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args)))
    write_atomically(tmp_path / 'a', 'text', durable=True)
    assert calls == ['fsync', 'replace', 'fsync'] and (tmp_path / 'a').read_text() == 'text'
    calls.clear()
    write_atomically(tmp_path / 'a', 'text')
    assert calls == ['replace']


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    write_atomically(tmp_path / 'a', 'old')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='No space'):
        write_atomically(tmp_path / 'a', 'new')
    assert os.listdir(tmp_path) == ['a'] and (tmp_path / 'a').read_text() == 'old'


def test_what_a_kill_left_is_found(tmp_path):
    write_atomically(tmp_path / 'whole', 'text')
    with open_atomically(tmp_path / 'a.pth'):
        found = atomic_write.left_over(tmp_path)
        assert len(found) == 1 and found[0].name.startswith('.a.pth.')
    assert not atomic_write.left_over(tmp_path)


def test_a_file_of_somebody_else_is_put_in_place(tmp_path):
    (tmp_path / 'a').write_text('old')
    (tmp_path / '.a.partial').write_text('new')
    assert atomic_write.left_over(tmp_path) == [tmp_path / '.a.partial']
    atomic_write.put_in_place(tmp_path / '.a.partial', tmp_path / 'a')
    assert os.listdir(tmp_path) == ['a'] and (tmp_path / 'a').read_text() == 'new'
