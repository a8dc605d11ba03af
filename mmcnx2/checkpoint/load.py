"""Checkpoint step 3 of 3: from a file into a backbone or a whole pretraining model, all of it or nothing.

Reads any checkpoint safely (read.py), official weights by their name (official_weights.py), brings it into the
canonical layout (convert.py) and loads what belongs to the model; a model is either loaded completely or left
untouched.

Touch this file for what is accepted into a model; not for file formats (read.py, save.py) and not for names of
layouts (key_rules.py). Guarded by tests/checkpoint/test_load.py and tests/checkpoint/test_load_fcmae.py.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmcnx2.checkpoint.convert import (
    INFLATIONS,
    STEM_WEIGHT,
    CheckpointError,
    Structure,
    backbone_prefixes,
    check_complete,
    convert_state_dict,
    detect_layout,
    first_match,
    inflate_stem,
    measure_structure,
    shown,
    to_canonical,
    without_wrapper,
)
from mmcnx2.checkpoint.key_rules import LAYOUTS, SHARED_NORM
from mmcnx2.checkpoint.official_weights import local_file
from mmcnx2.checkpoint.read import read_checkpoint

STEM = STEM_WEIGHT.removeprefix('backbone.')
# What stands in GRN's place (models/layers/response_norms.py); only our own files have it, so key_rules.py does not.
SUBSTITUTE = re.compile(r'(?:.*\.)?(stages\.\d+\.\d+\.grn\.(?!(?:gamma|beta)$).+)')
ENCODER_ALONE = 'give it as model.backbone.init_cfg instead of model.init_cfg: the decoder then starts fresh'


def load_pretrained_backbone(
    backbone: nn.Module,
    path: str | os.PathLike,
    *,
    source: str = 'auto',
    prefix: str | None = None,
    keep_final_norm: bool = False,
    use_ema: bool = False,
    inflate: str | None = None,
    change_grn: bool = False,
    unsafe_load: bool = False,
) -> dict[str, Any]:
    """Load a checkpoint of any layout into an mmcnx2.ConvNeXtV2, all of it or nothing; returns what was done and logs
    one line.

    Takes the backbone out of whatever it stands in: our pretraining run, a detector, a classifier, an official file.
    The result is dict(layout, num_tensors, fresh, left_out): `fresh` are the backbone's tensors that keep their
    initial values.

    Only output norms may be missing (a pretraining run has none). Output norms that the backbone does not have are
    left out. The norm of a *classifier* was trained on pooled features: it goes into a backbone that pools
    (gap_before_final_norm), into a dense backbone's norm3 only with `keep_final_norm`.

    Args:
        backbone: its state dict has mmcnx2's names, without prefix.
        path: see `read_checkpoint`; or 'official:NAME' for weights that the authors published (official_weights.py).
        source: a layout's name instead of detecting it.
        prefix: where the backbone stands in the file, when the file holds several or an unknown name
            ('student.backbone.'; the dot at the end may be left out).
        use_ema: take the averaged weights.
        inflate: when the file's stem has another number of input channels than the backbone: 'mean' gives every channel
            the mean filter, 'copy' repeats the filters in order (both times old / new channels), 'zero' adds filters of
            zeros; only 'mean' can make fewer channels. Without it other channels are an error.
        change_grn: file and backbone may differ in GRN, or in what stands in its place: what the file lacks starts as
            it was built (GRN: the identity), what the backbone lacks is left out. Without it that is an error.
        unsafe_load: see `read_checkpoint`; for files of trusted origin only.

    Raises CheckpointError; the backbone is then unchanged.
    """
    if inflate is not None and inflate not in INFLATIONS:
        raise CheckpointError(f'inflate={inflate!r} is not known; choose one of {", ".join(INFLATIONS)}')
    file = read_checkpoint(local_file(path), use_ema, unsafe_load=unsafe_load)['state_dict']
    try:
        layout, state_dict = _backbone_part(file, source, prefix)
        state_dict, substitutes = _without_substitutes(state_dict)
        canonical, _ = to_canonical(state_dict, layout)
        structure = measure_structure(canonical)
        absent = () if _has_grn_or_layer_scale(canonical) else ('backbone.stages.*.grn.*',)  # `_fit` has the say
        check_complete(canonical, structure, lambda name: name, absent, f'layout {layout}')
        new, left_out = _fit(canonical, structure, backbone, keep_final_norm, inflate, substitutes, change_grn)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error

    own = backbone.state_dict()
    fresh = [name for name in own if name not in new]
    backbone.load_state_dict({**{name: own[name] for name in fresh}, **new})
    notes = [f'start fresh: {shown(fresh)}'] if fresh else []
    fresh_grn = [own[name] for name in fresh if '.grn.' in name]
    if fresh_grn and not any(tensor.any() for tensor in fresh_grn):
        notes.append('GRN was not in the file and starts at zero, as the identity')
    notes += [f'left out: {shown(left_out)}'] if left_out else []
    num_beside = len(file) - len(new) - len(left_out)
    notes += [f'not looked at: {num_beside} keys beside the backbone'] if num_beside else []
    if structure.in_channels != new[STEM].shape[1]:
        notes.append(f'{structure.in_channels} -> {new[STEM].shape[1]} input channels ({inflate})')
    _tell('; '.join([f'{len(new)} keys: the backbone, layout {layout}, from {path}', *notes]), path, new)
    return {'layout': layout, 'num_tensors': len(new), 'fresh': fresh, 'left_out': left_out}


def load_pretrained_fcmae(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    source: str = 'auto',
    use_ema: bool = False,
    unsafe_load: bool = False,
) -> dict[str, Any]:
    """Load a checkpoint of a pretraining model, encoder and decoder, into an mmcnx2.FCMAE, all of it or nothing.

    Every tensor of the model is in the file and every tensor of the file in the model: a run of ours, or the official
    code's, sparse or dense. Returns dict(layout, num_tensors) and logs one line.

    Args: as for `load_pretrained_backbone`. There is no `inflate`: the decoder predicts the pixels of as many channels
    as it was trained with.

    Raises CheckpointError; the model is then unchanged.
    """
    file = without_wrapper(read_checkpoint(local_file(path), use_ema, unsafe_load=unsafe_load)['state_dict'])
    try:
        layout = _layout_of(file, source)
        new = _whole_model(file, layout)
        _check_fits_fcmae(new, model.state_dict())
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error
    model.load_state_dict(new)
    _tell(f'{len(new)} keys: encoder and decoder of FCMAE, layout {layout}, from {path}', path, new)
    return {'layout': layout, 'num_tensors': len(new)}


def _whole_model(file: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The file under FCMAE's names; refused when there is no decoder in it."""
    decoder_rules = [
        ('', rule) for rule in LAYOUTS[layout].around if rule.canonical.startswith(('neck.', 'head.pred.'))
    ]
    if not any(first_match(decoder_rules, name)[0] for name in file):
        raise CheckpointError(f'it holds an encoder (layout {layout}) and no FCMAE decoder; {ENCODER_ALONE}')
    try:
        return convert_state_dict(file, source=layout, target='mmcnx2')
    except CheckpointError as error:
        raise CheckpointError(f'{error}. To take its encoder alone, {ENCODER_ALONE}') from error


