"""A look at the model during training, every N epochs, on the same few pictures: reconstructions, alike channels.

Both hooks look at whole, unaugmented pictures, in evaluation mode and in float32; they change no weight, draw no random
number, and cost a few forward passes. The main process looks, the others wait. Touch this file for when and at which
pictures a model is looked at; what is shown is in mmcnx2/analysis. Guarded by tests/engine/test_picture_hooks.py.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.visualization.vis_backend import LocalVisBackend
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmcnx2.atomic_write import write_atomically
from mmcnx2.registry import HOOKS


class PictureHook(Hook):
    """Calls `look(runner, model, step)` every `interval` epochs (or iterations), on the main process.

    What keeps it from looking (files that are gone, a full disk, too little memory, a model without the parts that are
    looked at) is a warning, once; training goes on.

    Args:
        interval: epochs; iterations with by_epoch=False; 0 never looks.
        images: what is looked at: a folder, a list file (.txt), a glob, a picture, or a list of these; None: pictures
            of the training set, spread evenly over it.
        num_images: how many of them, at most.
        by_epoch: what interval counts.

    Raises:
        ValueError: a number is out of its range.
    """

    priority = 'LOW'
    folder = ''  # of the work dir

    def __init__(
        self,
        interval: int = 50,
        images: str | list[str] | None = None,
        num_images: int = 8,
        by_epoch: bool = True,
    ) -> None:
        if interval < 0 or num_images < 1:
            raise ValueError(f'interval={interval} must be 0 (never) or more, num_images={num_images} at least 1.')
        self.interval, self.num_images, self.by_epoch = interval, num_images, by_epoch
        self.images = [images] if isinstance(images, str | Path) else images
        self._pictures: Tensor | None = None
        self._gives_up = False

    def after_train_epoch(self, runner) -> None:
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._try(runner, runner.epoch + 1)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._try(runner, runner.iter + 1)

    def look(self, runner, model: nn.Module, step: int) -> None:
        raise NotImplementedError

    def pictures(self, runner) -> Tensor:
        """(B, C, H, W) as the config's own reader gives them, not normalised; read once."""
        if self._pictures is None:
            from mmcnx2.analysis.pictures import PictureReader, crop_size, find_pictures

            reader = PictureReader(runner.cfg, crop_size(runner.cfg))
            found, reason = [], ''
            dataset = runner.train_dataloader.dataset
            paths = find_pictures(self.images, self.num_images) if self.images else _spread(dataset, self.num_images)
            for path in paths:
                try:
                    found.append(reader(path))
                except ValueError as error:  # SkippedImagesHook reports bad files of the training set
                    reason = str(error)
            if not found:
                raise ValueError(f'none of the pictures can be read: {reason or "there are none"}')
            self._pictures = torch.stack(found)
        return self._pictures

    def _try(self, runner, step: int) -> None:
        if self._gives_up or not is_main_process():
            return
        model = runner.model
        if is_model_wrapper(model):
            if not isinstance(model, DistributedDataParallel):
                self._give_up(f'{type(model).__name__} spreads the weights over the processes')
                return
            model = model.module
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                self.look(runner, model, step)
        except torch.OutOfMemoryError as error:
            self._give_up(f'{" ".join(str(error).split())} (a smaller num_images of the hook takes less)')
        except (ValueError, OSError, AttributeError, KeyError) as error:
            self._give_up(' '.join(str(error).split()))
        finally:
            model.train(was_training)
        if self._gives_up:
            torch.cuda.empty_cache()  # what a look that ran out of memory had taken; only now does no error hold it

    def _give_up(self, reason: str) -> None:
        self._gives_up = True
        print_log(
            f'{type(self).__name__} looks no more: {reason}. Training goes on; interval=0 of the hook switches it off.',
            'current',
            logging.WARNING,
        )


