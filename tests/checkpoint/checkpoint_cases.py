"""Small real models of every layout with known outputs, and one check that a layout's rules must pass.

The state dicts come from the libraries' own models, the official code's stored run, and our models; none is made by
the rules under test. `meta` in dense form is written by hand-made loops (`dense_by_hand`).
"""

from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from mmcnx2.checkpoint import convert_state_dict
from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2
from mmcnx2.models.fcmae import FCMAE

DATA = Path(__file__).parents[1] / 'data'
DEPTHS, CHANNELS, NUM_CLASSES = [1, 1, 2, 1], [8, 16, 24, 32], 10
ARCH = {'depths': DEPTHS, 'channels': CHANNELS}
LAYOUT_KINDS = [
    (layout, kind)
    for layout, kinds in {
        'meta': ['stored', 'fcmae', 'v1', 'dense'],
        'meta-sparse': ['fcmae'],
        'timm': ['classifier', 'v1'],
        'huggingface': ['classifier', 'v1', 'dense'],
        'mmpretrain': ['classifier', 'v1', 'dense'],
        'mmcnx2': ['stored', 'fcmae', 'v1', 'dense'],
    }.items()
    for kind in kinds
]
TOLERANCE = 1e-6  # the stored run is float64 rounded to float32


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """No tensor keeps a value of which 0 or 1 would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator) + 0.2
    model.train(False)
    return model.double()


@cache
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def oracle(name):
    with safe_open(DATA / f'{name}.safetensors', 'pt') as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state_dict = {
        key.removeprefix('state_dict/'): value for key, value in tensors.items() if key.startswith('state_dict/')
    }
    return {key: value for key, value in tensors.items() if '/' not in key}, state_dict


def dense_by_hand(sparse):
    """The official sparse model's state dict in dense form, tap by tap."""
    dense = {}
    for name, tensor in sparse.items():
        name = name.replace('.ln.', '.').replace('.linear.', '.')
        if name.endswith('dwconv.kernel'):
            weight = torch.empty(tensor.shape[1], 1, 7, 7)
            for row in range(7):
                for column in range(7):
                    weight[:, 0, row, column] = tensor[row + 7 * column]
            name, tensor = name.replace('kernel', 'weight'), weight
        elif name.endswith('.kernel'):
            weight = torch.empty(tensor.shape[2], tensor.shape[1], 2, 2)
            for row in range(2):
                for column in range(2):
                    weight[:, :, row, column] = tensor[row + 2 * column].T
            name, tensor = name.replace('kernel', 'weight'), weight
        elif name.startswith('encoder.') and '.grn.' in name:
            tensor = tensor[None, None]
        elif tensor.dim() == 2 and name.endswith('.bias'):
            tensor = tensor[0]
        dense[name] = tensor
    return dense


def ours_by_hand(meta):
    """A dense official state dict under our names."""
    renamed = {}
    for name, tensor in meta.items():
        name = name.removeprefix('encoder.')
        if '.grn.' in name or name == 'mask_token':
            tensor = tensor.flatten()
        elif name in ('proj.weight', 'pred.weight'):
            tensor = tensor[:, :, 0, 0]
        for old, new in (
            ('head.', 'head.fc.'),
            ('decoder.', 'neck.blocks.'),
            ('proj.', 'neck.proj.'),
            ('mask_token', 'neck.mask_token'),
            ('pred.', 'head.pred.'),
            ('norm.', 'backbone.norm3.'),
        ):
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        else:
            name = f'backbone.{name}'
        renamed[name] = tensor
    return renamed


# ----------------------------------------------------------------------------------------------- our side


@torch.no_grad()
def run_ours(kind, state_dict):
    """The outputs of our model, from a state dict in layout mmcnx2."""
    if kind == 'fcmae':
        stored, _ = oracle('fcmae_micro_batch1')
        model = FCMAE(
            backbone={'type': 'mmcnx2.ConvNeXtV2', 'arch': ARCH},
            grn_over='batch',
            neck={'type': 'mmcnx2.FCMAEDecoder', 'decoder_channels': 32},
            head={'type': 'mmcnx2.PixelReconstructionHead'},
        ).double()
        model.load_state_dict(state_dict)
        image, visible = stored['image'].double(), stored['mask'].view(1, 4, 4) == 0
        return {
            'features': model.encode(image, visible),
            'prediction': model.reconstruct(image, visible).transpose(1, 2).unflatten(2, (4, 4)),
        }
    flags = {'out_indices': (0, 1, 2, 3)} if kind == 'dense' else {'gap_before_final_norm': True}
    if kind == 'v1':
        flags |= {'use_grn': False, 'layer_scale_init_value': 1e-6}
    backbone = ConvNeXtV2(ARCH, **flags)
    model = nn.ModuleDict({'backbone': backbone})
    if kind != 'dense':
        model['head'] = nn.ModuleDict({'fc': nn.Linear(CHANNELS[-1], NUM_CLASSES)})
    model.double().load_state_dict(state_dict)
    maps = backbone(images() if kind != 'stored' else oracle('convnextv2_micro')[0]['image'].double())
    return dict(enumerate(maps)) if kind == 'dense' else {'logits': model['head']['fc'](maps[-1])}


# ----------------------------------------------------------------------------------------------- their side


