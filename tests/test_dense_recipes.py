"""Detection and segmentation configs against the recipe tables, typed here a second time from their sources.

Sources: appendix A.3 and A.4 and Tables 6 and 7 of arXiv 2301.00808; ConvNeXt V1's official repository; what neither
gives is our choice and said on the card (a test looks for the word).
"""

import re

import pytest
from test_configs import LEAVES, name_parts, parse, read_card

# (family, jitter) of a detector -> size -> (lr, layer decay, drop path); the schedule does not change them
LSJ_V2 = {
    'atto': (1e-4, 0.95, 0.0), 'femto': (1e-4, 0.95, 0.0), 'pico': (1e-4, 0.95, 0.1), 'nano': (1e-4, 0.95, 0.2),
    'tiny': (1e-4, 0.95, 0.3), 'base': (1e-4, 0.95, 0.4), 'large': (1e-4, 0.95, 0.5), 'huge': (1e-4, 0.95, 0.5),
}  # fmt: skip
DETECTORS = {
    ('mask-rcnn', 'convnextv2', 'lsj', 'fcmae'): LSJ_V2,
    ('mask-rcnn', 'convnextv2', 'lsj', 'sup'): {size: LSJ_V2[size] for size in ('base', 'large', 'huge')},
    ('mask-rcnn', 'convnext', 'lsj', 'sup'): {
        'tiny': (1e-4, 0.95, 0.4), 'small': (1e-4, 0.95, 0.4), 'base': (1e-4, 0.95, 0.4), 'large': (1e-4, 0.95, 0.5),
    },
    ('mask-rcnn', 'convnext', 'ms-crop', 'sup'): {'tiny': (1e-4, 0.95, 0.4)},
    ('mask-rcnn', 'swin', 'lsj', 'simmim'): {'base': (1e-4, 0.95, 0.3), 'large': (1e-4, 0.95, 0.4)},
    ('cascade-mask-rcnn', 'convnextv2', 'ms-crop', None): {
        'atto': (2e-4, 0.7, 0.0), 'femto': (2e-4, 0.7, 0.0), 'pico': (2e-4, 0.7, 0.1), 'nano': (2e-4, 0.7, 0.2),
        'tiny': (2e-4, 0.7, 0.4), 'base': (2e-4, 0.8, 0.6), 'large': (1e-4, 0.7, 0.7), 'huge': (1e-4, 0.7, 0.7),
    },
    ('cascade-mask-rcnn', 'convnext', 'ms-crop', 'sup'): {
        'tiny': (2e-4, 0.7, 0.4), 'small': (2e-4, 0.7, 0.6), 'base': (2e-4, 0.8, 0.7),
    },
    ('cascade-mask-rcnn', 'convnext', 'ms-crop', 'in22k'): {'base': (1e-4, 0.8, 0.6), 'large': (1e-4, 0.7, 0.7)},
}  # fmt: skip
# (family, crop, init) -> size -> (lr, layer decay, drop path)
SEGMENTORS = {
    ('convnextv2', 512, None): {
        'atto': (2e-4, 0.9, 0.0), 'femto': (2e-4, 0.9, 0.0), 'pico': (2e-4, 0.9, 0.1), 'nano': (2e-4, 0.9, 0.2),
        'tiny': (1e-4, 0.9, 0.3), 'base': (1e-4, 0.9, 0.4), 'large': (1e-4, 0.9, 0.4), 'huge': (1e-4, 0.9, 0.4),
    },
    ('convnextv2', 640, None): {'base': (1e-4, 0.9, 0.4), 'large': (1e-4, 0.9, 0.4), 'huge': (1e-4, 0.9, 0.4)},
    ('convnextv2', 512, 'sup'): {'base': (1e-4, 0.9, 0.4), 'large': (1e-4, 0.9, 0.4)},
    ('convnext', 512, 'sup'): {
        'tiny': (1e-4, 0.9, 0.4), 'small': (1e-4, 0.9, 0.3), 'base': (1e-4, 0.9, 0.4), 'large': (1e-4, 0.9, 0.4),
    },
    ('convnext', 640, 'in22k'): {'base': (1e-4, 0.9, 0.4), 'large': (1e-4, 0.9, 0.4)},
    ('swin', 512, 'simmim'): {'base': (1e-4, 0.95, 0.3), 'large': (1e-4, 0.95, 0.4)},
}  # fmt: skip
# Figures of the cards: box AP, mask AP (3x only), and mIoU of the multi-scale test
PUBLISHED_AP = {
    ('convnextv2', 'lsj', 'fcmae'): {'base': (52.9, 46.6), 'large': (54.4, 47.7), 'huge': (55.7, 48.9)},
    ('convnextv2', 'lsj', 'sup'): {'base': (51.0, 45.6), 'large': (51.5, 45.8)},
    ('convnext', 'lsj', 'sup'): {'base': (50.3, 44.9), 'large': (50.6, 45.1)},
    ('swin', 'lsj', 'simmim'): {'base': (52.3,), 'large': (53.8,)},
    ('convnext', 'ms-crop', 'sup'): {'tiny': (50.4, 43.7), 'small': (51.9, 45.0), 'base': (52.7, 45.6)},
    ('convnext', 'ms-crop', 'in22k'): {'base': (54.0, 46.9), 'large': (54.8, 47.6)},
}
PUBLISHED_MIOU = {
    ('convnextv2', 512, None): {'base': 52.1, 'large': 53.7, 'huge': 55.0},
    ('convnextv2', 640, None): {'huge': 57.0},
    ('convnextv2', 512, 'sup'): {'base': 50.5, 'large': 51.6},
    ('convnext', 512, 'sup'): {'tiny': 46.7, 'small': 49.6, 'base': 49.9, 'large': 50.5},
    ('convnext', 640, 'in22k'): {'base': 53.1, 'large': 53.7},
    ('swin', 512, 'simmim'): {'base': 52.8, 'large': 53.5},
}
DENSE = {name: name_parts(name) for name in LEAVES if name.startswith(('coco/', 'ade20k/'))}
COCO = {name: parts for name, parts in DENSE.items() if name.startswith('coco/')}
ADE20K = {name: parts for name, parts in DENSE.items() if name.startswith('ade20k/')}


