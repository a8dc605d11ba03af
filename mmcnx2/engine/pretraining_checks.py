"""Why does my loss not fall? Checks of a pretraining config on its own pictures, each with a verdict and a remedy.

    pictures --> normalisation --> targets --> mask leak --> first loss --> gradients --> overfitting one batch --> rate

Every check is a function that answers a Finding; `check_pretraining` runs them in this order. The model that is
checked is left as it was. Touch this file for what is looked at; not for options and printing (tools/selfcheck.py).
Guarded by tests/engine/test_pretraining_checks.py.

Shapes: B pictures, C channels, H W pixels, G G grid of cells, L cells, P values of a cell.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, DefaultScope
from torch import Tensor, nn

from mmcnx2.analysis.pictures import build_preprocessor, preprocessed
from mmcnx2.datasets.seeding import SeededIndex, derive_seed
from mmcnx2.models.fcmae.masking import random_visible
from mmcnx2.models.fcmae.pixel_loss import cells_from_images
from mmcnx2.models.layers.layout import positions_of
from mmcnx2.registry import MODELS

from .user_errors import is_user_error, one_line

OK, WARNING, FAIL, SKIPPED = 'ok', 'warning', 'FAIL', 'skipped'
FLAT = 0.005  # spread of a picture or cell over the range (picture) or the spread (cell) of all: nothing is in it
OVERFIT_RATE = 1e-3
OVERFIT_BOUND = 0.3  # of the first loss
LEAST_PATH = 0.05  # sum of the learning rates over a run: AdamW moves a weight by about the rate per step
SPEED = 1.5e-4  # the paper's learning rate per 256 pictures


@dataclass(frozen=True)
class Finding:
    """One line of the answer. `remedy` is empty when the verdict is ok; `numbers` are for the JSON."""

    check: str
    verdict: str
    said: str
    remedy: str = ''
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        line = f'{self.verdict:8}{self.check}: {self.said}'
        return f'{line} -> {self.remedy}' if self.remedy else line

    def as_dict(self) -> dict:
        return asdict(self)


def check_pretraining(
    cfg: Config,
    num_pictures: int = 64,
    num_steps: int = 60,
    num_processes: int = 1,
    seed: int = 0,
    device: torch.device | str = 'cpu',
) -> Iterator[Finding]:
    """Findings, one after the other as they come; what cannot be looked at any more is SKIPPED.

    Args:
        cfg: whole config of a pretraining run, with its options applied.
        num_pictures: of its training set, spread evenly, augmented as in training; the first eight are trained on.
        num_steps: of overfitting one batch.
        num_processes: GPUs that the run will have, for the number of images per step.
        seed: of weights, augmentations and masks.
        device: where the model runs.
    """
    torch.manual_seed(seed)
    model = _build(cfg, device)
    dataset, raw_pictures, problem = None, None, ''
    try:
        dataset = _build_dataset(cfg)
        raw_pictures, broken = _take_pictures(dataset, num_pictures, seed)
    except Exception as error:
        if not is_user_error(error):
            raise
        problem = one_line(error)
    if problem or not raw_pictures:
        yield Finding(
            'pictures', FAIL, problem or 'no picture could be read', 'mend train_dataloader.dataset; nothing else '
            'can be looked at before there are pictures'
        )  # fmt: skip
        return
    yield check_pictures(raw_pictures, broken, len(dataset))
    shapes = {tuple(picture.shape) for picture in raw_pictures}
    if len(shapes) > 1:
        yield Finding(
            'sizes', FAIL, f'the pipeline gives pictures of different sizes, such as {sorted(shapes)[:2]}',
            'crop them to one size: RandomResizedCrop or Resize in train_dataloader.dataset.pipeline',
        )  # fmt: skip
        return
    raw_BCHW = torch.stack(raw_pictures)
    images_BCHW = preprocessed(raw_BCHW.to(device), build_preprocessor_on(cfg, device))
    yield check_normalisation(raw_BCHW, images_BCHW)
    finding = check_grid(model, images_BCHW)
    yield finding
    if finding.verdict == FAIL:
        return
    yield check_targets(model, images_BCHW)
    batch_BCHW = images_BCHW[:8]
    grid_shape = tuple(side // model.patch_size for side in batch_BCHW.shape[-2:])
    visible_BGG = random_visible(len(batch_BCHW), grid_shape, model.mask_ratio, device, range(len(batch_BCHW)))
    yield check_mask_leak(model, batch_BCHW, visible_BGG)
    yield check_first_loss(model, batch_BCHW, visible_BGG)
    yield check_gradients(model, batch_BCHW, visible_BGG)
    yield check_overfitting(model, batch_BCHW, visible_BGG, num_steps)
    yield check_learning_rate(model, cfg, batch_BCHW, visible_BGG)
    yield check_schedule(cfg, len(dataset), num_processes)


# ---- pictures


def check_pictures(pictures: list[Tensor], broken: list[str], num_all: int) -> Finding:
    """Can they be read, is something in them, do they differ?"""
    values = [picture.double() for picture in pictures]
    span = max(float(one.max()) for one in values) - min(float(one.min()) for one in values)
    constant = sum(float(one.flatten(1).std(1).max()) <= FLAT * span for one in values)
    distinct = len({one.numpy().tobytes() for one in values})
    numbers = dict(looked_at=len(values), in_set=num_all, constant=constant, distinct=distinct, broken=len(broken))
    said = f'{len(values)} of {num_all:,} looked at: {constant} show nothing but one colour, {distinct} differ'
    said += f', {len(broken)} could not be read, for example {broken[0]}' if broken else ''
    if constant > len(values) / 2 or distinct <= len(values) / 2:
        return Finding(
            'pictures', FAIL, said, 'there is little to learn in these: look at a few files as the pipeline reads '
            'them (bit depth, no-data areas, a reader that returns the same array)', numbers
        )  # fmt: skip
    if constant or broken or distinct < len(values):
        return Finding('pictures', WARNING, said, 'take such files out of train_dataloader.dataset.source', numbers)
    return Finding('pictures', OK, said, numbers=numbers)


def check_normalisation(raw_BCHW: Tensor, images_BCHW: Tensor) -> Finding:
    """Do the images have a mean near 0 and a spread near 1 in every channel?"""
    mean_C, std_C = _moments(images_BCHW)
    raw_mean_C, raw_std_C = _moments(raw_BCHW)
    numbers = dict(mean=mean_C.tolist(), std=std_C.tolist(), raw_mean=raw_mean_C.tolist(), raw_std=raw_std_C.tolist())
    said = f'mean {_listed(mean_C)}, spread {_listed(std_C)} per channel, in the files {_listed(raw_mean_C)} and '
    said += _listed(raw_std_C)
    remedy = (
        f'set model.data_preprocessor.mean="[{_listed(raw_mean_C, ",")}]" std="[{_listed(raw_std_C, ",")}]" '
        '(these are in the order of the channels in the file; turn them round where to_rgb=True does)'
    )
    if not bool(torch.isfinite(images_BCHW).all()):
        return Finding('normalisation', FAIL, 'the images hold values that are not finite', remedy, numbers)
    far = float(mean_C.abs().max())
    narrow, wide = float(std_C.min()), float(std_C.max())
    if far > 10 or narrow < 0.02 or wide > 20:
        return Finding('normalisation', FAIL, said, remedy, numbers)
    if far > 1.5 or narrow < 0.2 or wide > 5:
        return Finding('normalisation', WARNING, said, remedy, numbers)
    return Finding('normalisation', OK, said, numbers=numbers)


def check_grid(model: nn.Module, images_BCHW: Tensor) -> Finding:
    """Do the cells fit, and are there enough to hide some and see others?"""
    try:
        visible_BGG = model.draw_visible(images_BCHW[:1])
    except ValueError as error:
        return Finding('cells', FAIL, one_line(error), 'change the crop, model.patch_size or model.mask_ratio')
    seen, cells = int(visible_BGG.sum()), visible_BGG[0].numel()
    said = f'{cells} of {model.patch_size} px, the encoder sees {seen} ({1 - seen / cells:.0%} are hidden)'
    numbers = dict(cells=cells, visible=seen)
    if seen < 3 or cells - seen < 2:
        return Finding('cells', WARNING, said, 'larger crops: few cells say little about the hidden ones', numbers)
    return Finding('cells', OK, said, numbers=numbers)


def check_targets(model: nn.Module, images_BCHW: Tensor) -> Finding:
    """Is there something to predict in the cells?"""
    C = images_BCHW.shape[1]
    cells_BLPC = cells_from_images(images_BCHW.double(), model.patch_size).unflatten(-1, (-1, C))
    std_BL = cells_BLPC.std(dim=2).amax(-1)  # of the liveliest channel: a cell of one colour is flat too
    flat = float((std_BL <= FLAT * images_BCHW.double().std()).double().mean())
    is_normalised = getattr(model.head, 'norm_pix', False)
    numbers = dict(flat_share=flat, cell_std=float(std_BL.mean()), norm_pix=bool(is_normalised))
    said = f'{flat:.1%} of the cells are flat; values inside a cell spread by {float(std_BL.mean()):.2f}'
    said += ', each cell is normalised' if is_normalised else ', cells are not normalised (norm_pix=False)'
    remedy = 'flat cells have no pattern to predict'
    remedy += ', and normalising turns their noise into the target: model.head.norm_pix=False' if is_normalised else ''
    if flat > 0.8:
        return Finding('targets', FAIL, said, f'{remedy}; or choose other pictures, smaller crops', numbers)
    if flat > 0.2:
        return Finding('targets', WARNING, said, remedy, numbers)
    return Finding('targets', OK, said, numbers=numbers)


# ---- the model


@torch.no_grad()
def check_mask_leak(model: nn.Module, images_BCHW: Tensor, visible_BGG: Tensor) -> Finding:
    """Does changing every hidden pixel leave features and predictions bit for bit as they were?

    Weights get noise first: with the zeros of a fresh model (biases, GRN) a leak would stay invisible.
    """
    noisy = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in noisy.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    hidden_B1HW = ~positions_of(visible_BGG, model.patch_size)[:, None]
    noise = 10 * torch.randn(images_BCHW.shape, generator=generator).to(images_BCHW) + 3
    changed_BCHW = torch.where(hidden_B1HW, noise, images_BCHW)

    def results(images: Tensor) -> list[Tensor]:
        return [noisy.encode(images, visible_BGG), noisy.reconstruct(images, visible_BGG)]

    first, again, other = results(images_BCHW), results(images_BCHW), results(changed_BCHW)
    repeatable = all(map(torch.equal, first, again))
    largest = max(
        float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in zip(first, other, strict=True)
    )
    numbers = dict(largest_change=largest, device_repeats_itself=repeatable)
    if all(map(torch.equal, first, other)):
        return Finding(
            'mask leak', OK, 'other hidden pixels, bit for bit the same features and predictions', '', numbers
        )
    if not repeatable and largest < 1e-4:
        said = (
            f'none seen: this device does not repeat itself, and hidden pixels change no more than that ({largest:.1e})'
        )
        return Finding('mask leak', OK, said, '', numbers)
    return Finding(
        'mask leak', FAIL, f'hidden pixels change the features or predictions, by up to {largest:.1e} of their size',
        'the model sees the answer: hide cells before every convolution and every sum over positions (GRN, SE, '
        "pooling); compare with model.layout='dense'", numbers,
    )  # fmt: skip


@torch.no_grad()
def check_first_loss(model: nn.Module, images_BCHW: Tensor, visible_BGG: Tensor) -> Finding:
    """Is the loss of the untrained model that of a prediction of nothing (about 1 with norm_pix)?"""
    predictions = model.reconstruct(images_BCHW, visible_BGG)
    loss = float(model.head.loss(predictions, images_BCHW, visible_BGG))
    nothing = float(model.head.loss(torch.zeros_like(predictions), images_BCHW, visible_BGG))
    said = f'{loss:.3f}; predicting nothing scores {nothing:.3f}'
    numbers = dict(loss=loss, loss_of_nothing=nothing)
    if not math.isfinite(loss):
        return Finding('first loss', FAIL, said, 'look at the checkpoint (init_cfg), else at the images', numbers)
    if loss > 2 * nothing:
        return Finding(
            'first loss', FAIL, said, 'weights start too large: initialise once, with std 0.02 (a second pass with '
            'std 1 gives about 16)', numbers
        )  # fmt: skip
    if loss > 1.2 * nothing:
        return Finding('first loss', WARNING, said, 'weights start larger than with std 0.02', numbers)
    if loss < 0.9 * nothing:
        return Finding(
            'first loss', WARNING, said, 'right when weights are loaded (init_cfg); of a fresh model the target '
            'would have leaked in', numbers
        )  # fmt: skip
    return Finding('first loss', OK, said, '', numbers)


def check_gradients(model: nn.Module, images_BCHW: Tensor, visible_BGG: Tensor) -> Finding:
    """Does every parameter that is trained get a gradient that is finite and not zero?"""
    trained = copy.deepcopy(model).train()
    trained.zero_grad(set_to_none=True)
    with torch.enable_grad():
        trained.loss(images_BCHW, visible=visible_BGG)['loss'].backward()
    named = [(name, one) for name, one in trained.named_parameters() if one.requires_grad]
    frozen = [name for name, one in trained.named_parameters() if not one.requires_grad]
    bad = [name for name, one in named if one.grad is not None and not bool(torch.isfinite(one.grad).all())]
    dead = [name for name, one in named if one.grad is None or not bool(one.grad.any())]
    numbers = dict(num_parameters=len(named), without_gradient=dead, not_finite=bad, frozen=frozen)
    said = f'{len(named) - len(dead) - len(bad)} of {len(named)} tensors get one'
    said += f'; {len(frozen)} are frozen' if frozen else ''
    if bad:
        return Finding(
            'gradients', FAIL, f'{said}; not finite: {_named(bad)}', 'look at the images and weights', numbers
        )
    if dead:
        return Finding(
            'gradients', FAIL, f'{said}; none: {_named(dead)}', 'these parts are not on the way to the loss: take '
            'them out of the model, or into its forward', numbers
        )  # fmt: skip
    if frozen:
        return Finding('gradients', WARNING, said, 'right only when frozen_stages is meant', numbers)
    return Finding('gradients', OK, said, '', numbers)


def check_overfitting(model: nn.Module, images_BCHW: Tensor, visible_BGG: Tensor, num_steps: int) -> Finding:
    """Does the loss of one batch with one mask fall below 0.3 of its start within the steps (AdamW, 1e-3)?"""
    trained = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(
        [one for one in trained.parameters() if one.requires_grad], lr=OVERFIT_RATE, betas=(0.9, 0.95)
    )
    losses = _train(trained, optimizer, images_BCHW, visible_BGG, num_steps)
    bound = OVERFIT_BOUND * losses[0]
    reached = next((step for step, loss in enumerate(losses) if loss < bound), None)
    numbers = dict(losses=losses, bound=bound, reached_at_step=reached)
    shown = ' '.join(f'{losses[round(i * (len(losses) - 1) / 6)]:.2f}' for i in range(7))
    said = f'{len(images_BCHW)} pictures, one mask, {len(losses) - 1} steps: {shown}'
    if reached is not None:
        return Finding('overfitting one batch', OK, f'{said}; below {bound:.2f} at step {reached}', '', numbers)
    falls = math.isfinite(losses[-1]) and losses[-1] < 0.9 * losses[0]
    return Finding(
        'overfitting one batch', FAIL, f'{said}; not below {bound:.2f}',
        'it falls, so give it more --steps' if falls else
        'not even this can be learnt: the fault is in the model, the target or the images, not in data or schedule',
        numbers,
    )  # fmt: skip


# ---- the run


def check_learning_rate(model: nn.Module, cfg: Config, images_BCHW: Tensor, visible_BGG: Tensor) -> Finding:
    """Does the config's own optimiser at its highest rate, after ten steps of warmup, make the loss of a batch fall?"""
    if not cfg.get('optim_wrapper'):
        return Finding('learning rate', SKIPPED, 'the config has no optim_wrapper')
    trained = copy.deepcopy(model).train()
    options = dict(
        type='OptimWrapper',
        **{
            key: cfg.optim_wrapper[key]
            for key in ('optimizer', 'constructor', 'paramwise_cfg')
            if key in cfg.optim_wrapper
        },
    )
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        optimizer = build_optim_wrapper(trained, Config(dict(options=options)).options).optimizer
    rate = max(group['lr'] for group in optimizer.param_groups)
    losses = _train(trained, optimizer, images_BCHW, visible_BGG, 30, num_warmup=10)
    worst, last = max(losses), sum(losses[-5:]) / 5
    numbers = dict(rate=rate, losses=losses)
    said = f'{rate:.3g}, 30 steps of it on one batch: loss {losses[0]:.2f} to {last:.2f}'
    if not all(map(math.isfinite, losses)) or last > 1.5 * losses[0] or worst > 10 * losses[0]:
        return Finding(
            'learning rate', FAIL, f'{said} (worst {worst:.2f})', f'too high: optim_wrapper.optimizer.lr='
            f'{rate / 10:.2g}, or clip: optim_wrapper.clip_grad.max_norm=1', numbers
        )  # fmt: skip
    if last > 0.98 * losses[0]:
        lower = rate < 1e-3
        return Finding(
            'learning rate', WARNING, f'{said}: it hardly moves', f'too {"low" if lower else "high"}: '
            f'optim_wrapper.optimizer.lr={rate * 10 if lower else rate / 10:.2g}', numbers
        )  # fmt: skip
    return Finding('learning rate', OK, said, '', numbers)


