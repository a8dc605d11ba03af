"""Guards tools/prepare_data.py: options reach what they are for, lacks and mistakes end in lines and an exit code.

What is checked, fetched, converted and chosen: tests/datasets/.
"""

import functools
import http.server
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image

from mmcnx2.datasets import ade20k_files, coco_files, imagenet_files
from mmcnx2.engine.config_options import read_options

SCRIPT = Path(__file__).resolve().parents[1] / 'tools' / 'prepare_data.py'
SMALL = ['--unlabelled', '9', '--train', '2', '--val', '3', '--size', '64', '--workers', '2']


@pytest.fixture(scope='module')
def prepare():
    spec = importlib.util.spec_from_file_location('prepare_data', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


def test_options_reach_the_scenes(prepare, tmp_path, capsys):
    out = tmp_path / 'some' / 'demo'
    prepare('demo', '--out', out, *SMALL, '--seed', 5)
    assert 'wrote 9 unlabelled, 2 train, 3 val scenes of 64 px' in capsys.readouterr().out
    settings = json.loads((out / 'meta.json').read_text())['settings']
    assert {key: settings[key] for key in ('unlabelled', 'train', 'val', 'size', 'seed')} == dict(
        unlabelled=9, train=2, val=3, size=64, seed=5
    )
    assert len(os.listdir(out / 'unlabelled')) == 9
    prepare('demo', '--out', out, *SMALL, '--seed', 5)
    assert 'complete already' in capsys.readouterr().out
    prepare('demo', '--out', out, *SMALL, '--seed', 6, '--force')
    assert 'wrote' in capsys.readouterr().out


def test_a_mistake_ends_in_one_line(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    done = subprocess.run(
        [sys.executable, str(SCRIPT), 'demo', '--out', str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and '--out' in done.stderr


def test_help_names_the_data_sets(prepare, capsys):
    with pytest.raises(SystemExit, match='0'):
        prepare('--help')
    text = capsys.readouterr().out
    assert all(name in text for name in ('demo', 'coco', 'ade20k', 'imagenet', 'imagenet22k'))
    with pytest.raises(SystemExit, match='2'):
        prepare()


# ---- published data sets, small ones


def write_coco(root: Path) -> None:
    for split, num in (('train', 4), ('val', 2)):
        (root / f'{split}2017').mkdir(parents=True)
        images = [dict(id=i, file_name=f'{i}.jpg', width=40, height=40) for i in range(num)]
        for image in images:
            Image.new('RGB', (40, 40)).save(root / f'{split}2017' / image['file_name'])
        annotations = [
            dict(
                id=i,
                image_id=i,
                category_id=1,
                bbox=[1, 1, 9, 9],
                area=81,
                iscrowd=0,
                segmentation=[[1, 1, 9, 1, 9, 9]],
            )
            for i in range(num)
        ]
        coco = dict(images=images, annotations=annotations, categories=[dict(id=1, name='person')])
        (root / 'annotations').mkdir(exist_ok=True)
        (root / f'annotations/instances_{split}2017.json').write_text(json.dumps(coco))


def write_ade(root: Path) -> None:
    for split, prefix, num in (('training', 'ADE_train', 4), ('validation', 'ADE_val', 2)):
        for kind, mode, suffix in (('images', 'RGB', 'jpg'), ('annotations', 'L', 'png')):
            (root / kind / split).mkdir(parents=True)
            for number in range(1, num + 1):
                Image.new(mode, (8, 6)).save(root / kind / split / f'{prefix}_{number:08}.{suffix}')


def zip_folder(folder: Path, path: Path, below: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, 'w') as archive:
        for file in sorted(folder.rglob('*')):
            if file.is_file():
                archive.write(file, f'{below}{file.relative_to(folder)}')


@pytest.fixture
def small(monkeypatch):
    """Published numbers that fit the small data sets, and archives without a checksum."""
    monkeypatch.setattr(coco_files, 'NUM_PUBLISHED', dict(train=(4, 4), val=(2, 2)))
    monkeypatch.setattr(ade20k_files, 'NUM_PUBLISHED', dict(training=(4, 'ADE_train'), validation=(2, 'ADE_val')))
    monkeypatch.setattr(imagenet_files, 'NUM_CLASSES', 2)
    monkeypatch.setattr(imagenet_files, 'NUM_PUBLISHED', dict(train=(20, 10, 10), val=(2, 1, 1)))
    for module in (coco_files, ade20k_files):
        archives = tuple(replace(archive, checksum=None, num_bytes=None) for archive in module.ARCHIVES)
        monkeypatch.setattr(module, 'ARCHIVES', archives)


@pytest.fixture
def mirror(tmp_path):
    """(address, folder) of a server of archives."""
    folder = tmp_path / 'mirror'
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f'http://127.0.0.1:{server.server_address[1]}/', folder
    server.shutdown()
    server.server_close()


def lines_of_failure(prepare, capsys, *arguments) -> list[str]:
    with pytest.raises(SystemExit) as end:
        prepare(*arguments)
    assert end.value.code == 1
    return capsys.readouterr().err.splitlines()


def test_coco_from_nothing_to_a_share(prepare, small, mirror, tmp_path, capsys):
    address, folder = mirror
    write_coco(tmp_path / 'source')
    for name in ('train2017', 'val2017'):
        zip_folder(tmp_path / 'source' / name, folder / f'{name}.zip', f'{name}/')
    zip_folder(tmp_path / 'source/annotations', folder / 'annotations_trainval2017.zip', 'annotations/')
    root = tmp_path / 'data' / 'coco'

    lines = lines_of_failure(prepare, capsys, 'coco', '--root', root)
    assert len(lines) == 4 and all(line.startswith('missing or wrong: ') for line in lines)
    prepare('coco', '--root', root, '--download', '--mirror', address)
    out = capsys.readouterr().out
    assert f'COCO 2017 in {root} is complete: train 4 images, val 2 images' in out
    assert 'train2017.zip: 4 files unpacked' in out and 'recorded what came, sha256' in out
    downloads = tmp_path / 'data' / 'downloads'
    assert sorted(os.listdir(downloads)) == sorted(
        f'{name}.zip{end}' for name in ('annotations_trainval2017', 'train2017', 'val2017') for end in ('', '.sha256')
    )

    (root / 'val2017/1.jpg').unlink()
    for path in folder.iterdir():
        path.unlink()  # whatever is fetched now fails
    prepare('coco', '--root', root, '--download', '--mirror', address)
    assert 'train2017.zip: ' not in (out := capsys.readouterr().out) and 'val2017.zip: 1 files unpacked' in out
    (downloads / 'val2017.zip').unlink()
    prepare('coco', '--root', root, '--download', '--mirror', address)
    assert capsys.readouterr().out.startswith('COCO 2017'), 'fetched although nothing is missing'

    prepare('coco', '--root', root, '--fraction', 0.5)
    told = capsys.readouterr().out.splitlines()
    path = root / 'annotations' / 'instances_train2017_fraction-0.5_seed-0.json'
    assert told[-1] == f'detection: --cfg-options train_dataloader.dataset.ann_file={path}'
    assert len(json.loads(path.read_text())['images']) == 2
    prepare('coco', '--root', root, '--fraction', 0.5, '--seed', 3, '--out', tmp_path / 'lists')
    assert os.listdir(tmp_path / 'lists') == ['instances_train2017_fraction-0.5_seed-3.json']


def test_download_that_is_refused_is_one_line(tmp_path, mirror):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), 'coco', '--root', str(tmp_path / 'x'), '--download', '--mirror', mirror[0]],
        capture_output=True, text=True, cwd=tmp_path, timeout=120)  # fmt: skip
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert done.stderr.startswith('error: ') and 'annotations_trainval2017.zip: the server answered 404' in done.stderr


def test_archives_elsewhere(prepare, small, tmp_path, capsys):
    write_ade(tmp_path / 'source')
    zip_folder(tmp_path / 'source', tmp_path / 'mine/ADEChallengeData2016.zip', 'ADEChallengeData2016/')
    root = tmp_path / 'called-otherwise'
    prepare('ade20k', '--root', root, '--download', '--archives', tmp_path / 'mine', '--mirror', 'http://127.0.0.1:9/')
    assert f'ADE20K in {root} is complete: training 4 pairs' in capsys.readouterr().out
    assert sorted(os.listdir(root)) == ['annotations', 'images']
    prepare('ade20k', '--root', root, '--fraction', 0.25)
    told = capsys.readouterr().out.splitlines()[-1]
    path = root / 'training_fraction-0.25_seed-0.txt'
    assert told == f'segmentation: --cfg-options train_dataloader.dataset.ann_file={path}'
    assert len(path.read_text().split()) == 1
    (root / 'images/training/ADE_train_00000002.jpg').unlink()
    (line,) = lines_of_failure(prepare, capsys, 'ade20k', '--root', root, '--fraction', 0.5)
    assert '1 of 4 files are missing (ADE_train_00000002.jpg)' in line


def test_full_release(prepare, small, tmp_path, capsys):
    for split, prefix, num in (('training', 'ADE_train', 4), ('validation', 'ADE_val', 2)):
        folder = tmp_path / 'release/images/ADE' / split
        folder.mkdir(parents=True)
        for number in range(1, num + 1):
            name = f'{prefix}_{number:08}'
            Image.new('RGB', (60, 40), (110, 162, 0)).save(folder / f'{name}_seg.png')  # 11 * 256 + 162 = 2978
            Image.new('RGB', (60, 40)).save(folder / f'{name}.jpg')
            objects = [dict(name='wall', name_ndx=2978)]
            (folder / f'{name}.json').write_text(json.dumps(dict(annotation=dict(object=objects))))
    (folder / f'{name}.json').unlink()
    for end in ('jpg', 'json', '_seg.png'):
        source = tmp_path / f'release/images/ADE/training/ADE_train_00000001.{end}'.replace('._', '_')
        source.with_name(source.name.replace('train_00000001', 'frame_00000009')).write_bytes(source.read_bytes())
    root = tmp_path / 'ade'
    words = ('ade20k', '--root', root, '--full-release', tmp_path / 'release', '--workers', 1, '--short-side', 20)
    prepare(*words)
    out = capsys.readouterr().out
    assert 'converted 5 training, 2 validation pictures, 0 of them before' in out
    assert '1 pictures are not in the challenge; --challenge-only leaves them out' in out
    assert '1 pictures have no JSON with names (' in out and 'ADE_val_00000002_seg.png ...)' in out
    assert '149 classes never occurred: building, edifice; sky; ' in out and ' wall;' not in out
    assert 'is complete: training 4 pairs, validation 2 pairs and 1 beyond the challenge' in out
    label = Image.open(root / 'annotations/training/ADE_train_00000003.png')
    assert label.size == (30, 20) and label.getextrema() == (1, 1)
    prepare(*words)
    out = capsys.readouterr().out
    assert '7 of them before' in out and 'never occurred' not in out
    prepare(*words[:2], tmp_path / 'other', *words[3:], '--challenge-only')
    assert 'converted 4 training, 2 validation' in capsys.readouterr().out
    with pytest.raises(ValueError, match='--full-release converts others: give one'):
        prepare(*words, '--download')


def test_imagenet(prepare, small, tmp_path, capsys):
    root = tmp_path / 'imagenet'
    lines = lines_of_failure(prepare, capsys, 'imagenet', '--root', root)
    assert len(lines) == 2
    with pytest.raises(SystemExit, match='1'):
        prepare('imagenet', '--root', root, '--download')
    assert 'Make one at https://image-net.org' in capsys.readouterr().out
    for split, num in (('train', 10), ('val', 1)):
        for name in ('n00000001', 'n00000002'):
            (root / split / name).mkdir(parents=True)
            for index in range(num):
                Image.new('RGB', (8, 8)).save(root / split / name / f'{name}_{index}.JPEG', 'JPEG')
    prepare('imagenet', '--root', root, '--download')
    assert capsys.readouterr().out.startswith(f'ImageNet-1K in {root} is complete')


def test_imagenet_share(prepare, small, tmp_path, capsys, monkeypatch):
    root = tmp_path / 'imagenet'
    test_imagenet(prepare, small, tmp_path, capsys)
    sets = imagenet_files.training_sets(root)
    sets['classification']['type'] = 'CustomDataset'  # mmpretrain's ImageNet insists on its 1,000 classes
    monkeypatch.setattr(imagenet_files, 'training_sets', lambda root: sets)
    prepare('imagenet', '--root', root, '--fraction', 0.2)
    told = capsys.readouterr().out.splitlines()
    by_class = root / 'classification/train_fraction-0.2_seed-0.txt'
    heap = root / 'pretraining/train_fraction-0.2_seed-0.txt'
    assert told[1:] == [
        f'classification: --cfg-options train_dataloader.dataset.ann_file={by_class}',
        f'pretraining: --cfg-options train_dataloader.dataset.source={heap}',
    ]
    assert [line.split()[1] for line in by_class.read_text().splitlines()] == ['0', '0', '1', '1']
    assert len(heap.read_text().splitlines()) == 4


def test_imagenet_from_archives(prepare, tmp_path):
    with pytest.raises(ValueError, match=r'lacks ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit'):
        prepare('imagenet', '--root', tmp_path, '--from-archives', tmp_path)


def test_imagenet22k(prepare, tmp_path, capsys):
    root = tmp_path / 'imagenet22k'
    with pytest.raises(SystemExit, match='1'):
        prepare('imagenet22k', '--root', root, '--download')
    assert 'fall11_whole.tar' in capsys.readouterr().out
    with pytest.raises(ValueError, match='is neither an archive nor a folder'):
        prepare('imagenet22k', '--root', root, '--from-archives', tmp_path)
    capsys.readouterr()
    for name in ('n00000001', 'n00000002'):
        (root / name).mkdir(parents=True)
        for index in range(4):
            Image.new('RGB', (8, 8)).save(root / name / f'{name}_{index}.JPEG', 'JPEG')
    prepare('imagenet22k', '--root', root, '--fraction', 0.5)
    told = capsys.readouterr().out.splitlines()
    assert '2 classes, 8 images; 48 pictures looked at; our configs are for 21,841' in told[0]
    path = root / 'imagenet22k_fraction-0.5_seed-0.txt'
    assert told[1:] == [f'classification: --cfg-options train_dataloader.dataset.ann_file={path}']
    assert len(path.read_text().splitlines()) == 4
    prepare('imagenet22k', '--root', root)
    assert ' 2 classes, 8 images' in capsys.readouterr().out, 'the list became a class'


def test_spot_checks_are_a_number(prepare, small, tmp_path, capsys):
    write_coco(tmp_path / 'coco')
    Image.new('RGB', (8, 40)).save(tmp_path / 'coco/val2017/0.jpg')
    assert len(lines_of_failure(prepare, capsys, 'coco', '--root', tmp_path / 'coco')) == 1
    prepare('coco', '--root', tmp_path / 'coco', '--num-spot-checks', 0)
    for wrong in ('-1', 'some'):
        with pytest.raises(SystemExit, match='2'):
            prepare('coco', f'--num-spot-checks={wrong}')
        assert f"'{wrong}' is not a number, 0 or more" in capsys.readouterr().err


def test_options_for_folders_with_blanks_and_commas_can_be_typed(prepare, small, tmp_path, capsys):
    write_ade(tmp_path / 'a, b (1)')
    prepare('ade20k', '--root', tmp_path / 'a, b (1)', '--fraction', 0.5)
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[:2] == ['segmentation:', '--cfg-options']
    [(key, path)] = read_options(words[2:]).items()
    assert key == 'train_dataloader.dataset.ann_file' and Path(path).is_file() and 'a, b (1)' in path


def test_shares_of_the_demo_scenes(prepare, tmp_path, capsys):
    out = tmp_path / 'demo'
    prepare('demo', '--out', out, *SMALL, '--fraction', 0.5)
    told = capsys.readouterr().out.splitlines()[-3:]
    values = [line.rpartition('=')[2] for line in told]
    assert [line.rpartition('=')[0] for line in told] == [
        'pretraining: --cfg-options train_dataloader.dataset.source',
        'detection: --cfg-options train_dataloader.dataset.ann_file',
        'segmentation: --cfg-options train_dataloader.dataset.ann_file',
    ]
    assert len(Path(values[0]).read_text().splitlines()) == 5
    assert len(json.loads(Path(values[1]).read_text())['images']) == 1
    assert len(Path(values[2]).read_text().splitlines()) == 1
    prepare('demo', '--out', out, *SMALL, '--fraction', 1)
    assert capsys.readouterr().out.count('all of it needs no option') == 3


def test_shares_of_the_demo_are_of_the_training_sets_of_its_configs():
    spec = importlib.util.spec_from_file_location('prepare_data', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    configs = dict(pretraining='fcmae', detection='mask-rcnn', segmentation='upernet')
    for task, (ours, _) in module.demo_training_sets(Path('data/demo')).items():
        dataset = Config.fromfile(SCRIPT.parents[1] / f'configs/demo/{configs[task]}_convnextv2-atto_demo.py')
        dataset = dataset.train_dataloader.dataset
        theirs = {key: str(value).rstrip('/') if key == 'data_root' else value for key, value in dataset.items()}
        assert {key: theirs[key] for key in ours} == ours
        assert set(theirs) - set(ours) <= {'pipeline', 'metainfo', 'img_suffix', 'seg_map_suffix', 'reduce_zero_label'}
