"""The page stands alone: nothing in it points outside, and text cannot break it."""

import re

import pytest
from PIL import Image

from mmcnx2.analysis.page import Code, Picture, Section, Table, Text, build_page, write_page


def test_page_is_self_contained_and_escaped(tmp_path):
    Image.new('RGB', (2, 2)).save(tmp_path / 'a.png')
    text = build_page(
        'A <title>',
        [
            Section(
                'one & two',
                [
                    Text(['x < y']),
                    Table(['', 'box AP'], [['<b>', '0.1']]),
                    Picture(tmp_path / 'a.png', 'a "caption"'),
                    Code('a && b'),
                ],
            )
        ],
        footer='end',
    )
    path = write_page(text, tmp_path / 'page.html')
    assert path.read_text(encoding='utf-8') == text
    assert 'data:image/png;base64,' in text
    outside = [address for address in re.findall(r'(?:src|href)="([^"]*)"', text) if not address.startswith('data:')]
    assert outside == [] and 'http' not in text and '<script' not in text and '@import' not in text
    assert 'A &lt;title&gt;' in text and 'x &lt; y' in text and '&lt;b&gt;' in text and 'a &amp;&amp; b' in text
    assert 'prefers-color-scheme: dark' in text and 'width=device-width' in text


def test_unknown_picture_kind(tmp_path):
    with pytest.raises(ValueError, match=r'\.png'):
        build_page('t', [Section('s', [Picture(tmp_path / 'a.svg', 'c')])])
