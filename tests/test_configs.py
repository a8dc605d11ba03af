"""Every config: its card, its name against its content, every type and transform, the model, and two steps of training.

The tables and the index that are made from the files: tests/engine/test_config_index.py.
"""

import functools
import re
from pathlib import Path

import pytest
import torch
from mmengine import registry as registries
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner

import mmcnx2  # noqa: F401
from mmcnx2.analysis.model_cost import build_on_meta
from mmcnx2.datasets.demo_files import write_demo
from mmcnx2.engine import config_card
from mmcnx2.models.backbones.convnext_v2 import ARCHS

CONFIGS = Path(__file__).parents[1] / 'configs'
LEAVES = {path.relative_to(CONFIGS).as_posix(): path for path in sorted(CONFIGS.glob('[a-z]*/**/*.py'))}
PAPER = [name for name in LEAVES if not name.startswith('demo/')]
SIZES = ('atto', 'femto', 'pico', 'nano', 'tiny', 'base', 'large', 'huge')
COCO_EPOCHS = {'1x': 12, '3x': 36}


@functools.cache
def parse(name):
    return Config.fromfile(LEAVES[name])


@functools.cache
def build_model(name):
    cfg = parse(name)
    init_default_scope(cfg.default_scope)
    return build_on_meta(cfg.model)


def read_card(name):
    """Title of a config's card and its fields by name."""
    card = config_card.read_card(LEAVES[name])
    return card.title, {field: getattr(card, field.lower()) for field in config_card.FIELDS}


def name_parts(name):
    """What a file name promises: mask-rcnn_convnextv2-base_fpn_8xb4-amp-lsj-3x-fcmae_coco -> a dict of strings."""
    found = re.fullmatch(
        r'(?P<folder>\w+)/(?:(?P<method>fcmae|(?:cascade-)?mask-rcnn|upernet|linear-probe)_)?'
        r'(?P<family>convnextv2|convnext|swin)-(?P<arch>\w+?)(?:_fpn)?'
        r'_(?P<gpus>\d+)xb(?P<batch>\d+)(?P<amp>-amp)?(?:-(?P<jitter>lsj|ms-crop))?-(?P<schedule>\d+(?:e|x|k))'
        r'(?:-(?P<init>fcmae|sup|scratch|simmim|in22k))?_(?P<data>in1k|in22k|coco|ade20k)'
        r'(?:-(?P<crop>\d+)x(?P=crop)|-(?P<side>\d+)px|-(?P<ablated>decoder|masking|grn))?\.py',
        name,
    )
    assert found, f'{name} does not follow [METHOD_]FAMILY-SIZE_[fpn_]GPUSxbIMAGES-[...-]SCHEDULE[-INIT]_DATA[-SIZE].py'
    return found.groupdict()


def transforms_in(pipeline):
    for transform in pipeline:
        yield transform
        for inner in transform.get('transforms', ()):
            yield from transforms_in([inner] if isinstance(inner, dict) else inner)


# ---- cards and names


@pytest.mark.parametrize('name', LEAVES)
def test_card(name):
    title, card = read_card(name)
    assert title.endswith('.') and '\n' not in title
    assert all(card.values())
    assert f'configs/{name}' in card['Run'], 'the command on the card runs another file'
    measured = re.search(r'cores of .*torch \d+\.\d+.*\d{4}-\d\d-\d\d', card['Expect'])
    assert 'not run yet' in card['Expect'] or 'published' in card['Expect'] or measured


def test_at_most_two_levels_and_every_base_is_used():
    used = set()
    for name, path in LEAVES.items():
        for base in Config._get_base_files(str(path)):
            base = (path.parent / base).resolve()
            assert base.is_relative_to(CONFIGS / '_base_'), f'{name} inherits from a config that is not a base'
            assert not Config._get_base_files(str(base)), f'{base.name} inherits too'
            used.add(base)
    assert set((CONFIGS / '_base_').rglob('*.py')) == used


