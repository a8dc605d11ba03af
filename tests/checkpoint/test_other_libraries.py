"""Weights of timm, transformers, mmpretrain and the official code give the same outputs in our model, and come back
unchanged."""

import pytest
import torch
from checkpoint_cases import LAYOUT_KINDS, TOLERANCE, check_case

from mmcnx2.checkpoint import CheckpointError, convert_state_dict
from mmcnx2.checkpoint.key_rules import LAYOUTS
from mmcnx2.checkpoint.verify import verify_conversion


@pytest.mark.parametrize(('layout', 'kind'), LAYOUT_KINDS)
def test_outputs_are_the_same_and_the_way_back_is_exact(layout, kind):
    check_case(layout, kind)


def test_a_named_size_of_timm_loads_strictly_after_a_conversion():
    import timm
    from checkpoint_cases import randomised

    model = randomised(timm.create_model('convnextv2_atto', num_classes=7))
    state_dict = model.state_dict()
    for middle in ('mmcnx2', 'huggingface', 'mmpretrain', 'meta'):
        converted = convert_state_dict(state_dict, source='timm', target=middle)
        differences = verify_conversion(state_dict, 'timm', converted, middle)
        assert max(differences.values()) < 1e-9
        back = convert_state_dict(converted, source=middle, target='timm')
        model.load_state_dict(back)  # timm stores the linears of this size as 1x1 convolutions
        assert all(torch.equal(back[name], state_dict[name]) for name in state_dict)


def test_verification_finds_a_transposed_filter():
    from checkpoint_cases import cases

    state_dict, _ = cases()['timm']['classifier']
    converted = convert_state_dict(state_dict, source='timm', target='huggingface')
    assert max(verify_conversion(state_dict, 'timm', converted, 'huggingface').values()) < TOLERANCE
    broken = {
        name: tensor.transpose(2, 3) if name.endswith('dwconv.weight') else tensor for name, tensor in converted.items()
    }
    with pytest.raises(CheckpointError, match='tensors differ'):
        verify_conversion(state_dict, 'timm', broken, 'huggingface')


def test_verification_finds_swapped_tensors_that_a_round_trip_gives_back(monkeypatch):
    from checkpoint_cases import cases

    state_dict, _ = cases()['timm']['classifier']
    layout = LAYOUTS['timm']
    swapped = {'mlp.grn.weight': 'mlp.grn.bias', 'mlp.grn.bias': 'mlp.grn.weight'}
    rules = [
        rule._replace(
            name=next((rule.name.replace(old, new) for old, new in swapped.items() if old in rule.name), rule.name)
        )
        for rule in layout.backbone
    ]
    monkeypatch.setitem(LAYOUTS, 'timm', layout._replace(backbone=tuple(rules)))
    converted = convert_state_dict(state_dict, source='timm', target='mmcnx2')
    with pytest.raises(CheckpointError, match=r'the (logits|features) of timm and of mmcnx2 differ'):
        verify_conversion(state_dict, 'timm', converted, 'mmcnx2')
