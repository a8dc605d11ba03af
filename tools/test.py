"""Test a checkpoint: box and mask AP, mIoU, top-1, or the reconstruction loss of a pretraining run, by what the config
says.

    python tools/test.py CONFIG CHECKPOINT [--work-dir DIR] [--out FILE] [--show-dir DIR] [--tta] [--cfg-options
    KEY=VALUE ...]

For several processes use tools/dist_test.sh. The checkpoint must fit the model exactly. Config and log go to
DIR/<time>/, so a work dir in which was trained still says what was trained. A mistake ends as one line `error: ...` and
exit code 1, as in train.py.
Touch this file for what is special to testing; what training needs too stands in mmcnx2/engine/run_config.py. Guarded
by tests/test_tools.py.
"""

import argparse
import copy
import inspect
import json
import os
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

try:
    import torch
    from mmengine.config import Config, ConfigDict
    from mmengine.dist import all_gather_object, is_main_process
    from mmengine.evaluator import DumpResults
    from mmengine.registry import DATA_SAMPLERS
    from mmengine.runner import Runner

    import mmcnx2  # noqa: F401  (its registries)
    from mmcnx2.atomic_write import write_atomically
    from mmcnx2.engine import rendezvous, run_config
    from mmcnx2.engine.config_nodes import innermost_dataset
    from mmcnx2.engine.user_errors import explain_errors
except ImportError as error:
    sys.exit(
        f'error: {error}. Is this the interpreter of the environment? `make -s which-python` prints it, `python '
        'tools/doctor.py` says what is missing'
    )

