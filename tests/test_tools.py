"""The command line tools on a toy task of a few numbers: training, resuming, testing, several processes, and every way
to fail. Real models, and a run that is killed and resumed: tests/test_training_runs.py.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file
from torch.distributed.elastic.multiprocessing.api import SignalException

from mmcnx2.analysis.run_log import stored_config
from mmcnx2.engine import run_config, user_errors, work_dir_lock

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'

PARTS = """
import os, time
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS

@DATASETS.register_module(force=True)
class ToyData(torch.utils.data.Dataset):
    def __init__(self, num, broken_on_rank=None, wait_s=0.):
        if num < 1:
            raise ValueError(f'num is {num}; it must be 1 or more')
        self.num, self.wait_s = num, wait_s
        self.broken = broken_on_rank is not None and int(os.environ.get('RANK', 0)) == broken_on_rank
    def __len__(self):
        return self.num
    def __getitem__(self, i):
        if self.broken:
            raise FileNotFoundError(2, 'No such file or directory', f'{i}.jpg')
        time.sleep(self.wait_s)
        x = torch.full((3,), i / 10)
        return dict(inputs=x, y=x.sum())

@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    def __init__(self, width=3, bug=False, **kwargs):
        super().__init__(**kwargs)
        self.linear, self.bug = torch.nn.Linear(3, width), bug
        torch.nn.init.constant_(self.linear.weight, 0.1)
        torch.nn.init.zeros_(self.linear.bias)
    def forward(self, inputs, y, mode='tensor'):
        if self.bug:
            raise RuntimeError('a bug')
        inputs, y = (torch.stack(v) if isinstance(v, list) else v for v in (inputs, y))
        difference = self.linear(inputs).float().sum(1) - y
        if mode == 'loss':
            bf16 = torch.tensor(float(self.linear(inputs).dtype == torch.bfloat16))
            return dict(loss=(difference ** 2).mean(), is_bf16=bf16)
        return list(difference)

@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    def process(self, batch, samples):
        self.results += [abs(float(sample)) for sample in samples]
    def compute_metrics(self, results):
        return dict(error=np.float32(sum(results) / len(results)))
"""
TOY = """
# A config card as ours have it
default_scope = 'mmengine'
custom_imports = dict(imports=['toy_parts'])
model = dict(type='ToyModel')
train_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
                        dataset=dict(type='ToyData', num=16))
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=.01, momentum=.9))
val_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                      dataset=dict(type='ToyData', num=10))
val_cfg = dict()
val_evaluator = dict(type='ToyMetric')
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1), logger=dict(type='LoggerHook', interval=1))
randomness = dict(seed=3)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder with the toy task in it, importable there; the tools run inside it."""
    (tmp_path / 'toy_parts.py').write_text(PARTS)
    (tmp_path / 'toy.py').write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    for name in ('LOCAL_RANK', 'RANK', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'MMCNX2_TRACEBACK'):
        monkeypatch.setenv(name, '')  # so that what a tool sets is taken back
        monkeypatch.delenv(name)
    yield tmp_path
    sys.modules.pop('toy_parts', None)


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(toy, call):
    """Runs a tool in this process, inside the toy folder: (exit code, stdout, stderr)."""
    return call


def error_line(err: str) -> str:
    """The last line of stderr, which must be the only one that speaks of an error."""
    lines = [line for line in err.splitlines() if 'error' in line.lower() and 'warn' not in line.lower()]
    assert len(lines) == 1, err
    assert lines[0].startswith('error: ')
    return lines[0]


def losses(work_dir: Path) -> dict[int, float]:
    """{iteration: loss} of all runs in a work dir, the later run winning."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if 'loss' in entry:
                found[entry['iter'] if 'iter' in entry else entry['step']] = entry['loss']
    return found


# ---- training, resuming, testing


def test_train_resume_and_test(call, toy):
    code, out, _ = call('train', 'toy.py', '--resume')
    assert code == 0
    assert 'no checkpoint in work_dirs/toy yet' in out
    assert (toy / 'work_dirs/toy/epoch_2.pth').exists()

    moved = toy / 'moved'
    (toy / 'work_dirs/toy').rename(moved)  # last_checkpoint still names the old place
    code, out, _ = call('train', 'toy.py', '--work-dir', 'moved', '--resume', '--cfg-options', 'train_cfg.max_epochs=3')
    assert code == 0
    assert 'going on from moved/epoch_2.pth' in out
    assert (moved / 'epoch_3.pth').exists()

    code, out, _ = call('test', 'toy.py', 'moved/epoch_3.pth', '--out', 'metrics.json', '--work-dir', 'tested')
    assert code == 0
    metrics = json.loads((toy / 'metrics.json').read_text())
    assert f'error: {metrics["error"]:.6g}' in out
    assert call('test', 'toy.py', 'moved/epoch_3.pth', '--out', 'p.pkl', '--work-dir', 'tested')[0] == 0
    assert (toy / 'p.pkl').exists()


