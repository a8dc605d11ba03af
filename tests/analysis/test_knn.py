"""Neighbours against a plain search, votes by hand, and that the size of the pieces changes nothing."""

import numpy as np
import pytest
import torch

from mmcnx2.analysis.knn import accuracies, knn_predictions, nearest, vote


def arrays(num_bank=40, num_queries=9, channels=6):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num_bank, channels)).astype(np.float32), rng.normal(size=(num_queries, channels)) * 7


def plain_nearest(bank, queries, k):
    bank, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank, queries))
    similarities = queries @ bank.T
    places = np.argsort(-similarities, axis=1)[:, :k]
    return np.take_along_axis(similarities, places, 1), places


@pytest.mark.parametrize(('query_chunk', 'bank_chunk'), [(512, 32768), (4, 7), (1, 1), (9, 40)])
@pytest.mark.parametrize('k', [1, 5, 40])
def test_the_most_similar_rows(query_chunk, bank_chunk, k):
    bank, queries = arrays()
    similarities, places = nearest(bank, queries, k, query_chunk, bank_chunk)
    expected, expected_places = plain_nearest(bank, queries, k)
    assert np.array_equal(places.numpy(), expected_places)
    np.testing.assert_allclose(similarities.numpy(), expected, atol=1e-6)


def test_the_bank_may_lie_on_the_disk(tmp_path):
    bank, queries = arrays()
    np.save(tmp_path / 'bank.npy', bank)
    mapped = np.load(tmp_path / 'bank.npy', mmap_mode='r')
    assert torch.equal(nearest(mapped, queries, 3, bank_chunk=11)[1], nearest(bank, queries, 3)[1])


def test_votes_are_weighted_by_similarity():
    """exp(0.9 / 0.1) > 2 exp(0.8 / 0.1): one near neighbour of class 2 outvotes two of class 0; at 10 it does not."""
    similarities, labels = torch.tensor([[0.9, 0.8, 0.8, 0.1]]), torch.tensor([[2, 0, 0, 1]])
    assert vote(similarities, labels, 4, temperature=0.1).tolist() == [[2, 0, 1, 3]]
    assert vote(similarities, labels, 4, temperature=10.0).tolist() == [[0, 2, 1, 3]]
    assert vote(similarities, labels, 4, temperature=1e-4).tolist()[0][0] == 2  # exp(9000) would overflow
    assert vote(similarities[:, :1], torch.tensor([[3]]), 4, 0.07).tolist() == [[3, 0, 1, 2]]
    with pytest.raises(ValueError, match='temperature=0'):
        vote(similarities, labels, 4, temperature=0)


def test_several_k_from_one_search():
    bank, queries = arrays()
    labels = np.arange(40) % 3
    both = knn_predictions(bank, labels, queries, [2, 9], 0.07, 3)
    for k in (2, 9):
        similarities, places = plain_nearest(bank, queries, k)
        for query in range(len(queries)):
            votes = np.zeros(3)
            for similarity, place in zip(similarities[query], places[query], strict=True):
                votes[labels[place]] += np.exp(similarity / 0.07)
            assert both[k][query, 0] == votes.argmax()


def test_accuracies_by_hand():
    ranked = torch.tensor([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [2, 0, 1, 3, 4], [5, 6, 0, 1, 3], [0, 1, 2, 3, 4]])
    found = accuracies(ranked, [0, 0, 2, 3, 5], num_classes=7)
    assert found == {
        'top1': pytest.approx(2 / 5),
        'top5': pytest.approx(4 / 5),
        'balanced': pytest.approx((1 / 2 + 1 + 0 + 0) / 4),  # classes 0, 2, 3 and 5 are asked for
    }
    assert 'top5' not in accuracies(ranked[:1, :3], [0], num_classes=3)


def test_mistakes_are_named():
    bank, queries = arrays()
    with pytest.raises(ValueError, match='between 1 and 40'):
        nearest(bank, queries, 41)
    with pytest.raises(ValueError, match='between 1 and 40'):
        nearest(bank, queries, 0)
    with pytest.raises(ValueError, match='5 channels against 6'):
        nearest(bank, queries[:, :5], 1)
    with pytest.raises(ValueError, match='no pictures whose neighbours'):
        nearest(bank, queries[:0], 1)
