"""A detector and a segmentor that are told to leave and resumed: with workers, the losses are bit by bit those of an
undisturbed run. The detector has COCO's augmentation at several scales with random crops, and batches by aspect ratio.
"""

import json
import multiprocessing
import signal
from pathlib import Path

import pytest
from letter_scenes import write_letters
from test_dense_runs import config_file

ROOT = Path(__file__).resolve().parents[1]
SIGNAL_AT = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module(force=True)
class SignalAt(Hook):
    def __init__(self, iters=()):
        self.iters = iters
    def after_train_iter(self, runner, **kwargs):
        if runner.iter + 1 in self.iters:
            os.kill(os.getpid(), signal.SIGTERM)
"""
MORE = """
custom_imports = dict(imports=['signal_at'] + {imports}, allow_failed_imports=False)
custom_hooks = [dict(type='SignalAt')]
train_dataloader = dict(batch_size=2, num_workers=2, persistent_workers=True{loader})
train_cfg = dict(val_begin=100)  # never
"""
BY_ASPECT_RATIO = ", batch_sampler=dict(type='AspectRatioBatchSampler'), dataset=dict(pipeline=pipeline)"
PIPELINE = """
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[
        [dict(type='RandomChoiceResize', scales=[(64, 120), (96, 120)], keep_ratio=True)],
        [dict(type='RandomCrop', crop_type='absolute_range', crop_size=(48, 80), allow_negative_crop=True),
         dict(type='RandomChoiceResize', scales=[(64, 120), (96, 120)], keep_ratio=True)]]),
    dict(type='PackDetInputs')]
"""


def losses_of(work_dir: Path) -> list[tuple[int, float]]:
    paths = sorted(work_dir.glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime_ns)
    entries = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [(entry['step'], entry['loss']) for entry in entries]


@pytest.mark.parametrize('name', ['mask-rcnn', 'upernet'])
def test_it_goes_on_as_if_nothing_had_happened(name, tmp_path, call, monkeypatch):
    write_letters(tmp_path, num_train=9, num_val=1, size=96)
    (tmp_path / 'signal_at.py').write_text(SIGNAL_AT)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = config_file(name, tmp_path, tmp_path)
    detects = name == 'mask-rcnn'
    more = MORE.format(imports="['mmcnx2.models.detection']" if detects else "['mmcnx2']",
                       loader=BY_ASPECT_RATIO if detects else '')  # fmt: skip
    config.write_text(config.read_text() + (PIPELINE if detects else '') + more)

    def train(work_dir: str, signal_at: int, *options: str) -> int:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
        command = ['train', config, '--work-dir', tmp_path / work_dir, *options]
        code, out, err = call(*command, '--cfg-options', f'custom_hooks.0.iters=[{signal_at}]', 'train_cfg.max_iters=6')
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for worker in multiprocessing.active_children():  # as the end of a process does
            worker.terminate()
            worker.join()
        assert code in (0, 75), out[-2000:] + err[-2000:]
        return code

    assert train('whole', 0) == 0
    assert train('left', 3) == 75 and train('left', 0, '--resume') == 0
    logs = [path.read_text() for path in (tmp_path / 'left').glob('*/*.log')]
    assert len(logs) == 2 and not any('not the one of the checkpoint' in log for log in logs)
    whole = losses_of(tmp_path / 'whole')
    assert [step for step, _ in whole] == list(range(1, 7))
    assert losses_of(tmp_path / 'left') == whole
