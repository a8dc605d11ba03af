"""The decoders that the paper compares with its plain one: where their values come from, and that they can learn."""

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmcnx2.analysis.model_cost import model_cost
from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2Block
from mmcnx2.models.fcmae import FCMAEDecoder, TransformerDecoder, UNetDecoder
from mmcnx2.models.fcmae.masking import random_visible
from mmcnx2.models.fcmae.pixel_loss import images_from_cells
from mmcnx2.models.fcmae.transformer_decoder import positions_by_sines

DECODERS = {
    'plain': dict(type='mmcnx2.FCMAEDecoder'),
    'UNet': dict(type='mmcnx2.UNetDecoder'),
    'UNet with skips': dict(type='mmcnx2.UNetDecoder', skips=True),
    'Transformer': dict(type='mmcnx2.TransformerDecoder', num_heads=4),
}


# ---- all of them, inside FCMAE


@pytest.mark.parametrize('name', DECODERS)
def test_hidden_pixels_change_no_bit_of_the_predictions(build_fcmae, name):
    for patch_size, shape in ((32, (96, 128)), (64, (128, 192))):
        model = build_fcmae(dtype=torch.float32, neck=DECODERS[name], patch_size=patch_size)
        images, visible = torch.randn(2, 3, *shape), random_visible(2, tuple(n // patch_size for n in shape), 0.6)
        hidden = ~visible.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, None]
        changed = torch.where(hidden, 1000 * torch.randn_like(images), images)
        predictions_BLP = model.reconstruct(images, visible)
        assert predictions_BLP.shape == (2, visible[0].numel(), 3 * patch_size**2)
        assert torch.equal(predictions_BLP, model.reconstruct(changed, visible))
        assert not torch.equal(predictions_BLP, model.reconstruct(images + 1, visible))


@pytest.mark.parametrize('name', DECODERS)
def test_every_parameter_gets_a_gradient_and_layouts_agree(build_fcmae, name):
    images, visible = torch.randn(2, 3, 96, 96, dtype=torch.float64), random_visible(2, (3, 3), 0.6)
    losses = []
    for layout in ('visible', 'dense'):
        model = build_fcmae(neck=DECODERS[name], layout=layout)
        losses.append(model.loss(images, visible=visible)['loss'])
        losses[-1].backward()
        idle = [key for key, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
        assert idle == []
    torch.testing.assert_close(*losses, rtol=1e-9, atol=0)


@pytest.mark.parametrize('name', ['UNet', 'UNet with skips', 'Transformer'])
def test_first_loss_is_about_one_and_one_batch_can_be_learnt_by_heart(name):
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='mmcnx2.FCMAE',
            backbone=dict(type='mmcnx2.ConvNeXtV2', arch=dict(depths=[1, 1, 1, 1], channels=[16, 32, 64, 128])),
            neck=dict(DECODERS[name], decoder_channels=128),
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images = nn.functional.interpolate(torch.randn(2, 3, 12, 12), scale_factor=8, mode='bilinear')
    visible = random_visible(2, (3, 3), 0.6, seeds=[0, 1])
    losses = []
    for _ in range(80):
        losses.append(model.loss(images, visible=visible)['loss'])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert 0.8 < losses[0].item() < 1.3
    assert losses[-1].item() < 0.6


def test_the_default_decoder_starts_as_ever(micro):
    """A seed draws the weights that it drew when there was no other decoder: projection, blocks, then the start values
    of projection and mask token."""
    torch.manual_seed(0)
    ours = FCMAEDecoder(32, 16)
    torch.manual_seed(0)
    proj, block = nn.Linear(32, 16), ConvNeXtV2Block(16)
    nn.init.trunc_normal_(proj.weight, std=0.02)
    token = nn.init.normal_(torch.zeros(16), std=0.02)
    assert torch.equal(ours.proj.weight, proj.weight) and torch.equal(ours.mask_token, token)
    assert all(torch.equal(ours.blocks[0].state_dict()[name], value) for name, value in block.state_dict().items())
    model = MODELS.build(dict(type='mmcnx2.FCMAE', backbone=dict(type='mmcnx2.ConvNeXtV2', arch=micro)))
    assert type(model.neck) is FCMAEDecoder and model.backbone.out_indices == [3]


@pytest.mark.parametrize('name', ['plain', 'UNet'])
def test_grn_of_the_decoders_blocks_can_be_replaced(build_fcmae, name):
    images, visible = torch.randn(2, 3, 96, 96, dtype=torch.float64), random_visible(2, (3, 3), 0.6)
    settings = [{}, dict(use_grn=False), dict(response_norm='lrn'), dict(decoder_depth=2)]
    losses = {build_fcmae(neck=dict(DECODERS[name], **each)).loss(images, visible=visible)['loss'] for each in settings}
    assert len({loss.item() for loss in losses}) == len(settings)


# ---- UNet


def test_an_upsampling_is_a_transposed_convolution():
    torch.manual_seed(0)
    level = UNetDecoder(8, 16, 0).levels[0]
    x_BHWC = torch.randn(2, 3, 5, 16)
    kernel = level.upsample.weight.view(2, 2, 8, 16).permute(3, 2, 0, 1)  # (in, out, row, column)
    expected = nn.functional.conv_transpose2d(x_BHWC.permute(0, 3, 1, 2), kernel, stride=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(level(x_BHWC, None, None), expected)


@pytest.mark.parametrize(('stage', 'size'), [(0, 1), (1, 2), (2, 4)])
def test_a_skip_comes_in_at_its_own_place_and_size(randomise, stage, size):
    """Without blocks nothing spreads: a position of the map at stride 4, 8, 16 reaches 1, 2 x 2, 4 x 4 of those at
    stride 4."""
    decoder = randomise(UNetDecoder(32, 16, 0, skips=True, skip_channels=[8, 12, 24]))
    visible = torch.ones(1, 2, 3, dtype=torch.bool)
    maps = [torch.randn(1, width, 16 >> i, 24 >> i) for i, width in enumerate([8, 12, 24, 32])]
    before = decoder(maps[-1], visible, *maps[:-1])
    row, column = 1, 2
    maps[stage][0, :, row, column] += 1
    changed = (decoder(maps[-1], visible, *maps[:-1]) != before).any(-1)[0]
    expected = torch.zeros(16, 24, dtype=torch.bool)
    expected[row * size : (row + 1) * size, column * size : (column + 1) * size] = True
    assert torch.equal(changed, expected)


def test_skips_are_zero_in_hidden_cells(build_fcmae):
    model = build_fcmae(neck=DECODERS['UNet with skips'])
    visible = random_visible(2, (3, 3), 0.6)
    maps = model._maps(torch.randn(2, 3, 96, 96, dtype=torch.float64), visible)
    assert [tuple(each.shape[1:]) for each in maps] == [(8, 24, 24), (16, 12, 12), (24, 6, 6), (32, 3, 3)]
    for each in maps:
        seen = visible.repeat_interleave(each.shape[-2] // 3, 1).repeat_interleave(each.shape[-1] // 3, 2)
        assert torch.equal(each.abs().sum(1) > 0, seen)


def test_pixels_of_a_fine_map_stand_where_it_stands(build_fcmae):
    """A decoded position at stride 4 becomes the 4 x 4 pixels there, whatever the size of a cell."""
    model = build_fcmae(neck=DECODERS['UNet'], patch_size=64, dtype=torch.float32)
    assert model.head.stride == 4
    model.head.pred.weight.data.zero_()
    model.head.pred.weight.data[:, 0] = 1
    model.head.pred.bias.data = torch.arange(48) / 100
    decoded_BHWC = torch.zeros(1, 32, 16, 2)
    decoded_BHWC[0, 5, 3, 0] = 1
    image = images_from_cells(model.head(decoded_BHWC, 64), 64, (2, 1))[0].permute(1, 2, 0)
    pattern = (torch.arange(48) / 100).view(4, 4, 3).repeat(32, 16, 1)
    pattern[20:24, 12:16] += 1
    torch.testing.assert_close(image, pattern)


def test_cost_of_a_unet_by_hand():
    """224 px, atto, 19 visible cells of 49; depth 0, so projection, upsamplings and fusions."""
    neck = dict(type='mmcnx2.UNetDecoder', decoder_channels=64, decoder_depth=0, skips=True)
    cfg = Config(
        dict(
            model=dict(type='mmcnx2.FCMAE', backbone=dict(type='mmcnx2.ConvNeXtV2', arch='atto'), neck=neck),
            default_scope='mmengine',
        )
    )
    flops = model_cost(cfg, (224, 224)).flops_by_part
    expected = 49 * 320 * 64
    for positions, width, skip in ((49, 64, 160), (196, 32, 80), (784, 16, 40)):
        expected += positions * width * 2 * width + 4 * positions * (width // 2 + skip) * width // 2
    assert flops['neck'] == expected
    assert flops['head'] == 49 * 64 * 8 * 48


# ---- Transformer


def test_positions_by_hand():
    """8 channels: two frequencies, 1 and 0.01; rows in the first four channels, columns in the last four."""
    places = positions_by_sines(2, 3, 8)
    assert places.shape == (2, 3, 8)
    torch.testing.assert_close(places[0, 0], torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]).double())

    def waves(n):
        return [math.sin(n), math.sin(n / 100), math.cos(n), math.cos(n / 100)]

    torch.testing.assert_close(places[1, 2], torch.tensor(waves(1) + waves(2)).double())


def test_a_block_is_pytorchs_pre_norm_block(randomise):
    """The same weights in nn.TransformerEncoderLayer, another implementation, give the same values."""
    decoder = randomise(TransformerDecoder(8, 16, decoder_depth=1, num_heads=4)).double()
    ours = decoder.blocks[0]
    theirs = nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0, activation='gelu', layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).double()
    pairs = {
        'self_attn.in_proj_weight': ours.attn.qkv.weight, 'self_attn.in_proj_bias': ours.attn.qkv.bias,
        'self_attn.out_proj.weight': ours.attn.proj.weight, 'self_attn.out_proj.bias': ours.attn.proj.bias,
        'linear1.weight': ours.ffn.layers[0][0].weight, 'linear1.bias': ours.ffn.layers[0][0].bias,
        'linear2.weight': ours.ffn.layers[1].weight, 'linear2.bias': ours.ffn.layers[1].bias,
        'norm1.weight': ours.ln1.weight, 'norm1.bias': ours.ln1.bias,
        'norm2.weight': ours.ln2.weight, 'norm2.bias': ours.ln2.bias,
    }  # fmt: skip
    theirs.load_state_dict(pairs)
    features, visible = torch.randn(2, 8, 2, 3, dtype=torch.float64), random_visible(2, (2, 3), 0.5)
    tokens = decoder.fill_hidden(features, visible) + positions_by_sines(2, 3, 16)
    expected = decoder.norm(theirs(tokens.flatten(1, 2))).view(2, 2, 3, 16)
    torch.testing.assert_close(decoder(features, visible), expected)
    projected = features.permute(0, 2, 3, 1) @ decoder.proj.weight.T + decoder.proj.bias
    assert torch.equal(decoder.fill_hidden(features, visible)[~visible].unique(dim=0), decoder.mask_token[None])
    torch.testing.assert_close(decoder.fill_hidden(features, visible)[visible], projected[visible])


def test_transformer_settings_act(build_fcmae):
    images, visible = torch.randn(2, 3, 96, 96, dtype=torch.float64), random_visible(2, (3, 3), 0.6)
    settings = [dict(num_heads=4), dict(num_heads=2), dict(num_heads=4, decoder_depth=2)]
    losses = [
        build_fcmae(neck=dict(type='mmcnx2.TransformerDecoder', **each)).loss(images, visible=visible)['loss'].item()
        for each in settings
    ]
    assert len(set(losses)) == 3


# ---- mistakes


@pytest.mark.parametrize(
    ('neck', 'message'),
    [
        (dict(type='mmcnx2.UNetDecoder', decoder_channels=20), 'halved 3 times on the way up; choose a multiple of 8'),
        (dict(type='mmcnx2.UNetDecoder', skip_channels=[8, 16, 24]), 'there are 3 skips or none'),
        (dict(type='mmcnx2.UNetDecoder', decoder_depth=-1), 'decoder_depth=-1'),
        (dict(type='mmcnx2.TransformerDecoder', num_heads=3), 'num_heads=3: the width is a multiple of the heads'),
        (dict(type='mmcnx2.TransformerDecoder', decoder_channels=6, num_heads=1), 'of 4 for the sines'),
    ],
)
def test_wrong_settings_say_what_is_allowed(build_fcmae, neck, message):
    with pytest.raises(ValueError, match=message):
        build_fcmae(neck=neck)
