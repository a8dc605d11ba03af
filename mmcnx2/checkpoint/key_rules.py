"""Checkpoint step 1 of 3, the tables: what each project calls a tensor of ConvNeXt (V1, V2, FCMAE) and how it stores
it.

One canonical layout stands in the middle: mmcnx2's own names and shapes (`TENSORS`). Each other layout is a list of
rules (its name, the canonical name, how it stores the tensor). Rules are data; convert.py applies them in both
directions.

Touch this file to teach a further backbone or a further project's names: add rows. Not for reading files (load.py),
and no logic beyond the storage kinds at the end. Guarded by tests/checkpoint/test_key_rules.py, by
tests/checkpoint/test_other_libraries.py, which compares the outputs of real models, and by
tests/faults/table_mutations.py, which breaks each row in turn.

Patterns: {i} a stage, {k} a stage after the first, {j} a block, {d} a decoder block, {p} 'weight' or 'bias'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

# ------------------------------------------------------------------------------------------------- the canonical layout


class CanonicalTensor(NamedTuple):
    """A tensor of the canonical layout. `group` says with what it comes and goes (see convert.py)."""

    name: str
    shape: str
    group: str


def _block(name: str, width: str, group: str) -> tuple[CanonicalTensor, ...]:
    """The tensors of one ConvNeXt block; `width` is its shape letter and 4 times that is `width` doubled ('CC')."""
    wide = width * 2
    return (
        CanonicalTensor(f'{name}.dwconv.weight', f'{width} 1 7 7', group),
        CanonicalTensor(f'{name}.dwconv.bias', width, group),
        CanonicalTensor(f'{name}.norm.{{p}}', width, group),
        CanonicalTensor(f'{name}.pwconv1.weight', f'{wide} {width}', group),
        CanonicalTensor(f'{name}.pwconv1.bias', wide, group),
        CanonicalTensor(f'{name}.grn.gamma', wide, f'{group} grn'),
        CanonicalTensor(f'{name}.grn.beta', wide, f'{group} grn'),
        CanonicalTensor(f'{name}.pwconv2.weight', f'{width} {wide}', group),
        CanonicalTensor(f'{name}.pwconv2.bias', width, group),
    )


# Shape letters: C width of stage i or k, B width of the stage before it, CC = 4 C, I input channels, L width of the
# last stage, D and DD = 4 D the decoder's widths, P values of a predicted cell, N classes; a digit is itself.
TENSORS: tuple[CanonicalTensor, ...] = (
    CanonicalTensor('backbone.downsample_layers.0.0.weight', 'C I 4 4', 'stem'),
    CanonicalTensor('backbone.downsample_layers.0.0.bias', 'C', 'stem'),
    CanonicalTensor('backbone.downsample_layers.0.1.{p}', 'C', 'stem'),
    CanonicalTensor('backbone.downsample_layers.{k}.0.{p}', 'B', 'downsample'),
    CanonicalTensor('backbone.downsample_layers.{k}.1.weight', 'C B 2 2', 'downsample'),
    CanonicalTensor('backbone.downsample_layers.{k}.1.bias', 'C', 'downsample'),
    *_block('backbone.stages.{i}.{j}', 'C', 'block'),
    CanonicalTensor('backbone.stages.{i}.{j}.gamma', 'C', 'block layer_scale'),  # V1
    # Norms of the four feature maps in dense tasks, each with its own group: out_indices chooses which exist.
    *(CanonicalTensor(f'backbone.norm{i}.{{p}}', f'C{i}', f'norm{i}') for i in range(4)),
    # The classifier's norm, after global average pooling. mmcnx2 and mmpretrain store it as norm3 (see SHARED_NORM).
    CanonicalTensor('backbone.final_norm.{p}', 'L', 'final_norm'),
    CanonicalTensor('head.fc.weight', 'N L', 'classifier'),
    CanonicalTensor('head.fc.bias', 'N', 'classifier'),
    CanonicalTensor('neck.proj.weight', 'D L', 'decoder'),
    CanonicalTensor('neck.proj.bias', 'D', 'decoder'),
    CanonicalTensor('neck.mask_token', 'D', 'decoder'),
    *_block('neck.blocks.{d}', 'D', 'decoder_block'),
    CanonicalTensor('head.pred.weight', 'P D', 'decoder'),
    CanonicalTensor('head.pred.bias', 'P', 'decoder'),
)

SHARED_NORM = 'norm3'
"""mmcnx2 and mmpretrain keep the classifier's norm and the norm of the last dense map under this one name. It is read
as the classifier's when no norm0, norm1 or norm2 stands beside it."""

