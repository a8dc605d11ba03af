"""Numbers and pictures in, a PNG file out. Nothing is computed here that one would want to test as a number.

Every function takes finished values and a path, and replaces the file in one step, so a reader never sees half a
picture. Sizes are chosen for a phone held upright: about 770 px wide, text of at least 9 pt. Colours are those of
Okabe and Ito, which stay apart for colour-blind eyes, and lines differ in their dashes as well. Touch it for the look
of a figure. Guarded by tests/analysis/test_figures.py (files, what goes in) and by looking at them.
"""

import colorsys
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw

from mmcnx2.atomic_write import open_atomically

from .run_log import Curve

DPI, SMALL_DPI = 180, 140
PAGE_WIDTH = 4.3  # inches: shown 360 px wide on a phone, 9 pt come out about 10 px high
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
DASHES = ('-', '--', '-.', ':')


@dataclass(frozen=True)
class Line:
    """One line of a panel. `smooth` is drawn strongly over the pale `curve`; without it the curve itself is strong.

    `style` counts through colours and dashes, so that a run looks the same in every panel; None: the line's place.
    """

    label: str
    curve: Curve
    smooth: Sequence[float] | None = None
    style: int | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes; labels carry units; `reference` is (value, what it means), a thin horizontal line. With
    `from_zero` both axes begin at 0, so that lengths can be compared by eye.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    reference: tuple[float, str] | None = None
    from_zero: bool = False


@dataclass(frozen=True)
class Matrix:
    """Counts as shades: `values[i][j]` of row i and column j; a row's shade is its share of the row's sum."""

    title: str
    x_label: str
    y_label: str
    row_names: Sequence[str]
    column_names: Sequence[str]
    values: Sequence[Sequence[float]]

    def shares(self) -> list[list[float | None]]:
        """Per row: each value by the sum of the row; None in a row without any."""
        return [[value / sum(row) if sum(row) else None for value in row] for row in self.values]


@dataclass(frozen=True)
class GainLine:
    """One line of a plot with error bars: a mean and its error (half the bar's length) at each x."""

    label: str
    x: Sequence[float]
    means: Sequence[float]
    errors: Sequence[float]


