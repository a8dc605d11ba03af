"""Measuring a model, and what goes into table, figure and maps."""

import numpy as np
import pytest
import torch
from micro_pretraining import ARCH

from mmcnx2.analysis.activations import expansion_layers, watching
from mmcnx2.analysis.collapse import CollapseMeter, cosine_distance
from mmcnx2.analysis.collapse_report import channel_maps, depths_of, measure_collapse, panels, table
from mmcnx2.models.backbones import ConvNeXtV2


def test_all_pictures_of_all_batches_are_measured():
    torch.manual_seed(0)
    model = ConvNeXtV2(ARCH, drop_path_rate=0.9).train()
    images = torch.randn(5, 3, 64, 64)
    found = measure_collapse(model, images.split(2))
    assert model.training
    assert list(found) == list(expansion_layers(model))
    kept = []
    with torch.no_grad(), watching(model.eval(), ['stages.2.1.grn'], lambda name, x: kept.append(x)):
        model(images)  # no block is dropped in evaluation mode
    measured = found['stages.2.1.grn']
    assert measured.num_images == 5
    assert measured.distance == pytest.approx(float(cosine_distance(kept[0]).mean()), abs=1e-6)
    assert list(measure_collapse(model, [images], ['stages.1.0.dwconv'])) == ['stages.1.0.dwconv']
    with pytest.raises(ValueError, match='no ConvNeXt V2 blocks'):
        measure_collapse(torch.nn.Conv2d(3, 4, 1), [images])


def measured(distance=0.2):
    meter = CollapseMeter()
    x = torch.randn(2, 9, 4)
    meter.add(x)
    return meter.result()


def test_before_and_after_grn_are_drawn_apart():
    one = measured()
    results = {'V1': {'stages.0.0.gelu': one, 'stages.1.0.gelu': one},
               'V2': {'stages.0.0.gelu': one, 'stages.0.0.grn': one, 'norm3': one}}  # fmt: skip
    depths = {'V1': {'stages.0.0.gelu': 0, 'stages.1.0.gelu': 1},
              'V2': {'stages.0.0.gelu': 0, 'stages.0.0.grn': 0, 'norm3': 1}}  # fmt: skip
    drawn = panels(results, depths)
    assert [(panel.title, [line.label for line in panel.lines]) for panel in drawn] == [
        ('Cosine distance of channels, before GRN', ['V1', 'V2']),
        ('Effective / possible rank, before GRN', ['V1', 'V2']),
        ('Cosine distance of channels, after GRN', ['V2']),
        ('Effective / possible rank, after GRN', ['V2']),
        ('Cosine distance of channels, named layers', ['V2']),
        ('Effective / possible rank, named layers', ['V2']),
    ]
    assert drawn[0].lines[0].curve.steps == (0, 1)
    assert drawn[0].lines[0].curve.values == (one.distance, one.distance)
    assert drawn[1].lines[0].curve.values[0] == pytest.approx(one.effective_rank / 4)
    header, rows = table(results)
    assert len(rows) == 5 and rows[0][0] == 'V1, stages.0.0.gelu' and len(header) == len(rows[0])
    assert rows[0][1].startswith(f'{one.distance:.4f}')


def test_depths_of_named_layers_are_spread():
    model = ConvNeXtV2(ARCH)
    assert depths_of(model, ['stages.0.0.gelu', 'norm3', 'stages.3.0.grn']) == {
        'stages.0.0.gelu': 0, 'norm3': 0.5, 'stages.3.0.grn': 1}  # fmt: skip


def test_maps_share_one_scale():
    x_NC = torch.zeros(4, 3)
    x_NC[:, 1] = torch.tensor([1.0, -1.0, 0.5, 0.0])
    x_NC[:, 2] = 1.0
    maps = channel_maps(x_NC, (2, 2))
    assert maps.tolist() == [[[0, 0], [0, 0]], [[255, 255], [128, 0]], [[255, 255], [255, 255]]]
    assert channel_maps(torch.zeros(4, 2), (2, 2)).max() == 0
    many = channel_maps(torch.arange(200.0).repeat(6, 1), (2, 3), num_channels=64)
    assert many.shape == (64, 2, 3) and many.dtype == np.uint8
    assert many[0].max() == 0 and many[-1].min() == 255 and (np.diff(many[:, 0, 0].astype(int)) >= 0).all()
    with pytest.raises(ValueError, match='no map of 2 x 3'):
        channel_maps(torch.zeros(5, 1), (2, 3))
