"""The wheel carries what an installed copy needs to train, others can inherit our configs, versions agree."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmcnx2

ROOT = Path(__file__).resolve().parents[1]
PARTS = ['mmcnx2', 'configs', 'tools', 'model-index.yml', 'setup.py', 'setup.cfg', 'pyproject.toml', 'MANIFEST.in']
PARTS += ['LICENSE', 'README.md']
CONFIG = """
_base_ = '{{$MMCNX2_CONFIGS:}}/demo/fcmae_convnextv2-atto_demo.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=[1, 1, 1, 1], channels=[8, 8, 16, 16])),
    neck=dict(decoder_channels=16))
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(source='pictures'))
train_cfg = dict(max_epochs=2)
test_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmcnx2.UnlabelledImages', source='pictures',
        pipeline=[dict(type='mmcnx2.LoadImage'), dict(type='Resize', scale=(64, 64)), dict(type='PackInputs')]))
"""


@pytest.fixture(scope='module')
def checkout(tmp_path_factory) -> Path:
    """A copy of what is packed, so that building leaves nothing in the real checkout."""
    copy = tmp_path_factory.mktemp('checkout')
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns('__pycache__', '.mim'))
        else:
            shutil.copy2(source, copy / name)
    return copy


def run(command: list, **options) -> subprocess.CompletedProcess:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f'{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done


def pip(*args) -> None:
    run([sys.executable, '-m', 'pip', '--disable-pip-version-check', *args, '--no-deps'])


@pytest.fixture(scope='module')
def wheel(checkout, tmp_path_factory) -> Path:
    stale = checkout / 'build' / 'lib' / 'mmcnx2' / 'left_by_an_earlier_build.py'
    stale.parent.mkdir(parents=True)
    stale.touch()
    folder = tmp_path_factory.mktemp('wheel')
    pip('wheel', checkout, '--no-build-isolation', '--wheel-dir', folder)
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    site = tmp_path_factory.mktemp('site')
    pip('install', wheel, '--no-index', '--target', site)
    return site


@pytest.fixture
def clean(tmp_path) -> Path:
    """A folder with four pictures and a config that inherits one of ours."""
    (tmp_path / 'pictures').mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'pictures' / f'{i}.png')
    (tmp_path / 'mine.py').write_text(CONFIG)
    return tmp_path


def environment(**changes: str) -> dict[str, str]:
    environ = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'MMCNX2_CONFIGS')}
    return {**environ, 'OMP_NUM_THREADS': '1', **changes}


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts and not any(part.startswith('.') for part in path.parts)
    }


def test_the_wheel_holds_all_configs_and_tools_and_nothing_stale(wheel, checkout):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ('configs', 'tools'):
        carried = {
            path.removeprefix(f'mmcnx2/.mim/{name}/') for path in names if path.startswith(f'mmcnx2/.mim/{name}/')
        }
        assert carried == files_below(checkout / name)
    assert 'mmcnx2/.mim/model-index.yml' in names
    modules = {path.removeprefix('mmcnx2/') for path in names if re.match(r'mmcnx2/[^.]', path)}
    assert modules == files_below(checkout / 'mmcnx2')
    assert {path.split('/')[0] for path in names} == {'mmcnx2', f'mmcnx2-{mmcnx2.__version__}.dist-info'}
    licence = next(path for path in names if path.endswith('/LICENSE'))
    assert b'Apache License' in zipfile.ZipFile(wheel).read(licence)


def test_building_leaves_no_second_copy_in_the_checkout(wheel, checkout):
    assert not (checkout / 'mmcnx2' / '.mim').exists()
    assert not [path for path in checkout.rglob('*') if path.is_symlink()]


def test_an_installed_copy_trains_and_tests_without_a_checkout(installed, clean):
    environ = environment(PYTHONPATH=str(installed))
    there = run([sys.executable, '-m', 'mmcnx2', 'configs'], cwd=clean, env=environ).stdout.strip()
    assert there == str(installed / 'mmcnx2' / '.mim' / 'configs')
    train = run([sys.executable, '-m', 'mmcnx2', 'train', 'mine.py'], cwd=clean, env=environ)
    assert str(ROOT) not in train.stdout + train.stderr, 'it looked into the checkout'
    tested = run(
        [sys.executable, '-m', 'mmcnx2', 'test', 'mine.py', 'work_dirs/mine/epoch_2.pth'], cwd=clean, env=environ
    )
    assert re.search(r'^loss: [01]\.\d+', tested.stdout, re.MULTILINE), tested.stdout[-2000:]


def test_the_hub_of_mmengine_finds_the_configs_of_an_installed_copy(installed, clean):
    code = """
