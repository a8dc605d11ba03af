"""The layout through MinkowskiEngine against the visible and the dense one, and two mistakes of the official code.

Where the package is missing the tests that need it are skipped; `make test-minkowski` builds and installs it and runs
this file, tests/models/test_official_parity.py and tests/test_build_minkowski.py. Last run: 2026-11-25, all 57 passed,
with MinkowskiEngine 0.5.4 (compiled by GCC 12.2 with OpenBLAS 0.3.21), torch 2.12.1, Python 3.11.7, on the CPU.
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from mmcnx2.models.fcmae.masking import random_visible
from mmcnx2.models.layers import MinkowskiLayout, VisibleLayout

PACKAGE = Path(__file__).parents[2] / 'mmcnx2'
needs_engine = pytest.mark.skipif(
    find_spec('MinkowskiEngine') is None,
    reason='MinkowskiEngine is not installed: `make test-minkowski` builds it and runs this',
)
GEOMETRIES = [  # num_images, in_channels, patch_size, H, W
    (1, 3, 32, 128, 96),
    (3, 3, 32, 64, 160),
    (3, 4, 64, 192, 128),
]


def everything(model, images, visible):
    """{name: tensor} of features, loss and the gradients of the loss by images and parameters."""
    images = images.clone().requires_grad_()
    features = model.encode(images, visible)
    loss = model.loss(images, visible=visible)['loss']
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, (images, *parameters))
    return {
        'features': features.detach(),
        'loss': loss.detach(),
        **dict(zip(('images', *names), gradients, strict=True)),
    }


def assert_equal(got, expected, tolerance=1e-9):
    """Each tensor within `tolerance` of its maximum."""
    assert got.keys() == expected.keys()
    for name in got:
        assert got[name].shape == expected[name].shape, name
        largest = expected[name].abs().max()
        assert largest > 0, f'{name} is zero: nothing is compared'
        assert (got[name] - expected[name]).abs().max() <= tolerance * largest, name


@pytest.fixture
def setting():
    """Masks, values of their visible cells and a depthwise 5 x 3 convolution without any symmetry."""
    torch.manual_seed(0)
    visible = random_visible(2, (3, 4), 0.6)
    values = torch.randn(2, 4, 4, 4, 5, dtype=torch.float64)
    conv = nn.Conv2d(5, 5, (5, 3), padding=(2, 1), groups=5).double()
    return visible, values, conv


@needs_engine
@pytest.mark.parametrize('grn_over', ['image', 'batch'])
@pytest.mark.parametrize(('num_images', 'in_channels', 'patch_size', 'H', 'W'), GEOMETRIES)
def test_the_three_layouts_agree(build_fcmae, grn_over, num_images, in_channels, patch_size, H, W):
    settings = dict(in_channels=in_channels, patch_size=patch_size, grn_over=grn_over)
    torch.manual_seed(0)
    images = torch.randn(num_images, in_channels, H, W, dtype=torch.float64)
    visible = random_visible(num_images, (H // patch_size, W // patch_size), 0.6)
    got = everything(build_fcmae(layout='minkowski', **settings), images, visible)
    for layout in ('visible', 'dense'):
        assert_equal(got, everything(build_fcmae(layout=layout, **settings), images, visible))


@needs_engine
@pytest.mark.parametrize(
    'change',
    [
        dict(),
        dict(kernel_size=(5, 3), padding=(2, 1)),
        dict(bias=False),
        dict(kernel_size=3, padding='same'),
        dict(kernel_size=(3, 5), padding=(4, 2), dilation=(4, 1)),
    ],
)
def test_convolutions_of_any_odd_kernel_and_dilation(setting, change):
    visible, values, _ = setting
    conv = nn.Conv2d(5, 5, **{**dict(kernel_size=7, padding=3, groups=5), **change}).double()

    def run(layout):
        x = values.clone().requires_grad_()
        y = layout.conv(x, conv)
        weights = torch.arange(y.numel(), dtype=y.dtype).view_as(y).cos()
        gradients = torch.autograd.grad((y * weights).sum(), (x, *conv.parameters()))
        return dict(enumerate((y.detach(), *gradients)))

    assert_equal(run(MinkowskiLayout(visible)), run(VisibleLayout(visible)), 1e-12)


@needs_engine
def test_gradients_of_the_layout_itself(setting):
    visible, values, conv = setting
    layout = MinkowskiLayout(visible)
    inputs = (values.requires_grad_(), conv.weight, conv.bias)  # gradcheck varies them in place
    assert torch.autograd.gradcheck(lambda x, *_: layout.to_map(layout.conv(x, conv)), inputs, fast_mode=True)


@needs_engine
def test_pixels_and_norms_are_those_of_the_visible_layout(setting):
    visible, values, _ = setting
    images = torch.randn(2, 3, 12, 16)
    for grn_over in ('image', 'batch'):
        ours, other = MinkowskiLayout(visible, grn_over), VisibleLayout(visible, grn_over)
        assert torch.equal(ours.from_images(images), other.from_images(images))
        assert torch.equal(ours.channel_norms(values), other.channel_norms(values))
        assert ours.num_grn_groups(values) == other.num_grn_groups(values)
    assert torch.equal(ours.to_map(values), other.to_map(values))
    assert ours.to_map(values).is_contiguous()


@needs_engine
def test_the_map_keeps_its_size_where_the_official_one_shrinks(build_fcmae):
    """The last row and the last column of cells are hidden in every image: `dense()` ends at the last point it has."""
    import MinkowskiEngine as ME

    torch.manual_seed(0)
    visible = torch.zeros(2, 3, 4, dtype=torch.bool)
    visible[0, :2, 0] = visible[1, 0, 1:3] = True
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    model = build_fcmae(layout='minkowski')
    features = model.encode(images, visible)
    official = ME.to_sparse(features).dense()[0]  # as the end of the official encoder
    assert features.shape == (2, 32, 3, 4)
    assert official.shape == (2, 32, 2, 3)
    assert torch.equal(official, features[:, :, :2, :3])
    expected = build_fcmae(layout='dense')
    assert_equal(everything(model, images, visible), everything(expected, images, visible))
    with pytest.raises(RuntimeError, match='must match'):  # what the decoder met: features times (1 - mask)
        official * visible[:, None]


@needs_engine
def test_visible_positions_of_zeros_stay_where_the_official_code_drops_them(setting):
    import MinkowskiEngine as ME

    visible, values, conv = setting
    values[0, 1] = 0  # a whole cell of 16 positions
    values[1, 2, 3, 0] = 0  # and one position
    layout = MinkowskiLayout(visible)
    assert len(ME.to_sparse(layout.to_map(values)).F) == 2 * 4 * 16 - 17
    y = layout.conv(values, conv)
    torch.testing.assert_close(y, VisibleLayout(visible).conv(values, conv))
    assert (y[0, 1].abs().amax(-1) > 0).all()


@needs_engine
def test_hidden_pixels_change_no_bit_of_the_features(build_fcmae):
    model = build_fcmae(dtype=torch.float32, layout='minkowski')
    images, visible = torch.randn(2, 3, 96, 128), random_visible(2, (3, 4), 0.6)
    hidden = ~visible.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]
    changed = torch.where(hidden, 1000 * torch.randn_like(images), images)
    assert torch.equal(model.encode(images, visible), model.encode(changed, visible))


@needs_engine
@pytest.mark.parametrize('kernels', ['auto', 'torch'])
def test_our_kernels_agree_with_the_library(build_fcmae, kernels):
    """In float32, which the C++ kernels compute: with 'auto' the visible layout convolves by them."""
    torch.manual_seed(0)
    images, visible = torch.randn(2, 3, 96, 128), random_visible(2, (3, 4), 0.6)
    expected = build_fcmae(dtype=torch.float32, layout='minkowski')
    expected.backbone.kernels = 'torch'
    expected = everything(expected, images, visible)
    for layout in ('visible', 'minkowski'):
        model = build_fcmae(dtype=torch.float32, layout=layout)
        model.backbone.kernels = kernels
        assert_equal(everything(model, images, visible), expected, 1e-4)


@needs_engine
def test_the_library_draws_no_random_numbers_of_ours(setting):
    """It fills parameters that are not used; with drop path a run must not depend on that."""
    visible, values, conv = setting
    before = torch.get_rng_state()
    MinkowskiLayout(visible).conv(values, conv)
    assert torch.equal(torch.get_rng_state(), before)


@needs_engine
def test_recomputed_blocks_give_the_same_gradients(build_fcmae):
    images, visible = torch.randn(2, 3, 96, 96, dtype=torch.float64), random_visible(2, (3, 3), 0.6)
    model = build_fcmae(layout='minkowski')
    expected = everything(model, images, visible)
    model.backbone.with_cp = True
    assert_equal(everything(model, images, visible), expected, 1e-12)


@needs_engine
def test_narrow_numbers_are_summed_in_float32(setting, build_fcmae):
    visible, values, conv = setting
    layout, narrow = MinkowskiLayout(visible), values.bfloat16()
    conv.bfloat16().float()  # weights that bfloat16 can hold, in float32
    expected = layout.conv(narrow.float(), conv)
    assert torch.equal(layout.conv(narrow, conv), expected)  # as under autocast
    assert torch.equal(layout.conv(narrow, conv.bfloat16()), expected.bfloat16())

    images, masks = torch.randn(2, 3, 96, 96), random_visible(2, (3, 3), 0.6)
    model = build_fcmae(dtype=torch.float32, layout='minkowski')
    exact = model.loss(images, visible=masks)['loss'].item()
    with torch.autocast('cpu', torch.bfloat16):
        loss = model.loss(images, visible=masks)['loss']
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@needs_engine
@pytest.mark.parametrize(
    'settings',
    [
        dict(kernel_size=3, padding=1),
        dict(kernel_size=3, padding=1, stride=2, groups=5),
        dict(kernel_size=3, padding=0, groups=5),
        dict(kernel_size=4, padding='same', groups=5),
    ],
)
def test_other_convolutions_are_refused(setting, settings):
    visible, values, _ = setting
    with pytest.raises(ValueError, match=r'knows depthwise convolutions of odd kernels.*Conv2d\(5, 5'):
        MinkowskiLayout(visible).conv(values, nn.Conv2d(5, 5, **settings).double())


@needs_engine
def test_wrong_masks_say_what_is_allowed():
    with pytest.raises(ValueError, match="on the CPU only, and the cells are on 'meta'"):
        MinkowskiLayout(torch.ones(1, 2, 2, dtype=torch.bool, device='meta'))
    with pytest.raises(ValueError, match=r'see \[1, 2\]'):
        MinkowskiLayout(torch.tensor([[[True, False]], [[True, True]]]))
    with pytest.raises(ValueError, match="grn_over='cell' is not known"):
        MinkowskiLayout(torch.ones(1, 2, 2, dtype=torch.bool), 'cell')


def test_without_the_package_the_model_says_how_to_get_it(build_fcmae, monkeypatch):
    monkeypatch.setitem(sys.modules, 'MinkowskiEngine', None)
    with pytest.raises(ImportError, match=r"layout='minkowski' needs .* is not installed: `make minkowski`"):
        build_fcmae(layout='minkowski')
    with pytest.raises(ImportError, match='make minkowski'):
        MinkowskiLayout(torch.ones(1, 2, 2, dtype=torch.bool))


def test_a_package_that_does_not_import_is_told_apart_from_none(build_fcmae, monkeypatch, tmp_path):
    (tmp_path / 'MinkowskiEngine.py').write_text("raise ImportError('libopenblas.so.0: no such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'MinkowskiEngine', raising=False)
    with pytest.raises(ImportError, match=r'does not import here \(libopenblas.so.0: no such file\): `make minkowski`'):
        build_fcmae(layout='minkowski')


@pytest.mark.parametrize('layout', ['visible', 'dense'])
def test_the_other_layouts_never_ask_for_the_package(build_fcmae, monkeypatch, layout):
    monkeypatch.setitem(sys.modules, 'MinkowskiEngine', None)
    loss = build_fcmae(layout=layout).loss(torch.randn(1, 3, 64, 96, dtype=torch.float64))['loss']
    assert loss.isfinite()


def test_one_file_imports_the_package_and_only_when_asked():
    pattern = re.compile(r'^( *)(?:import|from) MinkowskiEngine|import_module\(.MinkowskiEngine', re.MULTILINE)
    found = [
        (path.name, hit[1]) for path in sorted(PACKAGE.rglob('*.py')) for hit in pattern.finditer(path.read_text())
    ]
    assert [name for name, _ in found] == ['minkowski_layout.py']
    assert found[0][1], 'it is imported at the top of the file, with or without need'
