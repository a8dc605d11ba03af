"""The algorithm: equal layouts, no leak from hidden pixels, every setting seen to act."""

import math

import pytest
import torch
from mmengine.registry import MODELS

from mmcnx2.models.fcmae.masking import random_visible

GEOMETRIES = [  # in_channels, patch_size, H, W
    (3, 32, 128, 96),
    (1, 32, 64, 160),
    (12, 64, 192, 128),
    (4, 64, 128, 256),
    (2, 96, 192, 192),
    (7, 32, 96, 96),
]


def loss_and_gradients(model, images, visible):
    model.zero_grad()
    loss = model.loss(images, visible=visible)['loss']
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize('grn_over', ['image', 'batch'])
@pytest.mark.parametrize(('in_channels', 'patch_size', 'H', 'W'), GEOMETRIES)
def test_visible_layout_equals_dense_layout(build_fcmae, grn_over, in_channels, patch_size, H, W):
    settings = dict(in_channels=in_channels, patch_size=patch_size, grn_over=grn_over)
    fast, slow = build_fcmae(**settings), build_fcmae(layout='dense', **settings)
    images = torch.randn(3, in_channels, H, W, dtype=torch.float64)
    visible = random_visible(3, (H // patch_size, W // patch_size), 0.6)
    torch.testing.assert_close(fast.encode(images, visible), slow.encode(images, visible), rtol=1e-9, atol=1e-11)
    (loss_a, grads_a), (loss_b, grads_b) = (loss_and_gradients(model, images, visible) for model in (fast, slow))
    torch.testing.assert_close(loss_a, loss_b, rtol=1e-10, atol=0)
    for name in grads_a:
        largest = grads_b[name].abs().max()
        assert (grads_a[name] - grads_b[name]).abs().max() <= 1e-9 * largest, name


@pytest.mark.parametrize('layout', ['visible', 'dense'])
@pytest.mark.parametrize(('in_channels', 'patch_size', 'H', 'W'), GEOMETRIES[:3])
def test_hidden_pixels_change_no_bit_of_the_features(build_fcmae, layout, in_channels, patch_size, H, W):
    model = build_fcmae(dtype=torch.float32, in_channels=in_channels, patch_size=patch_size, layout=layout)
    images = torch.randn(2, in_channels, H, W)
    visible = random_visible(2, (H // patch_size, W // patch_size), 0.6)
    hidden = ~visible.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, None]
    changed = torch.where(hidden, 1000 * torch.randn_like(images), images)
    assert not torch.equal(images, changed)
    assert torch.equal(model.encode(images, visible), model.encode(changed, visible))
    assert torch.equal(model.reconstruct(images, visible), model.reconstruct(changed, visible))


def test_visible_pixels_do_change_the_features(build_fcmae):
    model = build_fcmae()
    images = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    visible = torch.eye(3, dtype=torch.bool)[None]
    changed = images.clone()
    changed[..., :32, :32] += 1
    assert not torch.equal(model.encode(images, visible), model.encode(changed, visible))


def test_features_are_zero_in_hidden_cells_and_only_there(build_fcmae):
    model = build_fcmae(patch_size=64)
    visible = random_visible(2, (2, 3), 0.5)
    features = model.encode(torch.randn(2, 3, 128, 192, dtype=torch.float64), visible)
    seen = visible.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(features.abs().sum(1) > 0, seen)


@pytest.mark.parametrize(('grn_over', 'alike'), [('image', True), ('batch', False)])
def test_whether_neighbours_in_the_batch_matter(build_fcmae, grn_over, alike):
    model = build_fcmae(dtype=torch.float32, grn_over=grn_over)
    images = torch.randn(3, 3, 96, 96)
    visible = random_visible(3, (3, 3), 0.6)
    other = torch.cat([images[:1], 5 * torch.randn(2, 3, 96, 96)])
    assert torch.equal(model.encode(images, visible)[0], model.encode(other, visible)[0]) == alike


@pytest.mark.parametrize('layout', ['visible', 'dense'])
def test_first_loss_of_a_fresh_model_is_about_one(layout):
    """Fresh weights predict almost nothing, and a normalised cell has variance (n - 1) / n. A double initialisation
    gave 16."""
    torch.manual_seed(0)
    model = MODELS.build(dict(type='mmcnx2.FCMAE', backbone=dict(type='mmcnx2.ConvNeXtV2', arch='atto'), layout=layout))
    losses = [model.loss(torch.randn(4, 3, 96, 128))['loss'].item() for _ in range(3)]
    assert all(0.8 < loss < 1.3 for loss in losses), losses


def test_every_parameter_gets_a_gradient(build_fcmae):
    model = build_fcmae()
    _, gradients = loss_and_gradients(
        model, torch.randn(2, 3, 96, 96, dtype=torch.float64), random_visible(2, (3, 3), 0.6)
    )
    assert [name for name, gradient in gradients.items() if gradient.abs().max() == 0] == []


def test_the_mean_of_each_cell_scores_one(build_fcmae):
    """Predicting zero in normalised space is predicting each cell's mean: (n - 1) / n = 3071 / 3072."""
    model = build_fcmae()
    torch.nn.init.zeros_(model.head.pred.weight)
    torch.nn.init.zeros_(model.head.pred.bias)
    loss = model.loss(torch.randn(2, 3, 96, 96, dtype=torch.float64))['loss'].item()
    assert loss == pytest.approx(3071 / 3072, abs=1e-4)


def test_masks_follow_the_seeds_of_the_samples(build_fcmae):
    model = build_fcmae()
    images = torch.randn(3, 3, 128, 128, dtype=torch.float64)
    samples = [dict(sample_seed=seed) for seed in (11, 12, 13)]
    torch.manual_seed(0)
    visible = model.draw_visible(images, samples)
    assert torch.equal(visible, random_visible(3, (4, 4), 0.6, seeds=[11, 12, 13]))
    assert torch.equal(model.draw_visible(images.flip(0), samples[::-1]), visible.flip(0))
    assert model.loss(images, samples)['loss'] == model.loss(images, visible=visible)['loss']
    assert not torch.equal(model.draw_visible(images), model.draw_visible(images))  # without seeds: torch's generator


def test_settings_act(build_fcmae):
    """Each setting, flipped, changes the loss of the same parameters on the same images and masks."""
    images, visible = torch.randn(2, 3, 128, 128, dtype=torch.float64), random_visible(2, (4, 4), 0.6)
    default = build_fcmae().loss(images, visible=visible)['loss'].item()
    flipped = {
        'norm_pix': build_fcmae(head=dict(type='mmcnx2.PixelReconstructionHead', norm_pix=False)),
        'grn_over': build_fcmae(grn_over='batch'),
        'decoder_depth': build_fcmae(neck=dict(decoder_depth=2)),
    }
    assert {
        name for name, model in flipped.items() if model.loss(images, visible=visible)['loss'].item() == default
    } == set()
    assert [int(build_fcmae(mask_ratio=ratio).draw_visible(images).sum()) for ratio in (0.25, 0.75)] == [24, 8]


def test_bf16_autocast_trains(build_fcmae):
    model = build_fcmae(dtype=torch.float32)
    images, visible = torch.randn(2, 3, 96, 96), random_visible(2, (3, 3), 0.6)
    exact, exact_gradients = loss_and_gradients(model, images, visible)
    with torch.autocast('cpu', torch.bfloat16):
        loss = model.loss(images, visible=visible)['loss']
    model.zero_grad()
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    agreement = {
        name: torch.nn.functional.cosine_similarity(p.grad.flatten(), exact_gradients[name].flatten(), dim=0).item()
        for name, p in model.named_parameters()
    }
    assert min(agreement.values()) > 0.9, agreement


def test_one_batch_can_be_learnt_by_heart(build_fcmae):
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='mmcnx2.FCMAE',
            backbone=dict(type='mmcnx2.ConvNeXtV2', arch=dict(depths=[1, 1, 1, 1], channels=[16, 32, 64, 128])),
            neck=dict(type='mmcnx2.FCMAEDecoder', decoder_channels=128),
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    coarse = torch.randn(2, 3, 12, 12)
    images = torch.nn.functional.interpolate(coarse, scale_factor=8, mode='bilinear')
    visible = random_visible(2, (3, 3), 0.6, seeds=[0, 1])
    for _ in range(150):
        loss = model.loss(images, visible=visible)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_modes_of_forward(build_fcmae):
    model = build_fcmae()
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    assert torch.equal(model(images)[0], model.backbone(images)[0])
    assert math.isfinite(model(images, mode='loss')['loss'].item())
    with pytest.raises(ValueError, match="'loss' and 'tensor'"):
        model(images, mode='predict')


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(mask_ratio=1.0), 'hides everything'),
        (dict(mask_ratio=0.0), 'hides nothing'),
        (dict(patch_size=48), 'patch_size=48 is not a multiple of the total stride of the backbone, 32 px'),
        (dict(layout='sparse'), "layout='sparse' is not known"),
        (dict(grn_over='cell'), "grn_over='cell' is not known"),
        (dict(neck=dict(decoder_depth=-1)), 'decoder_depth=-1'),
    ],
)
def test_wrong_settings_say_what_is_allowed(build_fcmae, settings, message):
    with pytest.raises(ValueError, match=message):
        build_fcmae(**settings)


