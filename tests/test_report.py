"""tools/report.py as a command: what its page says against the logs, by reading the page back; what can go wrong.

The parts are tested in tests/analysis/, the page in a browser in tests/test_report_browser.py, models that are really
trained, drawn and counted in tests/test_demo.py.
"""

import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import work_dirs_by_hand as by_hand
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from PIL import Image

from mmcnx2.analysis import evaluation, samples
from mmcnx2.analysis.run_facts import read_facts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tools'))

import report as tool


class Tables(HTMLParser):
    """The tables of a page by section: rows of (text, number behind it)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sections: dict[str, list[list[list[tuple[str, float | None]]]]] = {}
        self.section, self.cell = '', None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == 'section':
            self.section = attributes['id']
            self.sections[self.section] = []
        elif tag == 'table':
            self.sections[self.section].append([])
        elif tag == 'tr':
            self.sections[self.section][-1].append([])
        elif tag in ('td', 'th'):
            value = attributes.get('data-value')
            self.cell = ['', None if value is None else float(value)]

    def handle_data(self, data):
        if self.cell is not None:
            self.cell[0] += data

    def handle_endtag(self, tag):
        if tag in ('td', 'th'):
            self.sections[self.section][-1][-1].append(tuple(self.cell))
            self.cell = None

    def rows(self, section: str, table: int = 0) -> dict[str, dict[str, tuple[str, float | None]]]:
        """Row name -> column name -> (text, number)."""
        header, *rows = self.sections[section][table]
        names = [text for text, _ in header]
        return {row[0][0]: dict(zip(names[1:], row[1:], strict=True)) for row in rows}


def charts_of(page: str) -> list[dict]:
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """Runs the tool in an empty folder; answers (exit code, page, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MMCNX2_TRACEBACK', raising=False)

    def run(*args):
        code = 0
        try:
            tool.main(list(args))
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        path = tmp_path / 'report.html'
        return code, path.read_text(encoding='utf-8') if path.exists() else '', out, err

    return run


def test_numbers_on_the_page_are_those_of_the_logs(report, tmp_path):
    by_hand.detection_run(tmp_path / 'work' / 'scratch')
    by_hand.detection_run(tmp_path / 'work' / 'fcmae', best=0.5, lr=0.003)
    by_hand.segmentation_run(tmp_path / 'work' / 'seg')
    code, page, out, err = report('second=work/scratch', 'work', '--no-cost')
    assert code == 0 and err in ('', PLOTLY_NOTE) and '3 runs' in out
    tables = Tables(page)
    assert list(tables.sections) == ['detection', 'segmentation', 'cost', 'how-the-runs-were-made']
    assert 'Command: python tools/report.py second=work/scratch work --no-cost</footer>' in page
    detection = tables.rows('detection')
    assert list(detection) == ['second', 'fcmae']  # the named one comes first and is not there twice
    lines = [
        json.loads(line)
        for line in (tmp_path / 'work/scratch/20260101_000000/vis_data/scalars.json').read_text().splitlines()
    ]
    losses = [line['loss'] for line in lines if 'loss' in line]
    aps = [line['coco/bbox_mAP'] for line in lines if 'coco/bbox_mAP' in line]
    assert detection['second']['box AP'][1] == aps[-1] and detection['second']['best box AP'][1] == max(aps)
    assert detection['second']['last loss'][1] == losses[-1] and detection['second']['lowest loss'][1] == min(losses)
    assert tables.rows('detection', 1) == {
        'optim_wrapper.optimizer.lr': {'second': ('0.001', None), 'fcmae': ('0.003', None)}
    }
    assert tables.rows('detection', 2)['coco/bbox_mAP_50'] == {'second': ('0.55', 0.55), 'fcmae': ('0.55', 0.55)}
    assert tables.rows('segmentation')['seg']['mIoU'][1] == 0.6
    if 'id="plotly"' in page:
        chart = next(chart for chart in charts_of(page) if chart['title'] == 'training loss')
        assert [line['label'] for line in chart['lines']] == ['second', 'fcmae']
        assert chart['lines'][0]['y'] == losses
        joined = [chart for chart in charts_of(page) if chart['title'] == 'training loss'][1]['lines'][0]
        assert joined['x'] == list(range(5, 101, 5))


PLOTLY_NOTE = 'note: plotly is not installed, curves are still pictures: pip install plotly\n'


def test_damaged_and_missing_logs_are_named_and_the_others_are_shown(report, tmp_path):
    by_hand.detection_run(tmp_path / 'whole')
    by_hand.detection_run(tmp_path / 'damaged')
    path = next((tmp_path / 'damaged').glob('*/vis_data/scalars.json'))
    lines = path.read_text().splitlines()
    path.write_text('\n'.join(['<b>oops</b>', *lines[1:]]))
    (tmp_path / 'empty' / '20260101_000000' / 'vis_data').mkdir(parents=True)
    (tmp_path / 'empty' / '20260101_000000' / 'vis_data' / 'scalars.json').touch()
    code, page, _, err = report('whole', 'damaged', 'empty', '--no-cost')
    assert code == 0
    notice = re.search(r'<div class="notice"[^>]*>(.*?)</div>', page)[1]
    assert 'damaged: ' in notice and 'line 1 is not JSON' in notice and 'holds no log entry' in notice
    assert 'empty: its config cannot be read' in notice and 'warning: damaged: ' in err
    tables = Tables(page)
    assert next(iter(tables.sections)) == 'not-everything-could-be-read'
    assert list(tables.rows('detection')) == ['whole', 'damaged'] and list(tables.rows('other-runs')) == ['empty']
    assert tables.rows('detection')['damaged']['box AP'][0] == '0.300'


def test_names_and_logs_cannot_bring_tags_into_the_page(report, tmp_path):
    evil = '<img src=x onerror=alert(1)>'
    by_hand.detection_run(tmp_path / evil, seed=repr(evil))
    by_hand.detection_run(tmp_path / 'b', seed=1)
    with next((tmp_path / 'b').glob('*/vis_data/scalars.json')).open('a') as file:
        file.write(json.dumps({f'coco/{evil}': 0.5, 'step': 0}) + '\n' + evil + '\n\n{}\n')
    code, page, _, _ = report(evil, 'b', '--no-cost', '--title', f'</title>{evil}')
    assert code == 0 and evil not in page and '&lt;img src=x onerror' in page
    assert list(Tables(page).rows('detection')) == [evil, 'b']


def test_user_errors_are_one_line(report, tmp_path):
    by_hand.detection_run(tmp_path / 'a')
    by_hand.detection_run(tmp_path / 'b')
    for arguments, words in (
        (['nowhere'], 'error: nowhere is no folder; give work dirs'),
        (['a', '--draw', '-1'], 'error: --draw -1: '),
        (['x=a', 'x=b'], "error: two runs would be called 'x'"),
    ):
        code, page, _, err = report(*arguments)
        assert code == 1 and page == '' and err.startswith(words) and err.count('\n') == 1, err


def test_all_that_lies_among_work_dirs(report, tmp_path):
    """`work_dirs/*`: files, folders of something else, a run that has just begun, the same run under two paths."""
    by_hand.detection_run(tmp_path / 'w' / 'run')
    by_hand.write_config(tmp_path / 'w' / 'begun')
    by_hand.segmentation_run(tmp_path / 'w' / 'group' / 'run')
    (tmp_path / 'w' / 'notes').mkdir()
    (tmp_path / 'w' / 'notes' / 'a.txt').touch()
    (tmp_path / 'w' / 'maps').mkdir()
    Image.new('RGB', (3, 3)).save(tmp_path / 'w' / 'maps' / 'maps_v2.png')
    (tmp_path / 'w' / 'run' / 'reconstruction').mkdir()
    Image.new('RGB', (3, 3)).save(tmp_path / 'w' / 'run' / 'reconstruction' / 'sheet.png')
    (tmp_path / 'w' / 'queue.log').touch()
    (tmp_path / 'w' / 'again').symlink_to(tmp_path / 'w' / 'run')
    code, page, out, err = report(*(f'w/{name}' for name in os.listdir('w') if name != 'again'), 'w/again', '--no-cost')
    assert code == 0 and '3 runs' in out
    assert 'warning: w/queue.log is a file, no work dir; it was left out' in err
    assert 'warning: w/notes holds no config, no log, no checkpoint and no picture; it was left out' in err
    assert 'w/maps' not in err and page.count('sheet</figcaption>') == 1
    assert 'begun: no */vis_data/scalars.json in w/begun: nothing was trained there' in err
    tables = Tables(page)
    assert set(tables.rows('detection')) == {'w/run', 'begun'}
    assert tables.rows('detection')['begun']['state'][0] == 'no checkpoint' and 'begun' in tables.rows('cost')
    assert set(tables.rows('segmentation')) == {'group/run'}
    assert 'other-runs' not in tables.sections
    assert re.search(r'<section id="analysis-of-several-runs">.*<figcaption>maps v2<', page, re.DOTALL)
    code, page, _, err = report('w/notes', 'w/queue.log', '-o', 'none.html')
    assert code == 1 and 'error: there is no run in w/notes, w/queue.log' in err and not Path('none.html').exists()


def test_a_folder_whose_name_holds_an_equals_sign(report, tmp_path):
    by_hand.detection_run(tmp_path / 'lr=0.1')
    _, page, _, _ = report('lr=0.1', '--no-cost')
    assert list(Tables(page).rows('detection')) == ['lr=0.1']


def test_pictures_of_a_folder_of_runs(report, tmp_path):
    by_hand.detection_run(tmp_path / 'work' / 'a')
    (tmp_path / 'work' / 'analysis').mkdir()
    Image.new('RGB', (3, 3)).save(tmp_path / 'work' / 'analysis' / 'collapse.png')
    (tmp_path / 'work' / 'analysis' / 'collapse.json').write_text('{"caption": "Distances of channels"}')
    _, page, _, _ = report('work', '--no-cost')
    assert re.search(r'<section id="analysis-of-several-runs">.*<figcaption>Distances of channels<', page, re.DOTALL)


def test_the_cost_of_a_model_is_counted_once_and_kept(report, tmp_path, monkeypatch):
    by_hand.detection_run(tmp_path / 'a')
    (tmp_path / 'a' / 'mask-rcnn_demo.py').write_text(
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='ImageClassifier', backbone=dict(type='mmcnx2.ConvNeXtV2', arch='atto'),"
        " neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=10, in_channels=320))\n"
        "train_dataloader = dict(dataset=dict(pipeline=[dict(type='RandomResizedCrop', scale=64)]))\n"
    )
    by_hand.detection_run(tmp_path / 'b')  # a model that nobody can build
    code, page, _, err = report('a', 'b')
    cost = Tables(page).rows('cost')
    from mmcnx2.registry import MODELS

    atto = MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch='atto'))
    expected = sum(parameter.numel() for parameter in atto.parameters()) + 320 * 10 + 10
    assert code == 0 and cost['a']['parameters'][1] == expected and cost['a']['FLOPs'][0].endswith('(64 x 64)')
    assert cost['b']['parameters'][0] == '-' and 'warning: b: parameters and FLOPs were not counted: ' in err
    kept = tmp_path / 'a' / 'report' / 'cost.json'
    kept.write_text(kept.read_text().replace(str(expected), '123'))
    assert Tables(report('a')[1]).rows('cost')['a']['parameters'][1] == 123  # read, not counted
    config = tmp_path / 'a' / 'mask-rcnn_demo.py'
    config.write_text(config.read_text() + '# another\n')
    assert Tables(report('a')[1]).rows('cost')['a']['parameters'][1] == expected


