"""Are pretrained features better than random ones? kNN and linear probe of several starts, over seeds, as one table.

    python tools/benchmark/feature_quality.py CONFIG --train CLASS_FOLDERS [--val CLASS_FOLDERS]
        --init random --init FCMAE=run_seed0/epoch_18.pth,run_seed1/epoch_18.pth,... [--out results.md]

Each start has a checkpoint per seed (or `random`); seed s draws the random weights and the folds. Runs
tools/knn_eval.py and tools/linear_probe.py, whose features are cached, at the output and at the layers of --layers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmcnx2.analysis.comparison import format_values, markdown_table
from mmcnx2.analysis.provenance import machine, provenance, versions


def run(tool: str, args: argparse.Namespace, checkpoint: str, seed: int, layer: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'result.json'
        start = ['--init', 'random'] if checkpoint == 'random' else [checkpoint]
        command = [sys.executable, str(ROOT / 'tools' / f'{tool}.py'), args.config, *start, '--train', args.train]
        command += ['--val', args.val] if args.val else []
        command += ['--seed', str(seed), '--layer', layer, '--cache', args.cache, '--out', str(out), '--workers', '0']
        command += ['--k', str(args.k)] if tool == 'knn_eval' else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f'{shlex.join(command)}\n{done.stderr}')
        return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--train', required=True)
    parser.add_argument('--val')
    parser.add_argument('--init', action='append', required=True, metavar='NAME=CHECKPOINT,CHECKPOINT,... | random')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--layers', nargs='+', default=['output', 'stages.2.5', 'stages.1.1'])
    parser.add_argument('--k', type=int, default=10)
    parser.add_argument('--cache', default='work_dirs/features')
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    rows, most_frequent = [], None
    for start in args.init:
        name, _, listed = start.partition('=')
        checkpoints = listed.split(',') if listed else [name] * args.seeds
        for layer in args.layers:
            values = {'kNN top-1': [], 'kNN balanced': [], 'probe top-1': [], 'probe balanced': []}
            for seed, checkpoint in enumerate(checkpoints):
                found = run('knn_eval', args, checkpoint, seed, layer)
                most_frequent = found['most_frequent']
                values['kNN top-1'].append(100 * found['results'][str(args.k)]['top1'])
                values['kNN balanced'].append(100 * found['results'][str(args.k)]['balanced'])
                found = run('linear_probe', args, checkpoint, seed, layer)['results']
                values['probe top-1'].append(100 * found['top1'])
                values['probe balanced'].append(100 * found['balanced'])
            rows.append([f'{name}, {layer}', *(format_values(one, 1) for one in values.values())])
            print(rows[-1], flush=True)
    table = markdown_table(['start, layer', 'kNN top-1', 'kNN balanced', 'probe top-1', 'probe balanced'], rows)
    text = (
        f'{table}\n\nPer cent, mean ± sample standard deviation over {len(checkpoints)} seeds; k = {args.k}. Always '
        f'saying the most frequent class scores {100 * most_frequent:.1f}.\n\n'
        f'```\n{shlex.join(["python", "tools/benchmark/feature_quality.py", *sys.argv[1:]])}\n```\n\n'
        + provenance(dict(machine=machine(), versions=versions(), finished=time.strftime('%Y-%m-%d')))
    )
    print(f'\n{text}')
    if args.out:
        args.out.write_text(text + '\n')


if __name__ == '__main__':
    main()