# --------------------------------------------------------------------------------------------------- the other layouts


class Rule(NamedTuple):
    """`name` in the layout (for a backbone tensor without the prefix under which the backbone stands) <->
    `canonical`."""

    name: str
    canonical: str
    kind: str = 'as_is'


class Layout(NamedTuple):
    """How one project stores a ConvNeXt. `stem` finds the backbone; `marker` is a piece of a name that no other
    layout has."""

    prefixes: tuple[str, ...]
    stem: str
    marker: str | None
    backbone: tuple[Rule, ...]
    around: tuple[Rule, ...] = ()
    shares_norm3: bool = False


def _strided_convs(stem: str, down: str) -> tuple[Rule, ...]:
    """Stem and downsampling of the layouts that call both stages' parts '0' (or 'stem.0') and '1'."""
    return (
        Rule(f'{stem}.0.{{p}}', 'backbone.downsample_layers.0.0.{p}'),
        Rule(f'{stem}.1.{{p}}', 'backbone.downsample_layers.0.1.{p}', 'vector'),
        Rule(f'{down}.0.{{p}}', 'backbone.downsample_layers.{k}.0.{p}', 'vector'),
        Rule(f'{down}.1.{{p}}', 'backbone.downsample_layers.{k}.1.{p}'),
    )


def _dense_block(block: str, canonical: str, grn_kind: str) -> tuple[Rule, ...]:
    """A block under Meta's names, which mmcnx2 uses too."""
    return (
        Rule(f'{block}.dwconv.{{p}}', f'{canonical}.dwconv.{{p}}'),
        Rule(f'{block}.norm.{{p}}', f'{canonical}.norm.{{p}}', 'vector'),
        Rule(f'{block}.pwconv1.weight', f'{canonical}.pwconv1.weight', 'matrix'),
        Rule(f'{block}.pwconv1.bias', f'{canonical}.pwconv1.bias', 'vector'),
        Rule(f'{block}.grn.gamma', f'{canonical}.grn.gamma', grn_kind),
        Rule(f'{block}.grn.beta', f'{canonical}.grn.beta', grn_kind),
        Rule(f'{block}.pwconv2.weight', f'{canonical}.pwconv2.weight', 'matrix'),
        Rule(f'{block}.pwconv2.bias', f'{canonical}.pwconv2.bias', 'vector'),
    )


STAGE = 'backbone.stages.{i}.{j}'

_DENSE_NORMS = tuple(Rule(f'norm{i}.{{p}}', f'backbone.norm{i}.{{p}}', 'vector') for i in range(4))
_SHARED_FINAL_NORM = Rule(f'{SHARED_NORM}.{{p}}', 'backbone.final_norm.{p}', 'vector')
_MM_CLASSIFIER = (
    Rule('head.fc.weight', 'head.fc.weight', 'matrix'),
    Rule('head.fc.bias', 'head.fc.bias', 'vector'),
)

_META_DECODER = (
    Rule('proj.weight', 'neck.proj.weight', 'conv1x1'),
    Rule('proj.bias', 'neck.proj.bias', 'vector'),
    Rule('mask_token', 'neck.mask_token', 'token_4d'),
    *_dense_block('decoder.{d}', 'neck.blocks.{d}', 'grn_4d'),
    Rule('pred.weight', 'head.pred.weight', 'conv1x1'),
    Rule('pred.bias', 'head.pred.bias', 'vector'),
)

