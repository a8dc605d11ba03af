"""Paths as they are given on a command line: in `--work-dir=~/runs` the home folder is meant, and a shell fills it in
only where ~ begins a word. Touch it for what every tool does to such a path. Guarded by tests/test_tools.py.
"""

from pathlib import Path


def given_path(text: str) -> Path:
    """The path with a leading ~ filled in, for `type=` of argparse."""
    return Path(text).expanduser()
