"""Guards mmcnx2/datasets/image_files.py: what counts as a picture, in which order, what is said when there is none."""
import os

import pytest

from mmcnx2.datasets.image_files import find_images


@pytest.fixture
def folder(tmp_path):
    for name in ('b.jpg', 'a.PNG', 'notes.txt', '.hidden.jpg', 'sub/c.npy', 'sub/deep/d.tiff', 'sub-2/e.jpg',
                 '.git/f.jpg', 'folder.jpg/g.jpg'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')
    return tmp_path


def names(paths, root):
    return [os.path.relpath(path, root) for path in paths]


ALL = ['a.PNG', 'b.jpg', 'folder.jpg/g.jpg', 'sub/c.npy', 'sub/deep/d.tiff', 'sub-2/e.jpg']


def test_folder_is_searched_at_every_depth(folder):
    assert names(find_images(folder), folder) == ALL


def test_order_is_that_of_the_path_components(folder):
    assert names(find_images(str(folder / '**/*')), folder) == ALL


def test_extensions_act(folder):
    assert names(find_images(folder, extensions=['npy', '.JPG']), folder) == [
        'b.jpg', 'folder.jpg/g.jpg', 'sub/c.npy', 'sub-2/e.jpg']


def test_glob_of_one_level(folder):
    assert names(find_images('*.jpg', data_root=folder), folder) == ['b.jpg']


def test_data_root_is_no_glob(folder):
    root = folder / 'set[1]'
    root.mkdir()
    (root / 'a.jpg').write_bytes(b'')
    for source in ('*.jpg', '[ab].jpg', '**/a.*'):
        assert find_images(source, data_root=root) == [str(root / 'a.jpg')]
    with pytest.raises(FileNotFoundError, match='there is no'):
        find_images('missing', data_root=root)


def test_links_are_followed_but_not_in_circles(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp('other')
    (other / 'z.jpg').write_bytes(b'')
    (folder / 'link').symlink_to(other)
    (folder / 'sub/up').symlink_to(folder)
    assert names(find_images(folder), folder) == [*ALL[:3], 'link/z.jpg', *ALL[3:]]


def test_folders_that_may_not_be_read_are_left_out_and_named(folder, monkeypatch, capfd):
    scandir = os.scandir

    def refusing(path):
        if os.path.basename(path) in ('deep', 'sub-2'):
            raise PermissionError(13, 'Permission denied', path)
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refusing)
    assert names(find_images(folder), folder) == [name for name in ALL if 'deep' not in name and 'sub-2' not in name]
    logged = capfd.readouterr()
    text = logged.out + logged.err
    assert text.count('may not be read') == 1 and '2 entries of' in text
    assert f"'{folder}/sub/deep', '{folder}/sub-2'" in text
    with pytest.raises(PermissionError):  # the folder itself
        find_images(folder / 'sub-2')


def test_links_to_nothing_are_kept_for_the_reader_to_report(folder):
    (folder / 'gone.jpg').symlink_to(folder / 'nowhere')
    assert names(find_images(folder), folder) == names(find_images(str(folder / '**/*')), folder) == sorted(
        [*ALL, 'gone.jpg'], key=lambda name: name.split('/'))


def test_pipes_and_sockets_are_no_pictures(folder):
    os.mkfifo(folder / 'pipe.jpg')  # opening it would wait for ever
    assert names(find_images(folder), folder) == names(find_images(str(folder / '**/*')), folder) == ALL


def test_list_keeps_its_order_and_has_two_bases(folder):
    text = '# ours\nsub/c.npy\n\n  b.jpg  \nunlisted-ending.xyz\n' + str(folder / 'a.PNG') + '\n'
    (folder / 'list.txt').write_text(text)
    expected = ['sub/c.npy', 'b.jpg', 'unlisted-ending.xyz', 'a.PNG']
    assert names(find_images(folder / 'list.txt'), folder) == expected
    other = folder / 'sub-2' / 'list.txt'
    other.write_text(text)
    assert names(find_images('sub-2/list.txt', data_root=folder), folder) == expected
    with pytest.raises(FileNotFoundError, match='data_root'):  # relative to its own folder nothing is there
        other.write_text('sub/c.npy\n')
        find_images(other)


def test_a_byte_order_mark_belongs_to_no_path(folder):
    (folder / 'list.txt').write_text('b.jpg\r\nsub/c.npy\r\n', encoding='utf-8-sig', newline='')
    assert names(find_images(folder / 'list.txt'), folder) == ['b.jpg', 'sub/c.npy']


def test_names_that_are_not_utf8_may_be_listed(folder):
    """A subset of unlabelled pictures is such a list."""
    (folder / os.fsdecode(b'caf\xe9.jpg')).write_bytes(b'')
    (folder / 'list.txt').write_bytes(b'b.jpg\n' + os.fsencode(folder) + b'/caf\xe9.jpg\n')
    assert names(find_images(folder / 'list.txt'), folder) == ['b.jpg', os.fsdecode(b'caf\xe9.jpg')]
    (folder / 'list.txt').write_text('b.jpg\ncafé.jpg\n', encoding='latin-1')  # of another name
    os.rename(folder / os.fsdecode(b'caf\xe9.jpg'), folder / 'café.jpg')
    with pytest.raises(ValueError, match='line 2 is not UTF-8'):
        find_images(folder / 'list.txt')


@pytest.mark.parametrize(('source', 'error', 'said'), [
    ('missing', FileNotFoundError, 'missing.*list file'),
    ('missing/**/*.jpg', ValueError, 'missing.*holds no picture'),
    ('empty', ValueError, 'empty.*holds no picture.*extensions'), ('b.jpg', ValueError, 'one picture'),
    ('binary', ValueError, 'not UTF-8'), ('', ValueError, "source=''"),
    ('comments.txt', ValueError, 'holds no picture'),
])
def test_mistakes_are_named(folder, source, error, said):
    (folder / 'empty').mkdir()
    (folder / 'binary').write_bytes(b'\xff\xfe\x00\x80')
    (folder / 'comments.txt').write_text('# nothing\n')
    with pytest.raises(error, match=said):
        find_images(source, data_root=folder if source else '')


@pytest.mark.parametrize('extensions', ['.jpg', [], [1], ['']])
def test_extensions_must_be_a_list_of_endings(folder, extensions):
    with pytest.raises(ValueError, match='extensions'):
        find_images(folder, extensions=extensions)
