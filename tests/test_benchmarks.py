"""The speed benchmarks from the shell, on a tiny size: what they compare and write, that a wrong weight is found.
No test looks at how fast anything is.
"""

import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from micro_pretraining import write_checkpoint, write_class_folders, write_config
from PIL import Image

from mmcnx2.analysis import peer_backbones
from mmcnx2.analysis.provenance import versions
from mmcnx2.analysis.step_floor import encoder_work, positions_per_stage
from mmcnx2.models.backbones.convnext_v2 import ARCHS

ROOT = Path(__file__).parents[1]
SMALL = ['--arch', 'atto', '--size', '64', '--batch-size', '2', '--runs', '3', '--threads', '1', '--quiet']


@pytest.fixture
def tool(monkeypatch, capsys):
    """A benchmark, called with words; answers (exit code, stdout, stderr). Leaves torch's threads as they were."""
    threads = torch.get_num_threads()

    def call(name, *words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, words)])
        code = 0
        try:
            runpy.run_path(str(ROOT / 'tools' / 'benchmark' / f'{name}.py'), run_name='__main__')
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    yield call
    torch.set_num_threads(threads)


def written(folder: Path, name: str) -> tuple[dict, str]:
    """(JSON, Markdown) of the one result there."""
    found = sorted(path.name for path in folder.iterdir())
    assert [re.fullmatch(rf'{name}_cpu_\d{{4}}-\d\d-\d\d\.(json|md)', each)[1] for each in found] == ['json', 'md']
    return json.loads((folder / found[0]).read_text()), (folder / found[1]).read_text()


def rows_of(case: dict) -> dict[str, dict]:
    return {row['name']: row for row in case['candidates']}


def test_every_way_to_encode_computes_the_same(tool, tmp_path):
    code, out, _ = tool('encoder_speed', *SMALL, '--no-memory', '--memory-format', 'contiguous', '--out', tmp_path)
    assert code == 0
    results, text = written(tmp_path, 'encoder_speed')
    [case] = results['cases']
    rows = rows_of(case)
    masked = 'mmcnx2, masked dense'
    against = {name: row['parity'] and row['parity']['against'] for name, row in rows.items()}
    expected = {
        'mmcnx2, dense': None,
        masked: None,
        'mmcnx2, visible': masked,
        "mmpretrain's SparK": masked,
        'timm': 'mmcnx2, dense',
        'transformers': 'mmcnx2, dense',
        'mmpretrain': 'mmcnx2, dense',
    }
    assert {name: against[name] for name in expected} == expected
    assert all(row['parity']['is_same'] for row in rows.values() if row['parity'])
    assert all(len(row['step']['seconds']) == 3 and row['peak_bytes'] is None for row in rows.values())
    labels = {each['label'] for each in case['comparisons']}
    assert {'visible / own dense', "visible / the fastest peer's dense, both eager"} <= labels
    assert case['settings']['num_visible'] == 1 and case['settings']['num_cells'] == 4
    assert results['versions'] == versions('timm', 'transformers') and results['setup']['threads'] == 1
    out = out[out.index('## atto') :]  # mmpretrain prints a line of its own when it is imported
    assert out.strip() in text and f'torch {versions()["torch"]}' in text and '1 of 4 cells visible' in text
    assert 'biases of pwconv1 at 0' in text and '--memory-format contiguous' in results['command']


def test_profile_floor_and_memory_stand_in_the_results(tool, tmp_path):
    code, out, _ = tool('encoder_speed', *SMALL, '--layouts', 'dense', 'visible', '--profile', '--out', tmp_path)
    assert code == 0
    [case] = written(tmp_path, 'encoder_speed')[0]['cases']
    assert [row['peak_bytes'] > 1e6 for row in case['candidates']] == [True, True]
    dense, visible = (case['floors'][f'mmcnx2, {name}'] for name in ('dense', 'visible'))
    assert visible['multiply_adds'] * 4 == dense['multiply_adds']  # one of four cells
    work = encoder_work(**ARCHS['atto'], positions=positions_per_stage(2, 64, 64))
    by_hand = sum(each.product.multiply_adds if each.product else each.multiply_adds for each in work)
    assert dense['multiply_adds'] == by_hand
    profile = case['profiles']['mmcnx2, visible']
    assert sum(profile['groups'].values()) <= profile['seconds']
    assert profile['groups']['matrix products'] > 0 and profile['groups']['depthwise convolution'] > 0
    products = [each for each in profile['operators'] if each['group'] == 'matrix products']
    assert sum(each['calls'] for each in products) >= 3 * 28 - 1  # forward, input and weight of each; not the images
    assert '| matrix products |' in out and 'measured / floor' in out


