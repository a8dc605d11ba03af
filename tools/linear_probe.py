"""What are features worth to a linear classifier? Logistic regression on a frozen backbone, for your own class folders.

    python tools/linear_probe.py CONFIG CHECKPOINT --train FOLDER [--val FOLDER] [--layer output] [--size PX]
        [--out probe.json]
    python tools/linear_probe.py CONFIG --init random --seed 0 --train FOLDER

Pictures, folds, features and their cache are those of tools/knn_eval.py: what one has computed the other uses. The
classifier is fitted to the end (L-BFGS) on standardised features; the strength of its L2 penalty is chosen on a fifth
of the pictures that are learnt from. Nothing depends on a learning rate, so checkpoints can be compared on a few
hundred pictures, in seconds. For ImageNet with MAE's protocol (augmented pictures, LARS, 90 epochs) train
configs/imagenet/linear-probe_*.py.

Touch this file for what is printed; the classifier is in mmcnx2/analysis/linear_probe.py. Guarded by
tests/analysis/test_linear_probe.py and tests/analysis/test_knn_eval.py.
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
from mmcnx2.analysis.knn import accuracies
from mmcnx2.analysis.linear_probe import PENALTIES, fit_probe
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
    parser.add_argument(
        '--penalty',
        type=float,
        nargs='+',
        default=list(PENALTIES),
        help=f'strengths to choose from; default {PENALTIES[-1]:g} to {PENALTIES[0]:g} by tens',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel('WARNING')  # what is loaded is printed below
    with explain_errors():
        if min(args.penalty) <= 0:
            raise ValueError(f'--penalty {args.penalty}: above 0, else separable classes have no best classifier')
        found = labelled_features(args, show_progress)
        ranked, labels, learnt, penalties = [], [], [], []
        for split in found.splits():
            probe = fit_probe(
                split.train_features,
                split.train_labels,
                len(found.classes),
                args.seed,
                args.penalty,
                args.device,
            )
            ranked.append(probe.ranked(split.test_features))
            labels.append(split.test_labels)
            on_train = probe.ranked(split.train_features)[:, 0].numpy()
            learnt.append(float((on_train == split.train_labels).mean()))
            penalties.append(probe.penalty)
        results = accuracies(torch.cat(ranked), np.concatenate(labels), len(found.classes))
        results.update(train_top1=float(np.mean(learnt)), penalties=penalties)
        names = [name for name in results if name != 'penalties']
        print(plain_table(['', *names], [['linear probe', *(f'{100 * results[name]:.2f}' for name in names)]]))
        print(f'\n{protocol(found, args)}; penalty {", ".join(f"{one:g}" for one in penalties)}.')
        write_result(args, 'linear_probe', found, results)


if __name__ == '__main__':
    main()
