"""Checkpoint step 3 of 3: from a file into a backbone, all of it or nothing.

Reads any checkpoint safely (read.py), brings it into the canonical layout (convert.py) and loads what belongs to the
backbone; a backbone is either loaded completely or left untouched.

Touch this file for what is accepted into a backbone; not for file formats (read.py, save.py) and not for names of
layouts (key_rules.py). Guarded by tests/checkpoint/test_load.py.
"""
from __future__ import annotations

import logging
import os
import re
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmcnx2.checkpoint.convert import (
    CheckpointError,
    Structure,
    backbone_prefixes,
    check_complete,
    detect_layout,
    measure_structure,
    shown,
    to_canonical,
    without_wrapper,
)
from mmcnx2.checkpoint.key_rules import LAYOUTS, SHARED_NORM
from mmcnx2.checkpoint.read import read_checkpoint

INFLATIONS = ('mean', 'copy', 'zero')


def load_pretrained_backbone(backbone: nn.Module, path: str | os.PathLike, *, source: str = 'auto',
                             prefix: str | None = None, keep_final_norm: bool = False, use_ema: bool = False,
                             inflate: str | None = None) -> dict[str, Any]:
    """Load a checkpoint of any layout into an mmcnx2.ConvNeXtV2, all of it or nothing; returns what was done and logs
    one line.

    Takes the backbone out of whatever it stands in: our pretraining run, a detector, a classifier, an official file.
    The result is dict(layout, num_tensors, fresh, left_out): `fresh` are the backbone's tensors that keep their
    initial values.

    Only output norms may be missing (a pretraining run has none). Output norms that the backbone does not have are
    left out. The norm of a *classifier* was trained on pooled features: it goes into a backbone that pools
    (gap_before_final_norm), into a dense backbone's norm3 only with `keep_final_norm`.

    Args:
        backbone: its state dict has mmcnx2's names, without prefix. path: see `read_checkpoint`. source: a layout's
        name instead of detecting it. prefix: where the backbone stands in the file, when the file holds several or an
        unknown name ('student.backbone.'). use_ema: take the averaged weights. inflate: when the file's stem has
        another number of input channels than the backbone: 'mean' gives every channel the
            mean filter, 'copy' repeats the filters in order (both times old / new channels), 'zero' adds filters of
            zeros; only 'mean' can make fewer channels. Without it other channels are an error.

    Raises CheckpointError; the backbone is then unchanged.
    """
    if inflate is not None and inflate not in INFLATIONS:
        raise CheckpointError(f'inflate={inflate!r} is not known; choose one of {", ".join(INFLATIONS)}')
    state_dict = read_checkpoint(path, use_ema)['state_dict']
    try:
        layout, state_dict = _backbone_part(state_dict, source, prefix)
        canonical, _ = to_canonical(state_dict, layout)
        structure = measure_structure(canonical)
        check_complete(canonical, structure, lambda name: name, (), f'layout {layout}')
        new, left_out = _fit(canonical, structure, backbone, keep_final_norm, inflate)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error

    own = backbone.state_dict()
    fresh = [name for name in own if name not in new]
    backbone.load_state_dict({**{name: own[name] for name in fresh}, **new})
    notes = [f'{shown(fresh)} start fresh'] if fresh else []
    notes += [f'left out {shown(left_out)}'] if left_out else []
    print_log('; '.join([f'{len(new)} tensors of layout {layout} from {path}', *notes]), logger='current')
    grns = [tensor for name, tensor in new.items() if '.grn.' in name]
    if grns and not any(tensor.any() for tensor in grns):
        print_log(f'every GRN parameter of {path} is 0: GRN does nothing. Did a converter lose them?',
                  logger='current', level=logging.WARNING)
    return {'layout': layout, 'num_tensors': len(new), 'fresh': fresh, 'left_out': left_out}


def _backbone_part(state_dict: dict[str, Tensor], source: str, prefix: str | None) -> tuple[str, dict[str, Tensor]]:
    """(layout, the names that belong to the backbone). Heads, necks and decoders around it are not looked at."""
    state_dict = without_wrapper(state_dict)
    if prefix is not None:
        state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()
                      if name.startswith(prefix)}
        if not state_dict:
            raise CheckpointError(f'no name starts with prefix={prefix!r}')
    if source != 'auto' and source not in LAYOUTS:
        raise CheckpointError(f'unknown source layout {source!r}; allowed: auto, {", ".join(LAYOUTS)}')
    layout = detect_layout(state_dict) if source == 'auto' else source
    stands_under = backbone_prefixes(state_dict, layout)
    if len(stands_under) == 1 and stands_under[0]:
        state_dict = {name: tensor for name, tensor in state_dict.items() if name.startswith(stands_under[0])}
    return layout, state_dict