def test_the_whole_pretraining_step_is_the_same_in_both_layouts(tool, tmp_path):
    words = ['--fcmae', '--no-memory', '--dtype', 'bf16', '--out', tmp_path, '--name', 'whole']
    assert tool('encoder_speed', *SMALL, *words)[0] == 0
    [case] = written(tmp_path, 'whole')[0]['cases']
    rows = rows_of(case)
    assert set(rows) >= {'mmcnx2, dense', 'mmcnx2, masked dense', 'mmcnx2, visible'}
    assert rows['mmcnx2, visible']['parity']['gradient'] and rows['mmcnx2, visible']['parity']['is_same']
    assert not set(rows) & {'timm', "mmpretrain's SparK"} and case['settings']['dtype'] == 'bf16'


def test_the_curve_has_points_tables_and_a_plot(tool, tmp_path):
    words = ['--curve', '--batch-sizes', 1, 2, '--sizes', 64, 96, '--mask-ratios', 0, 0.6, '--out', tmp_path]
    code, out, _ = tool('encoder_speed', *SMALL, *words)
    assert code == 0
    endings = sorted(path.suffix for path in tmp_path.iterdir())
    assert endings == ['.json', '.md', '.png']
    plot = next(tmp_path.glob('*.png'))
    assert f']({plot.name})' in plot.with_suffix('.md').read_text()
    [case] = json.loads(plot.with_suffix('.json').read_text())['cases']
    found = {(each['layout'], *each['point'].values()): each['share'] for each in case['points']}
    assert found == {
        ('visible', 1, 64, 0.6): 0.25,
        ('visible', 2, 64, 0.6): 0.25,
        ('visible', 2, 96, 0.6): pytest.approx(3 / 9),
        ('visible', 2, 64, 0.0): 1.0,
        ('dense', 1, 64, 0.6): 1.0,
        ('dense', 2, 64, 0.6): 1.0,
        ('dense', 2, 96, 0.6): 1.0,
    }
    assert '| mask ratio | visible, ms |' in out and 'to the power of' in out


def test_backbones_of_all_libraries_return_the_same_four_maps(tool, tmp_path):
    words = ['--size', '64x96', '--outputs', 4, '--out', tmp_path, '--no-memory', '--memory-format', 'channels_last']
    code, out, _ = tool('backbone_speed', *SMALL, *words)
    assert code == 0
    results, _ = written(tmp_path, 'backbone_speed')
    [case] = results['cases']
    rows = rows_of(case)
    assert list(rows) == ['mmcnx2', 'timm', 'transformers', 'mmpretrain'] and case['settings']['size'] == [64, 96]
    assert all(rows[name]['parity']['outputs'] < 1e-5 for name in list(rows)[1:])
    assert {each['phase'] for each in case['comparisons']} == {'forward', 'step'}
    assert rows['timm']['notes'] == ['channels_last memory format'] and 'all four maps' in out


def test_the_faster_memory_format_is_kept_and_named(tool, tmp_path, monkeypatch):
    seconds = iter([9, 2.0, 9, 4.0])  # contiguous (not counted, counted), channels last (the same)
    monkeypatch.setattr(peer_backbones, 'time_once', lambda step, wait: next(seconds))
    code, _, _ = tool('backbone_speed', *SMALL, '--libraries', 'timm', '--forward-only', '--out', tmp_path)
    assert code == 0
    [case] = written(tmp_path, 'backbone_speed')[0]['cases']
    assert rows_of(case)['timm']['notes'] == ['contiguous memory format, 2.00 times as fast as channels_last']
    assert 'step' not in rows_of(case)['timm']


