"""Guards mmcnx2/datasets/imagenet_files.py: what a copy lacks is named, and archives become the right class folders."""

import hashlib
import io
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from scipy.io import savemat

from mmcnx2.datasets import imagenet_files
from mmcnx2.datasets.imagenet_files import check_imagenet, check_imagenet22k, unpack_imagenet, unpack_imagenet22k

CLASSES = ['n00000003', 'n00000001', 'n00000002']  # in the order of the devkit's numbers
VAL_NUMBERS = [2, 1, 3, 3, 1, 2]


def jpeg(shade=0):
    buffer = io.BytesIO()
    Image.new('RGB', (4, 4), (shade, 0, 0)).save(buffer, 'JPEG')
    return buffer.getvalue()


def tar(members: dict, path=None, mode='w'):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


@pytest.fixture
def small(monkeypatch):
    """An ImageNet of three classes."""
    monkeypatch.setattr(imagenet_files, 'NUM_CLASSES', 3)
    monkeypatch.setattr(imagenet_files, 'NUM_PUBLISHED', dict(train=(10, 3, 4), val=(6, 2, 2)))


@pytest.fixture
def archives(tmp_path, small, monkeypatch):
    folder = tmp_path / 'archives'
    classes = {
        f'{name}.tar': tar({f'{name}_{i}.JPEG': jpeg(10 * number + i) for i in range(3 + (number == 0))})
        for number, name in enumerate(sorted(CLASSES))
    }
    tar(classes, folder / 'ILSVRC2012_img_train.tar')
    val = {f'ILSVRC2012_val_{i + 1:08}.JPEG': jpeg(100 + i) for i in range(6)}
    tar(val, folder / 'ILSVRC2012_img_val.tar')
    rows = [(number + 1, name, 'words', 'gloss', 0) for number, name in enumerate(CLASSES)]
    rows.append((4, 'n00000009', 'a group of classes', 'gloss', 3))
    kinds = [(key, object) for key in ('ILSVRC2012_ID', 'WNID', 'words', 'gloss', 'num_children')]
    table = io.BytesIO()
    savemat(table, dict(synsets=np.array(rows, dtype=kinds)[:, None]))
    devkit = {
        'ILSVRC2012_devkit_t12/data/meta.mat': table.getvalue(),
        'ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt': '\n'.join(map(str, VAL_NUMBERS)).encode(),
        'ILSVRC2012_devkit_t12/readme.txt': b'text',
    }
    tar(devkit, folder / 'ILSVRC2012_devkit_t12.tar.gz', mode='w:gz')
    for name in ('TRAIN_ARCHIVE', 'VAL_ARCHIVE', 'DEVKIT_ARCHIVE'):
        archive = getattr(imagenet_files, name)
        digest = hashlib.md5((folder / archive.name).read_bytes()).hexdigest()
        monkeypatch.setattr(imagenet_files, name, replace(archive, checksum=f'md5:{digest}'))
    return folder


@pytest.fixture
def copy(archives, tmp_path):
    root = tmp_path / 'imagenet'
    unpack_imagenet(archives, root, tell=lambda line: None)
    return root


def test_archives_become_class_folders(archives, tmp_path):
    root, lines, seen = tmp_path / 'imagenet', [], []
    assert unpack_imagenet(archives, root, True, lambda *numbers: seen.append(numbers), lines.append) == 16
    assert sorted(os.listdir(root / 'train')) == sorted(os.listdir(root / 'val')) == sorted(CLASSES)
    assert (root / 'train/n00000002/n00000002_1.JPEG').read_bytes() == jpeg(11)
    for index, number in enumerate(VAL_NUMBERS):
        path = root / 'val' / CLASSES[number - 1] / f'ILSVRC2012_val_{index + 1:08}.JPEG'
        assert path.read_bytes() == jpeg(100 + index)
    assert [line.split()[0] for line in lines] == ['comparing'] * 3 + ['unpacking'] * 2
    size = (archives / 'ILSVRC2012_img_train.tar').stat().st_size
    assert (size, size) in seen and all(done <= total for done, total in seen)