def test_testing_in_the_folder_of_a_training_leaves_its_config(call, toy):
    assert call('train', 'toy.py', '--cfg-options', 'train_cfg.max_epochs=1')[0] == 0
    stored = toy / 'work_dirs/toy/toy.py'
    before = stored.read_text()
    assert 'max_epochs=1' in before
    code, _, err = call('test', 'toy.py', 'work_dirs/toy/epoch_1.pth')
    assert code == 0, err
    assert stored.read_text() == before and stored_config(toy / 'work_dirs/toy') == stored
    [tested] = (toy / 'work_dirs/toy').glob('*/toy.py')
    assert 'max_epochs=2' in tested.read_text() and tested.with_name(f'{tested.parent.name}.log').is_file()
    code, _, err = call('test', 'toy.py', 'work_dirs/toy/epoch_1.pth', '--cfg-options', 'runner_type=Nope')
    assert code == 1 and "runner_type is 'Nope'" in error_line(err)


def test_a_tilde_means_the_home_folder(call, toy, monkeypatch):
    """Though bash leaves it as it is in --work-dir=~/run."""
    monkeypatch.setenv('HOME', str(toy / 'home'))
    short = ['--cfg-options', 'train_cfg.max_epochs=1']
    assert call('train', 'toy.py', '--work-dir=~/run', *short)[0] == 0
    assert call('train', 'toy.py', '--resume=~/run/epoch_1.pth', *short, 'work_dir=~/on')[0] == 0
    assert call('test', 'toy.py', '~/run/epoch_1.pth', '--out=~/m.json', '--work-dir=~/tested')[0] == 0
    assert call('prepare_data', 'coco', '--root=~/coco')[2].count(f'{toy}/home/coco') >= 1
    assert call('prepare_data', 'demo', '--out=~/demo', '--unlabelled=1', '--train=1', '--val=1', '--size=64')[0] == 0
    assert {path.name for path in (toy / 'home').glob('[!.]*')} == {'run', 'on', 'tested', 'm.json', 'demo'}
    assert not (toy / '~').exists()
    monkeypatch.syspath_prepend(str(TOOLS))
    for name, given in (('run_demo', []), ('transfer', ['x.py']), ('ablate', []), ('report', ['x', '-o=~/w'])):
        args = importlib.import_module(name).parse_args([*given, *([] if name == 'report' else ['--work-dir=~/w'])])
        assert toy / 'home' / 'w' in (getattr(args, 'work_dir', None), getattr(args, 'out', None))


def test_a_second_training_in_the_same_folder_is_refused(call, toy, monkeypatch):
    monkeypatch.setattr(work_dir_lock, 'PATIENCE_S', 0.2)
    command = [sys.executable, TOOLS / 'train.py', 'toy.py', '--cfg-options', 'train_dataloader.dataset.wait_s=0.4']
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while 'Epoch(train)' not in (line := first.stdout.readline()):
        assert line or first.poll() is None
    partial = toy / 'work_dirs/toy/.epoch_1.pth.x.partial'
    partial.touch()
    code, _, err = call('train', 'toy.py')
    assert code == 1
    assert f'process {first.pid} on ' in error_line(err) and '--work-dir' in err and 'traceback' not in err
    assert partial.exists()
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')  # torchrun tries once more
    assert call('train', 'toy.py')[0] == 1
    monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
    code, _, err = call('train', 'toy.py', '--work-dir', 'work_dirs/toy', '--cfg-options', 'model.type=Nope')
    assert code == 1 and 'Slurm has started this job again' in err and 'Nope' in err
    monkeypatch.delenv('TORCHELASTIC_RESTART_COUNT')
    monkeypatch.delenv('SLURM_RESTART_COUNT')
    assert first.communicate(timeout=60) and first.returncode == 0
    assert call('train', 'toy.py')[0] == 0


def test_amp_runs_the_forward_pass_in_bf16(call, toy):
    assert call('train', 'toy.py', '--amp', '--tensorboard')[0] == 0
    scalars = next((toy / 'work_dirs/toy').glob('*/vis_data/scalars.json')).read_text()
    assert '"is_bf16": 1.0' in scalars
    assert next((toy / 'work_dirs/toy').glob('*/vis_data/events.out.tfevents*')).stat().st_size > 0
    call('train', 'toy.py', '--work-dir', 'plain')
    plain = next((toy / 'plain').glob('*/vis_data/scalars.json')).read_text()
    assert '"is_bf16": 0.0' in plain
    assert not list((toy / 'plain').glob('*/vis_data/events*'))


def test_amp_keeps_the_other_settings_of_the_optimiser():
    train = load_tool('train')
    given = dict(type='AmpOptimWrapper', loss_scale=1.0, dtype='float16', accumulative_counts=4)
    cfg = Config(dict(default_scope='mmseg', optim_wrapper=given))
    train.use_mixed_precision(cfg)
    assert cfg.optim_wrapper == dict(type='mmcnx2.BF16OptimWrapper', accumulative_counts=4)
    with pytest.raises(ValueError, match='DeepSpeedOptimWrapper'):
        train.use_mixed_precision(Config(dict(optim_wrapper=dict(type='DeepSpeedOptimWrapper'))))