LAYOUTS: dict[str, Layout] = {
    'mmcnx2': Layout(
        prefixes=('backbone.', ''),
        stem='downsample_layers.0.0.weight',
        marker=None,
        backbone=(
            *_strided_convs('downsample_layers.0', 'downsample_layers.{k}'),
            *_dense_block('stages.{i}.{j}', STAGE, 'vector'),
            Rule('stages.{i}.{j}.gamma', f'{STAGE}.gamma', 'vector'),
            *_DENSE_NORMS,
            _SHARED_FINAL_NORM,
        ),
        around=(
            *_MM_CLASSIFIER,
            Rule('neck.proj.weight', 'neck.proj.weight', 'matrix'),
            Rule('neck.proj.bias', 'neck.proj.bias', 'vector'),
            Rule('neck.mask_token', 'neck.mask_token', 'vector'),
            *_dense_block('neck.blocks.{d}', 'neck.blocks.{d}', 'vector'),
            Rule('head.pred.weight', 'head.pred.weight', 'matrix'),
            Rule('head.pred.bias', 'head.pred.bias', 'vector'),
        ),
        shares_norm3=True,
    ),
    # facebookresearch/ConvNeXt-V2: the classifier, V1's detection code (norm0..norm3), files already made dense.
    'meta': Layout(
        prefixes=('', 'encoder.', 'backbone.'),
        stem='downsample_layers.0.0.weight',
        marker=None,
        backbone=(
            *_strided_convs('downsample_layers.0', 'downsample_layers.{k}'),
            *_dense_block('stages.{i}.{j}', STAGE, 'grn_4d'),
            Rule('stages.{i}.{j}.gamma', f'{STAGE}.gamma', 'vector'),
            *_DENSE_NORMS,
            Rule('norm.{p}', 'backbone.final_norm.{p}', 'vector'),
        ),
        around=(
            Rule('head.weight', 'head.fc.weight', 'matrix'),
            Rule('head.bias', 'head.fc.bias', 'vector'),
            *_META_DECODER,
        ),
    ),
    # The same authors' FCMAE model: a MinkowskiEngine encoder and a dense decoder.
    'meta-sparse': Layout(
        prefixes=('encoder.', ''),
        stem='downsample_layers.0.0.weight',
        marker='.dwconv.kernel',
        backbone=(
            Rule('downsample_layers.0.0.{p}', 'backbone.downsample_layers.0.0.{p}'),
            Rule('downsample_layers.0.1.{p}', 'backbone.downsample_layers.0.1.{p}', 'vector'),
            Rule('downsample_layers.{k}.0.ln.{p}', 'backbone.downsample_layers.{k}.0.{p}', 'vector'),
            Rule('downsample_layers.{k}.1.kernel', 'backbone.downsample_layers.{k}.1.weight', 'sparse_conv'),
            Rule('downsample_layers.{k}.1.bias', 'backbone.downsample_layers.{k}.1.bias', 'row'),
            Rule('stages.{i}.{j}.dwconv.kernel', f'{STAGE}.dwconv.weight', 'sparse_depthwise'),
            Rule('stages.{i}.{j}.dwconv.bias', f'{STAGE}.dwconv.bias', 'row'),
            Rule('stages.{i}.{j}.norm.ln.{p}', f'{STAGE}.norm.{{p}}', 'vector'),
            Rule('stages.{i}.{j}.pwconv1.linear.weight', f'{STAGE}.pwconv1.weight', 'matrix'),
            Rule('stages.{i}.{j}.pwconv1.linear.bias', f'{STAGE}.pwconv1.bias', 'vector'),
            Rule('stages.{i}.{j}.grn.gamma', f'{STAGE}.grn.gamma', 'row'),
            Rule('stages.{i}.{j}.grn.beta', f'{STAGE}.grn.beta', 'row'),
            Rule('stages.{i}.{j}.pwconv2.linear.weight', f'{STAGE}.pwconv2.weight', 'matrix'),
            Rule('stages.{i}.{j}.pwconv2.linear.bias', f'{STAGE}.pwconv2.bias', 'vector'),
        ),
        around=_META_DECODER,
    ),
    # huggingface/pytorch-image-models.
    'timm': Layout(
        prefixes=('', 'backbone.'),
        stem='stem.0.weight',
        marker='.conv_dw.',
        backbone=(
            *_strided_convs('stem', 'stages.{k}.downsample'),
            Rule('stages.{i}.blocks.{j}.conv_dw.{p}', f'{STAGE}.dwconv.{{p}}'),
            Rule('stages.{i}.blocks.{j}.norm.{p}', f'{STAGE}.norm.{{p}}', 'vector'),
            Rule('stages.{i}.blocks.{j}.mlp.fc1.weight', f'{STAGE}.pwconv1.weight', 'timm_mlp'),
            Rule('stages.{i}.blocks.{j}.mlp.fc1.bias', f'{STAGE}.pwconv1.bias', 'vector'),
            Rule('stages.{i}.blocks.{j}.mlp.grn.weight', f'{STAGE}.grn.gamma', 'vector'),
            Rule('stages.{i}.blocks.{j}.mlp.grn.bias', f'{STAGE}.grn.beta', 'vector'),
            Rule('stages.{i}.blocks.{j}.gamma', f'{STAGE}.gamma', 'vector'),
            Rule('stages.{i}.blocks.{j}.mlp.fc2.weight', f'{STAGE}.pwconv2.weight', 'timm_mlp'),
            Rule('stages.{i}.blocks.{j}.mlp.fc2.bias', f'{STAGE}.pwconv2.bias', 'vector'),
        ),
        around=(
            Rule('head.norm.{p}', 'backbone.final_norm.{p}', 'vector'),
            Rule('head.fc.weight', 'head.fc.weight', 'matrix'),
            Rule('head.fc.bias', 'head.fc.bias', 'vector'),
        ),
    ),
    # huggingface/transformers: ConvNextV2Model, ...ForImageClassification, ...Backbone, and V1's classes.
    'huggingface': Layout(
        prefixes=('', 'convnextv2.', 'convnext.'),
        stem='embeddings.patch_embeddings.weight',
        marker='embeddings.patch_embeddings.',
        backbone=(
            Rule('embeddings.patch_embeddings.{p}', 'backbone.downsample_layers.0.0.{p}'),
            Rule('embeddings.layernorm.{p}', 'backbone.downsample_layers.0.1.{p}', 'vector'),
            Rule('encoder.stages.{k}.downsampling_layer.0.{p}', 'backbone.downsample_layers.{k}.0.{p}', 'vector'),
            Rule('encoder.stages.{k}.downsampling_layer.1.{p}', 'backbone.downsample_layers.{k}.1.{p}'),
            Rule('encoder.stages.{i}.layers.{j}.dwconv.{p}', f'{STAGE}.dwconv.{{p}}'),
            Rule('encoder.stages.{i}.layers.{j}.layernorm.{p}', f'{STAGE}.norm.{{p}}', 'vector'),
            Rule('encoder.stages.{i}.layers.{j}.pwconv1.weight', f'{STAGE}.pwconv1.weight', 'matrix'),
            Rule('encoder.stages.{i}.layers.{j}.pwconv1.bias', f'{STAGE}.pwconv1.bias', 'vector'),
            Rule('encoder.stages.{i}.layers.{j}.grn.weight', f'{STAGE}.grn.gamma', 'grn_4d'),
            Rule('encoder.stages.{i}.layers.{j}.grn.bias', f'{STAGE}.grn.beta', 'grn_4d'),
            Rule('encoder.stages.{i}.layers.{j}.layer_scale_parameter', f'{STAGE}.gamma', 'vector'),
            Rule('encoder.stages.{i}.layers.{j}.pwconv2.weight', f'{STAGE}.pwconv2.weight', 'matrix'),
            Rule('encoder.stages.{i}.layers.{j}.pwconv2.bias', f'{STAGE}.pwconv2.bias', 'vector'),
            Rule('layernorm.{p}', 'backbone.final_norm.{p}', 'vector'),
            *(Rule(f'hidden_states_norms.stage{i + 1}.{{p}}', f'backbone.norm{i}.{{p}}', 'vector') for i in range(4)),
        ),
        around=(
            Rule('classifier.weight', 'head.fc.weight', 'matrix'),
            Rule('classifier.bias', 'head.fc.bias', 'vector'),
        ),
    ),
    # mmpretrain's ConvNeXt as the backbone of any OpenMMLab model.
    'mmpretrain': Layout(
        prefixes=('backbone.', ''),
        stem='downsample_layers.0.0.weight',
        marker='.depthwise_conv.',
        backbone=(
            *_strided_convs('downsample_layers.0', 'downsample_layers.{k}'),
            Rule('stages.{i}.{j}.depthwise_conv.{p}', f'{STAGE}.dwconv.{{p}}'),
            Rule('stages.{i}.{j}.norm.{p}', f'{STAGE}.norm.{{p}}', 'vector'),
            Rule('stages.{i}.{j}.pointwise_conv1.weight', f'{STAGE}.pwconv1.weight', 'matrix'),
            Rule('stages.{i}.{j}.pointwise_conv1.bias', f'{STAGE}.pwconv1.bias', 'vector'),
            Rule('stages.{i}.{j}.grn.gamma', f'{STAGE}.grn.gamma', 'vector'),
            Rule('stages.{i}.{j}.grn.beta', f'{STAGE}.grn.beta', 'vector'),
            Rule('stages.{i}.{j}.gamma', f'{STAGE}.gamma', 'vector'),
            Rule('stages.{i}.{j}.pointwise_conv2.weight', f'{STAGE}.pwconv2.weight', 'matrix'),
            Rule('stages.{i}.{j}.pointwise_conv2.bias', f'{STAGE}.pwconv2.bias', 'vector'),
            *_DENSE_NORMS,
            _SHARED_FINAL_NORM,
        ),
        around=_MM_CLASSIFIER,
        shares_norm3=True,
    ),
}

