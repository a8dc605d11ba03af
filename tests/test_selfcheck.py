"""tools/selfcheck.py: lines, JSON, curve and exit codes."""

import json
from pathlib import Path

import pytest
from micro_pretraining import CONFIG, write_config, write_pictures
from PIL import Image

from mmcnx2.engine import run_config


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = CONFIG.replace('max_epochs=2', 'max_epochs=200').replace('decoder_channels=16', 'decoder_channels=128')
    write_config(text.replace('[4, 8, 12, 16]', '[8, 16, 32, 64]'))
    write_pictures(num=12)
    return tmp_path


def test_a_line_per_answer_and_exit_code_0(folder, call):
    code, out, err = call('selfcheck', 'config.py', '--steps', '40', '--curve', 'curve.png')
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith(('ok ', 'warning ', 'FAIL '))]
    assert len(lines) == 10 and lines[4].startswith('ok      mask leak: ')
    with Image.open('curve.png') as image:
        image.load()
    assert sorted(path.name for path in folder.iterdir()) == ['config.py', 'curve.png', 'pictures']  # nothing else


def test_a_failure_is_exit_code_1_and_json_is_json(folder, call, monkeypatch):
    load = run_config.load_config
    monkeypatch.setattr(run_config, 'load_config', lambda args: print('as libraries print') or load(args))
    options = ['--cfg-options', 'optim_wrapper.optimizer.lr=1000', 'model.mask_ratio=0.25', '--json', '--steps', '40']
    code, out, err = call('selfcheck', 'config.py', *options, '--gpus', '2')
    assert code == 1 and 'as libraries print' in err, err
    found = {one['check']: one for one in json.loads(out)}
    assert found['learning rate']['verdict'] == 'FAIL' and 'lr=1e+02' in found['learning rate']['remedy']
    assert found['cells']['numbers'] == {'cells': 4, 'visible': 3}
    assert found['schedule']['numbers']['images_per_step'] == 4
    assert len(found['overfitting one batch']['numbers']['losses']) == 41


def test_mistakes_are_one_line(folder, call):
    Path('classifier.py').write_text(
        "default_scope = 'mmpretrain'\nmodel = dict(type='mmcnx2.ConvNeXtV2', arch='atto')"
    )
    for options, words in (
        (['nothing.py'], "Config 'nothing.py' does not exist"),
        (['config.py', '--steps', '0'], '--steps'),
        (['classifier.py'], 'not an FCMAE'),
    ):
        code, _, err = call('selfcheck', *options)
        lines = [line for line in err.splitlines() if line.startswith('error: ')]
        assert code == 1 and len(lines) == 1 and words in lines[0], err