# ---- drawing and counting, with models that answer what they are told


class Pictures(torch.utils.data.Dataset):
    """Two validation pictures with one object each."""

    metainfo = dict(classes=('circle', 'square'))
    instances = (
        [dict(bbox=[0, 0, 10, 10], bbox_label=0, ignore_flag=0, mask=[[0, 0, 10, 0, 10, 10, 0, 10]])],
        [dict(bbox=[4, 4, 12, 12], bbox_label=1, ignore_flag=0, mask=[[4, 4, 12, 4, 12, 12, 4, 12]])],
    )

    def __init__(self, folder):
        self.folder = folder

    def __len__(self):
        return 2

    def get_data_info(self, index):
        return dict(img_path=self.folder / f'{index}.png', instances=self.instances[index])


class Answers:
    """Stands for samples.TrainedRun: right about the first picture, wrong about the second."""

    scope = 'mmdet'
    classes = ('circle', 'square')
    loaded: list = []

    def __init__(self, folder):
        self.dataset = Pictures(folder.parent)

    @classmethod
    def load(cls, work_dir):
        cls.loaded.append(work_dir.name)
        if work_dir.name == 'broken':
            raise ValueError('its checkpoint does not fit')
        return cls(work_dir)

    def predict(self, index):
        boxes = torch.tensor([self.dataset.instances[index][0]['bbox']], dtype=torch.float32)
        masks = torch.zeros(1, 16, 16, dtype=torch.bool)
        found = InstanceData(bboxes=boxes, labels=torch.tensor([0]), scores=torch.tensor([0.9]), masks=masks)
        labels = PixelData(data=torch.zeros(1, 16, 16, dtype=torch.long))
        truth = PixelData(data=torch.full((1, 16, 16), index))
        truth.data[0, 0] = 255
        sample = BaseDataElement()
        sample.pred_instances, sample.pred_sem_seg, sample.gt_sem_seg = found, labels, truth
        sample.gt_label, sample.pred_label = torch.tensor([index]), torch.tensor([0])
        return sample

    def predict_all(self):
        return map(self.predict, range(len(self.dataset)))


