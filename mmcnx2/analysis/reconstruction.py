"""From FCMAE's predictions to pictures a person can judge: tensors in, tensors out.

FCMAE predicts every cell, but it is trained on the hidden ones only, and by default on targets that were normalised
cell by cell. So an honest picture keeps the input's own pixels where the encoder saw them, and in a hidden cell it
needs a mean and a spread that the model never predicted: the hidden cell's own (`statistics='own'`: shows structure,
flatters colour and brightness) or those of the nearest visible cells (`statistics='nearest'`: uses nothing that the
model did not see).

Touch it for another way to show a prediction. Not for files, plots or models. Guarded by
tests/analysis/test_reconstruction.py.

Shapes: B images, C channels, H W pixels, G G grid of cells, L = G * G cells row by row, P = patch_size * patch_size *
C values.
"""

import torch

from mmcnx2.models.fcmae.pixel_loss import cells_from_images, images_from_cells, normalise_cells
from mmcnx2.models.layers.layout import positions_of

STATISTICS = ('own', 'nearest')


def grid_shape_of(images_BCHW: torch.Tensor, patch_size: int) -> tuple[int, int]:
    """(rows, columns) of cells; the image must divide into whole cells."""
    if images_BCHW.ndim != 4:
        raise ValueError(f'images must have the shape (B, C, H, W), not {tuple(images_BCHW.shape)}')
    height, width = images_BCHW.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f'images of {height} x {width} px do not divide into cells of {patch_size} px; resize or crop them first'
        )
    return height // patch_size, width // patch_size


def _checked_visible(images_BCHW: torch.Tensor, visible_BGG: torch.Tensor, patch_size: int) -> torch.Tensor:
    expected = (len(images_BCHW), *grid_shape_of(images_BCHW, patch_size))
    if visible_BGG.dtype != torch.bool:
        raise TypeError(f'visible must be bool (True = the encoder sees the cell), not {visible_BGG.dtype}')
    if tuple(visible_BGG.shape) != expected:
        raise ValueError(
            f'visible has the shape {tuple(visible_BGG.shape)}; these images in cells of '
            f'{patch_size} px need {expected}'
        )
    return visible_BGG


