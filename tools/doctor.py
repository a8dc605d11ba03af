"""Say what is installed, what is wrong with it, and how to mend it.

    python tools/doctor.py [--json]

Exit code 1 when something that is required does not work; optional things (CUDA, MinkowskiEngine, Triton, TensorBoard)
are only reported. The looks run in another process, so that a package that crashes on import is reported as well. Touch
it to add a look. Guarded by tests/test_tools.py.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():
    sys.path.insert(0, str(ROOT))

ENV = 'build the environment anew: `make env`'
MENDS_MMCV = (
    'mmcv was installed without its compiled operators, or they were compiled for another torch: `make env`, or '
    'pip install --force-reinstall --no-deps --no-build-isolation --no-cache-dir onedl-mmcv (torch, setuptools >= 80, '
    'wheel, ninja and a C++ compiler must be there)'
)

# What is looked at: name -> (required, code that prints what was found, remedy)
LOOKS = {
    'torch': (True, 'import torch; torch.ones(2) @ torch.ones(2); print(torch.__version__)', ENV),
    'torchvision': (
        True,
        'import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), .5); '
        'print(torchvision.__version__)',
        'torch and torchvision must be a pair (2.12.1 and 0.27.1): ' + ENV,
    ),
    'numpy': (
        True,
        'import numpy, torch; torch.ones(2).numpy(); print(numpy.__version__)',
        'numpy >=2,<2.3 is needed: ' + ENV,
    ),
    'opencv': (
        True,
        'import cv2; print(cv2.__version__)',
        'pip uninstall opencv-python opencv-contrib-python, then pip install "opencv-python-headless>=4.10,<5"',
    ),
    'mmengine': (True, 'import mmengine; print(mmengine.__version__)', ENV),
    'mmcv': (True, 'import mmcv; print(mmcv.__version__)', ENV),
    'mmcv._ext': (
        True,
        'import torch; from mmcv.ops import nms; '
        'kept = nms(torch.tensor([[0., 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]), '
        'torch.tensor([.9, .8, .7]), .5)[1].tolist(); assert kept == [0, 2], kept; print("works (nms)")',
        MENDS_MMCV,
    ),
    'mmdet': (True, 'import mmdet.models; print(mmdet.__version__)', 'needs mmcv._ext; else ' + ENV),
    'mmseg': (True, 'import mmseg.models; print(mmseg.__version__)', 'needs ftfy and mmcv; else ' + ENV),
    'mmpretrain': (
        True,
        'import mmpretrain.models; print(mmpretrain.__version__)',
        'needs transformers >=4.57,<5; else ' + ENV,
    ),
    'pycocotools': (
        True,
        'import pycocotools.mask; from importlib.metadata import version; print(version("pycocotools"))',
        ENV,
    ),
    'safetensors': (True, 'import safetensors.torch; print(safetensors.__version__)', ENV),
    'mmcnx2': (
        True,
        f'import sys; sys.path[:0] = {[str(ROOT)] if str(ROOT) in sys.path else []!r}; import mmcnx2; '
        'from mmengine.registry import MODELS; MODELS.build(dict(type="mmcnx2.ConvNeXtV2", arch="atto")); '
        'print(mmcnx2.__version__, "at", mmcnx2.__path__[0])',
        'what stands above first; else the checkout is damaged: git status',
    ),
    'CUDA': (
        False,
        'import torch; assert torch.cuda.is_available(), "no device that this torch can use"; torch.ones(1, '
        'device="cuda"); '
        'print(torch.version.cuda, [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())])',
        'everything runs on the CPU, slowly. With a GPU: check `nvidia-smi` and that the driver is new enough for '
        'this torch',
    ),
    'mmcv._ext CUDA': (
        False,
        'import torch; from mmcv.ops import nms; assert torch.cuda.is_available(), "no CUDA"; '
        'nms(torch.zeros(1, 4).cuda(), torch.zeros(1).cuda(), .5); print("works (nms)")',
        'detectors run on the CPU only. With a GPU: mmcv must be compiled where it is visible and nvcc is installed: '
        '`make env`',
    ),
    'Triton': (False, 'import triton; print(triton.__version__)', 'only speeds up training on a GPU'),
    'MinkowskiEngine': (
        False,
        'import MinkowskiEngine; print(MinkowskiEngine.__version__)',
        "not needed; only layout='minkowski' uses it, for parity with the official code: `make minkowski`",
    ),
    'tensorboard': (
        False,
        'import tensorboard; print(tensorboard.__version__)',
        'only --tensorboard needs it: pip install tensorboard',
    ),
}


# Runs in the other process: each look in turn, its answer on a line of its own as soon as it is there
RUN_LOOKS = """
import contextlib, io, json, sys, warnings
warnings.simplefilter('ignore')
answers = sys.stdout
for name, code in json.load(sys.stdin):
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            exec(code, {})
        works, text = True, printed.getvalue()
    except BaseException as error:
        works, text = False, f'{type(error).__name__}: {error}'
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ['no output']
    print(json.dumps([name, works, lines[-1] if works else lines[0]]), file=answers, flush=True)
