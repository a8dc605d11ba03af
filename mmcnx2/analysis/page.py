"""One HTML page that holds everything it shows: no network and no second file. Parts in, text out.

Pictures are inlined, colours follow the reader's dark or light setting, a phone's 360 px are wide enough, tables sort.
Charts are drawn by plotly when the page is given it, and each carries a still picture for readers without scripts.
Every text is escaped here; callers pass plain text. The page's own policy lets nothing run but its two scripts and
nothing be fetched. Touch it for what a page can be made of; its look is in page.css, what it does in page.js. Not for
numbers. Guarded by tests/analysis/test_page.py and, in a browser, tests/test_report_browser.py.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from mmcnx2.atomic_write import write_atomically

from .comparison import NOT_RUN
from .figures import Line, Matrix, Panel, curves_figure, line_style, matrix_figure, small_png
from .plotly_script import PackedScript, script_digest
from .run_log import thinned

MOST_POINTS = 1500  # of a line in a chart; its lowest and highest values stay
SHORT = 40  # characters of a long value that a table shows before it is opened
LARGE_PICTURE = 250_000  # bytes; photographs above it are packed with loss
PICTURE_KINDS = {'.png': 'image/png', '.jpg': 'image/jpeg', '.jpeg': 'image/jpeg', '.webp': 'image/webp'}


@dataclass(frozen=True)
class Text:
    """Paragraphs, one per entry."""

    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Notice:
    """Paragraphs that a reader must not miss, in a box."""

    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Cell:
    """A cell of a table. `value` is the number behind the text, by which it is sorted."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """First column: row names, to the left; the others to the right, as numbers are, or to the left when `words`.

    `foot` rows stay at the end, however the table is sorted.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    foot: Sequence[Sequence[str | Cell]] = ()
    words: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG, JPEG or WebP file to inline, with the text that stands in for it and below it."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Code:
    """Text as typed: commands, settings."""

    text: str


@dataclass(frozen=True)
class Charts:
    """Charts side by side, below each other on a phone; one legend switches the lines of all of them."""

    charts: Sequence[Panel | Matrix]


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Folded:
    """Parts that are opened by their title."""

    title: str
    parts: Sequence[Part]


Part = Text | Notice | Table | Picture | Code | Charts | Heading | Folded


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Part]


def number_cell(value: float | None, text: str) -> Cell:
    """A cell that shows `text` and sorts by `value`; '-' without a value. Pass 'nan' as text for what diverged."""
    return Cell(NOT_RUN) if value is None else Cell(text, value)


# ---- pictures


def _data_address(kind: str, content: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(content).decode("ascii")}'


def _smallest(kind: str, content: bytes) -> tuple[str, bytes]:
    """The picture as it is, or as WebP where that is smaller; large ones with a loss that one does not see."""
    packed = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image = image if image.mode in ('RGB', 'RGBA') else image.convert('RGBA')
        if len(content) > LARGE_PICTURE:
            image.save(packed, 'WEBP', quality=88, method=4)
        else:
            image.save(packed, 'WEBP', lossless=True, method=3)
    return min((kind, content), ('image/webp', packed.getvalue()), key=lambda each: len(each[1]))


def _picture(picture: Picture) -> str:
    kind = PICTURE_KINDS.get(picture.path.suffix.lower())
    if kind is None:
        raise ValueError(f'{picture.path} cannot be put into the page; allowed are {sorted(PICTURE_KINDS)}')
    caption = escape(picture.caption)
    try:
        address = _data_address(*_smallest(kind, picture.path.read_bytes()))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a damaged file
        return _part(Notice([f'{picture.caption}: {picture.path} cannot be shown: {error}']), False)
    return (
        f'<figure class="picture"><img alt="{caption}" decoding="async" src="{address}">'
        f'<figcaption>{caption}</figcaption></figure>'
    )


# ---- tables