def _fit(canonical: dict[str, Tensor], structure: Structure, backbone: nn.Module, keep_final_norm: bool,
         inflate: str | None) -> tuple[dict[str, Tensor], list[str]]:
    """(the backbone's tensors by its own names, names left out) once it is certain that they fit."""
    own = backbone.state_dict()
    model = measure_structure(to_canonical(own, 'mmcnx2')[0])
    if (structure.depths, structure.channels) != (model.depths, model.channels):
        raise CheckpointError(f'checkpoint of another architecture: it is {_arch_name(structure)}, the model is '
                              f'{_arch_name(model)}; set arch or the checkpoint accordingly')
    names = {name.removeprefix('backbone.'): tensor for name, tensor in canonical.items()
             if name.startswith('backbone.')}
    final_norm = {name.replace('final_norm', SHARED_NORM): names.pop(name) for name in list(names)
                  if name.startswith('final_norm.')}
    pools = getattr(backbone, 'gap_before_final_norm', False)
    left_out = [name for name in names if re.fullmatch(r'norm[0-3]\.\w+', name) and name not in own]
    if keep_final_norm or pools:
        names.update(final_norm)
    else:
        left_out += [f'the classifier\'s {name}' for name in final_norm]
    if pools and not final_norm:  # a dense task's norm3 was trained on every position, not on pooled features
        left_out += [name for name in names if name.startswith(f'{SHARED_NORM}.') and name not in left_out]
    names = {name: tensor for name, tensor in names.items() if name not in left_out}

    stem = 'downsample_layers.0.0.weight'
    if structure.in_channels != model.in_channels:
        if inflate is None:
            raise CheckpointError(
                f'the checkpoint was trained with {structure.in_channels} input channels, the model has '
                f'in_channels={model.in_channels}; choose inflate={"|".join(INFLATIONS)} or set in_channels')
        names[stem] = inflate_stem(names[stem], model.in_channels, inflate)
    needed = [name for name in own if not re.fullmatch(r'norm[0-3]\.\w+', name)]
    missing = [name for name in needed if name not in names]
    unexpected = [name for name in names if name not in own]
    if missing or unexpected:
        raise CheckpointError(
            'the model and the checkpoint have different parts (V1 has layer scale and no GRN, V2 the reverse); only '
            f'in the model: {shown(missing) or "none"}; only in the checkpoint: {shown(unexpected) or "none"}')
    wrong = [f'{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}' for name, tensor in names.items()
             if tensor.shape != own[name].shape]
    if wrong:
        raise CheckpointError(f'{len(wrong)} tensors have another shape than the model: {shown(wrong)}')
    return names, left_out


def inflate_stem(weight_OIYX: Tensor, in_channels: int, how: str) -> Tensor:
    """The stem's filters for another number of input channels; see `load_pretrained_backbone` for the three ways."""
    old = weight_OIYX.shape[1]
    if in_channels < old and how != 'mean':
        raise CheckpointError(f"inflate={how!r} cannot make {in_channels} input channels of {old}; only 'mean' can")
    if how == 'mean':
        return weight_OIYX.mean(dim=1, keepdim=True).repeat(1, in_channels, 1, 1) * (old / in_channels)
    if how == 'copy':
        return weight_OIYX[:, torch.arange(in_channels) % old] * (old / in_channels)
    inflated = weight_OIYX.new_zeros(weight_OIYX.shape[0], in_channels, *weight_OIYX.shape[2:])
    inflated[:, :old] = weight_OIYX
    return inflated


def _arch_name(structure: Structure) -> str:
    """'atto' (depths, channels), the sizes being those of the backbone."""
    from mmcnx2.models.backbones.convnext_v2 import ARCHS  # the backbone imports this package
    same = [name for name, arch in ARCHS.items()
            if (tuple(arch['depths']), tuple(arch['channels'])) == (structure.depths, structure.channels)]
    shape = f'depths={list(structure.depths)}, channels={list(structure.channels)}'
    return f"'{same[0]}' ({shape})" if same else shape
