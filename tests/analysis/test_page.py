"""The page stands alone: nothing in it points outside, and text cannot break it. How it behaves in a browser is tested
in tests/test_report_browser.py.
"""

import base64
import gzip
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mmcnx2.analysis.figures import Line, Matrix, Panel
from mmcnx2.analysis.page import (
    Cell,
    Charts,
    Code,
    Folded,
    Heading,
    Notice,
    Picture,
    Section,
    Table,
    Text,
    build_page,
    json_in_page,
    number_cell,
    write_page,
)
from mmcnx2.analysis.plotly_script import PackedScript, packed_plotly, script_digest
from mmcnx2.analysis.run_log import Curve

EVIL = '_$x_{$</script><script>alert(1)</script><img src=x onerror=alert(2)> & "quoted" \'too\''
PLOTLY = PackedScript(base64.b64encode(gzip.compress(b'window.Plotly = {}')).decode(), 'sha256-PLOTLY')
PANEL = Panel(
    EVIL, EVIL, EVIL, [Line(EVIL, Curve((1, 2), (0.5, math.nan)), [0.5, math.nan]), Line('b', Curve((1,), (1.0,)))],
    (1.0, EVIL),
)  # fmt: skip
MATRIX = Matrix(EVIL, EVIL, EVIL, [EVIL, 'b'], ['c', EVIL], [[1, 3], [0, 0]])


