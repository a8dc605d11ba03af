"""tools/analyze_collapse.py: several runs on the same pictures, its files, and mistakes."""

import json
from pathlib import Path

import pytest
from micro_pretraining import CONFIG, write_checkpoint, write_config, write_pictures
from PIL import Image

from mmcnx2.analysis.collapse_report import measure_collapse
from mmcnx2.analysis.pictures import load_pictures
from mmcnx2.analysis.trained_models import load_trained_backbone


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(write_config())
    v1 = CONFIG.replace('arch=dict', 'use_grn=False, layer_scale_init_value=1e-6, arch=dict')
    write_checkpoint(write_config(v1, 'v1.py'), 'v1.pth')
    write_pictures(num=3)
    return tmp_path


def test_runs_are_measured_on_the_same_pictures(folder, call):
    runs = ['--run', 'V2', 'config.py', 'checkpoint.pth', '--run', 'V1 small', 'v1.py', 'v1.pth']
    code, out, err = call(
        'analyze_collapse', 'pictures', *runs, '--run', 'fresh', 'config.py', 'random', '--batch-size', '2'
    )
    assert code == 0, err
    assert '3 pictures' in out and 'V1 small, stages.0.0.gelu' in out
    content = json.loads(Path('collapse/collapse.json').read_text())
    assert list(content['layers']) == ['V2', 'V1 small', 'fresh']
    assert len(content['layers']['V2']) == 2 * len(content['layers']['V1 small']) == 10  # V1 has no GRN
    cfg = write_config()
    backbone = load_trained_backbone(cfg, 'checkpoint.pth')
    paths = [Path('pictures', name) for name in ('0.png', '1.png', 'deeper/2.png')]
    expected = measure_collapse(backbone.model, [backbone.images(load_pictures(cfg, paths, (64, 64)))])
    for layer, one in expected.items():
        assert content['layers']['V2'][layer]['distance'] == pytest.approx(one.distance, rel=1e-4, abs=1e-6)
        assert content['layers']['V2'][layer]['num_images'] == 3
    assert content['runs']['V2'][2] == backbone.digest
    names = {path.name for path in Path('collapse').iterdir()}
    assert names == {
        'collapse.json', 'collapse.png', 'maps_V2_stages.2.0.gelu.png', 'maps_V2_stages.2.0.grn.png',
        'maps_V1-small_stages.2.0.gelu.png', 'maps_fresh_stages.2.0.gelu.png', 'maps_fresh_stages.2.0.grn.png',
    }  # fmt: skip
    for path in Path('collapse').glob('*.png'):
        with Image.open(path) as image:
            image.load()


def test_options_act(folder, call):
    base = ['pictures', '--run', 'V2', 'config.py', 'checkpoint.pth', '--maps']
    code, _, err = call('analyze_collapse', *base, '--layers', 'stages.1.0', 'output', '--num', '2', '--out-dir', 'a')
    assert code == 0, err
    layers = json.loads(Path('a/collapse.json').read_text())['layers']['V2']
    assert list(layers) == ['stages.1.0', 'output'] and layers['output']['num_images'] == 2
    assert layers['stages.1.0']['max_rank'] == 8 and not list(Path('a').glob('maps*'))
    call('analyze_collapse', *base, '--layers', 'stages.1.0', '--size', '32', '--out-dir', 'b', '--channels', 'first')
    assert json.loads(Path('b/collapse.json').read_text())['layers']['V2']['stages.1.0']['num_channels'] == 4  # rows


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['pictures', '--run', 'a', 'config.py', 'random', '--run', 'a', 'config.py', 'random'], 'a name of its own'),
        (['pictures', '--run', 'a', 'config.py', 'v1.pth'], 'different parts'),
        (['pictures', '--run', 'a', 'nothing.py', 'random'], 'nothing.py'),
        (['pictures', '--run', 'a', 'config.py', 'random', '--layers', 'stages.8'], "no layer 'stages.8'"),
        (['pictures', '--run', 'a', 'v1.py', 'random', '--layers', 'stages.0.0.grn'], 'has no GRN'),
        (['nowhere', '--run', 'a', 'config.py', 'random'], 'nowhere is neither'),
    ],
)
def test_mistakes_are_one_line(folder, call, options, words):
    code, _, err = call('analyze_collapse', *options)
    lines = [line for line in err.splitlines() if line.startswith('error: ')]
    assert code == 1 and len(lines) == 1 and words in lines[0], err