def test_detectors_get_float16_on_a_gpu_and_float32_without_one(monkeypatch, capsys):
    train = load_tool('train')
    cfg = Config(dict(default_scope='mmdet', optim_wrapper=dict(type='OptimWrapper', clip_grad=dict(max_norm=1))))
    train.use_mixed_precision(cfg)
    half = dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16', clip_grad=dict(max_norm=1))
    assert cfg.optim_wrapper == half
    monkeypatch.setattr(train, 'get_device', lambda: 'cuda')
    train.fit_precision_to_device(cfg)
    assert cfg.optim_wrapper == half
    monkeypatch.setattr(train, 'get_device', lambda: 'cpu')
    train.fit_precision_to_device(cfg)
    assert cfg.optim_wrapper == dict(type='OptimWrapper', clip_grad=dict(max_norm=1))
    assert 'AmpOptimWrapper needs a GPU' in capsys.readouterr().err


def test_tensorboard_keeps_the_visualizer_of_the_task(monkeypatch):
    train = load_tool('train')
    cfg = Config(dict(visualizer=dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])))
    train.add_tensorboard(cfg)
    train.add_tensorboard(cfg)
    assert cfg.visualizer.type == 'DetLocalVisualizer'
    assert [backend.type for backend in cfg.visualizer.vis_backends] == ['LocalVisBackend', 'TensorboardVisBackend']
    monkeypatch.setattr(train, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='pip install tensorboard'):
        train.add_tensorboard(cfg)


@pytest.fixture
def pretraining(toy):
    """pretrain.py, which is tested by its loss, and weights.pth; answers the loss of each image."""
    (toy / 'pretrain.py').write_text(
        TOY.replace("default_scope = 'mmengine'", "default_scope = 'mmpretrain'")
        .replace('val_cfg = dict()\n', '')
        .replace("val_evaluator = dict(type='ToyMetric')\n", '')
        .replace('val_dataloader', 'test_dataloader')
        .replace("model = dict(type='ToyModel')", "model = dict(type='ToyModel', data_preprocessor=None)")
    )
    torch.manual_seed(0)
    weight, bias = torch.rand(3, 3), torch.rand(3)
    torch.save(dict(state_dict={'linear.weight': weight, 'linear.bias': bias}), 'weights.pth')
    x = torch.arange(10)[:, None].expand(10, 3) / 10
    return ((x @ weight.T + bias).sum(1) - x.sum(1)) ** 2


def test_a_pretraining_config_is_tested_by_its_reconstruction_loss(call, toy, pretraining):
    code, _, err = call('test', 'pretrain.py', 'weights.pth', '--out', 'loss.json')
    assert code == 0, err
    expected = pretraining.mean()  # over images, though the last batch is smaller
    assert json.loads((toy / 'loss.json').read_text())['loss'] == pytest.approx(float(expected), rel=1e-5)
    text = (toy / 'pretrain.py').read_text() + 'test_dataloader = None\n'
    (toy / 'pretrain.py').write_text(text)
    code, _, err = call('test', 'pretrain.py', 'weights.pth')
    assert code == 1
    assert 'without test_dataloader or val_dataloader' in error_line(err)


SAMPLER = 'test_dataloader.sampler'
HELD_OUT = ['--out', 'loss.json', '--cfg-options', 'test_dataloader.drop_last=True', 'test_dataloader.batch_size=8']


@pytest.mark.parametrize(
    ('num', 'options'),
    [
        (3, []),
        (10, [f'{SAMPLER}.shuffle=True']),
        (10, [f'{SAMPLER}.type=InfiniteSampler', f'{SAMPLER}.shuffle=True']),
        (10, [f'{SAMPLER}.type=mmcnx2.EpochSeededSampler', f'{SAMPLER}.infinite=True']),
    ],
)
def test_a_loader_shaped_like_the_training_one_measures_every_image_once(call, toy, pretraining, num, options):
    """Though such a loader leaves out a last batch that is not full, or never ends."""
    code, out, err = call(
        'test', 'pretrain.py', 'weights.pth', *HELD_OUT, f'test_dataloader.dataset.num={num}', *options
    )
    assert code == 0, err
    assert f'reconstruction of {num} images' in out + err
    assert json.loads((toy / 'loss.json').read_text())['loss'] == pytest.approx(
        float(pretraining[:num].mean()), rel=1e-5
    )


def test_nothing_measured_is_an_error(call, toy, pretraining):
    code, _, err = call('test', 'pretrain.py', 'weights.pth', *HELD_OUT, 'test_dataloader.num_batch_per_epoch=0')
    assert code == 1 and 'gave no image: nothing was measured' in error_line(err)


