"""What every test starts from. Touch it for state that tests would otherwise leave to each other; not for data of one
test.
"""

import os

os.environ.setdefault('OMP_NUM_THREADS', '2')  # before torch is imported: more threads than cores make small tests slow

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer


@pytest.fixture(autouse=True)
def nothing_global_left():
    """A runner sets mmengine's default scope, logger and visualizer for the whole process; the next test starts
    without.
    """
    kinds = (DefaultScope, MMLogger, MessageHub, Visualizer)
    before = [dict(kind._instance_dict) for kind in kinds]
    yield
    for kind, instances in zip(kinds, before, strict=True):
        kind._instance_dict.clear()
        kind._instance_dict.update(instances)
