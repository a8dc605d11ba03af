"""A linear classifier on frozen features, fitted to the end: multinomial logistic regression.

Features are standardised with the training pictures' mean and spread (what a batch norm without learnt scale does in
MAE's protocol), the weights are held small by an L2 penalty, and the loss, which has one minimum, is followed down by
L-BFGS. The penalty is chosen on a fifth of the training pictures, never on those that are measured. There is no
learning rate, no schedule and no augmentation to choose, so figures of different checkpoints differ by their features
alone; on ImageNet itself configs/imagenet/linear-probe_*.py train MAE's protocol instead.

Touch this file for the classifier; where features come from is in features.py. Guarded by
tests/analysis/test_linear_probe.py.

Shapes: N pictures, C channels, L classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .knn import NUM_RANKED

PENALTIES = tuple(10.0**power for power in range(1, -7, -1))  # the strongest first
ROWS_AT_A_TIME = 16384
MIN_STD = 1e-8  # of a feature, in units of the largest one's: below it the feature says nothing


@dataclass(frozen=True)
class LinearProbe:
    """logits = ((x - mean) / std) @ weight + bias; float64."""

    mean_C: Tensor
    std_C: Tensor
    weight_CL: Tensor
    bias_L: Tensor
    penalty: float

    def ranked(self, features_NC: np.ndarray, num_ranked: int = NUM_RANKED) -> Tensor:
        """Classes (N, min(num_ranked, L)) by their logits, the winner first."""
        parts = [
            (x @ self.weight_CL + self.bias_L).argsort(dim=1, descending=True, stable=True)[:, :num_ranked].cpu()
            for x in self._pieces(features_NC)
        ]
        return torch.cat(parts)

    def loss(self, features_NC: np.ndarray, labels_N: Sequence[int]) -> float:
        """Mean cross entropy, without the penalty."""
        labels_N = torch.as_tensor(np.asarray(labels_N, np.int64))
        total, done = 0.0, 0
        for x in self._pieces(features_NC):
            labels = labels_N[done : done + len(x)].to(x.device)
            total += float(F.cross_entropy(x @ self.weight_CL + self.bias_L, labels, reduction='sum'))
            done += len(x)
        return total / done

    def _pieces(self, features_NC: np.ndarray):
        for first in range(0, len(features_NC), ROWS_AT_A_TIME):
            yield _standardised(features_NC[first : first + ROWS_AT_A_TIME], self.mean_C, self.std_C)


def fit_linear(
    features_NC: np.ndarray,
    labels_N: Sequence[int],
    num_classes: int,
    penalty: float,
    start: LinearProbe | None = None,
    max_iterations: int = 500,
    device: torch.device | str = 'cpu',
) -> LinearProbe:
    """The minimum of mean cross entropy + penalty / 2 * |weight|^2; the bias is free.

    Args:
        features_NC: may be mapped from the disk; it is read in pieces.
        start: a fit of the same features to begin from (with another penalty).
    """
    if start is None:
        mean_C, std_C = _mean_and_std(features_NC, device)
        weight = torch.zeros(features_NC.shape[1], num_classes, dtype=torch.float64, device=device)
        bias = torch.zeros(num_classes, dtype=torch.float64, device=device)
    else:
        mean_C, std_C = start.mean_C, start.std_C
        weight, bias = start.weight_CL.clone(), start.bias_L.clone()
    weight.requires_grad_()
    bias.requires_grad_()
    labels_N = torch.as_tensor(np.asarray(labels_N, np.int64)).to(device)
    in_memory = len(features_NC) <= ROWS_AT_A_TIME
    kept = _standardised(features_NC, mean_C, std_C) if in_memory else None
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iterations, tolerance_grad=1e-7, tolerance_change=1e-12, history_size=20,
        line_search_fn='strong_wolfe',
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = penalty / 2 * weight.square().sum()
        total.backward()
        for first in range(0, len(labels_N), ROWS_AT_A_TIME):
            rows = slice(first, first + ROWS_AT_A_TIME)
            x = kept if in_memory else _standardised(features_NC[rows], mean_C, std_C)
            part = F.cross_entropy(x @ weight + bias, labels_N[rows], reduction='sum') / len(labels_N)
            part.backward()
            total = total.detach() + part.detach()
        return total

    optimizer.step(closure)
    return LinearProbe(mean_C, std_C, weight.detach(), bias.detach(), penalty)


def fit_probe(
    features_NC: np.ndarray,
    labels_N: Sequence[int],
    num_classes: int,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
    device: torch.device | str = 'cpu',
) -> LinearProbe:
    """`fit_linear` on all pictures, with the penalty that did best on a fifth of them when fitted on the others.

    Best: most pictures right, then the smaller cross entropy. The fifth is drawn from the seed, class by class; a
    class with a single picture is only learnt from.
    """
    labels_N = np.asarray(labels_N)
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        places = rng.permutation(np.flatnonzero(labels_N == label))
        held_out[places[: max(len(places) // 5, min(len(places) - 1, 1))]] = True
    if len(penalties) == 1 or not held_out.any():
        return fit_linear(features_NC, labels_N, num_classes, penalties[0], device=device)
    learnt, tested = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    probe, scores = None, {}
    for penalty in sorted(penalties, reverse=True):
        probe = fit_linear(features_NC[learnt], labels_N[learnt], num_classes, penalty, probe, device=device)
        right = (probe.ranked(features_NC[tested])[:, 0].numpy() == labels_N[tested]).mean()
        scores[penalty] = (right, -probe.loss(features_NC[tested], labels_N[tested]))
    return fit_linear(features_NC, labels_N, num_classes, max(scores, key=scores.get), device=device)


def _mean_and_std(features_NC: np.ndarray, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """In float64, piece by piece; the spread of a feature that never changes is set to 1."""
    total, squares = 0.0, 0.0
    for first in range(0, len(features_NC), ROWS_AT_A_TIME):
        total = total + np.asarray(features_NC[first : first + ROWS_AT_A_TIME], np.float64).sum(0)
    mean = total / len(features_NC)
    for first in range(0, len(features_NC), ROWS_AT_A_TIME):
        piece = np.asarray(features_NC[first : first + ROWS_AT_A_TIME], np.float64) - mean
        squares = squares + np.square(piece).sum(0)
    std = np.sqrt(squares / len(features_NC))
    std = np.where(std > MIN_STD * std.max(), std, 1.0)
    return torch.from_numpy(mean).to(device), torch.from_numpy(std).to(device)


def _standardised(rows: np.ndarray, mean_C: Tensor, std_C: Tensor) -> Tensor:
    return (torch.from_numpy(np.array(rows, dtype=np.float64)).to(mean_C.device) - mean_C) / std_C
