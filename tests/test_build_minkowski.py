"""tools/build_minkowski.py up to the compiler, with small archives of the same shape; the real one is compiled and used
by `make test-minkowski`.
"""

import functools
import hashlib
import http.server
import importlib.util
import re
import shutil
import sys
import tarfile
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUP = """
import sys
{call}
print('compiling with', sys.argv[1:])
{end}
"""
MAKES_A_WHEEL = """
import pathlib
assert sys.argv[1:4] == ['bdist_wheel', '--cpu_only', '--blas=openblas'] and sys.argv[4] == '--dist-dir', sys.argv
(pathlib.Path(sys.argv[5]) / 'MinkowskiEngine-0.5.4-cp311-cp311-linux_x86_64.whl').write_text('a wheel')
"""
FAILS = """
print('src/sparse.cpp:12:3: error: no member named gone')
sys.exit(1)
"""


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """A fresh copy of the script whose cache is in tmp_path."""
    monkeypatch.setenv('MMCNX2_CACHE', str(tmp_path / 'cache'))
    spec = importlib.util.spec_from_file_location('build_minkowski', ROOT / 'tools' / 'build_minkowski.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, 'path', [str(ROOT / 'tools'), *sys.path])
    spec.loader.exec_module(module)
    return module


def write_sources(folder: Path, call: str, end: str = MAKES_A_WHEEL, num_old_imports: int = 5) -> Path:
    """The shape of the release: its old imports, and the line of setup.py that uninstalls."""
    source = folder / 'MinkowskiEngine-0.5.4'
    (source / 'MinkowskiEngine' / 'utils').mkdir(parents=True)
    (source / 'setup.py').write_text(SETUP.format(call=call, end=end))
    paths = [source / 'MinkowskiEngine' / f'part{i}.py' for i in range(4)]
    paths.append(source / 'MinkowskiEngine' / 'utils' / 'quantization.py')
    for i, path in enumerate(paths[:num_old_imports]):
        names = 'Sequence, namedtuple' if i == 1 else 'Sequence'
        path.write_text(f'import os\nfrom collections import {names}\nassert Sequence.__name__ == "Sequence"\n')
    (source / 'MinkowskiEngine' / 'summary.py').write_text('from collections import OrderedDict\n')
    return source


@pytest.fixture
def publish(tool, tmp_path, monkeypatch):
    """Puts an archive where fetched archives lie, and makes its checksum the pinned one."""

    def publish_archive(**changes) -> Path:
        source = write_sources(tmp_path / 'release', **{'call': tool.UNINSTALLS, **changes})
        path = tmp_path / 'cache' / 'sources' / tool.ARCHIVE
        path.parent.mkdir(parents=True)
        with tarfile.open(path, 'w:gz') as archive:
            archive.add(source, source.name)
        monkeypatch.setattr(tool, 'SHA256', hashlib.sha256(path.read_bytes()).hexdigest())
        return path

    monkeypatch.setattr(tool, 'check_machine', lambda: None)
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9')  # nobody answers there: no test needs the network
    return publish_archive


def test_patched_sources_import_and_uninstall_nothing(tool, tmp_path):
    source = write_sources(tmp_path, tool.UNINSTALLS)
    tool.patch(source)
    for path in source.rglob('*.py'):
        text = path.read_text()
        assert 'uninstall' not in text
        if path.name != 'setup.py':
            exec(compile(text, path, 'exec'), {})
    assert 'from collections import namedtuple' in (source / 'MinkowskiEngine' / 'part1.py').read_text()


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(call='pass'), 'setup.py 0 times'),
    (dict(call='run_command("pip", "uninstall", "MinkowskiEngine", "-y")\n', num_old_imports=4), 'in 4 files'),
])  # fmt: skip
def test_other_sources_are_not_compiled(tool, tmp_path, changes, message):
    with pytest.raises(ValueError, match=f'is not the release 0.5.4.*{message}'):
        tool.patch(write_sources(tmp_path, **changes))


