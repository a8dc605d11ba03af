"""The classification configs: every value against a second transcription of the published recipes, what the named parts
really do, and one run per stage that trains, saves, is loaded by the next stage and tested.

Touch it when a recipe or a part that carries it out changes. Cards, names and types of all configs: test_configs.py.
"""

import copy
import functools
import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmengine import registry as registries
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from PIL import Image

import mmcnx2  # noqa: F401
from mmcnx2.checkpoint import load_pretrained_backbone
from mmcnx2.models.backbones.convnext_v2 import ARCHS, ConvNeXtV2

ROOT = Path(__file__).parents[1]
CONFIGS = {path.stem: path for path in sorted((ROOT / 'configs' / 'imagenet').glob('*.py'))}
NAME = re.compile(
    r'(?P<probe>linear-probe_)?convnextv2-(?P<arch>\w+?)_(?P<gpus>\d+)xb(?P<images>\d+)-amp-(?P<epochs>\d+)e'
    r'-(?P<init>fcmae|in22k|scratch)_(?P<data>in1k|in22k)(?:-(?P<side>\d+)px)?'
)


class Recipe(NamedTuple):
    """One row; what a stage has in common stands in `expected`."""

    base_lr: float  # per 256 images
    batch: int
    weight_decay: float
    layer_decay: float
    grouping: str | None
    epochs: int
    warmup: int
    drop_path: float
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.1
    ema: float | None = 0.9999
    side: int = 224
    num_classes: int = 1000
    erase: float = 0.25
    head_std: float = 2e-5
    min_lr: float = 1e-6


# Paper, Tables 9 to 11, by columns; for base and large the base lr of the official command.
FINE_TUNED = {
    'atto': Recipe(2e-4, 1024, 0.3, 0.9, 'single', 600, 0, 0.1, 0.0, 0.0, 0.2),
    'femto': Recipe(2e-4, 1024, 0.05, 0.9, 'single', 600, 0, 0.0, 0.3, 0.3, 0.2),
    'pico': Recipe(2e-4, 1024, 0.3, 0.9, 'single', 600, 0, 0.0, 0.3, 0.3, 0.2),
    'nano': Recipe(2e-4, 1024, 0.3, 0.9, 'single', 600, 0, 0.1, 0.5, 0.5, 0.2),
    'tiny': Recipe(8e-4, 1024, 0.05, 0.9, 'single', 300, 40, 0.2, 0.8, 1.0),
    'base': Recipe(6.25e-4, 1024, 0.05, 0.6, 'group', 100, 20, 0.1, 0.8, 1.0),
    'large': Recipe(6.25e-4, 1024, 0.05, 0.6, 'group', 100, 20, 0.2, 0.8, 1.0),
    'huge': Recipe(1.25e-3, 1024, 0.05, 0.75, 'single', 50, 10, 0.3, 0.8, 1.0),
}
# Table 12
ON_22K = {
    size: Recipe(2.5e-4, 4096, 0.05, decay, grouping, 90, 5, drop_path, 0.8, 1.0, ema=None, num_classes=21841)
    for size, decay, grouping, drop_path in (
        ('nano', 0.9, 'single', 0.0),
        ('tiny', 0.9, 'single', 0.0),
        ('base', 0.8, 'group', 0.1),
        ('large', 0.8, 'group', 0.1),
        ('huge', 0.8, 'single', 0.3),
    )
}
# Table 13
AFTER_22K = {
    'nano': Recipe(2.5e-5, 512, 1e-8, 0.9, 'single', 90, 0, 0.1),
    'tiny': Recipe(2.5e-5, 512, 1e-8, 0.9, 'single', 90, 0, 0.1),
    'base': Recipe(2.5e-5, 512, 1e-8, 0.8, 'group', 30, 0, 0.2),
    'large': Recipe(2.5e-5, 512, 1e-8, 0.8, 'group', 30, 0, 0.3),
    'huge': Recipe(2.5e-5, 512, 1e-8, 0.85, 'single', 30, 0, 0.5, ema=None),
}
# ConvNeXt V1's supervised recipe
FROM_SCRATCH = {
    size: Recipe(4e-3 / 16, 4096, 0.05, 1.0, None, 300, 20, drop_path, 0.8, 1.0, head_std=0.02)
    for size, drop_path in (('tiny', 0.1), ('base', 0.5), ('large', 0.5), ('huge', 0.5))
}
# MAE's linear probe
PROBED = {
    size: Recipe(0.1, 16384, 0.0, 1.0, None, 90, 10, 0.0, smoothing=0.0, ema=None, erase=0.0, head_std=0.01, min_lr=0.0)
    for size in ('atto', 'femto', 'pico', 'nano', 'tiny', 'base', 'large', 'huge')
}
# (init, data, probe) -> the sizes and resolutions that exist, with the published top-1 of each, or None
SUITE = {
    ('fcmae', 'in1k', False): (
        FINE_TUNED,
        {
            ('atto', 224): 76.7, ('femto', 224): 78.5, ('pico', 224): 80.3, ('nano', 224): 81.9,
            ('tiny', 224): 83.0, ('base', 224): 84.9, ('large', 224): 85.8, ('huge', 224): 86.3,
        },
    ),
    ('fcmae', 'in22k', False): (ON_22K, dict.fromkeys([*((size, 224) for size in ON_22K), ('huge', 384)])),
    ('in22k', 'in1k', False): (
        AFTER_22K,
        {
            ('nano', 224): 82.1, ('nano', 384): 83.4, ('tiny', 224): 83.9, ('tiny', 384): 85.1, ('base', 224): 86.8,
            ('base', 384): 87.7, ('large', 224): 87.3, ('large', 384): 88.2, ('huge', 384): 88.7, ('huge', 512): 88.9,
        },
    ),
    ('scratch', 'in1k', False): (
        FROM_SCRATCH,
        {('tiny', 224): 82.5, ('base', 224): 84.3, ('large', 224): 84.5, ('huge', 224): None},
    ),
    ('fcmae', 'in1k', True): (PROBED, dict.fromkeys((size, 224) for size in PROBED)),
}  # fmt: skip

