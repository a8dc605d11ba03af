"""Time of the mean cosine distance of channels against their number: by the sum of unit vectors, and by all pairs.

    python tools/benchmark/collapse_cost.py [--positions 196] [--threads 1] [--out FILE]

Prints a Markdown table: medians of `cosine_distance` and of the (C, C) matrix of all cosines, whose mean is the same
number. The runs of the two take turns.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

from mmcnx2.analysis.collapse import cosine_distance, effective_rank
from mmcnx2.analysis.comparison import markdown_table
from mmcnx2.analysis.provenance import machine, provenance, versions
from mmcnx2.atomic_write import write_atomically
from mmcnx2.engine.user_errors import explain_errors


def all_pairs(x_BNC: torch.Tensor) -> torch.Tensor:
    unit_BNC = torch.nn.functional.normalize(x_BNC.double(), dim=1)
    return ((1 - unit_BNC.mT @ unit_BNC) / 2).mean(dim=(1, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--positions', type=int, default=196)
    parser.add_argument('--channels', type=int, nargs='+', default=[160, 320, 640, 1280, 2560, 5120, 10240])
    parser.add_argument('--runs', type=int, default=7)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for C in args.channels:
        x_BNC = torch.nn.functional.gelu(torch.randn(1, args.positions, C))
        ways = dict(sum=cosine_distance, pairs=all_pairs, rank=effective_rank)
        seconds = {name: [] for name in ways}
        difference = float((cosine_distance(x_BNC) - all_pairs(x_BNC)).abs())
        for run in range(args.runs + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                way(x_BNC)
                if run:  # the first warms up
                    seconds[name].append(time.perf_counter() - started)
        milliseconds = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
        rows.append([str(C), *(f'{milliseconds[name]:.2f}' for name in ways), f'{difference:.1e}'])
    header = [
        'channels',
        'sum of unit vectors, ms',
        'all pairs, ms',
        'effective rank, ms',
        'difference of the first two',
    ]
    command = shlex.join(['python', 'tools/benchmark/collapse_cost.py', *sys.argv[1:]])
    text = markdown_table(header, rows) + (
        f'\n\nOne picture, {args.positions} positions, float64, {args.threads} threads, medians of {args.runs} runs. '
        f'The numbers are those of noise after a GELU.\n\n```\n{command}\n```\n\n'
        + provenance(dict(machine=machine(), versions=versions(), finished=time.strftime('%Y-%m-%d')))
    )
    print(text)
    if args.out:
        write_atomically(args.out, text + '\n')


if __name__ == '__main__':
    with explain_errors():
        main()
