"""Build (or find) the virtual environment that `requirements.lock` describes.

    python3 tools/make_env.py                       build it; returns at once when it exists
    python3 tools/make_env.py --print-interpreter   print the path of its interpreter and nothing else
    python3 tools/make_env.py --rebuild             build it anew, mmcv included (a GPU or a driver has come or gone)

The environment lies outside the checkout, in `$MMCNX2_CACHE` (default `~/.cache/mmcnx2`), in a folder named by the hash
of the lock file and the Python version: checkouts with the same lock share it, and a changed lock makes a new one. The
project itself is not installed in it, so two checkouts never see each other's code.

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
import socket
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
NEEDED_GB = 12  # the environment takes 5.7 GB, pip's downloads of it about half as much, compiling 0.5
STALE_S = 2 * 24 * 3600

VERIFY = """
import torch, torchvision, mmengine, mmcv, mmdet, mmseg, mmpretrain
from mmcv.ops import nms
boxes = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 9.], [20., 20., 30., 30.]])
kept = nms(boxes, torch.tensor([.9, .8, .7]), 0.5)[1].tolist()
assert kept == [0, 2], f'mmcv.ops.nms kept {kept}, not [0, 2]'
"""


def cache_dir() -> Path:
    """Folder that holds environments and compiled wheels: `$MMCNX2_CACHE`, else `$XDG_CACHE_HOME/mmcnx2`, else
    `~/.cache/mmcnx2`.
    """
    if os.environ.get('MMCNX2_CACHE'):
        return Path(os.environ['MMCNX2_CACHE']).expanduser()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmcnx2'


def python_version(interpreter: str) -> str | None:
    """'3.11' for a working interpreter, None for one that is missing or does not start (a pyenv shim without its
    version).
    """
    try:
        done = subprocess.run(
            [interpreter, '-c', 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])'],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def find_python() -> tuple[str, str]:
    """First supported interpreter among `$MMCNX2_PYTHON`, python3.11, python3.12, this one and python3, with its
    version.
    """
    wanted = os.environ.get('MMCNX2_PYTHON')
    candidates = [wanted] if wanted else [*(f'python{version}' for version in SUPPORTED), sys.executable, 'python3']
    seen = {}
    for name in candidates:
        version = python_version(name)
        seen[name] = version or 'not usable'
        if version in SUPPORTED:
            return name, version
    raise SystemExit(
        f'error: no Python {" or ".join(SUPPORTED)} with venv and ensurepip was found (looked at: '
        f'{", ".join(f"{name}: {found}" for name, found in seen.items())}). Install one '
        '(Debian: apt-get install python3.11 python3.11-venv python3.11-dev), or name it in MMCNX2_PYTHON.'
    )


def env_key(lock_text: str, version: str) -> str:
    """Folder name of the environment: what changes it, changes the name."""
    return f'env-{hashlib.sha256((RECIPE_VERSION + lock_text).encode()).hexdigest()[:12]}-py{version}'


def is_ready(env: Path) -> bool:
    """True when the environment was built to its end and its interpreter still starts (its base Python may be gone
    since).
    """
    return (env / '.complete').exists() and python_version(str(env / 'bin' / 'python')) is not None


def compiled_tag(version: str) -> str:
    """Part of a compiled wheel's folder name: '3.11' -> 'cp311_linux-x86_64'."""
    return f'cp{version.replace(".", "")}_{platform.system().lower()}-{platform.machine()}'