def recipe(cfg):
    optim = cfg.optim_wrapper
    return optim.optimizer.lr, optim.paramwise_cfg.layer_decay_rate, cfg.model.backbone.drop_path_rate


def check_common(cfg, parts):
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.weight_decay, optimizer.betas) == ('AdamW', 0.05, (0.9, 0.999))
    assert 'clip_grad' not in cfg.optim_wrapper and cfg.optim_wrapper.type == 'mmcnx2.BF16OptimWrapper'
    grouping = 'stage_wise' if parts['folder'] == 'ade20k' else 'group'
    assert cfg.optim_wrapper.paramwise_cfg.grouping == (None if parts['family'] == 'swin' else grouping)
    backbone = cfg.model.backbone
    if parts['family'] == 'convnext':
        assert backbone.use_grn is False and backbone.layer_scale_init_value == 1.0
    elif parts['family'] == 'convnextv2':
        assert backbone.get('use_grn', True) and not backbone.get('layer_scale_init_value')


@pytest.mark.parametrize('name', COCO)
def test_detection(name):
    cfg, parts = parse(name), COCO[name]
    sizes = DETECTORS[parts['method'], parts['family'], parts['jitter'], parts['init']]
    assert recipe(cfg) == sizes[parts['arch']]
    check_common(cfg, parts)
    warmup, steps = cfg.param_scheduler
    assert (warmup.start_factor, warmup.begin, warmup.end, warmup.by_epoch) == (0.001, 0, 1000, False)
    assert (steps.milestones, steps.gamma) == ([8, 11] if parts['schedule'] == '1x' else [27, 33], 0.1)
    published = PUBLISHED_AP.get((parts['family'], parts['jitter'], parts['init']), {}).get(parts['arch'])
    if parts['family'] == 'convnext' and parts['method'] == 'mask-rcnn' and parts['jitter'] == 'ms-crop':
        published = (46.2, 41.7)
    expect = read_card(name)[1]['Expect']
    if published and parts['schedule'] == '3x':
        assert all(f'{kind} AP {value:.1f}' in expect for kind, value in zip(('box', 'mask'), published, strict=False))
    else:
        assert expect.startswith('not run yet')