# Wrappers (DistributedDataParallel, torch.compile) put these before every name of a model.
WRAPPER_PREFIXES = ('module.', '_orig_mod.')

TIMM_CONV_MLP_CHANNELS = ((40, 80, 160, 320), (48, 96, 192, 384), (64, 128, 256, 512), (80, 160, 320, 640))
"""Widths of the sizes (atto, femto, pico, nano) for which timm stores the two linears of a block as 1x1
convolutions."""

# --------------------------------------------------------------------------------------------------- the storage kinds


class Kind(NamedTuple):
    """How a layout stores a tensor: `to_canonical` reads it (and tolerates extra axes of size 1), `from_canonical`
    writes it.

    Both raise ValueError for a tensor that cannot be of this kind."""

    to_canonical: Callable[[Tensor], Tensor]
    from_canonical: Callable[[Tensor], Tensor]


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


def _vector(tensor: Tensor) -> Tensor:
    """(C,) from (C,), (1, C), (1, 1, 1, C), (1, C, 1, 1)."""
    if tensor.numel() != max(tensor.shape, default=0):
        raise ValueError('is not a vector, apart from axes of size 1')
    return tensor.reshape(-1)


def _matrix(tensor: Tensor) -> Tensor:
    """(O, I) from (O, I) and (O, I, 1, 1)."""
    if tensor.dim() < 2 or any(size != 1 for size in tensor.shape[2:]):
        raise ValueError('is neither a matrix nor a 1x1 convolution')
    return tensor.reshape(tensor.shape[:2])


