"""Run one of our tools without a checkout: `python -m mmcnx2 train CONFIG ...` runs tools/train.py of this copy.

    python -m mmcnx2 TOOL [arguments of the tool]     any script of tools/, by its name without .py
    python -m mmcnx2 configs                          print the folder of the configs
Touch it to find tools; not to add one. Guarded by tests/test_packaging.py.
"""

import runpy
import sys

import mmcnx2


def main() -> None:
    tools = mmcnx2.tools_dir()
    names = sorted(
        path.stem for path in tools.glob('*.py') if path.stem != 'make_env'
    )  # that one builds a checkout's environment
    wanted = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if wanted == 'configs':
        print(mmcnx2.configs_dir())
    elif wanted in names:
        sys.argv = [str(tools / f'{wanted}.py'), *sys.argv[2:]]
        runpy.run_path(sys.argv[0], run_name='__main__')
    elif wanted in ('-h', '--help'):
        print(f'{__doc__.strip()}\n\nTools: {", ".join(names)}')
    else:
        sys.exit(f'error: {wanted!r} is no tool; there are: configs, {", ".join(names)}')


if __name__ == '__main__':
    main()
