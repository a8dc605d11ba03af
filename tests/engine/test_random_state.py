"""Guards mmcnx2/engine/random_state.py: generators go on where they were, also by way of a file."""

import random

import numpy as np
import torch

from mmcnx2.engine.random_state import get_random_state, set_random_state


def draw() -> tuple:
    return (
        [random.random(), random.gauss(0, 1)],
        np.random.rand(2).tolist() + np.random.randn(1).tolist(),
        torch.rand(3).tolist() + torch.randn(1).tolist(),
    )


def test_they_go_on_where_they_were(tmp_path):
    draw()  # half of a pair of Gaussian numbers is then kept for the next time
    torch.save(get_random_state(), tmp_path / 'state.pth')
    expected = draw()
    assert all(one != other for one, other in zip(draw(), expected, strict=True))
    set_random_state(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert draw() == expected
