"""The card on top of a config: what it is, how it is run, what it needs, what to expect, where its values come from.

A card is the docstring of a config file, read without running the file. Touch it for the form of a card; not for what a
card must say about its config, which tests/test_configs.py checks. Guarded by tests/engine/test_config_card.py.
"""

import ast
import os
import re
from dataclasses import dataclass
from pathlib import Path

FIELDS = ('Run', 'Needs', 'Expect', 'Source')
NUMBER = r'(\d+(?:\.\d+)?)'
# How Expect writes each figure
FIGURES = {
    'box AP': rf'\bbox AP {NUMBER}',
    'mask AP': rf'\bmask AP {NUMBER}',
    'mIoU': rf'\bmIoU {NUMBER}',
    'top-1': rf'{NUMBER}%[^,]*? top-1\b|\btop-1 {NUMBER}',
}


@dataclass(frozen=True)
class ConfigCard:
    """The fields of a card, each as one line of text."""

    title: str
    run: str
    needs: str
    expect: str
    source: str

    @property
    def published(self) -> dict[str, float]:
        """Figures that Expect states as published for this very config: {'box AP': 52.9, 'mask AP': 46.6}.

        Its first clause counts, up to a ';' outside parentheses, and only if what stands in parentheses there says
        'published'. What follows (figures of other models, 'with our code not run yet') does not. Keys are those of
        `FIGURES`, in their order; AP, mIoU and top-1 in per cent. Empty when nothing was published.
        """
        clause = re.match(r'(?:\([^()]*\)|[^;()])*', self.expect)[0]
        remarks = ' '.join(re.findall(r'\([^()]*\)', clause))
        if 'published' not in remarks:
            return {}
        statement = re.sub(r'\([^()]*\)', '', clause)
        found = {name: re.search(pattern, statement) for name, pattern in FIGURES.items()}
        return {name: float(next(group for group in match.groups() if group)) for name, match in found.items() if match}


def read_card(path: str | os.PathLike) -> ConfigCard:
    """The card of a config file.

    Raises:
        ValueError: the file has no docstring, or its fields are not Run, Needs, Expect and Source, in this order and
            each with a text.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
    except SyntaxError as error:
        raise ValueError(f'{path} is no Python file: {error.msg}, line {error.lineno}') from error
    if not text:
        raise ValueError(f'{path} has no card. Begin it with a docstring: a title, an empty line, and {_form()}')
    title, _, body = text.partition('\n\n')
    fields = re.findall(r'^(\w+):(.*(?:\n[ \t].*)*)', body, flags=re.MULTILINE)
    names = tuple(name for name, _ in fields)
    empty = [name for name, value in fields if not value.strip()]
    if names != FIELDS or empty:
        what = f'the fields {", ".join(names) or "none"}' if names != FIELDS else f'nothing after {", ".join(empty)}'
        raise ValueError(f'the card of {path} has {what}. It needs {_form()}')
    run, needs, expect, source = (' '.join(value.split()) for _, value in fields)
    return ConfigCard(' '.join(title.split()), run, needs, expect, source)


def _form() -> str:
    return ', '.join(f"'{name}: ...'" for name in FIELDS) + ', in this order, further lines indented'
