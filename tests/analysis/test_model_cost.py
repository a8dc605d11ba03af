"""Parameters and multiply-adds: equal to the published figures, to formulas worked by hand, and to a real run."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch.utils.flop_counter import FlopCounterMode

import mmcnx2
from mmcnx2.analysis.model_cost import build_on_meta, input_shape_of, model_cost
from mmcnx2.analysis.published_costs import PUBLISHED, published_cost
from mmcnx2.engine.config_card import read_card
from mmcnx2.engine.config_index import config_names, index_entry

ROOT = Path(__file__).parents[2]
SEGMENTOR = 'ade20k/upernet_convnextv2-base_8xb2-amp-160k_ade20k-512x512.py'
DETECTOR = 'coco/mask-rcnn_convnextv2-base_fpn_8xb4-amp-lsj-3x-fcmae_coco.py'
CASCADE = 'coco/cascade-mask-rcnn_convnextv2-base_fpn_8xb2-amp-ms-crop-3x_coco.py'
PRETRAINING = 'pretrain/fcmae_convnextv2-atto_8xb512-amp-1600e_in1k.py'
SWIN = 'coco/mask-rcnn_swin-base_fpn_8xb4-amp-lsj-3x-simmim_coco.py'
CLASSIFIER = dict(
    type='ImageClassifier',
    backbone=dict(type='mmcnx2.ConvNeXtV2', arch='pico', gap_before_final_norm=True),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=512),
)


def config(name: str) -> Config:
    return Config.fromfile(mmcnx2.configs_dir() / name)


def classifier(**model) -> Config:
    return Config(dict(default_scope='mmpretrain', model={**CLASSIFIER, **model}))


@pytest.mark.parametrize('name', [name for name in config_names() if published_cost(name)])
def test_costs_equal_the_published_ones(name):
    cost, published = index_entry(name).cost, published_cost(name)
    assert cost.flops / 1e9 == pytest.approx(published.gflops, rel=0.02)
    if not cost.attention_flops:  # the published counter sees no attention; without it half of a per cent holds
        assert cost.flops / 1e9 == pytest.approx(published.gflops, rel=0.005)
    else:
        assert (cost.flops - cost.attention_flops) / 1e9 == pytest.approx(published.gflops, rel=0.002)
    if published.million_params:
        assert cost.params / 1e6 == pytest.approx(published.million_params, rel=0.01)


def test_every_published_figure_is_compared_and_cards_agree_with_the_table():
    names = config_names()
    for pattern, published in PUBLISHED.items():
        assert any(published_cost(name) is published for name in names), f'no config has the cost of {pattern}'
    for name in names:
        card = read_card(mmcnx2.configs_dir() / name)
        own = card.expect.split('; with our code')[0]
        if card.published:
            gflops, params = re.search(r'([\d.]+)G FLOPs', own), re.search(r'([\d.]+)M params', own)
            assert not gflops or float(gflops[1]) == published_cost(name).gflops, name
            assert not params or float(params[1]) == published_cost(name).million_params, name


def test_a_classifier_by_hand():
    depths, widths, side = [2, 2, 6, 2], [64, 128, 256, 512], 224
    flops = params = 0
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        positions = (side // 4 // 2**stage) ** 2
        entry = 3 * 16 * width if stage == 0 else 4 * widths[stage - 1] * width
        flops += positions * (entry + depth * (49 * width + 8 * width**2))
        norms = 2 * width if stage == 0 else 2 * widths[stage - 1]
        block = 49 * width + width + 2 * width + 8 * width**2 + 5 * width + 2 * 4 * width
        params += entry + width + norms + depth * block
    head = 512 * 1000
    cost = model_cost(classifier(), (side, side))
    assert cost.flops_by_part == dict(backbone=flops, head=head)
    assert cost.flops == flops + head and cost.attention_flops == 0
    assert cost.params == params + 2 * 512 + head + 1000


def test_a_detector_runs_its_heads_on_1000_and_100_rois_and_a_cascade_has_three():
    single, cascade = index_entry(DETECTOR).cost, index_entry(CASCADE).cost
    assert single.input_shape == cascade.input_shape == (800, 1280)
    shared = 256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 4 * 80)
    assert single.flops_by_part['bbox_head'] == 1000 * shared
    convolved = 4 * 9 * 256 * 256 * 49 + 256 * 49 * 1024 + 1024 * (81 + 4 * 80)
    assert cascade.flops_by_part['bbox_head'] == 3 * 1000 * convolved
    mask = 4 * 9 * 256 * 256 * 14**2 + 256 * 4 * 256 * 14**2 + 256 * 80 * 28**2
    assert single.flops_by_part['mask_head'] == 100 * mask
    assert cascade.flops_by_part['mask_head'] == 3 * 100 * mask
    levels = [(800 // stride, 1280 // stride) for stride in (4, 8, 16, 32)] + [(13, 20)]
    positions = sum(height * width for height, width in levels)
    assert single.flops_by_part['rpn_head'] == positions * (9 * 256 * 256 + 256 * 3 * 5)


def test_only_the_auxiliary_head_of_a_segmentor_is_not_run():
    cfg = config(SEGMENTOR)
    whole = model_cost(cfg)
    assert whole.input_shape == (512, 2048) and set(whole.flops_by_part) == {'backbone', 'decode_head'}
    del cfg.model['auxiliary_head']
    without = model_cost(cfg)
    assert without.flops == whole.flops and without.params < whole.params


def test_visible_cells_save_everything_but_the_depthwise_convolutions():
    cfg = config(PRETRAINING)
    visible = model_cost(cfg)
    cfg.model.layout = 'dense'
    dense = model_cost(cfg)
    depthwise = sum(
        depth * 49 * width * (56 // 2**stage) ** 2
        for stage, (depth, width) in enumerate(zip([2, 2, 6, 2], [40, 80, 160, 320], strict=True))
    )
    pointwise = dense.flops_by_part['backbone'] - depthwise
    assert visible.flops_by_part['backbone'] == depthwise + pointwise * 19 // 49
    assert {**visible.flops_by_part, 'backbone': 0} == {**dense.flops_by_part, 'backbone': 0}


def test_a_real_pretraining_step_costs_the_same():
    """With PyTorch's convolutions, which go over the whole map; the C++ kernels leave its hidden positions out."""
    cfg = config(PRETRAINING)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    images = torch.randn(1, 3, 96, 64)
    flops = {}
    for kernels in ('torch', 'cpp'):
        model.backbone.kernels = model.neck.kernels = kernels
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.loss(images)
        flops[kernels] = counter.get_total_flops()
    assert flops['torch'] == 2 * model_cost(cfg, (96, 64)).flops
    hidden_cells, taps = 4, 49
    values = [
        depth * channels * (8 >> stage) ** 2
        for stage, (depth, channels) in enumerate(zip(model.backbone.depths, model.backbone.channels, strict=True))
    ]
    assert flops['torch'] - flops['cpp'] == 2 * taps * hidden_cells * sum(values)


