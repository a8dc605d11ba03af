"""Guards mmcnx2/engine/train_loops.py, and with it what checkpoint_hook.py saves: a toy run that is interrupted after
any iteration gives the losses of one that is not. Its model and data draw from every random generator there is.
"""

import itertools
import json
import multiprocessing
import signal
from pathlib import Path

import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler

from mmcnx2.checkpoint import read_checkpoint
from mmcnx2.datasets import EpochSeededSampler, ResumableBatches
from mmcnx2.engine.resuming import newest_checkpoint
from mmcnx2.engine.train_loops import EndlessBatches, resumable

PARTS = """
import os, random, signal
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, METRICS, MODELS
from torch.utils.data import BatchSampler

@DATASETS.register_module(force=True)
class RandomData(torch.utils.data.Dataset):
    def __len__(self):
        return 22
    def __getitem__(self, i):
        return dict(inputs=torch.rand(3) + random.random() + i, y=torch.tensor(float(np.random.rand())))

@DATA_SAMPLERS.register_module(force=True)
class OddAndEven(BatchSampler):
    # keeps what is left of a group from batch to batch, as a batch sampler by aspect ratio does
    def __init__(self, sampler, batch_size):
        super().__init__(sampler, batch_size, False)
    def __iter__(self):
        groups = [], []
        for i in self.sampler:
            groups[i % 2].append(i)
            if len(groups[i % 2]) == self.batch_size:
                yield groups[i % 2][:]
                groups[i % 2].clear()
        rest = groups[0] + groups[1]
        for start in range(0, len(rest), self.batch_size):
            yield rest[start:start + self.batch_size]

@MODELS.register_module(force=True)
class RandomModel(BaseModel):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5),
                                          torch.nn.Linear(8, 1))
    def forward(self, inputs, y, mode='tensor'):
        inputs, y = (torch.stack(v) if isinstance(v, list) else v for v in (inputs, y))
        if mode == 'loss':
            inputs = inputs + float(np.random.rand()) + random.random()
        difference = self.layers(inputs)[:, 0] - y
        return dict(loss=(difference ** 2).mean()) if mode == 'loss' else list(difference)

@METRICS.register_module(force=True)
class Error(BaseMetric):
    def process(self, batch, samples):
        self.results += [abs(float(sample)) for sample in samples]
    def compute_metrics(self, results):
        return dict(error=sum(results) / len(results))

@HOOKS.register_module(force=True)
class SignalAt(Hook):
    def __init__(self, iters=()):
        self.iters = iters
    def after_train_iter(self, runner, **kwargs):
        if runner.iter + 1 in self.iters:
            os.kill(os.getpid(), signal.SIGUSR1)
"""
CONFIG = """
default_scope = 'mmengine'
custom_imports = dict(imports=['random_parts'], allow_failed_imports=False)
model = dict(type='RandomModel')
train_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='mmcnx2.EpochSeededSampler'),
                        dataset=dict(type='RandomData'))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
val_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                      dataset=dict(type='RandomData'))
val_cfg = dict(type='ValLoop')
val_evaluator = dict(type='Error')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=.01))
param_scheduler = [dict(type='PolyLR', end=18, by_epoch=False)]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='error',
                     rule='less'), logger=dict(type='LoggerHook', interval=1))
custom_hooks = [dict(type='SignalAt'), dict(type='EMAHook')]
log_processor = dict(type='LogProcessor', window_size=1)
randomness = dict(seed=3)
"""
BY_ITERATION = """
train_cfg = dict(type='IterBasedTrainLoop', max_iters=18, val_interval=6)
log_processor = dict(type='LogProcessor', window_size=1, by_epoch=False)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=6, max_keep_ckpts=1),
                     logger=dict(type='LoggerHook', interval=1))
"""
WITH_WORKERS = ('train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True')
CASES = {
    'epochs': ('', ()),
    'iterations': (BY_ITERATION, ('train_dataloader.sampler.infinite=True',)),
    'iterations over epochs': (BY_ITERATION, ()),
    'workers': ('', WITH_WORKERS),
    'iterations, workers': (BY_ITERATION, ('train_dataloader.sampler.infinite=True', *WITH_WORKERS)),
    'grouped': ('', ('train_dataloader.batch_sampler.type=OddAndEven', *WITH_WORKERS)),
    'grouped, iterations': (
        BY_ITERATION,
        ('train_dataloader.batch_sampler.type=OddAndEven', 'train_dataloader.sampler.infinite=True'),
    ),
    'samplers of mmengine': ('', ('train_dataloader.sampler.type=DefaultSampler',)),
    'infinite sampler of mmengine': (BY_ITERATION, ('train_dataloader.sampler.type=InfiniteSampler',)),
    'accumulated gradients': ('', ('optim_wrapper.accumulative_counts=4',)),
    'no seed': ('', ('randomness.seed=None', 'train_dataloader.drop_last=True')),
}


