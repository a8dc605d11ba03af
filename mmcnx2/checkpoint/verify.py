"""Checkpoint tool: run converted weights in the models of the libraries they are for, and compare the outputs with
ours.

Names and shapes can all fit while a filter is transposed or two tensors are swapped; only outputs show that. timm and
transformers are imported here and nowhere else, and only when their layout is asked for.

Touch this file to compare with a further library. Not part of training. Guarded by
tests/checkpoint/test_other_libraries.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mmcnx2.checkpoint.convert import (
    CheckpointError,
    Structure,
    convert_state_dict,
    measure_structure,
    shown,
    to_canonical,
    without_wrapper,
)

IMAGE_SIZE = (64, 96)  # px; not square, so that a transposed filter shows
TOLERANCE = 1e-5  # of the largest output; both sides run in float64 and differ by about 1e-14 when the weights agree
FINAL_NORM_NAMES = ('head.norm.', 'layernorm.', 'norm3.')


def verify_conversion(
    original: Mapping[str, Tensor], source: str, converted: Mapping[str, Tensor], target: str
) -> dict[str, float]:
    """{what was compared: largest difference / largest value}. Raises CheckpointError when one is above TOLERANCE.

    Always compared: both files read back hold the same tensors, bit for bit. For each of the two layouts that an
    installed library can run: its last feature map and its logits against those of mmcnx2.ConvNeXtV2. `original` is
    what was converted, without what was dropped.
    """
    before, after = to_canonical(original, source)[0], to_canonical(converted, target)[0]
    different = [
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or not torch.equal(before[name], after[name])
    ]
    if different:
        raise CheckpointError(f'{len(different)} tensors differ between source and target: {shown(sorted(different))}')
    differences = {'tensors': 0.0}
    structure = measure_structure(after)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, structure.in_channels, *IMAGE_SIZE, generator=generator, dtype=torch.float64)
    ours = run_mmcnx2(convert_state_dict(converted, source=target, target='mmcnx2'), structure, images)
    for layout, state_dict in ((source, original), (target, converted)):
        if layout not in RUNNERS:
            continue
        theirs = RUNNERS[layout](without_wrapper(state_dict), structure, images)
        for key in theirs.keys() & ours.keys():
            difference = float((theirs[key] - ours[key]).abs().max() / ours[key].abs().max())
            differences[f'{layout} {key}'] = difference
            if not difference <= TOLERANCE:
                raise CheckpointError(
                    f'the {key} of {layout} and of mmcnx2 differ by {difference:.1e} of the largest value'
                )
    return differences


# ------------------------------------------------------------------------------------- one runner per library


def run_mmcnx2(state_dict: Mapping[str, Tensor], structure: Structure, images: Tensor) -> dict[str, Tensor]:
    """{'features': (B, C, H, W), 'logits': (B, N)} of our backbone; logits where the weights have a classifier."""
    from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2

    settings = {
        'arch': {'depths': list(structure.depths), 'channels': list(structure.channels)},
        'in_channels': structure.in_channels,
        **_v1_or_v2(state_dict),
    }
    inner = {
        name.removeprefix('backbone.'): tensor for name, tensor in state_dict.items() if name.startswith('backbone.')
    }
    body = {name: tensor for name, tensor in inner.items() if not name.startswith('norm')}
    outputs = {'features': _run(ConvNeXtV2(out_norm=False, **settings), body, images)[0]}
    if 'head.fc.weight' in state_dict:
        pooled = {**body, **{name: inner[name] for name in inner if name.startswith('norm3.')}}
        features = _run(ConvNeXtV2(gap_before_final_norm=True, **settings), pooled, images)[0]
        outputs['logits'] = _classify(state_dict, features)
    return outputs


def run_timm(state_dict: Mapping[str, Tensor], structure: Structure, images: Tensor) -> dict[str, Tensor]:
    """The same outputs of timm's ConvNeXt."""
    timm_convnext = _import('timm.models.convnext', 'timm')
    has_grn = any('.mlp.grn.' in name for name in state_dict)
    model = timm_convnext.ConvNeXt(
        in_chans=structure.in_channels,
        depths=structure.depths,
        dims=structure.channels,
        use_grn=has_grn,
        ls_init_value=None if has_grn else 1e-6,
        conv_mlp=next(tensor for name, tensor in state_dict.items() if name.endswith('fc1.weight')).dim() == 4,
        num_classes=len(state_dict['head.fc.weight']) if 'head.fc.weight' in state_dict else 0,
    )
    outputs = {'features': _run(model, state_dict, images, model.forward_features)}
    if 'head.fc.weight' in state_dict:
        outputs['logits'] = _run(model, state_dict, images)
    return outputs


