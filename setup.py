"""Packs configs/, tools/ and model-index.yml into the wheel as `mmcnx2/.mim/`, where OpenMMLab's tools look for them.

They are copied into the build folder only, so a checkout holds no second copy and no links; an editable install reads
the checkout's own. Everything else about the package stands in setup.cfg. Guarded by tests/test_packaging.py.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CARRIED = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    def run(self) -> None:
        package = Path(self.build_lib) / 'mmcnx2'
        if not self.editable_mode and package.resolve() != ROOT / 'mmcnx2':
            shutil.rmtree(package, ignore_errors=True)  # what an earlier build left would be packed too
        super().run()
        if self.editable_mode:
            return
        for name in CARRIED:
            source, target = ROOT / name, package / '.mim' / name
            if source.is_dir():
                shutil.copytree(
                    source, target, ignore=shutil.ignore_patterns('__pycache__', '*.pyc', '.*'), dirs_exist_ok=True
                )
            elif source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)


setup(cmdclass={'build_py': BuildWithMim})
