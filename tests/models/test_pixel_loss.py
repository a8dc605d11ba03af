"""Target, normalisation and loss by numbers worked by hand."""

import pytest
import torch

from mmcnx2.models.fcmae.pixel_loss import (
    PixelReconstructionHead,
    cells_from_images,
    images_from_cells,
    normalise_cells,
)


def test_cells_hold_pixels_row_by_row_with_the_colour_last():
    images_BCHW = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)  # value = channel * 16 + row * 4 + column
    cells_BLP = cells_from_images(images_BCHW, 2)
    assert cells_BLP[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]  # top right cell
    assert cells_BLP[0, 2].tolist() == [8, 24, 9, 25, 12, 28, 13, 29]  # bottom left cell


@pytest.mark.parametrize(('C', 'H', 'W', 'S'), [(3, 64, 96, 32), (1, 8, 4, 4), (5, 6, 12, 2)])
def test_images_survive_the_round_trip(C, H, W, S):
    images = torch.randn(2, C, H, W)
    assert torch.equal(images_from_cells(cells_from_images(images, S), S, (H // S, W // S)), images)


def test_cells_are_normalised_with_the_unbiased_variance():
    cells = torch.tensor([[[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]], dtype=torch.float64)
    normalised, mean, std = normalise_cells(cells)
    assert mean.flatten().tolist() == [2, 5]
    torch.testing.assert_close(std.flatten(), torch.tensor([1 + 1e-6, 1e-6], dtype=torch.float64).sqrt())
    torch.testing.assert_close(normalised[0, 0], torch.tensor([-1.0, 0, 1], dtype=torch.float64) / (1 + 1e-6) ** 0.5)
    assert normalised[0, 1].tolist() == [0, 0, 0]


@pytest.fixture
def head():
    return PixelReconstructionHead(in_channels=4, image_channels=1, stride=2, norm_pix=False)


def test_loss_counts_hidden_cells_only(head):
    images = torch.zeros(2, 1, 2, 4)  # two cells of 2 x 2 px in each image
    predictions = torch.tensor([[[1.0] * 4, [100.0] * 4], [[100.0] * 4, [3.0] * 4]])
    visible = torch.tensor([[[False, True]], [[True, False]]])
    assert head.loss(predictions, images, visible).item() == pytest.approx((1 + 9) / 2)


def test_loss_weighs_hidden_cells_equally_over_the_batch(head):
    """Two hidden cells in the first image, one in the second: the mean over three cells, not over images."""
    images = torch.zeros(2, 1, 2, 4)
    predictions = torch.tensor([[[1.0] * 4, [2.0] * 4], [[100.0] * 4, [3.0] * 4]])
    visible = torch.tensor([[[False, False]], [[True, False]]])
    assert head.loss(predictions, images, visible).item() == pytest.approx((1 + 4 + 9) / 3)


def test_norm_pix_compares_with_normalised_cells(head):
    head.norm_pix = True
    images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    visible = torch.zeros(1, 1, 1, dtype=torch.bool)
    target = normalise_cells(cells_from_images(images, 2))[0]
    assert head.loss(target, images, visible).item() == 0
    assert head.loss(torch.zeros_like(target), images, visible).item() == pytest.approx(0.75, abs=1e-5)  # (n - 1) / n


def test_loss_is_computed_in_float32(head):
    images = torch.full((1, 1, 2, 2), 256.0)
    predictions = torch.full((1, 1, 4), 256.0, dtype=torch.bfloat16) * 1.0
    loss = head.loss(predictions, images + 1, torch.zeros(1, 1, 1, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert loss.item() == 1  # bfloat16 cannot tell 256 from 257


def test_a_larger_cell_gathers_the_pixels_of_its_positions(head):
    """At stride 2 and cells of 4 px, a cell's values are those of its four positions put at their places."""
    torch.nn.init.normal_(head.pred.weight)
    decoded = torch.randn(2, 4, 2, 4)  # 4 x 2 positions = 2 x 1 cells
    predictions = head(decoded, patch_size=4)
    assert predictions.shape == (2, 2, 16)
    image = images_from_cells(predictions, 4, (2, 1))[1, 0]
    torch.testing.assert_close(image[6:8, 2:4].flatten(), head.pred(decoded[1, 3, 1]))