@pytest.fixture
def train(tmp_path, monkeypatch, call):
    """Trains in this process: `train(work_dir, config text, options, signal_at, resume)` -> exit code."""
    (tmp_path / 'random_parts.py').write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def run(work_dir: str, text: str, options: tuple[str, ...], signal_at: int = 0, resume: bool = False) -> int:
        Path('config.py').write_text(CONFIG + text)
        options = [f'custom_hooks.0.iters=[{signal_at}]', *options]
        code, _, err = call(
            'train', 'config.py', '--work-dir', work_dir, *['--resume'] * resume, '--cfg-options', *options
        )
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for worker in multiprocessing.active_children():  # as the end of a process does
            worker.terminate()
            worker.join()
        assert code in (0, 75), err
        return code

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def losses(work_dir: str) -> list[tuple[int, float]]:
    """(iteration, loss) of all runs in the folder, in the order in which they were trained."""
    entries = []
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime_ns):
        entries += [json.loads(line) for line in path.read_text().splitlines()]
    return [(entry.get('iter', entry['step']), entry['loss']) for entry in entries if 'loss' in entry]


@pytest.mark.parametrize('case', CASES)
def test_interrupted_anywhere_the_losses_are_those_of_an_uninterrupted_run(case, train):
    text, options = CASES[case]
    if case == 'no seed':  # what the first run draws, the resumed one must take over
        assert train('seeding', text, options, signal_at=1) == 75
        Path('again').mkdir()
        for name in ('iter_1.pth', 'last_checkpoint'):
            (Path('again') / name).write_bytes((Path('seeding') / name).read_bytes())
        assert train('seeding', text, options, resume=True) == 0
        assert train('again', text, options, signal_at=8, resume=True) == 75
        assert train('again', text, options, resume=True) == 0
        assert losses('again') == losses('seeding')[1:]
        return
    assert train('whole', text, options) == 0
    whole = losses('whole')
    assert [step for step, _ in whole] == list(range(1, 19))
    for number in (3, 6, 10):  # in an epoch, at its end, in another one, and so three times in one run
        assert train('interrupted', text, options, signal_at=number, resume=True) == 75
        assert Path(f'interrupted/iter_{number}.pth').exists()
    assert train('interrupted', text, options, resume=True) == 0
    assert losses('interrupted') == whole
    logs = [path.read_text() for path in Path('interrupted').glob('*/*.log')]
    assert logs and not any('not the one of the checkpoint' in log for log in logs)
    kept = {path.name for path in Path('interrupted').glob('*.pth') if 'best' not in path.name}
    assert kept == {path.name for path in Path('whole').glob('*.pth') if 'best' not in path.name}
    final = [read_checkpoint(newest_checkpoint(name)) for name in ('whole', 'interrupted')]
    for key in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(value, final[1][key][name]) for name, value in final[0][key].items())


def test_a_learning_rate_that_the_checkpoint_overrules_is_named(train):
    assert train('run', '', (), signal_at=6) == 75
    rate = 'optim_wrapper.optimizer.lr=.5'
    named = 'optim_wrapper.optimizer.lr: 0.01 in the checkpoint, 0.5 now; the value of the check'
    # the checkpoint in between says what has acted, so that the next run is warned as well
    for num_resumed, number in enumerate((10, 0), start=1):
        assert train('run', '', (rate,), signal_at=number, resume=True) == (75 if number else 0)
        logs = [path.read_text() for path in Path('run').glob('*/*.log')]  # one for both, when both began in a second
        assert sum(log.count(named) for log in logs) == num_resumed
    assert train('whole', '', ()) == 0
    assert losses('run') == losses('whole')


def test_training_does_not_depend_on_validation(train):
    assert train('with', '', ()) == train('without', '', ('train_cfg.val_interval=99', 'train_cfg.val_begin=99')) == 0
    assert losses('with') == losses('without')


