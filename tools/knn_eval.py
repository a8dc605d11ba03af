"""What are features worth, without training anything? Weighted k nearest neighbours on a frozen backbone.

    python tools/knn_eval.py CONFIG CHECKPOINT --train FOLDER [--val FOLDER] [--k 10 20] [--temperature 0.07]
        [--layer output] [--size PX] [--out knn.json]
    python tools/knn_eval.py CONFIG --init random --seed 0 --train FOLDER

FOLDER holds a folder per class, or is a text file with a path and a label per line. Without --val every picture is
tested against the others in five folds. Features are the layer's values averaged over positions (DINO's protocol,
cosine similarity); they are kept in --cache under everything that they depend on, and read from there in pieces, so
that ImageNet fits. CONFIG is of any task; `--init random` is the baseline. Prints, per k, the share of pictures whose
class is right (top1), is among five (top5), and top1 averaged over the classes (balanced).

Touch this file for what is printed; the voting is in mmcnx2/analysis/knn.py, features are in
mmcnx2/analysis/features.py. Guarded by tests/analysis/test_knn_eval.py.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from mmengine.logging import MMLogger

from mmcnx2.analysis.comparison import plain_table
from mmcnx2.analysis.knn import accuracies, knn_predictions
from mmcnx2.engine.feature_options import (
    add_feature_arguments,
    labelled_features,
    protocol,
    show_progress,
    write_result,
)
from mmcnx2.engine.user_errors import explain_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_feature_arguments(parser)
    parser.add_argument('--k', type=int, nargs='+', default=[10, 20], help='neighbours; default 10 20')
    parser.add_argument('--temperature', type=float, default=0.07, help='of the votes; default %(default)s')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel('WARNING')  # what is loaded is printed below

    def check(num_to_learn_from: int) -> None:
        if not 1 <= max(args.k) <= num_to_learn_from or min(args.k) < 1:
            raise ValueError(f'--k {args.k}: between 1 and {num_to_learn_from}, the pictures to choose from')

    with explain_errors():
        found = labelled_features(args, show_progress, check)
        ranked, labels = {k: [] for k in args.k}, []
        for split in found.splits():
            predicted = knn_predictions(
                split.train_features,
                split.train_labels,
                split.test_features,
                args.k,
                args.temperature,
                len(found.classes),
                args.device,
            )
            for k, classes_QR in predicted.items():
                ranked[k].append(classes_QR)
            labels.append(split.test_labels)
        results = {
            k: accuracies(torch.cat(parts), np.concatenate(labels), len(found.classes)) for k, parts in ranked.items()
        }
        rows = [[f'k = {k}', *(f'{100 * value:.2f}' for value in one.values())] for k, one in results.items()]
        print(plain_table(['', *next(iter(results.values()))], rows))
        print(f'\n{protocol(found, args)}; temperature {args.temperature:g}.')
        write_result(args, 'knn_eval', found, {str(k): one for k, one in results.items()})


if __name__ == '__main__':
    main()
