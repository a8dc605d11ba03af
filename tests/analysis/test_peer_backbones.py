"""The models of other libraries on our weights compute our outputs and gradients, and a wrong weight is found."""

import pytest
import torch

from mmcnx2.analysis.peer_backbones import PEERS, build_peer, build_spark, randomise, without_widening_biases
from mmcnx2.analysis.speed import difference, worst_difference
from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2
from mmcnx2.models.fcmae.masking import random_visible
from mmcnx2.models.layers import DenseLayout

ARCH = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


def ours(**settings) -> ConvNeXtV2:
    return randomise(ConvNeXtV2(ARCH, **settings))


def step(model, *inputs):
    maps = model(*inputs)
    sum(x.square().sum() for x in maps).backward()
    return maps


def gradients_of(model) -> dict:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize('library', PEERS)
@pytest.mark.parametrize(('out_indices', 'out_norm'), [((3,), False), ((3,), True), ((0, 1, 2, 3), True)])
def test_a_peer_has_our_maps_and_gradients(library, out_indices, out_norm):
    backbone = ours(out_indices=out_indices, out_norm=out_norm)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected = step(backbone, images)
    peer = build_peer(library, ARCH, backbone.state_dict(), out_indices, out_norm)
    maps = step(peer, images)
    assert len(maps) == len(expected) == len(out_indices)
    assert max(difference(x, y) for x, y in zip(maps, expected, strict=True)) < TOLERANCE
    assert worst_difference(peer.gradients(), gradients_of(backbone))[0] < GRADIENT_TOLERANCE


@pytest.mark.parametrize('library', PEERS)
def test_a_peer_of_a_named_size_computes_the_same(library):
    backbone = randomise(ConvNeXtV2('atto', out_norm=False))
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = backbone(images)[0]
        assert difference(build_peer(library, 'atto', backbone.state_dict())(images)[0], expected) < TOLERANCE


@pytest.mark.parametrize('library', PEERS)
def test_one_wrong_weight_shows_in_outputs_and_gradients(library):
    backbone = ours(out_norm=False)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = step(backbone, images)[0]
    wrong = backbone.state_dict()
    wrong['stages.2.1.grn.beta'] = wrong['stages.2.1.grn.beta'].flip(0)
    peer = build_peer(library, ARCH, wrong)
    assert difference(step(peer, images)[0], expected) > 100 * TOLERANCE
    assert worst_difference(peer.gradients(), gradients_of(backbone))[0] > 10 * GRADIENT_TOLERANCE


def test_what_a_peer_cannot_take_is_refused():
    state_dict = ours().state_dict()
    with pytest.raises(ValueError, match=r"library='keras' is not known; choose one of timm"):
        build_peer('keras', ARCH, state_dict)
    with pytest.raises(ValueError, match=r'has no place for norm3\.weight'):
        build_peer('timm', ARCH, state_dict)
    peer = build_peer('timm', ARCH, ours(out_norm=False).state_dict())
    with pytest.raises(ValueError, match='run a backward pass first'):
        peer.gradients()


def test_spark_computes_ours_once_its_grn_sees_no_hidden_biases():
    backbone = ours(out_norm=False)
    visible = random_visible(2, (3, 3), 0.5, seeds=[0, 1])
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    peer = build_spark(ARCH, backbone.state_dict(), visible)
    before = {name: tensor.clone() for name, tensor in peer.state_dict().items()}

    def both():
        for model in (backbone, peer):
            model.zero_grad()
        expected = step(backbone, images, DenseLayout(visible))[0]
        found = step(peer, images)[0]
        return difference(found, expected), worst_difference(peer.gradients(), gradients_of(backbone))[0]

    with without_widening_biases(backbone, peer):
        outputs, gradients = both()
        assert outputs < TOLERANCE and gradients < GRADIENT_TOLERANCE
    outputs, gradients = both()
    assert outputs > 1e-3 and gradients > 1e-3
    assert all(torch.equal(before[name], tensor) for name, tensor in peer.state_dict().items())
    hidden = ~visible.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]
    with torch.no_grad():
        assert torch.equal(peer(images)[0], peer(torch.where(hidden, torch.full_like(images, 9.0), images))[0])


def test_spark_takes_square_pictures_only():
    with pytest.raises(ValueError, match='square pictures only; these have 2 x 3 cells'):
        build_spark(ARCH, ours(out_norm=False).state_dict(), random_visible(1, (2, 3), 0.5))


def test_random_weights_hide_nothing():
    backbone = ours()
    assert not any((parameter == 0).any() or (parameter == 1).any() for parameter in backbone.parameters())
    again = ours()
    assert all(torch.equal(x, y) for x, y in zip(backbone.parameters(), again.parameters(), strict=True))
