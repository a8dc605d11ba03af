"""Are pretrained features better than random ones? kNN and linear probe of several starts, over seeds, as one table.

    python tools/benchmark/feature_quality.py CONFIG --train CLASS_FOLDERS [--val CLASS_FOLDERS] [--seeds 3]
        --init random --init FCMAE=run_seed0/epoch_18.pth,run_seed1/epoch_18.pth,... [--out results.md]

Each start has a checkpoint per seed (or `random`); seed s draws the random weights and the folds. Measures what
tools/knn_eval.py and tools/linear_probe.py do, whose features are cached, at the layers of --layers, by default the
output and the end of the third stage of atto. --out gets the table, a .json beside it every figure; what that has
already, of the same options and the same contents of the checkpoints, is not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

import knn_eval
import linear_probe

from mmcnx2.analysis.comparison import format_values, markdown_table
from mmcnx2.analysis.provenance import machine, provenance, versions
from mmcnx2.atomic_write import write_atomically
from mmcnx2.engine.user_errors import explain_errors

RANDOM = 'random'
TOOLS = {'kNN': knn_eval, 'probe': linear_probe}
FIGURES = {'top-1': 'top1', 'balanced': 'balanced'}


def measure(tool: str, args: argparse.Namespace, checkpoint: str, seed: int, layer: str) -> dict:
    """What the tool writes as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'result.json'
        options = [args.config, *(['--init', RANDOM] if checkpoint == RANDOM else [checkpoint])]
        options += ['--train', args.train, *(['--val', args.val] if args.val else []), '--seed', str(seed)]
        options += ['--layer', layer, '--cache', args.cache, '--out', str(out), '--workers', '0']
        options += ['--k', str(args.k)] if tool == 'kNN' else []
        with contextlib.redirect_stdout(io.StringIO()):
            TOOLS[tool].main(options)
        return json.loads(out.read_text())


def measure_start(args: argparse.Namespace, checkpoints: list[str], layer: str) -> dict:
    """Figures of one start at one layer, a value per seed, and what was tested."""
    cells = {}
    for tool in TOOLS:
        found = [measure(tool, args, checkpoint, seed, layer) for seed, checkpoint in enumerate(checkpoints)]
        results = [one['results'].get(str(args.k), one['results']) for one in found]
        for title, figure in FIGURES.items():
            cells[f'{tool} {title}'] = [100 * one[figure] for one in results]
    return {'classes': found[0]['classes'], 'most_frequent': found[0]['most_frequent'], 'per cent': cells}


def checkpoints_of(start: str, num_seeds: int) -> tuple[str, list[str]]:
    """'random', or 'NAME=FILE,FILE,...' -> (name, a checkpoint per seed)."""
    name, _, listed = start.partition('=')
    checkpoints = listed.split(',') if listed else [RANDOM] * num_seeds
    if len(checkpoints) != num_seeds or (not listed and name != RANDOM):
        raise ValueError(f"--init {start}: give '{RANDOM}' or NAME= and {num_seeds} checkpoints (--seeds)")
    return name, checkpoints


def digest(checkpoint: str) -> str | None:
    """SHA-256 of the file; None of random weights and of official ones, whose names stand for fixed contents."""
    if not Path(checkpoint).is_file():
        return None
    with open(checkpoint, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--train', required=True)
    parser.add_argument('--val')
    parser.add_argument('--init', action='append', required=True, metavar='NAME=CHECKPOINT,CHECKPOINT,... | random')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--layers', nargs='+', default=['output', 'stages.2.5'])
    parser.add_argument('--k', type=int, default=10)
    parser.add_argument('--cache', default='work_dirs/features')
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    starts = dict(checkpoints_of(start, args.seeds) for start in args.init)
    stored = args.out.with_suffix('.json') if args.out else None
    figures = json.loads(stored.read_text())['figures'] if stored and stored.is_file() else []
    origin = dict(machine=machine(), versions=versions(), finished=time.strftime('%Y-%m-%d'))
    command = shlex.join(['python', 'tools/benchmark/feature_quality.py', *sys.argv[1:]])
    rows = []
    for name, checkpoints in starts.items():
        contents = dict(digests=[digest(checkpoint) for checkpoint in checkpoints])
        for layer in args.layers:
            asked = dict(
                start=name, checkpoints=checkpoints, layer=layer, config=args.config, train=args.train, val=args.val,
                k=args.k,
            )  # fmt: skip
            found = next((one for one in figures if (asked | contents).items() <= one.items()), None)
            if found is None:
                found = asked | contents | measure_start(args, checkpoints, layer)
                figures = [one for one in figures if not asked.items() <= one.items()] + [found]
                if stored:
                    write_atomically(
                        stored, json.dumps(dict(command=command, **origin, figures=figures), indent=1) + '\n'
                    )
            rows.append([f'{name}, {layer}', *(format_values(values, 1) for values in found['per cent'].values())])
            print(' | '.join(rows[-1]), flush=True)
    text = '\n\n'.join(
        [
            markdown_table(['start, layer', *found['per cent']], rows),
            f'Per cent, mean ± sample standard deviation over {args.seeds} seeds; k = {args.k}. Tested: '
            + ', '.join(f'{number} {name}' for name, number in found['classes'].items())
            + f'. Always saying the most frequent class scores {100 * found["most_frequent"]:.1f}.',
            f'```\n{command}\n```',
            provenance(origin),
        ]
    )
    print(f'\n{text}')
    if args.out:
        write_atomically(args.out, text + '\n')


if __name__ == '__main__':
    with explain_errors():
        main()