def _cell(cell: str | Cell, tag: str, attributes: str = '') -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    if cell.value is not None:
        attributes += f' data-value="{cell.value!r}"' if math.isfinite(cell.value) else ' data-sort="nan"'
    shown = escape(cell.text)
    if tag == 'th':
        shown = re.sub(r'(?<=[\w)])([._/-])(?=\w)', r'\1<wbr>', shown)  # where a narrow column may break it
    if len(cell.text) > SHORT and tag == 'td':
        start = escape(cell.text[: SHORT - 2])
        attributes += f' data-sort="{shown}"' if cell.value is None else ''
        shown = f'<details><summary>{start} …</summary><pre>{shown}</pre></details>'
    return f'<{tag}{attributes}>{shown}</{tag}>'


def _row(row: Sequence[str | Cell]) -> str:
    return '<tr>' + _cell(row[0], 'th', ' scope="row"') + ''.join(_cell(cell, 'td') for cell in row[1:]) + '</tr>'


def _table(table: Table) -> str:
    head = ''.join(_cell(cell, 'th', ' scope="col"') for cell in table.header)
    body = ''.join(map(_row, table.rows))
    foot = f'<tfoot>{"".join(map(_row, table.foot))}</tfoot>' if table.foot else ''
    kind = ' class="words"' if table.words else ''
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="table">'
        f'<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table></div>'
    )


# ---- charts


def _finite(values: Iterable[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _line_data(line: Line, place: int) -> dict:
    kept = thinned(line.curve, MOST_POINTS)
    smooth = None
    if line.smooth is not None:
        by_step = dict(zip(line.curve.steps, line.smooth, strict=True))
        smooth = _finite(by_step[step] for step in kept.steps)
    colour, dash = line_style(line, place)
    return {
        'label': line.label,
        'colour': colour,
        'dash': dash,
        'x': list(kept.steps),
        'y': _finite(kept.values),
        'smooth': smooth,
    }


def _chart_data(chart: Panel | Matrix) -> dict:
    common = {'title': chart.title, 'x_label': chart.x_label, 'y_label': chart.y_label}
    if isinstance(chart, Matrix):
        return {
            'kind': 'matrix',
            **common,
            'row_names': list(chart.row_names),
            'column_names': list(chart.column_names),
            'values': [list(row) for row in chart.values],
            'shares': chart.shares(),
        }
    return {
        'kind': 'lines',
        **common,
        'lines': [_line_data(line, place) for place, line in enumerate(chart.lines)],
        'from_zero': chart.from_zero,
        'reference': {'value': chart.reference[0], 'text': chart.reference[1]} if chart.reference else None,
    }


def json_in_page(data: object) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(',', ':'))
    return text.replace('<', '\\u003c').replace('\u2028', '\\u2028').replace('\u2029', '\\u2029')


def _chart(chart: Panel | Matrix, is_drawn: bool) -> str:
    figure = matrix_figure(chart) if isinstance(chart, Matrix) else curves_figure([chart])
    still = _data_address('image/png', small_png(figure))
    title = escape(chart.title)
    description = escape(f'{chart.title}: {chart.y_label} against {chart.x_label}')
    image = f'<img alt="{description}" src="{still}">'
    if not is_drawn:
        return f'<figure class="chart">{image}</figure>'
    data = _chart_data(chart)
    shape = ' square' if data['kind'] == 'matrix' else ''
    return (
        f'<figure class="chart" data-kind="{data["kind"]}"><figcaption>{title}</figcaption>'
        f'<div class="plot{shape}" role="img" aria-label="{description}"></div>'
        f'<noscript>{image}</noscript><script type="application/json">{json_in_page(data)}</script></figure>'
    )


def _legend(charts: Sequence[Panel | Matrix]) -> str:
    """Entries for all lines of the charts; nothing for a single one."""
    styles: dict[str, tuple[str, str]] = {}
    for chart in charts:
        for place, line in enumerate(chart.lines if isinstance(chart, Panel) else ()):
            styles.setdefault(line.label, line_style(line, place))
    if len(styles) < 2:
        return ''
    dashes = {'-': 'none', '--': '7 4', '-.': '7 3 2 3', ':': '2 3'}
    entries = ''.join(
        '<li><span><svg width="26" height="10" aria-hidden="true"><line x1="0" x2="26" y1="5" y2="5" stroke-width="3" '
        f'stroke="{"currentColor" if colour == "#000000" else colour}" stroke-dasharray="{dashes[dash]}"/></svg>'
        f'{escape(label)}</span></li>'
        for label, (colour, dash) in styles.items()
    )
    return f'<ul class="legend">{entries}</ul>'


def _charts(part: Charts, is_drawn: bool) -> str:
    figures = ''.join(_chart(chart, is_drawn) for chart in part.charts)
    legend = _legend(part.charts) if is_drawn else ''
    return f'<div class="group">{legend}<div class="charts">{figures}</div></div>'


# ---- the page


def _paragraphs(paragraphs: Sequence[str]) -> str:
    return ''.join(f'<p>{escape(paragraph)}</p>' for paragraph in paragraphs)


def _parts(parts: Sequence[Part], is_drawn: bool) -> str:
    """The parts in order; pictures that follow each other stand side by side where there is room."""
    text = ''
    for are_pictures, group in itertools.groupby(parts, lambda part: isinstance(part, Picture)):
        inside = ''.join(_part(part, is_drawn) for part in group)
        text += f'<div class="pictures">{inside}</div>' if are_pictures else inside
    return text


def _part(part: Part, is_drawn: bool) -> str:
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Picture):
        return _picture(part)
    if isinstance(part, Charts):
        return _charts(part, is_drawn)
    if isinstance(part, Code):
        return f'<pre tabindex="0">{escape(part.text)}</pre>'
    if isinstance(part, Heading):
        return f'<h3>{escape(part.text)}</h3>'
    if isinstance(part, Notice):
        return f'<div class="notice" role="note">{_paragraphs(part.paragraphs)}</div>'
    if isinstance(part, Folded):
        return f'<details><summary>{escape(part.title)}</summary>{_parts(part.parts, is_drawn)}</details>'
    return _paragraphs(part.paragraphs)