@pytest.fixture
def answers(monkeypatch, tmp_path):
    monkeypatch.setattr(samples, 'TrainedRun', Answers)
    monkeypatch.setattr(Answers, 'loaded', [])
    for index in range(2):
        Image.fromarray(np.full((16, 16, 3), 90 * index, np.uint8)).save(tmp_path / f'{index}.png')
    return Answers.loaded


@pytest.mark.parametrize(
    ('make', 'counts', 'unit'),
    [
        (by_hand.detection_run, [[1, 0, 0], [1, 0, 0], [0, 0, 0]], 'objects'),
        (by_hand.segmentation_run, [[240, 0], [240, 0]], 'pixels'),
        (by_hand.classification_run, [[1, 0], [1, 0]], 'images'),
    ],
)
def test_classes_are_counted(answers, tmp_path, make, counts, unit):
    make(tmp_path / 'run')
    found = evaluation.confusion_of(read_facts('run', tmp_path / 'run'))
    assert (found.counts, found.unit, found.num_images) == (counts, unit, 2)
    assert list(found.classes) == ['circle', 'square', 'none'][: len(counts)]


def test_counts_and_pictures_are_kept_until_a_checkpoint_changes(answers, report, tmp_path):
    for name in ('a', 'b'):
        by_hand.detection_run(tmp_path / name)
    arguments = ('a', 'b', '--no-cost', '--evaluate', '--draw', '2')
    code, first, _, err = report(*arguments)
    assert code == 0 and err in ('', PLOTLY_NOTE), err
    assert sorted(answers) == ['a', 'a', 'b', 'b']  # counted and drawn
    assert (tmp_path / 'a' / 'report' / 'detection.png').is_file() and not (
        tmp_path / 'b/report/detection.png'
    ).exists()
    classes = Tables(first).rows('detection', 1)
    assert classes['circle']['found: a'][1] == 1.0 and classes['square']['mostly taken for: b'][0] == 'circle (100%)'
    assert first.count('and detections that score 0.5 or more.</figcaption>') == 1
    answers.clear()
    assert report(*arguments)[1].count('mostly taken for') == first.count('mostly taken for') and answers == []
    os.utime(tmp_path / 'b' / 'iter_100.pth', (1, 1))
    report(*arguments)
    assert answers == ['b', 'a', 'b']  # counted again, and the common sheet drawn again
    answers.clear()
    report(*arguments, '--anew')
    assert sorted(answers) == ['a', 'a', 'b', 'b']


