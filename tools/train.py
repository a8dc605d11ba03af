"""Train: pretraining, classification, detection or segmentation, by what the config says.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] [--cfg-options KEY=VALUE ...]

For several processes use tools/dist_train.sh or tools/slurm_train.sh. A mistake ends as one line `error: ...` and exit
code 1; its traceback is in `traceback.txt` in the work dir (MMCNX2_TRACEBACK=1 prints it too). After SIGTERM or SIGUSR1
(pre-emption, the end of a job's time) it saves everything after the iteration and ends with exit code 75: --resume goes
on from there, and so does by itself a process that torchrun or Slurm started again. Ctrl-C ends it at once, with exit
code 130 and nothing saved: --resume goes on from the last checkpoint.
Touch this file for what is special to training; what testing needs too stands in mmcnx2/engine/run_config.py.
Guarded by tests/test_tools.py.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

try:
    from mmengine.config import Config, ConfigDict
    from mmengine.device import get_device

    import mmcnx2  # noqa: F401  (its registries)
    from mmcnx2.analysis.run_log import last_checkpoint
    from mmcnx2.engine import rendezvous, resuming, run_config
    from mmcnx2.engine.preemption import PreemptionHook
    from mmcnx2.engine.user_errors import explain_errors
    from mmcnx2.engine.work_dir_lock import WorkDirLock
except ImportError as error:
    sys.exit(
        f'error: {error}. Is this the interpreter of the environment? `make -s which-python` prints it, `python '
        'tools/doctor.py` says what is missing'
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or its path below our configs, such as demo/x.py')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        type=os.path.expanduser,
        metavar='CHECKPOINT',
        help=(
            'go on from a checkpoint of this run with its optimiser and schedule; without a path: the newest in the '
            'work dir'
        ),
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision: bfloat16, on the CPU too; float16 on a GPU for detectors that are not of our configs',
    )
    parser.add_argument('--tensorboard', action='store_true', help='write TensorBoard files as well')
    run_config.add_common_arguments(parser)
    return parser.parse_args(argv)


def use_mixed_precision(cfg: Config) -> None:
    """--amp: bfloat16, which needs no loss scaling and, unlike mmengine's own wrapper, no GPU.

    A detector without our float32 parts gets float16 with loss scaling instead, for mmcv's RoIAlign and NMS have no
    bfloat16 kernels.
    """
    given = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if given not in ('OptimWrapper', 'AmpOptimWrapper', 'mmcnx2.BF16OptimWrapper'):
        raise ValueError(
            f'--amp replaces OptimWrapper or AmpOptimWrapper; this config has {given!r}, which must choose its '
            'precision itself'
        )
    for name in ('loss_scale', 'dtype', 'use_fsdp'):  # arguments of AmpOptimWrapper only
        cfg.optim_wrapper.pop(name, None)
    if cfg.default_scope == 'mmdet' and 'mmcnx2.Float32' not in str(cfg.get('model')):
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')
    else:
        cfg.optim_wrapper.type = 'mmcnx2.BF16OptimWrapper'


def fit_precision_to_device(cfg: Config) -> None:
    """Without a GPU there is no float16 training: AmpOptimWrapper becomes OptimWrapper, with a warning."""
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        cfg.optim_wrapper.type = 'OptimWrapper'
        for name in ('loss_scale', 'dtype', 'use_fsdp'):
            cfg.optim_wrapper.pop(name, None)
        run_config.tell('warning: AmpOptimWrapper needs a GPU; training in float32 instead', stream=sys.stderr)


def add_tensorboard(cfg: Config) -> None:
    """--tensorboard: one more backend for the visualizer, whichever task it belongs to."""
    if find_spec('tensorboard') is None:
        raise ImportError('--tensorboard needs the package tensorboard: pip install tensorboard')
    visualizer = cfg.setdefault(
        'visualizer', ConfigDict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    )
    backends = list(visualizer.get('vis_backends') or [])
    if not any(backend['type'] == 'TensorboardVisBackend' for backend in backends):
        visualizer.vis_backends = [*backends, ConfigDict(type='TensorboardVisBackend')]


def set_aside_held_out_data(cfg: Config) -> None:
    """A pretraining config may name images on which tools/test.py measures its loss; training leaves them alone."""
    for kind in ('val', 'test'):
        if cfg.default_scope in ('mmpretrain', 'mmcnx2') and not cfg.get(f'{kind}_evaluator'):
            for name in ('dataloader', 'cfg', 'evaluator'):
                cfg[f'{kind}_{name}'] = None


@contextlib.contextmanager
def explain_interruption(work_dir: Callable[[], str | None]) -> Iterator[None]:
    """Ctrl-C ends as one line that says how to go on, and a shell's exit code for it; nothing is saved."""
    try:
        yield
    except KeyboardInterrupt:
        then = 'no checkpoint has been saved yet, the same command begins anew'
        with contextlib.suppress(OSError):
            then = f'the same command with --resume goes on from {last_checkpoint(work_dir() or "nowhere")}'
        run_config.tell(f'\ninterrupted; {then}', stream=sys.stderr)
        raise SystemExit(130) from None


def main() -> None:
    args = parse_args()
    cfg, preemption, lock = None, PreemptionHook(), WorkDirLock()

    def traceback_dir() -> str | None:
        if lock.is_taken:  # the folder is somebody else's
            return None
        return cfg.work_dir if cfg else args.work_dir

    with preemption.listening(), lock, explain_errors(traceback_dir), explain_interruption(traceback_dir):
        run_config.read_safely(args.unsafe_load)
        cfg = run_config.load_config(args)
        if not cfg.get('train_dataloader') or not cfg.get('optim_wrapper'):
            raise ValueError(f'{args.config} has no train_dataloader or no optim_wrapper: it describes no training')
        if args.unsafe_load:
            run_config.trust_init_cfgs(cfg)
        lock.take(cfg.work_dir, was_requeued=resuming.was_requeued())
        set_aside_held_out_data(cfg)
        if args.amp:
            use_mixed_precision(cfg)
        fit_precision_to_device(cfg)
        if args.tensorboard:
            add_tensorboard(cfg)
        resuming.make_resumable(cfg)
        if resuming.was_restarted():
            resuming.resume_from(cfg, 'auto', args.resume, args.unsafe_load)
        elif args.resume:
            resuming.resume_from(cfg, args.resume, unsafe_load=args.unsafe_load)
        run_config.start_distributed(cfg)
        runner = run_config.build_runner(cfg, strict=bool(cfg.get('resume')))
        runner.register_hook(preemption)
        runner.train()
        rendezvous.part()


if __name__ == '__main__':
    main()