def _holds_charts(parts: Sequence[Part]) -> bool:
    return any(isinstance(part, Charts) or (isinstance(part, Folded) and _holds_charts(part.parts)) for part in parts)


def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding='utf-8')


def _names(titles: Sequence[str]) -> list[str]:
    """A name per section for links to it, each once."""
    names: list[str] = []
    for title in titles:
        name = re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-') or 'section'
        names.append(name if name not in names else f'{name}-{len(names)}')
    return names


def build_page(title: str, sections: Sequence[Section], footer: str = '', plotly: PackedScript | None = None) -> str:
    """The whole page as text. `plotly`: what draws the charts (`packed_plotly()`); None: they are still pictures."""
    is_drawn = plotly is not None and any(_holds_charts(section.parts) for section in sections)
    own_script = _beside('page.js')
    allowed = [script_digest(own_script), *([plotly.digest] if is_drawn else [])]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(repr, allowed))}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    names = _names([section.title for section in sections])
    links = ''.join(
        f'<a href="#{name}">{escape(section.title)}</a>' for name, section in zip(names, sections, strict=True)
    )
    body = ''.join(
        f'<section id="{name}"><h2>{escape(section.title)}</h2>'
        f'{_parts(section.parts, is_drawn)}</section>\n'
        for name, section in zip(names, sections, strict=True)
    )
    packed = f'<script type="text/plain" id="plotly">{plotly.packed}</script>\n' if is_drawn else ''
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f'<title>{escape(title)}</title>\n<style>\n{_beside("page.css")}</style></head>\n'
        f'<body><h1>{escape(title)}</h1>\n<nav aria-label="sections">{links}</nav>\n<main>\n{body}</main>\n'
        f'<footer>{escape(footer)}</footer>\n{packed}<script>{own_script}</script></body></html>\n'
    )


def write_page(text: str, path: str | Path) -> Path:
    """Write the page in one step."""
    write_atomically(path, text)
    return Path(path)
