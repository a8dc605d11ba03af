"""What a report says of runs: every number of its tables and charts against the logs that were written by hand."""

import json
import math

import numpy as np
import pytest
import work_dirs_by_hand as by_hand
from PIL import Image

from mmcnx2.analysis.evaluation import Confusion, ModelCost
from mmcnx2.analysis.figures import Matrix, Panel
from mmcnx2.analysis.page import Cell, Charts, Code, Folded, Heading, Picture, Table
from mmcnx2.analysis.run_facts import read_facts
from mmcnx2.analysis.run_report import (
    Extras,
    caption_of,
    class_tables,
    cost_table,
    duration,
    origin_section,
    pictures_of,
    problems_notice,
    results_table,
    run_sections,
    series_below,
    state_of,
)


@pytest.fixture
def runs(tmp_path):
    by_hand.detection_run(tmp_path / 'b', best=0.47, lr=0.002)
    by_hand.detection_run(tmp_path / 'a')
    by_hand.segmentation_run(tmp_path / 's')
    by_hand.pretraining_run(tmp_path / 'p')
    by_hand.classification_run(tmp_path / 'c')
    return [read_facts(name, tmp_path / name) for name in 'bsapc']


def by_name(table: Table) -> dict[str, dict[str, Cell]]:
    """Row name -> column name -> cell."""
    rows = {}
    for row in table.rows:
        cells = [Cell(cell) if isinstance(cell, str) else cell for cell in row]
        rows[cells[0].text] = dict(zip(table.header[1:], cells[1:], strict=True))
    return rows


def panels_of(section) -> dict[str, Panel]:
    return {
        chart.title: chart
        for part in section.parts
        for charts in ([part] if isinstance(part, Charts) else part.parts if isinstance(part, Folded) else [])
        if isinstance(charts, Charts)
        for chart in charts.charts
    }


def test_tasks_in_order_and_runs_as_given(runs):
    sections = run_sections(runs)
    assert [section.title for section in sections] == [
        'Pretraining', 'Classification', 'Detection', 'Segmentation', 'Cost',
    ]  # fmt: skip
    assert list(by_name(sections[2].parts[0])) == ['b', 'a']  # not by name: as on the command line
    assert list(by_name(sections[4].parts[0])) == ['p', 'c', 'b', 'a', 's']


def test_results_are_those_of_the_logs(runs):
    found = {section.title: by_name(section.parts[0]) for section in run_sections(runs)}
    b = found['Detection']['b']
    assert b['box AP'] == Cell('0.370', 0.47 - 0.1) and b['best box AP'] == Cell('0.470 (iter 50)', 0.47)
    assert b['mask AP'] == Cell('0.470', 0.47) and b['best mask AP'].text == '0.470 (iter 100)'
    lines = by_hand.train_lines(range(2, 101, 2))
    assert b['last loss'].value == lines[-1]['loss']
    assert b['lowest loss'].value == min(line['loss'] for line in lines)
    assert b['steps'] == Cell('100', 100) and b['state'].text == 'complete'
    s = found['Segmentation']['s']
    assert s['mIoU'] == Cell('0.600', 0.6) and s['best mIoU'] == Cell('0.613 (iter 75)', 0.6125)
    assert s['state'].text == 'complete, 2 starts'
    c = found['Classification']['c']
    assert c['top-1'].value == 0.25 and c['best top-1'] == Cell('0.300 (epoch 2)', 0.3)
    assert set(found['Pretraining']['p']) == {'last loss', 'lowest loss', 'steps', 'state'}


def test_curves_are_those_of_the_logs(runs):
    sections = {section.title: section for section in run_sections(runs)}
    detection = panels_of(sections['Detection'])
    lines = by_hand.train_lines(range(2, 101, 2))
    assert [line.label for line in detection['training loss'].lines] == ['b', 'a']
    drawn = detection['training loss'].lines[0]
    assert drawn.curve.values == tuple(line['loss'] for line in lines) and drawn.curve.steps == tuple(range(2, 101, 2))
    # the learning rate of the head, not the one that layer decay gives the first layer
    assert detection['learning rate'].lines[0].curve.values == tuple(line['base_lr'] for line in lines)
    assert detection['box AP'].lines[0].curve.steps == (50, 100) and detection['box AP'].x_label == 'iterations'
    assert {'loss_cls', 'loss_bbox', 'grad_norm'} < set(detection)
    segmentation = panels_of(sections['Segmentation'])
    assert segmentation['mIoU'].lines[0].curve.values == (0.3, 0.455, 0.6125, 0.6)
    joined = segmentation['training loss'].lines[0].curve
    assert joined.steps == tuple(range(5, 101, 5))  # 55 and 60 of the first start did not lead to the result
    assert joined.values[-10] == by_hand.train_lines(range(55, 56), start=1.8)[0]['loss']
    classification = panels_of(sections['Classification'])
    assert classification['top-1'].x_label == 'epochs' and classification['top-1'].lines[0].curve.steps == (1, 2, 3)
    assert panels_of(sections['Pretraining'])['training loss'].reference[0] == 1.0


