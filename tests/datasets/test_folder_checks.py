"""Guards mmcnx2/datasets/folder_checks.py: what is missing is counted and named, and hidden files count for nothing."""

from PIL import Image

from mmcnx2.datasets.folder_checks import (
    Findings,
    files_in,
    folders_in,
    missing_sentence,
    named,
    unreadable_sentence,
)


def test_what_is_in_a_folder(tmp_path):
    for name in ('b.jpg', 'a.JPG', '.c.jpg', 'd.txt'):
        (tmp_path / name).write_bytes(b'')
    for name in ('z', 'y', '.x'):
        (tmp_path / name).mkdir()
    assert files_in(tmp_path, ('.jpg',)) == ['a.JPG', 'b.jpg'] and folders_in(tmp_path) == ['y', 'z']


def test_missing_files():
    assert missing_sentence('f', ['a', 'b'], ['b', 'a', 'c'], 'do x') is None
    assert missing_sentence('f', ['a', 'b'], ['b'], 'do x') == "'f': 1 of 2 files are missing (a): do x"
    assert named(['a', 'b', 'c']) == 'a, b, c' and named(['a', 'b', 'c', 'd']) == 'a, b, c ...'


def test_unreadable_pictures(tmp_path):
    paths = [tmp_path / f'{index}.png' for index in range(5)]
    for path in paths:
        Image.new('L', (3, 3)).save(path)
    assert unreadable_sentence(paths, 5, 'do x') == []
    paths[4].write_bytes(b'')
    paths[2].write_bytes(b'\x89PNG\r\n')
    assert unreadable_sentence(paths, 0, 'do x') == []
    assert unreadable_sentence(paths, 2, 'do x') == [f'1 of 2 pictures looked at cannot be read ({paths[4]}): do x']
    assert unreadable_sentence(paths, None, 'do x')[0].startswith('2 of 5 pictures')


def test_findings():
    found = Findings()
    assert found.complete
    found.add('one')
    found.add('two', 'x.zip')
    assert found.problems == ['one', 'two'] and found.archives == {'x.zip'} and not found.complete
