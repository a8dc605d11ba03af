"""The tables are right, and every row of them is guarded: each is broken in turn, and something must notice."""

import itertools

import pytest
import torch
from checkpoint_cases import check_layout, oracle

from mmcnx2.checkpoint import convert_state_dict, key_rules
from mmcnx2.checkpoint.key_rules import KINDS, LAYOUTS, TENSORS, Kind
from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2

WRONG_KIND = {
    'as_is': 'vector',
    'vector': 'row',
    'row': 'grn_4d',
    'grn_4d': 'vector',
    'token_4d': 'vector',
    'matrix': 'conv1x1',
    'conv1x1': 'matrix',
    'timm_mlp': 'conv1x1',
    'sparse_conv': 'as_is',
    'sparse_depthwise': 'as_is',
}


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


# ------------------------------------------------------------------------------------------------- mutations


def everything_holds():
    """Each layout, one after the other; raises at the first failure."""
    for layout in LAYOUTS:
        check_layout(layout)


def with_rule(layout, index, rule):
    """The layout with one rule replaced, or dropped where `rule` is None."""
    rules = list(layout.backbone + layout.around)
    rules[index : index + 1] = [rule] if rule else []
    num_backbone = len(layout.backbone) - (rule is None and index < len(layout.backbone))
    return layout._replace(backbone=tuple(rules[:num_backbone]), around=tuple(rules[num_backbone:]))


def with_swapped_targets(layout, first, second):
    rules = list(layout.backbone + layout.around)
    broken = with_rule(layout, first, rules[first]._replace(canonical=rules[second].canonical))
    return with_rule(broken, second, rules[second]._replace(canonical=rules[first].canonical))


def single_rule_mutations():
    for name, layout in LAYOUTS.items():
        for index, rule in enumerate(layout.backbone + layout.around):
            yield f'{name}: drop {rule.name}', name, with_rule(layout, index, None)
            yield f'{name}: rename {rule.name}', name, with_rule(layout, index, rule._replace(name=f'x{rule.name}'))
            wrong = rule._replace(kind=WRONG_KIND[rule.kind])
            yield f'{name}: {rule.name} as {wrong.kind}', name, with_rule(layout, index, wrong)


def swap_mutations():
    """Two rules that hold tensors of one shape, one in the place of the other: nothing but an output or a name can
    tell."""
    shapes = {tensor.name.replace('{p}', 'weight'): tensor.shape for tensor in TENSORS}
    for name, layout in LAYOUTS.items():
        rules = layout.backbone + layout.around
        for first, second in itertools.combinations(range(len(rules)), 2):
            canonical = [rules[index].canonical.replace('{p}', 'weight') for index in (first, second)]
            same_places = {p for p in 'ikjdp' if f'{{{p}}}' in rules[first].canonical} == {
                p for p in 'ikjdp' if f'{{{p}}}' in rules[second].canonical
            }
            if same_places and shapes[canonical[0]] == shapes[canonical[1]]:
                what = f'{name}: {rules[first].name} <-> {rules[second].name}'
                yield what, name, with_swapped_targets(layout, first, second)


def survivors(mutations, monkeypatch):
    """(how many were tried, those that nothing noticed)."""
    tried, unnoticed = 0, []
    for what, name, layout in mutations:
        tried += 1
        with monkeypatch.context() as patch:
            patch.setitem(LAYOUTS, name, layout)
            try:
                check_layout(name)
                if name == 'mmcnx2':  # broken alike on both ways, it gives itself back; others do not
                    check_layout('meta')
            except (ValueError, AssertionError, RuntimeError, KeyError):
                continue
            unnoticed.append(what)
    return tried, unnoticed


def test_the_unbroken_tables_hold():
    everything_holds()


def test_every_single_rule_is_guarded(monkeypatch):
    tried, unnoticed = survivors(single_rule_mutations(), monkeypatch)
    assert not unnoticed, f'{len(unnoticed)} of {tried} broken rules were not noticed: {unnoticed}'
    assert tried > 300


def test_every_swap_of_two_rules_of_one_shape_is_noticed(monkeypatch):
    tried, unnoticed = survivors(swap_mutations(), monkeypatch)
    assert not unnoticed, f'{len(unnoticed)} of {tried} swaps were not noticed: {unnoticed}'
    assert tried > 30


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


@pytest.mark.parametrize('index', range(len(TENSORS)))
def test_every_canonical_shape_is_guarded(monkeypatch, index):
    letters = TENSORS[index].shape.split()
    free = ('N', 'P', 'D', 'I')  # no other tensor says how large these are
    for axis, letter in enumerate(letters):
        if letter in free:
            continue
        wrong = ' '.join([*letters[:axis], '999', *letters[axis + 1 :]])
        tensors = (*TENSORS[:index], TENSORS[index]._replace(shape=wrong), *TENSORS[index + 1 :])
        monkeypatch.setattr('mmcnx2.checkpoint.convert.TENSORS', tensors)
        _forget_patterns()
        with pytest.raises(ValueError, match=r'wrong shape|lacks'):
            for layout in ('mmcnx2', 'meta'):
                check_layout(layout)
        monkeypatch.undo()
        _forget_patterns()


def _forget_patterns():
    from mmcnx2.checkpoint import convert

    convert._canonical_pattern.cache_clear()
