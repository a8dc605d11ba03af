"""From a config file and command line options to a runner: what `tools/train.py` and `tools/test.py` share.

One pair of tools serves pretraining, classification, detection and segmentation; where the four differ
(`default_scope`), it is decided here. Touch it for what both tools need; what only one does stands in that tool.
Guarded by tests/test_tools.py.
"""

import argparse
import functools
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner

import mmcnx2
from mmcnx2.checkpoint.init_cfg import pretrained_entry
from mmcnx2.checkpoint.read import read_for_run
from mmcnx2.engine import rendezvous
from mmcnx2.engine.config_nodes import dicts_in
from mmcnx2.engine.config_options import ConfigOptions
from mmcnx2.engine.own_data import apply_own_data, check_class_lists
from mmcnx2.engine.sharding import complete_strategy
from mmcnx2.engine.user_errors import one_line

TASKS = ('mmpretrain', 'mmdet', 'mmseg', 'mmcnx2', 'mmengine')
LOADED_BY_US = ('mmcnx2.ConvNeXtV2', 'mmcnx2.FCMAE')  # their init_cfg is read by mmcnx2.checkpoint
# Top-level keys that a Runner, a tool or mmengine reads although a config need not have them
KNOWN_KEYS = {
    'model',
    'work_dir',
    'train_dataloader',
    'val_dataloader',
    'test_dataloader',
    'train_cfg',
    'val_cfg',
    'test_cfg',
    'auto_scale_lr',
    'optim_wrapper',
    'param_scheduler',
    'val_evaluator',
    'test_evaluator',
    'default_hooks',
    'custom_hooks',
    'data_preprocessor',
    'load_from',
    'resume',
    'launcher',
    'env_cfg',
    'log_processor',
    'log_level',
    'visualizer',
    'vis_backends',
    'default_scope',
    'randomness',
    'experiment_name',
    'runner_type',
    'strategy',
    'compile',
    'custom_imports',
    'tta_model',
    'tta_pipeline',
    'model_wrapper_cfg',
    'find_unused_parameters',
    'sync_bn',
    'own_data',
}


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that train.py and test.py have in common."""
    parser.add_argument(
        '--work-dir',
        type=os.path.expanduser,
        metavar='DIR',
        help='folder for logs and checkpoints (default: work_dirs/<name of the config>)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help='change values of the config: model.head.norm_pix=False, or lists: a.b="[1,2]", a.b=1,2; '
        'text with commas or brackets in two pairs of quotes: a.b=\'"x (1), y"\'',
    )
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        help='what started the processes (default: pytorch under torchrun, else none)',
    )
    parser.add_argument(
        '--unsafe-load',
        action='store_true',
        help='read checkpoints that hold more than tensors and plain values; such a file can run any code',
    )
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
    )  # old launchers pass it


def find_config(name: str) -> Path:
    """Path of a config: the file `name`, else the one of that name among our configs ('coco/x.py' or
    'configs/coco/x.py').
    """
    configs = mmcnx2.configs_dir()
    for path in (Path(name).expanduser(), configs / name, configs.parent / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f'Config {name!r} does not exist, neither as a file nor below {configs}')


def load_config(args: argparse.Namespace) -> Config:
    """Config of `args.config` with its options applied and `work_dir` and `launcher` set."""
    path = find_config(args.config)
    if re.search(r'[\'"]mmcnx2::', path.read_text(encoding='utf-8', errors='replace')):
        raise ValueError(
            f"{path} inherits 'mmcnx2::...': mmengine would look for every type of that file in our registry alone. "
            "Write '{{$MMCNX2_CONFIGS:}}/coco/....py'"
        )
    try:
        cfg = Config.fromfile(path)
    except OSError:
        raise
    except Exception as error:  # a config is a program: anything can go wrong in it, and it is the user's
        where = f', line {error.lineno}' if isinstance(error, SyntaxError) else ''
        raise ValueError(f'{path}, or a file that it inherits, is no valid config: {one_line(error)}{where}') from error
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(f'{path} has no `model`; is it a whole config? Files in _base_ are parts of one')
    if args.cfg_options:
        unknown = sorted({key.split('.')[0] for key in args.cfg_options} - set(cfg) - KNOWN_KEYS)
        for key in unknown:
            tell(
                f'warning: --cfg-options sets {key!r}, which this config does not have and nothing is known to read',
                stream=sys.stderr,
            )
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / path.stem)
    cfg.work_dir = os.path.expanduser(cfg.work_dir)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher or ('pytorch' if 'TORCHELASTIC_RUN_ID' in os.environ else 'none')
    check_scope(cfg)
    summary = apply_own_data(cfg, training=not hasattr(args, 'checkpoint'), options=args.cfg_options)
    if summary:
        tell(summary)
    elif cfg.default_scope == 'mmdet':
        check_class_lists(cfg, training=not hasattr(args, 'checkpoint'))
    if cfg.default_scope == 'mmpretrain':
        _collate_as_mmpretrain(cfg)
    return cfg


def check_scope(cfg: Config) -> None:
    """Raises when `default_scope` is no task of ours, or when a detector is asked for and mmcv has no compiled ops."""
    scope = cfg.setdefault('default_scope', 'mmengine')
    if scope not in TASKS:
        raise ValueError(f'default_scope is {scope!r}; it must be one of {", ".join(TASKS)}')
    if scope == 'mmdet' or any(str(node.get('type')).startswith('mmdet.') for node in dicts_in(cfg.model)):
        check_mmcv_ops()


def check_mmcv_ops() -> None:
    """Raises ImportError with the remedy when the compiled operators of mmcv do not load."""
    try:
        import mmcv.ops  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'Detectors need the compiled operators of mmcv (mmcv._ext), and they do not load: {one_line(error)}. '
            'Build the environment with `make env`, or install onedl-mmcv with --no-build-isolation --no-cache-dir '
            'after torch; `python tools/doctor.py` says more'
        ) from error


def _collate_as_mmpretrain(cfg: Config) -> None:
    """mmpretrain's own tools stack images unless a config says otherwise, and its configs rely on that."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            cfg[name].setdefault('collate_fn', ConfigDict(type='default_collate'))