def test_a_run_looks_the_same_in_every_chart(tmp_path):
    by_hand.write_config(tmp_path / 'a')  # nothing was logged: it has no line
    by_hand.detection_run(tmp_path / 'b')
    runs = [read_facts(name, tmp_path / name) for name in 'ab']
    section = run_sections(runs)[0]  # 'a' is known as a detector by its config
    assert {line.style for panel in panels_of(section).values() for line in panel.lines} == {1}


def test_one_validation_makes_no_curve(tmp_path):
    by_hand.write_config(tmp_path / 'a')
    lines = [*by_hand.train_lines(range(10, 101, 10)), {'coco/bbox_mAP': 0.2, 'step': 0}]
    by_hand.write_attempt(tmp_path / 'a', lines)
    facts = read_facts('a', tmp_path / 'a')
    section = run_sections([facts])[0]
    assert 'box AP' not in panels_of(section)
    cells = by_name(section.parts[0])['a']
    assert cells['box AP'].value == 0.2 and 'best box AP' not in cells


def test_diverged_and_missing_values(tmp_path):
    by_hand.detection_run(tmp_path / 'good')
    by_hand.write_config(tmp_path / 'bad')
    by_hand.write_attempt(tmp_path / 'bad', [{'loss': math.nan, 'lr': 0.1, 'step': 1}])
    table = by_name(results_table([read_facts(name, tmp_path / name) for name in ('good', 'bad')]))
    assert table['bad']['box AP'] == Cell('-') and table['bad']['lowest loss'] == Cell('-')
    assert table['bad']['last loss'].text == 'nan' and table['bad']['state'].text == 'no checkpoint'


@pytest.mark.parametrize(
    ('checkpoint', 'expected'),
    [
        ('iter_100.pth', 'complete'),
        ('iter_60.pth', 'at 60 of 100 iterations'),
        ('epoch_2.pth', 'at epoch 2; 100 iterations were asked for'),
        ('mine.pth', '-'),
    ],
)
def test_state(tmp_path, checkpoint, expected):
    by_hand.write_config(tmp_path)
    by_hand.write_attempt(tmp_path, by_hand.train_lines(range(10, 61, 10)))
    by_hand.finish(tmp_path, checkpoint)
    assert state_of(read_facts('x', tmp_path)) == expected


def test_cost(runs, tmp_path):
    by_hand.write_config(tmp_path / 'empty')
    cost = ModelCost(4_124_972, 2_503_319_296, 128, 160)
    facts = [*runs, read_facts('empty', tmp_path / 'empty')]
    table = by_name(cost_table(facts, {runs[0].folder: cost}))
    assert table['b']['parameters'] == Cell('4.12 M', 4_124_972)
    assert table['b']['FLOPs'] == Cell('2.5 G (160 x 128)', 2_503_319_296)
    assert table['b']['training'] == Cell('25 s', 25.0) and table['b']['in all'] == Cell('1 min 00 s', 60.0)
    assert table['b']['images seen'] == Cell('400', 400) and table['b']['machine'].text == 'CPU'
    p = table['p']
    assert p['images seen'].value == 40 * 4 * 2 and p['machine'].text == '2 x NVIDIA Test'
    assert p['memory'] == Cell('2.04 GB', 2088.0) and p['in all'].text == '1 h 06 min'
    assert table['s']['in all'].value == 120
    assert {cell.text for name, cell in table['empty'].items() if name != 'task'} == {'-'}


@pytest.mark.parametrize(('seconds', 'text'), [(4.321, '4.32 s'), (59.9, '1 min 00 s'), (3599.7, '1 h 00 min')])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_config_differences_leave_out_what_is_equal(runs):
    parts = run_sections(runs)[2].parts
    place = parts.index(Heading('Where the configs differ'))
    assert by_name(parts[place + 1]) == {'optim_wrapper.optimizer.lr': {'b': Cell('0.002'), 'a': Cell('0.001')}}


