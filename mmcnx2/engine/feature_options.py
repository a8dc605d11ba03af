"""What tools/knn_eval.py and tools/linear_probe.py share: their options, and labelled features from them.

    options --> labelled pictures, backbone, reader --> features (cached) --> splits: what is learnt from and tested on

Touch this file for which pictures are measured and on which parts; not for how features are made
(mmcnx2/analysis/features.py). Guarded by tests/engine/test_feature_options.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from mmengine.config import Config

from mmcnx2.analysis.activations import OUTPUT
from mmcnx2.analysis.features import FeatureSource, features_of, stratified_folds
from mmcnx2.analysis.pictures import PictureReader, crop_size
from mmcnx2.analysis.provenance import machine, versions
from mmcnx2.analysis.trained_models import load_trained_backbone
from mmcnx2.atomic_write import write_atomically
from mmcnx2.datasets.labelled_images import find_labelled_images
from mmcnx2.given_path import given_path

from .run_config import find_config

CROP_SHARE = 0.875  # what classifiers are tested with: 224 of 256 px


def add_feature_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which features of which pictures."""
    parser.add_argument('config', help='config of any task; its backbone, preprocessor and reader are used')
    parser.add_argument('checkpoint', nargs='?', help='file of any layout, or official:NAME; not with --init random')
    parser.add_argument('--init', choices=('checkpoint', 'random'), default='checkpoint', help='random: the baseline')
    parser.add_argument(
        '--train', required=True, metavar='FOLDER|LIST', help='class folders, or a text file with a path and a label'
    )
    parser.add_argument(
        '--val', metavar='FOLDER|LIST', help='what is measured; without it: cross-validation on --train (--folds)'
    )
    parser.add_argument('--folds', type=int, default=5, help='parts of the cross-validation; default %(default)s')
    parser.add_argument('--layer', default=OUTPUT, help='stages.1.1, stages.3.1.grn, ...; default: what it returns')
    parser.add_argument(
        '--size', type=int, nargs='+', metavar='PX', help="height [and width] in pixels; default: the config's crop"
    )
    parser.add_argument(
        '--crop-share', type=float, default=CROP_SHARE, help='share of the side that is kept; default %(default)s'
    )
    parser.add_argument('--seed', type=int, default=0, help='of random weights and of the folds; default %(default)s')
    parser.add_argument('--cache', default='work_dirs/features', help="where features are kept; '' computes them anew")
    parser.add_argument('--batch-size', type=int, default=64, help='default %(default)s')
    parser.add_argument('--workers', type=int, default=2, help='processes that read pictures; default %(default)s')
    parser.add_argument('--device', default='cpu', help='default %(default)s')
    parser.add_argument('--out', type=given_path, metavar='FILE', help='write the result as JSON')


@dataclass(frozen=True)
class Split:
    """Pictures to learn from and pictures to test on: float32 features (pictures, channels) and class numbers."""

    train_features: np.ndarray
    train_labels: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of labelled pictures. Without `test` the pictures of `folds` are tested part by part."""

    classes: tuple[str, ...]
    counts: tuple[int, ...]  # of the tested pictures, by class
    features: np.ndarray
    labels: np.ndarray
    folds: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, np.ndarray] | None
    origin: str

    @property
    def most_frequent(self) -> float:
        """Share of the tested pictures that are of the most frequent class: what saying it always would score."""
        return max(self.counts) / sum(self.counts)

    @property
    def num_to_learn_from(self) -> int:
        """Pictures that the smallest split learns from."""
        return _num_to_learn_from(len(self.labels), self.folds)

    def splits(self) -> Iterator[Split]:
        """One with a validation set, else one per fold: every picture is tested exactly once, and never learnt from."""
        if self.test is not None:
            yield Split(self.features, self.labels, *self.test)
        for part in self.folds:
            others = np.setdiff1d(np.arange(len(self.labels)), part)
            yield Split(self.features[others], self.labels[others], self.features[part], self.labels[part])


def _num_to_learn_from(num_pictures: int, folds: Sequence[np.ndarray]) -> int:
    return num_pictures - max((len(part) for part in folds), default=0)


def labelled_features(
    args: argparse.Namespace,
    progress: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[int], None] = lambda num_to_learn_from: None,
) -> LabelledFeatures:
    """What the options of `add_feature_arguments` ask for.

    `check` gets the result's `num_to_learn_from` before features are computed, to raise when that is too few.

    Raises:
        ValueError, FileNotFoundError: the options contradict each other, or name what is not there.
    """
    if (args.checkpoint is None) != (args.init == 'random'):
        raise ValueError('give either a checkpoint or --init random')
    cfg = Config.fromfile(find_config(args.config))
    images = find_labelled_images(args.train)
    if len(images.classes) < 2:
        raise ValueError(f'--train {args.train} has one class, {images.classes[0]}: there is nothing to tell apart')
    test_images = find_labelled_images(args.val, images.classes) if args.val else None
    folds = () if test_images else tuple(stratified_folds(images.labels, args.folds, args.seed))
    check(_num_to_learn_from(len(images), folds))
    backbone = load_trained_backbone(cfg, args.checkpoint or 'random', args.seed, args.device)
    reader = PictureReader(cfg, crop_size(cfg, args.size), args.crop_share)
    source = FeatureSource(backbone, reader, args.layer)
    options = (args.cache or None, args.batch_size, args.workers, progress)
    test = None
    if test_images:
        test = features_of(source, test_images.paths, *options), np.array(test_images.labels)
    return LabelledFeatures(
        images.classes,
        (test_images or images).counts,
        features_of(source, images.paths, *options),
        np.array(images.labels),
        folds,
        test,
        backbone.origin,
    )


def protocol(found: LabelledFeatures, args: argparse.Namespace) -> str:
    """One line: which pictures and features a figure is about."""
    tested = f'{len(found.folds)} folds of them' if found.folds else f'{sum(found.counts)} of {args.val}'
    return (
        f'{found.origin}; {len(found.classes)} classes, {len(found.labels)} pictures of {args.train}, tested on '
        f'{tested}; {found.features.shape[1]} channels of layer {args.layer}; always saying the most frequent class '
        f'scores {100 * found.most_frequent:.1f}'
    )


def write_result(args: argparse.Namespace, tool: str, found: LabelledFeatures, results: object) -> None:
    """--out: the figures as JSON, with the command, the machine and the versions."""
    if args.out is None:
        return
    content = dict(
        command=shlex.join(['python', f'tools/{tool}.py', *sys.argv[1:]]),
        protocol=protocol(found, args),
        classes=dict(zip(found.classes, found.counts, strict=True)),
        most_frequent=found.most_frequent,
        results=results,
        machine=machine(),
        versions=versions(),
    )
    write_atomically(args.out, json.dumps(content, indent=2) + '\n')


def show_progress(done: int, total: int) -> None:
    """A line on stderr that counts the pictures."""
    if sys.stderr.isatty():
        print(f'\r{done} of {total} pictures', end='\n' if done == total else '', file=sys.stderr, flush=True)