def missing_for_compiling(base_python: str) -> str | None:
    """What is not there of a C++ compiler and the Python headers, with the remedy; None when both are there."""
    compiler = os.environ.get('CXX', 'g++').split()[0]
    if shutil.which(compiler) is None:
        return (
            f'mmcv must be compiled, and there is no C++ compiler {compiler!r}. Install one (Debian: apt-get install '
            'g++), '
            'or name yours in CXX'
        )
    include = subprocess.run(
        [base_python, '-c', 'import sysconfig; print(sysconfig.get_paths()["include"])'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if not (Path(include) / 'Python.h').is_file():
        return (
            f'mmcv must be compiled, and the headers of {base_python} are missing ({include}/Python.h). Install them '
            '(Debian: apt-get install python3.11-dev)'
        )
    return None


def check_machine(base_python: str, version: str, lock_text: str) -> None:
    """Ends with one line when the build is bound to fail, before anything is downloaded."""
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(
            f'error: the cache folder {cache} cannot be made ({error.strerror}). Name another one in MMCNX2_CACHE'
        ) from None
    free_gb = shutil.disk_usage(cache).free / 1e9
    if free_gb < NEEDED_GB:
        raise SystemExit(
            f'error: {free_gb:.1f} GB are free in {cache}; the environment needs {NEEDED_GB} GB while it is built. '
            'Make room, or name a folder on another disk in MMCNX2_CACHE'
        )
    wheel = f'{COMPILED.replace("-", "_")}-{pinned_version(split_lock(lock_text)[COMPILED])}-*.whl'
    if not any(cache.glob(f'wheels/*_{compiled_tag(version)}/{wheel}')):
        missing = missing_for_compiling(base_python)
        if missing:
            raise SystemExit(f'error: {missing}')


def pinned_version(entry: str) -> str:
    """'name==1.2 \\ --hash=...' -> '1.2'."""
    return entry.split('==')[1].split()[0]


def remove_stale_builds(folder: Path) -> None:
    """Removes what killed builds left: folders of this machine whose process is gone, and any that are days old."""
    for leftover in folder.glob('building-*'):
        host, _, pid = leftover.name.removeprefix('building-').rpartition('-')
        gone = host == socket.gethostname() and not Path(f'/proc/{pid}').exists() and Path('/proc/self').exists()
        if gone or time.time() - leftover.stat().st_mtime > STALE_S:
            shutil.rmtree(leftover, ignore_errors=True)


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
        unwanted = (
            'PYTHONPATH',
            'PYTHONHOME',
            'PIP_TARGET',
            'PIP_PREFIX',
            'PIP_USER',
            'PIP_CONSTRAINT',
            'PIP_REQUIREMENT',
        )
        self.environ = {key: value for key, value in os.environ.items() if key not in unwanted}
        self.environ.update(PIP_DISABLE_PIP_VERSION_CHECK='1', PIP_NO_INPUT='1')

    def call(self, title: str, command: list[str], log: Path, **environ: str) -> None:
        started = time.monotonic()
        print(f'  {title} ...', end=' ', flush=True, file=sys.stderr)
        with log.open('ab') as out:
            code = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**self.environ, **environ}
            ).returncode
        print(f'{time.monotonic() - started:.0f} s', file=sys.stderr)
        if code:
            tail = '\n'.join(log.read_text(errors='replace').splitlines()[-25:])
            raise SystemExit(f'{tail}\n\nFailed: {title}. The whole log: {log}')

    def requirements(self, names: list[str], folder: Path, title: str) -> str:
        path = folder / f'{title}.txt'
        path.write_text('\n'.join(self.entries[name] for name in names) + '\n')
        return str(path)

    def output_of(self, code: str) -> str:
        return subprocess.run(
            [str(self.python), '-c', code], check=True, capture_output=True, text=True, env=self.environ
        ).stdout.strip()

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
        self.call(
            f'download and install {len(rest)} packages (5.5 GB on Linux)',
            [*install, '--no-build-isolation', '-r', self.requirements(rest, self.env, 'packages')],
            log,
        )
        wheel = self.compiled_wheel(pip, log)
        self.call(f'install {wheel.name}', [*pip, 'install', '--no-deps', '--no-index', str(wheel)], log)
        self.call('check that the pieces work together', [str(self.python), '-c', VERIFY], log)
        (self.env / '.complete').write_text(time.strftime('%Y-%m-%dT%H:%M:%S%z\n'))

    def compiled_wheel(self, pip: list[str], log: Path) -> Path:
        """Path of the mmcv wheel for this torch, Python, platform and CUDA; compiled when it is not kept yet."""
        torch_version, cuda, nvcc, python = self.output_of(
            'import os, sys, torch; from torch.utils.cpp_extension import CUDA_HOME; print(torch.__version__, '
            'torch.version.cuda if torch.cuda.is_available() else "none", '
            'os.path.exists(os.path.join(CUDA_HOME or "", "bin", "nvcc")), "%d.%d" % sys.version_info[:2])'
        ).split()
        if (
            os.environ.get('FORCE_CUDA') == '1' and cuda == 'none'
        ):  # mmcv's own switch: compile for a GPU that is not here
            cuda = 'forced'
        hide_gpu = {}
        if cuda != 'none' and nvcc != 'True':
            print(
                '  There is a GPU but no CUDA compiler (nvcc): mmcv is compiled for the CPU, detectors will not run '
                'on the GPU. Install '
                "the CUDA toolkit of torch's version, then: python3 tools/make_env.py --rebuild",
                file=sys.stderr,
            )
            cuda, hide_gpu = 'none', dict(CUDA_VISIBLE_DEVICES='', FORCE_CUDA='0')
        version = pinned_version(self.entries[COMPILED])
        folder = cache_dir() / 'wheels' / f'torch-{torch_version}_cuda-{cuda}_{compiled_tag(python)}'
        kept = sorted(folder.glob(f'{COMPILED.replace("-", "_")}-{version}-*.whl'))
        if kept:
            return kept[-1]
        remove_stale_builds(folder)
        scratch = folder / f'building-{socket.gethostname()}-{os.getpid()}'
        scratch.mkdir(parents=True)
        jobs = os.environ.get('MAX_JOBS', str(os.cpu_count() or 1))
        self.call(
            f'compile mmcv {version} for torch {torch_version} with {jobs} jobs (about 25 core minutes)',
            [
                *pip,
                'wheel',
                '--no-deps',
                '--require-hashes',
                '--no-build-isolation',
                '--no-cache-dir',
                '--no-binary',
                COMPILED,
                '-w',
                str(scratch),
                '-r',
                self.requirements([COMPILED], scratch, 'mmcv'),
            ],
            log,
            MAX_JOBS=jobs,
            MMCV_WITH_OPS='1',
            **hide_gpu,
        )
        built = next(scratch.glob('*.whl'))
        wheel = folder / built.name
        built.replace(wheel)  # appears at once and whole
        shutil.rmtree(scratch)
        return wheel


