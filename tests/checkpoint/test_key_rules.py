"""The tables are right: worked by hand, and held against real models and the official code's outputs.

That every row of them is guarded, tests/faults/table_mutations.py shows: it breaks each in turn.
"""

import itertools

import pytest
import torch
from checkpoint_cases import check_layout, oracle

from mmcnx2.checkpoint import convert_state_dict, key_rules
from mmcnx2.checkpoint.key_rules import KINDS, LAYOUTS, TENSORS, Kind
from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2


def test_a_sparse_depthwise_kernel_is_numbered_column_by_column():
    """Worked by hand: 3x3 taps 0..8 of one channel; the row varies fastest."""
    kernel_TC = torch.arange(9.0)[:, None]
    weight = KINDS['sparse_depthwise'].to_canonical(kernel_TC)
    assert weight.tolist() == [[[[0, 3, 6], [1, 4, 7], [2, 5, 8]]]]
    assert KINDS['sparse_depthwise'].from_canonical(weight).equal(kernel_TC)


def test_a_sparse_convolution_is_numbered_column_by_column():
    """Worked by hand: 2x2 taps, 1 input channel, 2 output channels."""
    kernel_TIO = torch.tensor([[[0.0, 10.0]], [[1.0, 11.0]], [[2.0, 12.0]], [[3.0, 13.0]]])
    weight = KINDS['sparse_conv'].to_canonical(kernel_TIO)
    assert weight.tolist() == [[[[0, 2], [1, 3]]], [[[10, 12], [11, 13]]]]
    assert KINDS['sparse_conv'].from_canonical(weight).equal(kernel_TIO)


def test_input_and_output_channels_of_a_sparse_convolution_are_not_confused():
    kernel_TIO = torch.randn(4, 3, 5)
    weight = KINDS['sparse_conv'].to_canonical(kernel_TIO)
    for o, i, y, x in itertools.product(range(5), range(3), range(2), range(2)):
        assert weight[o, i, y, x] == kernel_TIO[y + 2 * x, i, o]


@pytest.mark.parametrize('kind', KINDS)
def test_each_kind_is_undone_by_its_inverse(kind):
    shape = {
        'sparse_conv': (5, 3, 2, 2),
        'sparse_depthwise': (6, 1, 7, 7),
        'matrix': (4, 3),
        'conv1x1': (4, 3),
        'timm_mlp': (4, 3),
    }.get(kind, (5,))
    canonical = torch.randn(shape)
    there = KINDS[kind].from_canonical(canonical)
    assert KINDS[kind].to_canonical(there).equal(canonical)
    assert there.is_contiguous()


def test_canonical_names_and_shapes_are_those_of_the_backbone():
    backbone = ConvNeXtV2('atto', out_indices=(0, 1, 2, 3))
    state_dict = {f'backbone.{name}': tensor for name, tensor in backbone.state_dict().items()}
    assert convert_state_dict(state_dict, source='mmcnx2', target='mmcnx2').keys() == state_dict.keys()


def test_every_rule_points_at_a_canonical_tensor_and_each_layout_gives_no_name_twice():
    for layout in LAYOUTS.values():
        rules = layout.backbone + layout.around
        names = [rule.name for rule in rules]
        twice = {name for name in names if names.count(name) > 1}
        assert twice <= ({'norm3.{p}'} if layout.shares_norm3 else set())
        for rule in rules:
            pattern = rule.canonical.replace('{p}', 'weight')
            assert any(tensor.name.replace('{p}', 'weight') == pattern for tensor in TENSORS), rule
            assert rule.kind in KINDS


# ----------------------------------------------------------------------------------------------- whole layouts


@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_tables_hold(layout):
    check_layout(layout)


def _untransposed_conv(kernel_TIO):
    return kernel_TIO.permute(2, 1, 0).unflatten(2, (2, 2)).contiguous()


def _untransposed_depthwise(kernel_TC):
    return kernel_TC.T.unflatten(1, (7, 7))[:, None].contiguous()


@pytest.mark.parametrize(
    ('kind', 'broken'),
    [
        ('sparse_conv', Kind(_untransposed_conv, lambda weight: weight.flatten(2).permute(2, 1, 0).contiguous())),
        ('sparse_depthwise', Kind(_untransposed_depthwise, lambda weight: weight.flatten(1).T.contiguous())),
    ],
)
def test_a_forgotten_transposition_is_noticed(monkeypatch, kind, broken):
    """Its round trip is exact and every shape fits: only the official outputs tell."""
    _, state_dict = oracle('fcmae_micro_batch1')
    monkeypatch.setitem(key_rules.KINDS, kind, broken)
    back = convert_state_dict(
        convert_state_dict(state_dict, source='meta-sparse', target='mmcnx2'), source='mmcnx2', target='meta-sparse'
    )
    assert all(torch.equal(back[name], state_dict[name]) for name in state_dict)
    with pytest.raises(AssertionError, match='is off by'):
        check_layout('meta-sparse')