@cache
@torch.no_grad()
def cases():
    """{layout: {kind: (state dict as that project has it, {output name: value})}}"""
    stored, stored_state = oracle('convnextv2_micro')
    stored_fcmae, sparse_state = oracle('fcmae_micro_batch1')
    fcmae = {'features': stored_fcmae['encoder_output'], 'prediction': stored_fcmae['prediction']}
    meta = {'stored': (stored_state, {'logits': stored['logits']}), 'fcmae': (dense_by_hand(sparse_state), fcmae)}
    # Our names are Meta's, so a bare V1 backbone or one with output norms of ours is a file of theirs. The outputs
    # are those of the model that the state dict was taken from.
    v1 = randomised(ConvNeXtV2(ARCH, use_grn=False, layer_scale_init_value=1e-6, gap_before_final_norm=True), 1)
    head = randomised(nn.Linear(CHANNELS[-1], NUM_CLASSES), 2)
    v1_state = {name.replace('norm3', 'norm'): tensor for name, tensor in v1.state_dict().items()}
    meta['v1'] = ({**v1_state, 'head.weight': head.weight, 'head.bias': head.bias}, {'logits': head(v1(images())[0])})
    dense = randomised(ConvNeXtV2(ARCH, out_indices=(0, 1, 2, 3)), 3)
    meta['dense'] = (
        {name: tensor[None, None, None] if '.grn.' in name else tensor for name, tensor in dense.state_dict().items()},
        dict(enumerate(dense(images()))),
    )
    return {
        'meta': meta,
        'mmcnx2': {kind: (ours_by_hand(state_dict), outputs) for kind, (state_dict, outputs) in meta.items()},
        'meta-sparse': {'fcmae': (sparse_state, fcmae)},
        'timm': _timm_cases(),
        'huggingface': _huggingface_cases(),
        'mmpretrain': _mmpretrain_cases(),
    }


def _timm_cases():
    from timm.models.convnext import ConvNeXt

    found = {}
    for kind, flags in (('classifier', {'use_grn': True, 'ls_init_value': None}), ('v1', {})):
        model = randomised(ConvNeXt(depths=DEPTHS, dims=CHANNELS, num_classes=NUM_CLASSES, **flags), 10)
        found[kind] = (model.state_dict(), {'logits': model(images())})
    return found


def _huggingface_cases():
    import transformers

    settings = {'hidden_sizes': CHANNELS, 'depths': DEPTHS, 'num_labels': NUM_CLASSES, 'layer_norm_eps': 1e-6}
    v2 = randomised(transformers.ConvNextV2ForImageClassification(transformers.ConvNextV2Config(**settings)), 20)
    v1 = randomised(transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**settings)), 21)
    dense = randomised(
        transformers.ConvNextV2Backbone(
            transformers.ConvNextV2Config(**settings, out_features=['stage1', 'stage2', 'stage3', 'stage4'])
        ),
        22,
    )
    return {
        'classifier': (v2.state_dict(), {'logits': v2(images()).logits}),
        'v1': (v1.state_dict(), {'logits': v1(images()).logits}),
        'dense': (dense.state_dict(), dict(enumerate(dense(images()).feature_maps))),
    }


def _mmpretrain_cases():
    from mmpretrain.models import ConvNeXt

    head = randomised(nn.Linear(CHANNELS[-1], NUM_CLASSES), 30)
    around = {'head.fc.weight': head.weight, 'head.fc.bias': head.bias}
    found = {}
    for kind, flags in (('classifier', {'use_grn': True, 'layer_scale_init_value': 0.0}), ('v1', {})):
        model = randomised(ConvNeXt(ARCH, **flags), 31)
        state_dict = {f'backbone.{name}': tensor for name, tensor in model.state_dict().items()}
        found[kind] = ({**state_dict, **around}, {'logits': head(model(images())[0])})
    dense = randomised(
        ConvNeXt(ARCH, use_grn=True, layer_scale_init_value=0.0, out_indices=(0, 1, 2, 3), gap_before_final_norm=False),
        32,
    )
    found['dense'] = (
        {f'backbone.{name}': tensor for name, tensor in dense.state_dict().items()},
        dict(enumerate(dense(images()))),
    )
    return found


# ----------------------------------------------------------------------------------------------- the check

# Through which other layout a case is passed on its way, and the other where it comes from that one itself.
DETOURS = {
    'stored': ('timm', 'huggingface'),
    'classifier': ('timm', 'huggingface'),
    'v1': ('timm', 'huggingface'),
    'dense': ('huggingface', 'mmpretrain'),
    'fcmae': ('meta', 'meta-sparse'),
}


def same_tensors(left, right):
    """Same names, same shapes, same bits."""
    return left.keys() == right.keys() and all(
        left[name].shape == right[name].shape and torch.equal(left[name], right[name]) for name in left
    )


def check_case(layout, kind):
    """Raises when the rules of `layout` do not carry this model's outputs over, there and back and through a third
    layout."""
    state_dict, outputs = cases()[layout][kind]
    ours = convert_state_dict(state_dict, source=layout, target='mmcnx2')
    for name, value in run_ours(kind, {name: tensor.double() for name, tensor in ours.items()}).items():
        error = ((value - outputs[name]).abs().max() / outputs[name].abs().max()).item()
        assert error <= TOLERANCE, f'{layout} {kind}: output {name} is off by {error:.1e} of its maximum'
    back = convert_state_dict(ours, source='mmcnx2', target=layout)
    assert same_tensors(back, state_dict), f'{layout} {kind}: way back'

    detour = DETOURS[kind][layout == DETOURS[kind][0]]
    there = convert_state_dict(state_dict, source=layout, target=detour)
    known = 'classifier' if kind == 'stored' else kind
    assert there.keys() == cases()[detour][known][0].keys(), f'{layout} {kind}: names in {detour}'
    back = convert_state_dict(there, source=detour, target=layout)
    assert same_tensors(back, state_dict), f'{layout} {kind}: way back through {detour}'


def check_layout(layout):
    """Every kind of model that the layout has."""
    for of_layout, kind in LAYOUT_KINDS:
        if of_layout == layout:
            check_case(layout, kind)