ATTO = 'convnextv2-atto_8xb128-amp-600e-fcmae_in1k'
TINY = 'convnextv2-tiny_8xb128-amp-300e-fcmae_in1k'
HUGE = 'convnextv2-huge_32xb32-amp-50e-fcmae_in1k'
NANO_22K = 'convnextv2-nano_32xb128-amp-90e-fcmae_in22k'
NANO_AFTER_22K = 'convnextv2-nano_8xb64-amp-90e-in22k_in1k-384px'
TINY_SCRATCH = 'convnextv2-tiny_32xb128-amp-300e-scratch_in1k'
ATTO_PROBE = 'linear-probe_convnextv2-atto_8xb2048-amp-90e-fcmae_in1k'


@functools.cache
def parse(name):
    return Config.fromfile(CONFIGS[name])


def own_copy(name):
    return copy.deepcopy(parse(name))


@pytest.fixture(autouse=True)
def classification_scope():
    init_default_scope('mmpretrain')


def parts_of(name):
    found = NAME.fullmatch(name)
    assert found, name
    return found.groupdict()


def steps_of(pipeline):
    return {step.type: step for step in pipeline}


def family_of(name):
    parts = parts_of(name)
    return SUITE[parts['init'], parts['data'], bool(parts['probe'])]


def recipe_of(cfg):
    """The row that a config amounts to."""
    wrapper, head = cfg.optim_wrapper, cfg.model.head
    batch = cfg.auto_scale_lr.base_batch_size * wrapper.get('accumulative_counts', 1)
    *warmups, cosine = cfg.param_scheduler
    augments = {augment.type: augment.alpha for augment in cfg.model.get('train_cfg', {}).get('augments', [])}
    train = steps_of(cfg.train_dataloader.dataset.pipeline)
    averages = [hook for hook in cfg.custom_hooks if hook.type == 'EMAHook']
    lr = wrapper.optimizer.lr
    assert all(scheduler.by_epoch and scheduler.convert_to_iter_based for scheduler in cfg.param_scheduler)
    assert cosine.type == 'CosineAnnealingLR' and 'end' not in cosine
    assert cosine.begin == sum(warmup.end for warmup in warmups)
    return Recipe(
        base_lr=lr * 256 / batch,
        batch=batch,
        weight_decay=wrapper.optimizer.weight_decay,
        layer_decay=wrapper.get('paramwise_cfg', {}).get('layer_decay_rate', 1.0),
        grouping=wrapper.get('paramwise_cfg', {}).get('grouping'),
        epochs=cfg.train_cfg.max_epochs,
        warmup=cosine.begin,
        drop_path=cfg.model.backbone.get('drop_path_rate', 0.0),
        mixup=augments.get('Mixup', 0.0),
        cutmix=augments.get('CutMix', 0.0),
        smoothing=head.loss.get('label_smooth_val', 0.0),
        ema=1 - averages[0].momentum if averages else None,
        side=train['RandomResizedCrop'].scale,
        num_classes=head.num_classes,
        erase=train['RandomErasing'].erase_prob if 'RandomErasing' in train else 0.0,
        head_std=head.init_cfg.std,
        min_lr=cosine.eta_min_ratio * lr if 'eta_min_ratio' in cosine else cosine.eta_min,
    )


# ---- names and values


def test_the_suite_is_complete():
    wanted = {(*key, size, side) for key, (_, published) in SUITE.items() for size, side in published}
    parts = [parts_of(name) for name in CONFIGS]
    found = [(p['init'], p['data'], bool(p['probe']), p['arch'], int(p['side'] or 224)) for p in parts]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize('name', CONFIGS)