@pytest.mark.parametrize('name', ADE20K)
def test_segmentation(name):
    cfg, parts = parse(name), ADE20K[name]
    key = parts['family'], int(parts['crop']), parts['init']
    assert recipe(cfg) == SEGMENTORS[key][parts['arch']]
    check_common(cfg, parts)
    warmup, decay = cfg.param_scheduler
    assert (warmup.start_factor, warmup.end, decay.type, decay.power, decay.eta_min) == (1e-6, 1500, 'PolyLR', 1.0, 0.0)
    side = int(parts['crop'])
    flips, scales = cfg.tta_pipeline[1].transforms[1], cfg.tta_pipeline[1].transforms[0]
    # V1's own numbers are of its own scales; V1 large at 512 px is a row of V2's paper
    v1 = parts['family'] == 'convnext' and (parts['arch'], side) != ('large', 512)
    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75) if v1 else (0.75, 0.875, 1.0, 1.125, 1.25)
    assert [step.scale for step in scales] == [(int(4 * side * ratio), int(side * ratio)) for ratio in ratios]
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    published = PUBLISHED_MIOU.get(key, {}).get(parts['arch'])
    expect = read_card(name)[1]['Expect']
    assert expect.startswith(f'mIoU {published} with' if published else 'not run yet')


def test_every_row_of_the_tables_has_its_config():
    found = {(p['method'], p['family'], p['jitter'], p['init'], p['arch']) for p in COCO.values()}
    assert found == {(*key, size) for key, sizes in DETECTORS.items() for size in sizes}
    found = {(p['family'], int(p['crop']), p['init'], p['arch']) for p in ADE20K.values()}
    assert found == {(*key, size) for key, sizes in SEGMENTORS.items() for size in sizes}


@pytest.mark.parametrize('name', [name for name, parts in DENSE.items() if parts['family'] != 'convnext'])
def test_values_that_nobody_published_are_called_our_choice(name):
    assert re.search(r'\b(ours|our choice)\b', read_card(name)[1]['Source'])


def test_bases_that_repeat_each_other_agree():
    """Two levels of inheritance at most: what two bases share is written twice, and compared here."""
    base = [name for name, parts in DENSE.items() if parts['family'] == 'convnextv2' and parts['arch'] == 'base']
    lsj, ms_crop = (
        parse(next(name for name in base if text in name)) for text in ('coco/mask-rcnn', 'coco/cascade')
    )
    for key in ('val_dataloader', 'val_evaluator', 'default_hooks', 'visualizer'):
        assert lsj[key] == ms_crop[key]
    for part in ('data_preprocessor', 'neck', 'rpn_head'):
        ours, theirs = dict(lsj.model[part]), dict(ms_crop.model[part])
        ours.pop('loss_bbox', None), theirs.pop('loss_bbox', None)  # L1 and smooth L1, as mmdetection has them
        assert ours == theirs
    small, large = (
        repr(parse(next(name for name in base if text in name))._cfg_dict.to_dict())
        for text in ('160k_ade20k-512x512', '160k_ade20k-640x640')
    )
    for a, b in ((2560, 2048), (640, 512), (426, 341)):
        large = large.replace(str(a), str(b))
    multi_scale = re.compile(r'\(\d+, \d+\)')
    assert multi_scale.sub('', large) == multi_scale.sub('', small)