def locked(path: Path, building: Path):
    """The open lock file at `path`, locked; says so when another process holds it and waits."""
    handle = path.open('w')
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print(f'Another process is building {building}; waiting for it (its log: {building}.log)', file=sys.stderr)
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--print-interpreter', action='store_true', help='print the interpreter of the environment; builds nothing'
    )
    parser.add_argument('--rebuild', action='store_true', help='build it anew and compile mmcv again')
    args = parser.parse_args()
    base_python, version = find_python()
    lock_text = LOCK_FILE.read_text()
    env = cache_dir() / env_key(lock_text, version)
    if args.print_interpreter:
        print(env / 'bin' / 'python')
        if not (env / '.complete').exists():
            print('It is not built yet: run `make env`.', file=sys.stderr)
        return
    if args.rebuild or not is_ready(env):
        check_machine(base_python, version, lock_text)
        with locked(env.parent / f'{env.name}.lock', env):
            if args.rebuild:
                for wheel in cache_dir().glob(f'wheels/*_{compiled_tag(version)}/*.whl'):
                    wheel.unlink()
            if args.rebuild or not is_ready(env):  # a second caller waited above and finds the work done
                print(f'Building {env} with Python {version}', file=sys.stderr)
                Builder(env, base_python, lock_text).build()
    print(f'Environment: {env}', file=sys.stderr)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('\nInterrupted. The next call starts this environment afresh; what was compiled to its end is kept.')