def _check_fits_fcmae(new: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    found, model = (measure_structure(to_canonical(names, 'mmcnx2')[0]) for names in (new, own))
    if (found.depths, found.channels) != (model.depths, model.channels):
        raise _another_architecture(found, model)
    differences = [
        f'{what} {in_file} (the model: {in_model})'
        for what, in_file, in_model in (
            ('in_channels', found.in_channels, model.in_channels),
            ('neck.decoder_depth', found.decoder_depth, model.decoder_depth),
            ('neck.decoder_channels', found.decoder_channels, model.decoder_channels),
        )
        if in_file != in_model
    ]
    if differences:
        raise CheckpointError(
            f'checkpoint of another FCMAE: {", ".join(differences)}. Set these in the config, or {ENCODER_ALONE}'
        )
    missing, unexpected = ([name for name in one if name not in other] for one, other in ((own, new), (new, own)))
    if missing or unexpected:
        raise _different_parts(missing, unexpected)
    _check_shapes(new, own)


def _tell(line: str, path: str | os.PathLike, new: dict[str, Tensor]) -> None:
    print_log(line, logger='current')
    grns = [tensor for name, tensor in new.items() if '.grn.' in name]
    if grns and not any(tensor.any() for tensor in grns):
        print_log(
            f'every GRN parameter of {path} is 0: GRN does nothing. Did a converter lose them?',
            logger='current',
            level=logging.WARNING,
        )


def _layout_of(state_dict: dict[str, Tensor], source: str) -> str:
    if source != 'auto' and source not in LAYOUTS:
        raise CheckpointError(f'unknown source layout {source!r}; allowed: auto, {", ".join(LAYOUTS)}')
    return detect_layout(state_dict) if source == 'auto' else source


def _backbone_part(state_dict: dict[str, Tensor], source: str, prefix: str | None) -> tuple[str, dict[str, Tensor]]:
    """(layout, the names that belong to the backbone). Heads, necks and decoders around it are not looked at."""
    as_saved, state_dict = state_dict, without_wrapper(state_dict)
    if prefix is not None:
        prefix = f'{prefix.removesuffix(".")}.' if prefix else ''
        if not any(name.startswith(prefix) for name in state_dict):
            state_dict = as_saved  # the prefix as it stands in the file, wrapper included
        state_dict = {
            name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)
        }
        if not state_dict:
            raise CheckpointError(f'no name starts with prefix={prefix!r}')
    layout = _layout_of(state_dict, source)
    stands_under = backbone_prefixes(state_dict, layout)
    if len(stands_under) == 1 and stands_under[0]:
        state_dict = {name: tensor for name, tensor in state_dict.items() if name.startswith(stands_under[0])}
    return layout, state_dict


