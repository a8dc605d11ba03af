"""The ablation tables: rows that the configs document, options that act, verdicts by hand, and a small run."""

import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

import mmcnx2
from mmcnx2.analysis import ablation_runs
from mmcnx2.analysis.ablation_runs import (
    SmallScale,
    draw_data,
    fine_tune,
    fine_tuning_backbone,
    held_out_loss,
    pretrain,
    pretraining_model,
    run_row,
    settings_of,
)
from mmcnx2.analysis.ablations import TABLES, MeasuredRow, conclusion, find_table, judged, table_markdown
from mmcnx2.checkpoint import CheckpointError

TINY = SmallScale(
    channels=(8, 8, 16, 16), depths=(1, 1, 1, 1), decoder_channels=32, scene_size=96, crop_size=64,
    num_unlabelled=16, num_held_out=8, num_train=16, num_test=12, epochs=1, batch_size=8, fine_tuning_epochs=1,
    fine_tuning_batch_size=8,
)  # fmt: skip
ROWS = [(name, row) for name, table in TABLES.items() for row in table.rows]


def text_of(config):
    return (mmcnx2.configs_dir() / config).read_text()


# ---- rows


@pytest.mark.parametrize(('name', 'row'), ROWS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_the_config_documents_each_row(name, row):
    """Its options and the paper's number stand in the file of the table."""
    table = TABLES[name]
    text = text_of(table.pretraining) + text_of(table.fine_tuning)
    for key, value in row.options.items():
        twin = key.replace('model.neck.', 'model.backbone.')
        assert (twin if twin in row.options else key) in text
        assert str(value) in text
    assert row.published is None or f'{row.published:g}' in text
    assert 'python tools/ablate.py' in text


@pytest.mark.parametrize('name', TABLES)
def test_each_option_makes_another_model(name):
    """Rows differ from each other in pretraining or fine-tuning; every key is one that the config or model knows."""
    table = TABLES[name]
    seen = []
    for row in table.rows:
        torch.manual_seed(0)
        model = pretraining_model(table, row, TINY)
        parameters = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        cfg = Config.fromfile(mmcnx2.configs_dir() / table.fine_tuning)
        cfg.merge_from_dict(row.fine_tuning_options)
        seen.append((repr(model), parameters, model.layout, model.mask_ratio, str(cfg.model.backbone)))
        images = torch.randn(2, 3, 96, 160)
        assert torch.isfinite(model.loss(images)['loss'])
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i])
    assert table.reference in [row.name for row in table.rows]


def test_options_act_as_they_say():
    def model(table, row):
        rows = {each.name: each for each in TABLES[table].rows}
        return pretraining_model(TABLES[table], rows[row], TINY)

    assert [len(model('decoder-depth', depth).neck.blocks) for depth in ('1', '4', '12')] == [1, 4, 12]
    assert [model('decoder-width', width).neck.out_channels for width in ('128', '512', '1024')] == [8, 32, 64]
    assert [type(model('decoder-type', row.name).neck).__name__ for row in TABLES['decoder-type'].rows] == [
        'UNetDecoder', 'UNetDecoder', 'TransformerDecoder', 'FCMAEDecoder'
    ]  # fmt: skip
    assert model('sparse-convolution', 'leaking').layout == 'leaking'
    images = torch.zeros(2, 3, 96, 160)
    shares = [model('mask-ratio', row.name).draw_visible(images).sum().item() for row in TABLES['mask-ratio'].rows]
    assert shares == [2 * int(15 * (1 - tenths / 10)) for tenths in range(1, 10)]  # 15 cells a picture
    for model_, kind in ((model('norm-layers', 'no GRN'), type(None)), (model('norm-layers', 'BN'), 'BatchNorm')):
        for block in (model_.backbone.stages[2][0], model_.neck.blocks[0]):
            assert type(block.grn) is kind or type(block.grn).__name__ == kind
    for row in TABLES['decoder-type'].rows:  # table 1 and section 3 come before GRN
        assert not [key for key in model('decoder-type', row.name).backbone.state_dict() if '.grn.' in key]


@pytest.mark.parametrize('name', ['grn-stages', 'grn-aggregation', 'norm-layers', 'decoder-type'])
def test_fine_tuning_continues_the_row(name, tmp_path):
    """The backbone is the pretrained one, weight by weight; in grn-stages GRN comes or goes as the row says."""
    in_fine_tuning = []
    for row in TABLES[name].rows:
        model = pretraining_model(TABLES[name], row, TINY)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'pretrained.pth')
        backbone = fine_tuning_backbone(TABLES[name], row, TINY, tmp_path / 'pretrained.pth')
        assert backbone.gap_before_final_norm
        ours, theirs = backbone.state_dict(), model.backbone.state_dict()
        assert all(ours[key].equal(theirs[key]) for key in set(ours) & set(theirs)), row.name
        in_fine_tuning.append((any('.grn.' in key for key in theirs), any('.grn.' in key for key in ours)))
        if name != 'grn-stages':
            assert set(ours) ^ set(theirs) == {'norm3.weight', 'norm3.bias'}
    if name == 'grn-stages':
        assert in_fine_tuning == [(False, False), (True, False), (False, True), (True, True)]