def visible_pixels(images_BCHW: torch.Tensor, visible_BGG: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Bool of shape (B, 1, H, W): True where the encoder saw the pixel."""
    visible_BGG = _checked_visible(images_BCHW, visible_BGG, patch_size)
    return positions_of(visible_BGG, patch_size).unsqueeze(1)


def hide_cells(
    images_BCHW: torch.Tensor, visible_BGG: torch.Tensor, patch_size: int, fill: float = 0.0
) -> torch.Tensor:
    """The images with every pixel of a hidden cell set to `fill` (in the images' own scale)."""
    return torch.where(
        visible_pixels(images_BCHW, visible_BGG, patch_size), images_BCHW, torch.full_like(images_BCHW, fill)
    )


def nearest_visible_weights(visible_BGG: torch.Tensor) -> torch.Tensor:
    """(B, L, L) weights, rows sum to 1: row i averages over the visible cells nearest to cell i (itself, when it is
    visible).

    Near is meant on the grid with diagonals as one step, so an inner hidden cell looks at the ring of up to eight
    cells around it, and at the next ring when all of those are hidden too. An image without a visible cell raises
    ValueError.
    """
    _, rows, columns = visible_BGG.shape
    if not bool(visible_BGG.flatten(1).any(1).all()):
        raise ValueError('an image has no visible cell to take mean and spread from; lower the mask ratio')
    row_L, column_L = (
        index.flatten() for index in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing='ij')
    )
    steps_LL = torch.maximum((row_L[:, None] - row_L).abs(), (column_L[:, None] - column_L).abs()).to(
        visible_BGG.device
    )
    steps_BLL = torch.where(visible_BGG.flatten(1)[:, None, :], steps_LL, rows + columns)
    nearest_BLL = (steps_BLL == steps_BLL.amin(-1, keepdim=True)).double()
    return nearest_BLL / nearest_BLL.sum(-1, keepdim=True)


def cells_in_pixel_scale(
    images_BCHW: torch.Tensor,
    visible_BGG: torch.Tensor,
    predictions_BLP: torch.Tensor,
    patch_size: int,
    statistics: str = 'own',
) -> torch.Tensor:
    """Predictions with the per-cell normalisation undone, shape (B, L, P), in the scale of the images.

    `statistics` says whose mean and spread go back in: 'own', those of the cell itself (hidden from the model), or
    'nearest', the average over the nearest visible cells. Both are exact for visible cells.
    """
    if statistics not in STATISTICS:
        raise ValueError(f'statistics={statistics!r}; allowed are {STATISTICS}')
    _, mean_BL1, std_BL1 = normalise_cells(cells_from_images(images_BCHW, patch_size))
    if statistics == 'nearest':
        weights_BLL = nearest_visible_weights(_checked_visible(images_BCHW, visible_BGG, patch_size)).to(mean_BL1)
        mean_BL1, std_BL1 = weights_BLL @ mean_BL1, weights_BLL @ std_BL1
    return predictions_BLP * std_BL1 + mean_BL1


def paste_reconstruction(
    images_BCHW: torch.Tensor,
    visible_BGG: torch.Tensor,
    predictions_BLP: torch.Tensor,
    patch_size: int,
    norm_pix: bool,
    statistics: str = 'own',
) -> torch.Tensor:
    """Images of shape (B, C, H, W): visible cells are the input's own pixels, bit by bit; hidden cells are the
    prediction.

    Args:
        predictions_BLP: what `FCMAE.reconstruct(images, visible)` returned.
        norm_pix: the head's setting. When True, mean and spread are put back in as `statistics` says
            (`cells_in_pixel_scale`); when False the predictions are pixels already and `statistics` has nothing to do.
    """
    grid_shape = grid_shape_of(images_BCHW, patch_size)
    expected = (len(images_BCHW), grid_shape[0] * grid_shape[1], patch_size * patch_size * images_BCHW.shape[1])
    if tuple(predictions_BLP.shape) != expected:
        raise ValueError(
            f'predictions have the shape {tuple(predictions_BLP.shape)}; these images in cells of {patch_size} px '
            f'need {expected}'
        )
    if norm_pix:
        predictions_BLP = cells_in_pixel_scale(images_BCHW, visible_BGG, predictions_BLP, patch_size, statistics)
    predicted_BCHW = images_from_cells(predictions_BLP.to(images_BCHW.dtype), patch_size, grid_shape)
    return torch.where(visible_pixels(images_BCHW, visible_BGG, patch_size), images_BCHW, predicted_BCHW)


def hidden_error(
    images_BCHW: torch.Tensor, visible_BGG: torch.Tensor, predictions_BLP: torch.Tensor, patch_size: int, norm_pix: bool
) -> torch.Tensor:
    """Mean squared error over the hidden cells, one number per image, in the space that the model was trained in.

    With `norm_pix` the mean of each cell as the prediction scores 1, up to (n - 1) / n, so below 1 something was
    learned.
    """
    target_BLP = cells_from_images(images_BCHW, patch_size)
    if norm_pix:
        target_BLP = normalise_cells(target_BLP)[0]
    hidden_BL = ~_checked_visible(images_BCHW, visible_BGG, patch_size).flatten(1)
    error_BL = (predictions_BLP - target_BLP).square().mean(-1)
    return (error_BL * hidden_BL).sum(1) / hidden_BL.sum(1).clamp(min=1)


def displayable(
    images_BCHW: torch.Tensor, mean_C: torch.Tensor | None = None, std_C: torch.Tensor | None = None
) -> torch.Tensor:
    """uint8 pictures of shape (B, H, W, 1 or 3): the data preprocessor's mean and std undone, values clipped to 0..255.

    One channel stays one; of two or more than three channels the first (up to) three are shown, the missing ones as
    zero. Channels keep their order. Without mean and std the values are taken to be in 0..255 already.
    """
    if mean_C is not None and std_C is not None:
        images_BCHW = images_BCHW * std_C.view(1, -1, 1, 1).to(images_BCHW) + mean_C.view(1, -1, 1, 1).to(images_BCHW)
    if images_BCHW.shape[1] == 2:
        images_BCHW = torch.cat([images_BCHW, torch.zeros_like(images_BCHW[:, :1])], dim=1)
    return images_BCHW[:, :3].clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