def test_a_real_segmentor_costs_the_same():
    cfg = config('demo/upernet_convnextv2-atto_demo.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode_decode(torch.randn(1, 3, 64, 96), [dict(img_shape=(64, 96))])
    assert counter.get_total_flops() == 2 * model_cost(cfg, (64, 96)).flops


def test_counting_leaves_config_scope_and_random_numbers_alone():
    cfg = config(SWIN)
    before, generator = cfg.pretty_text, torch.get_rng_state()
    assert model_cost(cfg).attention_flops > 0
    assert cfg.pretty_text == before and DefaultScope.get_current_instance() is None
    model_cost(config(PRETRAINING))
    assert torch.equal(torch.get_rng_state(), generator)


def test_nothing_is_allocated():
    cfg = config('imagenet/convnextv2-huge_32xb32-amp-50e-fcmae_in1k.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_on_meta(cfg.model)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]) and not model.training


def test_image_sizes_come_from_the_config():
    assert input_shape_of(config('demo/mask-rcnn_convnextv2-atto_demo.py')) == (128, 128)
    assert index_entry('ade20k/upernet_convnextv2-huge_16xb1-amp-160k_ade20k-640x640.py').cost.input_shape == (
        640,
        2560,
    )
    assert index_entry(PRETRAINING).cost.input_shape == (224, 224)
    crop = dict(type='RandomResizedCrop', scale=(128, 256))  # (height, width), where Resize has (width, height)
    wide = Config(dict(model={}, train_dataloader=dict(dataset=dict(pipeline=[crop]))))
    assert input_shape_of(wide) == (128, 256)
    more_bands = classifier(backbone=dict(CLASSIFIER['backbone'], in_channels=7))
    extra = model_cost(more_bands, (64, 64)).flops - model_cost(classifier(), (64, 64)).flops
    assert extra == 4 * 16 * 64 * 16**2
    with pytest.raises(ValueError, match=r'train_dataloader has no RandomResizedCrop .* give input_shape'):
        model_cost(classifier())


def test_a_model_of_another_kind_is_refused():
    cfg = Config(dict(model=dict(type='mmcnx2.ConvNeXtV2', arch='atto')))
    with pytest.raises(ValueError, match=r'cost of mmcnx2\.ConvNeXtV2 cannot be counted; known are'):
        model_cost(cfg, (64, 64))


# ---- the tool


@pytest.fixture
def tool(monkeypatch, capsys):
    """The tool, called with words; answers (exit code, stdout, stderr)."""

    def call(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', ['model_cost.py', *map(str, words)])
        code = 0
        try:
            runpy.run_path(str(ROOT / 'tools' / 'benchmark' / 'model_cost.py'), run_name='__main__')
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


def test_the_tool_writes_what_it_prints(tool, tmp_path):
    table, figures = tmp_path / 'new' / 'cost.md', tmp_path / 'cost.json'
    code, out, _ = tool(SWIN, f'configs/{PRETRAINING}', '--markdown', table, '--json', figures)
    assert code == 0
    assert re.search(r'^coco/mask-rcnn_swin-base\S+ +800 x 1280 +107\.1M +- +503\.0 +497 +\+1\.21%$', out, re.MULTILINE)
    assert 'mask-rcnn_swin-base 496.1 (published 497)' in out and '1000 RoIs' in out
    written = table.read_text()
    assert '| 503.0 | 497 | +1.21% |' in written and f'torch {torch.__version__}' in written
    assert '| pretrain/fcmae_convnextv2-atto_8xb512-amp-1600e_in1k | 0.23 | 0.55 | 0.420 | 0.19 |' in written
    detector, pretraining = json.loads(figures.read_text())['configs']
    assert detector['flops'] == sum(detector['flops_by_part'].values())
    assert pretraining['dense_encoder_flops'] > pretraining['flops']
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['cost.json', 'cost.md', 'new']


def test_another_size_has_no_published_figure(tool):
    _, out, _ = tool(SEGMENTOR, '--size', 64, 128)
    assert re.search(r'64 x 128 +122\.2M +- +\d', out)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['none.py'], "error: Config 'none.py' does not exist"),
        ([ROOT / 'configs' / '_base_' / 'schedules' / 'coco_1x.py'], r'coco_1x\.py has no `model`'),
        ([PRETRAINING, '--size', '65', '64'], r'error: .*in1k\.py: .*65 x 64 px: both must be multiples of patch_size'),
    ],
)
def test_a_mistake_is_one_line(tool, words, message):
    code, _, err = tool(*words)
    assert code == 1 and re.search(message, err) and 'Traceback' not in err