def test_grn_changes_only_where_the_row_says_so(tmp_path):
    stages, norms = TABLES['grn-stages'], TABLES['norm-layers']
    torch.save(dict(state_dict=pretraining_model(stages, stages.rows[0], TINY).state_dict()), tmp_path / 'none.pth')
    with pytest.raises(CheckpointError, match='change_grn=True'):
        fine_tuning_backbone(norms, norms.rows[-1], TINY, tmp_path / 'none.pth')
    assert norms.rows[1].fine_tuning_options == {'model.backbone.response_norm.name': 'lrn'}


def test_unknown_tables_are_refused():
    with pytest.raises(ValueError, match=r"no ablation table 'grn'; choose among decoder-type"):
        find_table('grn')


# ---- verdicts by hand


def row(name, published, *top1):
    return MeasuredRow(name, published, top1, [0.5] * len(top1), [1.0] * len(top1))


REFERENCE = row('GRN', 84.6, 50.0, 52.0, 54.0)


@pytest.mark.parametrize(
    ('other', 'expected'),
    [
        (REFERENCE, 'reference'),
        (row('a', 83.7, 47.0, 48.9, 51.2), 'worse, as in the paper'),
        (row('a', 85.0, 47.0, 48.9, 51.2), 'worse; the paper: the reverse'),
        (row('a', 85.0, 53.0, 54.9, 57.2), 'better, as in the paper'),
        (row('a', 84.6, 53.0, 54.9, 57.2), 'better; the paper sees no difference'),
        (row('a', None, 53.0, 54.9, 57.2), 'better; the paper has no number'),
        (row('a', 83.7, 49.0, 48.0, 54.5), 'no conclusion'),  # -1, -4, +0.5
        (row('a', 83.7, 49.9, 46.0, 53.9), 'no conclusion'),  # -0.1, -6, -0.1: every seed, within two errors
        (row('a', 83.7), 'not run'),
    ],
)
def test_verdicts(other, expected):
    assert judged(REFERENCE, other) == expected


def test_a_difference_counts_with_the_same_sign_at_every_seed_only():
    """-3, -3, -3, -3 and 0.1: five standard errors, but one seed says otherwise."""
    reference, other = row('GRN', 84.6, *[50.0] * 5), row('a', 83.7, 47.0, 47.0, 47.0, 47.0, 50.1)
    assert judged(reference, other) == 'no conclusion'
    assert judged(reference, row('a', 83.7, 47.0, 47.0, 47.0, 47.0, 49.9)) == 'worse, as in the paper'


def test_one_seed_gives_no_conclusion():
    assert judged(row('GRN', 84.6, 50.0), row('a', 83.7, 10.0)) == 'no conclusion'


def test_conclusions():
    worse, unclear = row('a', 83.7, 47.0, 48.9, 51.2), row('b', 83.7, 49.0, 48.0, 54.5)
    against = row('c', 85.0, 47.0, 48.9, 51.2)
    assert conclusion('GRN', [REFERENCE, unclear]) == (
        'No conclusion at this scale: no difference exceeds its spread over the seeds.'
    )
    assert conclusion('GRN', [worse, unclear, REFERENCE, against]) == (
        '2 of 3 differences exceed their spread; as in the paper: a; the reverse of the paper: c.'
    )


def test_the_table():
    rows = [row('average', 83.7, 49.0, 48.0, 54.5), row('L1 norm', 84.3), row('L2 norm', 84.6, 50.0, 52.0, 54.0)]
    text = table_markdown('grn-aggregation', rows)
    assert '| average | 83.7 | 50.5 ± 3.5 | 0.5000 ± 0.0000 | no conclusion |' in text
    assert '| L1 norm | 84.3 | - | - | not run |' in text
    assert '| L2 norm | 84.6 | 52.0 ± 2.0 | 0.5000 ± 0.0000 | reference |' in text


# ---- a small run


@pytest.fixture(scope='module')
def data():
    return draw_data(TINY)