def test_unpacking_goes_on_where_it_ended(archives, copy):
    (copy / 'train/n00000002/n00000002_1.JPEG').unlink()
    (copy / 'val/n00000003/ILSVRC2012_val_00000002.JPEG').write_bytes(b'cut')
    assert unpack_imagenet(archives, copy, tell=lambda line: None) == 2
    assert check_imagenet(copy).complete


def test_missing_archives_are_named(archives, tmp_path):
    (archives / 'ILSVRC2012_img_val.tar').unlink()
    with pytest.raises(ValueError, match=r'lacks ILSVRC2012_img_val.tar\. .*https://image-net.org'):
        unpack_imagenet(archives, tmp_path / 'x')


def test_archives_are_compared(archives, tmp_path):
    path = archives / 'ILSVRC2012_img_val.tar'
    path.write_bytes(path.read_bytes() + b'\0')
    assert unpack_imagenet(archives, tmp_path / 'x', checksums=False, tell=lambda line: None) == 16
    with pytest.raises(ValueError, match=r'ILSVRC2012_img_val.tar. has md5'):
        unpack_imagenet(archives, tmp_path / 'x', tell=lambda line: None)


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('ILSVRC2012_img_train.tar', tar({'n00000001/a.JPEG': b'x'}), 'a.JPEG., which is no class archive'),
        ('ILSVRC2012_img_train.tar', tar({'n00000001.tar': tar({'a.sh': b'x'})}), 'a.sh., which is no picture'),
        ('ILSVRC2012_img_train.tar', tar({'n00000001.tar': b'x' * 600}), 'no tar file, or a damaged one'),
        ('ILSVRC2012_img_train.tar', b'', 'no tar file, or a damaged one'),
        ('ILSVRC2012_img_val.tar', tar({'ILSVRC2012_val_00000007.JPEG': b'x'}), 'of which the devkit says no class'),
        ('ILSVRC2012_img_val.tar', tar({'a.JPEG': b'x'}), 'of which the devkit says no class'),
        ('ILSVRC2012_img_val.tar', tar({'ILSVRC2012_val_00000001.JPEG': b'x' * 9000})[:5000], 'damaged'),
        ('ILSVRC2012_devkit_t12.tar.gz', tar({'data/meta.mat': b'x'}), "does not hold the devkit's tables"),
        ('ILSVRC2012_devkit_t12.tar.gz', tar({'data/x': b'x'}), "does not hold the devkit's tables"),
        ('ILSVRC2012_devkit_t12.tar.gz', b'\x1f\x8b' + b'x' * 100, 'no tar file, or a damaged one'),
    ],
)
def test_other_archives_are_refused(archives, tmp_path, name, content, words):
    (archives / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf'{name}.*{words}'):
        unpack_imagenet(archives, tmp_path / 'x', checksums=False, tell=lambda line: None)


def test_members_stay_inside_their_class(archives, tmp_path):
    inner = tar({'../../../evil.JPEG': b'x', '/abs/evil2.JPEG': b'y'})
    tar({'../n00000001.tar': inner}, archives / 'ILSVRC2012_img_train.tar')
    unpack_imagenet(archives, tmp_path / 'x', checksums=False, tell=lambda line: None)
    assert sorted(os.listdir(tmp_path / 'x/train/n00000001')) == ['evil.JPEG', 'evil2.JPEG']
    assert sorted(os.listdir(tmp_path)) == ['archives', 'x']


def test_links_are_refused(archives, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        info = tarfile.TarInfo('ILSVRC2012_val_00000001.JPEG')
        info.type, info.linkname = tarfile.SYMTYPE, '/etc/passwd'
        archive.addfile(info)
    (archives / 'ILSVRC2012_img_val.tar').write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match='which is no picture'):
        unpack_imagenet(archives, tmp_path / 'x', checksums=False, tell=lambda line: None)


# ---- checks


def test_published_numbers():
    assert dict(train=(1_281_167, 732, 1_300), val=(50_000, 50, 50)) == imagenet_files.NUM_PUBLISHED


