"""Detectors and segmentors through the tools: bfloat16 on the CPU, two processes, resuming, several scales, soft-NMS.

The labelled pictures are letters (letter_scenes.py), with classes that no config of ours has.
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from letter_scenes import write_letters

from mmcnx2.analysis.run_log import last_checkpoint, stored_config

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable}
CONFIGS = {
    'mask-rcnn': 'demo/mask-rcnn_convnextv2-atto_demo.py',
    'cascade-mask-rcnn': 'demo/cascade-mask-rcnn_convnextv2-atto_demo.py',
    'upernet': 'demo/upernet_convnextv2-atto_demo.py',
}
NUM_STEPS = 4
METRICS = {
    'mask-rcnn': ['coco/bbox_mAP', 'coco/segm_mAP'],
    'cascade-mask-rcnn': ['coco/bbox_mAP', 'coco/segm_mAP'],
    'upernet': ['mIoU'],
}


@pytest.fixture(scope='module')
def letters(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('letters')
    write_letters(folder, num_train=8, num_val=2, size=96)
    return folder


def config_file(name: str, letters: Path, folder: Path) -> Path:
    """The ten lines that a user writes, and a smaller backbone."""
    if name == 'upernet':
        files = f"""classes='{letters}/classes.txt',
    train=dict(images='{letters}/train', labels='{letters}/labels/train'),
    val=dict(images='{letters}/val', labels='{letters}/labels/val')"""
    else:
        files = f"""train=dict(annotations='{letters}/train.json', images='{letters}/train'),
    val=dict(annotations='{letters}/val.json', images='{letters}/val')"""
    more = '' if name == 'upernet' else ', test_cfg=dict(rcnn=dict(score_thr=0.))'
    path = folder / f'{name}_letters.py'
    path.write_text(f"""
_base_ = '{ROOT}/configs/{CONFIGS[name]}'
own_data = dict(
    {files})
model = dict(backbone=dict(arch=dict(_delete_=True, depths=[1, 1, 1, 1], channels=[40, 80, 160, 320])){more})
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0)
train_cfg = dict(max_iters={NUM_STEPS})
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval={NUM_STEPS // 2}, max_keep_ckpts=-1))
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=False)]
randomness = dict(seed=0)
""")
    return path


def losses_of(work_dir: Path) -> dict[int, float]:
    losses = {}
    for scalars in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in scalars.read_text().splitlines():
            entry = json.loads(line)
            if 'loss' in entry:
                losses[entry['step']] = entry['loss']
    return losses


def scores_of(predictions: Path) -> torch.Tensor:
    """Scores of the first picture: of its instances, or of all classes at every pixel."""
    first = pickle.loads(predictions.read_bytes())[0]  # written by this test
    return first['pred_instances']['scores'] if 'pred_instances' in first else first['seg_logits']['data']


@pytest.mark.parametrize('name', CONFIGS)
def test_bfloat16_in_two_processes_then_resumed_and_tested(name, letters, tmp_path, call):
    """Two processes in bfloat16, one that goes on from the middle; tests at one and at several scales, by both NMS."""
    config, work_dir, again = config_file(name, letters, tmp_path), tmp_path / 'run', tmp_path / 'again'
    launch = ['bash', 'tools/dist_train.sh', str(config), '2', '--amp', f'--work-dir={work_dir}']
    done = subprocess.run(launch, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and 'joined over gloo' in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert 'mmcnx2.BF16OptimWrapper' in stored_config(work_dir).read_text()
    losses, half = losses_of(work_dir), NUM_STEPS // 2
    assert list(losses) == list(range(1, 2 * half + 1)) and all(0 < loss < 20 for loss in losses.values())

    code, _, err = call('train', config, '--amp', '--resume', work_dir / f'iter_{half}.pth', '--work-dir', again)
    assert code == 0 and list(losses_of(again)) == list(losses)[half:], err

    kinds = {'plain': (), 'several scales': ('--tta',)}
    if name != 'upernet':
        for nms in ('nms', 'soft_nms'):
            by_nms = f'model.test_cfg.rcnn.nms.type={nms}', 'model.test_cfg.rcnn.nms.iou_threshold=0.1'
            kinds[nms] = ('--cfg-options', *by_nms)
    found = {}
    for kind, options in kinds.items():
        out = tmp_path / f'{kind}.json'
        command = [stored_config(work_dir), last_checkpoint(work_dir), '--work-dir', tmp_path / kind, '--out', out]
        code, _, err = call('test', *command, *options)
        assert code == 0, err
        assert set(METRICS[name]) <= set(json.loads(out.read_text()))
        code, _, err = call('test', *command[:-1], out.with_suffix('.pkl'), *options)
        assert code == 0, err
        found[kind] = scores_of(out.with_suffix('.pkl'))
    assert not torch.equal(found['plain'], found['several scales'])
    assert name == 'upernet' or not torch.equal(found['nms'], found['soft_nms'])
