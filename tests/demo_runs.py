"""The demo's quick variant with the real commands, as somebody would type them. Used by tests/conftest.py (one run for
all tests) and tests/test_demo.py.
"""

import os
import subprocess
import sys
from pathlib import Path

RUN_DEMO = Path(__file__).resolve().parents[1] / 'tools' / 'run_demo.py'


def run_quick(folder: Path, *options: str) -> subprocess.CompletedProcess:
    """`run_demo.py --quick` in a folder: pictures in data/, everything else in work/."""
    command = [sys.executable, str(RUN_DEMO), '--quick', '--work-dir', 'work', '--data', 'data', *options]
    environ = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, env=environ)
