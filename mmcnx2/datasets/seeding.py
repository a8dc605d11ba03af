"""Where chance comes from in the data: a seed per sample, and random generators that obey it.

A sampler hands out `SeededIndex`, a dataset runs its pipeline inside `seeded_randomness(index.seed)`. What is drawn
for a picture then depends on (seed, epoch, picture) alone, whichever worker or process draws it. Touch this file for
how seeds are derived; not for the order of samples (epoch_seeded_sampler.py). Guarded by
tests/datasets/test_seeding.py.
"""
from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*numbers: int) -> int:
    """A seed of 63 bits, well mixed and the same on every machine, from any integers (order matters)."""
    text = ' '.join(str(int(number)) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big') >> 1


class SeededIndex(int):
    """An index into a dataset that carries the seed of this sample; for everybody else it is the plain integer.

    Arithmetic gives plain integers, so a wrapper that computes a new index (mmengine's RepeatDataset, ConcatDataset)
    loses the seed.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        self = super().__new__(cls, index)
        self.seed = int(seed)
        return self

    def __reduce__(self) -> tuple:
        return SeededIndex, (int(self), self.seed)

    def __repr__(self) -> str:
        return f'SeededIndex({int(self)}, seed={self.seed})'


@contextmanager
def seeded_randomness(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global CPU generators start from `seed` inside; afterwards they go on as before.

    CUDA generators are left alone: no transform draws from them, and the model's do not belong to a picture.
    """
    saved = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])
        torch.set_rng_state(saved[2])
