"""The lists made from the config files: written, complete, readable by the tools of OpenMMLab, and honest."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from modelindex.load_model_index import load

import mmcnx2
from mmcnx2.analysis.model_cost import model_cost
from mmcnx2.engine.config_index import config_names, index_entry, index_files, readme_tables

ROOT = Path(__file__).parents[2]
BASE = 'coco/mask-rcnn_convnextv2-base_fpn_8xb4-amp-lsj-3x-fcmae_coco.py'
DEMO = 'demo/upernet_convnextv2-atto_demo.py'
SWIN = 'ade20k/upernet_swin-base_8xb2-amp-160k-simmim_ade20k-512x512.py'


@pytest.fixture
def models() -> dict[str, dict]:
    """Every model of the metafiles as written in the checkout, by its name."""
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    found = [model for path in index['Import'] for model in yaml.safe_load((ROOT / path).read_text())['Models']]
    assert len({model['Name'] for model in found}) == len(found)
    return {model['Name']: model for model in found}


def test_the_lists_are_what_the_configs_say():
    for name, text in index_files().items():
        assert (ROOT / name).read_text() == text, f'{name}: run python tools/write_config_index.py'
    assert {f'configs/{name.split("/")[0]}/metafile.yml' for name in config_names()} == {
        path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/*/metafile.yml')
    }


def test_an_entry_says_what_the_config_says():
    entry = index_entry(BASE)
    assert (entry.folder, entry.method, entry.backbone, entry.data_set) == ('coco', 'Mask R-CNN', 'convnextv2', 'COCO')
    assert (entry.images_per_step, entry.max_epochs, entry.length) == (32, 36, '36 epochs')
    assert index_entry(DEMO).length == '900 steps' and index_entry(DEMO).images_per_step == 8
    assert (index_entry(SWIN).backbone, index_entry(SWIN).data_set) == ('swin', 'ADE20K')
    probe = index_entry('imagenet/linear-probe_convnextv2-atto_8xb2048-amp-90e-fcmae_in1k.py')
    assert (probe.method, probe.data_set, probe.images_per_step) == ('Linear probe', 'ImageNet-1k', 16384)
    small = index_entry('imagenet/convnextv2-nano_8xb64-amp-90e-in22k_in1k-384px.py')
    assert (small.method, small.backbone, small.data_set) == ('Classification', 'convnextv2', 'ImageNet-1k')


@pytest.mark.parametrize('name', [DEMO, SWIN, 'demo/mask-rcnn_convnextv2-atto_demo.py'])
def test_what_only_training_uses_does_not_change_the_cost(name):
    assert index_entry(name).cost == model_cost(Config.fromfile(mmcnx2.configs_dir() / name))


def test_tables_have_a_row_per_config():
    entries = [index_entry(name) for name in (BASE, DEMO)]
    tables = readme_tables(entries)
    assert re.findall(r'^### .*\((\d+) configs\)$', tables, re.MULTILINE) == ['1', '1']
    row = next(line for line in tables.splitlines() if line.startswith('| [mask'))
    assert row.startswith(f'| [{Path(BASE).stem}]({BASE}) | 32 | 36 epochs | 108.1M | 485 | box AP 52.9, mask AP 46.6')


def test_metafiles_name_files_and_published_figures_but_no_weights(models):
    assert {model['Config'] for model in models.values()} == {f'configs/{name}' for name in config_names()}
    for name, model in models.items():
        assert Path(model['Config']).stem == name and (ROOT / model['README']).is_file()
        assert not {'Weights', 'Results'} & set(model), f'{name}: nobody has trained it for release'
        card = index_entry(model['Config'].removeprefix('configs/')).card
        stated = {key: value for key, value in model['Metadata'].items() if key.startswith('Published ')}
        assert stated == {f'Published {figure}': value for figure, value in card.published.items()}
        assert model['Expect'] == card.expect
    assert models[Path(BASE).stem]['Metadata'] == {
        'Training Data': 'COCO', 'Epochs': 36, 'Batch Size': 32, 'Input Size': '800x1280', 'FLOPs': 485314032640,
        'Parameters': 108091376, 'Published box AP': 52.9, 'Published mask AP': 46.6,
    }  # fmt: skip


def test_the_library_behind_mim_reads_the_index(models):
    """mim itself is not installed; it takes names, collections and metadata from this library."""
    index = load(str(ROOT / 'model-index.yml'))
    assert {model.name for model in index.models} == set(models)
    collections = {collection.name for collection in index.collections}
    assert {model.in_collection for model in index.models} == collections
    assert 'Demo' in collections and {model.results for model in index.models} == {None}


# ---- the tool


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout with two configs, in which the tool runs."""
    for folder in ('_base_', 'demo'):
        shutil.copytree(ROOT / 'configs' / folder, tmp_path / 'configs' / folder)
    for path in (tmp_path / 'configs' / 'demo').iterdir():
        if path.name not in (Path(DEMO).name, 'fcmae_convnextv2-atto_demo.py'):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copy(ROOT / 'configs' / 'README.md', tmp_path / 'configs')
    (tmp_path / 'setup.py').touch()
    monkeypatch.setattr(mmcnx2, 'configs_dir', lambda: tmp_path / 'configs')
    index_entry.cache_clear()
    yield tmp_path
    index_entry.cache_clear()


@pytest.fixture
def tool(monkeypatch, capsys):
    def call(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', ['write_config_index.py', *words])
        code = 0
        try:
            runpy.run_path(str(ROOT / 'tools' / 'write_config_index.py'), run_name='__main__')
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


def test_the_tool_says_what_is_stale_and_writes_it(tool, checkout):
    code, _, err = tool('--check')
    assert code == 1 and 'configs/README.md, configs/demo/metafile.yml, model-index.yml: not what' in err
    assert not (checkout / 'model-index.yml').exists()
    before = (checkout / 'configs' / 'README.md').read_text().split('<!-- tables')[0]
    code, out, _ = tool()
    assert code == 0 and 'wrote configs/README.md, configs/demo/metafile.yml, model-index.yml' in out
    readme = (checkout / 'configs' / 'README.md').read_text()
    assert readme.startswith(before) and readme.endswith('<!-- end of tables -->\n') and '(2 configs)' in readme
    assert not list(checkout.rglob('.*'))
    assert tool('--check')[:2] == (0, 'all lists agree with the configs\n')
    (checkout / 'configs' / 'demo' / 'metafile.yml').write_text('Models: []\n')
    code, _, err = tool('--check')
    assert code == 1 and err.startswith('error: configs/demo/metafile.yml: not what')


def test_mistakes_are_one_line(tool, checkout):
    (checkout / 'configs' / 'old').mkdir()
    (checkout / 'configs' / 'old' / 'metafile.yml').touch()
    assert 'old/metafile.yml lists a folder without configs' in tool('--check')[2]
    (checkout / 'configs' / 'old' / 'metafile.yml').unlink()
    broken = checkout / 'configs' / 'old' / 'broken.py'
    broken.write_text('model = dict(size=size)\n')
    assert "old/broken.py: name 'size' is not defined" in tool()[2]
    broken.unlink()
    (checkout / 'configs' / 'README.md').write_text('# Configs\n')
    assert 'configs/README.md has no lines' in tool()[2]
    (checkout / 'setup.py').unlink()
    code, _, err = tool()
    assert code == 1 and 'is an installed copy' in err
