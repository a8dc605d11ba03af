"""Looks at a model in training: when, at what, that nothing of the training changes, and that nothing stops it."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from micro_pretraining import CONFIG, write_config, write_pictures
from mmengine.runner import Runner
from PIL import Image

from mmcnx2.analysis.collapse_report import measure_collapse
from mmcnx2.analysis.pictures import load_pictures
from mmcnx2.analysis.run_log import read_run
from mmcnx2.analysis.trained_models import load_trained_backbone
from mmcnx2.engine import CollapseHook, ReconstructionHook

HOOKS = """
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', interval=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    reconstruction=dict(type='mmcnx2.ReconstructionHook', num_images=3{reconstruction}),
    collapse=dict(type='mmcnx2.CollapseHook', num_images=3{collapse}))
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
custom_imports = dict(imports=['mmcnx2'])
randomness = dict(seed=0)
log_processor = dict(window_size=1)
"""


@pytest.fixture
def train(tmp_path, monkeypatch, forget_runs):
    monkeypatch.chdir(tmp_path)
    write_pictures(num=6)

    def train(work_dir, reconstruction=', interval=1', collapse=', interval=1', text=CONFIG, **changes):
        forget_runs()
        cfg = write_config(text + HOOKS.format(reconstruction=reconstruction, collapse=collapse))
        cfg.work_dir = work_dir
        cfg.merge_from_dict(changes)
        runner = Runner.from_cfg(cfg)
        runner.train()
        runner.visualizer.close()
        return runner

    return train


def events_of(work_dir) -> dict:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = Path(work_dir).glob('*/vis_data/events*')
    events = EventAccumulator(str(path), size_guidance=dict(images=0, scalars=0))
    events.Reload()
    tags = events.Tags()
    return dict(
        images={tag: [one.step for one in events.Images(tag)] for tag in tags['images']},
        scalars={tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags['scalars']},
    )


def test_sheets_and_distances_of_every_epoch(train):
    runner = train('run')
    folder = Path('run')
    assert sorted(path.name for path in (folder / 'reconstructions').iterdir()) == ['epoch_1.png', 'epoch_2.png']
    assert sorted(path.name for path in (folder / 'collapse').iterdir()) == ['epoch_1.json', 'epoch_2.json']
    events = events_of('run')
    assert events['images'] == {'reconstruction': [1, 2]}
    assert not list(folder.glob('*/vis_data/vis_image'))  # the sheet is not stored a second time
    # the numbers are those of the checkpoint of that epoch, on pictures spread over the training set
    written = json.loads((folder / 'collapse/epoch_2.json').read_text())
    cfg = runner.cfg
    backbone = load_trained_backbone(cfg, 'run/epoch_2.pth')
    looked_at = ['pictures/1.png', 'pictures/4.png', 'pictures/deeper/5.png']  # 1, 3 and 5 of six, by name
    images = backbone.images(load_pictures(cfg, looked_at, (64, 64)))
    expected = measure_collapse(backbone.model, [images])
    assert list(written) == list(expected)
    log = read_run('run')
    for name, one in expected.items():
        assert written[name]['distance'] == pytest.approx(one.distance, rel=1e-3, abs=1e-7)
        curve = log.val[f'collapse/distance/{name}']
        assert curve.steps == (1, 2) and curve.values[1] == pytest.approx(written[name]['distance'])
        logged = events['scalars'][f'collapse/effective_rank/{name}']
        assert logged[1] == (2, pytest.approx(written[name]['effective_rank'], rel=1e-5))
    text = next(folder.glob('*/*.log')).read_text()
    assert 'Channels before GRN, 5 layers: distance' in text and 'Channels after GRN' in text
    assert 'reconstructions/epoch_2.png' in text and 'at mask ratio 0.5' in text
    assert log.val['reconstruction/error_0.5'].steps == (1, 2)


def test_every_sheet_has_the_same_pictures_and_masks(train):
    """Two epochs of a model that learns nothing give the same file, although its blocks drop out in training."""
    train(
        'run',
        ', interval=1, fills="own", seed=4',
        text=CONFIG.replace('arch=dict(', 'drop_path_rate=0.5, arch=dict('),
        **{'optim_wrapper.optimizer.lr': 0.0, 'optim_wrapper.optimizer.weight_decay': 0.0},
    )
    sheets = [np.asarray(Image.open(f'run/reconstructions/epoch_{epoch}.png')) for epoch in (1, 2)]
    assert np.array_equal(*sheets)


def test_training_is_the_same_with_and_without(train):
    """After a look between two steps training goes on as before, with its own random numbers (dropped blocks)."""
    options = ', interval=1, by_epoch=False'
    text = CONFIG.replace('arch=dict(', 'drop_path_rate=0.5, arch=dict(')
    with_hooks = train('with', options, options, text).model.state_dict()
    without = train('without', ', interval=0', ', interval=0', text).model.state_dict()
    assert len(list(Path('with/reconstructions').iterdir())) == len(list(Path('with/collapse').iterdir())) == 6
    assert not Path('without/reconstructions').exists() and not Path('without/collapse').exists()
    assert all(torch.equal(with_hooks[name], without[name]) for name in without)
    losses = [read_run(name).train['loss'] for name in ('with', 'without')]
    assert losses[0] == losses[1] and len(losses[0].steps) == 6


def test_own_pictures_ratios_and_iterations(train):
    write_pictures('others', num=2, height=96, width=128)
    options = ', interval=4, by_epoch=False, images="others", mask_ratios=[0.3, 0.7]'
    train('run', options, ', interval=4, by_epoch=False, images="others/0.png", layers=["stages.0.0"]')
    assert [path.name for path in Path('run/reconstructions').iterdir()] == ['iter_4.png']
    written = json.loads(Path('run/collapse/iter_4.json').read_text())
    assert list(written) == ['stages.0.0'] and written['stages.0.0']['num_images'] == 1
    assert {'reconstruction/error_0.3', 'reconstruction/error_0.7'} < set(read_run('run').val)


@pytest.mark.parametrize(
    ('reconstruction', 'collapse', 'words'),
    [
        (', interval=1, images="nowhere"', ', interval=0', 'nowhere is neither'),
        (', interval=1, mask_ratios=[1.0]', ', interval=0', 'mask_ratio=1.0'),
        (', interval=0', ', interval=1, layers=["stages.9"]', "no layer 'stages.9'"),
    ],
)
def test_what_cannot_be_looked_at_stops_no_training(train, reconstruction, collapse, words):
    runner = train('run', reconstruction, collapse)
    assert runner.epoch == 2 and runner.model.training
    text = next(Path('run').glob('*/*.log')).read_text()
    assert text.count('looks no more') == 1 and words in text and 'interval=0' in text


def test_a_full_disk_stops_no_training(train, monkeypatch):
    from mmcnx2.analysis.reconstruction_sheet import ReconstructionSheet

    tries = []

    def full(self, path):
        tries.append(path)
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(ReconstructionSheet, 'draw', full)
    assert train('run').epoch == 2
    assert 'No space left' in next(Path('run').glob('*/*.log')).read_text()
    assert len(tries) == 1 and len(list(Path('run/collapse').iterdir())) == 2  # the other hook goes on


def test_too_little_memory_stops_no_training(train, monkeypatch):
    from mmcnx2.analysis import reconstruction_sheet

    def fails(*args):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')

    emptied = []
    monkeypatch.setattr(reconstruction_sheet, 'reconstruction_sheet', fails)
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: emptied.append(1))
    runner = train('run', ', interval=1', ', interval=0')
    assert runner.epoch == 2 and runner.model.training
    text = next(Path('run').glob('*/*.log')).read_text()
    assert text.count('looks no more: CUDA out of memory') == 1 and 'a smaller num_images' in text
    assert len(emptied) == 1


def test_bad_files_are_passed_over(train):
    Path('pictures/1.png').write_text('broken')
    text = CONFIG.replace("source='pictures',", "source='pictures', max_bad_share=0.5,")
    train('run', collapse=', interval=1', text=text)
    assert json.loads(Path('run/collapse/epoch_1.json').read_text())['stages.0.0.gelu']['num_images'] == 2


def test_sharded_weights_are_left_alone(tmp_path, capsys):
    """A look needs all weights in one process."""
    from mmengine.model.wrappers import MMFullyShardedDataParallel

    looked = []

    class Hook(CollapseHook):
        def look(self, *args):
            looked.append(args)

    wrapper = MMFullyShardedDataParallel.__new__(MMFullyShardedDataParallel)
    torch.nn.Module.__init__(wrapper)
    hook = Hook(interval=1)
    for _ in range(2):
        hook.after_train_epoch(SimpleNamespace(model=wrapper, epoch=0))
    assert not looked and capsys.readouterr().out.count('spreads the weights') == 1


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match='interval=-1'):
        CollapseHook(interval=-1)
    with pytest.raises(ValueError, match='num_images=0'):
        ReconstructionHook(num_images=0)
