"""Build MinkowskiEngine from its source archive and install it here: what `layout='minkowski'` needs.

    make minkowski                              build (once) and install into the project's environment
    make test-minkowski                         the same, then the tests that need it
    python tools/build_minkowski.py --wheel-only   print the path of the wheel; installs nothing

It serves the interpreter that runs it, and returns at once when a working copy is installed. Two idle cores compile for
about 5 minutes. Needs a C++ compiler, the headers of Python and OpenBLAS (Debian: apt-get install g++ libopenblas-dev).

The last release, 0.5.4, is of 2021, and no compiled one was published. It goes wrong in four places, each met here:
`from collections import Sequence` does not exist since Python 3.10 (the archive is patched before it is compiled);
its setup.py uninstalls MinkowskiEngine with whatever `pip` comes first on the path (taken out); pip cannot pass it the
options that it needs, so that setup.py is called (`pip install MinkowskiEngine` fails); without `--cpu_only
--blas=openblas` it asks a part of NumPy that is gone. The wheel is kept beside mmcv's, in a folder named by torch
version, Python and platform (make_env.py). Compiled for the CPU, GPU or not: the layout is there to compare results.

An archive in `$MMCNX2_CACHE/sources` (default ~/.cache/mmcnx2/sources) is used instead of the network.

Touch this file for another version of torch or Python that its sources do not compile with. Guarded by
tests/test_build_minkowski.py and `make test-minkowski`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

import requests
from make_env import cache_dir, compiled_tag, missing_for_compiling, remove_stale_builds
from pip._internal.models.index import PyPI  # pip has no public place for it

from mmcnx2.datasets.download import TIMEOUT_S, Archive, fetch
from mmcnx2.engine.user_errors import explain_errors

NAME, VERSION = 'MinkowskiEngine', '0.5.4'
ARCHIVE = f'{NAME}-{VERSION}.tar.gz'
SHA256 = 'b1879c00d0b0b1d30ba622cce239886a7e3c78ee9da1064cdfe2f64c2ab15f94'
NUM_OLD_IMPORTS = 5
UNINSTALLS = 'run_command("pip", "uninstall", "MinkowskiEngine", "-y")\n'
OPENBLAS_PROGRAM = '#include <cblas.h>\nint main() { double x = 1; return cblas_ddot(1, &x, 1, &x, 1) != 1; }\n'

# A 3 x 3 kernel whose taps are 0..8, on two positions one above the other: each sees its neighbour through one tap.
VERIFY = f"""
import torch, MinkowskiEngine as ME
assert ME.__version__ == {VERSION!r}, f'it is version {{ME.__version__}}'
x = ME.SparseTensor(torch.ones(2, 1), coordinates=torch.tensor([[0, 4, 7], [0, 5, 7]], dtype=torch.int32))
conv = ME.MinkowskiChannelwiseConvolution(1, kernel_size=3, dimension=2)
conv.kernel.data = torch.arange(9.)[:, None]
seen = conv(x).F.flatten().tolist()
assert seen == [9, 7], f'a convolution gave {{seen}}, not [9, 7]'
"""


def fails_to_work(interpreter: str = sys.executable) -> str | None:
    """Why MinkowskiEngine does not work in an interpreter, one line; None when it does."""
    done = subprocess.run([interpreter, '-c', VERIFY], capture_output=True, text=True, cwd=Path(__file__).parent)
    return (done.stderr.strip().splitlines() or ['it crashed'])[-1] if done.returncode else None


def index_url() -> str:
    """The package index that pip is configured to use, else the one that it uses by itself."""
    done = subprocess.run([sys.executable, '-m', 'pip', 'config', 'list'], capture_output=True, text=True)
    found = dict(re.findall(r"^(\S+?)\.index-url='(.*)'$", done.stdout, re.MULTILINE))
    return next((found[key] for key in (':env:', 'install', 'global') if found.get(key)), PyPI.simple_url)


def archive_url(index: str, page: str) -> str:
    """Address of the source archive, from the page that an index answers for the package."""
    links = [urllib.parse.urljoin(index, link) for link in re.findall(r'href="([^"#]*)', page)]
    found = [link for link in links if link.rsplit('/', 1)[-1] == ARCHIVE]
    if not found:
        raise ValueError(f'{index} has no {ARCHIVE} among its {len(links)} links')
    return found[0]


def fetch_archive() -> Path:
    """The source archive, complete and with the pinned checksum."""
    folder = cache_dir() / 'sources'
    url = ARCHIVE
    if not (folder / ARCHIVE).exists():
        page_url = f'{index_url().rstrip("/")}/{NAME.lower()}/'
        try:
            page = requests.get(page_url, timeout=TIMEOUT_S)
            page.raise_for_status()
        except requests.RequestException as error:
            raise OSError(
                f'the package index does not answer ({error}). Without a network, put {ARCHIVE} into {folder}'
            ) from error
        url = archive_url(page.url, page.text)
    return fetch(Archive(url, f'sha256:{SHA256}'), folder, tell=tell)


def patch(source: Path) -> None:
    """Makes the unpacked sources import on Python 3.10 and newer, and keeps setup.py from uninstalling anything.

    Raises:
        ValueError: there is something else to patch than expected, so these are not the sources of the release.
    """
    patched = []
    for path in sorted((source / NAME).rglob('*.py')):
        old = path.read_text()
        new = old.replace('from collections import Sequence, namedtuple\n', 'from collections import namedtuple\n'
                          'from collections.abc import Sequence\n')  # fmt: skip
        new = new.replace('from collections import Sequence\n', 'from collections.abc import Sequence\n')
        if new != old:
            path.write_text(new)
            patched.append(path.name)
    setup = source / 'setup.py'
    text = setup.read_text()
    if len(patched) != NUM_OLD_IMPORTS or text.count(UNINSTALLS) != 1:
        raise ValueError(
            f'{source} is not the release {VERSION}: old imports of Sequence stand in {len(patched)} files {patched} '
            f'(expected {NUM_OLD_IMPORTS}), the call of pip in setup.py {text.count(UNINSTALLS)} times (expected 1)'
        )
    setup.write_text(text.replace(UNINSTALLS, ''))


def check_machine() -> None:
    """Says what is missing for compiling before anything is downloaded."""
    missing = missing_for_compiling(sys.executable)
    if missing:
        raise OSError(missing.replace('mmcv', NAME))
    compiler = os.environ.get('CXX', 'g++').split()
    done = subprocess.run(
        [*compiler, '-x', 'c++', '-', '-lopenblas', '-o', os.devnull],
        input=OPENBLAS_PROGRAM,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise OSError(
            f'{NAME} must be compiled with OpenBLAS, and a program with <cblas.h> and -lopenblas does not compile. '
            'Install it (Debian: apt-get install libopenblas-dev), or name its folders in CPATH and LIBRARY_PATH'
        )


def wheel_folder() -> Path:
    """Where compiled wheels for this torch, Python and platform are kept; make_env.py keeps mmcv there."""
    import torch

    version = f'{sys.version_info.major}.{sys.version_info.minor}'
    return cache_dir() / 'wheels' / f'torch-{torch.__version__}_cuda-none_{compiled_tag(version)}'


def build_wheel(folder: Path) -> Path:
    """The wheel in `folder`; compiled when it is not kept yet."""
    kept = sorted(folder.glob(f'[mM]inkowski[eE]ngine-{VERSION}-*.whl'))
    if kept:
        return kept[-1]
    check_machine()
    archive = fetch_archive()
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale_builds(folder)
    scratch = folder / f'building-{socket.gethostname()}-{os.getpid()}'
    scratch.mkdir()
    shutil.unpack_archive(archive, scratch)
    source = scratch / f'{NAME}-{VERSION}'
    patch(source)
    jobs = os.environ.get('MAX_JOBS', str(os.cpu_count() or 1))
    log = folder / f'{NAME}-{VERSION}.log'
    tell(f'Compiling {NAME} {VERSION} with {jobs} jobs (about 10 core minutes); its log: {log}')
    started = time.monotonic()
    unwanted = ('PYTHONPATH', 'PYTHONHOME')
    environ = {key: value for key, value in os.environ.items() if key not in unwanted}
    environ |= dict(MAX_JOBS=jobs, PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')  # ninja
    command = [sys.executable, 'setup.py', 'bdist_wheel', '--cpu_only', '--blas=openblas', '--dist-dir', str(scratch)]
    with log.open('wb') as out:
        code = subprocess.run(
            command, cwd=source, env=environ, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        ).returncode
    if code:
        lines = log.read_text(errors='replace').splitlines()
        first = next((line for line in lines if ' error: ' in line or line.startswith('error')), lines[-1])
        raise OSError(f'compiling {NAME} failed after {time.monotonic() - started:.0f} s: {first} (log: {log})')
    tell(f'Compiled in {time.monotonic() - started:.0f} s')
    built = next(scratch.glob('*.whl'))
    wheel = folder / built.name
    built.replace(wheel)  # appears at once and whole
    shutil.rmtree(scratch)
    return wheel


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--wheel-only', action='store_true', help='print the path of the wheel; install nothing')
    args = parser.parse_args(argv)
    if args.wheel_only:
        print(build_wheel(wheel_folder()))
        return
    if fails_to_work():
        wheel = build_wheel(wheel_folder())
        install = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--force-reinstall']
        if subprocess.run([*install, wheel]).returncode:
            raise OSError(f'pip does not install {wheel}; it says why above')
        reason = fails_to_work()
        if reason:
            raise OSError(f'{wheel} is installed and does not work: {reason}. Remove that file and run this again')
    tell(f'{NAME} {VERSION} works in {sys.executable}')


if __name__ == '__main__':
    with explain_errors():
        main()
