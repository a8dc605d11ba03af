"""The visible layout against the masked dense one, and both against a loop over positions."""

import pytest
import torch
from torch import nn

from mmcnx2.models.fcmae.masking import random_visible
from mmcnx2.models.layers import DenseLayout, VisibleLayout


def loop_over_positions(map_BHWC, seen_BHW, conv):
    """Depthwise 3 x 3 convolution at seen positions by four nested loops; hidden and outside positions count as
    zero."""
    B, H, W, _ = map_BHWC.shape
    out = torch.zeros_like(map_BHWC)
    for b in range(B):
        for h in range(H):
            for w in range(W):
                if not seen_BHW[b, h, w]:
                    continue
                total = conv.bias.clone()
                for i in range(3):
                    for j in range(3):
                        y, x = h + i - 1, w + j - 1
                        if 0 <= y < H and 0 <= x < W and seen_BHW[b, y, x]:
                            total = total + map_BHWC[b, y, x] * conv.weight[:, 0, i, j]
                out[b, h, w] = total
    return out


@pytest.fixture
def setting():
    torch.manual_seed(0)
    visible = random_visible(2, (3, 4), 0.6)
    images = torch.randn(2, 5, 6, 8, dtype=torch.float64)  # cells of 2 x 2 positions
    conv = nn.Conv2d(5, 5, 3, padding=1, groups=5).double()
    return visible, images, conv


def test_conv_equals_the_loop_in_both_layouts(setting):
    visible, images, conv = setting
    seen_BHW = visible.repeat_interleave(2, 1).repeat_interleave(2, 2)
    expected = loop_over_positions(images.permute(0, 2, 3, 1), seen_BHW, conv).permute(0, 3, 1, 2)
    for layout in (VisibleLayout(visible), DenseLayout(visible)):
        got = layout.to_map(layout.conv(layout.from_images(images), conv))
        torch.testing.assert_close(got, expected)
        assert got.is_contiguous()


@pytest.mark.parametrize('grn_over', ['image', 'batch'])
def test_channel_norms_sum_over_seen_positions_of_the_scope(setting, grn_over):
    visible, images, _ = setting
    seen = visible.repeat_interleave(2, 1).repeat_interleave(2, 2)
    per_image = torch.stack([image[:, mask].square().sum(1) for image, mask in zip(images, seen, strict=True)])
    expected = (per_image if grn_over == 'image' else per_image.sum(0, keepdim=True)).sqrt()
    for layout in (VisibleLayout(visible, grn_over), DenseLayout(visible, grn_over)):
        torch.testing.assert_close(layout.channel_norms(layout.from_images(images)).flatten(1), expected)


def test_pixels_of_cells_come_in_row_major_order():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    visible = torch.tensor([[[False, True], [True, False]]])
    cells_BKSSC = VisibleLayout(visible).from_images(image)
    assert cells_BKSSC.squeeze(-1).tolist() == [[[[2, 3], [6, 7]], [[8, 9], [12, 13]]]]


def test_gradients_through_the_visible_layout(setting):
    visible, images, conv = setting
    layout = VisibleLayout(visible)
    images = images[:, :, :, :].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: layout.to_map(layout.conv(layout.from_images(x), conv)), images, fast_mode=True
    )


def test_unequal_numbers_of_cells_are_refused():
    visible = torch.tensor([[[True, False]], [[True, True]]])
    with pytest.raises(ValueError, match=r'see \[1, 2\]'):
        VisibleLayout(visible)
    with pytest.raises(ValueError, match='at least 1'):
        VisibleLayout(torch.zeros(2, 1, 2, dtype=torch.bool))


def test_a_known_number_of_cells_gives_the_same_tables_without_a_look_at_the_values():
    """The meta device has no values to look at: whoever waits for one fails there."""
    visible = random_visible(3, (4, 5), 0.7, seeds=range(3))
    places = visible.flatten().nonzero()[:, 0]
    for layout in (VisibleLayout(visible), VisibleLayout(visible, num_visible=6)):
        assert torch.equal(layout.cells_N, places)
        assert layout.num_visible == 6
        slots = layout._slots_BGG()
        assert slots.dtype == torch.int32
        assert slots[visible].tolist() == list(range(18))
        assert (slots[~visible] == -1).all()
    blind = VisibleLayout(visible.to('meta'), num_visible=6)
    assert blind._slots_BGG().shape == (3, 4, 5)
    assert blind._places_at(2).shape == (18 * 4,)
    with pytest.raises(RuntimeError, match='meta'):
        VisibleLayout(visible.to('meta'))


def test_dense_layout_takes_unequal_numbers_of_cells(setting):
    _, images, conv = setting
    visible = torch.ones(2, 3, 4, dtype=torch.bool)
    visible[0, 0, 0] = False
    layout = DenseLayout(visible)
    both = layout.to_map(layout.conv(layout.from_images(images), conv))
    whole = DenseLayout()
    torch.testing.assert_close(both[1], whole.to_map(whole.conv(whole.from_images(images), conv))[1])
    assert both[0, :, :2, :2].abs().max() == 0


def test_unknown_scope_of_grn_is_refused():
    with pytest.raises(ValueError, match="grn_over='sample' is not known"):
        DenseLayout(grn_over='sample')