def test_recipe(name):
    cfg, parts = parse(name), parts_of(name)
    recipe = family_of(name)[0][parts['arch']]._replace(side=int(parts['side'] or 224))
    for field, expected, found in zip(Recipe._fields, recipe, recipe_of(cfg), strict=True):
        assert found == (pytest.approx(expected) if isinstance(expected, float) else expected), field
    optimizer = cfg.optim_wrapper.optimizer
    if parts['probe']:
        assert (optimizer.type, optimizer.momentum) == ('LARS', 0.9)
    else:
        assert (optimizer.type, optimizer.betas) == ('AdamW', (0.9, 0.999))
    assert cfg.optim_wrapper.constructor == 'mmcnx2.LayerDecayOptimWrapperConstructor'
    assert cfg.optim_wrapper.type == 'mmcnx2.BF16OptimWrapper' and 'clip_grad' not in cfg.optim_wrapper
    assert cfg.model.backbone.get('with_cp', False) == (parts['arch'] == 'huge' and bool(parts['side']))


@pytest.mark.parametrize('name', CONFIGS)
def test_name_agrees_with_the_file(name):
    cfg, parts = parse(name), parts_of(name)
    last_width = ARCHS[parts['arch']]['channels'][-1]
    assert cfg.model.backbone.arch == parts['arch'] and cfg.model.head.in_channels == last_width
    assert cfg.train_dataloader.batch_size == int(parts['images'])
    assert cfg.auto_scale_lr == dict(base_batch_size=int(parts['gpus']) * int(parts['images']), enable=False)
    assert cfg.train_cfg.max_epochs == int(parts['epochs'])
    assert cfg.model.data_preprocessor.num_classes == cfg.model.head.num_classes
    root = 'data/imagenet22k' if parts['data'] == 'in22k' else 'data/imagenet'
    assert cfg.train_dataloader.dataset.data_root == root
    if parts['probe']:
        assert cfg.model.neck[1].input_features == last_width


@pytest.mark.parametrize('name', CONFIGS)
def test_card_states_the_published_number_and_names_files_that_exist(name):
    config_card = pytest.importorskip('mmcnx2.engine.config_card')
    card, parts = config_card.read_card(CONFIGS[name]), parts_of(name)
    top1 = family_of(name)[1][parts['arch'], int(parts['side'] or 224)]
    assert card.published == ({} if top1 is None else {'top-1': top1})
    named = re.findall(r'configs/\w+/[\w.-]+\.py', card.needs + card.source)
    assert all((ROOT / path).is_file() and f'convnextv2-{parts["arch"]}_' in path for path in named), named
    assert bool(named) == (parts['init'] != 'scratch')


@pytest.mark.parametrize('name', CONFIGS)
def test_resize_and_crop_of_the_test(name):
    cfg = parse(name)
    if parts_of(name)['data'] == 'in22k':
        assert not any(key in cfg for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'test_dataloader'))
        return
    side = recipe_of(cfg).side
    transforms = [registries.TRANSFORMS.build(step) for step in cfg.test_dataloader.dataset.pipeline[1:-1]]
    results = dict(img=np.zeros((300, 500, 3), np.uint8), img_shape=(300, 500))
    shapes = []
    for transform in transforms:
        assert getattr(transform, 'interpolation', 'bicubic') == 'bicubic'
        results = transform(results)
        shapes.append(results['img'].shape[:2])
    assert shapes == ([(256, 426), (224, 224)] if side == 224 else [(side, side)])
    assert cfg.val_dataloader == cfg.test_dataloader


# ---- augmentation


@pytest.mark.parametrize('name', [name for name in CONFIGS if 'probe' not in name])
def test_all_stages_augment_alike(name):
    """What the tests below show for one config holds for all; only the side differs."""
    pipeline, model = copy.deepcopy(parse(name).train_dataloader.dataset.pipeline), parse(ATTO)
    steps_of(pipeline)['RandomResizedCrop'].scale = 224
    assert pipeline == model.train_dataloader.dataset.pipeline