def test_complete_copy(copy):
    found = check_imagenet(copy)
    assert found.problems == []
    assert found.summary == (
        f'ImageNet-1K in {copy} is complete: train 10 images, val 6 images; 48 pictures per split looked at'
    )


def test_nothing_there(tmp_path):
    problems = check_imagenet(tmp_path).problems
    assert len(problems) == 2 and f"folder '{tmp_path}/train' with 1,281,167 images is missing" in problems[0]


def test_missing_class_is_named_by_the_other_split(copy):
    for path in (copy / 'val/n00000002').iterdir():
        path.unlink()
    (copy / 'val/n00000002').rmdir()
    problems = check_imagenet(copy).problems
    assert "val' holds 2 class folders, not 3; those beside it have n00000002 more" in problems[0]
    assert "val' holds 4 of 6 images: " in problems[1]


def test_missing_images_are_counted_and_their_classes_named(copy):
    (copy / 'train/n00000002/n00000002_1.JPEG').unlink()
    (copy / 'val/n00000001/ILSVRC2012_val_00000001.JPEG').unlink(missing_ok=True)
    problems = check_imagenet(copy).problems
    assert "train' holds 9 of 10 images; classes without their 3 to 4: n00000002: 2: unpack" in problems[0]


def test_images_in_wrong_folders(copy):
    path = next((copy / 'val/n00000002').iterdir())
    path.rename(copy / 'val/n00000001' / path.name)
    (problem,) = check_imagenet(copy).problems
    assert "val': 2 classes have not their 2 images (n00000001: 3, n00000002: 1): images lie in the wrong" in problem


def test_folders_that_are_no_class(copy):
    (copy / 'train/cats').mkdir()
    problems = check_imagenet(copy).problems
    assert "train': 1 folders are not named like a class, n and eight digits (cats)" in problems[0]
    assert 'holds 4 class folders, not 3' in problems[1]


def test_unreadable_pictures_are_found(copy):
    (copy / 'train/n00000002/n00000002_0.JPEG').write_bytes(b'')
    (problem,) = check_imagenet(copy).problems
    assert 'n00000002_0.JPEG): unpack them again' in problem and '1 of 3 pictures' in problem
    assert check_imagenet(copy, num_spot_checks=0).complete


@pytest.fixture
def flat(copy):
    """Validation images in one folder."""
    for folder in sorted((copy / 'val').iterdir()):
        for path in folder.iterdir():
            path.rename(copy / 'val' / path.name)
        folder.rmdir()
    return copy


def test_flat_folder_without_a_list(flat):
    (problem,) = check_imagenet(flat).problems
    assert "val' holds 6 images and no class folders, and there is no list" in problem and 'meta/val.txt' in problem


def test_flat_folder_with_a_list(flat):
    (flat / 'meta').mkdir()
    names = [f'ILSVRC2012_val_{index + 1:08}.JPEG' for index in range(6)]
    write = (flat / 'meta/val.txt').write_text
    write('\n'.join(f'{name} 1' for name in names))
    found = check_imagenet(flat)
    assert found.complete
    assert found.summary.endswith('val by its list: --cfg-options val_dataloader.dataset.ann_file=meta/val.txt')
    write('\n'.join(f'{name} 1' for name in names[:5]))
    assert "meta/val.txt' has 5 lines, not 6: replace it" in check_imagenet(flat).problems[0]
    write('\n'.join(names))
    assert (
        "has 6 lines that are not 'FILE CLASS_NUMBER' (line 1, line 2, line 3 ...)" in check_imagenet(flat).problems[0]
    )
    write('\n'.join(f'{name} 1' for name in names))
    (flat / 'val' / names[3]).unlink()
    assert f'1 of 6 files are missing ({names[3]}):' in check_imagenet(flat).problems[0]
    (flat / 'val' / names[3]).write_bytes(b'')
    assert 'cannot be read' in check_imagenet(flat).problems[0]