import mmcnx2
from mmengine.config.utils import _get_cfg_metainfo
from mmengine.hub import get_config
cfg = get_config('mmcnx2::demo/upernet_convnextv2-atto_demo.py')
print(cfg.model.type, cfg.model.backbone.type, cfg.model.get('_scope_'), cfg.filename)
print(_get_cfg_metainfo(mmcnx2.__path__[0], 'demo/upernet_convnextv2-atto_demo.py')['Metadata']['Iterations'])
"""
    done = run([sys.executable, '-c', code], cwd=clean, env=environment(PYTHONPATH=str(installed)))
    there = installed / 'mmcnx2' / '.mim' / 'configs' / 'demo' / 'upernet_convnextv2-atto_demo.py'
    assert done.stdout.split() == ['EncoderDecoder', 'mmcnx2.ConvNeXtV2', 'None', str(there), '900']


def test_a_config_elsewhere_inherits_one_of_a_checkout(clean, monkeypatch):
    from mmengine.config import Config

    assert os.environ['MMCNX2_CONFIGS'] == str(ROOT / 'configs')
    cfg = Config.fromfile(clean / 'mine.py')
    assert cfg.model.type == 'mmcnx2.FCMAE'
    assert cfg.model.backbone.arch.channels == [8, 8, 16, 16]
    assert cfg.train_dataloader.dataset.type == 'mmcnx2.UnlabelledImages'
    # any other tool of OpenMMLab needs the variable, and mmcnx2 on its path
    environ = environment(PYTHONPATH=str(ROOT), MMCNX2_CONFIGS=str(ROOT / 'configs'))
    code = 'from mmengine.config import Config; print(Config.fromfile("mine.py").model.type)'
    done = run([sys.executable, '-c', code], cwd=clean, env=environ)
    assert done.stdout.split()[-1] == 'mmcnx2.FCMAE'


def test_the_variable_names_the_configs_of_the_copy_that_runs(clean):
    code = 'import mmcnx2, os; print(os.environ["MMCNX2_CONFIGS"])'
    environ = environment(PYTHONPATH=str(ROOT), MMCNX2_CONFIGS='/of/another/checkout')
    assert run([sys.executable, '-c', code], cwd=clean, env=environ).stdout.strip() == str(ROOT / 'configs')


def test_an_editable_install_uses_the_checkout_itself(checkout, clean, tmp_path):
    code = f'from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})'
    run([sys.executable, '-c', code], cwd=checkout)
    site = tmp_path / 'site'
    pip('install', next(tmp_path.glob('*.whl')), '--no-index', '--target', site)
    code = (
        f'import site; site.addsitedir({str(site)!r}); import mmcnx2; print(mmcnx2.configs_dir(), mmcnx2.tools_dir())'
    )
    there = run([sys.executable, '-c', code], cwd=clean, env=environment()).stdout.split()
    assert there == [str(checkout / 'configs'), str(checkout / 'tools')]
    assert not (checkout / 'mmcnx2' / '.mim').exists()


def test_running_the_package_names_its_tools(tmp_path):
    environ = environment(PYTHONPATH=str(ROOT))
    shown = run([sys.executable, '-m', 'mmcnx2'], cwd=tmp_path, env=environ).stdout
    assert 'train' in shown and 'convert_checkpoint' in shown
    command = [sys.executable, '-m', 'mmcnx2', 'trian']
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: 'trian' is no tool; there are: configs")


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / 'setup.cfg')
    return parser


def test_the_versions_asked_for_at_import_are_those_of_setup_cfg():
    lines = setup_cfg()['options']['install_requires'].splitlines()
    wanted = {re.split(r'[<>=]', line)[0]: line for line in lines if line and not line.startswith('#')}
    ours = {fork: f'{fork}>={lowest},<{below}' for fork, lowest, below, _ in mmcnx2.OPENMMLAB.values()}
    assert ours == {name: wanted[name] for name in ours}
    assert {name for name in wanted if name.startswith('onedl-')} == set(ours)


def test_every_requirement_is_in_the_lock_and_within_its_range():
    from packaging.requirements import Requirement

    lock = dict(re.findall(r'^([\w.-]+)==([^\s;]+)', (ROOT / 'requirements.lock').read_text(), re.MULTILINE))
    options = setup_cfg()['options']['install_requires'] + setup_cfg()['options.extras_require']['dev']
    for line in options.splitlines():
        if line and not line.startswith('#'):
            requirement = Requirement(line)
            assert requirement.name in lock, line
            assert requirement.specifier.contains(lock[requirement.name]), (
                f'{line}: the lock has {lock[requirement.name]}'
            )


def test_make_prints_the_interpreter_and_nothing_else():
    done = run(['make', '-s', 'which-python'], cwd=ROOT)
    assert re.fullmatch(r'\S+/bin/python\n', done.stdout)


@pytest.mark.parametrize('command', ['doctor', 'demo', 'test', 'lint', 'wheel', 'minkowski', 'test-minkowski'])
def test_make_runs_an_interpreter_in_a_folder_with_a_blank(command):
    done = run(['make', '-n', '--no-print-directory', command, 'PYTHON=/my cache/python'], cwd=ROOT)
    lines = [shlex.split(line) for line in done.stdout.replace('\\\n', '').splitlines()]
    assert '/my cache/python' in lines[-1]


def test_continuous_integration_runs_the_test_command_of_the_readme():
    found = subprocess.run(['bash', ROOT / '.ci' / 'run', '--print-test-command'], capture_output=True, text=True)
    assert found.stdout.strip() == 'make test', found.stderr
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    assert {'env', 'demo', 'test', 'lint', 'clean', 'lock', 'which-python', 'help'} <= targets


@pytest.mark.parametrize(
    ('has_browser', 'apt', 'noted', 'calls'),
    [
        (False, 'exit 100', True, ['apt-get update', 'make env']),  # no network
        (False, '[ "$last" = update ]', True, ['apt-get update', 'apt-get chromium', 'make env']),
        (False, 'true', False, ['apt-get update', 'apt-get chromium', 'make env']),
        (True, 'exit 100', False, ['make env']),
    ],
    ids=['no network', 'no such package', 'installed', 'there already'],
)
def test_continuous_integration_goes_on_without_a_browser(tmp_path, has_browser, apt, noted, calls):
    tools = tmp_path / 'bin'
    tools.mkdir()
    for name in ('bash', 'env', 'dirname', 'awk', 'timeout'):
        (tools / name).symlink_to(shutil.which(name))
    note = 'for last; do :; done; echo "${0##*/} $last" >> "$CALLS"'
    scripts = {'apt-get': f'{note}\n{apt}', 'make': f'{note}\nexit 3', 'id': 'echo 0', 'sudo': 'exit 1'}
    for name, script in {**scripts, **({'chromium': 'true'} if has_browser else {})}.items():
        (tools / name).write_text(f'#!{tools}/bash\n{script}\n')
        (tools / name).chmod(0o755)
    environ = {'PATH': str(tools), 'HOME': str(tmp_path), 'CALLS': str(tmp_path / 'calls')}
    done = subprocess.run([tools / 'bash', ROOT / '.ci' / 'run'], env=environ, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr  # of make: nothing before it has ended the script
    assert (tmp_path / 'calls').read_text().splitlines() == calls
    assert ('the tests of reports in a browser are skipped' in done.stderr) == noted
