"""What the README files say: commands name files that exist and options that the tools know, links lead somewhere."""

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    page
    for page in sorted([*ROOT.glob('*.md'), *ROOT.glob('configs/**/*.md'), *ROOT.glob('tools/**/*.md')])
    if page.name != 'CHANGELOG.md'
]
LAUNCHED = {'dist_train.sh': 'train', 'dist_test.sh': 'test', 'slurm_train.sh': 'train'}


def shell_commands(text: str) -> list[list[str]]:
    """The commands of all ```bash blocks, split into words, with continued lines joined and assignments cut off."""
    blocks = re.findall(r'^```(?:bash|shell|sh)\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if '=$(' not in line]
    for words in commands:
        while words and re.match(r'^[A-Z_]+=', words[0]):
            words.pop(0)
    return [words for words in commands if words]


COMMANDS = [
    pytest.param(page, words, id=f'{page.relative_to(ROOT)}: {" ".join(words)[:60]}')
    for page in PAGES
    for words in shell_commands(page.read_text())
]


@cache
def options_of(tool: str) -> set[str]:
    """Options that a tool (path below tools/) gives to argparse, read from its source: starting each one takes long."""
    source = (ROOT / 'tools' / f'{tool}.py').read_text()
    if 'run_config.add_common_arguments' in source:
        source += (ROOT / 'mmcnx2' / 'engine' / 'run_config.py').read_text()
    if 'add_feature_arguments' in source:
        source += (ROOT / 'mmcnx2' / 'engine' / 'feature_options.py').read_text()
    if 'speed_settings.add_options' in source:
        source += (ROOT / 'mmcnx2' / 'analysis' / 'speed_settings.py').read_text()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [call.args for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == 'add_argument']
    return {'--help'} | {arg.value for args in named for arg in args if str(getattr(arg, 'value', '')).startswith('--')}


@cache
def make_targets() -> set[str]:
    return set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))


def check_command(words: list[str]) -> None:
    """Raises AssertionError when a command names a file or an option that does not exist."""
    program = words[0]
    for word in words:
        if re.match(r'^(?:configs|tools|tests|mmcnx2)/', word):
            assert (ROOT / word).exists(), f'{word} does not exist'
    flags = {word.split('=')[0] for word in words if word.startswith('--')}
    if program == 'make':
        assert set(words[1:]) - {'-s'} <= make_targets(), f'unknown target in {words}'
    elif program in ('python', 'python3', '$PY', 'bash'):
        if words[1] == '-m':
            if words[2] != 'mmcnx2':
                return
            tool = words[3]
            if tool == 'configs':
                return
            config = next((word for word in words[4:] if word.endswith('.py')), None)
            assert config is None or (ROOT / 'configs' / config).exists(), f'no config {config}'
        else:
            path = words[1].removeprefix('tools/').removesuffix('.py')
            tool = LAUNCHED.get(Path(words[1]).name, path)
        unknown = flags - options_of(tool)
        assert not unknown, f'{tool}.py knows no {unknown}; it knows {sorted(options_of(tool))}'
    else:
        assert program in ('pip', 'export', 'git', 'cd'), f'what is {program}?'


@pytest.mark.parametrize(('page', 'words'), COMMANDS)
def test_commands_name_what_exists(page, words):
    check_command(words)


@pytest.mark.parametrize(
    'command',
    [
        '$PY tools/train.py configs/demo/nothing.py',
        '$PY tools/train.py CONFIG --no-such-option',
        'make coffee',
        'bash tools/dist_train.sh CONFIG 8 --no-such-option',
        'python -m mmcnx2 train demo/nothing.py',
        'brew install it',
    ],
)
def test_a_wrong_command_would_be_found(command):
    with pytest.raises(AssertionError):
        check_command(shlex.split(command))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = re.findall(r'\]\(([^)#\s]+)(?:#[^)]*)?\)', page.read_text())
    missing = [target for target in targets if '://' not in target and not (page.parent / target).exists()]
    assert not missing


def test_every_tool_is_in_the_list_and_the_list_names_no_other():
    listed = set(re.findall(r'`([\w-]+\.(?:py|sh))`', (ROOT / 'tools' / 'README.md').read_text()))
    there = {path.name for path in (ROOT / 'tools').iterdir() if path.suffix in ('.py', '.sh')}
    assert listed == there


def test_options_read_from_the_source_are_those_of_the_help_text():
    done = subprocess.run([sys.executable, ROOT / 'tools' / 'train.py', '--help'], capture_output=True, text=True)
    shown = set(re.findall(r'(?<![\w-])--[a-z][\w-]*', done.stdout))
    assert shown <= options_of('train'), done.stderr
    assert {'--resume', '--cfg-options', '--launcher'} <= shown


def test_the_python_of_the_readme_runs():
    blocks = re.findall(r'^```python\n(.*?)^```', (ROOT / 'README.md').read_text(), re.MULTILINE | re.DOTALL)
    code = next(block for block in blocks if 'import mmcnx2' in block)
    code += 'import torch; assert len(backbone(torch.zeros(1, 3, 64, 64))) == 4'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
