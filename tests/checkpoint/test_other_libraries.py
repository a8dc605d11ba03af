"""Weights of timm, transformers, mmpretrain and the official code give the same outputs in our model, and come back
unchanged."""

import pytest
import torch
from checkpoint_cases import LAYOUT_KINDS, TOLERANCE, check_case, same_tensors

from mmcnx2.checkpoint import CheckpointError, convert_state_dict
from mmcnx2.checkpoint.key_rules import LAYOUTS
from mmcnx2.checkpoint.verify import verify_conversion
from mmcnx2.models.backbones.convnext_v2 import ARCHS, ConvNeXtV2


@pytest.mark.parametrize(('layout', 'kind'), LAYOUT_KINDS)
def test_outputs_are_the_same_and_the_way_back_is_exact(layout, kind):
    check_case(layout, kind)


def random_state_dict(size):
    """Of our classifier. No tensor keeps a value of which 0 or 1 would hide a mistake; activations stay moderate."""
    with torch.device('meta'):
        backbone = ConvNeXtV2(size, gap_before_final_norm=True)
        shapes = {f'backbone.{name}': tensor.shape for name, tensor in backbone.state_dict().items()}
        head = torch.nn.Linear(backbone.channels[-1], 1000).state_dict()
    shapes |= {f'head.fc.{name}': tensor.shape for name, tensor in head.items()}
    generator = torch.Generator().manual_seed(6)
    spread = {True: 0.04, False: 0.2}
    return {
        name: torch.randn(shape, generator=generator).mul_(spread[len(shape) > 1]).add_(0.1 * (len(shape) == 1))
        for name, shape in shapes.items()
    }


def timm_logits(size, state_dict, image):
    import timm

    with torch.device('meta'):
        model = timm.create_model(f'convnextv2_{size}', num_classes=1000)
    return with_weights(model, state_dict)(image)


def huggingface_logits(size, state_dict, image):
    import transformers

    arch = ARCHS[size]
    config = transformers.ConvNextV2Config(
        hidden_sizes=arch['channels'], depths=arch['depths'], num_labels=1000, layer_norm_eps=1e-6
    )
    with torch.device('meta'):
        model = transformers.ConvNextV2ForImageClassification(config)
    return with_weights(model, state_dict)(image).logits


def with_weights(model, state_dict):
    """The model on these very tensors, every one of them used: nothing is copied, so that a large model fits."""
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model.train(False)


@torch.no_grad()
@pytest.mark.parametrize('size', ['atto', 'femto', 'pico', 'nano', 'tiny', 'base'])
def test_every_size_up_to_base_computes_the_same_in_float32(size):
    state_dict = random_state_dict(size)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(7))
    with torch.device('meta'):
        backbone = ConvNeXtV2(size, gap_before_final_norm=True)
    inner = {name.removeprefix('backbone.'): tensor for name, tensor in state_dict.items() if 'backbone.' in name}
    pooled = with_weights(backbone, inner)(image)[0]
    ours = torch.nn.functional.linear(pooled, state_dict['head.fc.weight'], state_dict['head.fc.bias'])
    for layout, logits_of in (('timm', timm_logits), ('huggingface', huggingface_logits)):
        converted = convert_state_dict(state_dict, source='mmcnx2', target=layout)
        theirs = logits_of(size, converted, image)
        difference = ((theirs - ours).abs().max() / ours.abs().max()).item()
        assert difference < 1e-5, f'{layout}: {difference:.1e} of the largest logit'
        assert same_tensors(convert_state_dict(converted, source=layout, target='mmcnx2'), state_dict)


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
