"""tools/knn_eval.py and tools/linear_probe.py on coloured squares: the figures, the protocol, and mistakes."""

import json
from pathlib import Path

import pytest
from micro_pretraining import COLOURS, write_checkpoint, write_class_folders, write_config


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(write_config())
    write_class_folders('train', num=8)
    write_class_folders('val', num=3)
    return tmp_path


@pytest.mark.parametrize('tool', ['knn_eval', 'linear_probe'])
@pytest.mark.parametrize('weights', [['checkpoint.pth'], ['--init', 'random', '--seed', '3']])
def test_colours_are_told_apart(folder, call, tool, weights):
    """Even weights that were never trained keep colours apart; what counts is that pictures, labels and folds fit."""
    options = ['--train', 'train', '--workers', '0', '--cache', 'cache']
    if tool == 'knn_eval':
        options += ['--k', '1', '3']
    code, out, err = call(tool, 'config.py', *weights, *options, '--out', 'cv.json')
    assert code == 0, err
    result = json.loads(Path('cv.json').read_text())
    assert result['classes'] == dict.fromkeys(sorted(COLOURS), 8)
    assert result['most_frequent'] == pytest.approx(1 / 3)
    assert '5 folds' in out and 'scores 33.3' in out
    figures = result['results']['3'] if tool == 'knn_eval' else result['results']
    assert figures['top1'] > 0.95
    code, out, _ = call(tool, 'config.py', *weights, *options, '--val', 'val', '--out', 'val.json')
    result = json.loads(Path('val.json').read_text())
    assert code == 0 and sum(result['classes'].values()) == 9 and 'tested on 9 of val' in out
    figures = result['results']['1'] if tool == 'knn_eval' else result['results']
    assert figures['top1'] > 0.95 and 100 * figures['top1'] == pytest.approx(
        float(out.splitlines()[2].split()[-2 if tool == 'knn_eval' else 2]), abs=0.01
    )


def test_labels_decide(folder, call):
    """With the labels of the validation pictures exchanged nothing is right."""
    for name in COLOURS:
        Path('val', name).rename(Path('val', f'{name}_'))
    for name, other in zip(COLOURS, [*list(COLOURS)[1:], 'red'], strict=True):
        Path('val', f'{name}_').rename(Path('val', other))
    for tool in ('knn_eval', 'linear_probe'):
        code, _, err = call(
            tool, 'config.py', 'checkpoint.pth', '--train', 'train', '--val', 'val', '--out', 'x.json', '--workers', '0'
        )
        assert code == 0, err
        result = json.loads(Path('x.json').read_text())['results']
        assert result.get('10', result)['top1'] < 0.05


def test_the_two_tools_share_their_features(folder, call):
    options = ['--train', 'train', '--workers', '0', '--cache', 'cache']
    call('knn_eval', 'config.py', 'checkpoint.pth', *options, '--k', '5')
    before = {path: path.stat().st_mtime_ns for path in Path('cache').iterdir()}
    assert len(before) == 2
    call('linear_probe', 'config.py', 'checkpoint.pth', *options)
    assert {path: path.stat().st_mtime_ns for path in Path('cache').iterdir()} == before
    call('knn_eval', 'config.py', 'checkpoint.pth', *options, '--k', '5', '--layer', 'stages.1.0')
    assert len(list(Path('cache').iterdir())) == 4
    call('knn_eval', 'config.py', 'checkpoint.pth', '--train', 'val', '--k', '2', '--workers', '0', '--cache', '')
    assert len(list(Path('cache').iterdir())) == 4


@pytest.mark.parametrize(
    ('tool', 'options', 'words'),
    [
        ('knn_eval', [], 'either a checkpoint or --init random'),
        ('knn_eval', ['checkpoint.pth', '--init', 'random'], 'either a checkpoint or --init random'),
        ('knn_eval', ['checkpoint.pth', '--k', '20'], 'between 1 and 19'),
        ('knn_eval', ['checkpoint.pth', '--k', '0', '5'], 'between 1 and 19'),
        ('knn_eval', ['checkpoint.pth', '--folds', '100'], '--folds 100: there are 24 pictures'),
        ('knn_eval', ['checkpoint.pth', '--temperature', '0', '--k', '5'], 'temperature=0'),
        ('knn_eval', ['checkpoint.pth', '--k', '5', '--layer', 'stages.7'], "no layer 'stages.7'"),
        ('knn_eval', ['checkpoint.pth', '--val', 'other'], '1 classes that the training pictures do not have (violet)'),
        ('linear_probe', ['checkpoint.pth', '--penalty', '0'], '--penalty'),
        ('linear_probe', ['nothing.pth'], 'nothing.pth does not exist'),
        ('linear_probe', ['checkpoint.pth', '--train', 'one'], 'one class, red'),
    ],
)
def test_mistakes_are_one_line(folder, call, tool, options, words):
    Path('other').mkdir()
    Path('train/red').rename('other/violet') if 'other' in options else None
    Path('one').mkdir()
    Path('val/red').rename('one/red')
    code, _, err = call(
        tool, 'config.py', *options, *([] if '--train' in options else ['--train', 'train']), '--workers', '0'
    )
    lines = [line for line in err.splitlines() if line.startswith('error: ')]
    assert code == 1 and len(lines) == 1 and words in lines[0], err
    if words.startswith(('between', '--folds')):  # what can be known before features are computed
        assert not Path('work_dirs/features').exists()
