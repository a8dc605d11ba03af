"""What every test starts from. Touch it for state that tests would otherwise leave to each other; not for data of one
test.
"""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported: tests start processes of their own

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

GLOBAL_INSTANCES = (DefaultScope, MMLogger, MessageHub, Visualizer)


@pytest.fixture
def forget_runs():
    """Forgets what earlier runs of this process left, as a new process would.

    mmengine keeps one logger and visualizer per run name, and names runs by the second: a second run within the same
    second would write into the first one's folder.
    """

    def forget() -> None:
        for kind in GLOBAL_INSTANCES:
            for each in (kind, *kind.__subclasses__()):  # mmdet's and mmseg's visualizers keep their own lists
                each._instance_dict.clear()

    return forget


@pytest.fixture(autouse=True)
def nothing_global_left(forget_runs):
    """A runner sets mmengine's default scope, logger and visualizer for the whole process; each test starts without,
    and leaves what it found.
    """
    before = [dict(kind._instance_dict) for kind in GLOBAL_INSTANCES]
    forget_runs()
    yield
    forget_runs()
    for kind, instances in zip(GLOBAL_INSTANCES, before, strict=True):
        kind._instance_dict.update(instances)
