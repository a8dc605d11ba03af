"""The classifier is at the minimum of its loss; the penalty is chosen by pictures that were not learnt from."""

import numpy as np
import pytest
import torch

from mmcnx2.analysis import linear_probe
from mmcnx2.analysis.linear_probe import fit_linear, fit_probe


def clouds(num=60, channels=5, spread=1.0, seed=0):
    """Three overlapping classes, of differently scaled channels, one of which never changes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 3
    centres = np.random.default_rng(9).normal(size=(3, channels))
    features = centres[labels] + spread * rng.normal(size=(num, channels))
    features = features * np.geomspace(1e-3, 1e3, channels) + 5
    features[:, 2] = 7.5
    return features.astype(np.float32), labels


def objective(probe, features, labels):
    x = (torch.from_numpy(features).double() - probe.mean_C) / probe.std_C
    logits = x @ probe.weight_CL + probe.bias_L
    picked = logits[torch.arange(len(labels)), torch.from_numpy(labels)]
    return (logits.logsumexp(1) - picked).mean() + probe.penalty / 2 * probe.weight_CL.square().sum()


@pytest.mark.parametrize('penalty', [1.0, 1e-2, 1e-4])
def test_the_fit_is_the_minimum(penalty):
    features, labels = clouds()
    probe = fit_linear(features, labels, 3, penalty)
    for tensor in (probe.weight_CL, probe.bias_L):
        tensor.requires_grad_()
    objective(probe, features, labels).backward()
    assert probe.weight_CL.grad.abs().max() < 1e-5 and probe.bias_L.grad.abs().max() < 1e-5


def test_features_are_standardised_by_those_that_are_learnt_from():
    features, labels = clouds()
    probe = fit_linear(features, labels, 3, 1e-2)
    np.testing.assert_allclose(probe.mean_C, features.astype(np.float64).mean(0), rtol=1e-6)
    expected = features.astype(np.float64).std(0)
    expected[2] = 1  # never changes: left at its place, not blown up
    np.testing.assert_allclose(probe.std_C, expected, rtol=1e-6)
    scaled = fit_linear(features * 8 + 3, labels, 3, 1e-2)  # of no importance then
    torch.testing.assert_close(scaled.weight_CL, probe.weight_CL, atol=1e-3, rtol=1e-3)


def test_the_size_of_the_pieces_changes_nothing(monkeypatch):
    features, labels = clouds()
    whole = fit_linear(features, labels, 3, 1e-2)
    ranked, loss = whole.ranked(features), whole.loss(features, labels)
    monkeypatch.setattr(linear_probe, 'ROWS_AT_A_TIME', 7)
    pieces = fit_linear(features, labels, 3, 1e-2)
    torch.testing.assert_close(pieces.weight_CL, whole.weight_CL, atol=1e-5, rtol=1e-5)
    assert torch.equal(pieces.ranked(features), ranked)
    narrow = fit_linear(features, labels.astype('int32'), 3, 1e-2)
    assert narrow.weight_CL.equal(pieces.weight_CL) and narrow.loss(features, labels.astype('int32')) > 0
    assert pieces.loss(features, labels) == pytest.approx(loss, rel=1e-6)


def test_ranked_and_loss_are_those_of_the_logits():
    features, labels = clouds()
    probe = fit_linear(features, labels, 3, 1e-1)
    logits = (torch.from_numpy(features).double() - probe.mean_C) / probe.std_C @ probe.weight_CL + probe.bias_L
    assert torch.equal(probe.ranked(features), logits.argsort(1, descending=True))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    assert probe.loss(features, labels) == pytest.approx(float(expected))


def test_the_penalty_grows_with_noise():
    """Many channels of noise: a weak penalty learns them by heart and does worse on new pictures."""
    rng = np.random.default_rng(0)
    features, labels = clouds(num=90, spread=0.7)
    noisy = np.concatenate([features, rng.normal(size=(90, 200)).astype(np.float32)], 1)
    assert fit_probe(noisy, labels, 3, penalties=(10.0, 1.0, 1e-6)).penalty >= 1.0
    clean = fit_probe(*clouds(num=90, spread=0.1), 3, penalties=(1e3, 1e-2))
    assert clean.penalty == 1e-2  # the strong one says the most frequent class


def test_it_learns_and_is_the_same_twice():
    features, labels = clouds(num=90, spread=0.3)
    test_features, test_labels = clouds(num=30, spread=0.3, seed=5)
    probe, again = (fit_probe(features, labels, 3, seed=2) for _ in range(2))
    assert torch.equal(probe.weight_CL, again.weight_CL) and probe.penalty == again.penalty
    assert (probe.ranked(test_features)[:, 0].numpy() == test_labels).mean() > 0.9


def test_the_measured_pictures_choose_nothing(monkeypatch):
    """The penalty is chosen on a fifth, class by class; the last fit takes all."""
    features, labels = clouds(num=30)
    sizes = []
    fit = linear_probe.fit_linear
    monkeypatch.setattr(
        linear_probe,
        'fit_linear',
        lambda x, y, *rest, **more: sizes.append(np.bincount(y).tolist()) or fit(x, y, *rest, **more),
    )
    fit_probe(features, labels, 3, penalties=(1.0, 0.1))
    assert sizes == [[8, 8, 8], [8, 8, 8], [10, 10, 10]]
    sizes.clear()
    fit_probe(features, labels, 3, penalties=(1.0,))
    assert sizes == [[10, 10, 10]]
    fit_probe(features[:5], np.array([0, 0, 0, 1, 2]), 3)  # a class of one picture is learnt from only