@pytest.mark.parametrize('name', ['backbone_speed', 'encoder_speed'])
def test_a_peer_with_a_wrong_weight_is_found_and_the_numbers_are_kept(tool, tmp_path, monkeypatch, name):
    load = peer_backbones.Peer.load_ours

    def load_wrongly(peer, state_dict):
        load(peer, {**state_dict, 'stages.2.0.grn.gamma': state_dict['stages.2.0.grn.gamma'].flip(0)})

    monkeypatch.setattr(peer_backbones.Peer, 'load_ours', load_wrongly)
    which = ['--libraries', 'timm'] if name == 'backbone_speed' else ['--layouts', 'dense', 'timm']
    words = [*which, '--forward-only', '--no-memory', '--memory-format', 'contiguous', '--out', tmp_path]
    code, out, err = tool(name, *SMALL, *words)
    assert code == 1 and 'error: other outputs or gradients than the reference: timm (atto, fp32)' in err
    assert re.search(r'\| timm \|.*DIFFERENT', out)
    [case] = written(tmp_path, name)[0]['cases']
    assert not rows_of(case)['timm']['parity']['is_same'] and len(rows_of(case)['timm']['forward']['seconds']) == 3


@pytest.mark.parametrize(
    ('name', 'words', 'message'),
    [
        ('encoder_speed', ['--size', '100'], 'error: --size 100x100: both must be multiples of 32 px'),
        ('encoder_speed', ['--size', '64x96', '--layouts', 'spark'], 'takes square pictures only'),
        ('encoder_speed', ['--device', 'cuda'], 'error: --device cuda: this torch sees no GPU'),
        ('encoder_speed', ['--runs', '0'], 'error: --runs is 0; it must be 1 or more'),
        ('encoder_speed', ['--arch', 'giant'], "error: arch='giant' is not known"),
        ('encoder_speed', ['--fcmae', '--compile'], 'leave out --compile'),
        ('encoder_speed', ['--curve', '--layouts', 'timm'], 'has our own layouts only'),
        ('encoder_speed', ['--size', 'big'], "'big' is no size: give pixels as 224, or height and width"),
        ('backbone_speed', ['--size', '16'], 'the backbone needs at least 32 px a side'),
    ],
)
def test_a_mistake_is_one_line(tool, name, words, message):
    if words[0] == '--device' and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    code, _, err = tool(name, *SMALL, *words)
    assert code in (1, 2) and message in err and 'Traceback' not in err


def test_what_is_not_installed_is_left_out_or_refused(tool, tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'timm' else find(name))
    words = ['--forward-only', '--no-memory', '--memory-format', 'contiguous']
    code, out, _ = tool('backbone_speed', *SMALL, *words)
    assert code == 0 and '* not run: timm: it is not installed' in out and '| timm |' not in out
    code, _, err = tool('backbone_speed', *SMALL, '--libraries', 'timm')
    assert code == 1 and 'error: --libraries: timm is not installed' in err
    code, _, err = tool('encoder_speed', *SMALL, '--layouts', 'visible', 'timm')
    assert code == 1 and 'error: --layouts: timm: it is not installed' in err


# ---- class folders, input speed, collapse and features