def test_list_with_folders(copy):
    """A list may name files in class folders; the folders alone say enough, and are counted."""
    (copy / 'meta').mkdir()
    (copy / 'meta/val.txt').write_text('nothing of use')
    assert check_imagenet(copy).complete


def test_shares_are_of_the_training_sets_of_our_configs(tmp_path):
    def dataset(name):
        return Config.fromfile(f'configs/_base_/datasets/{name}.py').train_dataloader.dataset

    sets = imagenet_files.training_sets('data/imagenet')
    for name, ours in (
        ('imagenet_224', sets['classification']),
        ('imagenet_probe_224', sets['classification']),
        ('imagenet_unlabelled_224', sets['pretraining']),
        ('imagenet22k_224', imagenet_files.training_sets_22k('data/imagenet22k')['classification']),
    ):
        theirs = dataset(name)
        assert {key: theirs[key] for key in ours} == ours and set(theirs) - set(ours) == {'pipeline'}
    (tmp_path / 'train').mkdir()
    (tmp_path / 'meta').mkdir()
    (tmp_path / 'meta/train.txt').write_text('')
    assert imagenet_files.training_sets(tmp_path)['classification']['ann_file'] == 'meta/train.txt'


# ---- 22K


@pytest.fixture
def large(tmp_path):
    root = tmp_path / 'imagenet22k'
    for name in ('n00000001', 'n00000002'):
        (root / name).mkdir(parents=True)
        for index in range(3):
            (root / name / f'{name}_{index}.JPEG').write_bytes(jpeg())
    return root


def test_22k_is_counted(large, monkeypatch):
    found = check_imagenet22k(large)
    assert found.complete and '2 classes, 6 images; 48 pictures looked at; our configs are for 21,841' in found.summary
    assert found.summary.endswith('model.head.num_classes=2 model.data_preprocessor.num_classes=2')
    monkeypatch.setattr(imagenet_files, 'NUM_CLASSES_22K', 2)
    assert check_imagenet22k(large).summary.endswith('48 pictures looked at')


def test_22k_lacks_are_named(large, tmp_path):
    (large / 'n00000003').mkdir()
    (large / 'meta').mkdir()
    (large / 'n00000001/n00000001_0.JPEG').write_bytes(b'')
    problems = check_imagenet22k(large).problems
    assert '1 folders are not named like a class, n and eight digits (meta)' in problems[0]
    assert '2 class folders hold no picture (meta, n00000003)' in problems[1]
    assert 'n00000001_0.JPEG): unpack them again' in problems[2]
    assert (
        "gone' is missing. `prepare_data.py imagenet22k --download`" in check_imagenet22k(tmp_path / 'gone').problems[0]
    )
    (tmp_path / 'empty').mkdir()
    assert 'holds no class folders' in check_imagenet22k(tmp_path / 'empty').problems[0]


def test_22k_out_of_archives(tmp_path):
    classes = {name: tar({f'{name}_{i}.JPEG': jpeg(i) for i in range(2)}) for name in ('n00000001', 'n00000002')}
    whole = {f'winter21_whole/{name}.tar': content for name, content in classes.items()}
    tar(whole, tmp_path / 'whole.tar.gz', 'w:gz')
    assert unpack_imagenet22k(tmp_path / 'whole.tar.gz', tmp_path / 'a') == 4
    for name, content in classes.items():
        (tmp_path / 'single').mkdir(exist_ok=True)
        (tmp_path / 'single' / f'{name}.tar').write_bytes(content)
    lines = []
    assert unpack_imagenet22k(tmp_path / 'single', tmp_path / 'b', tell=lines.append) == 4
    assert lines == ['unpacking 2 class archives']
    for root in (tmp_path / 'a', tmp_path / 'b'):
        assert sorted(os.listdir(root)) == ['n00000001', 'n00000002'] and check_imagenet22k(root).complete
    with pytest.raises(ValueError, match=r'gone. is neither an archive nor a folder of class archives .*fall11_whole'):
        unpack_imagenet22k(tmp_path / 'gone', tmp_path / 'c')