def check_schedule(cfg: Config, num_images: int, num_processes: int = 1) -> Finding:
    """Are there steps at all, is the warmup over before the end, and do the rates add up to a way to go for weights?"""
    loader, loop = cfg.get('train_dataloader') or {}, cfg.get('train_cfg') or {}
    wrapper = cfg.get('optim_wrapper') or {}
    rate = (wrapper.get('optimizer') or {}).get('lr')
    gathered = wrapper.get('accumulative_counts', 1)
    per_iteration = loader.get('batch_size', 1) * num_processes
    rounding = math.floor if loader.get('drop_last') else math.ceil
    iterations = rounding(num_images / per_iteration)
    epochs, total = loop.get('max_epochs'), loop.get('max_iters')
    total = iterations * epochs if total is None and epochs else total
    if total is None or rate is None:
        return Finding('schedule', SKIPPED, 'the config has no train_cfg.max_epochs or no learning rate')
    if total == 0 or (epochs and iterations == 0):
        return Finding(
            'schedule', FAIL, f'{num_images} pictures fill no batch of {per_iteration} (drop_last): no step is made',
            f'train_dataloader.batch_size={max(num_images // num_processes // 2, 1)}',
        )  # fmt: skip
    steps, images = total // gathered, per_iteration * gathered
    auto = cfg.get('auto_scale_lr') or {}
    if auto.get('enable') and auto.get('base_batch_size'):
        rate *= images / auto['base_batch_size']
    warmup = max(
        (
            one.get('end', 0) * (iterations if one.get('by_epoch', True) and epochs else 1)
            for one in cfg.get('param_scheduler') or []
            if str(one.get('type')).endswith('LinearLR') and one.get('start_factor', 1) < 1
        ),
        default=0,
    )
    made_for = auto.get('base_batch_size')
    path = rate * max(steps - warmup / gathered / 2, 0) / 2
    of_the_paper = SPEED * images / 256
    numbers = dict(
        steps=steps, images_per_step=images, rate=rate, warmup_iterations=warmup, sum_of_rates=path,
        rate_of_the_paper=of_the_paper,
    )  # fmt: skip
    said = (
        f"{steps:,} steps of {images} pictures at up to {rate:.3g} ({rate / of_the_paper:.3g} times the paper's "
        f'1.5e-4 per 256); the rates add up to about {path:.2g}'
    )
    if warmup >= total:
        return Finding(
            'schedule', FAIL, f'{said}; the warmup of {warmup:,} iterations is longer than the run of {total:,}',
            'shorten it: param_scheduler.0.end and param_scheduler.1.begin', numbers,
        )  # fmt: skip
    if made_for and not auto.get('enable') and not made_for / 2 <= images <= made_for * 2:
        return Finding(
            'schedule',
            WARNING,
            f'{said}; the config is made for {made_for} pictures per step',
            f'optim_wrapper.accumulative_counts={max(round(made_for / per_iteration), 1)}, or '
            'auto_scale_lr.enable=True',
            numbers,
        )
    if path < LEAST_PATH:
        return Finding(
            'schedule', WARNING, f'{said}: weights can hardly leave their start',
            f'more epochs, or a higher rate: small batches bear optim_wrapper.optimizer.lr={max(5e-4, rate):.2g}',
            numbers,
        )  # fmt: skip
    return Finding('schedule', OK, said, '', numbers)