@dataclass(frozen=True)
class GainPanel:
    """One pair of axes of lines with error bars, x on a logarithmic scale."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[GainLine]


@dataclass(frozen=True)
class PictureRow:
    """One row of a sheet: its label and uint8 pictures of shape (H, W, 3), (H, W, 1) or (H, W)."""

    label: str
    pictures: Sequence[np.ndarray]


def save_png(figure: Figure, path: str | Path) -> Path:
    """Write the figure beside `path`, then move it there in one step."""
    FigureCanvasAgg(figure)
    with open_atomically(path) as file:
        figure.savefig(file, format='png', dpi=DPI, facecolor='white')
    return Path(path)


def small_png(figure: Figure) -> bytes:
    """The figure as a PNG of few bytes: 600 px wide, 32 colours, which plots do not miss."""
    figure.set_dpi(SMALL_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    file = io.BytesIO()
    image.quantize(32, dither=Image.Dither.NONE).save(file, 'PNG')
    return file.getvalue()


def line_style(line: Line, place: int) -> tuple[str, str]:
    """(colour, dash) of a line that stands at `place` in its panel."""
    style = place if line.style is None else line.style
    return COLOURS[style % len(COLOURS)], DASHES[style % len(DASHES)]


def _literal(text: str, longest: int = 50) -> str:
    """The text as it is, cut when long: matplotlib reads formulas between dollars and hides what begins with _."""
    text = text if len(text) <= longest else f'{text[: longest - 1]}…'
    return ('' if not text.startswith('_') else ' ') + text.replace('$', r'\$')


def _name_axes(axes: Axes, chart: Panel | Matrix | GainPanel) -> None:
    axes.set_title(_literal(chart.title), fontsize=11, loc='left', fontweight='bold')
    axes.set_xlabel(_literal(chart.x_label))
    axes.set_ylabel(_literal(chart.y_label, 30))


def _draw_panel(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    _name_axes(axes, panel)
    if not any(line.curve.steps for line in panel.lines):
        axes.text(0.5, 0.5, 'nothing logged', ha='center', va='center', transform=axes.transAxes, color='0.4')
    for line in panel.lines:
        colour, dash = line_style(line, labels.index(line.label))
        style = {'color': colour, 'linestyle': dash}
        marker = 'o' if len(line.curve.steps) < 15 else None
        if line.smooth is not None:
            axes.plot(line.curve.steps, line.curve.values, color=style['color'], linewidth=0.8, alpha=0.3)
        axes.plot(
            line.curve.steps,
            line.curve.values if line.smooth is None else line.smooth,
            linewidth=1.8,
            marker=marker,
            markersize=4,
            label=_literal(line.label),
            **style,
        )
    if panel.reference is not None:
        value, meaning = panel.reference
        axes.axhline(value, color='0.35', linewidth=1, linestyle=(0, (1, 2)), label=_literal(meaning))
    if panel.from_zero:
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    _finish_axes(axes)


def _finish_axes(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, framealpha=0.75, edgecolor='none')  # lines below it stay readable


def curves_figure(panels: Sequence[Panel]) -> Figure:
    """Panels below each other, one per quantity; lines of one label look alike in all of them."""
    if not panels:
        raise ValueError('a figure of curves needs at least one panel')
    figure = Figure(figsize=(PAGE_WIDTH, 2.6 * len(panels)), layout='constrained')
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    for axes, panel in zip(np.ravel(figure.subplots(len(panels), 1)), panels, strict=True):
        _draw_panel(axes, panel, labels)
    return figure


def draw_curves(panels: Sequence[Panel], path: str | Path) -> Path:
    """The figure of the panels as a PNG file."""
    return save_png(curves_figure(panels), path)


def matrix_figure(matrix: Matrix) -> Figure:
    """The matrix in shades of blue; shares in per cent are written into the cells when there are few."""
    shares = np.array(matrix.shares(), dtype=float)
    side = PAGE_WIDTH
    figure = Figure(figsize=(side, side), layout='constrained')
    axes = figure.add_subplot()
    axes.imshow(np.nan_to_num(shares), cmap='Blues', vmin=0, vmax=1, aspect='auto', interpolation='nearest')
    _name_axes(axes, matrix)
    for set_ticks, names, angle in (
        (axes.set_xticks, matrix.column_names, 90),
        (axes.set_yticks, matrix.row_names, 0),
    ):
        shown = range(0, len(names), -(-len(names) // 25))
        set_ticks(
            list(shown), [_literal(names[i], 25) for i in shown], rotation=angle, fontsize=9 if len(names) <= 12 else 6
        )
    if shares.size <= 200:
        for (row, column), share in np.ndenumerate(shares):
            if np.isfinite(share):
                axes.text(
                    column,
                    row,
                    f'{100 * share:.0f}',
                    ha='center',
                    va='center',
                    fontsize=8,
                    color='white' if share > 0.5 else 'black',
                )
    return figure


def draw_gains(panels: Sequence[GainPanel], path: str | Path, caption: str = '') -> Path:
    """Panels below each other with one pair of axes per quantity; a thin line at zero, where nothing is gained.

    Lines of a panel are moved apart a little along x, so that their error bars do not lie on each other.
    """
    if not panels:
        raise ValueError('draw_gains needs at least one panel')
    lines = _wrapped(caption, 62)
    figure = Figure(figsize=(PAGE_WIDTH, 2.7 * len(panels) + 0.18 * len(lines)), layout='constrained')
    for axes, panel in zip(np.ravel(figure.subplots(len(panels), 1)), panels, strict=True):
        _name_axes(axes, panel)
        axes.set_xscale('log')
        axes.axhline(0, color='0.35', linewidth=1, linestyle=(0, (1, 2)))
        for index, line in enumerate(panel.lines):
            apart = 1.05 ** (index - (len(panel.lines) - 1) / 2)
            axes.errorbar(
                [x * apart for x in line.x],
                line.means,
                yerr=line.errors,
                label=line.label,
                color=COLOURS[index % len(COLOURS)],
                linestyle=DASHES[index % len(DASHES)],
                linewidth=1.8,
                marker='o',
                markersize=4,
                capsize=3,
            )
        every_x = [x for line in panel.lines for x in line.x]
        if every_x:
            axes.set_xlim(min(every_x) / 1.5, max(every_x) * 1.5)
        else:
            axes.text(0.5, 0.5, 'nothing to compare yet', ha='center', va='center', transform=axes.transAxes)
        _finish_axes(axes)
    if lines:
        figure.supxlabel('\n'.join(lines), fontsize=9, color='0.25', x=0.02, ha='left')
    return save_png(figure, path)


def draw_sheet(
    rows: Sequence[PictureRow],
    path: str | Path,
    caption: str = '',
    columns_per_block: int = 4,
    legend: Sequence[tuple[str, Sequence[int]]] = (),
) -> Path:
    """Sheet of pictures: the rows under each other, `columns_per_block` pictures wide; more pictures in more blocks.

    Rows must hold the same number of pictures. `legend` is (name, RGB in 0..255) per colour that means something.
    """
    counts = {len(row.pictures) for row in rows}
    if len(counts) != 1 or not counts.pop():
        raise ValueError(
            f'the rows of a sheet must hold the same number of pictures, at least one; got '
            f'{ {row.label: len(row.pictures) for row in rows} }'
        )
    num_pictures = len(rows[0].pictures)
    columns = min(columns_per_block, num_pictures)
    blocks = [range(start, min(start + columns, num_pictures)) for start in range(0, num_pictures, columns)]
    # all lengths in inches
    label_width, gap, page_width = 0.28, 0.03, PAGE_WIDTH
    tile_width = (page_width - label_width - 2 * gap) / columns
    tile_height = tile_width * rows[0].pictures[0].shape[0] / rows[0].pictures[0].shape[1]
    block_height = len(rows) * tile_height + 0.14
    lines = _wrapped(caption, 62)
    legend_height = 0.1 + 0.19 * -(-len(legend) // 3) if legend else 0
    caption_height = 0.17 * len(lines) + 0.12 if lines else 0
    page_height = block_height * len(blocks) + legend_height + caption_height
    figure = Figure(figsize=(page_width, page_height))
    for block_index, indices in enumerate(blocks):
        for row_index, row in enumerate(rows):
            bottom = page_height - block_index * block_height - gap - (row_index + 1) * tile_height
            middle = (bottom + tile_height / 2) / page_height
            label, size = _row_label(row.label, tile_height)
            figure.text(
                label_width / 2 / page_width,
                middle,
                label,
                rotation=90,
                ha='center',
                va='center',
                fontsize=size,
                linespacing=1,
            )
            for column, index in enumerate(indices):
                left = label_width + column * tile_width
                place = (left / page_width, bottom / page_height)
                size = ((tile_width - gap) / page_width, (tile_height - gap) / page_height)
                _show(figure.add_axes((*place, *size)), row.pictures[index])
    if legend:
        patches = [Patch(color=np.asarray(colour) / 255, label=name) for name, colour in legend]
        where = (0.5, (caption_height + legend_height / 2) / page_height)
        figure.legend(
            handles=patches,
            loc='center',
            bbox_to_anchor=where,
            ncols=3,
            fontsize=9,
            frameon=False,
            handlelength=1,
            columnspacing=1,
            handletextpad=0.4,
        )
    if lines:
        figure.text(
            0.15 / page_width,
            (caption_height - 0.06) / page_height,
            '\n'.join(lines),
            fontsize=9,
            va='top',
            color='0.25',
        )
    return save_png(figure, path)


def _show(axes: Axes, picture: np.ndarray) -> None:
    is_grey = picture.ndim == 3 and picture.shape[-1] == 1
    axes.imshow(
        picture.squeeze(-1) if is_grey else picture,
        cmap='gray',
        vmin=0,
        vmax=255,
        aspect='equal',  # pictures of a sheet may have other shapes than its first
        interpolation='nearest',
    )
    axes.axis('off')


def _row_label(label: str, length: float) -> tuple[str, float]:
    """(text, points) of a label that has `length` inches: large, else small, else on two small lines, cut."""
    if len(label) * 0.085 <= length:
        return label, 9
    most = max(int(length / 0.06), 4)  # letters of 7 pt
    first, rest = label, ''
    if len(label) > most:
        cut = max(label.rfind(sign, 0, most) for sign in ' -_/') + 1 or most
        first, rest = label[:cut].rstrip(), label[cut:]
    rest = rest if len(rest) <= most else f'{rest[: most - 1]}…'
    return f'{first}\n{rest}' if rest else first, 7


def in_grey(picture: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) without its colours, so that colours laid over it can be told apart."""
    return np.asarray(Image.fromarray(picture).convert('L').convert('RGB'))


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += ' ' + word
        else:
            lines.append(word)
    return lines


