"""How a training config becomes one that can be interrupted, and which checkpoint an interrupted run goes on from.

Touch this file for the choice of a checkpoint and for what replaces mmengine's parts; not for those parts themselves
(checkpoint_hook.py, train_loops.py, preemption.py). Guarded by tests/engine/test_resuming.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

from mmengine import hooks, registry
from mmengine.config import Config, ConfigDict
from mmengine.runner import loops

from mmcnx2.checkpoint import CheckpointError, read_checkpoint
from mmcnx2.engine import rendezvous
from mmcnx2.engine.run_config import check_checkpoint_exists, tell

LOOPS = ('EpochBasedTrainLoop', 'IterBasedTrainLoop')
SCOPES = ('', 'mmengine', 'mmpretrain', 'mmdet', 'mmseg')  # whose registries hand over mmengine's classes
REQUEUE_COUNT = 'SLURM_RESTART_COUNT'  # as torchrun's, above 0 in a run that was started again


def make_resumable(cfg: Config) -> None:
    """mmengine's training loop and checkpoint hook become mmcnx2's, which take the same arguments; others stay.

    mmengine's are known by their name, by a scope that leads to them (mmengine.CheckpointHook), and by the class.
    """
    loop = cfg.get('train_cfg') or {}
    if 'by_epoch' in loop and 'type' not in loop:
        loop['type'] = LOOPS[0] if loop.pop('by_epoch') else LOOPS[1]
    for name in LOOPS:
        if _is_mmengines(loop.get('type'), name, registry.LOOPS, loops):
            loop['type'] = f'mmcnx2.{name}'
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = ConfigDict()
    hook = cfg.default_hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook', interval=1))
    if hook and _is_mmengines(hook.get('type'), 'CheckpointHook', registry.HOOKS, hooks):
        hook['type'] = 'mmcnx2.CheckpointHook'


def _is_mmengines(kind: str | type | None, name: str, known: registry.Registry, module: ModuleType) -> bool:
    """True when the `type` of a config means the class `name` of mmengine's `module`."""
    if isinstance(kind, str):
        scope, _, last = kind.rpartition('.')
        if last != name or scope not in SCOPES:
            return False
        kind = known.get(kind) if scope else getattr(module, name)
    return kind is getattr(module, name)


def was_restarted() -> bool:
    """True in a process that torchrun or Slurm has started again after an earlier one ended."""
    return _is_counted(rendezvous.RESTART_COUNT) or was_requeued()


def was_requeued() -> bool:
    """True in a job that Slurm has started again, perhaps on another machine."""
    return _is_counted(REQUEUE_COUNT)


def _is_counted(name: str) -> bool:
    return os.environ.get(name, '0') not in ('', '0')


def resume_from(cfg: Config, wanted: str, otherwise: str | None = None, unsafe_load: bool = False) -> None:
    """Lets the run go on from the checkpoint `wanted`; 'auto': from the newest in its work dir, and where there is
    none, from the checkpoint `otherwise`. `unsafe_load`: files may hold what only running code can read.
    """
    checkpoint = newest_checkpoint(cfg.work_dir, unsafe_load) if wanted == 'auto' else wanted
    if checkpoint is None and otherwise not in (None, 'auto'):
        checkpoint = otherwise
    if checkpoint is None:
        tell(f'--resume: no checkpoint in {cfg.work_dir} yet, training starts from the beginning')
        return
    if not Path(checkpoint).is_dir():
        check_checkpoint_exists(checkpoint)
    elif not cfg.get('strategy'):
        raise ValueError(
            f'--resume {checkpoint} is a folder. Sharded checkpoints are, but only a run with `strategy` (FSDP, '
            'DeepSpeed) reads them; give a file, or for the newest checkpoint of a run --work-dir DIR --resume'
        )
    tell(f'--resume: going on from {checkpoint}')
    cfg.resume, cfg.load_from = True, checkpoint


def newest_checkpoint(work_dir: str | Path, unsafe_load: bool = False) -> str | None:
    """The newest checkpoint of the folder that can be read completely; None without any.

    First comes a file that is newer than `last_checkpoint` (the run was ended between the two), then the one which that
    names (by its name in this folder: it may have been moved), then the others from new to old. One that cannot be read
    is left where it is, and a warning names it and the one that is taken instead.

    Raises:
        ValueError: there are checkpoints, and none can be read.
        FileNotFoundError: `last_checkpoint` names a file that is not there, and there is no other.
    """
    problems = {}
    for path in _candidates(Path(work_dir), problems):
        # folders are read by FSDP or DeepSpeed alone
        problem = None if path.is_dir() else _why_unfit(path, unsafe_load)
        if problem is None:
            for other, why in problems.items():
                tell(f'warning: {other} is passed over: {why}. Going back to {path}', stream=sys.stderr)
            return str(path)
        problems[path] = problem
    if not problems:
        return None
    reasons = '; '.join(f'{path}: {why}' for path, why in problems.items())
    kind = ValueError if any(path.suffix == '.pth' for path in problems) else FileNotFoundError
    raise kind(f'No checkpoint to go on from. {reasons}. Give one: --resume PATH')


def _candidates(folder: Path, problems: dict[Path, str]) -> list[Path]:
    """Checkpoints by the order in which they are to be tried. A pointer to nothing is noted among the problems."""
    files = [path for path in folder.glob('*.pth') if not path.name.startswith('best_')]
    files.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    pointer = folder / 'last_checkpoint'
    if not pointer.is_file():
        return files
    named = Path(pointer.read_text(errors='replace').strip() or 'nothing')
    pointed = next((path for path in (folder / named.name, named) if path.exists() and path != folder), None)
    if pointed is None:
        problems[pointer] = f'it names {named}, which does not exist'
        return files
    written = pointer.stat().st_mtime_ns
    newer = [path for path in files if path.stat().st_mtime_ns > written and path != pointed]
    return [*newer, pointed, *(path for path in files if path not in newer and path != pointed)]


def _why_unfit(path: Path, unsafe_load: bool) -> str | None:
    """Why a run cannot go on from a file; None when it can."""
    try:
        checkpoint = read_checkpoint(path, unsafe_load=unsafe_load)
    except CheckpointError as error:
        return str(error)
    missing = {'meta', 'optimizer'} - {key for key, value in checkpoint.items() if value}
    return f'it holds no {" and no ".join(sorted(missing))}' if missing else None