def test_randaugment_is_timms():
    """The same operations with the same strengths as timm's 'rand-m9-mstd0.5-inc1', drawn the same way."""
    timm = pytest.importorskip('timm.data.auto_augment')
    step = steps_of(parse(ATTO).train_dataloader.dataset.pipeline)['RandAugment']
    ours = registries.TRANSFORMS.build(step)
    theirs = timm.rand_augment_transform('rand-m9-mstd0.5-inc1', dict(img_mean=(124, 116, 104)))
    assert ours.num_policies == theirs.num_layers == 2
    assert {op.prob for op in ours.transforms} == {op.prob for op in theirs.ops} == {0.5}
    stds = {(op.magnitude, op.magnitude_std) for op in theirs.ops}
    assert {(op.magnitude_level, op.magnitude_std) for op in ours if op.magnitude_range} == stds == {(9, 0.5)}

    def at_level_9(op):
        low, high = op.magnitude_range
        return low + 0.9 * (high - low)

    def strength(name):
        return abs(timm.LEVEL_TO_ARG[name](9, dict(translate_pct=0.45))[0])

    by_name = {
        'Rotate': strength('Rotate'),
        'Posterize': strength('PosterizeIncreasing'),
        'Solarize': strength('SolarizeIncreasing'),
        'SolarizeAdd': strength('SolarizeAdd'),
        'ColorTransform': abs(strength('ColorIncreasing') - 1),
        'Contrast': abs(strength('ContrastIncreasing') - 1),
        'Brightness': abs(strength('BrightnessIncreasing') - 1),
        'Sharpness': abs(strength('SharpnessIncreasing') - 1),
        'Shear': strength('ShearX'),
        'Translate': strength('TranslateXRel'),
    }
    found = [type(op).__name__ for op in ours]
    assert len(found) == len(theirs.ops) == 15
    assert sorted(set(found)) == sorted([*by_name, 'AutoContrast', 'Equalize', 'Invert'])
    for op in ours:
        if op.magnitude_range:
            expected = by_name[type(op).__name__]  # timm rounds whole numbers down
            assert at_level_9(op) == pytest.approx(expected, abs=1 if expected >= 1 else 1e-6), type(op).__name__


def test_erasing_fills_with_noise_of_the_images_statistics():
    step = steps_of(parse(ATTO).train_dataloader.dataset.pipeline)['RandomErasing']
    erase = registries.TRANSFORMS.build(step)
    rng = np.random.default_rng(0)
    np.random.seed(0)
    erased, areas, pixels = 0, [], []
    for _ in range(400):
        clean = np.full((64, 64, 3), 255, np.uint8)
        image = erase(dict(img=clean.copy()))['img']
        changed = (image != clean).any(axis=2)
        erased += changed.any()
        if changed.any():
            areas.append(changed.mean())
            pixels.append(image[changed])
    assert 70 < erased < 130  # a quarter
    assert min(areas) > 0.015 and max(areas) < 0.35
    pixels = np.concatenate(pixels)
    noise = rng.normal([103.53, 116.28, 123.675], [57.375, 57.12, 58.395], (100000, 3)).clip(0, 255)  # BGR
    assert pixels.mean(axis=0) == pytest.approx(noise.mean(axis=0), abs=1.5)
    assert pixels.std(axis=0) == pytest.approx(noise.std(axis=0), abs=1.5)


def test_images_reach_the_model_as_normalised_rgb(tmp_path):
    Image.new('RGB', (300, 300), (255, 0, 0)).save(tmp_path / 'red.png')
    cfg = parse(ATTO)
    results = dict(img_path=str(tmp_path / 'red.png'), gt_label=0)
    for step in cfg.val_dataloader.dataset.pipeline:
        results = registries.TRANSFORMS.build(step)(results)
    preprocess = registries.MODELS.build(cfg.model.data_preprocessor)
    image = preprocess(dict(inputs=results['inputs'][None], data_samples=[results['data_samples']]))['inputs'][0]
    red = torch.tensor([(255 - 123.675) / 58.395, -116.28 / 57.12, -103.53 / 57.375])
    torch.testing.assert_close(image, red[:, None, None].expand(3, 224, 224))


def mixed_batches(name, num):
    from mmpretrain.structures import DataSample

    torch.manual_seed(0)
    np.random.seed(0)
    model_cfg = own_copy(name).model
    model_cfg.backbone.arch = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    preprocess = registries.MODELS.build(model_cfg).data_preprocessor
    for _ in range(num):
        images = torch.zeros(2, 3, 8, 8)
        images[1] = 255
        samples = [DataSample().set_gt_label(i) for i in range(2)]
        batch = preprocess(dict(inputs=images, data_samples=samples), training=True)
        yield batch['inputs'][0, 0], getattr(batch['data_samples'][0], 'gt_score', None)


def test_mixing_happens_in_every_batch_half_mixup_half_cutmix():
    dark, bright = -123.675 / 58.395, (255 - 123.675) / 58.395
    num_cut = 0
    for image, target in mixed_batches(TINY, 200):
        share = float((image.mean() - dark) / (bright - dark))
        assert target.sum() == pytest.approx(1) and target[1] == pytest.approx(share, abs=1e-4)
        num_cut += len(image.unique()) == 2
    # An image that is mixed with itself, or with a share that rounds to 0 or 1, shows no trace of either.
    assert 25 < num_cut < 75


def test_no_mixing_where_the_recipe_has_none():
    for name in (ATTO, NANO_AFTER_22K, ATTO_PROBE):
        for image, target in mixed_batches(name, 5):
            assert target is None and len(image.unique()) == 1


# ---- loss, start and schedule