def _kernel_side(num_taps: int) -> int:
    side = math.isqrt(num_taps)
    if side * side != num_taps:
        raise ValueError(f'has {num_taps} kernel taps, which is not a square')
    return side


# MinkowskiEngine numbers the taps of a KxK kernel column by column: tap = row + K * column, the row varies fastest.
# Splitting that axis gives (column, row), and torch wants (row, column).
def _conv_from_sparse(kernel_TIO: Tensor) -> Tensor:
    if kernel_TIO.dim() != 3:
        raise ValueError('is not a kernel of shape (taps, in, out)')
    side = _kernel_side(kernel_TIO.shape[0])
    return kernel_TIO.reshape(side, side, *kernel_TIO.shape[1:]).permute(3, 2, 1, 0).contiguous()


def _sparse_from_conv(weight_OIYX: Tensor) -> Tensor:
    return weight_OIYX.permute(3, 2, 1, 0).reshape(-1, weight_OIYX.shape[1], weight_OIYX.shape[0]).contiguous()


def _depthwise_from_sparse(kernel_TC: Tensor) -> Tensor:
    if kernel_TC.dim() != 2:
        raise ValueError('is not a kernel of shape (taps, channels)')
    side = _kernel_side(kernel_TC.shape[0])
    return kernel_TC.reshape(side, side, kernel_TC.shape[1]).permute(2, 1, 0).unsqueeze(1).contiguous()


def _sparse_from_depthwise(weight_C1YX: Tensor) -> Tensor:
    return weight_C1YX.squeeze(1).permute(2, 1, 0).reshape(-1, weight_C1YX.shape[0]).contiguous()


KINDS: dict[str, Kind] = {
    'as_is': Kind(_as_is, _as_is),
    'vector': Kind(_vector, _as_is),
    'row': Kind(_vector, lambda vector_C: vector_C[None, :]),
    'grn_4d': Kind(_vector, lambda vector_C: vector_C[None, None, None, :]),
    'token_4d': Kind(_vector, lambda vector_C: vector_C[None, :, None, None]),
    'matrix': Kind(_matrix, _as_is),
    'conv1x1': Kind(_matrix, lambda matrix_OI: matrix_OI[:, :, None, None]),
    # 'matrix' or 'conv1x1', which depends on the model's size (TIMM_CONV_MLP_CHANNELS).
    'timm_mlp': Kind(_matrix, _as_is),
    'sparse_conv': Kind(_conv_from_sparse, _sparse_from_conv),
    'sparse_depthwise': Kind(_depthwise_from_sparse, _sparse_from_depthwise),
}
