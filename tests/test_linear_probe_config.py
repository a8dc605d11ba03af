"""configs/demo/linear-probe_*.py through tools/train.py, on class folders of one's own: the head learns, the backbone
stays bit for bit what the checkpoint had. The ImageNet configs of the same model are in test_imagenet_recipes.py.
"""

import json
from pathlib import Path

import torch
from micro_pretraining import write_class_folders
from mmengine.config import Config
from mmengine.registry import MODELS

from mmcnx2.checkpoint import read_checkpoint

CONFIG = Path(__file__).parents[1] / 'configs' / 'demo' / 'linear-probe_convnextv2-atto_demo.py'


def test_only_the_head_learns_and_it_learns(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    write_class_folders('pictures/train', num=8, noise=60)
    write_class_folders('pictures/val', num=4, noise=60)
    backbone = MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch='atto', out_norm=False))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    source = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    torch.save({'state_dict': source}, 'pretrained.pth')
    options = ['model.backbone.init_cfg.checkpoint=pretrained.pth', 'train_cfg.max_epochs=10', 'randomness.seed=0']
    options += ['model.head.num_classes=3', 'model.data_preprocessor.num_classes=3', 'train_dataloader.batch_size=8']
    for loader in ('train', 'val', 'test'):
        options += [f'{loader}_dataloader.dataset.data_root=pictures', f'{loader}_dataloader.num_workers=0']
        options += [f'{loader}_dataloader.persistent_workers=False']
    options += ['train_dataloader.dataset.pipeline.1.scale=32', 'val_dataloader.dataset.pipeline.1.scale=36']
    options += ['val_dataloader.dataset.pipeline.2.crop_size=32']
    code, _, err = call('train', CONFIG, '--work-dir', 'run', '--cfg-options', *options)
    assert code == 0, err
    found = read_checkpoint('run/epoch_10.pth')['state_dict']
    frozen = {name: value for name, value in found.items() if name.startswith('backbone.')}
    assert set(frozen) == set(source) and all(torch.equal(frozen[name], source[name]) for name in source)
    assert {name for name in found if name not in frozen} == {
        'head.fc.weight', 'head.fc.bias', 'neck.1.bn.running_mean', 'neck.1.bn.running_var',
        'neck.1.bn.num_batches_tracked',
    }  # fmt: skip
    (log,) = Path('run').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (accuracy,) = (line['accuracy/top1'] for line in lines if 'accuracy/top1' in line)
    assert accuracy > 90


def test_widths_and_classes_agree():
    cfg = Config.fromfile(CONFIG)
    assert cfg.model.backbone.frozen_stages == 4 and cfg.model.backbone.out_norm is False
    assert cfg.model.head.num_classes == cfg.model.data_preprocessor.num_classes == 6
    assert cfg.model.neck[1].input_features == cfg.model.head.in_channels == 320