@HOOKS.register_module()
class ReconstructionHook(PictureHook):
    """Writes WORK_DIR/reconstructions/epoch_N.png, the sheet of tools/visualize_reconstruction.py, during pretraining.

    Every sheet shows the same pictures with the same masks. The error over hidden cells goes into the log, sheet and
    error to the visualizer's other backends (TensorBoard: train.py --tensorboard).

    Args:
        interval, images, num_images, by_epoch: see PictureHook.
        mask_ratios: shares of hidden cells; None: the model's.
        fills: 'own', 'nearest' or 'both', see reconstruction_sheet.
        seed: picture i is masked from seed + i.
    """

    folder = 'reconstructions'

    def __init__(
        self,
        interval: int = 50,
        images: str | list[str] | None = None,
        num_images: int = 8,
        by_epoch: bool = True,
        mask_ratios: list[float] | None = None,
        fills: str = 'both',
        seed: int = 0,
    ) -> None:
        super().__init__(interval, images, num_images, by_epoch)
        self.mask_ratios, self.fills, self.seed = mask_ratios, fills, seed

    def look(self, runner, model: nn.Module, step: int) -> None:
        from mmcnx2.analysis.pictures import is_shown_in_rgb
        from mmcnx2.analysis.reconstruction_sheet import reconstruction_sheet

        if not hasattr(model, 'reconstruct'):
            raise ValueError(f'{type(model).__name__} reconstructs nothing')
        pictures = self.pictures(runner).to(next(model.parameters()).device)
        sheet = reconstruction_sheet(
            model, pictures, self.mask_ratios, self.seed, self.fills, is_shown_in_rgb(runner.cfg)
        )
        path = sheet.draw(_file(runner, self, step, 'png'))
        measured = {
            f'reconstruction/error_{ratio:g}': one for ratio, one in zip(sheet.ratios, sheet.errors, strict=True)
        }
        runner.visualizer.add_scalars(measured, step=step)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert('RGB'))
        for backend in runner.visualizer._vis_backends.values():
            if not isinstance(backend, LocalVisBackend):  # it would put a second copy beside the log
                backend.add_image('reconstruction', pixels, step)
        errors = ', '.join(
            f'{one:.4f} at mask ratio {ratio:g}' for ratio, one in zip(sheet.ratios, sheet.errors, strict=True)
        )
        print_log(f'Reconstruction of {len(pictures)} pictures: error over hidden cells {errors}; {path}', 'current')


@HOOKS.register_module()
class CollapseHook(PictureHook):
    """Logs how alike the channels of the backbone's layers are, the numbers of tools/analyze_collapse.py.

    WORK_DIR/collapse/epoch_N.json holds every layer; cosine distance and effective rank of each go to the visualizer
    (scalars.json, TensorBoard), a summary into the log.

    Args:
        interval, images, num_images, by_epoch: see PictureHook.
        layers: names within the backbone (mmcnx2/analysis/activations.py); None: every block's expansion, before and
            after GRN.
    """

    folder = 'collapse'

    def __init__(
        self,
        interval: int = 50,
        images: str | list[str] | None = None,
        num_images: int = 16,
        by_epoch: bool = True,
        layers: list[str] | None = None,
    ) -> None:
        super().__init__(interval, images, num_images, by_epoch)
        self.layers = layers

    def look(self, runner, model: nn.Module, step: int) -> None:
        from mmcnx2.analysis.collapse import summary
        from mmcnx2.analysis.collapse_report import measure_collapse
        from mmcnx2.analysis.pictures import build_preprocessor, preprocessed

        device = next(model.parameters()).device
        preprocessor = build_preprocessor(runner.cfg)  # the model's own may pad, or want labels
        images = preprocessed(self.pictures(runner).to(device), preprocessor and preprocessor.to(device))
        found = measure_collapse(model.backbone, images.split(8), self.layers)
        content = {name: one.as_dict() for name, one in found.items()}
        write_atomically(_file(runner, self, step, 'json'), json.dumps(content, indent=2) + '\n')
        scalars = {}
        for name, one in found.items():
            scalars[f'collapse/distance/{name}'] = one.distance
            scalars[f'collapse/effective_rank/{name}'] = one.effective_rank
        runner.visualizer.add_scalars(scalars, step=step)
        for kind, ending in (('before GRN', '.gelu'), ('after GRN', '.grn')):
            layers = [one for name, one in found.items() if name.endswith(ending)]
            if layers:
                print_log(f'Channels {kind}, {len(layers)} layers: {summary(layers)}', 'current')


def _file(runner, hook: PictureHook, step: int, ending: str) -> Path:
    return Path(runner.work_dir) / hook.folder / f'{"epoch" if hook.by_epoch else "iter"}_{step}.{ending}'


def _spread(dataset, num: int) -> list[str]:
    """Files of a dataset of OpenMMLab's kind, evenly spread; wrappers are looked into."""
    while not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    total = len(dataset)
    num = min(num, total)
    return [dataset.get_data_info((2 * i + 1) * total // (2 * num))['img_path'] for i in range(num)]