def _without_substitutes(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the others, what stands in GRN's place by the backbone's own names)."""
    found = {name: SUBSTITUTE.fullmatch(name) for name in state_dict}
    others = {name: tensor for name, tensor in state_dict.items() if not found[name]}
    return others, {match[1]: state_dict[name] for name, match in found.items() if match}


def _has_grn_or_layer_scale(canonical: dict[str, Tensor]) -> bool:
    """V2's or V1's mark; our own ablations have files with neither."""
    return any('.grn.' in name or re.fullmatch(r'backbone\.stages\.\d+\.\d+\.gamma', name) for name in canonical)


def _fit(
    canonical: dict[str, Tensor],
    structure: Structure,
    backbone: nn.Module,
    keep_final_norm: bool,
    inflate: str | None,
    substitutes: dict[str, Tensor],
    change_grn: bool,
) -> tuple[dict[str, Tensor], list[str]]:
    """(the backbone's tensors by its own names, names left out) once it is certain that they fit."""
    own = backbone.state_dict()
    model = measure_structure(to_canonical(_without_substitutes(own)[0], 'mmcnx2')[0])
    if (structure.depths, structure.channels) != (model.depths, model.channels):
        raise _another_architecture(structure, model)
    names = {
        name.removeprefix('backbone.'): tensor for name, tensor in canonical.items() if name.startswith('backbone.')
    }
    final_norm = {
        name.replace('final_norm', SHARED_NORM): names.pop(name)
        for name in list(names)
        if name.startswith('final_norm.')
    }
    pools = getattr(backbone, 'gap_before_final_norm', False)
    left_out = [name for name in names if re.fullmatch(r'norm[0-3]\.\w+', name) and name not in own]
    if keep_final_norm or pools:
        names.update(final_norm)
    else:
        left_out += [f"the classifier's {name}" for name in final_norm]
    if pools and not final_norm:  # a dense task's norm3 was trained on every position, not on pooled features
        left_out += [name for name in names if name.startswith(f'{SHARED_NORM}.') and name not in left_out]
    names = {name: tensor for name, tensor in names.items() if name not in left_out}

    if structure.in_channels != model.in_channels:
        if inflate is None:
            raise CheckpointError(
                f'the checkpoint was trained with {structure.in_channels} input channels, the model has '
                f'in_channels={model.in_channels}; choose inflate={"|".join(INFLATIONS)} or set in_channels'
            )
        names[STEM] = inflate_stem(names[STEM], model.in_channels, inflate)
    names.update(substitutes)
    theirs, ours = ([name for name in each if '.grn.' in name] for each in (names, own))
    changes = change_grn and set(theirs) != set(ours)
    if changes:
        left_out += theirs
        names = {name: tensor for name, tensor in names.items() if name not in theirs}
    needed = [name for name in own if not (re.fullmatch(r'norm[0-3]\.\w+', name) or (changes and name in ours))]
    missing = [name for name in needed if name not in names]
    unexpected = [name for name in names if name not in own]
    if unexpected and set(unexpected) <= set(final_norm):
        raise CheckpointError(
            f"keep_final_norm=True, but the backbone has no {SHARED_NORM} for the classifier's norm: build it with "
            'out_norm=True and its last stage in out_indices'
        )
    if missing or unexpected:
        raise _different_parts(missing, unexpected)
    _check_shapes(names, own)
    return names, left_out


def _check_shapes(new: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    wrong = [
        f'{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}'
        for name, tensor in new.items()
        if tensor.shape != own[name].shape
    ]
    if wrong:
        raise CheckpointError(f'{len(wrong)} tensors have another shape than the model: {shown(wrong)}')


def _different_parts(missing: list[str], unexpected: list[str]) -> CheckpointError:
    only_grn = all('.grn.' in name for name in missing + unexpected)
    return CheckpointError(
        'the model and the checkpoint have different parts (V1 has layer scale and no GRN, V2 the reverse); only '
        f'in the model: {shown(missing) or "none"}; only in the checkpoint: {shown(unexpected) or "none"}'
        + ('. If that is meant, give change_grn=True in init_cfg' if only_grn else '')
    )


def _another_architecture(found: Structure, model: Structure) -> CheckpointError:
    return CheckpointError(
        f'checkpoint of another architecture: it is {_arch_name(found)}, the model is '
        f'{_arch_name(model)}; set arch or the checkpoint accordingly'
    )


def _arch_name(structure: Structure) -> str:
    """'atto' (depths, channels), the sizes being those of the backbone."""
    from mmcnx2.models.backbones.convnext_v2 import ARCHS  # the backbone imports this package

    same = [
        name
        for name, arch in ARCHS.items()
        if (tuple(arch['depths']), tuple(arch['channels'])) == (structure.depths, structure.channels)
    ]
    shape = f'depths={list(structure.depths)}, channels={list(structure.channels)}'
    return f"'{same[0]}' ({shape})" if same else shape
