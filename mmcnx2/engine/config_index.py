"""The lists of our configs, made from the files: tables for people, a model index for mim and mmengine's hub.

`index_files` says which files these are and what must stand in them; tools/write_config_index.py writes them, and a
test compares. Touch it for what the lists say; not for a config's own words, which stand on its card. Guarded by
tests/engine/test_config_index.py.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from mmengine.config import Config

import mmcnx2
from mmcnx2.analysis.model_cost import Cost, input_shape_of, model_cost

from .config_card import ConfigCard, read_card
from .user_errors import one_line

TABLES_START, TABLES_END = '<!-- tables: python tools/write_config_index.py -->\n', '<!-- end of tables -->\n'
TABLE_HEADER = '| config | images per step | length | parameters | GFLOPs | expect |\n|---|---|---|---|---|---|'
FOLDER_TITLES = dict(
    ablation='Ablations of the paper: pretraining and fine-tuning, the rows by options',
    ade20k='ADE20K: UPerNet',
    coco='COCO: Mask R-CNN and Cascade Mask R-CNN',
    demo='The demo',
    imagenet='ImageNet: fine-tuning, linear probe, training from scratch',
    pretrain='FCMAE pretraining',
)
METHODS = {
    'fcmae': 'FCMAE',
    'mask-rcnn': 'Mask R-CNN',
    'cascade-mask-rcnn': 'Cascade Mask R-CNN',
    'upernet': 'UPerNet',
    'linear-probe': 'Linear probe',
}
DATA_SETS = dict(in1k='ImageNet-1k', in22k='ImageNet-22k', coco='COCO', ade20k='ADE20K', demo='demo scenes')
PAPERS = {
    'convnextv2': dict(
        Title='ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders',
        URL='https://arxiv.org/abs/2301.00808',
    ),
    'convnext': dict(Title='A ConvNet for the 2020s', URL='https://arxiv.org/abs/2201.03545'),
    'swin': dict(Title='SimMIM: A Simple Framework for Masked Image Modeling', URL='https://arxiv.org/abs/2111.09886'),
}
# Settings of a model that change neither its parameters nor the multiply-adds of an image, and a value for all of them
ONLY_TRAINING = dict(data_preprocessor=None, train_cfg=None, init_cfg=None, drop_path_rate=0.0, with_cp=False)
METAFILE_HEAD = """\
# Written by tools/write_config_index.py from the configs; do not edit.
# FLOPs are multiply-adds of one image of Input Size. Published: what papers report for weights of their own (AP, mIoU
# and top-1 in per cent); weights trained with these configs are not released, so there are no Results and no Weights.
"""
INDEX_HEAD = '# Written by tools/write_config_index.py; do not edit.\n'


@dataclass(frozen=True)
class IndexEntry:
    """What the lists say about one config."""

    name: str  # below configs/, with .py
    card: ConfigCard
    cost: Cost
    images_per_step: int
    max_epochs: int | None
    max_iters: int | None

    @property
    def folder(self) -> str:
        return self.name.split('/')[0]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def length(self) -> str:
        return f'{self.max_epochs} epochs' if self.max_epochs else f'{self.max_iters:,} steps'

    @property
    def method(self) -> str:
        return METHODS.get(self.stem.split('_')[0], 'Classification')

    @property
    def backbone(self) -> str:
        """'convnextv2', 'convnext' or 'swin': the family that the file name says."""
        first, second, *_ = self.stem.split('_')
        return (second if first in METHODS else first).rsplit('-', 1)[0]

    @property
    def data_set(self) -> str:
        return DATA_SETS[re.search(rf'_({"|".join(DATA_SETS)})(?:-[^_]*)?$', self.stem)[1]]


def config_names() -> list[str]:
    """Every config of ours, by its path below configs/, in the order of the lists; files of `_base_` are none."""
    configs = mmcnx2.configs_dir()
    return sorted(path.relative_to(configs).as_posix() for path in configs.glob('[a-z]*/**/*.py'))


@functools.cache
def index_entry(name: str) -> IndexEntry:
    """The entry of a config; read and counted once per process."""
    path = mmcnx2.configs_dir() / name
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program; mmengine's errors do not say in which file
        raise ValueError(f'{path}: {one_line(error)}') from error
    batch = cfg.get('auto_scale_lr', {}).get('base_batch_size') or cfg.train_dataloader.batch_size
    model = _without_training(cfg.model.to_dict())
    model['backbone'] = _without_training(model['backbone'])
    cost = _cost(json.dumps(model, sort_keys=True), cfg.default_scope, input_shape_of(cfg))
    return IndexEntry(
        name, read_card(path), cost, batch, cfg.train_cfg.get('max_epochs'), cfg.train_cfg.get('max_iters')
    )


def _without_training(node: dict) -> dict:
    return {key: ONLY_TRAINING.get(key, value) for key, value in node.items()}


@functools.cache
def _cost(model: str, scope: str, input_shape: tuple[int, int]) -> Cost:
    """Cost of a model given as JSON: configs that differ in their training alone are counted once."""
    return model_cost(Config(dict(model=json.loads(model), default_scope=scope)), input_shape)


def index_files(names: list[str] | None = None) -> dict[str, str]:
    """Text of every list by its path below the checkout: configs/README.md, a metafile.yml per folder, the index.

    `names`: configs to list; None lists all. The tables of configs/README.md stand between two comments, what is around
    them is kept.
    """
    entries = [index_entry(name) for name in names or config_names()]
    folders = list(dict.fromkeys(entry.folder for entry in entries))
    readme = (mmcnx2.configs_dir() / 'README.md').read_text(encoding='utf-8')
    head, found, rest = readme.partition(TABLES_START)
    _, end, tail = rest.partition(TABLES_END)
    if not found or not end:
        raise ValueError(
            f'configs/README.md has no lines {TABLES_START.strip()!r} and {TABLES_END.strip()!r} around its tables'
        )
    files = {'configs/README.md': head + found + readme_tables(entries) + end + tail}
    for folder in folders:
        of_folder = [entry for entry in entries if entry.folder == folder]
        files[f'configs/{folder}/metafile.yml'] = METAFILE_HEAD + _yaml(metafile(folder, of_folder))
    files['model-index.yml'] = INDEX_HEAD + _yaml({'Import': [f'configs/{folder}/metafile.yml' for folder in folders]})
    return files


def readme_tables(entries: list[IndexEntry]) -> str:
    """A heading and a table per folder."""
    parts = []
    for folder in dict.fromkeys(entry.folder for entry in entries):
        rows = [_row(entry) for entry in entries if entry.folder == folder]
        parts += [f'### {FOLDER_TITLES.get(folder, folder)} ({len(rows)} configs)\n', TABLE_HEADER, *rows, '']
    return '\n'.join(parts)


def _row(entry: IndexEntry) -> str:
    gflops = entry.cost.flops / 1e9
    return (
        f'| [{entry.stem}]({entry.name}) | {entry.images_per_step} | {entry.length} | {entry.cost.params / 1e6:.1f}M '
        f'| {f"{gflops:.2f}" if gflops < 100 else f"{gflops:.0f}"} | {entry.card.expect} |'
    )


def metafile(folder: str, entries: list[IndexEntry]) -> dict:
    """The content of a folder's metafile.yml, as OpenMMLab writes them: collections, and a model per config."""
    methods = dict.fromkeys(_collection(entry) for entry in entries)
    return {
        'Collections': [{'Name': method, 'README': 'configs/README.md'} for method in methods],
        'Models': [_model(entry) for entry in entries],
    }


def _collection(entry: IndexEntry) -> str:
    return 'Demo' if entry.folder == 'demo' else entry.method


def _model(entry: IndexEntry) -> dict:
    length = {'Epochs': entry.max_epochs} if entry.max_epochs else {'Iterations': entry.max_iters}
    height, width = entry.cost.input_shape
    published = {f'Published {figure}': value for figure, value in entry.card.published.items()}
    return {
        'Name': entry.stem,
        'In Collection': _collection(entry),
        'Config': f'configs/{entry.name}',
        'Metadata': {
            'Training Data': entry.data_set,
            **length,
            'Batch Size': entry.images_per_step,
            'Input Size': f'{height}x{width}',
            'FLOPs': entry.cost.flops,
            'Parameters': entry.cost.params,
            **published,
        },
        'Expect': entry.card.expect,
        'Paper': PAPERS[entry.backbone],
        'README': 'configs/README.md',
    }


class _Dumper(yaml.SafeDumper):
    """Without anchors: the same paper under two models is written twice."""

    def ignore_aliases(self, data) -> bool:
        return True


def _yaml(content: dict) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
