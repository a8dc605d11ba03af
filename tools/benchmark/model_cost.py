"""Parameters and FLOPs (multiply-adds) of configs, beside the published figures.

    python tools/benchmark/model_cost.py [CONFIG ...] [--json FILE] [--markdown FILE]

Without CONFIG: every config of the paper's experiments, at the image sizes of the papers. `--size HEIGHT WIDTH` counts
another size. Everything is computed from shapes, on the meta device; no weights, data or GPU are needed, and the
machine does not matter. Touch this file for how the figures are shown; what is counted stands in
mmcnx2/analysis/model_cost.py. Guarded by tests/analysis/test_model_cost.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import track

import mmcnx2
from mmcnx2.analysis.comparison import markdown_table, plain_table
from mmcnx2.analysis.model_cost import NUM_BOX_ROIS, NUM_MASK_ROIS, Cost, model_cost
from mmcnx2.analysis.published_costs import PublishedCost, published_cost
from mmcnx2.atomic_write import write_atomically
from mmcnx2.engine.run_config import find_config
from mmcnx2.engine.user_errors import explain_errors, one_line

HEADER = ('config', 'image (H x W)', 'params', 'published', 'GFLOPs', 'published', 'difference')
CONVENTION = (
    'FLOPs are multiply-adds of one image at test time, as the papers count: convolutions, linear layers and products '
    'of activations, without biases, norms, GRN, activations, pooling and resizing. Detectors: backbone, neck and RPN '
    f'on the image, every box head on {NUM_BOX_ROIS} RoIs, every mask head on {NUM_MASK_ROIS}. Segmentors: without the '
    'auxiliary head, whose parameters count. FCMAE: encoder on the visible cells (depthwise convolutions on the whole '
    'map, as they run), decoder and head.'
)


@dataclass(frozen=True)
class Entry:
    """One row: the config's name below configs/ (or its path), what was counted and what was published."""

    name: str
    cost: Cost
    published: PublishedCost | None
    dense_encoder_flops: int | None  # FCMAE only: the encoder on the whole masked map

    @property
    def difference(self) -> float | None:
        """Ours against the published FLOPs, in per cent."""
        return 100 * (self.cost.flops / 1e9 / self.published.gflops - 1) if self.published else None


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help='default: every config of the paper')
    parser.add_argument('--size', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'), help="instead of the config's own")
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all figures, also those of each part')
    parser.add_argument('--markdown', type=Path, metavar='FILE', help='write the table, conventions and versions')
    return parser.parse_args(argv)


def count(name: str, size: Sequence[int] | None) -> Entry:
    path = find_config(name)
    cfg = Config.fromfile(path)
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(f'{path} has no `model`; files in _base_ are parts of a config')
    try:
        cost = model_cost(cfg, tuple(size) if size else None)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # a config is a program, and it is the user's
        raise ValueError(f'{path}: {one_line(error)}') from error
    dense = None
    if 'mask_ratio' in cfg.model:
        whole = copy.deepcopy(cfg)
        whole.model.layout = 'dense'
        dense = model_cost(whole, cost.input_shape).flops_by_part['backbone']
    configs = mmcnx2.configs_dir()
    inside = path.resolve().is_relative_to(configs)
    shown = path.resolve().relative_to(configs).as_posix() if inside else str(path)
    return Entry(shown, cost, None if size else published_cost(shown), dense)


def cells(entry: Entry) -> list[str]:
    cost, published = entry.cost, entry.published
    return [
        entry.name.removesuffix('.py'),
        '{} x {}'.format(*cost.input_shape),
        f'{cost.params / 1e6:.1f}M',
        f'{published.million_params:g}M' if published and published.million_params else '-',
        gflops(cost.flops),
        f'{published.gflops:g}' if published else '-',
        f'{entry.difference:+.2f}%' if published else '-',
    ]


def gflops(flops: int) -> str:
    return f'{flops / 1e9:.2f}' if flops < 1e11 else f'{flops / 1e9:.1f}'


def remarks(entries: Sequence[Entry]) -> list[str]:
    """What the table cannot say in its columns, where it applies."""
    found = []
    attentive = [entry for entry in entries if entry.published and entry.cost.attention_flops]
    if attentive:
        without = '; '.join(
            f'{"_".join(Path(entry.name).stem.split("_")[:2])} '
            f'{gflops(entry.cost.flops - entry.cost.attention_flops)} (published {entry.published.gflops:g})'
            for entry in attentive
        )
        found.append(
            'Models with attention come out higher than published, because the products of queries and keys and of '
            'weights and values are counted here; a counter that hooks layers, such as the one of mmcv 1, does not '
            f'see them. Without them, in GFLOPs: {without}.'
        )
    return found


def pretraining_rows(entries: Sequence[Entry]) -> list[list[str]]:
    return [
        [
            entry.name.removesuffix('.py'),
            gflops(entry.cost.flops_by_part['backbone']),
            gflops(entry.dense_encoder_flops),
            f'{entry.cost.flops_by_part["backbone"] / entry.dense_encoder_flops:.3f}',
            gflops(entry.cost.flops - entry.cost.flops_by_part['backbone']),
        ]
        for entry in entries
        if entry.dense_encoder_flops
    ]


def versions() -> dict[str, str]:
    forks = {fork: mmcnx2.installed_version(fork) for fork, *_ in mmcnx2.OPENMMLAB.values()}
    return {'mmcnx2': mmcnx2.__version__, 'Python': platform.python_version(), 'torch': torch.__version__, **forks}


def markdown(entries: Sequence[Entry], command: str) -> str:
    sources = sorted({entry.published.source for entry in entries if entry.published})
    parts = [
        '# Parameters and FLOPs',
        'Computed from shapes, not timed; the machine does not matter.',
        markdown_table(HEADER, [cells(entry) for entry in entries]),
        CONVENTION,
        *remarks(entries),
    ]
    if sources:
        parts.append('Published figures: ' + '; '.join(sources) + '.')
    if rows := pretraining_rows(entries):
        header = ('GFLOPs of pretraining', 'encoder, visible cells', 'encoder, whole map', 'ratio', 'decoder and head')
        parts += ['## FCMAE', markdown_table(header, rows)]
    parts += [f'```\n{command}\n```', ', '.join(f'{name} {version}' for name, version in versions().items())]
    return '\n\n'.join(parts) + '\n'


def as_json(entries: Sequence[Entry]) -> str:
    rows = [
        dict(
            config=entry.name,
            input_shape=entry.cost.input_shape,
            params=entry.cost.params,
            flops=entry.cost.flops,
            flops_by_part=entry.cost.flops_by_part,
            attention_flops=entry.cost.attention_flops,
            dense_encoder_flops=entry.dense_encoder_flops,
            published_million_params=entry.published and entry.published.million_params,
            published_gflops=entry.published and entry.published.gflops,
            published_source=entry.published and entry.published.source,
        )
        for entry in entries
    ]
    return json.dumps(dict(convention=CONVENTION, versions=versions(), configs=rows), indent=1) + '\n'


def paper_configs() -> list[str]:
    configs = mmcnx2.configs_dir()
    names = sorted(path.relative_to(configs).as_posix() for path in configs.glob('[a-z]*/**/*.py'))
    return [name for name in names if not name.startswith('demo/')]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel('WARNING')
    warnings.filterwarnings('ignore', message='Default ``avg_non_ignore``')  # mmseg, of a loss that is not run
    names = args.configs or paper_configs()
    progress = track(names, 'configs', console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    entries = [count(name, args.size) for name in progress]
    print(plain_table(HEADER, [cells(entry) for entry in entries]))
    for text in [CONVENTION, *remarks(entries)]:
        print(f'\n{text}')
    if args.json:
        write_atomically(args.json, as_json(entries))
    if args.markdown:
        command = ' '.join(['python', 'tools/benchmark/model_cost.py', *(sys.argv[1:] if argv is None else argv)])
        write_atomically(args.markdown, markdown(entries, command))


if __name__ == '__main__':
    with explain_errors():
        main()
