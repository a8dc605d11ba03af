"""The page of a report in headless Chromium: no errors, charts with the numbers of the logs, tables that sort, a phone,
dark and light, no request, no script but ours.

Skipped, with the reason, where Chromium or plotly is missing; .ci/run installs the first if it may. Screenshots are
kept in the folder MMCNX2_SCREENSHOTS when it is set; look at them after a change of the look.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import work_dirs_by_hand as by_hand
from browser import Browser, find_chromium, running_browser
from PIL import Image

from mmcnx2.analysis.evaluation import Confusion, ModelCost
from mmcnx2.analysis.figures import Line, Panel
from mmcnx2.analysis.page import Charts, Section, Table, Text, build_page, write_page
from mmcnx2.analysis.plotly_script import packed_plotly
from mmcnx2.analysis.run_facts import read_facts
from mmcnx2.analysis.run_log import Curve
from mmcnx2.analysis.run_report import Extras, problems_notice, run_sections

DESKTOP, PHONE = (1280, 900), (360, 780)
EVIL = 'run <b>&amp; $x$'  # neither HTML nor Plotly nor matplotlib may read anything into it
SOME_CHARTS = '[...document.querySelectorAll("#detection .chart[data-kind=lines]")].slice(0, 3)'
OPEN_CHARTS = '[...document.querySelectorAll(".chart[data-kind]")].filter((f) => !f.closest("details:not([open])"))'


def need(found: object, name: str, remedy: str) -> None:
    if not found:
        pytest.skip(f'reports were not tested in a browser: {name} is not installed ({remedy})')


@pytest.fixture(scope='module')
def browser():
    need(find_chromium(), 'Chromium', 'apt-get install chromium')
    need(packed_plotly(), 'plotly', 'pip install plotly')
    with running_browser(find_chromium()) as browser:
        yield browser


@pytest.fixture(scope='module')
def page(browser, tmp_path_factory) -> Path:
    """A page with everything that a report can hold; built when there is a browser to look at it."""
    folder = tmp_path_factory.mktemp('report')
    by_hand.detection_run(folder / 'scratch')
    by_hand.detection_run(folder / 'fcmae', best=0.5, lr=0.003)
    for seed in range(3):
        by_hand.detection_run(folder / f'seed{seed}', best=0.3 + 0.01 * seed, seed=seed)
    by_hand.segmentation_run(folder / 'seg')
    by_hand.segmentation_run(folder / 'other', flip=repr('a long value ' * 20))
    by_hand.pretraining_run(folder / 'pre')
    by_hand.classification_run(folder / 'cls')
    by_hand.write_config(folder / 'empty')
    layers = by_hand.measured_layers([0.4, 0.2, 0.3])
    by_hand.pictures_during_training(folder / 'pre', {2: layers, 4: layers})
    (folder / 'pre' / 'reconstruction').mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (300, 774, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / 'pre' / 'reconstruction' / 'epoch_4.png')
    runs = [
        read_facts({'scratch': EVIL}.get(name, name), folder / name)
        for name in ('scratch', 'fcmae', 'empty', 'seed0', 'seed1', 'seed2', 'seg', 'other', 'pre', 'cls')
    ]
    boxes = Confusion(['circle', 'a <b>class</b>', 'none'], [[6, 2, 2], [0, 9, 1], [0, 4, 0]], 'objects', 20)
    counts = np.random.default_rng(1).integers(0, 1000, (150, 150)).tolist()
    pixels = Confusion([f'class of things {i}' for i in range(150)], counts, 'pixels', 9)
    extras = Extras(
        costs={folder / 'scratch': ModelCost(4_124_972, 2_503_319_296, 128, 128)},
        confusions={folder / 'scratch': boxes, folder / 'fcmae': boxes, folder / 'seg': pixels},
    )
    problems = [problem for facts in runs for problem in facts.problems]
    sections = [*problems_notice(problems), *run_sections(runs, extras)]
    return write_page(build_page('Test of reports', sections, 'end', packed_plotly()), folder / 'report.html')


def look_at(
    browser: Browser, page: Path, screen: tuple[int, int] = DESKTOP, dark: bool = False, charts: str = OPEN_CHARTS
) -> None:
    """Open the page and scroll until the charts are drawn: all outside of folded parts, or those given."""
    browser.set_screen(*screen, dark, is_phone=screen == PHONE)
    browser.problems.clear()
    browser.requests.clear()
    browser.open(page)
    browser.evaluate(
        f'(async () => {{ for (const f of {charts}) {{ f.scrollIntoView({{behavior: "instant"}});'
        ' await new Promise((done) => setTimeout(done, 20)); } window.scrollTo(0, 0); })()'
    )
    browser.wait_for(f'{charts}.every((f) => f.dataset.drawn)')


def keep(browser: Browser, name: str, tmp_path: Path) -> Path:
    folder = Path(os.environ.get('MMCNX2_SCREENSHOTS') or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return browser.screenshot(folder / f'{name}.png', whole_page=True)


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('screen', [DESKTOP, PHONE], ids=['desktop', 'phone'])
def test_page_opens_without_errors_requests_or_sideways_scrolling(browser, page, screen, dark, tmp_path):
    look_at(browser, page, screen, dark)
    browser.evaluate('document.querySelectorAll("details").forEach((each) => { each.open = true; })')
    browser.evaluate(f'{OPEN_CHARTS}.forEach((f) => f.scrollIntoView({{behavior: "instant"}}))')
    assert browser.evaluate('document.documentElement.scrollWidth') == screen[0]
    if screen == PHONE:  # wide tables scroll within their boxes
        boxes = '[...document.querySelectorAll(".wide")]'
        assert browser.evaluate(f'{boxes}.some((box) => box.scrollWidth > box.clientWidth)')
    browser.evaluate('document.querySelectorAll("details").forEach((each) => { each.open = false; })')
    path = keep(browser, f'report-{"phone" if screen == PHONE else "desktop"}-{"dark" if dark else "light"}', tmp_path)
    with Image.open(path) as image:
        brightness = np.asarray(image.convert('L')).mean()
    assert brightness < 70 if dark else brightness > 200
    outside = [address for address in browser.requests if not address.startswith(('data:', 'blob:'))]
    assert outside == [page.absolute().as_uri()]
    assert browser.problems == []


def test_charts_show_the_numbers_of_the_logs(browser, page):
    look_at(browser, page)
    drawn = browser.evaluate(f"""{OPEN_CHARTS}.map((f) => ({{
        kind: f.dataset.kind, title: f.querySelector('figcaption').firstChild.textContent,
        lines: f.querySelectorAll('.scatterlayer path.js-line').length,
        images: f.querySelectorAll('.heatmaplayer image').length,
        traces: f.querySelector('.plot').data.map((t) => ({{x: t.x, y: t.y, z: t.z, real: t.customdata}})),
        texts: [...f.querySelectorAll('text')].map((t) => t.textContent)}}))""")
    detection = [chart for chart in drawn if chart['title'] in ('box AP', 'mask AP')]
    assert len(detection) == 2 and all(chart['lines'] == 5 for chart in detection)  # the empty run has none
    assert detection[0]['traces'][1]['x'] == [50, 100] and detection[0]['traces'][1]['y'] == [0.5, 0.4]
    losses = [chart for chart in drawn if chart['title'] == 'training loss']
    assert len(losses) == 4 and all(chart['lines'] >= 1 for chart in losses)
    in_the_log = [line['loss'] for line in by_hand.train_lines(range(2, 101, 2))]
    assert any(trace.get('real') == in_the_log for chart in losses for trace in chart['traces'])
    matrices = [chart for chart in drawn if chart['kind'] == 'matrix']
    assert [chart['images'] for chart in matrices] == [1, 1, 1]
    assert matrices[0]['traces'][0]['z'] == [[0.6, 0.2, 0.2], [0, 0.9, 0.1], [0, 1, 0]]
    assert matrices[0]['title'] == EVIL and 'a <b>class</b>' in matrices[0]['texts'] and '60' in matrices[0]['texts']
    assert browser.evaluate('[...document.querySelectorAll(".plot")].every((p) => !p.querySelector("b, a"))')
    by_depth = next(chart for chart in drawn if chart['title'] == 'distance before GRN by depth')
    assert by_depth['traces'][0]['x'] == [0, 0.5, 1] and by_depth['traces'][0]['y'] == [0.4, 0.2, 0.3]
    assert {'0.5', '0.6'} & set(by_depth['texts'])  # a depth has ticks between 0 and 1


def test_folded_charts_are_drawn_when_they_are_opened(browser, page):
    look_at(browser, page, charts='[]')
    count = 'document.querySelectorAll("details .chart[data-drawn]").length'
    assert browser.evaluate(count) == 0
    browser.evaluate('document.querySelector("details:has(.chart)").querySelector("summary").click()')
    browser.evaluate('document.querySelector("details:has(.chart)").scrollIntoView()')
    browser.wait_for(f'{count} >= 2')
    assert browser.problems == []


def test_plotly_is_not_unpacked_before_a_chart_comes_near(browser, tmp_path):
    panel = Panel('p', 'x', 'y', [Line('a', Curve((1, 2), (1.0, 2.0)))], from_zero=True)
    sections = [Section('long', [Text(['words'] * 200)]), Section('charts', [Charts([panel])])]
    path = write_page(build_page('t', sections, plotly=packed_plotly()), tmp_path / 'long.html')
    browser.set_screen(*DESKTOP, dark=False)
    browser.open(path)
    assert browser.evaluate('typeof window.Plotly') == 'undefined'
    browser.evaluate('document.querySelector(".chart").scrollIntoView()')
    browser.wait_for('document.querySelector(".chart").dataset.drawn')
    assert browser.evaluate('typeof window.Plotly') == 'object'
    axes = browser.evaluate('(({xaxis, yaxis}) => [xaxis.range[0], yaxis.range[0]])'
                            '(document.querySelector(".plot")._fullLayout)')  # fmt: skip
    assert axes == [0, 0]


TABLE = '[...document.querySelectorAll("#detection table")][0]'


def column(browser: Browser, name: str) -> list[str]:
    """Texts of a column of the table of detection results, from top to bottom."""
    return browser.evaluate(f"""(() => {{
        const head = [...{TABLE}.tHead.rows[0].cells].findIndex((cell) => cell.textContent === '{name}');
        return [...{TABLE}.tBodies[0].rows].map((row) => row.cells[head].textContent); }})()""")


def header(name: str) -> str:
    return f"[...{TABLE}.querySelectorAll('thead button')].find((each) => each.textContent === '{name}')"


def test_tables_sort_both_ways_by_the_numbers_behind_their_texts(browser, page):
    look_at(browser, page, charts='[]')
    assert column(browser, 'run') == [EVIL, 'fcmae', 'empty', 'seed0', 'seed1', 'seed2']
    browser.evaluate(f'{header("best box AP")}.click()')
    ascending = column(browser, 'best box AP')
    assert ascending == [f'{value} (iter 50)' for value in ('0.300', '0.310', '0.320', '0.400', '0.500')] + ['-']
    assert browser.evaluate(f'{header("best box AP")}.parentNode.getAttribute("aria-sort")') == 'ascending'
    browser.evaluate(f'{header("best box AP")}.click()')
    assert column(browser, 'best box AP') == [*reversed(ascending[:-1]), '-']  # what is missing stays below
    assert column(browser, 'run') == ['fcmae', EVIL, 'seed2', 'seed1', 'seed0', 'empty']
    assert browser.evaluate(f'{TABLE}.querySelectorAll("[aria-sort]").length') == 1
    browser.evaluate(f'{header("run")}.click()')
    assert column(browser, 'run') == ['empty', 'fcmae', EVIL, 'seed0', 'seed1', 'seed2']


def test_times_sort_by_their_length_and_not_by_their_text(browser, page):
    look_at(browser, page, charts='[]')
    browser.evaluate(
        '[...document.querySelectorAll("#cost thead button")].find((each) => each.textContent === "in all").click()'
    )
    shown = browser.evaluate('[...document.querySelectorAll("#cost tbody tr")].map((row) => row.cells[3].textContent)')
    times = [text for text in shown if text != '-']
    assert times[0] == '1 min 00 s' and times[-3:] == ['2 min 00 s', '2 min 00 s', '1 h 06 min'], shown


def test_tables_sort_by_keyboard(browser, page):
    look_at(browser, page, charts='[]')
    browser.evaluate(f'{header("run")}.focus()')
    browser.press('Tab')
    assert browser.evaluate('document.activeElement.textContent') == 'box AP'
    browser.press('Enter', '\r')
    assert column(browser, 'box AP') == ['0.200', '0.210', '0.220', '0.300', '0.400', '-']


def test_numbers_in_texts_sort_as_numbers_and_foot_rows_stay(browser, tmp_path):
    rows = [['a', '10 ± 1', 'x10'], ['b', '9.5', 'x9'], ['c', '-', ''], ['d', '-2e1 s', 'x'], ['e', '3', 'X11']]
    table = Table(['', 'n', 'text'], rows, foot=[['total', '0', '']])
    path = write_page(build_page('t', [Section('s', [table])]), tmp_path / 'table.html')
    browser.open(path)
    order = '[...document.querySelectorAll("tbody th, tfoot th")].map((cell) => cell.textContent).join("")'
    for clicks, expected in ((1, 'debactotal'), (1, 'abedctotal')):
        for _ in range(clicks):
            browser.evaluate('document.querySelectorAll("thead button")[1].click()')
        assert browser.evaluate(order) == expected
    browser.evaluate('document.querySelectorAll("thead button")[2].click()')
    assert browser.evaluate(order) == 'dbaectotal'


def test_the_legend_hides_a_run_in_all_charts_of_its_section(browser, page):
    look_at(browser, page, charts=SOME_CHARTS)
    button = '[...document.querySelectorAll("#detection .legend button")].find((each) => each.textContent === "fcmae")'
    lines = f'{SOME_CHARTS}.map((f) => f.querySelectorAll("path.js-line").length)'
    before = browser.evaluate(lines)
    browser.evaluate(f'{button}.click()')
    browser.wait_for(f'({lines}).every((count, i) => count < {before}[i])')
    assert browser.evaluate(f'{button}.getAttribute("aria-pressed")') == 'false'
    browser.evaluate(f'{button}.click()')
    browser.wait_for(f'JSON.stringify({lines}) === "{str(before).replace(" ", "")}"')
    assert browser.evaluate('document.querySelector("#detection .legend button").textContent') == EVIL


def test_a_loss_can_be_seen_on_a_logarithmic_scale(browser, page):
    look_at(browser, page, charts=SOME_CHARTS)
    figure = (
        '[...document.querySelectorAll("#detection .chart")].find((f) => f.textContent.startsWith("training loss"))'
    )
    browser.evaluate(f'{figure}.querySelector("figcaption button").click()')
    browser.wait_for(f'{figure}.querySelector(".plot").layout.yaxis.type === "log"')
    assert browser.evaluate(f'{figure}.querySelector("figcaption button").getAttribute("aria-pressed")') == 'true'


def test_charts_follow_a_change_between_light_and_dark(browser, page):
    look_at(browser, page, charts=SOME_CHARTS)
    colour = 'document.querySelector("#detection .chart .plot").layout.font.color'
    before = browser.evaluate(colour)
    browser.set_screen(*DESKTOP, dark=True)
    browser.wait_for(f'{colour} !== "{before}"')


def test_long_values_open(browser, page):
    look_at(browser, page, charts='[]')
    found = browser.evaluate("""(() => {
        const value = document.querySelector('#segmentation td details'); const before = value.offsetHeight;
        value.querySelector('summary').click();
        return [value.querySelector('pre').textContent, value.offsetHeight > before]; })()""")
    assert found == [repr('a long value ' * 20), True]


def test_without_scripts_charts_are_pictures(browser, page):
    browser.set_screen(*PHONE, dark=False, is_phone=True)
    browser.call('Emulation.setScriptExecutionDisabled', value=True)
    try:
        browser.open(page)
        seen = browser.evaluate(f"""[{OPEN_CHARTS}.length, {OPEN_CHARTS}.filter((f) => {{
            const image = f.querySelector('img'); return image && image.offsetHeight > 100; }}).length,
            document.documentElement.scrollWidth]""")
    finally:
        browser.call('Emulation.setScriptExecutionDisabled', value=False)
    assert seen[0] == seen[1] > 10 and seen[2] == PHONE[0]


def test_a_browser_that_cannot_unpack_shows_the_pictures(browser, page):
    browser.set_screen(*DESKTOP, dark=False)
    script = browser.call('Page.addScriptToEvaluateOnNewDocument', source='delete window.DecompressionStream')
    try:
        browser.open(page)
        browser.wait_for('document.querySelectorAll(".chart > img[src^=\'data:image\']").length > 0')
    finally:
        browser.call('Page.removeScriptToEvaluateOnNewDocument', identifier=script['identifier'])
    assert browser.evaluate('document.querySelector(".chart > img").offsetHeight') > 100


def test_the_policy_of_the_page_refuses_other_scripts_and_every_request(browser, page):
    browser.open(page)
    browser.problems.clear()
    browser.requests.clear()
    ran = browser.evaluate("""(async () => {
        const script = document.createElement('script'); script.textContent = 'window.smuggled = true';
        document.body.append(script);
        document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.smuggled = true">');
        const answer = await fetch('https://example.invalid/').then(() => 'answered', () => 'refused');
        return [answer, window.smuggled === undefined]; })()""")
    assert ran == ['refused', True]
    assert sum('Content Security Policy' in problem for problem in browser.problems) >= 3
    browser.problems.clear()


@pytest.mark.slow
def test_the_page_of_the_demo(browser, quick_demo, tmp_path):
    page = quick_demo[0] / 'work' / 'index.html'
    for screen, dark in ((DESKTOP, False), (PHONE, True)):
        look_at(browser, page, screen, dark)
        assert browser.evaluate('document.documentElement.scrollWidth') == screen[0]
        assert browser.evaluate('document.querySelectorAll("#detection path.js-line").length') >= 4
        assert browser.evaluate('[...document.querySelectorAll("img")].every((image) => image.naturalWidth > 100)')
        assert browser.problems == [] and browser.requests[0] == page.absolute().as_uri()
        keep(browser, f'demo-{"phone-dark" if dark else "desktop-light"}', tmp_path)