def start_distributed(cfg: Config) -> None:
    """Joins the processes over gloo on a machine without an accelerator, where mmengine only knows how to use CUDA.

    With one, the runner starts the backend that the config names; processes that were started again find each other as
    rendezvous.py says. Without one, Slurm's and MPI's variables are turned into torch's, the model is wrapped without
    device numbers, and SyncBN, which torch has for CUDA only, becomes BN with a warning.
    """
    launcher = cfg.launcher
    if launcher == 'none' or torch.distributed.is_initialized():
        return
    if get_device() != 'cpu':
        if rendezvous.init_method():  # the runner passes it on
            env_cfg = cfg.setdefault('env_cfg', ConfigDict())
            env_cfg.setdefault('dist_cfg', ConfigDict())['init_method'] = rendezvous.init_method()
        return
    if launcher == 'slurm':
        names = dict(RANK='SLURM_PROCID', WORLD_SIZE='SLURM_NTASKS', LOCAL_RANK='SLURM_LOCALID')
    elif launcher == 'mpi':
        names = dict(
            RANK='OMPI_COMM_WORLD_RANK', WORLD_SIZE='OMPI_COMM_WORLD_SIZE', LOCAL_RANK='OMPI_COMM_WORLD_LOCAL_RANK'
        )
    else:
        names = dict(RANK='RANK', WORLD_SIZE='WORLD_SIZE')
    for name, source in names.items():
        if source not in os.environ:
            raise ValueError(
                f'--launcher {launcher} needs the environment variable {source}; start the run through '
                'tools/dist_train.sh, '
                'tools/slurm_train.sh or mpirun'
            )
        os.environ[name] = os.environ[source]
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        hosts = subprocess.run(
            ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], check=True, capture_output=True, text=True
        )
        os.environ['MASTER_ADDR'] = hosts.stdout.split()[0]
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', '29500')
    torch.distributed.init_process_group('gloo', init_method=rendezvous.init_method())
    tell(f'No CUDA device: {os.environ["WORLD_SIZE"]} processes on the CPU, joined over gloo')
    wrapper = cfg.setdefault(
        'model_wrapper_cfg',
        ConfigDict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        ),
    )
    if wrapper.get('type', 'DistributedDataParallel').endswith('DistributedDataParallel'):
        wrapper.setdefault('device_ids', None)
    synchronised = [node for node in dicts_in(cfg.model) if node.get('type') == 'SyncBN']
    for node in synchronised:
        node.type = 'BN'
    if synchronised:
        tell(
            f'warning: SyncBN needs CUDA; {len(synchronised)} norm_cfg entries use BN, per process, instead',
            stream=sys.stderr,
        )