@pytest.mark.parametrize('name', [ATTO, TINY])
def test_label_smoothing_leaves_1_minus_s_plus_s_over_k(name):
    """timm's definition, for labels and for mixed targets. In autocast the loss is a float32 number; on the CPU, other
    than on CUDA, its logarithms are rounded to bfloat16 first.
    """
    cfg = parse(name)
    loss = registries.MODELS.build(cfg.model.head.loss)
    smoothing = recipe_of(cfg).smoothing
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 1000), torch.tensor([0, 5, 5, 999])
    expected = 0.0
    for row, label in zip(logits.double().log_softmax(1), labels, strict=True):
        target = torch.full((1000,), smoothing / 1000, dtype=torch.double)
        target[label] = 1 - smoothing + smoothing / 1000
        expected -= float((target * row).sum()) / 4
    assert float(loss(logits, labels)) == pytest.approx(expected, rel=1e-6)
    one_hot = torch.nn.functional.one_hot(labels, 1000)
    assert float(loss(logits, one_hot)) == pytest.approx(expected, rel=1e-6)
    mixed = 0.3 * one_hot + 0.7 * one_hot.flip(0)
    flipped = float(loss(logits, one_hot.flip(0)))
    assert float(loss(logits, mixed)) == pytest.approx(0.3 * expected + 0.7 * flipped, rel=1e-6)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        in_autocast = loss(logits.bfloat16(), labels)
    assert in_autocast.dtype == torch.float32 and float(in_autocast) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(('name', 'std'), [(ATTO, 2e-5), (TINY_SCRATCH, 0.02), (ATTO_PROBE, 0.01)])
def test_classifier_starts_with_its_std(name, std):
    torch.manual_seed(0)
    head = registries.MODELS.build(parse(name).model.head)
    head.init_weights()
    assert head.fc.weight.std().item() == pytest.approx(std, rel=0.01) and not head.fc.bias.any()
    assert head.fc.weight.abs().max() < 6 * std


@pytest.mark.parametrize('name', [name for name in CONFIGS if 'scratch' not in name and 'probe' not in name])
def test_classifier_is_cut_where_the_formula_still_works(name):
    """mmengine's default cut at +-2 turns one weight in 2**24 into -2; huge has 61 million on ImageNet-22K."""
    init = parse(name).model.head.init_cfg
    assert (init.a, init.b) == (-1e-4, 1e-4)


def lr_of_official_code(recipe, epoch):
    lr = recipe.base_lr * recipe.batch / 256
    if epoch < recipe.warmup:
        return lr * epoch / recipe.warmup
    share = (epoch - recipe.warmup) / (recipe.epochs - recipe.warmup)
    return recipe.min_lr + (lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * share))


@pytest.mark.parametrize('name', [ATTO, HUGE, NANO_22K, NANO_AFTER_22K, TINY_SCRATCH, ATTO_PROBE])
def test_learning_rate_over_time(name):
    """Per step, as the official code; a layer at `scale` has `scale` times it all the way, down to the end."""
    cfg, steps_per_epoch, scale = parse(name), 5, 1e-4
    recipe = recipe_of(cfg)
    lr = cfg.optim_wrapper.optimizer.lr
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([dict(params=[weights[0]], lr=lr), dict(params=[weights[1]], lr=lr * scale)])
    schedulers = []
    for node in own_copy(name).param_scheduler:
        kind = registries.PARAM_SCHEDULERS.get(node.pop('type'))
        node.pop('convert_to_iter_based')
        node.setdefault('end', recipe.epochs)  # as the runner does
        schedulers.append(kind.build_iter_from_epoch(optimizer=optimizer, epoch_length=steps_per_epoch, **node))
    for step in range(recipe.epochs * steps_per_epoch):
        full, scaled = (group['lr'] for group in optimizer.param_groups)
        # mmengine ends a warmup one step early
        tolerance = lr / (recipe.warmup * steps_per_epoch) if step < recipe.warmup * steps_per_epoch else 0
        # and counts a decay's last step as its end
        tolerance += 2 * lr / (recipe.epochs - recipe.warmup) / steps_per_epoch
        assert full == pytest.approx(lr_of_official_code(recipe, step / steps_per_epoch), abs=tolerance), step
        assert scaled == pytest.approx(full * scale)
        if step == 0 and not recipe.warmup:
            assert full == lr
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert full == pytest.approx(recipe.min_lr, abs=2e-3 * lr / steps_per_epoch) and scaled < 2e-6


