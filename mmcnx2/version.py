"""The version, in one place: setup.cfg and `mmcnx2.__version__` read it here. Touch it to release; guarded by tests/test_packaging.py."""
__version__ = '0.1.0.dev0'
