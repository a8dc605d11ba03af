"""Reconstructions against 2 x 2 cells worked by hand."""

import pytest
import torch

from mmcnx2.analysis.reconstruction import (
    cells_in_pixel_scale,
    displayable,
    hidden_error,
    hide_cells,
    nearest_visible_weights,
    paste_reconstruction,
    visible_pixels,
)
from mmcnx2.models.fcmae.pixel_loss import cells_from_images, normalise_cells

PATCH = 2
# 2 x 2 cells of 2 x 2 pixels, one channel; the cells are [0 1; 2 3], [10 10; 10 14], [20 22; 20 22], [30 30; 30 30]
IMAGE = torch.tensor([[[[0.0, 1, 10, 10], [2, 3, 10, 14], [20, 22, 30, 30], [20, 22, 30, 30]]]], dtype=torch.float64)
VISIBLE = torch.tensor([[[True, False], [False, True]]])


def test_visible_pixels_and_hidden_fill():
    assert visible_pixels(IMAGE, VISIBLE, PATCH)[0, 0].int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 1],
    ]
    assert hide_cells(IMAGE, VISIBLE, PATCH, fill=-1.0)[0, 0].tolist() == [
        [0, 1, -1, -1],
        [2, 3, -1, -1],
        [-1, -1, 30, 30],
        [-1, -1, 30, 30],
    ]


def test_paste_without_normalisation():
    predictions = torch.arange(16, dtype=torch.float64).reshape(1, 4, 4) + 100
    pasted = paste_reconstruction(IMAGE, VISIBLE, predictions, PATCH, norm_pix=False)
    assert pasted[0, 0].tolist() == [[0, 1, 104, 105], [2, 3, 106, 107], [108, 109, 30, 30], [110, 111, 30, 30]]


def test_paste_puts_the_hidden_cells_own_mean_and_spread_back():
    # cell 1: mean 11, sum of squares 12, unbiased variance 4, spread 2; prediction 1 everywhere: 11 + 2 = 13
    # cell 2: mean 21, unbiased variance 4 / 3; prediction 0: 21
    predictions = torch.zeros(1, 4, 4, dtype=torch.float64)
    predictions[0, 1] = 1
    predictions[0, 0] = 99  # visible: must not show
    pasted = paste_reconstruction(IMAGE, VISIBLE, predictions, PATCH, norm_pix=True)
    expected = torch.tensor([[0.0, 1, 13, 13], [2, 3, 13, 13], [21, 21, 30, 30], [21, 21, 30, 30]], dtype=torch.float64)
    torch.testing.assert_close(pasted[0, 0], expected, atol=1e-5, rtol=0)
    assert torch.equal(pasted[..., :2, :2], IMAGE[..., :2, :2])  # the input's own pixels, bit by bit


def test_paste_with_the_neighbours_mean_uses_nothing_hidden():
    # both hidden cells touch both visible ones (diagonals count): means 1.5 and 30, average 15.75
    predictions = torch.zeros(1, 4, 4, dtype=torch.float64)
    pasted = paste_reconstruction(IMAGE, VISIBLE, predictions, PATCH, norm_pix=True, statistics='nearest')
    torch.testing.assert_close(pasted[0, 0, :2, 2:], torch.full((2, 2), 15.75, dtype=torch.float64))
    changed = hide_cells(IMAGE, VISIBLE, PATCH, fill=500.0)
    assert torch.equal(
        paste_reconstruction(changed, VISIBLE, predictions, PATCH, norm_pix=True, statistics='nearest'), pasted
    )


def test_perfect_prediction_gives_the_image_back():
    images = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    visible = torch.rand(2, 2, 3) > 0.5
    perfect = normalise_cells(cells_from_images(images, 4))[0]
    torch.testing.assert_close(paste_reconstruction(images, visible, perfect, 4, norm_pix=True), images)
    assert hidden_error(images, visible, perfect, 4, norm_pix=True).tolist() == [0, 0]


def test_nearest_visible_weights_look_further_when_the_ring_is_hidden():
    visible = torch.tensor([[[True, False, False, False, True]]])
    weights = nearest_visible_weights(visible)[0]
    assert weights.tolist() == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0.5, 0, 0, 0, 0.5], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    with pytest.raises(ValueError, match='no visible cell'):
        nearest_visible_weights(torch.zeros(1, 2, 2, dtype=torch.bool))


def test_hidden_error_counts_hidden_cells_only():
    predictions = torch.zeros(1, 4, 4, dtype=torch.float64)
    predictions[0, 0] = 1e6
    # pixels: cell 1 has squares 100 + 100 + 100 + 196, cell 2 has 400 + 484 + 400 + 484: means 124 and 442
    assert hidden_error(IMAGE, VISIBLE, predictions, PATCH, norm_pix=False).tolist() == [283]
    # normalised: the sum of squares is (n - 1) times 1, so the mean is 3 / 4
    torch.testing.assert_close(
        hidden_error(IMAGE, VISIBLE, predictions, PATCH, norm_pix=True),
        torch.tensor([0.75], dtype=torch.float64),
        atol=1e-5,
        rtol=0,
    )


def test_displayable_undoes_the_preprocessor_and_clips():
    images = torch.tensor([[[[-1.0, 0.0]], [[1.0, 9.0]]]])  # two channels
    shown = displayable(images, torch.tensor([100.0, 50.0]), torch.tensor([10.0, 100.0]))
    assert shown.tolist() == [[[[90, 150, 0], [100, 255, 0]]]] and shown.dtype == torch.uint8
    assert displayable(torch.zeros(1, 1, 2, 2)).shape == (1, 2, 2, 1)
    assert displayable(torch.zeros(1, 7, 2, 2)).shape == (1, 2, 2, 3)


def test_wrong_shapes_say_what_is_needed():
    with pytest.raises(ValueError, match=r'4 x 4 px do not divide into cells of 3 px'):
        hide_cells(IMAGE, VISIBLE, 3)
    with pytest.raises(ValueError, match=r'need \(1, 2, 2\)'):
        hide_cells(IMAGE, VISIBLE[:, :1], PATCH)
    with pytest.raises(TypeError, match='True = the encoder sees'):
        hide_cells(IMAGE, VISIBLE.int(), PATCH)
    with pytest.raises(ValueError, match=r'need \(1, 4, 4\)'):
        paste_reconstruction(IMAGE, VISIBLE, torch.zeros(1, 4, 3), PATCH, norm_pix=False)
    with pytest.raises(ValueError, match='nearest'):
        cells_in_pixel_scale(IMAGE, VISIBLE, torch.zeros(1, 4, 4), PATCH, statistics='median')
