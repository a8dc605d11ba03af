"""Why does my loss not fall? Looks at a pretraining config and its pictures; one line per answer, with a remedy.

    python tools/selfcheck.py CONFIG [--cfg-options train_dataloader.dataset.source=FOLDER ...] [--gpus 8]
        [--num 64] [--steps 60] [--curve curve.png] [--json]

Looks at: pictures (constant? all alike?), normalisation, cells, targets, a mask leak (do hidden pixels reach features
or predictions? compared bit by bit), the first loss (about 1), gradients of every parameter, whether one batch can be
overfitted, the config's own learning rate, and its schedule. Takes about a minute for atto at 128 px on a CPU. Exit
code 0 when nothing failed, 1 otherwise. It writes nothing but --curve.

Touch this file for what is printed; the checks are in mmcnx2/engine/pretraining_checks.py. Guarded by
tests/test_selfcheck.py.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

from mmengine.logging import MMLogger

from mmcnx2.analysis.figures import Line, Panel, draw_curves
from mmcnx2.analysis.run_log import Curve
from mmcnx2.engine import run_config
from mmcnx2.engine.config_options import ConfigOptions
from mmcnx2.engine.pretraining_checks import FAIL, WARNING, check_pretraining
from mmcnx2.engine.user_errors import explain_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a pretraining run, or its path below our configs')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='as for train.py')
    parser.add_argument('--gpus', type=int, default=1, help='processes of the run; default %(default)s')
    parser.add_argument('--num', type=int, default=64, help='pictures that are looked at; default %(default)s')
    parser.add_argument('--steps', type=int, default=60, help='of overfitting one batch; default %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='of weights and augmentations; default %(default)s')
    parser.add_argument('--device', default='cpu', help='default %(default)s')
    parser.add_argument(
        '--curve', type=os.path.expanduser, metavar='FILE', help='draw the losses of the two trials into this PNG file'
    )
    parser.add_argument('--json', action='store_true', help='print a JSON list instead of lines')
    args = parser.parse_args(argv)
    args.work_dir, args.launcher, args.local_rank = None, 'none', 0
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    findings, out = [], sys.stdout
    MMLogger.get_current_instance().setLevel('WARNING')  # else a line per parameter
    with explain_errors():
        if min(args.gpus, args.num, args.steps) < 1:
            raise ValueError('--gpus, --num and --steps are numbers of at least 1')
        with contextlib.redirect_stdout(sys.stderr):  # libraries print, and --json must be JSON alone
            cfg = run_config.load_config(args)
            for finding in check_pretraining(cfg, args.num, args.steps, args.gpus, args.seed, args.device):
                findings.append(finding)
                if not args.json:
                    print(finding, file=out, flush=True)
        curves = [
            Line(finding.check, Curve(tuple(range(len(losses))), tuple(losses)))
            for finding in findings
            if (losses := finding.numbers.get('losses'))
        ]
        if args.curve and curves:
            draw_curves([Panel('One batch, one mask', 'step', 'loss', curves)], args.curve)
        num_failed = sum(finding.verdict == FAIL for finding in findings)
        if args.json:
            print(json.dumps([finding.as_dict() for finding in findings], indent=2))
        else:
            num_warnings = sum(finding.verdict == WARNING for finding in findings)
            print(f'\n{len(findings)} checks: {num_failed} failed, {num_warnings} warnings')
    sys.exit(1 if num_failed else 0)


if __name__ == '__main__':
    main()
