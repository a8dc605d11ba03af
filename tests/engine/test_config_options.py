"""What a VALUE of --cfg-options may look like, beside mmengine's reading of it, and the words that values become."""

import argparse
import random

import pytest
from mmengine.config import DictAction

from mmcnx2.engine.config_options import ConfigOptions, option_words, read_options, read_value


def parsed(*words):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions)
    return parser.parse_args([*words]).cfg_options


def test_numbers_lists_and_tuples_are_those_of_mmengine():
    """Also with blanks between, and in quotes around all of it."""
    draw = random.Random(0)

    def written(depth):
        if depth == 0 or draw.random() < 0.3:
            return draw.choice(['1', '-2.5', '1e-3', 'a/b', '*.x', 'True', 'false', 'None', '"q"', "'q'"])
        kind = draw.choice(['[]', '()'])
        return f'{kind[0]}{",".join(written(draw.randrange(depth)) for _ in range(draw.randrange(4)))}{kind[1]}'

    for _ in range(2000):
        text = written(4).replace(',', draw.choice([',', ', ']))
        assert read_value(text) == DictAction._parse_iterable(text), text
    for text in ('[1, 2]', '"[1, 2]"', '[(1, 2), [a, "b"], None]', "['a', 'b']", '"5"', ' 1, 2', '1,', '[]', '()', ''):
        assert read_value(text) == DictAction._parse_iterable(text), text
    assert read_value('(1,),[2]') == [(1,), [2]]  # mmengine's reading never ends


def test_text_stays_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_value('/data/my photos') == '/data/my photos'
    assert read_value('"/data/a,b (1), [2"') == '/data/a,b (1), [2'
    assert read_value("'my photos'") == 'my photos'
    assert read_value('["a, b", c d, \'e (1)\']') == ['a, b', 'c d', 'e (1)']
    assert read_value('"a", "b"') == ['a', 'b']
    assert read_value("it's, so") == ["it's", 'so']


def test_a_path_that_exists_needs_no_quotes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('a,b', 'set (1)', 'set [1,', '[x]', '1,2', '3'):
        (tmp_path / name).mkdir()
        assert read_value(f'{tmp_path}/{name}') == f'{tmp_path}/{name}'
    assert read_value('a,b') == 'a,b' and read_value('[x]') == '[x]'
    assert read_value('1,2') == [1, 2] and read_value('3') == 3  # numbers are never paths
    assert read_value('a,c') == ['a', 'c']


def test_words_are_read_as_the_values_they_were_made_of():
    values = dict(
        number=3, share=0.5, flag=True, nothing=None, text='a/b', blank='my photos', comma='a,b', bracket='set (1)',
        odd="it's, so", items=[1, (2, 'a, b'), ['c d']], empty=[], one=('x',),
    )  # fmt: skip
    words = option_words(values)
    assert words[:5] == ['number=3', 'share=0.5', 'flag=True', 'nothing=None', 'text=a/b']
    assert read_options(words) == values
    assert option_words({'a': '[1,2]'}) == ['a=[1,2]']  # a list, as it was written by somebody
    with pytest.raises(ValueError, match='both kinds of quotes'):
        option_words({'a': '\'a\', "b"'})


def test_options_given_twice_add_up_and_the_later_one_counts():
    assert parsed('--cfg-options', 'a=1', 'b=x=y', '--cfg-options', 'a=2') == {'a': 2, 'b': 'x=y'}
    assert parsed() is None


@pytest.mark.parametrize('word', ['foo', '=1', 'a=[1,2', 'a=(1,2]', 'a=1,[2'])
def test_what_is_no_option_is_an_error_of_the_command_line(word, capsys):
    with pytest.raises(SystemExit) as end:
        parsed('--cfg-options', word)
    assert end.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f'argument --cfg-options: {word!r}' in last and 'write KEY=VALUE' in last
