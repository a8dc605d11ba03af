"""What every test starts from. Touch it for state that tests would otherwise leave to each other; not for data of one
test.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported: tests start processes of their own

import pytest
from demo_runs import run_quick
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
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


@pytest.fixture
def call(monkeypatch, capsys, forget_runs):
    """Runs a tool in this process: `call('train', 'config.py', '--work-dir', 'run')` -> (exit code, stdout, stderr)."""
    for name in ('LOCAL_RANK', 'RANK', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'MMCNX2_TRACEBACK'):
        monkeypatch.setenv(name, '')  # so that what a tool sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))

    def run(name: str, *args: object) -> tuple[int, str, str]:
        forget_runs()
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, args)])
        path = Path(__file__).parents[1] / 'tools' / f'{name}.py'
        spec = importlib.util.spec_from_file_location(f'tool_{name}', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        code = 0
        try:
            module.main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope='session')
def quick_demo(tmp_path_factory):
    """One whole quick run of the demo, a minute long: its folder and what it printed."""
    folder = tmp_path_factory.mktemp('demo')
    return folder, run_quick(folder)


@pytest.fixture(autouse=True)
def signals_as_before():
    """A tool that is called in this process may leave its handler; processes that a later test forks would inherit it
    and not end when told to.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