def test_values_per_class_and_matrices_are_printed_and_written(call, toy):
    metrics = 'dict(error=np.float32(0.5), per_class=[1.5, torch.tensor(2.)], matrix=torch.eye(2), array=np.arange(2))'
    text = PARTS.replace('dict(error=np.float32(sum(results) / len(results)))', metrics)
    (toy / 'toy_parts.py').write_text(text)
    torch.save(dict(state_dict={'linear.weight': torch.zeros(3, 3), 'linear.bias': torch.zeros(3)}), 'weights.pth')
    code, out, err = call('test', 'toy.py', 'weights.pth', '--out', 'metrics.json')
    assert code == 0, err
    written = dict(error=0.5, per_class=[1.5, 2.0], matrix=[[1.0, 0.0], [0.0, 1.0]], array=[0.0, 1.0])
    assert json.loads((toy / 'metrics.json').read_text()) == written
    assert out.splitlines()[-4:] == [f'{name}: {value}' for name, value in written.items()]


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_each_task_draws_into_the_folder_that_was_named(scope, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hooks = dict(visualization=dict(interval=7))
    cfg = Config(dict(default_scope=scope, default_hooks=hooks, visualizer=dict(type='Visualizer')))
    load_tool('test').draw_predictions(cfg, 'pictures')
    assert cfg.default_hooks.visualization.interval == 7
    assert str(tmp_path / 'pictures') in (*cfg.default_hooks.visualization.values(), cfg.visualizer.get('save_dir'))


def test_test_time_augmentation_wraps_the_model_and_reaches_through_dataset_wrappers():
    inner = dict(type='ToyData', pipeline=['plain'])
    cfg = Config(
        dict(
            model=dict(type='ToyModel'),
            tta_model=dict(type='SegTTAModel'),
            tta_pipeline=['augmented'],
            test_dataloader=dict(dataset=dict(type='RepeatDataset', times=1, dataset=inner)),
        )
    )
    load_tool('test').augment_test_time(cfg, 'x.py')
    assert cfg.model == dict(type='SegTTAModel', module=dict(type='ToyModel'))
    assert cfg.test_dataloader.dataset.dataset.pipeline == ['augmented']


# ---- what a mistake says


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (['nothing.py'], "Config 'nothing.py' does not exist"),
        (['toy.py', '--cfg-options', 'train_dataloader.dataset.num=0'], 'num is 0; it must be 1 or more'),
        (['toy.py', '--cfg-options', 'model.type=Nope'], 'Nope is not in the mmengine::model registry'),
        (['toy.py', '--cfg-options', 'model.colour=1'], "unexpected keyword argument 'colour'"),
        (['toy.py', '--cfg-options', 'default_scope=mmfoo'], 'it must be one of mmpretrain, mmdet'),
        (['toy.py', '--resume', 'nope.pth'], "Checkpoint 'nope.pth' does not exist"),
        (['toy.py', '--resume', 'weights.pth'], 'holds weights only (keys: state_dict)'),
        (['toy.py', '--resume', 'cut.pth'], 'cut.pth is truncated: it begins as a torch file'),
        (['toy.py', '--resume', 'page.pth'], 'page.pth is a web page, not weights'),
        (['no_training.py'], 'it describes no training'),
        (['syntax.py'], "syntax.py, or a file that it inherits, is no valid config: '(' was never closed"),
        (['name.py'], "no valid config: name 'num_class' is not defined"),
        (['part.py'], 'has no `model`'),
        (['theirs.py'], '{{$MMCNX2_CONFIGS:}}'),
        (['wrong_base.py'], 'not_there.py'),
        (['toy.py', '--launcher', 'pytorch'], 'needs the environment variable RANK'),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(call, toy, args, says):
    torch.save(dict(state_dict={'linear.weight': torch.zeros(3, 3), 'linear.bias': torch.zeros(3)}), 'weights.pth')
    (toy / 'cut.pth').write_bytes((toy / 'weights.pth').read_bytes()[:500])
    (toy / 'page.pth').write_text('<html>not found</html>')
    (toy / 'syntax.py').write_text('model = dict(\n')
    (toy / 'name.py').write_text('model = dict(num_classes=num_class)\n')
    (toy / 'no_training.py').write_text("_base_ = 'toy.py'\noptim_wrapper = None\n")
    (toy / 'part.py').write_text('optim_wrapper = dict()\n')
    (toy / 'theirs.py').write_text("_base_ = 'mmcnx2::coco/x.py'\n")
    (toy / 'wrong_base.py').write_text("_base_ = 'not_there.py'\n")
    code, _, err = call('train', *args)
    assert code == 1
    line = error_line(err)
    assert says in line
    if 'traceback: ' in line:
        written = Path(line.rsplit('traceback: ', 1)[1].rstrip(')'))
        assert 'Traceback (most recent call last)' in written.read_text()


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (['toy.py', 'nope.pth'], "Checkpoint 'nope.pth' does not exist"),
        (['toy.py', 'weights.pth', '--cfg-options', 'model.width=5'], 'does not fit the model of the config'),
        (['toy.py', 'fewer.pth'], 'missing keys in source state_dict: linear.bias'),
        (['toy.py', 'weights.pth', '--tta'], '--tta needs tta_model and tta_pipeline'),
        (['toy.py', 'weights.pth', '--out', 'x.csv'], 'must end in .json (metrics) or .pkl (predictions)'),
        (['toy.py', 'weights.pth', '--show-dir', 'x'], '--show-dir works for mmdet, mmseg, mmpretrain'),
        (['no_data.py', 'weights.pth'], 'nothing to test on'),
    ],
)
def test_a_mistake_in_testing_is_one_line_and_exit_code_1(call, args, says):
    weights = {'linear.weight': torch.zeros(3, 3), 'linear.bias': torch.zeros(3)}
    torch.save(dict(state_dict=weights), 'weights.pth')
    torch.save(dict(state_dict={'linear.weight': torch.zeros(3, 3)}), 'fewer.pth')
    Path('no_data.py').write_text("_base_ = 'toy.py'\nval_dataloader = None\n")
    code, _, err = call('test', *args)
    assert code == 1
    assert says in error_line(err)