def test_pictures_with_captions_and_the_ends_of_a_series(tmp_path):
    for name in ('epoch_2', 'epoch_10', 'epoch_1', 'epoch_3', 'epoch_4', 'epoch_5', 'deep/er', 'odd'):
        path = tmp_path / f'{name}.png'
        path.parent.mkdir(exist_ok=True)
        Image.new('RGB', (2, 2)).save(path)
    (tmp_path / 'epoch_10.json').write_text(json.dumps({'caption': 'the <last>', 'numbers': [1]}))
    (tmp_path / 'odd.json').write_text('[broken')
    series = series_below(tmp_path, 'run')
    assert [len(each) for each in series] == [1, 4, 1]
    found = {picture.path.stem: picture.caption for each in series for picture in each}
    assert list(found) == ['er', 'epoch_1', 'epoch_3', 'epoch_4', 'epoch_10', 'odd']  # 4 of 6, in the order of numbers
    last, earlier = pictures_of(tmp_path.parent, [tmp_path.name], 'run')[1:3]
    assert last.path.stem == 'epoch_10' and [picture.path.stem for picture in earlier.parts] == list(found)[1:4]
    assert found['epoch_10'] == 'run: the <last> (one of 6)' and found['odd'] == 'run: odd'
    assert caption_of(tmp_path / 'deep' / 'er.png') == 'er'
    (tmp_path / 'odd.json').write_text(json.dumps({'command': 'python tools/x.py', 'caption': 7}))
    assert caption_of(tmp_path / 'odd.png') == 'odd (python tools/x.py)'
    assert series_below(tmp_path / 'nowhere') == []


def test_pictures_in_the_work_dir_are_shown(runs):
    for place in ('reconstructions/epoch_4.png', 'analysis/collapse.png', 'collapse/epoch_1.png'):
        path = runs[3].folder / place
        path.parent.mkdir()
        Image.new('RGB', (2, 2)).save(path)
    parts = run_sections(runs)[0].parts
    captions = [part.caption for part in parts if isinstance(part, Picture)]
    assert captions == ['p: reconstructions, epoch 4', 'p: collapse', 'p: collapse, epoch 1']
    assert Heading('Feature collapse') not in parts  # nothing was measured


def test_what_the_hooks_of_pretraining_leave(runs, tmp_path):
    measured = {2: by_hand.measured_layers([0.4, 0.3, 0.2]), 4: by_hand.measured_layers([0.3, 0.1, 0.2], num_dead=5)}
    by_hand.pictures_during_training(runs[3].folder, measured)
    by_hand.pretraining_run(tmp_path / 'q')  # measured nothing
    by_hand.pretraining_run(tmp_path / 'r')
    layers = by_hand.measured_layers([0.25])
    by_hand.pictures_during_training(tmp_path / 'r', {3: {**layers, 'stages.1': layers['stages.0.0.gelu']}})
    section = run_sections([read_facts(name, tmp_path / name) for name in 'qpr'])[0]
    pictures = [part.path for part in section.parts if isinstance(part, Picture)]
    assert [path.relative_to(tmp_path).as_posix() for path in pictures] == [
        'p/reconstructions/epoch_4.png', 'r/reconstructions/epoch_3.png',
    ]  # fmt: skip
    folded = next(part for part in section.parts if isinstance(part, Folded) and part.title.startswith('Earlier'))
    assert [picture.path.name for picture in folded.parts] == ['epoch_2.png']
    results = by_name(section.parts[0])
    assert results['p']['error of the sheet, 0.6 hidden'] == Cell('0.6', 0.6) and results['q']['last loss'].value
    place = section.parts.index(Heading('Feature collapse'))
    table = by_name(section.parts[place + 1])
    assert list(table) == ['p, before GRN', 'p, after GRN', 'r, before GRN', 'r, after GRN', 'r, named layers']
    row = table['p, before GRN']
    assert row['measured at'] == Cell('epoch 4', 4) and row['mean distance'] == Cell('0.200', pytest.approx(0.2))
    assert row['least distance'] == Cell('0.100', 0.1) and row['dead'] == Cell('15', 15)
    assert row['saturated'] == Cell('4', 4) and row['of channels'] == Cell('480', 480)
    charts = {(chart.title, chart.x_label): chart.lines for chart in section.parts[place + 3].charts}
    assert len(charts) == 4  # a single layer or a single measurement of one run makes none
    by_depth = charts['distance before GRN by depth', 'depth (first block 0, last 1)']
    assert by_depth[0].curve.steps == (0, 0.5, 1) and by_depth[0].curve.values == (0.3, 0.1, 0.2)
    assert [line.style for line in by_depth] == [1, 2]  # as in the curves of the loss
    over_time = charts['mean distance after GRN', 'epochs'][0].curve
    assert over_time.steps == (2, 4) and over_time.values == pytest.approx((0.33, 0.22))
    errors = panels_of(section)['error of the sheet, 0.6 hidden']
    assert errors.lines[0].curve.steps == (2, 4) and errors.lines[0].curve.values == (0.8, 0.6)
    assert errors.x_label == 'epochs' and errors.reference[0] == 1.0