class Parsed(HTMLParser):
    """Tags with attributes, in order, and the texts of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[tuple[dict, str]] = []
        self.in_script = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.in_script = tag == 'script'
        if self.in_script:
            self.scripts.append((dict(attrs), ''))

    def handle_endtag(self, tag):
        self.in_script = False

    def handle_data(self, data):
        if self.in_script:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)


def everything(folder, evil=EVIL):
    Image.new('RGB', (20, 20)).save(folder / 'a.png')
    return [
        Section(
            evil,
            [
                Text([evil]),
                Notice([evil]),
                Heading(evil),
                Table([evil, 'box AP'], [[evil, Cell(evil, 0.5)], ['b', evil * 3]], foot=[[evil, evil]], words=True),
                Picture(folder / 'a.png', evil),
                Code(evil),
                Charts([PANEL, MATRIX]),
                Folded(evil, [Text([evil])]),
            ],
        ),
        Section(evil, []),
    ]


@pytest.mark.parametrize('plotly', [None, PLOTLY])
def test_no_text_becomes_a_tag_and_nothing_points_outside(tmp_path, plotly):
    path = write_page(build_page(EVIL, everything(tmp_path), EVIL, plotly), tmp_path / 'page.html')
    text = path.read_text(encoding='utf-8')
    page = Parsed(text)
    assert not any(name.startswith('on') for _, attributes in page.tags for name in attributes)
    assert not {'iframe', 'object', 'embed', 'base', 'form'} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ('src', 'href', 'srcset', 'action', 'data', 'poster'):
            assert attributes.get(name, 'data:').startswith(('data:', '#')), attributes
    assert '@import' not in text and 'url(' not in text and 'http://' not in text and 'https://' not in text
    # the page's own script, and with plotly the packed one and the data of two charts, which do not run
    kinds = [attributes.get('type') for attributes, _ in page.scripts]
    assert kinds == [None] if plotly is None else ['application/json'] * 2 + ['text/plain', None]
    # no picture but ours: one, and the stills of the charts
    sources = [attributes['src'] for tag, attributes in page.tags if tag == 'img']
    assert len(sources) == 3 and all(source.startswith('data:image/') for source in sources)
    assert 'prefers-color-scheme: dark' in text and 'width=device-width' in text


def test_the_policy_allows_the_two_scripts_and_nothing_else(tmp_path):
    page = Parsed(build_page('t', everything(tmp_path), plotly=PLOTLY))
    policy = next(attributes['content'] for tag, attributes in page.tags if attributes.get('http-equiv'))
    assert policy.startswith("default-src 'none'; ")
    allowed = re.search(r'script-src ([^;]*);', policy)[1].split()
    own = next(text for attributes, text in page.scripts if not attributes)
    assert allowed == [f"'{script_digest(own)}'", "'sha256-PLOTLY'"]
    without_charts = build_page('t', [Section('s', [Text(['x'])])], plotly=PLOTLY)
    assert 'PLOTLY' not in without_charts and 'id="plotly"' not in without_charts  # two megabytes for nothing


def test_chart_data_are_the_curve_and_survive_the_way(tmp_path):
    page = Parsed(build_page('t', everything(tmp_path), plotly=PLOTLY))
    lines, matrix = (
        json.loads(text) for attributes, text in page.scripts if attributes.get('type') == 'application/json'
    )
    assert lines['title'] == EVIL and [line['label'] for line in lines['lines']] == [EVIL, 'b']
    assert lines['lines'][0]['x'] == [1, 2] and lines['lines'][0]['y'] == [0.5, None]  # a gap where it diverged
    assert lines['reference'] == {'value': 1.0, 'text': EVIL}
    assert matrix['values'] == [[1, 3], [0, 0]] and matrix['shares'] == [[0.25, 0.75], [None, None]]
    assert json_in_page('</script>\u2028') == '"\\u003c/script>\\u2028"'
    with pytest.raises(ValueError, match='JSON'):
        json_in_page(math.inf)


def test_long_curves_are_thinned_together_with_their_mean():
    count = 20_000
    values = tuple(float(i % 7) for i in range(count))
    line = Line('long', Curve(tuple(range(count)), values), [value / 2 for value in values])
    page = Parsed(build_page('t', [Section('s', [Charts([Panel('p', 'x', 'y', [line])])])], plotly=PLOTLY))
    data = json.loads(next(text for attributes, text in page.scripts if attributes.get('type') == 'application/json'))
    drawn = data['lines'][0]
    assert len(drawn['x']) == len(drawn['y']) == len(drawn['smooth']) <= 1500
    assert all(
        y == values[x] and smooth == y / 2 for x, y, smooth in zip(*map(drawn.get, ('x', 'y', 'smooth')), strict=True)
    )


def test_cells_carry_the_number_behind_their_text():
    table = Table(
        ['', 'a'], [['x', Cell('0.351', 0.35123456789)], ['y', number_cell(None, '')], ['z', Cell('nan', math.nan)]]
    )
    text = build_page('t', [Section('s', [table])])
    assert '<td data-value="0.35123456789">0.351</td>' in text and '<td>-</td>' in text
    assert '<td data-sort="nan">nan</td>' in text


def test_long_values_are_short_until_opened():
    value = 'x' * 200 + '<end>'
    text = build_page('t', [Section('s', [Table(['', 'a'], [['k', value]])])])
    found = re.search(r'<td data-sort="([^"]*)"><details><summary>(.*?)</summary><pre>(.*?)</pre>', text)
    assert found[1] == found[3] == 'x' * 200 + '&lt;end&gt;' and len(found[2]) <= 40


def test_large_photographs_are_packed_and_plots_stay_exact(tmp_path):
    photograph = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(tmp_path / 'photo.png')
    plot = np.zeros((100, 100, 3), np.uint8)
    plot[50] = (200, 10, 30)
    Image.fromarray(plot).save(tmp_path / 'plot.png')
    text = build_page('t', [Section('s', [Picture(tmp_path / name, name) for name in ('photo.png', 'plot.png')])])
    contents = [base64.b64decode(data) for data in re.findall(r'src="data:image/\w+;base64,([^"]*)"', text)]
    assert len(contents[0]) < (tmp_path / 'photo.png').stat().st_size / 2
    with Image.open(io.BytesIO(contents[0])) as image:
        assert image.size == (400, 400)
    with Image.open(io.BytesIO(contents[1])) as image:
        assert np.array_equal(np.asarray(image.convert('RGB')), plot)


def test_pictures_that_cannot_be_shown(tmp_path):
    with pytest.raises(ValueError, match=r'\.png'):
        build_page('t', [Section('s', [Picture(tmp_path / 'a.svg', 'c')])])
    (tmp_path / 'broken.png').write_bytes(b'\x89PNG\r\n\x1a\nbroken')
    text = build_page('t', [Section('s', [Picture(tmp_path / 'broken.png', 'my <caption>')])])
    assert 'my &lt;caption&gt;: ' in text and 'broken.png cannot be shown' in text and '<img' not in text


def test_sections_with_the_same_title_have_links_of_their_own():
    text = build_page('t', [Section('A b', []), Section('A b', []), Section('?', [])])
    targets = re.findall(r'<a href="#([^"]*)"', text)
    assert len(set(targets)) == 3 and targets == re.findall(r'<section id="([^"]*)"', text)


def test_packed_plotly_is_plotly():
    plotly = packed_plotly()
    if plotly is None:
        pytest.skip('plotly is not installed')
    script = gzip.decompress(base64.b64decode(plotly.packed)).decode()
    assert 'plotly.js v' in script[:200] and plotly.digest == script_digest(script)
    assert len(plotly.packed) < 2.5e6


def test_pictures_that_follow_each_other_stand_side_by_side(tmp_path):
    for name in 'abc':
        Image.new('RGB', (2, 2)).save(tmp_path / f'{name}.png')
    a, b, c = (Picture(tmp_path / f'{name}.png', name) for name in 'abc')
    page = build_page('t', [Section('s', [Text(['x']), a, b, Folded('more', [c])])])
    shape = re.sub(r'<figure.*?<figcaption>(.)</figcaption></figure>', r'\1', page[page.index('<main>') :])
    assert '<p>x</p><div class="pictures">ab</div><details>' in shape
    assert '</summary><div class="pictures">c</div></details>' in shape