@pytest.mark.parametrize(
    ('size', 'stem_scale'), [('atto', 0.282), ('nano', 0.229), ('tiny', 0.150), ('base', 0.0013), ('huge', 3.2e-5)]
)
def test_layer_decay_reaches_every_layer(size, stem_scale):
    """Classifier and final norm at the full rate, the stem at the scale worked out by hand; no decay on 1-D and GRN."""
    name = next(name for name in CONFIGS if name.startswith(f'convnextv2-{size}_') and name.endswith('e-fcmae_in1k'))
    cfg = own_copy(name)
    with torch.device('meta'):
        model = registries.MODELS.build(cfg.model)
    lr, decay = cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    group_of = {id(p): group for group in optimizer.param_groups for p in group['params']}
    groups = {name: group_of[id(p)] for name, p in model.named_parameters()}
    for name in ('head.fc.weight', 'head.fc.bias', 'backbone.norm3.weight'):
        assert groups[name]['lr'] == pytest.approx(lr)
    assert groups['backbone.downsample_layers.0.0.weight']['lr'] == pytest.approx(lr * stem_scale, rel=0.02)
    exempt = {name for name, group in groups.items() if group['weight_decay'] == 0}
    assert {'head.fc.bias', 'backbone.norm3.weight', 'backbone.stages.0.0.grn.gamma'} <= exempt
    assert groups['head.fc.weight']['weight_decay'] == groups['backbone.stages.0.0.dwconv.weight']['weight_decay']
    assert groups['head.fc.weight']['weight_decay'] == decay


# ---- runs


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """train/ and val/ with five class folders of coloured noise; the fourth class of val/ has more than the others."""
    folder = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)
    for split, counts in (('train', (1, 1, 1, 1, 1)), ('val', (1, 1, 1, 3, 1))):
        for label, count in enumerate(counts):
            (folder / split / f'class_{label}').mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
                picture = Image.fromarray(noise).resize((72, 54), Image.Resampling.BICUBIC)
                picture.save(folder / split / f'class_{label}' / f'{i}.jpg')
    return folder