def read_safely(unsafe_load: bool) -> None:
    """Lets the whole process read checkpoints as `mmcnx2.checkpoint.read_checkpoint` does: checked, without running
    code from them.

    mmengine's own way is tried first and then falls back to an unsafe one with a warning. Local files are read by us
    instead, and a switch of torch closes that fallback for everything else (downloads). `unsafe_load` opens both.
    """

    def load_from_local(filename: str, map_location: object = None) -> dict:  # mmengine prints this name
        return read_for_run(filename, map_location, unsafe_load)

    CheckpointLoader.register_scheme('', load_from_local, force=True)
    if not unsafe_load:
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


def trust_init_cfgs(cfg: Config) -> None:
    """--unsafe-load, for the checkpoints that the init_cfg of our own models names; they read them themselves."""
    for node in dicts_in(cfg.model):
        entry = pretrained_entry(node.get('init_cfg')) if node.get('type') in LOADED_BY_US else None
        if entry is not None:
            entry['unsafe_load'] = True


def check_checkpoint_exists(checkpoint: str) -> None:
    if '://' not in checkpoint and not Path(checkpoint).is_file():
        raise FileNotFoundError(f'Checkpoint {checkpoint!r} does not exist')


def build_runner(cfg: Config, strict: bool, stores_config: bool = True) -> Runner:
    """Runner of the config. `strict`: a checkpoint that it loads or resumes must fit the model exactly.

    `stores_config`: the config goes into the work dir, where it says what was trained there; else beside the log.
    """
    complete_strategy(cfg)
    if stores_config:
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    else:
        kind = RUNNERS.get(cfg.runner_type) if 'runner_type' in cfg else Runner
        if kind is None:
            raise KeyError(f'runner_type is {cfg.runner_type!r}, which no library has registered')
        runner = _storing_beside_the_log(kind).from_cfg(cfg)
    if strict and isinstance(runner, Runner):
        runner.load_checkpoint = functools.partial(_load_strictly, runner.load_checkpoint, bool(cfg.get('resume')))
    return runner


def _storing_beside_the_log(kind: type) -> type:
    """The runner's class, with its config in the folder of its log."""

    class StoringBesideTheLog(kind):
        def dump_config(self) -> None:
            if is_main_process():
                self.cfg.dump(str(Path(self.log_dir) / Path(self.cfg.filename or 'config.py').name))

    return StoringBesideTheLog


def _load_strictly(load, resuming: bool, filename: str, map_location='cpu', **options) -> dict:
    options['strict'] = True
    try:
        checkpoint = load(filename, map_location=map_location, **options)
    except pickle.UnpicklingError as error:
        found = re.search(r'GLOBAL (\S+)', str(error))
        if found is None:
            raise ValueError(f'{filename} is not a checkpoint file') from error
        raise ValueError(
            f'Checkpoint {filename} holds more than tensors and plain values ({found[1]}), which could run any code; '
            'it was '
            'not loaded. If you trust its origin, give --unsafe-load'
        ) from error
    except (RuntimeError, EOFError) as error:
        if 'do not match exactly' in str(error):
            raise ValueError(
                f'Checkpoint {filename} does not fit the model of the config: {one_line(error)}'
            ) from error
        raise ValueError(
            f'Checkpoint {filename} cannot be read, it is damaged or incomplete: {one_line(error)}'
        ) from error
    if resuming and not {'meta', 'optimizer'} <= set(checkpoint):
        raise ValueError(
            f'Checkpoint {filename} holds weights only (keys: {", ".join(map(str, checkpoint))[:200]}), so no run '
            'can be resumed '
            'from it. To start a new run from its weights: --cfg-options load_from=PATH'
        )
    return checkpoint


def tell(text: str, stream=None) -> None:
    """Prints a line once, not once per process."""
    if rendezvous.rank_in_environment() == 0:
        print(text, file=stream or sys.stdout, flush=True)
