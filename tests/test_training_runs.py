"""Whole training runs through the tools: two processes against one, and sharded parameters. Runs that are killed and
resumed: tests/engine/test_train_loops.py and tests/faults/test_kill_campaign.py.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmcnx2.checkpoint import load_pretrained_backbone, read_checkpoint
from mmcnx2.models.backbones import ConvNeXtV2

ROOT = Path(__file__).resolve().parents[1]
CONFIG = f"""
_base_ = '{ROOT}/configs/demo/fcmae_convnextv2-atto_demo.py'
arch = dict(_delete_=True, depths=[1, 1, 1, 1], channels=[8, 16, 24, 32])
model = dict(backbone=dict(arch=arch), neck=dict(decoder_channels=32))
"""
ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable}
NUM_IMAGES, BATCH_SIZE, NUM_EPOCHS = 40, 8, 4  # 20 steps


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> Path:
    """Smooth random pictures; noise would give nothing to learn."""
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((128, 96), Image.Resampling.BICUBIC).save(folder / f'{i}.png')
    return folder


def options(images: Path, work_dir: Path, batch_size: int = BATCH_SIZE) -> list[str]:
    return [
        f'--work-dir={work_dir}', '--cfg-options', f'train_dataloader.dataset.source={images}',
        f'train_dataloader.batch_size={batch_size}', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False', f'train_cfg.max_epochs={NUM_EPOCHS}',
        'default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=1', 'log_processor.window_size=1',
    ]  # fmt: skip


def run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def losses_of(work_dir: Path) -> dict[int, float]:
    """{step: loss}, from all runs in the folder; the latest run's figure where two logged the same step."""
    losses = {}
    for scalars in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in scalars.read_text().splitlines():
            entry = json.loads(line)
            losses[entry['step']] = entry['loss']
    return losses


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> str:
    """The demo's pretraining with a micro network."""
    path = tmp_path_factory.mktemp('configs') / 'micro.py'
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture(scope='module')
def one_process(images, config, tmp_path_factory) -> dict[int, float]:
    work_dir = tmp_path_factory.mktemp('one')
    run([sys.executable, 'tools/train.py', config, *options(images, work_dir)])
    return losses_of(work_dir)


def test_two_processes_train_as_one(images, config, one_process, tmp_path):
    """The same global batches and masks: the losses agree to 1e-5 over 20 steps."""
    run(['bash', 'tools/dist_train.sh', config, '2', *options(images, tmp_path, BATCH_SIZE // 2)])
    two = losses_of(tmp_path)
    assert list(two) == list(one_process) == list(range(1, 21))
    assert one_process[20] < one_process[1]
    worst = max(abs(two[step] - loss) for step, loss in one_process.items())
    assert worst < 1e-5, f'the losses differ by up to {worst:.1e}'


FSDP = [
    'runner_type=FlexibleRunner', 'strategy.type=FSDPStrategy',
    'strategy.model_wrapper.auto_wrap_policy.type=torch.distributed.fsdp.wrap.size_based_auto_wrap_policy',
    'strategy.model_wrapper.auto_wrap_policy.min_num_params=500',
]  # fmt: skip


def test_sharded_parameters_train_as_one_process(images, config, one_process, tmp_path):
    """FSDP over two processes, units of 500 parameters: losses, checkpoint and resumed run are those of one process."""
    command = ['bash', 'tools/dist_train.sh', config, '2', *options(images, tmp_path / 'run', BATCH_SIZE // 2), *FSDP]
    run([*command, 'default_hooks.checkpoint.max_keep_ckpts=-1'])
    sharded = losses_of(tmp_path / 'run')
    assert list(sharded) == list(one_process)
    worst = max(abs(sharded[step] - loss) for step, loss in one_process.items())
    assert worst < 1e-5, f'the losses differ by up to {worst:.1e}'
    # The whole state in one file: a backbone checkpoint as any other
    backbone = ConvNeXtV2(dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32]))
    load_pretrained_backbone(backbone, tmp_path / 'run' / 'epoch_4.pth')
    saved = read_checkpoint(tmp_path / 'run' / 'epoch_4.pth')
    saved = saved.get('state_dict', saved)
    assert torch.equal(backbone.stages[0][0].pwconv1.weight, saved['backbone.stages.0.0.pwconv1.weight'])
    assert saved['backbone.stages.0.0.pwconv1.weight'].shape == (32, 8)
    # Going on from the middle
    again = tmp_path / 'again'
    again.mkdir()
    shutil.copy(tmp_path / 'run' / 'epoch_2.pth', again)
    (again / 'last_checkpoint').write_text(str(again / 'epoch_2.pth'))
    command = ['bash', 'tools/dist_train.sh', config, '2', '--resume', *options(images, again, BATCH_SIZE // 2), *FSDP]
    run(command)
    assert losses_of(again) == {step: loss for step, loss in sharded.items() if step > 10}
