"""Weighted k nearest neighbours on features: what a frozen backbone is worth, without training anything.

The protocol of DINO (arXiv 2104.14294, appendix; from Wu et al., arXiv 1805.01978): cosine similarity, the k nearest
training pictures vote for their class, each with exp(similarity / temperature). Arrays in, predictions out.

Touch this file for the voting; where features come from is in features.py. Guarded by tests/analysis/test_knn.py.

Shapes: N training pictures (the bank), Q queries, C channels, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_CHUNK, BANK_CHUNK = 512, 32768  # 64 MiB of similarities at a time
NUM_RANKED = 5


def nearest(
    bank_NC: np.ndarray,
    queries_QC: np.ndarray,
    k: int,
    query_chunk: int = QUERY_CHUNK,
    bank_chunk: int = BANK_CHUNK,
    device: torch.device | str = 'cpu',
) -> tuple[Tensor, Tensor]:
    """(similarities_QK, places_QK) of the k most similar rows of the bank, the most similar first.

    Both arrays may be mapped from the disk; the bank is read once per `query_chunk` queries, in pieces. A row of zeros
    has similarity 0 to everything.

    Raises:
        ValueError: k is no number from 1 to N, or the channels differ.
    """
    N, C = bank_NC.shape
    if not 1 <= k <= N:
        raise ValueError(f'k={k}: the neighbours are chosen from {N} training pictures, so k lies between 1 and {N}')
    if queries_QC.shape[1] != C:
        raise ValueError(f'{queries_QC.shape[1]} channels against {C} of the training pictures: another layer?')
    if len(queries_QC) == 0:
        raise ValueError('there are no pictures whose neighbours could be looked for')
    similarities, places = [], []
    for first in range(0, len(queries_QC), query_chunk):
        queries = _unit_rows(queries_QC[first : first + query_chunk], device)
        best_QK = torch.full((len(queries), 0), 0.0, device=device)
        place_QK = torch.zeros((len(queries), 0), dtype=torch.int64, device=device)
        for start in range(0, N, bank_chunk):
            found_QM = queries @ _unit_rows(bank_NC[start : start + bank_chunk], device).T
            rows_QM = torch.arange(start, start + found_QM.shape[1], device=device).expand_as(found_QM)
            found_QM, rows_QM = torch.cat([best_QK, found_QM], 1), torch.cat([place_QK, rows_QM], 1)
            best_QK, order = found_QM.topk(min(k, found_QM.shape[1]), dim=1)
            place_QK = rows_QM.gather(1, order)
        similarities.append(best_QK.cpu())
        places.append(place_QK.cpu())
    return torch.cat(similarities), torch.cat(places)


def vote(
    similarities_QK: Tensor, labels_QK: Tensor, num_classes: int, temperature: float, num_ranked: int = NUM_RANKED
) -> Tensor:
    """Classes (Q, min(num_ranked, num_classes)) by their votes, the winner first; a tie goes to the smaller number."""
    if not temperature > 0:
        raise ValueError(f'temperature={temperature} must be above 0 (DINO: 0.07)')
    similarities = similarities_QK.double()
    weights_QK = ((similarities - similarities[:, :1]) / temperature).exp()  # a common factor changes no vote
    votes_QL = torch.zeros(len(weights_QK), num_classes, dtype=torch.float64).scatter_add_(1, labels_QK, weights_QK)
    return votes_QL.argsort(dim=1, descending=True, stable=True)[:, :num_ranked]


def knn_predictions(
    bank_NC: np.ndarray,
    labels_N: Sequence[int],
    queries_QC: np.ndarray,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
    device: torch.device | str = 'cpu',
) -> dict[int, Tensor]:
    """{k: ranked classes, the winner first} of every query; see `nearest` and `vote`."""
    similarities, places = nearest(bank_NC, queries_QC, max(ks), device=device)
    labels_QK = torch.as_tensor(np.asarray(labels_N))[places]
    return {k: vote(similarities[:, :k], labels_QK[:, :k], num_classes, temperature) for k in ks}


def accuracies(ranked_QR: Tensor, labels_Q: Sequence[int], num_classes: int) -> dict[str, float]:
    """Shares of the queries: top1, top5 (with more than 5 classes), and `balanced`, top1 averaged over the classes.

    Classes without a query do not count in `balanced`.
    """
    labels_Q = torch.as_tensor(np.asarray(labels_Q))
    hits_QR = ranked_QR == labels_Q[:, None]
    found = {'top1': float(hits_QR[:, 0].double().mean())}
    if num_classes > NUM_RANKED:
        found['top5'] = float(hits_QR[:, :NUM_RANKED].any(1).double().mean())
    counts_L = torch.bincount(labels_Q, minlength=num_classes)
    right_L = torch.bincount(labels_Q[hits_QR[:, 0]], minlength=num_classes)
    seen_L = counts_L > 0
    found['balanced'] = float((right_L[seen_L] / counts_L[seen_L].double()).mean())
    return found


def _unit_rows(rows: np.ndarray, device: torch.device | str) -> Tensor:
    return F.normalize(torch.from_numpy(np.array(rows, dtype=np.float32)).to(device), dim=1)
