"""Options KEY=VALUE on a config, both ways: what a word of the command line means, and the word for a value.

word --> key, value           value: number, True, None, text, [..] or (..) of these; text in quotes is left as it is
{key: value} --> words        that are read as these values again

Touch this file for what a VALUE may look like; not for which options a tool takes, nor for what is done with them
(run_config.py). Guarded by tests/engine/test_config_options.py.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import DictAction

# Text in quotes that is a whole value: what follows is the next value, the end of the list, or nothing
QUOTED = re.compile(r"""\s*(['"])(.*?)\1\s*(?=[,)\]]|$)""", re.DOTALL)
BRACKETS = {'[': ']', '(': ')'}
SPECIAL = re.compile(r'[\s,\[\]()]')  # what text outside of quotes cannot hold, or only where it exists as a path


class ConfigOptions(DictAction):
    """mmengine's DictAction for `--cfg-options`: the same numbers, lists and tuples, and text that stays whole.

    Blanks inside of text are kept. Text in quotes keeps its commas and brackets too: KEY='"a,b (1)"' in a shell. So
    does, without quotes, the path of a file or folder that exists. Quotes around a whole list mean nothing. A word that
    cannot be read ends as an error of argparse.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        try:
            given = read_options(values or ())
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest, None) or {}), **given})

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        return read_value(val)


def read_options(words: Iterable[str]) -> dict[str, Any]:
    """{key: value} of words KEY=VALUE; of two with one key the later counts. ValueError where a word is none."""
    options = {}
    for word in words:
        key, equals, text = word.partition('=')
        if not equals or not key:
            raise ValueError(
                f'{word!r} is not of the form KEY=VALUE; write KEY=VALUE, and quotes around all of it where the value '
                "holds blanks: 'KEY=my photos'"
            )
        try:
            options[key] = read_value(text)
        except ValueError as error:
            raise ValueError(
                f'{word!r}: {error}; write KEY=VALUE with lists as KEY=[1,2], and text that holds brackets or commas '
                f'in quotes of its own: {key}=\'"a,b (1)"\''
            ) from None
    return options


def read_value(text: str) -> Any:
    """What a VALUE stands for. ValueError when its brackets do not fit."""
    try:
        value = _value(text)
    except ValueError:
        if os.path.exists(text):
            return text
        raise
    return text if any(isinstance(one, str) for one in _leaves(value)) and os.path.exists(text) else value


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Words KEY=VALUE, as they are typed behind --cfg-options; a shell needs shlex.join around them.

    Text that stands for something else without quotes, such as '[1,2]' or '3', stands for that.
    """
    return [f'{key}={_text(value)}' for key, value in options.items()]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        inner = ', '.join(_in_quotes(each) if isinstance(each, str) else _text(each) for each in value)
        return f'[{inner}]' if isinstance(value, list) else f'({inner})'
    text = str(value)
    if SPECIAL.search(text) and isinstance(value, os.PathLike | str) and not _is_bracketed(text):
        return _in_quotes(text)
    return text


def _in_quotes(text: str) -> str:
    quote = next((quote for quote in '\'"' if quote not in text), None)
    if quote is None:
        raise ValueError(f'{text!r} holds both kinds of quotes, so no option can carry it; choose another name')
    return f'{quote}{text}{quote}'


# ---- reading


def _value(text: str) -> Any:
    quoted = QUOTED.match(text)
    if quoted and quoted.end() == len(text):
        inner = quoted[2]
        return _value(inner) if _is_bracketed(inner.strip()) else _scalar(inner, inner)
    parts = _parts(text)
    if len(parts) > 1 or (parts and text.rstrip().endswith(',')):
        return [_value(part) for part in parts]
    text = text.strip().strip('\'"').strip()
    if _is_bracketed(text):
        values = [_value(part) for part in _parts(text[1:-1])]
        return tuple(values) if text[0] == '(' else values
    return _scalar(text, text)


def _scalar(text: str, otherwise: str) -> Any:
    value = DictAction._parse_int_float_bool(text.replace(' ', ''))
    return otherwise if isinstance(value, str) else value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _marks(text: str) -> Iterator[tuple[int, str, dict[str, int]]]:
    """(place, character, how many brackets of each kind are open behind it), without what stands in quotes."""
    place, begins, depth = 0, True, dict.fromkeys(BRACKETS, 0)
    while place < len(text):
        quoted = QUOTED.match(text, place) if begins else None
        if quoted:
            place, begins = quoted.end(), False
            continue
        char = text[place]
        for opening, closing in BRACKETS.items():
            depth[opening] += (char == opening) - (char == closing)
        begins = char in '[(,' or (begins and char.isspace())
        yield place, char, depth
        place += 1


def _parts(text: str) -> list[str]:
    """The text between commas outside of all brackets; nothing behind a last comma."""
    parts, start, open_ = [], 0, dict.fromkeys(BRACKETS, 0)
    for place, char, depth in _marks(text):
        if char == ',' and not any(depth.values()):
            parts.append(text[start:place])
            start = place + 1
        open_ = depth
    whole = text.strip()
    if any(open_.values()) and (',' in text or (whole[0] in BRACKETS and whole[-1] in BRACKETS.values())):
        raise ValueError('its brackets do not fit')
    return [*parts, text[start:]] if text[start:].strip() else parts


def _is_bracketed(text: str) -> bool:
    """True for [..] and (..) whose first bracket is closed by the last character."""
    if not text or BRACKETS.get(text[0]) != text[-1]:
        return False
    for place, _, depth in _marks(text):
        if depth[text[0]] == 0:
            return place == len(text) - 1
    return False