def test_a_checkpoint_that_could_run_code_is_refused_unless_asked_for(call, toy):
    class RunsCode:
        def __reduce__(self):
            return os.mkdir, (str(toy / 'it_ran'),)

    weights = {'linear.weight': torch.zeros(3, 3), 'linear.bias': torch.zeros(3)}
    torch.save(dict(state_dict=weights, other=RunsCode()), 'evil.pth')
    code, _, err = call('test', 'toy.py', 'evil.pth')
    assert code == 1
    assert 'mkdir' in error_line(err) and '--unsafe-load' in error_line(err)
    assert not (toy / 'it_ran').exists()
    os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD')  # a process of its own would not have it
    assert call('test', 'toy.py', 'evil.pth', '--unsafe-load')[0] == 0
    assert (toy / 'it_ran').exists()


def test_runs_read_checkpoints_with_the_same_care(call, toy):
    """Testing, starting from weights and resuming: weights that are not finite and parts that are missing stop them,
    NaN in a log history does not.
    """
    weights = {'linear.weight': torch.zeros(3, 3), 'linear.bias': torch.zeros(3)}
    torch.save(dict(state_dict={**weights, 'linear.bias': torch.full((3,), float('nan'))}), 'nan.pth')
    assert 'NaN or Inf in 1 of 2 tensors: linear.bias (3 of 3' in error_line(call('test', 'toy.py', 'nan.pth')[2])
    code, _, err = call('train', 'toy.py', '--cfg-options', 'load_from=nan.pth')
    assert code == 1 and 'NaN or Inf in 1 of 2 tensors' in error_line(err)
    with_claim = dict(state_dict={**weights, 'x': torch.zeros(1).expand(2**40)})
    torch.save(with_claim, 'claim.pth')
    code, _, err = call('train', 'toy.py', '--cfg-options', 'load_from=claim.pth')
    assert code == 1 and 'does not fit its storage of 1 values' in error_line(err)
    save_file(weights, 'weights.safetensors')
    assert call('test', 'toy.py', 'weights.safetensors')[0] == 0

    assert call('train', 'toy.py', '--work-dir', 'run')[0] == 0
    saved = CheckpointLoader.load_checkpoint('run/epoch_1.pth')
    saved['message_hub']['log_scalars']['train/loss'].update(float('nan'))
    torch.save(saved, 'history.pth')
    assert call('train', 'toy.py', '--work-dir', 'on', '--resume', 'history.pth')[0] == 0
    data = bytearray(Path('run/epoch_1.pth').read_bytes())
    data[data.index(b'/data/0') + 70] ^= 1  # one bit of a weight
    Path('flipped.pth').write_bytes(data)
    code, _, err = call('train', 'toy.py', '--work-dir', 'on', '--resume', 'flipped.pth')
    assert code == 1 and 'flipped.pth is damaged: the checksum of ' in error_line(err)


def test_a_bug_keeps_its_traceback_on_the_screen(call, toy):
    code, _, err = call('train', 'toy.py', '--cfg-options', 'model.bug=True')
    assert code == 1
    assert 'Traceback (most recent call last)' in err
    assert err.splitlines()[-1] == 'error: a bug'


def test_ctrl_c_is_one_line_that_says_how_to_go_on(call, toy):
    when = "if self.bug and os.path.exists('work_dirs/toy/epoch_1.pth') == (self.bug == 2):"
    text = PARTS.replace('if self.bug:', when)
    (toy / 'toy_parts.py').write_text(text.replace("RuntimeError('a bug')", 'KeyboardInterrupt'))
    code, _, err = call('train', 'toy.py', '--cfg-options', 'model.bug=1')
    assert code == 130 and 'Traceback' not in err
    assert err.splitlines()[-1] == 'interrupted; no checkpoint has been saved yet, the same command begins anew'
    code, _, err = call('train', 'toy.py', '--cfg-options', 'model.bug=2')
    assert code == 130 and 'Traceback' not in err
    last = 'interrupted; the same command with --resume goes on from work_dirs/toy/epoch_1.pth'
    assert err.splitlines()[-1] == last
    code, out, _ = call('train', 'toy.py', '--resume')
    assert code == 0 and 'going on from work_dirs/toy/epoch_1.pth' in out


def test_the_traceback_is_printed_when_asked_for(call, monkeypatch):
    monkeypatch.setenv('MMCNX2_TRACEBACK', '1')
    code, _, err = call('train', 'nothing.py')
    assert code == 1
    assert 'Traceback (most recent call last)' in err


def test_an_unknown_key_is_warned_about_and_a_known_one_is_not(call):
    _, _, err = call('train', 'toy.py', '--cfg-options', 'modle.width=3', 'auto_scale_lr.enable=False')
    warned = [line for line in err.splitlines() if line.startswith('warning: --cfg-options')]
    assert len(warned) == 1 and "'modle'" in warned[0]