def test_data(data):
    assert data.unlabelled.shape == (16, 3, 96, 96) and data.held_out.shape == (8, 3, 96, 96)
    assert data.train.shape == (16, 3, 64, 64) and data.test_labels.shape == (12,)
    again = draw_data(TINY)
    assert torch.equal(data.unlabelled, again.unlabelled) and torch.equal(data.test, again.test)
    assert not torch.equal(data.unlabelled[:8], data.held_out)
    assert not torch.equal(data.unlabelled, draw_data(TINY, seed=1).unlabelled)


def test_the_largest_object_is_cut_out():
    """Object 2, 8 x 4 pixels of value 200, of class 5; with its margin of 4 the square is 15 wide."""
    image, instance = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), int)
    instance[0:3, 0:3], instance[10:18, 20:24] = 1, 2
    image[instance == 2], image[instance == 1] = 200, 100
    scene = types.SimpleNamespace(image_HWC=image, instance_HW=instance, classes=[3, 5])
    picture, label = ablation_runs._largest_object(scene, 30)
    assert label == 5 and picture.shape == (30, 30, 3)
    assert picture[15, 15, 0] == 200 and picture[0, 0, 0] == 0 and picture.max() == 200
    assert (picture[..., 0] > 100).mean() == pytest.approx(32 / 15**2, abs=0.03)


def test_held_out_loss_by_hand(data):
    """A prediction of zero scores (n - 1) / n of each normalised cell, whatever the masks; the masks are fixed."""
    table = TABLES['grn-aggregation']
    model = pretraining_model(table, table.rows[-1], TINY)
    first = held_out_loss(model, data.held_out, 64)
    torch.manual_seed(5)
    assert held_out_loss(model, data.held_out, 64) == first and not model.training
    nn.init.zeros_(model.head.pred.weight), nn.init.zeros_(model.head.pred.bias)
    assert held_out_loss(model, data.held_out, 64) == pytest.approx(3071 / 3072, abs=1e-3)


def test_learning_rate_by_hand():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = []
    for step in range(20):
        ablation_runs._set_lr(optimizer, 2.0, step, 20)
        rates.append(optimizer.param_groups[0]['lr'])
    assert rates[:3] == [1.0, 2.0, 2.0] and rates[11] == pytest.approx(1.0)  # 9 of 18 steps of the cosine
    assert rates[-1] == pytest.approx(1 + np.cos(np.pi * 17 / 18))


def test_pretraining_and_fine_tuning_learn(data):
    table, scale = TABLES['grn-aggregation'], SmallScale(**{**vars(TINY), 'epochs': 30, 'fine_tuning_epochs': 40})
    torch.manual_seed(0)
    model = pretraining_model(table, table.rows[-1], scale)
    before = held_out_loss(model, data.held_out, 64)
    pretrain(model, data.unlabelled, scale, seed=0)
    assert held_out_loss(model, data.held_out, 64) < before - 0.015
    backbone = mmcnx2.models.ConvNeXtV2(
        dict(depths=list(scale.depths), channels=list(scale.channels)), gap_before_final_norm=True
    )
    by_heart = ablation_runs.SmallData(
        data.unlabelled, data.held_out, data.train, data.train_labels, data.train, data.train_labels
    )
    assert fine_tune(backbone, by_heart, scale, 0) > 60


def test_a_row_depends_on_its_seed_and_on_nothing_else(data, tmp_path):
    table = TABLES['grn-stages']
    row = table.rows[1]
    first = run_row(table, row, TINY, data, 0, tmp_path)
    torch.manual_seed(99)
    assert run_row(table, row, TINY, data, 0, tmp_path) == first
    assert run_row(table, row, TINY, data, 1, tmp_path)['loss'] != first['loss']
    assert 0 <= first['top1'] <= 100
    other = run_row(table, row, TINY, replace(data, held_out=data.held_out.flip(2)), 0, tmp_path)
    assert other['top1'] == first['top1'] and other['loss'] != first['loss']


def test_settings_are_those_of_the_run():
    """A row that stands in two tables is one run; another seed, size or option is another."""
    norms, gates = TABLES['norm-layers'], TABLES['reweighting']
    same = [settings_of(table, table.rows[0], TINY, 0) for table in (norms, gates)]
    assert same[0] == same[1]
    others = [
        settings_of(norms, norms.rows[1], TINY, 0),
        settings_of(norms, norms.rows[0], TINY, 1),
        settings_of(norms, norms.rows[0], SmallScale(), 0),
        settings_of(TABLES['grn-stages'], TABLES['grn-stages'].rows[1], TINY, 0),
        settings_of(TABLES['grn-stages'], TABLES['grn-stages'].rows[2], TINY, 0),
    ]
    assert all(one != other for i, one in enumerate([same[0], *others]) for other in [same[0], *others][:i])