def randomised_(module):
    """Every parameter away from its start, so that a tensor that was not loaded shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return module


@pytest.fixture(scope='module')
def fcmae_checkpoint(tmp_path_factory):
    """What configs/pretrain writes, untrained."""
    cfg = Config.fromfile(ROOT / 'configs/pretrain/fcmae_convnextv2-atto_8xb512-amp-1600e_in1k.py')
    init_default_scope('mmpretrain')
    model = randomised_(registries.MODELS.build(cfg.model))
    path = tmp_path_factory.mktemp('fcmae') / 'epoch_1600.pth'
    torch.save(dict(meta=dict(epoch=1600), state_dict=model.state_dict(), message_hub={}, optimizer={}), path)
    return path


def call_tool(tool, *args):
    spec = importlib.util.spec_from_file_location(f'tool_{tool}', ROOT / 'tools' / f'{tool}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [f'{tool}.py', *map(str, args)])
        for name in ('LOCAL_RANK', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'):
            patch.setenv(name, '')  # so that what a tool sets is taken back
            patch.delenv(name)
        module.main()


def small(name, pictures, **options):
    """--cfg-options with which a config, otherwise as in its file, trains two epochs of one step at 32 px."""
    cfg = parse(name)
    on_22k = parts_of(name)['data'] == 'in22k'
    settings = {
        'model.backbone.arch': 'atto',
        'model.head.in_channels': 320,
        'train_cfg.max_epochs': 2,
        'train_dataloader.batch_size': 5,
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.logger.interval': 1,
    }
    for loader in ('train', 'val', 'test'):
        if f'{loader}_dataloader' not in cfg:
            continue
        settings |= {
            f'{loader}_dataloader.num_workers': 0,
            f'{loader}_dataloader.persistent_workers': False,
            f'{loader}_dataloader.dataset.type': 'CustomDataset',
            f'{loader}_dataloader.dataset.data_root': pictures / 'train' if on_22k else pictures,
        }
        for i, step in enumerate(cfg[f'{loader}_dataloader'].dataset.pipeline):
            where = f'{loader}_dataloader.dataset.pipeline.{i}'
            settings |= {f'{where}.scale': 32} if step.type in ('RandomResizedCrop', 'ResizeEdge') else {}
            settings |= {f'{where}.scale': '(32,32)'} if step.type == 'Resize' else {}
            settings |= {f'{where}.crop_size': 32} if step.type == 'CenterCrop' else {}
    for i, scheduler in enumerate(cfg.param_scheduler):  # a constant rate: warmup and decay would hide a step
        if scheduler.type == 'LinearLR':
            settings |= {f'param_scheduler.{i}.{key}': 1 for key in ('start_factor', 'end')}
            settings |= {f'param_scheduler.{i + 1}.begin': 1}
        elif 'eta_min_ratio' in scheduler:
            settings |= {f'param_scheduler.{i}.eta_min_ratio': 1.0}
    return ['--cfg-options', *(f'{key}={value}' for key, value in {**settings, **options}.items())]


@pytest.fixture(scope='module')
def train(pictures, tmp_path_factory):
    """Trains two small epochs of a config with tools/train.py: its work dir. `init`: checkpoint of the backbone."""

    def run(name, init=None, **options):
        work_dir = tmp_path_factory.mktemp('run')
        if init:
            options['model.backbone.init_cfg.checkpoint'] = init
        call_tool('train', CONFIGS[name], '--work-dir', work_dir, *small(name, pictures, **options))
        losses, _ = load(work_dir / 'epoch_2.pth')['message_hub']['log_scalars']['train/loss'].data
        assert len(losses) == 2 and all(0 < loss < 20 for loss in losses), losses
        return work_dir

    return run


def load(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def backbone_of(state_dict):
    return {key.removeprefix('backbone.'): value for key, value in state_dict.items() if key.startswith('backbone.')}


@pytest.fixture(scope='module')
def fine_tuned(train, fcmae_checkpoint):
    return train(ATTO, fcmae_checkpoint)


@pytest.fixture(scope='module')
def trained_on_22k(train, fcmae_checkpoint):
    """Its final norm is moved further than two steps would, so that it can be told from a fresh one."""
    path = train(NANO_22K, fcmae_checkpoint) / 'epoch_2.pth'
    checkpoint = load(path)
    for key in ('backbone.norm3.weight', 'backbone.norm3.bias'):
        checkpoint['state_dict'][key] += torch.linspace(0.1, 0.5, 320)
    torch.save(checkpoint, path)
    return path


def assert_started_from(work_dir, source, also=()):
    """The first step's weights, averaged and not, are the source's up to one small step; others moved in no way."""
    first, source = load(work_dir / 'epoch_1.pth'), backbone_of(load(source)['state_dict'])
    lr = max(group['lr'] for group in first['optimizer']['param_groups'])
    found = backbone_of(first['state_dict'])
    loaded = [key for key in found if not key.startswith('norm3.')] + list(also)
    assert len(loaded) >= 136
    for key in loaded:
        torch.testing.assert_close(found[key], source[key], rtol=0, atol=2 * lr, msg=key)


def test_fine_tuning_starts_from_fcmae(fine_tuned, fcmae_checkpoint):
    assert_started_from(fine_tuned, fcmae_checkpoint)
    norm = load(fine_tuned / 'epoch_1.pth')['state_dict']['backbone.norm3.weight']
    torch.testing.assert_close(norm, torch.ones(320), rtol=0, atol=2e-3)


def test_averaged_weights_are_what_is_saved(fine_tuned):
    """decay 0.9999: average after step 2 = average after step 1 + 1e-4 of the way to the weights; kept beside them."""
    first, second = load(fine_tuned / 'epoch_1.pth'), load(fine_tuned / 'epoch_2.pth')
    starts, averages = first['state_dict'], second['state_dict']
    weights = {key.removeprefix('module.'): value for key, value in second['ema_state_dict'].items() if key != 'steps'}
    assert set(weights) == set(averages) and second['ema_state_dict']['steps'] == 2
    way = torch.cat([(weights[key] - start).flatten() for key, start in starts.items()])
    taken = torch.cat([(averages[key] - start).flatten() for key, start in starts.items()])
    assert way.abs().max() > 1e-4  # the step was one
    assert float(taken @ way / (way @ way)) == pytest.approx(1e-4, rel=0.01)


def with_label_that_always_wins(path, average, weights, target):
    """A copy of a checkpoint whose averaged weights always say one class, and whose weights another."""
    checkpoint = load(path)
    for state_dict, key, label in (
        ('state_dict', 'head.fc.bias', average),
        ('ema_state_dict', 'module.head.fc.bias', weights),
    ):
        checkpoint[state_dict][key] = torch.zeros(1000)
        checkpoint[state_dict][key][label] = 100
    torch.save(checkpoint, target)
    return target


def test_resuming_goes_on_with_both_sets_of_weights(fine_tuned, pictures, tmp_path):
    start = with_label_that_always_wins(fine_tuned / 'epoch_2.pth', 3, 0, tmp_path / 'edited.pth')
    options = small(ATTO, pictures, **{'train_cfg.max_epochs': 3})
    call_tool('train', CONFIGS[ATTO], '--resume', start, '--work-dir', tmp_path, *options)
    checkpoint = load(tmp_path / 'epoch_3.pth')
    weights, average = checkpoint['ema_state_dict']['module.head.fc.bias'], checkpoint['state_dict']['head.fc.bias']
    assert weights[[0, 3]].tolist() == pytest.approx([100, 0], abs=0.01)
    assert average[[0, 3]].tolist() == pytest.approx([0.01, 99.99], abs=0.001)
    assert checkpoint['ema_state_dict']['steps'] == 3


def test_testing_a_checkpoint_measures_the_averaged_weights(fine_tuned, pictures, tmp_path, forget_runs):
    """An average that always says class 3 (3 of the 7 pictures), beside weights that always say class 0 (1 of 7)."""
    edited = with_label_that_always_wins(fine_tuned / 'epoch_2.pth', 3, 0, tmp_path / 'edited.pth')
    out, options = tmp_path / 'metrics.json', small(ATTO, pictures)
    for extra in ([], ['custom_hooks=[]']):  # with the averaging hook, and as somebody without it
        forget_runs()
        call_tool('test', CONFIGS[ATTO], edited, '--work-dir', tmp_path, '--out', out, *options, *extra)
        assert json.loads(out.read_text())['accuracy/top1'] == pytest.approx(100 * 3 / 7, abs=1e-3)


def test_dense_tasks_start_from_the_averaged_weights_of_fine_tuning(fine_tuned):
    cfg = Config.fromfile(ROOT / 'configs/ade20k/upernet_convnextv2-atto_8xb2-amp-160k_ade20k-512x512.py')
    cfg.merge_from_dict({'model.backbone.init_cfg.checkpoint': str(fine_tuned / 'epoch_2.pth')})
    backbone = registries.MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    source = load(fine_tuned / 'epoch_2.pth')
    for key, value in backbone.state_dict().items():
        if key.startswith('norm'):
            assert set(value.tolist()) == {float(key.endswith('weight'))}, f'{key} was trained on pooled features'
        else:
            assert torch.equal(value, source['state_dict'][f'backbone.{key}']), key


def test_22k_starts_from_fcmae_without_averages(trained_on_22k, fcmae_checkpoint):
    checkpoint = load(trained_on_22k)
    assert 'ema_state_dict' not in checkpoint
    assert checkpoint['state_dict']['head.fc.weight'].shape == (21841, 320)
    assert_started_from(trained_on_22k.parent, fcmae_checkpoint)


def test_1k_after_22k_takes_backbone_and_final_norm(train, trained_on_22k):
    work_dir = train(NANO_AFTER_22K, trained_on_22k)
    assert_started_from(work_dir, trained_on_22k, also=('norm3.weight', 'norm3.bias'))
    head = load(work_dir / 'epoch_1.pth')['state_dict']['head.fc.weight']
    assert head.shape == (1000, 320) and head.abs().max() < 2e-4
    assert list(work_dir.glob('best_accuracy_top1_epoch_*.pth'))


def test_official_files_after_22k_load_with_their_norm(tmp_path):
    """The released ImageNet-22K classifiers: names without prefix, `norm`, a head of another size."""
    source = randomised_(ConvNeXtV2('atto', gap_before_final_norm=True))
    official = {key.replace('norm3.', 'norm.'): value.clone() for key, value in source.state_dict().items()}
    for key, value in official.items():
        if key.endswith(('grn.gamma', 'grn.beta')):
            official[key] = value.view(1, 1, 1, -1)
    torch.save(dict(model={**official, 'head.weight': torch.ones(21841, 320), 'head.bias': torch.ones(21841)}),
               tmp_path / 'official.pt')  # fmt: skip
    cfg = own_copy(NANO_AFTER_22K).model.backbone
    backbone = registries.MODELS.build(ConfigDict(cfg, arch='atto'))
    load_pretrained_backbone(backbone, tmp_path / 'official.pt')
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


def test_training_from_scratch(train):
    checkpoint = load(train(TINY_SCRATCH) / 'epoch_2.pth')
    assert 'ema_state_dict' in checkpoint
    assert {group['lr_scale'] for group in checkpoint['optimizer']['param_groups']} == {1}


def test_linear_probe_trains_the_classifier_alone(train, fcmae_checkpoint):
    work_dir = train(ATTO_PROBE, fcmae_checkpoint)
    source = backbone_of(load(fcmae_checkpoint)['state_dict'])
    first, second = (load(work_dir / f'epoch_{i}.pth')['state_dict'] for i in (1, 2))
    found = backbone_of(second)
    assert set(found) == set(source) and all(torch.equal(found[key], source[key]) for key in found)
    assert {key for key in first if not torch.equal(first[key], second[key])} == {
        'head.fc.weight', 'head.fc.bias', 'neck.1.bn.running_mean', 'neck.1.bn.running_var',
        'neck.1.bn.num_batches_tracked',
    }  # fmt: skip
    assert 'neck.1.bn.weight' not in second


def test_probed_backbone_stays_in_evaluation_mode():
    model = registries.MODELS.build(own_copy(ATTO_PROBE).model).train()
    assert not any(module.training for module in (*model.backbone.stages, *model.backbone.downsample_layers))
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert model.neck.training and model.head.fc.weight.requires_grad


def test_lars_adapts_the_weights_and_not_the_bias():
    cfg = own_copy(ATTO_PROBE)
    model = registries.MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    found = {bool(group.get('lars_exclude')): group['params'] for group in groups}
    assert len(groups) == 2 and found[False] == [model.head.fc.weight] and found[True] == [model.head.fc.bias]