def test_a_wheel_is_built_once_and_kept_beside_mmcvs(tool, publish, tmp_path, capfd):
    publish()
    folder = tool.wheel_folder()
    assert folder.parent == tmp_path / 'cache' / 'wheels'
    assert re.fullmatch(r'torch-2[.\d]+\S*_cuda-none_cp31\d_linux-\w+', folder.name)
    tool.main(['--wheel-only'])
    printed = capfd.readouterr()
    wheel = Path(printed.out.strip())
    assert wheel.parent == folder and wheel.read_text() == 'a wheel'
    assert 'Compiling MinkowskiEngine' in printed.err
    assert {path.name for path in folder.iterdir()} == {wheel.name, 'MinkowskiEngine-0.5.4.log'}
    shutil.rmtree(tmp_path / 'cache' / 'sources')
    tool.main(['--wheel-only'])
    printed = capfd.readouterr()
    assert Path(printed.out.strip()) == wheel and not printed.err


def test_a_failed_compilation_names_the_first_error_and_the_log(tool, publish):
    publish(end=FAILS)
    folder = tool.wheel_folder()
    with pytest.raises(OSError, match=r'src/sparse.cpp:12:3: error: no member named gone \(log: .*0.5.4.log\)'):
        tool.build_wheel(folder)
    assert not list(folder.glob('*.whl'))


def test_another_archive_is_refused(tool, publish):
    path = publish()
    path.write_bytes(path.read_bytes() + b' ')
    with pytest.raises(ValueError, match='instead of'):
        tool.build_wheel(tool.wheel_folder())


@pytest.fixture
def index(tmp_path):
    """A package index on this machine; its folder, and its address."""
    folder = tmp_path / 'index'
    (folder / 'minkowskiengine').mkdir(parents=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = None
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield folder, f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def test_the_archive_comes_from_the_index_that_pip_uses(tool, publish, index, monkeypatch):
    archive = publish()
    folder, url = index
    shutil.move(archive, folder / archive.name)
    (folder / 'minkowskiengine' / 'index.html').write_text(
        f'<a href="../other/MinkowskiEngine-0.5.3.tar.gz">older</a> <a href="../{archive.name}#sha256=1">this</a>'
    )
    monkeypatch.setenv('PIP_INDEX_URL', url)
    assert tool.index_url() == url
    assert tool.fetch_archive() == archive
    assert archive.is_file()


def test_without_the_archive_it_says_what_to_do(tool, index, monkeypatch, tmp_path):
    folder, url = index
    monkeypatch.setenv('PIP_INDEX_URL', f'{url}/nothing/')
    with pytest.raises(OSError, match=rf'404.*put MinkowskiEngine-0.5.4.tar.gz into {tmp_path}/cache/sources'):
        tool.fetch_archive()
    (folder / 'minkowskiengine' / 'index.html').write_text('<a href="MinkowskiEngine-0.5.3.tar.gz">older</a>')
    monkeypatch.setenv('PIP_INDEX_URL', url)
    with pytest.raises(ValueError, match=r'has no MinkowskiEngine-0.5.4.tar.gz among its 1 links'):
        tool.fetch_archive()


def test_missing_openblas_and_compilers_are_named_before_anything_is_fetched(tool, monkeypatch, tmp_path):
    compiler = tmp_path / 'compiler'
    compiler.write_text('#!/bin/sh\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    with pytest.raises(OSError, match=r'OpenBLAS.*apt-get install libopenblas-dev'):
        tool.build_wheel(tool.wheel_folder())
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(OSError, match="MinkowskiEngine must be compiled, and there is no C\\+\\+ compiler 'no-such"):
        tool.build_wheel(tool.wheel_folder())
    assert not (tmp_path / 'cache' / 'sources').exists()


def test_an_installed_copy_that_works_is_left_alone(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tool, 'fails_to_work', lambda: None)
    monkeypatch.setattr(tool, 'build_wheel', lambda folder: pytest.fail('it builds'))  # and would install
    tool.main([])
    assert f'works in {sys.executable}' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_interpreter_without_the_package_is_told_why(tool, tmp_path):
    broken = tmp_path / 'python'
    broken.write_text('#!/bin/sh\necho "Traceback\nImportError: undefined symbol: _ZN2at" >&2\nexit 1\n')
    broken.chmod(0o755)
    assert tool.fails_to_work(str(broken)) == 'ImportError: undefined symbol: _ZN2at'
    broken.write_text('#!/bin/sh\nkill -SEGV $$\n')
    assert tool.fails_to_work(str(broken)) == 'it crashed'
    broken.write_text('#!/bin/sh\nexit 0\n')
    assert tool.fails_to_work(str(broken)) is None