def test_wrong_images_say_what_is_expected(build_fcmae):
    model = build_fcmae(dtype=torch.float32)
    with pytest.raises(ValueError, match=r'100 x 96 px do not fit.*multiples of 32'):
        model.loss(torch.zeros(1, 3, 100, 96))
    with pytest.raises(ValueError, match='keeps int'):
        model.loss(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match='do not fit a grid of 2 x 2'):
        model.encode(torch.zeros(1, 3, 96, 96), torch.ones(1, 2, 2, dtype=torch.bool))
    for wrong in (torch.ones(1, 3, 3), torch.ones(2, 3, 3, dtype=torch.bool)):
        with pytest.raises(TypeError, match='True where the encoder sees the cell'):
            model.encode(torch.zeros(1, 3, 96, 96), wrong)
    with pytest.raises(ValueError, match='out_norm=True'):
        MODELS.build(dict(type='mmcnx2.FCMAE', backbone=dict(type='mmcnx2.ConvNeXtV2', arch='atto', out_norm=True)))


def test_masks_that_do_not_fit_or_hide_nothing_are_refused(build_fcmae):
    model, images = build_fcmae(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    visible = random_visible(2, (2, 2), 0.5)
    for wrong in (visible.flatten(1), visible[:, None], visible[:1], visible.float()):
        with pytest.raises(TypeError, match=r'give bool \(B, rows, columns\)'):
            model.encode(images, wrong)
    with pytest.raises(ValueError, match='no cell is hidden'):
        model.loss(images, visible=torch.ones_like(visible))