def colour_table(num_classes: int) -> np.ndarray:
    """(num_classes, 3) uint8: the colour-blind-safe set first, then a darker version of it; beyond twelve classes hues
    that lie far apart from one class to the next.
    """
    if num_classes > 12:
        hues = [(0.618034 * i % 1, 0.55 + 0.3 * (i % 3) / 2, 0.6 + 0.35 * (i % 2)) for i in range(num_classes)]
        return np.array([[round(255 * part) for part in colorsys.hsv_to_rgb(*hue)] for hue in hues], dtype=np.uint8)
    base = np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in COLOURS[:6]])
    return (
        np.stack([base[i % 6] * 0.6 ** (i // 6) for i in range(num_classes)]).astype(np.uint8).reshape(num_classes, 3)
    )


def overlay_labels(picture: np.ndarray, labels: np.ndarray, colours: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """The picture (H, W, 3) tinted by class; label 0 (background) and labels beyond the table (ignored pixels) stay
    as they are.

    `colours[k - 1]` belongs to label k.
    """
    shown = (labels > 0) & (labels <= len(colours))
    tinted = picture.astype(np.float64)
    tinted[shown] = (1 - opacity) * tinted[shown] + opacity * colours[labels[shown].astype(int) - 1]
    return tinted.round().astype(np.uint8)


def overlay_instances(
    picture: np.ndarray,
    masks: np.ndarray,
    labels: Sequence[int],
    colours: np.ndarray,
    boxes: np.ndarray | None = None,
    opacity: float = 0.5,
) -> np.ndarray:
    """The picture with each instance's mask (N, H, W) tinted in its class's colour and its box (x1, y1, x2, y2) drawn.

    `colours[k]` belongs to label k. Later instances lie above earlier ones.
    """
    drawn = picture.astype(np.float64)
    for mask, label in zip(masks, labels, strict=True):
        drawn[mask.astype(bool)] = (1 - opacity) * drawn[mask.astype(bool)] + opacity * colours[int(label)]
    image = Image.fromarray(drawn.round().astype(np.uint8))
    if boxes is not None:
        pen = ImageDraw.Draw(image)
        for box, label in zip(boxes, labels, strict=True):
            x1, y1, x2, y2 = (float(value) for value in box)
            if x2 > x1 and y2 > y1:
                pen.rectangle((x1, y1, x2, y2), outline=tuple(int(value) for value in colours[int(label)]), width=2)
    return np.asarray(image)


def draw_mosaic(tiles: np.ndarray, path: str | Path, title: str = '', caption: str = '') -> Path:
    """Many small grey pictures as one square of tiles, for example the maps of 64 channels.

    `tiles` are uint8 (number, H, W), drawn row by row, pixels enlarged without smoothing.
    """
    if tiles.ndim != 3 or tiles.dtype != np.uint8 or 0 in tiles.shape:
        raise ValueError(f'tiles must be uint8 of the shape (number, H, W), not {tiles.dtype} {tiles.shape}')
    number, height, width = tiles.shape
    columns = math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    enlarged = tiles.repeat(math.ceil(72 / height), 1).repeat(math.ceil(72 / width), 2)
    cell = np.array(enlarged.shape[1:]) + 6  # pixels between two tiles
    page = np.full((rows * cell[0], columns * cell[1], 3), 255, np.uint8)
    for index, tile in enumerate(enlarged):
        top, left = index // columns * cell[0] + 3, index % columns * cell[1] + 3
        page[top : top + tile.shape[0], left : left + tile.shape[1]] = tile[..., None]
    lines = _wrapped(caption, 66)
    sheet_height = PAGE_WIDTH * page.shape[0] / page.shape[1]
    title_height, caption_height = (0.28 if title else 0), 0.17 * len(lines) + (0.12 if lines else 0)
    page_height = sheet_height + title_height + caption_height
    figure = Figure(figsize=(PAGE_WIDTH, page_height))
    axes = figure.add_axes((0, caption_height / page_height, 1, sheet_height / page_height))
    axes.imshow(page, aspect='auto', interpolation='nearest')
    axes.axis('off')
    if title:
        figure.text(0.02, 1 - 0.2 / page_height, title, fontsize=11, fontweight='bold')
    if lines:
        where = (caption_height - 0.06) / page_height
        figure.text(0.02, where, '\n'.join(lines), fontsize=9, va='top', color='0.25')
    return save_png(figure, path)
