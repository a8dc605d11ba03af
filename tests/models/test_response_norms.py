"""What may stand in GRN's place: numbers worked by hand, gradients, layouts that agree, hidden pixels that stay hidden.

Most hand-worked cases are the map of GRN's own test: two channels over 1 x 2 positions, (3, 4) and (0, 1), whose L2
norms are 5 and 1, L1 norms 7 and 1, means 3.5 and 0.5.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn

from mmcnx2.models.fcmae.masking import random_visible
from mmcnx2.models.layers import (
    GRN,
    DenseLayout,
    LeakingLayout,
    MinkowskiLayout,
    VisibleLayout,
    build_response_norm,
)
from mmcnx2.models.layers.response_norms import AGGREGATIONS, NORMALISATIONS, RESPONSE_NORMS

VARIANTS = [
    dict(name='grn', aggregation=aggregation, normalisation=normalisation, residual=residual, affine=affine)
    for aggregation, normalisation, residual, affine in itertools.product(
        AGGREGATIONS, NORMALISATIONS, (True, False), (True, False)
    )
    if (aggregation, normalisation, residual, affine) != ('l2', 'divisive', True, True)
]
SUBSTITUTES = [
    dict(name='lrn', size=3, alpha=0.5),
    dict(name='bn'),
    dict(name='ln'),
    dict(name='se', reduction=2),
    dict(name='cbam', reduction=2),
]
PROBES = [*VARIANTS[::5], *SUBSTITUTES]


def called(setting):
    return '-'.join(str(value) for value in setting.values())


def two_channels():
    return torch.tensor([[[[3.0, 0.0], [4.0, 1.0]]]], dtype=torch.float64)


def built(num_channels=2, **setting):
    return build_response_norm(setting, num_channels).double()


# ---- numbers worked by hand


@pytest.mark.parametrize(
    ('parts', 'factors'),
    [  # N of the two channels
        (dict(aggregation='l1'), (7 / 4, 1 / 4)),
        (dict(aggregation='mean'), (3.5 / 2, 0.5 / 2)),
        (dict(normalisation='one_over_sum'), (1 / 6, 1 / 6)),
        (dict(normalisation='standardise'), (1, -1)),  # mean 3, standard deviation 2
        (dict(aggregation='l1', normalisation='one_over_sum'), (1 / 8, 1 / 8)),
        (dict(aggregation='mean', normalisation='one_over_sum'), (1 / 4, 1 / 4)),
        (dict(aggregation='l1', normalisation='standardise'), (1, -1)),
    ],
)
def test_aggregation_and_normalisation_by_hand(parts, factors):
    """With scale (2, 3) and shift (10, 20): x + scale * x * N + shift."""
    layer = built(name='grn', eps=0, **parts)
    layer.scale.data, layer.shift.data = torch.tensor([2.0, 3.0]).double(), torch.tensor([10.0, 20.0]).double()
    a, b = 1 + 2 * factors[0], 1 + 3 * factors[1]
    expected = torch.tensor([[[[3 * a + 10, 0 + 20], [4 * a + 10, 1 * b + 20]]]], dtype=torch.float64)
    torch.testing.assert_close(layer(two_channels(), DenseLayout()), expected)


def test_residual_and_affine_by_hand():
    """N is 5/3 and 1/3."""
    x = two_channels()
    without_residual = built(name='grn', eps=0, residual=False)
    assert without_residual(x, DenseLayout()).abs().max() == 0  # scale and shift start at zero
    without_residual.scale.data.fill_(2), without_residual.shift.data.fill_(1)
    expected = torch.tensor([[[[3 * 10 / 3 + 1, 1], [4 * 10 / 3 + 1, 2 / 3 + 1]]]], dtype=torch.float64)
    torch.testing.assert_close(without_residual(x, DenseLayout()), expected)
    without_affine = built(name='grn', eps=0, affine=False)
    assert list(without_affine.parameters()) == []
    expected = torch.tensor([[[[3 * 8 / 3, 0], [4 * 8 / 3, 4 / 3]]]], dtype=torch.float64)
    torch.testing.assert_close(without_affine(x, DenseLayout()), expected)
    neither = built(name='grn', eps=0, affine=False, residual=False)
    torch.testing.assert_close(neither(x, DenseLayout()), expected - x)


def test_a_fresh_variant_with_residual_is_the_identity():
    x = torch.randn(2, 3, 4, 6)
    for aggregation, normalisation in itertools.product(AGGREGATIONS, NORMALISATIONS):
        layer = build_response_norm(dict(name='grn', aggregation=aggregation, normalisation=normalisation), 6)
        assert torch.equal(layer(x, DenseLayout()), x)


def test_eps_of_each_normalisation():
    """On zeros only eps remains; standardising equal channels gives zeros and finite gradients."""
    for normalisation, factor in (('divisive', 0), ('one_over_sum', 2.0), ('standardise', 0)):
        layer = built(name='grn', normalisation=normalisation, eps=0.5, affine=False, residual=False)
        x = torch.zeros(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
        layer(x, DenseLayout()).sum().backward()
        torch.testing.assert_close(x.grad, torch.full_like(x, factor))


def test_lrn_by_hand():
    """Windows of 3 over the channels (1, 2, 3): sums of squares 5, 14, 13, divided by 3."""
    layer = built(3, name='lrn', size=3, alpha=6.0, beta=1.0, k=2.0)
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).view(1, 1, 1, 3)
    expected = torch.tensor([1 / (2 + 10), 2 / (2 + 28), 3 / (2 + 26)], dtype=torch.float64).view(1, 1, 1, 3)
    torch.testing.assert_close(layer(x, DenseLayout()), expected)


def test_lrn_equals_pytorchs():
    x = torch.randn(2, 3, 4, 7, dtype=torch.float64)
    expected = nn.LocalResponseNorm(5)(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(built(7, name='lrn')(x, DenseLayout()), expected)


def test_bn_by_hand():
    """Channel 0 has mean 3.5 and variance 0.25 (unbiased 0.5), channel 1 mean 0.5 and the same variance."""
    layer = built(name='bn', eps=0, momentum=0.1)
    layer.weight.data, layer.bias.data = torch.tensor([2.0, 1.0]).double(), torch.tensor([10.0, 0.0]).double()
    x = two_channels()
    expected = torch.tensor([[[[10 - 2, -1], [10 + 2, 1]]]], dtype=torch.float64)
    torch.testing.assert_close(layer(x, DenseLayout()), expected)
    torch.testing.assert_close(layer.running_mean, torch.tensor([0.35, 0.05], dtype=torch.float64))
    torch.testing.assert_close(layer.running_var, torch.tensor([0.95, 0.95], dtype=torch.float64))
    layer.eval()
    first = torch.tensor([10 + 2 * (3 - 0.35) / math.sqrt(0.95), (0 - 0.05) / math.sqrt(0.95)], dtype=torch.float64)
    torch.testing.assert_close(layer(x, DenseLayout())[0, 0, 0], first)
    torch.testing.assert_close(layer.running_mean, torch.tensor([0.35, 0.05], dtype=torch.float64))


def test_bn_equals_pytorchs_in_training_and_evaluation():
    ours, theirs = built(5, name='bn'), nn.BatchNorm2d(5).double()
    for _ in range(3):
        x = 2 + 3 * torch.randn(2, 3, 4, 5, dtype=torch.float64)
        expected = theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(ours(x, DenseLayout()), expected)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x, DenseLayout()), theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_ln_by_hand():
    """Position (3, 1): mean 2, standard deviation 1; position (4, 2) likewise."""
    layer = built(name='ln', eps=0)
    layer.weight.data, layer.bias.data = torch.tensor([2.0, 5.0]).double(), torch.tensor([10.0, 0.0]).double()
    x = torch.tensor([[[[3.0, 1.0], [4.0, 2.0]]]], dtype=torch.float64)
    torch.testing.assert_close(
        layer(x, DenseLayout()), torch.tensor([[[[12.0, -5.0], [12.0, -5.0]]]], dtype=torch.float64)
    )


def set_gate(layer):
    """One hidden unit: relu(mean_0 + 2 mean_1 - 1); gates sigmoid(unit) and sigmoid(-unit + 0.5)."""
    first, second = layer.gate[0], layer.gate[2]
    first.weight.data = torch.tensor([[1.0, 2.0]]).double()
    first.bias.data = torch.tensor([-1.0]).double()
    second.weight.data = torch.tensor([[1.0], [-1.0]]).double()
    second.bias.data = torch.tensor([0.0, 0.5]).double()


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def test_se_by_hand():
    """Means 3.5 and 0.5: the unit is 3.5; gates sigmoid(3.5) and sigmoid(-3)."""
    layer = built(name='se', reduction=2)
    set_gate(layer)
    a, b = sigmoid(3.5), sigmoid(-3)
    expected = torch.tensor([[[[3 * a, 0], [4 * a, b]]]], dtype=torch.float64)
    torch.testing.assert_close(layer(two_channels(), DenseLayout()), expected)


def test_cbam_by_hand():
    """Means give the unit 3.5, maxima (4, 1) give 5: channel gates sigmoid(8.5) and sigmoid(-8.5 + 2 * 0.5). The
    spatial kernel reads the maximum one column to the left, twice, and the mean here."""
    layer = built(name='cbam', reduction=2)
    set_gate(layer)
    layer.spatial.weight.data.zero_()
    layer.spatial.weight.data[0, 0, 3, 3] = 1.0
    layer.spatial.weight.data[0, 1, 3, 2] = 2.0
    layer.spatial.bias.data.fill_(0.25)
    a, b = sigmoid(8.5), sigmoid(-7.5)
    left, right = (3 * a, 0.0), (4 * a, b)
    gate_left = sigmoid(0.25 + sum(left) / 2)
    gate_right = sigmoid(0.25 + sum(right) / 2 + 2 * max(left))
    expected = [[value * gate_left for value in left], [value * gate_right for value in right]]
    torch.testing.assert_close(layer(two_channels(), DenseLayout()), torch.tensor([[expected]], dtype=torch.float64))


@pytest.mark.parametrize(('name', 'millions'), [('se', 109), ('cbam', 109), ('grn', 89)])
def test_parameters_of_base_are_the_papers(name, millions):
    """Table 2e. Where the gate stands and its reduction are not in the paper; these numbers say so."""
    with torch.device('meta'):
        blocks = [
            nn.ModuleList([build_response_norm(name, 4 * width) for _ in range(depth)])
            for depth, width in zip([3, 3, 27, 3], [128, 256, 512, 1024], strict=True)
        ]
    without = 88.7e6 - 0.132e6  # base with its classifier and GRN, less its GRN
    assert round((without + sum(p.numel() for stage in blocks for p in stage.parameters())) / 1e6) == pytest.approx(
        millions, abs=1
    )


# ---- properties of all


@pytest.mark.parametrize('setting', [*VARIANTS, *SUBSTITUTES], ids=called)
def test_gradients(setting, randomise):
    torch.manual_seed(0)
    layer = randomise(built(4, **setting))
    x = (1 + torch.rand(2, 2, 3, 4, dtype=torch.float64)).requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True) if list(layer.parameters()) else ((), ())

    def forward(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, DenseLayout()))

    assert torch.autograd.gradcheck(forward, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize('grn_over', ['image', 'batch'])
@pytest.mark.parametrize('setting', [*VARIANTS, *SUBSTITUTES], ids=called)
def test_visible_equals_masked_dense_equals_a_loop_over_images(setting, grn_over, randomise):
    """Values and gradients at seen positions; what stands at hidden positions of the dense map makes no difference."""
    torch.manual_seed(0)
    layer = randomise(built(6, **setting))
    visible = random_visible(2, (3, 4), 0.6)
    images = torch.randn(2, 6, 6, 8, dtype=torch.float64)
    seen_BHW = visible.repeat_interleave(2, 1).repeat_interleave(2, 2)
    other = torch.where(seen_BHW[:, None], images, 1000 * torch.randn_like(images))
    found = []
    for layout, source in ((VisibleLayout(visible, grn_over), images), (DenseLayout(visible, grn_over), other)):
        source = source.clone().requires_grad_()
        y = layout.to_map(layer(layout.from_images(source), layout, after_gelu=True))
        layer.zero_grad()
        (y * torch.arange(y.numel()).view(y.shape).sin()).sum().backward()
        grads = [source.grad, *(parameter.grad.clone() for parameter in layer.parameters())]
        found.append((y.detach(), grads))
    torch.testing.assert_close(*(y for y, _ in found))
    assert torch.equal(found[0][0].abs().sum(1) > 0, seen_BHW)
    for ours, theirs in zip(*(grads for _, grads in found), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('how', ['mean', 'max', 'l1', 'l2'])
@pytest.mark.parametrize('over', [None, 'image', 'batch'])
def test_pooling_equals_a_loop_over_seen_positions(how, over):
    """Negative values too: a hidden position is not a zero."""
    visible = random_visible(2, (3, 4), 0.6)
    images = torch.randn(2, 5, 6, 8, dtype=torch.float64) - 10
    seen = visible.repeat_interleave(2, 1).repeat_interleave(2, 2)
    parts = [image[:, mask] for image, mask in zip(images, seen, strict=True)]  # (C, positions)
    parts = parts if over == 'image' else [torch.cat(parts, 1)]
    gather = dict(
        mean=lambda x: x.mean(1), max=lambda x: x.amax(1), l1=lambda x: x.abs().sum(1), l2=lambda x: x.norm(dim=1)
    )
    expected = torch.stack([gather[how](part) for part in parts])
    for layout in (VisibleLayout(visible, 'batch'), DenseLayout(visible, 'batch')):
        torch.testing.assert_close(layout.pool(layout.from_images(images), how, over).flatten(1), expected)


@pytest.mark.parametrize(('name', 'alike'), [('se', True), ('cbam', True), ('lrn', True), ('ln', True), ('bn', False)])
def test_whether_other_images_of_the_batch_matter(name, alike, randomise):
    """Whatever grn_over says: gates stay within an image, batch norm does not."""
    settings = dict(reduction=2) if name in ('se', 'cbam') else {}
    layer = randomise(built(4, name=name, **settings))
    x = torch.randn(3, 4, 4, 4, dtype=torch.float64)
    other = torch.cat([x[:1], 5 * torch.randn(2, 4, 4, 4, dtype=torch.float64)])
    for grn_over in ('image', 'batch'):
        first, second = (layer(each, DenseLayout(grn_over=grn_over))[0] for each in (x, other))
        assert torch.allclose(first, second) == alike


@pytest.mark.parametrize('setting', PROBES, ids=called)
def test_after_gelu_is_gelu_and_then_the_layer(setting, randomise):
    layer = randomise(built(4, **setting))
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x, DenseLayout(), after_gelu=True), layer(F.gelu(x), DenseLayout()))
    assert not torch.allclose(layer(x, DenseLayout(), after_gelu=True), layer(x, DenseLayout()))


@pytest.mark.parametrize(('how', 'expected'), [('mean', 30), ('max', 30), ('l1', 30 * 4096), ('l2', 30 * 64)])
def test_pooling_is_in_float32_and_gives_the_dtype_back(how, expected):
    """Sums beyond float16's 65,504, and many small terms that bfloat16's 8 bits would lose."""
    visible = torch.ones(1, 2, 2, dtype=torch.bool)
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.full((1, 64, 64, 2), 30.0, dtype=dtype)
        for layout in (DenseLayout(), DenseLayout(visible)):
            pooled = layout.pool(x, how)
            assert pooled.dtype == torch.float32
            torch.testing.assert_close(pooled, torch.full((1, 1, 1, 2), float(expected)))


@pytest.mark.parametrize('setting', [*VARIANTS, *SUBSTITUTES], ids=called)
def test_autocast(setting, randomise):
    layer = randomise(build_response_norm(setting, 8))
    x = torch.randn(2, 8, 8, 8)
    with torch.autocast('cpu', torch.bfloat16):
        y = layer(x.bfloat16(), DenseLayout()).float()
    exact = layer(x, DenseLayout())
    assert F.cosine_similarity(y.flatten(), exact.flatten(), dim=0) > 0.999


@pytest.mark.parametrize('layout', ['visible', 'dense', 'leaking'])
@pytest.mark.parametrize('setting', SUBSTITUTES, ids=called)
def test_hidden_pixels_change_no_bit_in_pretraining(build_fcmae, micro, setting, layout):
    model = build_fcmae(dtype=torch.float32, neck=dict(response_norm=setting), response_norm=setting, layout=layout)
    images, visible = torch.randn(2, 3, 96, 96), random_visible(2, (3, 3), 0.6)
    hidden = ~visible.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]
    changed = torch.where(hidden, 1000 * torch.randn_like(images), images)
    assert torch.equal(model.reconstruct(images, visible), model.reconstruct(changed, visible))


@pytest.mark.parametrize('setting', [*PROBES, dict(name='grn')], ids=called)
def test_the_backbones_setting_acts_and_trains(micro, setting, randomise):
    """Its output differs from plain GRN's with the same other parameters, and every parameter gets a gradient."""
    cfg = dict(type='mmcnx2.ConvNeXtV2', arch=micro)
    model, plain = randomise(MODELS.build(dict(cfg, response_norm=setting))), randomise(MODELS.build(cfg))
    model.load_state_dict(
        {name: value for name, value in plain.state_dict().items() if '.grn.' not in name}, strict=False
    )
    images = torch.randn(2, 3, 64, 64)
    y = model(images)[0]
    assert (setting == dict(name='grn')) == torch.equal(y, plain(images)[0])
    (y * torch.randn_like(y)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_plain_grn_is_the_class_with_the_fast_kernels():
    for setting in ('grn', dict(name='grn'), dict(name='grn', aggregation='l2', residual=True)):
        assert type(build_response_norm(setting, 4)) is GRN
    assert build_response_norm(dict(name='grn', eps=1e-3), 4).eps == 1e-3
    assert set(GRN(4).state_dict()) == {'gamma', 'beta'}
    for setting in [*VARIANTS, *SUBSTITUTES]:  # so that no converter takes them for GRN
        assert not {'gamma', 'beta'} & set(build_response_norm(setting, 4).state_dict())


# ---- the leaking layout


def test_leaking_by_hand():
    """One channel, a row of three cells of 1 x 1, the middle one hidden; the kernel adds the two neighbours.

    In: (1, 0, 3). Sparse, twice: (0, -, 0), zeros. Leaking: (0, 4, 0), then (4, 0, 4): the hidden position carried a
    value to both sides."""
    conv = nn.Conv2d(1, 1, 3, padding=1, groups=1, bias=False)
    conv.weight.data.zero_()
    conv.weight.data[0, 0, 1, 0] = conv.weight.data[0, 0, 1, 2] = 1.0
    images, visible = torch.tensor([[[[1.0, 9.0, 3.0]]]]), torch.tensor([[[True, False, True]]])
    rows = {}
    for layout in (LeakingLayout(visible), DenseLayout(visible), VisibleLayout(visible)):
        x = layout.from_images(images)
        once = layout.conv(x, conv)
        twice = layout.conv(once, conv)
        rows[type(layout).__name__] = [layout.to_map(each).flatten().tolist() for each in (x, once, twice)]
    assert rows['LeakingLayout'] == [[1, 0, 3], [0, 4, 0], [4, 0, 4]]
    assert rows['DenseLayout'] == rows['VisibleLayout'] == [[1, 0, 3], [0, 0, 0], [0, 0, 0]]


def test_leaking_pretraining_fills_hidden_cells_and_sparse_does_not(build_fcmae):
    images, visible = torch.randn(2, 3, 96, 96, dtype=torch.float64), random_visible(2, (3, 3), 0.6)
    leaking, sparse = (build_fcmae(layout=layout).encode(images, visible) for layout in ('leaking', 'visible'))
    assert (leaking.abs().sum(1) > 0).all()
    assert torch.equal(sparse.abs().sum(1) > 0, visible)
    seen = visible[:, None].expand_as(sparse)
    assert not torch.allclose(leaking[seen], sparse[seen])


def test_leaking_sums_over_every_position():
    visible = torch.tensor([[[True, False]]])
    layout = LeakingLayout(visible)
    x = torch.tensor([[[[3.0], [4.0]]]])
    assert layout.channel_norms(x).item() == 5 and layout.pool(x, 'mean').item() == 3.5
    assert layout.num_grn_groups(x) == 1


# ---- mistakes


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        ('gn', 'its name must be one of grn, lrn, bn, ln, se, cbam'),
        (dict(aggregation='l1'), 'its name must be one of'),
        (dict(name='grn', reduction=4), "'grn' has no setting reduction; it has aggregation, normalisation"),
        (dict(name='grn', aggregation='max'), "aggregation='max' is not known; choose one of l1, l2, mean"),
        (dict(name='grn', normalisation='softmax'), "normalisation='softmax' is not known"),
        (dict(name='lrn', size=4), 'size=4'),
        (dict(name='se', reduction=64), 'reduction=64: choose a number from 1 to the 32'),
        (dict(name='cbam', reduction=0), 'reduction=0'),
    ],
)
def test_wrong_settings_say_what_is_allowed(micro, setting, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch=micro, response_norm=setting))


def test_a_setting_that_could_not_act_is_refused(micro):
    for allowed in ('grn', dict(name='grn')):
        MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch=micro, use_grn=False, response_norm=allowed))
    with pytest.raises(ValueError, match='leaves nothing where'):
        MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch=micro, use_grn=False, response_norm='se'))


def test_minkowski_pools_as_the_visible_layout_and_refuses_cbam():
    pytest.importorskip('MinkowskiEngine')
    visible = random_visible(2, (3, 4), 0.6)
    layout = MinkowskiLayout(visible)
    x = layout.from_images(torch.randn(2, 6, 6, 8))
    assert torch.equal(layout.pool(x, 'max', 'batch'), VisibleLayout(visible).pool(x, 'max', 'batch'))
    with pytest.raises(ValueError, match='depthwise'):
        build_response_norm(dict(name='cbam', reduction=2), 6)(x, layout)


def test_every_name_is_covered_here():
    assert {setting['name'] for setting in [*VARIANTS, *SUBSTITUTES]} == set(RESPONSE_NORMS)