"""


def look(codes: dict[str, str], timeout_s: float = 300.0) -> dict[str, tuple[bool, str]]:
    """Runs pieces of code in another process of this interpreter: for each, whether it worked, and what it printed or
    the error.

    One process serves all, which saves importing torch again and again; when it dies, the look that killed it is
    reported as such and a new process goes on with the next.
    """
    found: dict[str, tuple[bool, str]] = {}
    while len(found) < len(codes):
        waiting = [name for name in codes if name not in found]
        try:
            done = subprocess.run(
                [sys.executable, '-c', RUN_LOOKS],
                input=json.dumps([(name, codes[name]) for name in waiting]),
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
            answers, end = done.stdout, f'crashed with exit code {done.returncode}'
        except subprocess.TimeoutExpired as error:
            answers, end = (error.stdout or b'').decode(), f'no answer within {timeout_s:.0f} s'
        for line in answers.splitlines():
            name, works, text = json.loads(line)
            found[name] = works, text
        unanswered = [name for name in waiting if name not in found]
        if unanswered:
            found[unanswered[0]] = False, end
    return found


def examine(looks: dict = LOOKS) -> list[dict]:
    """One entry per look: name, required, works, found, remedy (None where nothing is to be done)."""
    entries = []
    version = '.'.join(map(str, sys.version_info[:3]))
    python_fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    entries.append(
        dict(
            name='Python',
            required=True,
            works=python_fits,
            found=f'{version}, {platform.platform()}, {sys.executable}',
            remedy=None if python_fits else 'Python 3.11 or 3.12 is needed: ' + ENV,
        )
    )
    answers = look({name: code for name, (_, code, _) in looks.items()})
    for name, (required, _, remedy) in looks.items():
        works, found = answers[name]
        entries.append(dict(name=name, required=required, works=works, found=found, remedy=None if works else remedy))
    for name, sentence, _ in distribution_problems():
        entries.append(
            dict(
                name=f'{name} (installation)',
                required=name != 'opencv',  # pip alone installs both: mmcv asks for the other; equal versions get along
                works=False,
                found=sentence.split(': pip ')[0],
                remedy=sentence,
            )
        )
    return entries


def distribution_problems(find=None) -> list[tuple[str, str, bool]]:
    """Missing, untried or doubly installed packages; two OpenCVs overwrite each other like two mmcvs."""
    problems = []
    try:
        import mmcnx2

        find = find or mmcnx2.installed_version
        problems += mmcnx2.openmmlab_problems(find)
    except ImportError as error:  # its own check at import says the same sentence
        return [('mmengine', str(error), True)]
    cv = [
        name
        for name in (
            'opencv-python',
            'opencv-contrib-python',
            'opencv-python-headless',
            'opencv-contrib-python-headless',
        )
        if find(name)
    ]
    if len(cv) > 1:
        problems.append(
            (
                'opencv',
                f"{', '.join(cv)} are all installed and overwrite each other's files: pip uninstall {' '.join(cv)}, "
                'then '
                'pip install "opencv-python-headless>=4.10,<5"',
                False,
            )
        )
    return problems


def report(entries: list[dict]) -> str:
    """The entries as text: a line each, then what to do."""
    lines = []
    for entry in entries:
        mark = 'ok  ' if entry['works'] else 'BAD ' if entry['required'] else '-   '
        lines.append(f'{mark}{entry["name"]:16} {entry["found"]}')
    todo = [entry for entry in entries if not entry['works'] and entry['required']]
    lines.append('')
    lines += [f'{entry["name"]}: {entry["remedy"]}' for entry in todo] or ['Everything that is required works.']
    hints = [entry for entry in entries if not entry['works'] and not entry['required']]
    lines += [f'optional, {entry["name"]}: {entry["remedy"]}' for entry in hints]
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--json', action='store_true', help='print a JSON list instead of text')
    args = parser.parse_args()
    entries = examine()
    print(json.dumps(entries, indent=2) if args.json else report(entries))
    sys.exit(any(entry['required'] and not entry['works'] for entry in entries))


if __name__ == '__main__':
    main()
