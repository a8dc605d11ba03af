"""tools/ablate.py: what it lists, the commands it prints, and a sweep that is cut off and goes on."""

import json
import re
import shlex

import pytest
import torch
from mmengine.config import Config

import mmcnx2
from mmcnx2.analysis import ablation_runs
from mmcnx2.analysis.ablations import TABLES
from mmcnx2.engine.config_options import read_options


@pytest.fixture
def faked(monkeypatch):
    """Runs that cost nothing: top-1 by row and seed, and the list of what was run."""
    ran = []

    def run_row(table, row, scale, data, seed, folder):
        ran.append((row.name, seed))
        return dict(top1=50.0 + seed + 3 * (row.name == 'GRN') - 2 * (row.name == 'SE'), loss=0.5)

    nothing = ablation_runs.SmallData(*[torch.zeros(1)] * 6)
    monkeypatch.setattr(ablation_runs, 'run_row', run_row)
    monkeypatch.setattr(ablation_runs, 'draw_data', lambda scale: nothing)
    return ran


def test_list_names_every_row_with_its_number_and_options(call):
    code, out, _ = call('ablate', '--list')
    assert code == 0
    for name, table in TABLES.items():
        assert f'{name}: {table.title}; configs/{table.pretraining}' in out
    assert '  LRN  [83.2]  model.backbone.response_norm.name=lrn model.neck.response_norm.name=lrn' in out
    assert '  0.1  model.mask_ratio=0.1' in out


def test_commands_can_be_typed(call):
    """Configs exist, and options, read as tools/train.py reads them, give the row's settings."""
    code, out, _ = call('ablate', '--commands', *TABLES)
    lines = [shlex.split(line) for line in out.splitlines() if not line.startswith('#')]
    assert code == 0 and len(lines) == 2 * sum(len(table.rows) for table in TABLES.values())
    rows = [row for table in TABLES.values() for row in table.rows]
    for i, words in enumerate(lines):
        assert words[:2] == ['python', 'tools/train.py'] and '--work-dir' in words
        assert (mmcnx2.configs_dir().parent / words[2]).is_file()
        given = words[words.index('--cfg-options') + 1 :] if '--cfg-options' in words else []
        wanted = rows[i // 2].fine_tuning_options if i % 2 else dict(rows[i // 2].options)
        read = read_options(given)
        checkpoint = read.pop('model.backbone.init_cfg.checkpoint', None)
        assert read == wanted and (checkpoint is not None) == bool(i % 2)
        cfg = Config.fromfile(mmcnx2.configs_dir().parent / words[2])
        cfg.merge_from_dict(dict(wanted))


def test_a_sweep_goes_on_where_it_was_cut_off(call, faked, tmp_path):
    words = ['ablate', 'norm-layers', 'reweighting', '--seeds', 2, '--work-dir', tmp_path]
    code, out, _ = call(*words, '--max-seconds', -1)
    assert code == 0 and faked == [] and '14 runs are left' in out  # 7 rows, two of the 9 being alike
    assert '| LRN | 83.2 | - | - | not run |' in (tmp_path / 'results.md').read_text()
    code, out, _ = call(*words)
    assert code == 0 and len(faked) == len(set(faked)) == 14 and 'are left' not in out
    text = (tmp_path / 'results.md').read_text()
    assert '| SE | 84.4 | 48.5 ± 0.7 | 0.5000 ± 0.0000 | worse; the paper: the reverse |' in text
    assert '| GRN | 84.6 | 53.5 ± 0.7 | 0.5000 ± 0.0000 | better, as in the paper |' in text
    assert '| LN | 83.8 | 50.5 ± 0.7 | 0.5000 ± 0.0000 | no conclusion |' in text
    assert 'python tools/ablate.py' in text and re.search(r'torch \d+\.\d+', text) and 'epochs 8' in text
    call(*words)
    assert len(faked) == 14
    call(*words, '--epochs', 9)
    assert len(faked) == 28
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['scale']['epochs'] == 9
    assert results['tables']['reweighting'][1] == dict(
        name='SE', published=84.4, top1=[48.0, 49.0], loss=[0.5, 0.5], seconds=[0.0, 0.0]
    )


def test_only_seeds_that_every_row_has_are_compared(call, faked, tmp_path):
    words = ['ablate', 'reweighting', '--work-dir', tmp_path]
    call(*words, '--seeds', 2)
    kept = [
        path for path in (tmp_path / 'runs').glob('*.json') if json.loads(path.read_text())['settings']['seed'] == 1
    ]
    kept[0].unlink()
    call(*words, '--seeds', 2, '--max-seconds', -1)
    results = json.loads((tmp_path / 'results.json').read_text())
    assert {len(row['top1']) for row in results['tables']['reweighting']} == {1}


def test_pictures_are_kept(call, monkeypatch, tmp_path):
    drawn = []

    def draw_data(scale):
        drawn.append(scale)
        return ablation_runs.SmallData(*[torch.full((2,), float(scale.epochs))] * 6)

    seen = []
    monkeypatch.setattr(ablation_runs, 'draw_data', draw_data)
    monkeypatch.setattr(ablation_runs, 'run_row', lambda *args: seen.append(args[3].train) or dict(top1=1.0, loss=1.0))
    for seeds in (1, 2):
        call('ablate', 'grn-aggregation', '--seeds', seeds, '--epochs', 3, '--work-dir', tmp_path)
    assert len(drawn) == 1 and len(seen) == 6 and all(each.tolist() == [3, 3] for each in seen)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], 'name at least one table: decoder-type'),
        (['grn'], "no ablation table 'grn'"),
        (['reweighting', '--seeds', 0], '--seeds 0'),
        (['mask-ratio'], 'hides all of the 9 cells of a 96 px crop; give --crop-size 128'),
        (['reweighting', '--crop-size', 160], '--crop-size 160 --scene-size 128'),
        (['reweighting', '--crop-size', 80], 'multiple of 32'),
    ],
)
def test_mistakes(call, tmp_path, words, message):
    code, _, err = call('ablate', *words, '--work-dir', tmp_path / 'none')
    assert code == 1 and message in err and err.startswith('error: ') and not (tmp_path / 'none').exists()