# ---- parts


def build_preprocessor_on(cfg: Config, device: torch.device | str) -> nn.Module | None:
    preprocessor = build_preprocessor(cfg)
    return preprocessor and preprocessor.to(device)


def _build(cfg: Config, device: torch.device | str) -> nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = MODELS.build(cfg.model)
        if not all(hasattr(model, name) for name in ('reconstruct', 'encode', 'draw_visible')):
            raise ValueError(
                f'the config builds a {type(model).__name__}, not an FCMAE: this looks at pretraining alone'
            )
        model.init_weights()
    return model.to(device)


def _build_dataset(cfg: Config):
    if not cfg.get('train_dataloader'):
        raise ValueError('the config has no train_dataloader')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return DATASETS.build(cfg.train_dataloader.dataset)


def _take_pictures(dataset, num_pictures: int, seed: int) -> tuple[list[Tensor], list[str]]:
    """Tensors (C, H, W) as training gets them, and what was said of those that could not be read."""
    total = len(dataset)
    wanted = min(num_pictures, total)
    pictures, broken = [], []
    for i in range(wanted):
        index = (2 * i + 1) * total // (2 * wanted)
        try:
            sample = dataset[SeededIndex(index, derive_seed(seed, index))]
            inputs = sample['inputs']
            pictures.append((inputs[0] if isinstance(inputs, list | tuple) else inputs).float())
        except ValueError as error:
            broken.append(one_line(error))
    return pictures, broken + list(getattr(dataset, 'bad_files', []))


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images_BCHW: Tensor,
    visible_BGG: Tensor,
    num_steps: int,
    num_warmup: int = 0,
) -> list[float]:
    """num_steps + 1 losses of the same batch: before the first step to after the last."""
    rates = [group['lr'] for group in optimizer.param_groups]
    losses = []
    for step in range(num_steps + 1):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group['lr'] = rate * min((step + 1) / (num_warmup + 1), 1)
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = model.loss(images_BCHW, visible=visible_BGG)['loss']
            losses.append(float(loss.detach()))
            if step == num_steps or not math.isfinite(losses[-1]):
                losses += [losses[-1]] * (num_steps - step)
                break
            loss.backward()
        optimizer.step()
    return losses


def _moments(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    images = images_BCHW.double()
    return images.mean(dim=(0, 2, 3)).cpu(), images.std(dim=(0, 2, 3)).cpu()


def _listed(values_C: Tensor, separator: str = ' ') -> str:
    shown = [f'{float(value):.4g}' for value in values_C[:8]]
    return separator.join(shown) + (' ...' if len(values_C) > 8 else '')


def _named(names: list[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