def test_it_is_said_which_data_are_not_repeated_exactly(train):
    for name, options, said in (('a', WITH_WORKERS, True), ('b', (), False)):
        train(name, '', ('train_dataloader.sampler.type=DefaultSampler', 'train_cfg.max_epochs=1', *options))
        log = next(Path(name).glob('*/*.log')).read_text()
        assert ('DefaultSampler gives samples no seeds' in log) == said


@pytest.mark.parametrize(
    'sampler',
    [EpochSeededSampler(range(10), seed=1), EpochSeededSampler(range(10), seed=1, infinite=True),
     DefaultSampler(range(10), seed=1), InfiniteSampler(range(10), seed=1)],
    ids=['seeded', 'seeded, infinite', 'mmengine', 'mmengine, infinite'],
)  # fmt: skip
@pytest.mark.parametrize('num_skipped', [0, 1, 3, 4, 9])
def test_batches_without_end_begin_anywhere(sampler, num_skipped):
    def batches(num_skipped: int) -> list:
        if isinstance(sampler, InfiniteSampler):
            sampler.skip(0)
        loader = torch.utils.data.DataLoader(range(10), batch_sampler=ResumableBatches(sampler, 3), collate_fn=list)
        endless = EndlessBatches(loader, seed=0)
        endless.skip_iter(num_skipped)
        return list(itertools.islice(endless, 14 - num_skipped))

    assert batches(num_skipped) == batches(0)[num_skipped:]


def test_a_loader_that_is_built_is_left_alone():
    loader = torch.utils.data.DataLoader(range(3))
    assert resumable(loader) is loader
    given = dict(batch_size=2, dataset=dict(type='X'), drop_last=True)
    assert resumable(given)['batch_sampler'] == dict(type='mmcnx2.ResumableBatches', drop_last=True)
    assert given == dict(batch_size=2, dataset=dict(type='X'), drop_last=True)


@pytest.mark.parametrize(
    ('text', 'options', 'says'),
    [
        (
            '',
            ('train_dataloader.batch_size=30', 'train_dataloader.drop_last=True'),
            'has 22 pictures, which fill no batch of train_dataloader.batch_size=30; with drop_last no step is made. '
            'Give train_dataloader.batch_size=22, or train_dataloader.drop_last=False',
        ),
        (
            BY_ITERATION,
            ('train_dataloader.batch_size=30', 'train_dataloader.drop_last=True'),
            'fill no batch of train_dataloader.batch_size=30',
        ),
        (
            "param_scheduler = [dict(type='LinearLR', end=1, convert_to_iter_based=True),"
            "dict(type='CosineAnnealingLR', begin=1, convert_to_iter_based=True)]",
            ('train_cfg.max_epochs=1',),
            'param_scheduler.1 (CosineAnnealingLR) begins after epoch 1 (param_scheduler.1.begin) and would end after '
            'epoch 1 (train_cfg.max_epochs); it has to end later. Make the run longer (train_cfg.max_epochs), or lower '
            'param_scheduler.0.end and param_scheduler.1.begin',
        ),
        (
            "param_scheduler = dict(type='PolyLR', begin=6, by_epoch=False)",
            ('train_cfg.max_epochs=1',),
            'begins after iter 6 (param_scheduler.0.begin) and would end after iter 6 (train_cfg.max_epochs)',
        ),
        (
            f"{BY_ITERATION}\nparam_scheduler = [dict(type='PolyLR', begin=20, by_epoch=False)]",
            (),
            'begins after iter 20 (param_scheduler.0.begin) and would end after iter 18 (train_cfg.max_iters)',
        ),
        (
            "param_scheduler = [dict(type='PolyLR', begin=2, end=2)]",
            (),
            'begins after epoch 2 (param_scheduler.0.begin) and would end after epoch 2 (param_scheduler.0.end)',
        ),
    ],
)
def test_a_run_that_cannot_make_its_steps_says_which_setting(text, options, says, train, call):
    Path('config.py').write_text(CONFIG + text)
    code, _, err = call('train', 'config.py', '--work-dir', 'run', *['--cfg-options'] * bool(options), *options)
    assert code == 1 and err.startswith('error: ') and says in err


def test_a_sampler_without_end_fills_any_batch(train):
    options = ('train_dataloader.batch_size=30', 'train_dataloader.drop_last=True', 'train_cfg.max_iters=2')
    assert train('run', BY_ITERATION, ('train_dataloader.sampler.infinite=True', *options)) == 0
    assert len(losses('run')) == 2
