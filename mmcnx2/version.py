"""The version, in one place. Touch it to release; guarded by tests/test_packaging.py."""

__version__ = '0.1.0.dev0'
