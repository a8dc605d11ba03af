"""Write the lists of configs anew from the config files: the tables of configs/README.md, model-index.yml, metafiles.

    python tools/write_config_index.py [--check]

Run it after a config was added or changed. `--check` writes nothing, names what is stale and exits with 1 then. Touch
this file for the command line only; what the lists say stands in mmcnx2/engine/config_index.py. Guarded by
tests/engine/test_config_index.py.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

from mmengine.logging import MMLogger

import mmcnx2
from mmcnx2.atomic_write import write_atomically
from mmcnx2.engine.config_index import index_files
from mmcnx2.engine.user_errors import explain_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='only say what is stale')
    return parser.parse_args(argv)


def stale_files(root: Path) -> dict[Path, str]:
    """The lists below `root` that differ from what the configs say, with the text that belongs there."""
    wanted = {root / name: text for name, text in index_files().items()}
    stale = {
        path: text for path, text in wanted.items() if not path.is_file() or path.read_text(encoding='utf-8') != text
    }
    for path in sorted(root.glob('configs/*/metafile.yml')):
        if path not in wanted:
            raise ValueError(f'{path} lists a folder without configs; remove it')
    return stale


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    root = mmcnx2.configs_dir().parent
    if not (root / 'setup.py').is_file():
        raise ValueError(f'{root} is an installed copy; the lists are written in a checkout')
    MMLogger.get_current_instance().setLevel('WARNING')
    warnings.filterwarnings('ignore', message='Default ``avg_non_ignore``')  # mmseg, of a loss that is not run
    stale = stale_files(root)
    names = ', '.join(path.relative_to(root).as_posix() for path in stale)
    if not stale:
        print('all lists agree with the configs')
    elif args.check:
        raise ValueError(f'{names}: not what the configs say. Run python tools/write_config_index.py')
    else:
        for path, text in stale.items():
            write_atomically(path, text)
        print(f'wrote {names}')


if __name__ == '__main__':
    with explain_errors():
        main()
