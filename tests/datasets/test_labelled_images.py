"""Class folders and lists with labels: what is found, in which order, and what is refused."""

import pytest
from PIL import Image

from mmcnx2.datasets.labelled_images import find_labelled_images


@pytest.fixture
def folder(tmp_path):
    for name in ('dog/1.png', 'cat/b/2.png', 'cat/a.png', '.hidden/3.png'):
        path = tmp_path / 'set' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (2, 2)).save(path)
    (tmp_path / 'set/notes.txt').write_text('beside the classes')
    return tmp_path / 'set'


def names(images, folder):
    return [path.removeprefix(f'{folder}/') for path in images.paths]


def test_a_class_per_folder(folder):
    images = find_labelled_images(folder)
    assert images.classes == ('cat', 'dog')
    assert names(images, folder) == ['cat/a.png', 'cat/b/2.png', 'dog/1.png']
    assert images.labels == (0, 0, 1) and images.counts == (2, 1) and len(images) == 3


def test_a_list_with_labels(folder):
    path = folder / 'list.txt'
    path.write_text('# pictures\ndog/1.png 10\n\ncat/a b.png\t9\ncat/a.png 9\n')
    images = find_labelled_images(path)
    assert images.classes == ('9', '10')  # as numbers
    assert names(images, folder) == ['dog/1.png', 'cat/a b.png', 'cat/a.png'] and images.labels == (1, 0, 0)
    path.write_text('dog/1.png x10\ncat/a.png x9\n', encoding='utf-8-sig')  # with a byte order mark, as from Windows
    images = find_labelled_images(path)
    assert images.classes == ('x10', 'x9') and names(images, folder) == ['dog/1.png', 'cat/a.png']


def test_the_classes_of_another_set_give_the_numbers(folder):
    images = find_labelled_images(folder, classes=('dog', 'bird', 'cat'))
    assert images.labels == (2, 2, 0) and images.counts == (1, 0, 2)
    with pytest.raises(ValueError, match=r'1 classes .* \(dog\)'):
        find_labelled_images(folder, classes=('cat', 'bird'))


def test_mistakes_say_what_is_needed(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match='a folder per class'):
        find_labelled_images(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='holds no folders'):
        find_labelled_images(folder / 'dog')
    (folder / 'empty').mkdir()
    with pytest.raises(ValueError, match="class 'empty'"):
        find_labelled_images(folder)
    path = tmp_path / 'list.txt'
    for text, words in (
        ('set/dog/1.png\n', 'line 1.*not a path and a label'),
        ('# nothing\n', 'lists no picture'),
        ('no/1.png 0\n', 'none of the first 1 files'),
    ):
        path.write_text(text)
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            find_labelled_images(path)
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='not UTF-8'):
        find_labelled_images(path)