def run_huggingface(state_dict: Mapping[str, Tensor], structure: Structure, images: Tensor) -> dict[str, Tensor]:
    """The same outputs of transformers' ConvNextV2Model or ConvNextModel, with or without their classifiers."""
    transformers = _import('transformers', 'transformers')
    family = 'ConvNextV2' if any('.grn.' in name for name in state_dict) else 'ConvNext'
    # The pooled norm is the one norm that takes its eps from the config, whose default (1e-12) is not that of the
    # weights.
    config = getattr(transformers, f'{family}Config')(
        num_channels=structure.in_channels,
        hidden_sizes=list(structure.channels),
        depths=list(structure.depths),
        layer_norm_eps=1e-6,
        num_labels=len(state_dict.get('classifier.weight', [0])),
    )
    if 'classifier.weight' not in state_dict:
        model = getattr(transformers, f'{family}Model')(config)
        body = {
            name.removeprefix('convnextv2.').removeprefix('convnext.'): tensor
            for name, tensor in state_dict.items()
            if 'hidden_states_norms.' not in name
        }
        return {'features': _run(model, body, images).last_hidden_state}
    model = getattr(transformers, f'{family}ForImageClassification')(config)
    result = _run(model, state_dict, images, lambda images: model(images, output_hidden_states=True))
    return {'features': result.hidden_states[-1], 'logits': result.logits}


def run_mmpretrain(state_dict: Mapping[str, Tensor], structure: Structure, images: Tensor) -> dict[str, Tensor]:
    """The same outputs of mmpretrain's ConvNeXt."""
    from mmpretrain.models import ConvNeXt

    inner = {
        name.removeprefix('backbone.'): tensor for name, tensor in state_dict.items() if not name.startswith('head.')
    }
    model = ConvNeXt(
        arch={'depths': list(structure.depths), 'channels': list(structure.channels)},
        in_channels=structure.in_channels,
        gap_before_final_norm=True,
        **_v1_or_v2(state_dict),
    )
    kept: list[Tensor] = []
    model.stages[3].register_forward_hook(lambda module, inputs, output: kept.append(output))
    inner = {name: tensor for name, tensor in inner.items() if not name.startswith(('norm0.', 'norm1.', 'norm2.'))}
    features = _run(model, inner, images)[0]
    outputs = {'features': kept[0]}
    if 'head.fc.weight' in state_dict:
        outputs['logits'] = _classify(state_dict, features)
    return outputs


Runner = Callable[[Mapping[str, Tensor], Structure, Tensor], dict[str, Tensor]]
RUNNERS: dict[str, Runner] = {'timm': run_timm, 'huggingface': run_huggingface, 'mmpretrain': run_mmpretrain}


def _v1_or_v2(state_dict: Mapping[str, Tensor]) -> dict:
    has_grn = any('.grn.' in name for name in state_dict)
    has_layer_scale = any(name.endswith('.0.gamma') for name in state_dict)
    return {'use_grn': has_grn, 'layer_scale_init_value': 1e-6 if has_layer_scale else 0.0}


@torch.no_grad()
def _run(model: nn.Module, state_dict: Mapping[str, Tensor], images: Tensor, forward: Callable | None = None):
    missing, unexpected = model.load_state_dict(dict(state_dict), strict=False)
    # A pretrained encoder has no final norm; the features that are compared come before it.
    missing = [name for name in missing if not name.startswith(FINAL_NORM_NAMES)]
    if missing or unexpected:
        raise CheckpointError(
            f'the weights do not fit {type(model).__name__}: it lacks {shown(missing, 5) or "none"}, '
            f'left over {shown(unexpected, 5) or "none"}'
        )
    model.train(False)
    model.to(images.dtype)
    return (forward or model)(images)


def _classify(state_dict: Mapping[str, Tensor], features_BC: Tensor) -> Tensor:
    weight, bias = (state_dict[f'head.fc.{part}'].to(features_BC.dtype) for part in ('weight', 'bias'))
    return nn.functional.linear(features_BC, weight, bias)


def _import(module: str, package: str):
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise CheckpointError(f'comparing outputs needs {package}, which is not there: {error}') from error