def test_where_runs_come_from(runs, tmp_path):
    section = origin_section(runs)
    table = by_name(section.parts[0])
    p = table['p']
    assert p['config'].text == 'fcmae_demo.py' and p['last checkpoint'].text == 'epoch_4.pth'
    assert p['started'].text == '2026/01/01 00:00:00' and p['seed'].text == '17' and p['python'].text == '3.11.7'
    assert p['torch'].text == '2.12.1+cu130' and p['folder'].text == str(tmp_path / 'p')
    [code] = section.parts[2].parts
    assert section.parts[2].title == '5 commands'
    lines = code.text.splitlines()
    a, p = tmp_path / 'a', tmp_path / 'p'
    assert lines[2] == f'python tools/train.py {a}/mask-rcnn_demo.py --work-dir {a}-again'
    assert lines[3] == f'bash tools/dist_train.sh {p}/fcmae_demo.py 2 --work-dir {p}-again'
    config = a / 'mask-rcnn_demo.py'
    config.write_text(f'{config.read_text()}resume = True\nload_from = "x.pth"\n')
    [code] = origin_section([read_facts('a', a)]).parts[2:]
    assert code == Code(f'{lines[2]} --cfg-options resume=False load_from=None')
    (a / 'mask-rcnn_demo.py').unlink()
    assert len(origin_section([read_facts('a', a)]).parts) == 1


def test_where_a_run_was_resumed_is_no_difference(tmp_path):
    for name in 'ab':
        by_hand.detection_run(tmp_path / name)
    for name, more in (('a', 'resume = True\nload_from = "x.pth"\n'), ('b', 'resume = False\nload_from = None\n')):
        config = tmp_path / name / 'mask-rcnn_demo.py'
        config.write_text(config.read_text() + more)
    parts = run_sections([read_facts(name, tmp_path / name) for name in 'ab'])[0].parts
    assert Heading('Configs') in parts and Heading('Where the configs differ') not in parts


def test_confused_classes(runs):
    counts = [[6, 2, 2], [1, 3, 0], [0, 4, 0]]
    confusion = Confusion(['cat', 'dog', 'none'], counts, 'objects', 7)
    sections = {
        section.title: section for section in run_sections(runs, Extras(confusions={runs[0].folder: confusion}))
    }
    matrix = next(chart for chart in panels_of(sections['Detection']).values() if isinstance(chart, Matrix))
    assert matrix.values == counts and matrix.title == 'b' and matrix.shares()[0] == [0.6, 0.2, 0.2]
    [table] = class_tables({'b': confusion})
    assert by_name(table) == {
        'cat': {
            'true objects': Cell('10', 10), 'found: b': Cell('0.600', 0.6), 'right: b': Cell('0.857', 6 / 7),
            'mostly taken for: b': Cell('dog (20%)'),
        },
        'dog': {
            'true objects': Cell('4', 4), 'found: b': Cell('0.750', 0.75), 'right: b': Cell('0.333', 3 / 9),
            'mostly taken for: b': Cell('cat (25%)'),
        },
    }  # fmt: skip


def test_classes_of_pixels_side_by_side_and_other_classes_apart():
    one = Confusion(['sky', 'sea'], [[3, 1], [0, 0]], 'pixels', 1)
    two = Confusion(['sky', 'sea'], [[4, 0], [0, 0]], 'pixels', 1)
    other = Confusion(['road'], [[5]], 'pixels', 1)
    first, second = class_tables({'one': one, 'two': two, 'other': other})
    sky, sea = by_name(first)['sky'], by_name(first)['sea']
    assert sky['IoU: one'].value == 0.75 and sky['IoU: two'].value == 1.0
    assert sea['found: one'] == Cell('-') and np.isclose(sea['IoU: one'].value, 0) and sea['IoU: two'] == Cell('-')
    assert list(by_name(second)) == ['road']


def test_problems_have_a_section_only_when_there_are_any():
    assert problems_notice([]) == []
    assert problems_notice(['x is broken'])[0].parts[0].paragraphs == ['x is broken']