def test_a_run_that_cannot_be_loaded_does_not_cost_the_others(answers, report, tmp_path):
    for name in ('broken', 'whole'):
        by_hand.segmentation_run(tmp_path / name)
    code, page, _, err = report('broken', 'whole', '--no-cost', '--evaluate', '--draw', '1')
    assert code == 0
    assert 'warning: broken: classes were not counted: its checkpoint does not fit' in err
    assert 'warning: broken: no pictures were drawn: its checkpoint does not fit' in err
    assert 'broken: no pictures were drawn' in re.search(r'<div class="notice"[^>]*>(.*?)</div>', page)[1]
    tables = Tables(page)
    assert list(tables.rows('segmentation', 1)['circle'])[1:] == ['IoU: whole', 'found: whole', 'right: whole',
                                                                  'mostly taken for: whole']  # fmt: skip
    assert page.count('predicted class of every pixel.</figcaption>') == 1


def test_a_validation_set_without_names_of_classes(tmp_path):
    run = samples.TrainedRun('mmpretrain', None, SimpleNamespace(metainfo={}))
    with pytest.raises(ValueError, match='its validation set does not name its classes'):
        run.classes  # noqa: B018


def test_runs_with_other_validation_pictures_have_sheets_of_their_own(answers, report, tmp_path):
    for name in ('a', 'b'):
        by_hand.detection_run(tmp_path / name)
    config = tmp_path / 'b' / 'mask-rcnn_demo.py'
    config.write_text(config.read_text() + "val_dataloader = dict(dataset=dict(type='Others'))\n")
    _, page, out, _ = report('a', 'b', '--no-cost', '--draw', '1')
    assert 'draw a\ndraw b\n' in out and page.count('or more.</figcaption>') == 2


def test_a_segmentation_sheet_knows_classes_with_and_without_background(answers, tmp_path):
    run = Answers(tmp_path / 'run')
    run.predict = lambda index: SimpleNamespace(
        gt_sem_seg=PixelData(data=torch.tensor([[[0, 1], [255, 1]]])),
        pred_sem_seg=PixelData(data=torch.tensor([[[1, 1], [1, 1]]])),
    )
    run.dataset.__len__ = lambda: 1
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / '0.png')
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / '1.png')
    sheet = samples.segmentation_sheet([('run', run)], 1)
    truth = sheet.rows[1].pictures[0]
    assert [name for name, _ in sheet.legend] == ['circle', 'square']
    assert truth[1, 0].tolist() == [0, 0, 0] and truth[0, 0].any() and truth[0, 1].any()  # ignored stays, both tinted
    run.classes = ['background', 'square']
    sheet = samples.segmentation_sheet([('run', run)], 1)
    truth = sheet.rows[1].pictures[0]
    assert [name for name, _ in sheet.legend] == ['square']
    assert not truth[0, 0].any() and not truth[1, 0].any() and truth[0, 1].any()
