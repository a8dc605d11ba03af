"""Build (or find) the virtual environment that `requirements.lock` describes.

    python3 tools/make_env.py                       build it; returns at once when it exists
    python3 tools/make_env.py --print-interpreter   print the path of its interpreter and nothing else

The environment lies outside the checkout, in `$MMCNX2_CACHE` (default `~/.cache/mmcnx2`), in a folder named by the hash of
the lock file and the Python version: checkouts with the same lock share it, and a changed lock makes a new one. The project
itself is not installed in it, so two checkouts never see each other's code.

mmcv comes as source and is compiled here. Three things go wrong when pip does that alone, and are kept out:
build isolation (mmcv installs without its ops and says nothing), pip's wheel cache (it is keyed by the source alone and
hands out a binary of another torch), and an unpinned compiler environment. The wheel is kept in a folder named by
torch version, Python, platform and CUDA, so that a new lock with the same torch does not compile again.

Standard library only: this file runs before anything is installed. Guarded by tests/test_make_env.py.
"""
from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK_FILE = ROOT / 'requirements.lock'
SUPPORTED = ('3.11', '3.12')
RECIPE_VERSION = '1'  # raise it when the steps below change what ends up in the environment
COMPILED = 'onedl-mmcv'
BUILD_TOOLS = ('setuptools', 'wheel', 'ninja')

VERIFY = """
import torch, torchvision, mmengine, mmcv, mmdet, mmseg, mmpretrain
from mmcv.ops import nms
boxes = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 9.], [20., 20., 30., 30.]])
kept = nms(boxes, torch.tensor([.9, .8, .7]), 0.5)[1].tolist()
assert kept == [0, 2], f'mmcv.ops.nms kept {kept}, not [0, 2]'
"""


def cache_dir() -> Path:
    """Folder that holds environments and compiled wheels: `$MMCNX2_CACHE`, else `$XDG_CACHE_HOME/mmcnx2`, else `~/.cache/mmcnx2`."""
    if os.environ.get('MMCNX2_CACHE'):
        return Path(os.environ['MMCNX2_CACHE']).expanduser()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmcnx2'


def python_version(interpreter: str) -> str | None:
    """'3.11' for a working interpreter, None for one that is missing or does not start (a pyenv shim without its version)."""
    try:
        done = subprocess.run([interpreter, '-c', 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])'],
                              capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def find_python() -> tuple[str, str]:
    """First supported interpreter among `$MMCNX2_PYTHON`, python3.11, python3.12, this one and python3, with its version."""
    wanted = os.environ.get('MMCNX2_PYTHON')
    candidates = [wanted] if wanted else [*(f'python{version}' for version in SUPPORTED), sys.executable, 'python3']
    seen = {}
    for name in candidates:
        version = python_version(name)
        seen[name] = version or 'not usable'
        if version in SUPPORTED:
            return name, version
    raise SystemExit(f'No Python {" or ".join(SUPPORTED)} with venv and ensurepip was found (looked at: '
                     f'{", ".join(f"{name}: {found}" for name, found in seen.items())}). Install one '
                     '(Debian: apt-get install python3.11 python3.11-venv python3.11-dev), or name it in MMCNX2_PYTHON.')


def env_key(lock_text: str, version: str) -> str:
    """Folder name of the environment: what changes it, changes the name."""
    return f'env-{hashlib.sha256((RECIPE_VERSION + lock_text).encode()).hexdigest()[:12]}-py{version}'


def split_lock(lock_text: str) -> dict[str, str]:
    """Lock file -> {package name: its entry with the hash lines}, in the order of the file."""
    entries: dict[str, str] = {}
    name = None
    for line in lock_text.splitlines():
        if line and not line.startswith((' ', '#')):
            name = line.split('==')[0].strip() + (' ;' + line.split(';', 1)[1].rstrip('\\ ') if ';' in line else '')
            entries[name] = line
        elif name and line.strip().startswith('--hash'):
            entries[name] += '\n' + line
    return entries