def test_the_suite_is_complete():
    """What the papers' tables have, and every size of V2 for every task."""
    found = {
        (parts['method'], parts['jitter'], parts['schedule'], parts['family'], parts['arch'], parts['init'])
        for parts in map(name_parts, PAPER)
    }
    for size in SIZES:
        assert {
            ('fcmae', None, '1600e', 'convnextv2', size, None),
            ('mask-rcnn', 'lsj', '3x', 'convnextv2', size, 'fcmae'),
            ('mask-rcnn', 'lsj', '1x', 'convnextv2', size, 'fcmae'),
            ('cascade-mask-rcnn', 'ms-crop', '3x', 'convnextv2', size, None),
            ('upernet', None, '160k', 'convnextv2', size, None),
        } <= found
    for size in ('base', 'large', 'huge'):
        assert ('mask-rcnn', 'lsj', '3x', 'convnextv2', size, 'sup') in found
        assert f'upernet_convnextv2-{size}_8xb2-amp-160k_ade20k-640x640'.replace('8xb2', '16xb1') in {
            Path(name).stem.replace('8xb2', '16xb1') for name in PAPER
        }
    for size in ('tiny', 'small', 'base', 'large'):
        assert ('mask-rcnn', 'lsj', '3x', 'convnext', size, 'sup') in found
        assert {init for *_, family, arch, init in found if (family, arch) == ('convnext', size)} >= {'sup'}
        assert ('upernet', None, '160k', 'convnext', size, 'sup') in found
    for size in ('base', 'large'):
        assert ('mask-rcnn', 'lsj', '3x', 'swin', size, 'simmim') in found
        assert ('upernet', None, '160k', 'swin', size, 'simmim') in found


@pytest.mark.parametrize('name', PAPER)
def test_name_agrees_with_the_file(name):
    cfg, parts = parse(name), name_parts(name)
    total_batch = int(parts['gpus']) * int(parts['batch']) * cfg.optim_wrapper.get('accumulative_counts', 1)
    schedule = parts['schedule']
    backbone = cfg.model.backbone
    assert backbone.arch == parts['arch'] and parts['arch'] in read_card(name)[0]
    assert parts['family'] == (
        'swin' if 'Swin' in backbone.type else 'convnextv2' if backbone.get('use_grn', True) else 'convnext'
    )
    assert cfg.train_dataloader.batch_size == int(parts['batch'])
    assert cfg.auto_scale_lr == dict(base_batch_size=total_batch, enable=False)
    if parts['folder'] not in ('imagenet', 'ablation') or parts['method'] == 'fcmae':  # see test_imagenet_recipes.py
        assert total_batch == dict(fcmae=4096, upernet=16).get(parts['method'], 32 if parts['jitter'] == 'lsj' else 16)
    assert bool(parts['amp']) == (cfg.optim_wrapper.type != 'OptimWrapper')
    if schedule.endswith('k'):
        assert cfg.train_cfg.max_iters == 1000 * int(schedule[:-1])
    else:
        assert cfg.train_cfg.max_epochs == COCO_EPOCHS.get(schedule) or f'{cfg.train_cfg.max_epochs}e' == schedule
    jitters = [step for step in transforms_in(cfg.train_dataloader.dataset.pipeline) if step.type == 'RandomResize']
    assert (parts['jitter'] == 'lsj') == any(step.ratio_range == (0.1, 2.0) for step in jitters)
    if parts['init']:
        words = dict(fcmae='FCMAE', sup='supervised', scratch='scratch', simmim='SimMIM', in22k='ImageNet-22K')
        title, card = read_card(name)
        assert words[parts['init']] in title + card['Needs']