# How each task's hook is told to draw its predictions into a folder
DRAWING_HOOKS = {
    'mmdet': dict(type='DetVisualizationHook', draw=True, folder='test_out_dir'),
    'mmseg': dict(type='SegVisualizationHook', draw=True, folder=None),  # its visualizer knows the folder
    'mmpretrain': dict(type='VisualizationHook', enable=True, folder='out_dir'),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or its path below our configs, such as demo/x.py')
    parser.add_argument('checkpoint', type=os.path.expanduser, help='checkpoint file that tools/train.py wrote')
    parser.add_argument(
        '--out',
        type=os.path.expanduser,
        metavar='FILE',
        help='*.json: write the metrics there; *.pkl: write the predictions there',
    )
    parser.add_argument(
        '--show-dir',
        type=os.path.expanduser,
        metavar='DIR',
        help='draw the predictions into pictures in this folder',
    )
    parser.add_argument(
        '--tta', action='store_true', help="test-time augmentation, by the config's tta_model and tta_pipeline"
    )
    run_config.add_common_arguments(parser)
    return parser.parse_args(argv)


def measures_only_the_loss(cfg: Config) -> bool:
    """True for a pretraining config: there is nothing to evaluate predictions against."""
    return (
        cfg.default_scope in ('mmpretrain', 'mmcnx2') and not cfg.get('test_evaluator') and not cfg.get('val_evaluator')
    )


def use_validation_data_when_no_test_data(cfg: Config, name: str) -> None:
    """A config without a test set of its own is tested on its validation set."""
    for kind in ('dataloader', 'evaluator', 'cfg'):
        if not cfg.get(f'test_{kind}') and cfg.get(f'val_{kind}'):
            cfg[f'test_{kind}'] = ConfigDict() if kind == 'cfg' else cfg[f'val_{kind}']
    missing = [key for key in ('test_dataloader', 'test_evaluator') if not cfg.get(key)]
    if missing:
        raise ValueError(f'{name} has no {" and no ".join(missing)} (nor val_...): there is nothing to test on')
    if cfg.get('test_cfg') is None:
        cfg.test_cfg = ConfigDict()


def draw_predictions(cfg: Config, folder: str) -> None:
    if cfg.default_scope not in DRAWING_HOOKS:
        raise ValueError(f'--show-dir works for {", ".join(DRAWING_HOOKS)}; this config is of {cfg.default_scope}')
    folder = str(Path(folder).resolve())  # mmdet joins a relative one to the work dir
    options = dict(DRAWING_HOOKS[cfg.default_scope])
    argument = options.pop('folder')
    if argument:
        options[argument] = folder
    else:
        cfg.visualizer.save_dir = folder
    cfg.setdefault('default_hooks', ConfigDict())
    cfg.default_hooks.setdefault('visualization', ConfigDict()).update(options)


def augment_test_time(cfg: Config, name: str) -> None:
    missing = [key for key in ('tta_model', 'tta_pipeline') if not cfg.get(key)]
    if missing:
        raise ValueError(f'--tta needs {" and ".join(missing)} in {name}')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    innermost_dataset(cfg.test_dataloader.dataset).pipeline = cfg.tta_pipeline


def every_image_once(loader_cfg: ConfigDict) -> ConfigDict:
    """The dataloader without what suits training: a last batch that is left out, images repeated until all processes
    have equally many, and an order without end.
    """
    loader_cfg = copy.deepcopy(loader_cfg)
    sampler, batches = loader_cfg.get('sampler'), loader_cfg.get('batch_sampler')
    if isinstance(sampler, dict):
        if str(sampler.get('type')).rsplit('.', 1)[-1] == 'InfiniteSampler':
            sampler.type = 'DefaultSampler'
        sampler.pop('infinite', None)
        kind = DATA_SAMPLERS.get(sampler.type) if isinstance(sampler.type, str) else sampler.type
        if kind is not None and 'round_up' in inspect.signature(kind).parameters:
            sampler.round_up = False
    if batches is None:
        loader_cfg.drop_last = False
    elif 'drop_last' in batches:
        batches.drop_last = False
    return loader_cfg


def reconstruction_loss(cfg: Config, args: argparse.Namespace) -> dict[str, float]:
    """Mean of each loss over the test (else validation) images, each counted once, with the model in evaluation mode.

    Random masks come from `randomness.seed` (0 without one), so that two checkpoints are measured on the same masks.
    """
    loader_cfg = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if not loader_cfg:
        raise ValueError(
            f'{args.config} is a pretraining config without test_dataloader or val_dataloader. Give it one, shaped '
            'like its '
            'train_dataloader, to measure the reconstruction loss of held-out images'
        )
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg[key] = None
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    runner = run_config.build_runner(cfg, strict=True, stores_config=False)
    runner.load_or_resume()
    loader = Runner.build_dataloader(every_image_once(loader_cfg), seed=seed)
    model = runner.model.module if hasattr(runner.model, 'module') else runner.model
    model.eval()
    torch.manual_seed(seed)
    sums, num_images = Counter(), 0
    for data in loader:
        with torch.no_grad():
            data = model.data_preprocessor(data, False)
            _, logged = model.parse_losses(model(**data, mode='loss'))
        num_images += len(data['inputs'])
        for key, value in logged.items():
            sums[key] += float(value.double()) * len(data['inputs'])
    shares = all_gather_object((num_images, dict(sums)))  # one process may have no image, and so no losses
    num_images = sum(num for num, _ in shares)
    if num_images == 0:
        raise ValueError(f'{args.config}: its test_dataloader or val_dataloader gave no image: nothing was measured')
    names = dict.fromkeys(name for _, part in shares for name in part)
    metrics = {name: sum(part.get(name, 0.0) for _, part in shares) / num_images for name in names}
    runner.logger.info(f'reconstruction of {num_images} images: {metrics}')
    return metrics


def predictions_and_metrics(cfg: Config, args: argparse.Namespace) -> dict[str, object]:
    use_validation_data_when_no_test_data(cfg, args.config)
    if args.show_dir:
        draw_predictions(cfg, args.show_dir)
    if args.tta:
        augment_test_time(cfg, args.config)
    runner = run_config.build_runner(cfg, strict=True, stores_config=False)
    if args.out and args.out.endswith(('.pkl', '.pickle')):
        if cfg.default_scope == 'mmdet':  # encodes masks as RLE
            from mmdet.evaluation import DumpDetResults as Dump
        else:
            Dump = DumpResults
        runner.test_evaluator.metrics.append(Dump(out_file_path=args.out))
    return runner.test()


def plain(value: object) -> object:
    """What JSON can hold: a float of a number, lists of a tensor or array (a value per class, a confusion matrix)."""
    if hasattr(value, 'tolist'):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return float(value) if isinstance(value, int | float) else value if value is None else str(value)


def main() -> None:
    args = parse_args()
    cfg = None
    with explain_errors(lambda: cfg.work_dir if cfg else args.work_dir):
        if args.out and not args.out.endswith(('.json', '.pkl', '.pickle')):
            raise ValueError(f'--out is {args.out!r}; it must end in .json (metrics) or .pkl (predictions)')
        run_config.read_safely(args.unsafe_load)
        cfg = run_config.load_config(args)
        run_config.check_checkpoint_exists(args.checkpoint)
        cfg.load_from, cfg.resume = args.checkpoint, False
        run_config.start_distributed(cfg)
        if measures_only_the_loss(cfg):
            if args.tta or args.show_dir or (args.out and not args.out.endswith('.json')):
                raise ValueError(
                    '--tta, --show-dir and predictions are for tasks with labels; a pretraining config gives its '
                    'loss only'
                )
            metrics = reconstruction_loss(cfg, args)
        else:
            metrics = predictions_and_metrics(cfg, args)
        if is_main_process():
            metrics = {name: plain(value) for name, value in metrics.items()}
            for name, value in metrics.items():
                print(f'{name}: {value:.6g}' if isinstance(value, float) else f'{name}: {value}')
            if args.out and args.out.endswith('.json'):
                write_atomically(args.out, json.dumps(metrics, indent=2) + '\n')
        rendezvous.part()


if __name__ == '__main__':
    main()
