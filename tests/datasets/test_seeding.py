"""Guards mmcnx2/datasets/seeding.py: seeds are stable and distinct, and randomness outside is not disturbed."""
import copy
import pickle
import random

import numpy as np
import pytest
import torch

from mmcnx2.datasets.seeding import SeededIndex, derive_seed, seeded_randomness


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_seed_never_changes():
    """Written down once (Python 3.11): runs resumed by a later version must draw the same."""
    assert derive_seed(0, 0, 0) == 3882903725285577553
    assert derive_seed(1, 2, 3) == 926643494850814613


def test_seeds_are_63_bit_and_distinct():
    seeds = [derive_seed(seed, epoch, index) for seed in range(3) for epoch in range(20) for index in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2 ** 63 for seed in seeds)
    assert max(seeds) > 2 ** 62  # the upper bits are used
    assert derive_seed(1, 12) != derive_seed(11, 2)


def test_index_is_an_int_and_travels():
    index = SeededIndex(3, 99)
    assert index == 3 and [10, 11, 12, 13][index] == 13
    for copied in (pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        assert isinstance(copied, SeededIndex) and (copied, copied.seed) == (3, 99)


def test_inside_depends_on_the_seed_alone():
    inside = []
    for seed in (derive_seed(1), derive_seed(1), derive_seed(2)):
        draws()
        with seeded_randomness(seed):
            inside.append(draws())
    assert inside[0] == inside[1]
    assert all(a != b for a, b in zip(inside[0], inside[2], strict=True))


def test_outside_goes_on_as_if_nothing_had_been_drawn():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with pytest.raises(KeyError), seeded_randomness(7):
        draws()
        raise KeyError
    assert draws() == expected