@pytest.mark.parametrize('name', [name for name in PAPER if name.startswith(('pretrain/', 'ablation/fcmae'))])
def test_pretraining_recipe(name):
    cfg, parts = parse(name), name_parts(name)
    total_batch = int(parts['gpus']) * int(parts['batch'])
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.lr == pytest.approx(1.5e-4 * total_batch / 256) == pytest.approx(2.4e-3)
    assert optimizer.betas == (0.9, 0.95) and optimizer.weight_decay == 0.05
    warmup, cosine = cfg.param_scheduler
    assert warmup.end == cosine.begin == 40 and 'end' not in cosine and cosine.eta_min == 0
    assert (cfg.model.mask_ratio, cfg.model.patch_size, cfg.model.head.norm_pix) == (0.6, 32, True)
    crop, flip, _ = cfg.train_dataloader.dataset.pipeline
    assert crop == dict(type='mmcnx2.LoadRandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.0))
    assert flip == dict(type='RandomFlip', prob=0.5)


@pytest.mark.parametrize(
    'name', [name for name in LEAVES if name.split('/')[1].startswith(('mask', 'cascade', 'uper'))]
)
def test_widths_classes_and_sizes_agree(name):
    cfg = parse(name)
    channels = ARCHS[cfg.model.backbone.arch]['channels']  # Swin's base and large have the same widths
    if 'roi_head' in cfg.model:
        assert cfg.model.neck.in_channels == channels
        num_classes = 6 if name.startswith('demo/') else 80
        boxes = cfg.model.roi_head.bbox_head
        heads = [*(boxes if isinstance(boxes, list) else [boxes]), cfg.model.roi_head.mask_head]
        assert {head.num_classes for head in heads} == {num_classes}
        plain_nms = 'cascade' in name or 'ms-crop' in name
        assert cfg.model.test_cfg.rcnn.nms.type == ('nms' if plain_nms else 'soft_nms')
        assert cfg.model.test_cfg.rpn.nms.type == 'nms'
    else:
        decode, auxiliary = cfg.model.decode_head, cfg.model.auxiliary_head
        assert decode.in_channels == channels and auxiliary.in_channels == channels[auxiliary.in_index]
        assert decode.num_classes == auxiliary.num_classes == (7 if name.startswith('demo/') else 150)
        crop = next(step.crop_size for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop')
        assert cfg.model.data_preprocessor.size == crop
        if not name.startswith('demo/'):
            side = int(name_parts(name)['crop'])
            assert crop == cfg.model.test_cfg.crop_size == (side, side)
            assert cfg.model.test_cfg.stride == (side * 2 // 3, side * 2 // 3)
            resize = next(step for step in cfg.val_dataloader.dataset.pipeline if step.type == 'Resize')
            assert resize.scale == (4 * side, side)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        classes = loader.dataset.get('metainfo', {}).get('classes')
        assert not name.startswith('demo/') or len(classes) == (6 if 'roi_head' in cfg.model else 7)


# ---- types, transforms, models


def find(registry, name):
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(name)


def check_types(node, registry, where=''):
    """Each `type` below the node is in the registry that will be asked for it."""
    if isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            check_types(child, registry, f'{where}.{i}')
    if not isinstance(node, dict):
        return
    inner = dict(
        optimizer=registries.OPTIMIZERS, vis_backends=registries.VISBACKENDS, dataset=registries.DATASETS,
        pipeline=registries.TRANSFORMS, sampler=registries.DATA_SAMPLERS, batch_sampler=registries.DATA_SAMPLERS,
        collate_fn=registries.FUNCTIONS,
    )  # fmt: skip
    if 'type' in node:
        assert find(registry, node['type']), f'{where}: {node["type"]} is not in {registry.name}'
    if 'constructor' in node:
        assert find(registries.OPTIM_WRAPPER_CONSTRUCTORS, node['constructor'])
    for key, child in node.items():
        check_types(child, inner.get(key, registry), f'{where}.{key}')


@pytest.mark.parametrize('name', LEAVES)
def test_every_type_resolves_and_every_transform_builds(name):
    cfg = parse(name)
    init_default_scope(cfg.default_scope)
    registry_of = dict(
        model=registries.MODELS, train_dataloader=registries.DATASETS, val_dataloader=registries.DATASETS,
        optim_wrapper=registries.OPTIM_WRAPPERS, param_scheduler=registries.PARAM_SCHEDULERS,
        train_cfg=registries.LOOPS, val_cfg=registries.LOOPS, test_cfg=registries.LOOPS,
        val_evaluator=registries.METRICS,
        default_hooks=registries.HOOKS, custom_hooks=registries.HOOKS, visualizer=registries.VISUALIZERS,
        log_processor=registries.LOG_PROCESSORS, tta_pipeline=registries.TRANSFORMS,
    )  # fmt: skip
    for key, registry in registry_of.items():
        if key in cfg and key != 'model':  # the model is built whole
            check_types(cfg[key], registry, key)
    assert 'tta_model' not in cfg or find(registries.MODELS, cfg.tta_model.type)  # and its nms is none of a registry
    pipelines = [cfg[loader].dataset.pipeline for loader in ('train_dataloader', 'val_dataloader') if loader in cfg]
    for transform in [step for pipeline in pipelines + [cfg.get('tta_pipeline', [])] for step in pipeline]:
        registries.TRANSFORMS.build(transform)


@pytest.mark.parametrize('name', LEAVES)
def test_model_builds_on_the_meta_device(name):
    model = build_model(name)
    swin = dict(base=[2, 2, 18, 2], large=[2, 2, 18, 2])
    arch = parse(name).model.backbone.arch
    assert model.backbone.depths == (swin[arch] if 'swin' in name else ARCHS[arch]['depths'])
    assert all(parameter.is_meta for parameter in model.parameters())


def test_checkpoint_option_reaches_the_backbone(tmp_path):
    for name in LEAVES:
        if not name.split('/')[1].startswith('fcmae'):
            cfg = parse(name).copy()
            cfg.merge_from_dict({'model.backbone.init_cfg.checkpoint': str(tmp_path / 'none.pth')})
            init_default_scope(cfg.default_scope)
            if 'atto' in name:
                with pytest.raises(ValueError, match=r'none\.pth'):
                    registries.MODELS.build(cfg.model).init_weights()


# ---- training


@pytest.fixture(scope='module')
def demo_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'demo'
    write_demo(folder, num_unlabelled=4, num_train=4, num_val=2, num_workers=1)
    return folder


def shrunken(name, demo_data, options):
    """A config as its file has it, on the demo data, with few images and no worker processes."""
    cfg = Config.fromfile(LEAVES[name])
    if name.startswith('coco/'):
        demo = parse('demo/mask-rcnn_convnextv2-atto_demo.py')
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            kept = cfg[loader].dataset.pipeline
            cfg[loader].dataset = ConfigDict(demo[loader].dataset, pipeline=kept)
        cfg.val_evaluator = cfg.test_evaluator = demo.val_evaluator
        boxes, masks = cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head
        for head in boxes if isinstance(boxes, list) else [boxes]:
            head.update(num_classes=6, fc_out_channels=32)
            if 'conv_out_channels' in head:
                head.update(num_shared_convs=1, conv_out_channels=32)
        masks.update(num_classes=6, num_convs=1)
        samples = cfg.model.train_cfg.rcnn
        for stage in samples if isinstance(samples, list) else [samples]:
            stage.sampler.num = 16
        cfg.model.train_cfg.rpn_proposal.max_per_img = 20
    elif name.startswith('ade20k/'):
        demo = parse('demo/upernet_convnextv2-atto_demo.py')
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            kept = list(cfg[loader].dataset.pipeline)
            for step in kept:
                step.pop('reduce_zero_label', None)
                if step.type == 'mmcnx2.CheckLabelMap':
                    step.num_classes = 7
            cfg[loader].dataset = ConfigDict(demo[loader].dataset, pipeline=kept)
    if 'Swin' in cfg.model.backbone.type:
        cfg.model.backbone.update(arch=SMALL_SWIN, init_cfg=None)
    cfg.merge_from_dict({'train_dataloader.batch_size': 2, **options})
    cfg = Config(moved_to(demo_data, cfg.to_dict()))
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if loader in cfg:
            cfg[loader].update(num_workers=0, persistent_workers=False)
    cfg.default_hooks.logger.interval = 1
    return cfg


AT_ONCE = {'param_scheduler.0.start_factor': 1.0, 'param_scheduler.0.end': 1, 'param_scheduler.1.begin': 1}  # no warmup


def moved_to(demo_data, node):
    if isinstance(node, dict):
        return {key: moved_to(demo_data, child) for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(moved_to(demo_data, child) for child in node)
    return node.replace('data/demo', demo_data.as_posix()) if isinstance(node, str) else node


SMALL_CROP = {
    'train_dataloader.dataset.pipeline.3.scale': (128, 128),
    'train_dataloader.dataset.pipeline.4.crop_size': (64, 64),
    'model.data_preprocessor.size': (64, 64),
    'model.decode_head.channels': 8,
    'model.decode_head.num_classes': 7,
    'model.auxiliary_head.num_classes': 7,
    'val_dataloader.dataset.pipeline.1.scale': (128, 128),
    'model.test_cfg.crop_size': (64, 64),
    'model.test_cfg.stride': (42, 42),
    **AT_ONCE,
    'train_cfg.max_iters': 2,
}
SMALL_LSJ = {
    'train_cfg.max_epochs': 1,
    'train_dataloader.dataset.pipeline.2.scale': (64, 64),
    'train_dataloader.dataset.pipeline.3.crop_size': (64, 64),
    'train_dataloader.dataset.pipeline.6.size': (64, 64),
    'val_dataloader.dataset.pipeline.1.scale': (64, 64),
    'param_scheduler.0.start_factor': 1.0,
}
SMALL_MS_CROP = {
    'train_cfg.max_epochs': 1,
    'train_dataloader.dataset.pipeline.3.transforms.0.0.scales': [(64, 64)],
    'train_dataloader.dataset.pipeline.3.transforms.1.0.scales': [(64, 64)],
    'train_dataloader.dataset.pipeline.3.transforms.1.1.crop_size': (32, 48),
    'train_dataloader.dataset.pipeline.3.transforms.1.2.scales': [(64, 64)],
    'val_dataloader.dataset.pipeline.1.scale': (64, 64),
    'param_scheduler.0.start_factor': 1.0,
}
SMALL_SWIN = dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
RUNS = {  # one per family
    'demo/fcmae_convnextv2-atto_demo.py': {'train_cfg.max_epochs': 2, **AT_ONCE},
    'demo/mask-rcnn_convnextv2-atto_demo.py': {'train_cfg.max_iters': 2, **AT_ONCE},
    'demo/cascade-mask-rcnn_convnextv2-atto_demo.py': {'train_cfg.max_iters': 2, **AT_ONCE},
    'demo/upernet_convnextv2-atto_demo.py': {'train_cfg.max_iters': 2, **AT_ONCE},
    'pretrain/fcmae_convnextv2-atto_8xb512-amp-1600e_in1k.py': {
        'train_cfg.max_epochs': 2,
        'train_dataloader.dataset.source': 'data/demo/unlabelled',
        'train_dataloader.dataset.pipeline.0.scale': 64,
        **AT_ONCE,
    },
    'coco/mask-rcnn_convnextv2-atto_fpn_8xb4-amp-lsj-3x-fcmae_coco.py': SMALL_LSJ,
    'coco/mask-rcnn_convnextv2-femto_fpn_8xb4-amp-lsj-1x-fcmae_coco.py': SMALL_LSJ,
    'coco/mask-rcnn_convnext-tiny_fpn_8xb2-amp-ms-crop-3x-sup_coco.py': SMALL_MS_CROP,
    'coco/mask-rcnn_swin-base_fpn_8xb4-amp-lsj-3x-simmim_coco.py': {
        **SMALL_LSJ,
        'model.neck.in_channels': [16, 32, 64, 128],
    },
    'coco/cascade-mask-rcnn_convnextv2-atto_fpn_8xb2-amp-ms-crop-3x_coco.py': SMALL_MS_CROP,
    'ade20k/upernet_convnextv2-atto_8xb2-amp-160k_ade20k-512x512.py': SMALL_CROP,
    'ade20k/upernet_convnext-tiny_8xb2-amp-160k-sup_ade20k-512x512.py': SMALL_CROP,
    'ade20k/upernet_swin-base_8xb2-amp-160k-simmim_ade20k-512x512.py': {
        **SMALL_CROP,
        'model.decode_head.in_channels': [16, 32, 64, 128],
        'model.auxiliary_head.in_channels': 64,
    },
}


@pytest.mark.parametrize('name', RUNS)
def test_two_steps_of_training(name, demo_data, tmp_path):
    cfg = shrunken(name, demo_data, RUNS[name])
    cfg.work_dir = str(tmp_path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        runner = Runner.from_cfg(cfg)
        before = {key: value.clone() for key, value in runner.model.state_dict().items()}
        runner.train()
    losses, _ = runner.message_hub.get_scalar('train/loss').data
    assert runner.iter == len(losses) >= 2
    assert all(0 < loss < 20 for loss in losses), losses
    after = runner.model.state_dict()
    unmoved = [name for name in before if name.endswith('weight') and torch.equal(before[name], after[name])]
    assert not unmoved, f'no step reached {unmoved}'