class Builder:
    """The steps, each printed with its time."""

    def __init__(self, env: Path, base_python: str, lock_text: str) -> None:
        self.env, self.base_python = env, base_python
        self.python = env / 'bin' / 'python'
        self.entries = split_lock(lock_text)
        self.environ = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'PYTHONHOME')}
        self.environ.update(PIP_DISABLE_PIP_VERSION_CHECK='1', PIP_NO_INPUT='1')

    def call(self, title: str, command: list[str], log: Path, **environ: str) -> None:
        started = time.monotonic()
        print(f'  {title} ...', end=' ', flush=True, file=sys.stderr)
        with log.open('ab') as out:
            code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                  env={**self.environ, **environ}).returncode
        print(f'{time.monotonic() - started:.0f} s', file=sys.stderr)
        if code:
            tail = '\n'.join(log.read_text(errors='replace').splitlines()[-25:])
            raise SystemExit(f'{tail}\n\nFailed: {title}. The whole log: {log}')

    def requirements(self, names: list[str], folder: Path, title: str) -> str:
        path = folder / f'{title}.txt'
        path.write_text('\n'.join(self.entries[name] for name in names) + '\n')
        return str(path)

    def output_of(self, code: str) -> str:
        return subprocess.run([str(self.python), '-c', code], check=True, capture_output=True, text=True,
                              env=self.environ).stdout.strip()

    def build(self) -> None:
        if self.env.exists():  # a build that was interrupted
            shutil.rmtree(self.env)
        self.env.parent.mkdir(parents=True, exist_ok=True)
        log = self.env.parent / f'{self.env.name}.log'
        log.unlink(missing_ok=True)
        self.call('create the virtual environment', [self.base_python, '-m', 'venv', str(self.env)], log)
        pip = [str(self.python), '-m', 'pip']
        install = [*pip, 'install', '--no-deps', '--require-hashes']
        ordinary = [name for name in self.entries if name != COMPILED]
        first = [name for name in ordinary if name in BUILD_TOOLS]
        rest = [name for name in ordinary if name not in BUILD_TOOLS]
        self.call('install the build tools', [*install, '-r', self.requirements(first, self.env, 'build-tools')], log)
        # --no-build-isolation: some packages are source archives of pure Python and build with the tools just installed
        self.call(f'download and install {len(rest)} packages (5.5 GB on Linux)',
                  [*install, '--no-build-isolation', '-r', self.requirements(rest, self.env, 'packages')], log)
        wheel = self.compiled_wheel(pip, log)
        self.call(f'install {wheel.name}', [*pip, 'install', '--no-deps', '--no-index', str(wheel)], log)
        self.call('check that the pieces work together', [str(self.python), '-c', VERIFY], log)
        (self.env / '.complete').write_text(time.strftime('%Y-%m-%dT%H:%M:%S%z\n'))

    def compiled_wheel(self, pip: list[str], log: Path) -> Path:
        """Path of the mmcv wheel for this torch, Python, platform and CUDA; compiled when it is not kept yet."""
        torch_version, cuda = self.output_of(
            'import torch; print(torch.__version__); print(torch.version.cuda if torch.cuda.is_available() else "none")').split('\n')
        tag = self.output_of('import sys; print("cp%d%d" % sys.version_info[:2])')
        version = self.entries[COMPILED].split('==')[1].split()[0]
        folder = cache_dir() / 'wheels' / f'torch-{torch_version}_cuda-{cuda}_{tag}_{platform.system().lower()}-{platform.machine()}'
        kept = sorted(folder.glob(f'{COMPILED.replace("-", "_")}-{version}-*.whl'))
        if kept:
            return kept[-1]
        scratch = folder / f'building-{os.getpid()}'
        scratch.mkdir(parents=True)
        jobs = os.environ.get('MAX_JOBS', str(os.cpu_count() or 1))
        self.call(f'compile mmcv {version} for torch {torch_version} with {jobs} jobs (about 25 core minutes)',
                  [*pip, 'wheel', '--no-deps', '--require-hashes', '--no-build-isolation', '--no-cache-dir', '--no-binary', COMPILED,
                   '-w', str(scratch), '-r', self.requirements([COMPILED], scratch, 'mmcv')],
                  log, MAX_JOBS=jobs, MMCV_WITH_OPS='1')
        built = next(scratch.glob('*.whl'))
        wheel = Path(os.replace(built, folder / built.name) or folder / built.name)
        shutil.rmtree(scratch)
        return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--print-interpreter', action='store_true', help='print the interpreter of the environment; builds nothing')
    args = parser.parse_args()
    base_python, version = find_python()
    lock_text = LOCK_FILE.read_text()
    env = cache_dir() / env_key(lock_text, version)
    interpreter = env / 'bin' / 'python'
    if args.print_interpreter:
        print(interpreter)
        if not (env / '.complete').exists():
            print('It is not built yet: run `make env`.', file=sys.stderr)
        return
    if not (env / '.complete').exists():
        env.parent.mkdir(parents=True, exist_ok=True)
        with (env.parent / f'{env.name}.lock').open('w') as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)  # a second caller waits here and then finds the work done
            if not (env / '.complete').exists():
                print(f'Building {env} with Python {version}', file=sys.stderr)
                Builder(env, base_python, lock_text).build()
    print(f'Environment: {env}', file=sys.stderr)


if __name__ == '__main__':
    main()
