"""The same ConvNeXt V2 as other libraries build it, on given weights of ours: what our speed is compared with.

timm, transformers and mmpretrain are imported here, each when its model is asked for. A peer answers what our backbone
answers, a tuple of maps (B, C_i, H / s_i, W / s_i), and its gradients come back under our names, so both can be
compared tensor by tensor. Touch it when a library renames its classes, or to add one. Not for timing. Guarded by
tests/analysis/test_peer_backbones.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmcnx2.analysis.speed import time_once, waiter
from mmcnx2.analysis.step_comparison import Candidate, Options, steps_of
from mmcnx2.checkpoint import convert_state_dict
from mmcnx2.models.backbones.convnext_v2 import NORM_EPS, resolve_arch
from mmcnx2.models.layers.layout import positions_of

NUM_STAGES = 4
MEMORY_FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
NAMES = {'timm': 'timm', 'huggingface': 'transformers', 'mmpretrain': 'mmpretrain'}


class Peer(nn.Module):
    """A library's backbone: images -> tuple of maps.

    Args:
        library: its name among the layouts of mmcnx2.checkpoint.
        trunk: the library's model, without output norms.
        maps_of: (trunk, images) -> maps of `out_indices`.
        out_indices: stages whose maps are returned.
        norms: one module per out index, on (B, C, H, W); identities for no output norm.
        prefix: what stands before the trunk's names in a checkpoint of the library.
    """

    def __init__(
        self,
        library: str,
        trunk: nn.Module,
        maps_of: Callable[[nn.Module, Tensor], Sequence[Tensor]],
        out_indices: Sequence[int],
        norms: Sequence[nn.Module],
        prefix: str = '',
    ) -> None:
        super().__init__()
        self.library, self.maps_of, self.out_indices, self.prefix = library, maps_of, list(out_indices), prefix
        self.trunk, self.norms = trunk, nn.ModuleList(norms)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        maps = self.maps_of(self.trunk, images_BCHW)
        return tuple(norm(x_BCHW) for norm, x_BCHW in zip(self.norms, maps, strict=True))

    def load_ours(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take over the weights of our backbone, all of them."""
        trunk = {name: tensor for name, tensor in state_dict.items() if not name.startswith('norm')}
        converted = convert_state_dict(trunk, source='mmcnx2', target=self.library)
        wanted = self.trunk.state_dict()
        named = {name.removeprefix(self.prefix): tensor for name, tensor in converted.items()}
        for name in named.keys() & wanted.keys():  # timm keeps the linear layers of its small sizes as convolutions
            if named[name].numel() == wanted[name].numel():
                named[name] = named[name].view(wanted[name].shape)
        self.trunk.load_state_dict(named)
        norms = {name: tensor for name, tensor in state_dict.items() if name.startswith('norm')}
        for i, norm in zip(self.out_indices, self.norms, strict=True):
            norm.load_state_dict({name: norms.pop(f'norm{i}.{name}') for name in norm.state_dict()})
        if norms:
            raise ValueError(f'this {self.library} has no place for {", ".join(norms)}: build it with out_norm=True')

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of all parameters, under our names and in our shapes."""
        named = {f'{self.prefix}{name}': parameter.grad for name, parameter in self.trunk.named_parameters()}
        missing = [name for name, gradient in named.items() if gradient is None]
        if missing:
            raise ValueError(f'{self.library} has no gradient for {", ".join(missing[:3])}: run a backward pass first')
        ours = convert_state_dict(named, source=self.library, target='mmcnx2')
        found = {name.removeprefix('backbone.'): gradient for name, gradient in ours.items()}
        for i, norm in zip(self.out_indices, self.norms, strict=True):
            found |= {f'norm{i}.{name}': parameter.grad for name, parameter in norm.named_parameters()}
        return found


def build_peer(
    library: str,
    arch: str | dict,
    state_dict: Mapping[str, Tensor],
    out_indices: Sequence[int] = (3,),
    out_norm: bool = False,
) -> Peer:
    """The backbone of a library ('timm', 'huggingface' or 'mmpretrain') on the weights of ours, in float32 on the CPU.

    With `out_norm` each returned map has a LayerNorm, as our backbone has by default; timm has none of its own, and
    gets its own class for it.

    Raises:
        ValueError: another library.
        ImportError: it is not installed.
    """
    if library not in _BUILDERS:
        raise ValueError(f'library={library!r} is not known; choose one of {", ".join(_BUILDERS)}.')
    peer = _BUILDERS[library](arch, sorted(out_indices), out_norm)
    peer.load_ours(state_dict)
    return peer


def _timm(arch: str | dict, out_indices: list[int], out_norm: bool) -> Peer:
    import timm
    from timm.layers import LayerNorm2d
    from timm.models.convnext import ConvNeXt

    depths, channels = resolve_arch(arch)
    if isinstance(arch, str):
        trunk = timm.create_model(f'convnextv2_{arch}', num_classes=0)
    else:
        trunk = ConvNeXt(depths=depths, dims=channels, num_classes=0, use_grn=True, ls_init_value=None)
    trunk.head = nn.Identity()
    norms = [LayerNorm2d(channels[i], eps=NORM_EPS) if out_norm else nn.Identity() for i in out_indices]

    def maps_of(model: nn.Module, images_BCHW: Tensor) -> Sequence[Tensor]:
        return model.forward_intermediates(images_BCHW, indices=out_indices, intermediates_only=True, stop_early=True)

    return Peer('timm', trunk, maps_of, out_indices, norms)


def _huggingface(arch: str | dict, out_indices: list[int], out_norm: bool) -> Peer:
    import transformers

    depths, channels = resolve_arch(arch)
    config = transformers.ConvNextV2Config(
        hidden_sizes=channels,
        depths=depths,
        layer_norm_eps=NORM_EPS,
        out_features=[f'stage{i + 1}' for i in out_indices],
    )
    trunk = transformers.ConvNextV2Backbone(config)
    norms = [trunk.hidden_states_norms[f'stage{i + 1}'] if out_norm else nn.Identity() for i in out_indices]
    trunk.hidden_states_norms = nn.ModuleDict({f'stage{i + 1}': nn.Identity() for i in out_indices})
    return Peer(
        'huggingface', trunk, lambda model, images_BCHW: model(images_BCHW).feature_maps, out_indices, norms,
        'convnextv2.',
    )  # fmt: skip


def _mmpretrain(arch: str | dict, out_indices: list[int], out_norm: bool) -> Peer:
    from mmpretrain.models import ConvNeXt

    depths, channels = resolve_arch(arch)
    trunk = ConvNeXt(
        dict(depths=depths, channels=channels),
        use_grn=True,
        layer_scale_init_value=0.0,
        out_indices=list(out_indices),
        gap_before_final_norm=False,
    )
    norms = [getattr(trunk, f'norm{i}') if out_norm else nn.Identity() for i in out_indices]
    for i in out_indices:
        setattr(trunk, f'norm{i}', nn.Identity())
    return Peer('mmpretrain', trunk, lambda model, images_BCHW: model(images_BCHW), out_indices, norms, 'backbone.')


_BUILDERS = {'timm': _timm, 'huggingface': _huggingface, 'mmpretrain': _mmpretrain}
PEERS = tuple(_BUILDERS)


def build_spark(arch: str | dict, state_dict: Mapping[str, Tensor], visible_BGG: Tensor) -> Peer:
    """The encoder of mmpretrain's SparK, SparseConvNeXt with GRN, on the weights of ours: the masked dense way.

    It hides the cells of the images and of every map as its `SparK.loss` does, given the cells that stay visible. Its
    GRN also sums over hidden positions, where the bias of the layer before stands; with those biases at zero it
    computes what our encoder computes (`without_widening_biases`).

    Raises:
        ValueError: the pictures are not square, which mmpretrain's code needs.
    """
    if visible_BGG.shape[1] != visible_BGG.shape[2]:
        raise ValueError(
            f'SparK of mmpretrain takes square pictures only; these have {visible_BGG.shape[1]} x '
            f'{visible_BGG.shape[2]} cells'
        )
    from mmpretrain.models.backbones.sparse_convnext import SparseConvNeXt
    from mmpretrain.models.utils.sparse_modules import SparseHelper

    depths, channels = resolve_arch(arch)
    trunk = SparseConvNeXt(
        dict(depths=depths, channels=channels), use_grn=True, layer_scale_init_value=0.0, gap_before_output=False
    )
    active_B1GG = visible_BGG[:, None]

    def maps_of(model: nn.Module, images_BCHW: Tensor) -> Sequence[Tensor]:
        SparseHelper._cur_active = active_B1GG  # where the library keeps it
        pixels_per_cell = images_BCHW.shape[-1] // visible_BGG.shape[-1]
        active_B1HW = positions_of(visible_BGG, pixels_per_cell)[:, None]
        return model(images_BCHW * active_B1HW)

    peer = Peer('mmpretrain', trunk, maps_of, [NUM_STAGES - 1], [nn.Identity()], 'backbone.')
    peer.load_ours(state_dict)
    return peer


def peer_candidates(
    libraries: Sequence[str],
    arch: str | dict,
    ours: nn.Module,
    images_BCHW: Tensor,
    equals: str,
    options: Options,
    out_norm: bool,
    memory_format: str = 'auto',
    say: Callable[[str], None] = lambda text: None,
) -> list[Candidate]:
    """The backbones of other libraries on the weights of `ours`, each in the memory format in which it is faster.

    With memory_format='auto' each runs one step in either format, after one that does not count, and keeps the faster;
    'contiguous' and 'channels_last' set it.
    """
    found = []
    for library in libraries:
        say(f'building {library}')
        peer = build_peer(library, arch, ours.state_dict(), ours.out_indices, out_norm).to(options.device)
        seconds = {}
        for name in MEMORY_FORMATS if memory_format == 'auto' else [memory_format]:
            say(f'{library}, {name}')
            candidate = _in_format(peer, images_BCHW, name, equals)
            if memory_format == 'auto':
                step = steps_of(candidate, options)[options.phases[-1]]
                time_once(step, waiter(options.device))
                seconds[name] = time_once(step, waiter(options.device))
        best = min(seconds, key=seconds.get) if seconds else memory_format
        chosen = _in_format(peer, images_BCHW, best, equals)
        if seconds:
            worse = max(seconds, key=seconds.get)
            gain = seconds[worse] / seconds[best]
            chosen = replace(chosen, notes=(f'{best} memory format, {gain:.2f} times as fast as {worse}',))
        found.append(chosen)
    return found


def _in_format(peer: Peer, images_BCHW: Tensor, memory_format: str, equals: str) -> Candidate:
    """Changes the memory format of the peer's weights."""
    peer.to(memory_format=MEMORY_FORMATS[memory_format])
    images = images_BCHW.contiguous(memory_format=MEMORY_FORMATS[memory_format])
    return Candidate(
        NAMES[peer.library],
        peer,
        lambda run: run(images),
        equals,
        peer.gradients,
        notes=(f'{memory_format} memory format',),
    )


class without_widening_biases:
    """Inside the block the first linear layer of every block of these models has a bias of zero.

    Names are ours ('pwconv1') or mmpretrain's ('pointwise_conv1').
    """

    def __init__(self, *models: nn.Module) -> None:
        self.biases = [
            parameter
            for model in models
            for name, parameter in model.named_parameters()
            if name.endswith(('pwconv1.bias', 'pointwise_conv1.bias'))
        ]

    def __enter__(self) -> None:
        self.values = [bias.detach().clone() for bias in self.biases]
        with torch.no_grad():
            for bias in self.biases:
                bias.zero_()

    def __exit__(self, *error: object) -> None:
        with torch.no_grad():
            for bias, value in zip(self.biases, self.values, strict=True):
                bias.copy_(value)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of which none is 0 or 1 and under which activations stay moderate: no term that a peer lacks or has twice
    goes unseen.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * noise + ('norm' in name and name.endswith('weight')))
    return model
