"""One HTML page that holds everything it shows: no network, no script, no second file.

Pictures are inlined, colours follow the reader's dark or light setting, and the layout is one column, so it reads on
a phone. Every text is escaped here; callers pass plain text. Touch it for the look of the page. Not for numbers or
figures. Guarded by tests/analysis/test_page.py.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mmcnx2.atomic_write import write_atomically


@dataclass(frozen=True)
class Text:
    """Paragraphs, one per entry."""

    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Table:
    """First column: row names, to the left; the others to the right, as numbers are."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG file to inline, with the text that stands in for it and below it."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Code:
    """Text as typed: commands, settings."""

    text: str


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Text | Table | Picture | Code]


STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1e21; --soft: #5b6168; --line: #d9dde2; --panel: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --back: #15181b; --text: #e6e8ea; --soft: #a2a9b0; --line: #343a40; --panel: #1f2428; } }
body { margin: 0 auto; max-width: 46rem; padding: 1rem; background: var(--back); color: var(--text);
       font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
thead th { color: var(--soft); font-weight: 600; font-size: .9rem; }
figure { margin: 1rem 0; }
img { display: block; width: 100%; height: auto; border-radius: 6px; background: #fff; }
figcaption, footer { color: var(--soft); font-size: .9rem; margin-top: .4rem; }
pre { overflow-x: auto; background: var(--panel); border-radius: 6px; padding: .75rem; font-size: .8rem;
      line-height: 1.45; }
@media (max-width: 30rem) {
  body { padding: .75rem; } th, td { padding: .35rem .25rem; font-size: .85rem; } thead th { font-size: .8rem; } }
"""


def _inlined(picture: Picture) -> str:
    kinds = {'.png': 'image/png', '.jpg': 'image/jpeg', '.jpeg': 'image/jpeg'}
    kind = kinds.get(picture.path.suffix.lower())
    if kind is None:
        raise ValueError(f'{picture.path} cannot be put into the page; allowed are {sorted(kinds)}')
    data = base64.b64encode(picture.path.read_bytes()).decode('ascii')
    caption = escape(picture.caption)
    return f'<figure><img alt="{caption}" src="data:{kind};base64,{data}"><figcaption>{caption}</figcaption></figure>'


def _table(table: Table) -> str:
    head = ''.join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = ''.join('<tr>' + ''.join(f'<td>{escape(cell)}</td>' for cell in row) + '</tr>' for row in table.rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _part(part: Text | Table | Picture | Code) -> str:
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Picture):
        return _inlined(part)
    if isinstance(part, Code):
        return f'<pre>{escape(part.text)}</pre>'
    return ''.join(f'<p>{escape(paragraph)}</p>' for paragraph in part.paragraphs)


def build_page(title: str, sections: Sequence[Section], footer: str = '') -> str:
    """The whole page as text."""
    body = ''.join(
        f'<section><h2>{escape(section.title)}</h2>{"".join(map(_part, section.parts))}</section>\n'
        for section in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f'<body><h1>{escape(title)}</h1>\n{body}<footer>{escape(footer)}</footer></body></html>\n'
    )


def write_page(text: str, path: str | Path) -> Path:
    """Write the page in one step."""
    write_atomically(path, text)
    return Path(path)