def test_an_option_carries_a_path_with_blanks_and_a_malformed_one_is_told(call, toy):
    folder = toy / 'my runs, (1)'
    assert call('train', 'toy.py', '--work-dir', folder)[0] == 0
    checkpoint = folder / 'epoch_2.pth'
    options = ['--cfg-options', f'load_from={checkpoint}']
    code, _, err = call('train', 'toy.py', '--work-dir', 'again', *options)
    assert code == 0, err
    assert f"load_from = '{checkpoint}'" in (toy / 'again' / 'toy.py').read_text()
    checkpoint.unlink()
    err = call('train', 'toy.py', '--work-dir', 'again', '--cfg-options', f'load_from="{checkpoint}"')[2]
    assert str(checkpoint) in error_line(err)
    for tool, args in (('train', ['toy.py']), ('test', ['toy.py', 'x.pth']), ('selfcheck', ['toy.py'])):
        code, _, err = call(tool, *args, '--cfg-options', 'a.b=1', 'photos')
        assert code == 2 and "'photos' is not of the form KEY=VALUE" in err.splitlines()[-1]


def test_a_detector_without_mmcv_ops_is_refused_before_anything_is_built(call, toy, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    code, _, err = call('train', 'toy.py', '--cfg-options', 'default_scope=mmdet')
    assert code == 1
    assert 'mmcv._ext' in error_line(err) and 'make env' in err
    code, _, err = call('train', 'toy.py', '--cfg-options', 'model.neck.type=mmdet.FPN')
    assert code == 1
    assert 'mmcv._ext' in error_line(err)


def test_messages_are_reduced_to_their_own_words():
    line = user_errors.one_line
    assert line(KeyError('no such size\n  as x')) == 'no such size as x'
    assert line(KeyError('meta')) == "'meta' is missing (KeyError)"
    assert line(ValueError('class `FCMAE` in mmcnx2/models/fcmae.py: mask_ratio is 2')) == 'mask_ratio is 2'
    worker = 'Caught ValueError in worker process 0.\nOriginal Traceback (most recent call last):\n  File "x"\n'
    assert line(ValueError(worker + 'ValueError: 9 of 10 images are bad\n')) == '9 of 10 images are bad'
    assert line(ValueError('x' * 5000)) == 'x' * user_errors.LONGEST_LINE + ' ...'
    assert line(FileNotFoundError(2, 'No such file or directory', 'a.json')) == 'No such file or directory: a.json'
    assert line(ValueError()) == 'ValueError'


def test_our_configs_are_found_by_their_short_name(monkeypatch, tmp_path):
    (tmp_path / 'configs' / 'coco').mkdir(parents=True)
    there = tmp_path / 'configs' / 'coco' / 'x.py'
    there.touch()
    monkeypatch.setattr(run_config.mmcnx2, 'configs_dir', lambda: tmp_path / 'configs')
    assert run_config.find_config('coco/x.py') == there
    assert run_config.find_config('configs/coco/x.py') == there
    assert run_config.find_config(str(there)) == there


# ---- several processes


def launch(script: str, *args: str, **environ: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ['bash', TOOLS / script, *args],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': '', **environ},
    )


def test_two_processes_on_the_cpu_train_and_test_like_one(toy, call):
    same_batches = ['--cfg-options', 'train_dataloader.sampler.shuffle=False']
    two = launch('dist_train.sh', 'toy.py', '2', '--work-dir', 'two', *same_batches, 'train_dataloader.batch_size=2')
    assert two.returncode == 0, two.stderr[-2000:]
    assert 'joined over gloo' in two.stdout
    assert call('train', 'toy.py', '--work-dir', 'one', *same_batches)[0] == 0
    one_loss, two_loss = losses(toy / 'one'), losses(toy / 'two')
    assert one_loss.keys() == two_loss.keys() and len(one_loss) == 8
    load = CheckpointLoader.load_checkpoint
    final = [load(str(toy / name / 'epoch_2.pth'), map_location='cpu')['state_dict'] for name in ('one', 'two')]
    for key in final[0]:
        torch.testing.assert_close(final[0][key], final[1][key], rtol=1e-5, atol=1e-6)
    tested = launch('dist_test.sh', 'toy.py', 'two/epoch_2.pth', '2', '--work-dir', 'tested', '--out', 'two.json')
    assert tested.returncode == 0, tested.stderr[-2000:]
    assert call('test', 'toy.py', 'one/epoch_2.pth', '--work-dir', 'tested', '--out', 'one.json')[0] == 0
    of_one, of_two = (json.loads((toy / f'{name}.json').read_text()) for name in ('one', 'two'))
    assert of_one['error'] == pytest.approx(of_two['error'], rel=1e-4)


@pytest.mark.parametrize('num', [1, 3])
def test_two_processes_measure_every_image_once(toy, pretraining, num):
    """Also where one of them has more than the other, or all."""
    tested = launch('dist_test.sh', 'pretrain.py', 'weights.pth', '2', *HELD_OUT, f'test_dataloader.dataset.num={num}')
    assert tested.returncode == 0, tested.stderr[-2000:]
    loss = json.loads((toy / 'loss.json').read_text())['loss']
    assert loss == pytest.approx(float(pretraining[:num].mean()), rel=1e-5)


@pytest.mark.parametrize(
    ('option', 'line'),
    [
        ('train_dataloader.dataset.num=0', 'error: num is 0; it must be 1 or more'),
        ('train_dataloader.dataset.broken_on_rank=1', 'error on rank 1: No such file or directory'),
    ],
)
def test_one_of_two_processes_says_what_is_wrong(toy, option, line):
    done = launch('dist_train.sh', 'toy.py', '2', '--work-dir', 'two', '--cfg-options', option)
    assert done.returncode == 1
    lines = [text for text in done.stderr.splitlines() if text.startswith('error')]
    assert len(lines) == 1 and lines[0].startswith(line), done.stderr


@pytest.mark.parametrize('args', [[], ['toy.py'], ['toy.py', 'two'], ['toy.py', '0']])
def test_launchers_say_how_they_are_used(args):
    done = launch('dist_train.sh', *args)
    assert done.returncode == 1
    assert done.stderr.startswith('error: usage: ')
    assert launch('dist_test.sh', 'toy.py', *args[:1]).returncode == 1
    assert launch('slurm_train.sh', *args).stderr.startswith('error: usage: ')


def test_launchers_pass_everything_on(tmp_path):
    recorder = tmp_path / 'python'
    recorder.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/args\n')
    recorder.chmod(0o755)
    (tmp_path / 'srun').write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/srun_args\n')
    (tmp_path / 'srun').chmod(0o755)
    environ = dict(PYTHON=str(recorder), NNODES='2', NODE_RANK='1', MASTER_ADDR='head', PORT='1234')
    launch('dist_train.sh', 'a b.py', '4', '--amp', '--cfg-options', 'x="[1, 2]"', **environ)
    args = (tmp_path / 'args').read_text().splitlines()
    assert args[0] == str(TOOLS / 'launch_processes.py')
    launched = {'--nnodes=2', '--node_rank=1', '--nproc_per_node=4', '--master_addr=head', '--master_port=1234'}
    assert launched | {'--max_restarts=0'} <= set(args)
    rest = ['a b.py', '--launcher', 'pytorch', '--amp', '--cfg-options', 'x="[1, 2]"']
    assert args[-7:] == [str(TOOLS / 'train.py'), *rest]
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    launch('slurm_train.sh', 'part', 'job', 'a.py', 'dir', '--amp', GPUS='4', PATH=path, SRUN_ARGS='--mem 1')
    args = (tmp_path / 'srun_args').read_text().splitlines()
    assert {'--partition=part', '--ntasks=4', '--gres=gpu:4', '--mem'} <= set(args)
    assert args[-7:] == [str(TOOLS / 'train.py'), 'a.py', '--work-dir', 'dir', '--launcher', 'slurm', '--amp']


def test_the_launcher_ends_with_130_after_ctrl_c(monkeypatch):
    launcher = load_tool('launch_processes')

    def interrupted():
        raise SignalException('Process got signal: 2', signal.SIGINT)

    monkeypatch.setattr(launcher, 'torchrun', interrupted)
    monkeypatch.setenv('MMCNX2_EXIT_FILE', '')
    with pytest.raises(SystemExit) as end:
        launcher.main()
    assert end.value.code == 130


def test_launchers_find_an_environment_in_a_folder_with_a_blank(tmp_path):
    environment = tmp_path / 'my cache' / 'python'
    environment.parent.mkdir()
    environment.touch(0o755)
    for name, does in (('python', 'exit 1'), ('python3', f"echo '{environment}'")):
        (tmp_path / name).write_text(f'#!/bin/sh\n{does}\n')
        (tmp_path / name).chmod(0o755)
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    command = ['bash', '-c', f'source "{TOOLS}/dist_run.sh" && find_python']
    environ = {**os.environ, 'PATH': path, 'PYTHON': ''}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.stdout == f'{environment}\n', done.stderr
    environment.unlink()
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 1 and 'no interpreter with mmengine' in done.stderr and not done.stdout


@pytest.fixture
def slurm(tmp_path) -> Path:
    """A folder with an srun that ends with the exit codes in `codes`, one per call, and a scontrol, which note their
    arguments.
    """
    (tmp_path / 'srun').write_text(f"""#!/bin/bash
echo "$@" >> {tmp_path}/calls
trap 'echo USR1 >> {tmp_path}/calls; exit 75' USR1
trap 'echo TERM >> {tmp_path}/calls; exit 75' TERM
code="$(head -n 1 {tmp_path}/codes)"
sed -i 1d {tmp_path}/codes
if [ "$code" = wait ]; then touch {tmp_path}/waits; for i in {{1..200}}; do sleep 0.05; done; fi
exit "$code"
""")
    (tmp_path / 'scontrol').write_text(f'#!/bin/sh\necho scontrol "$@" >> {tmp_path}/calls\n')
    for name in ('srun', 'scontrol'):
        (tmp_path / name).chmod(0o755)
    return tmp_path


def slurm_train(slurm: Path, codes: str, send: int | None = None, **environ: str) -> tuple[int, list[str]]:
    """Exit code of slurm_train.sh, and what was called."""
    (slurm / 'codes').write_text(codes.replace(' ', '\n') + '\n')
    for name in ('calls', 'waits'):
        (slurm / name).unlink(missing_ok=True)
    process = subprocess.Popen(
        ['bash', TOOLS / 'slurm_train.sh', 'part', 'job', 'a.py', 'dir', '--amp'],
        env={**os.environ, 'PYTHON': 'python', 'PATH': f'{slurm}{os.pathsep}{os.environ["PATH"]}', **environ},
        stderr=subprocess.DEVNULL,
    )
    if send is not None:
        while not (slurm / 'waits').exists():
            time.sleep(0.02)
        process.send_signal(send)
    code = process.wait(timeout=30)
    return code, (slurm / 'calls').read_text().splitlines()


def test_a_run_that_makes_room_is_queued_again(slurm):
    code, calls = slurm_train(slurm, '75 75 0')
    assert code == 0 and len(calls) == 3
    assert calls[0].endswith('--amp') and all(call.endswith('--amp --resume') for call in calls[1:])
    assert '--signal=USR1@120' in calls[0]
    code, calls = slurm_train(slurm, '75', SLURM_JOB_ID='12')
    assert code == 75 and calls[1:] == ['scontrol requeue 12']
    assert slurm_train(slurm, '75', REQUEUE='0')[0] == 75
    code, calls = slurm_train(slurm, '3')
    assert code == 3 and len(calls) == 1


def test_the_launcher_for_slurm_passes_signals_on(slurm):
    code, calls = slurm_train(slurm, 'wait 0', signal.SIGUSR1)
    assert code == 0 and calls[1] == 'USR1' and calls[2].endswith('--resume')
    code, calls = slurm_train(slurm, 'wait 0', signal.SIGTERM)
    assert code == 75 and calls[1:] == ['TERM']


def test_processes_on_the_cpu_use_bn_for_syncbn_and_say_so(monkeypatch, capsys):
    monkeypatch.setattr(run_config, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda backend, init_method: None)
    for name, value in dict(SLURM_PROCID='0', SLURM_NTASKS='2', SLURM_LOCALID='0', MASTER_ADDR='head').items():
        monkeypatch.setenv(name, value)
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_PORT'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    cfg = Config(dict(launcher='slurm', model=dict(head=[dict(norm_cfg=dict(type='SyncBN'))])))
    run_config.start_distributed(cfg)
    assert cfg.model.head[0].norm_cfg.type == 'BN'
    assert '1 norm_cfg entries use BN' in capsys.readouterr().err
    assert cfg.model_wrapper_cfg.device_ids is None
    assert os.environ['WORLD_SIZE'] == '2'


# ---- doctor


@pytest.fixture(scope='module')
def doctor():
    return load_tool('doctor')


def test_the_doctor_tells_what_works_from_what_does_not(doctor):
    looks = {
        'there': (True, 'print("1.2"); print("3.4")', 'nothing'),
        'absent': (True, 'import no_such_package', 'pip install it'),
        'kills': (True, 'import os; os._exit(11)', 'rebuild it'),
        'after': (True, 'print("still looked at")', 'nothing'),
        'optional': (False, 'raise OSError("libcuda")', 'only for a GPU'),
    }
    entries = {entry['name']: entry for entry in doctor.examine(looks)}
    assert entries['there']['works'] and entries['there']['found'] == '3.4' and entries['there']['remedy'] is None
    assert entries['absent']['found'] == "ModuleNotFoundError: No module named 'no_such_package'"
    assert not entries['kills']['works'] and 'exit code 11' in entries['kills']['found']
    assert entries['after']['works']
    text = doctor.report(list(entries.values()))
    assert 'absent: pip install it' in text and 'kills: rebuild it' in text
    assert 'optional, optional: only for a GPU' in text


def test_the_doctor_gives_up_on_what_does_not_answer(doctor):
    found = doctor.look({'quick': 'print(1)', 'hangs': 'import time; time.sleep(60)'}, timeout_s=2)
    assert found['quick'] == (True, '1')
    assert found['hangs'] == (False, 'no answer within 2 s')


def test_the_doctor_knows_packages_that_overwrite_each_other(doctor):
    import mmcnx2

    good = {fork: lowest for fork, lowest, _, _ in mmcnx2.OPENMMLAB.values()}
    assert doctor.distribution_problems(good.get) == []

    def sentences(**changes):
        installed = {**good, **{key.replace('_', '-'): value for key, value in changes.items()}}
        return [sentence for _, sentence, _ in doctor.distribution_problems(installed.get)]

    assert 'both installed' in sentences(mmdet='3.3.0')[0] and 'pip uninstall mmdet' in sentences(mmdet='3.3.0')[0]
    assert 'maintained fork' in sentences(mmdet='3.3.0', onedl_mmdetection=None)[0]
    assert 'is not installed' in sentences(onedl_mmcv=None)[0]
    assert 'outside the versions' in sentences(onedl_mmcv='2.2.0')[0]
    assert 'outside the versions' in sentences(onedl_mmcv='2.4.0')[0]
    assert 'opencv' in sentences(opencv_python='4.10', opencv_python_headless='4.10')[0]


def test_the_doctor_exits_with_1_when_mmcv_has_no_ops(tmp_path):
    (tmp_path / 'sitecustomize.py').write_text("import sys\nsys.modules['mmcv._ext'] = None\n")
    done = subprocess.run(
        [sys.executable, TOOLS / 'doctor.py', '--json'],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(tmp_path)},
    )
    assert done.returncode == 1, done.stderr
    entries = {entry['name']: entry for entry in json.loads(done.stdout)}
    assert not entries['mmcv._ext']['works'] and '--no-build-isolation' in entries['mmcv._ext']['remedy']
    assert entries['torch']['works'] and entries['mmcnx2']['works']
