"""Figures: that files are whole and replaced in one step, and the numbers that go in. Their look is judged by eye."""

import numpy as np
import pytest
from PIL import Image

from mmcnx2.analysis.figures import (
    DPI,
    PAGE_WIDTH,
    GainLine,
    GainPanel,
    Line,
    Panel,
    PictureRow,
    colour_table,
    draw_curves,
    draw_gains,
    draw_sheet,
    overlay_instances,
    overlay_labels,
)
from mmcnx2.analysis.run_log import Curve


def test_curves_are_written_whole(tmp_path):
    panel = Panel(
        'loss',
        'step',
        'loss',
        [Line('a', Curve((1, 2, 3), (3.0, float('nan'), 1.0)), smooth=[3.0, 2.5, 2.0])],
        (1.0, 'mean'),
    )
    path = draw_curves([panel, Panel('empty', 'x', 'y', [])], tmp_path / 'new' / 'curves.png')
    with Image.open(path) as image:
        image.load()
        assert image.size == (int(PAGE_WIDTH * DPI), int(5.2 * DPI))
    assert [entry.name for entry in path.parent.iterdir()] == ['curves.png']  # no half-written file is left
    with pytest.raises(ValueError, match='at least one panel'):
        draw_curves([], path)


def test_gains_are_drawn_with_their_errors(tmp_path):
    def bar_heights(error):
        line = GainLine('10 labelled', [1e4, 1e6], [2.0, -2.0], [error, error])
        path = draw_gains([GainPanel('mIoU', 'views', 'points', [line])], tmp_path / 'gain.png')
        with Image.open(path) as image:
            pixels = np.asarray(image.convert('RGB')).astype(int)
        blue = np.abs(pixels - [0x00, 0x72, 0xB2]).sum(-1) < 30
        columns = blue[:, : blue.shape[1] // 2].sum(0)  # of the first point's bar, which stands upright
        return columns.max()

    assert bar_heights(1.0) > 2 * bar_heights(0.1)
    assert [entry.name for entry in tmp_path.iterdir()] == ['gain.png']
    with pytest.raises(ValueError, match='at least one panel'):
        draw_gains([], tmp_path / 'gain.png')


def test_sheet_needs_rows_of_one_length(tmp_path):
    pictures = [np.full((4, 6, 3), 40 * i, np.uint8) for i in range(5)]
    path = draw_sheet(
        [PictureRow('input', pictures), PictureRow('grey', [p[..., :1] for p in pictures])],
        tmp_path / 'sheet.png',
        caption='words ' * 30,
        legend=[('circle', (1, 2, 3))],
    )
    with Image.open(path) as image:
        image.load()
    with pytest.raises(ValueError, match='same number'):
        draw_sheet([PictureRow('a', pictures), PictureRow('b', pictures[:2])], path)


def test_overlay_labels_leaves_background_and_ignored_pixels():
    picture = np.full((1, 3, 3), 100, np.uint8)
    drawn = overlay_labels(picture, np.array([[0, 1, 255]]), np.array([[200, 0, 100]]), opacity=0.5)
    assert drawn.tolist() == [[[100, 100, 100], [150, 50, 100], [100, 100, 100]]]


def test_overlay_instances_tints_masks_and_draws_boxes():
    picture = np.zeros((8, 8, 3), np.uint8)
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 0, 0] = True
    colours = colour_table(8)
    drawn = overlay_instances(picture, masks, [1], colours, boxes=np.array([[2.0, 2, 6, 6]]))
    assert drawn[0, 0].tolist() == [round(0.5 * value) for value in colours[1].tolist()]
    assert drawn[2, 4].tolist() == colours[1].tolist() and drawn[4, 4].tolist() == [0, 0, 0]
    assert len({tuple(colour) for colour in colours.tolist()}) == 8
    empty = overlay_instances(picture, np.zeros((0, 8, 8)), [], colours, boxes=np.zeros((0, 4)))
    assert np.array_equal(empty, picture)
