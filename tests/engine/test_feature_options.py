"""Which pictures are learnt from and tested: every one is tested once, and never by a fit that saw it."""

import argparse

import numpy as np
import pytest
from micro_pretraining import write_checkpoint, write_class_folders, write_config

from mmcnx2.engine.feature_options import add_feature_arguments, labelled_features, protocol


@pytest.fixture
def ask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(write_config())
    write_class_folders('train', num=6)
    write_class_folders('val', num=2)

    def ask(*options):
        parser = argparse.ArgumentParser()
        add_feature_arguments(parser)
        args = parser.parse_args(
            ['config.py', 'checkpoint.pth', '--train', 'train', '--workers', '0', '--cache', '', *options]
        )
        return labelled_features(args), args

    return ask


def rows(features):
    return {row.tobytes() for row in np.asarray(features)}


def test_folds_test_every_picture_once(ask):
    found, args = ask('--folds', '3')
    assert found.features.shape == (18, 16) and found.num_to_learn_from == 12
    tested = []
    for split in found.splits():
        assert len(split.train_features) == len(split.train_labels) == 12
        assert len(split.test_features) == len(split.test_labels) == 6
        assert not rows(split.train_features) & rows(split.test_features)
        assert np.bincount(split.test_labels).tolist() == [2, 2, 2]
        tested += [row.tobytes() for row in split.test_features]
    assert sorted(tested) == sorted(row.tobytes() for row in found.features)
    assert '3 folds of them' in protocol(found, args) and found.most_frequent == pytest.approx(1 / 3)


def test_a_validation_set_is_tested_whole(ask):
    found, args = ask('--val', 'val')
    (split,) = found.splits()
    assert split.train_features.shape == (18, 16) and split.test_features.shape == (6, 16)
    assert np.bincount(split.test_labels).tolist() == [2, 2, 2] and found.counts == (2, 2, 2)
    assert 'tested on 6 of val' in protocol(found, args)


def test_the_seed_draws_the_folds(ask):
    first, again, other = (ask('--seed', seed)[0].folds for seed in ('0', '0', '1'))
    assert all(map(np.array_equal, first, again)) and not all(map(np.array_equal, first, other))


def test_size_and_layer_act(ask):
    assert ask('--layer', 'stages.1.0')[0].features.shape == (18, 8)
    assert not np.array_equal(ask('--size', '32')[0].features, ask('--size', '96')[0].features)
    assert not np.array_equal(ask('--crop-share', '0.5')[0].features, ask('--crop-share', '1')[0].features)