@pytest.fixture
def photos(tmp_path):
    """A folder of eight birds, a dog and four buildings, named as ImageNet's classes."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    names = [f'n0151467{i}_cock{i}' for i in range(8)] + ['n02085620_x'] + [f'n0300000{i}_barn' for i in range(4)]
    for name in names:
        Image.new('RGB', (40, 30)).save(folder / f'{name}.jpg')
    return folder


def pictures_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if not path.is_dir()}


def test_class_folders_hold_what_the_last_call_says(tool, photos, tmp_path):
    out = tmp_path / 'classes'
    code, printed, _ = tool('class_folders', 'photos', photos, '--out', out, '--most', 3)
    assert code == 0 and '7 pictures' in printed and '3 bird, 1 dog, 3 place' in printed and len(pictures_in(out)) == 7
    (photos / 'n02085620_x.jpg').unlink()
    code, printed, _ = tool('class_folders', 'photos', photos, '--out', out, '--most', 2)
    assert code == 0 and '4 pictures' in printed and len(pictures_in(out)) == 4
    assert {path.name for path in out.iterdir()} == {'bird', 'place'}
    assert all((out / name).is_symlink() and (out / name).is_file() for name in pictures_in(out))
    (out / 'bird' / 'mine.jpg').write_bytes(b'')
    (out / 'elsewhere.jpg').symlink_to(photos / 'n01514670_cock0.jpg')
    code, _, err = tool('class_folders', 'photos', photos, '--out', out, '--most', 1)
    assert code == 1 and 'holds 2 files that this call does not make' in err and 'Traceback' not in err
    assert len(pictures_in(out)) == 6  # nothing has been taken away


def test_objects_of_other_scenes_are_refused(tool, tmp_path):
    demo, out = tmp_path / 'demo', tmp_path / 'objects'
    for split in ('train', 'val'):
        (demo / 'coco' / split).mkdir(parents=True)
        Image.new('RGB', (40, 30)).save(demo / 'coco' / split / '1.jpg')
        (demo / 'coco/annotations').mkdir(exist_ok=True)
        content = dict(
            images=[dict(id=1, file_name='1.jpg')],
            categories=[dict(id=1, name='star')],
            annotations=[dict(id=number, image_id=1, category_id=1, bbox=[2, 2, 9, 9]) for number in (1, 2)],
        )
        (demo / f'coco/annotations/instances_{split}.json').write_text(json.dumps(content))
    for _ in range(2):
        code, printed, _ = tool('class_folders', 'scenes', demo, '--out', out)
        assert code == 0 and '4 pictures' in printed and len(pictures_in(out)) == 4
    content['annotations'].pop()
    (demo / 'coco/annotations/instances_val.json').write_text(json.dumps(content))
    code, _, err = tool('class_folders', 'scenes', demo, '--out', out)
    assert code == 1 and 'holds 1 files that this call does not make' in err


@pytest.mark.parametrize(
    ('name', 'words', 'message'),
    [
        ('class_folders', ['photos', 'nope', '--out', 'x'], 'No such file or directory: nope'),
        ('class_folders', ['photos', '.', '--out', 'x'], 'holds no .jpg or .png'),
        ('class_folders', ['photos', 'photos', '--out', 'x', '--most', '0'], '--most 0'),
        ('class_folders', ['scenes', 'nope', '--out', 'x'], 'instances_train.json'),
        ('input_speed', ['nope'], 'No such file or directory'),
        ('collapse_experiment', ['nope', '--work-dir', 'x'], "'nope' does not exist"),
        ('feature_quality', ['nope.py', '--train', 'photos', '--init', 'random'], 'nope.py'),
        ('feature_quality', ['x.py', '--train', 'photos', '--init', 'a=b.pth', '--seeds', '2'], '--init a=b.pth: give'),
    ],
)
def test_a_path_that_is_not_there_is_one_line(tool, photos, tmp_path, monkeypatch, name, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = tool(name, *words)
    lines = [line for line in err.splitlines() if line.startswith('error: ')]
    assert code == 1 and len(lines) == 1 and message in lines[0] and 'Traceback' not in err, err


def test_figures_of_a_checkpoint_that_was_trained_again_are_measured_again(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(write_config())
    write_class_folders('train', num=6)
    start = ['--init', 'a=checkpoint.pth', '--seeds', '1', '--layers', 'stages.1.0']
    words = ['config.py', '--train', 'train', '--k', '3', *start, '--out', 'result.md']

    def top1() -> float:
        code, _, err = tool('feature_quality', *words)
        assert code == 0, err
        [figures] = json.loads(Path('result.json').read_text())['figures']
        return figures['per cent']['kNN top-1'][0]

    assert top1() <= 100
    stored = json.loads(Path('result.json').read_text())
    stored['figures'][0]['per cent']['kNN top-1'] = [123.0]
    Path('result.json').write_text(json.dumps(stored))
    assert top1() == 123.0  # nothing has changed: not measured again
    weights = torch.load('checkpoint.pth', weights_only=False)
    torch.save({**weights, 'note': 'another run'}, 'checkpoint.pth')
    assert top1() <= 100


def test_lists_that_parallel_runs_read_are_never_cut(photos, tmp_path, monkeypatch):
    module = runpy.run_path(str(ROOT / 'tools/benchmark/collapse_experiment.py'))
    (tmp_path / 'classes/bird').mkdir(parents=True)
    for path in photos.iterdir():
        path.rename(tmp_path / 'classes/bird' / path.name)
    lists = module['write_lists'](tmp_path / 'classes', tmp_path / 'run')
    before = Path(lists['train']).read_bytes()
    monkeypatch.setattr(os, 'replace', lambda *_: 1 / 0)  # whoever is interrupted leaves what others read
    with pytest.raises(ZeroDivisionError):
        module['write_lists'](tmp_path / 'classes', tmp_path / 'run')
    assert Path(lists['train']).read_bytes() == before and lists['num_train'] == 11
