"""Conversion is exact for every pair of layouts and every size, and strict: what does not fit stops it with the
list."""

import gzip
import itertools
import json

import pytest
import torch
from checkpoint_cases import DATA, LAYOUT_KINDS, cases, same_tensors

from mmcnx2.checkpoint import CheckpointError, convert_state_dict, detect_layout
from mmcnx2.checkpoint.convert import Structure, measure_structure, to_canonical
from mmcnx2.checkpoint.key_rules import LAYOUTS, Rule
from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2
from mmcnx2.models.fcmae import FCMAE

SIZES = json.loads(gzip.decompress((DATA / 'layer_decay_official.json.gz').read_bytes()))['sizes']
DENSE_LAYOUTS = [layout for layout in LAYOUTS if layout != 'meta-sparse']


def official(size):
    """Every name and shape of an official classifier, without memory behind it."""
    return {name: torch.empty(entry['shape'], device='meta') for name, entry in SIZES[size]['params'].items()}


def shapes(state_dict):
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def stored_classifier():
    return dict(cases()['meta']['stored'][0])


def sparse_fcmae():
    return dict(cases()['meta-sparse']['fcmae'][0])


@pytest.mark.parametrize('size', SIZES)
def test_all_sizes_go_through_all_pairs_of_layouts(size):
    meta = official(size)
    by_layout = {layout: convert_state_dict(meta, source='meta', target=layout) for layout in DENSE_LAYOUTS}
    for source, target in itertools.product(DENSE_LAYOUTS, repeat=2):
        converted = convert_state_dict(by_layout[source], source=source, target=target)
        assert shapes(converted) == shapes(by_layout[target]), (source, target)
    assert shapes(convert_state_dict(by_layout['mmcnx2'], source='mmcnx2', target='meta')) == shapes(meta)


@pytest.mark.parametrize('size', SIZES)
def test_the_architecture_is_read_off_the_shapes(size):
    structure = measure_structure(to_canonical(official(size), 'meta')[0])
    assert structure == Structure(tuple(SIZES[size]['depths']), tuple(SIZES[size]['channels']), 3)


# What a model may consist of, the layouts that can hold it, and a number type that must stay.
CONTENTS = {
    'encoder': (list(LAYOUTS), torch.float32),
    'classifier': (DENSE_LAYOUTS, torch.float32),
    'v1 classifier': (DENSE_LAYOUTS, torch.float16),
    'dense norms': ([layout for layout in DENSE_LAYOUTS if layout != 'timm'], torch.float32),
    'fcmae': (['mmcnx2', 'meta', 'meta-sparse'], torch.bfloat16),
}
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def random_bits(content, size, dtype):
    """A model of this size's depths and of its widths / 8, from our classes; no two bit patterns of it alike but by
    chance, NaN and -0 among them."""
    arch = {'depths': SIZES[size]['depths'], 'channels': [width // 8 for width in SIZES[size]['channels']]}
    settings = {
        'encoder': {'out_norm': False},
        'classifier': {'gap_before_final_norm': True},
        'v1 classifier': {'gap_before_final_norm': True, 'use_grn': False, 'layer_scale_init_value': 1e-6},
        'dense norms': {'out_indices': (0, 1, 2, 3)},
    }
    with torch.device('meta'):
        if content == 'fcmae':
            neck = {'type': 'mmcnx2.FCMAEDecoder', 'decoder_channels': 20, 'decoder_depth': 2}
            state_dict = FCMAE(backbone={'type': 'mmcnx2.ConvNeXtV2', 'arch': arch}, neck=neck).state_dict()
        else:
            backbone = ConvNeXtV2(arch, **settings[content])
            state_dict = {f'backbone.{name}': tensor for name, tensor in backbone.state_dict().items()}
            if 'classifier' in content:
                head = torch.nn.Linear(arch['channels'][3], 11).state_dict()
                state_dict.update({f'head.fc.{name}': tensor for name, tensor in head.items()})
    integers = BITS[dtype]
    limits = torch.iinfo(integers)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(limits.min, limits.max, tensor.shape, generator=generator, dtype=integers).view(dtype)
        for name, tensor in state_dict.items()
    }


def same_bits(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == tensor.dtype and left[name].view(BITS[tensor.dtype]).equal(tensor.view(BITS[tensor.dtype]))
        for name, tensor in right.items()
    )


@pytest.mark.parametrize('content', CONTENTS)
@pytest.mark.parametrize('size', SIZES)
def test_every_size_goes_through_every_pair_of_layouts_bit_for_bit(size, content):
    """One form per layout, and every way between two of them ends in exactly that form: every round trip is exact."""
    layouts, dtype = CONTENTS[content]
    ours = random_bits(content, size, dtype)
    forms = {layout: convert_state_dict(ours, source='mmcnx2', target=layout) for layout in layouts}
    assert same_bits(forms['mmcnx2'], ours)
    for source, target in itertools.product(layouts, repeat=2):
        converted = convert_state_dict(forms[source], source=source, target=target)
        assert len(converted) == len(ours) and same_bits(converted, forms[target]), (source, target)


@pytest.mark.parametrize('size', SIZES)
def test_names_and_shapes_are_those_of_timm(size):
    import timm

    with torch.device('meta'):
        model = timm.create_model(f'convnextv2_{size}', num_classes=1000)
    assert shapes(convert_state_dict(official(size), source='meta', target='timm')) == shapes(model.state_dict())


@pytest.mark.parametrize(('source', 'target'), itertools.product(DENSE_LAYOUTS, repeat=2))
def test_a_classifier_comes_back_bit_for_bit(source, target):
    start = convert_state_dict(stored_classifier(), source='meta', target=source)
    there = convert_state_dict(start, source=source, target=target)
    assert same_tensors(convert_state_dict(there, source=target, target=source), start)


@pytest.mark.parametrize(('source', 'target'), itertools.product(LAYOUTS, repeat=2))
def test_an_encoder_alone_comes_back_bit_for_bit(source, target):
    encoder = {name: tensor for name, tensor in sparse_fcmae().items() if name.startswith('encoder.')}
    start = convert_state_dict(encoder, source='meta-sparse', target=source)
    there = convert_state_dict(start, source=source, target=target)
    assert len(there) == len(encoder)
    assert same_tensors(convert_state_dict(there, source=target, target=source), start)


@pytest.mark.parametrize(('source', 'target'), itertools.product(['mmcnx2', 'meta', 'meta-sparse'], repeat=2))
def test_a_pretraining_model_comes_back_bit_for_bit(source, target):
    start = convert_state_dict(sparse_fcmae(), source='meta-sparse', target=source)
    there = convert_state_dict(start, source=source, target=target)
    assert len(there) == len(sparse_fcmae())
    assert same_tensors(convert_state_dict(there, source=target, target=source), start)


@pytest.mark.parametrize(('layout', 'kind'), LAYOUT_KINDS)
def test_the_layout_is_detected(layout, kind):
    state_dict, _ = cases()[layout][kind]
    assert detect_layout(state_dict) == layout
    for wrapper in ('module.', '_orig_mod.module.', 'module._orig_mod.'):  # DDP and torch.compile, either one outside
        wrapped = {f'{wrapper}{name}': tensor for name, tensor in state_dict.items()}
        assert detect_layout(wrapped) == layout
        assert same_tensors(convert_state_dict(wrapped, source='auto', target=layout), state_dict)


def test_a_bare_backbone_is_read_and_gets_our_prefix():
    bare = {name.removeprefix('backbone.'): tensor for name, tensor in cases()['mmcnx2']['dense'][0].items()}
    converted = convert_state_dict(bare, source='auto', target='mmcnx2')
    assert same_tensors(converted, cases()['mmcnx2']['dense'][0])


def test_the_released_form_with_dense_names_and_flat_grn_is_read():
    encoder = {name: tensor[0, 0] if '.grn.' in name else tensor for name, tensor in stored_classifier().items()}
    assert {tensor.dim() for name, tensor in encoder.items() if '.grn.' in name} == {2}
    converted = convert_state_dict(encoder, source='meta', target='mmcnx2')
    assert same_tensors(converted, cases()['mmcnx2']['stored'][0])


def test_1x1_convolutions_are_read_as_linears():
    state_dict = {
        name: tensor[:, :, None, None] if '.mlp.fc' in name and name.endswith('weight') else tensor
        for name, tensor in cases()['timm']['classifier'][0].items()
    }
    assert same_tensors(
        convert_state_dict(state_dict, source='timm', target='mmcnx2'),
        convert_state_dict(cases()['timm']['classifier'][0], source='timm', target='mmcnx2'),
    )


def test_a_lone_norm3_is_the_classifiers_norm_and_four_norms_are_those_of_dense_tasks():
    classifier = convert_state_dict(cases()['mmcnx2']['stored'][0], source='mmcnx2', target='meta')
    assert 'norm.weight' in classifier and 'norm3.weight' not in classifier
    dense = convert_state_dict(cases()['mmcnx2']['dense'][0], source='mmcnx2', target='meta')
    assert 'norm3.weight' in dense and 'norm.weight' not in dense


# ------------------------------------------------------------------------------------------------- strictness


def refuse(state_dict, match, source='meta', target='mmcnx2', **options):
    with pytest.raises(CheckpointError, match=match) as caught:
        convert_state_dict(state_dict, source=source, target=target, **options)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', stored_classifier())
def test_every_single_missing_tensor_is_reported_by_name(name):
    state_dict = stored_classifier()
    del state_dict[name]
    refuse(state_dict, 'no stem' if name == LAYOUTS['meta'].stem else 'missing: .*')


@pytest.mark.parametrize('name', sparse_fcmae())
def test_every_single_missing_tensor_of_a_pretraining_model_is_reported(name):
    state_dict = sparse_fcmae()
    del state_dict[name]
    refuse(state_dict, 'no stem' if name.endswith(LAYOUTS['meta'].stem) else 'missing: ', source='meta-sparse')


@pytest.mark.parametrize('name', stored_classifier())
def test_every_single_wrong_shape_is_reported_by_name(name):
    state_dict = stored_classifier()
    state_dict[name] = torch.cat([state_dict[name], state_dict[name]], dim=-1 if '.grn.' in name else 0)
    refuse(state_dict, 'wrong shape|another name|beside a weight')


@pytest.mark.parametrize(
    ('name', 'tensor', 'match'),
    [
        (
            'stages.0.0.extra.weight',
            torch.zeros(3),
            r'1 names that the layout does not have: stages\.0\.0\.extra\.weight',
        ),
        ('stages.4.0.norm.weight', torch.zeros(3), 'does not have: stages.4'),
        ('stages.0.7.norm.weight', torch.zeros(8), 'tensors are missing: backbone.stages.0.1.dwconv.weight'),
        ('norm3.weight', torch.zeros(32), 'missing: backbone.norm3.bias'),
        ('stages.0.0.norm.weight', torch.zeros(8, dtype=torch.int64), 'has dtype torch.int64'),
        ('stages.0.0.norm.weight', torch.zeros(2, 4), 'is not a vector'),
        ('stages.0.0.pwconv1.weight', torch.zeros(32, 8, 3, 3), 'neither a matrix nor a 1x1 convolution'),
    ],
)
def test_a_stray_or_misshapen_tensor_is_reported(name, tensor, match):
    refuse({**stored_classifier(), name: tensor}, match)


def test_two_names_for_one_tensor_are_refused():
    state_dict = stored_classifier()
    state_dict['norm3.weight'] = state_dict['norm3.bias'] = torch.ones(32)
    refuse(state_dict, 'two tensors would get one name in layout mmcnx2')
    assert 'norm.weight' in convert_state_dict(state_dict, source='meta', target='meta')


def test_a_v2_file_that_lost_its_grn_is_refused_unless_that_is_expected():
    without_grn = {name: tensor for name, tensor in stored_classifier().items() if '.grn.' not in name}
    refuse(without_grn, r'10 tensors are missing: backbone\.stages\.0\.0\.grn\.gamma')
    assert len(convert_state_dict(without_grn, source='meta', target='mmcnx2', expect_missing=['*.grn.*'])) == 60


def test_a_decoder_that_lost_its_grn_is_refused():
    state_dict = {name: tensor for name, tensor in sparse_fcmae().items() if not name.startswith('decoder.0.grn')}
    refuse(state_dict, r'2 tensors are missing: neck\.blocks\.0\.grn\.gamma', source='meta-sparse')


def test_decoder_blocks_without_the_rest_of_the_decoder_are_refused():
    rest = ('proj.', 'pred.', 'mask_token')
    refuse(
        {name: tensor for name, tensor in sparse_fcmae().items() if not name.startswith(rest)},
        r'5 tensors are missing: neck\.proj\.weight',
        source='meta-sparse',
    )


def test_two_names_that_the_rules_give_to_one_tensor_are_refused(monkeypatch):
    layout = LAYOUTS['meta']
    twin = Rule('head_norm.{p}', 'backbone.final_norm.{p}', 'vector')
    monkeypatch.setitem(LAYOUTS, 'meta', layout._replace(around=(*layout.around, twin)))
    refuse(
        {**stored_classifier(), 'head_norm.weight': torch.ones(32)},
        '1 names for a tensor that another name has given already: head_norm.weight',
    )


def test_exporting_the_decoder_needs_drop_patterns():
    refuse(
        sparse_fcmae(),
        r"timm has no place for 15 tensors: .*'decoder\.\*' 'mask_token' 'pred\.\*' 'proj\.\*'",
        source='meta-sparse',
        target='timm',
    )
    kept = convert_state_dict(
        sparse_fcmae(), source='meta-sparse', target='timm', drop=['decoder.*', 'mask_token', 'pred.*', 'proj.*']
    )
    assert len(kept) == 66


def test_a_classifier_has_no_place_in_the_sparse_layout():
    refuse(stored_classifier(), 'meta-sparse has no place for 4 tensors', target='meta-sparse')


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'drop': ['stagess.*']}, 'matches no name'),
        ({'expect_missing': ['*.grn.*']}, 'nothing that matches is missing'),
        ({'source': 'keras'}, 'unknown source layout .*allowed: mmcnx2, meta'),
        ({'target': 'keras'}, 'unknown target layout'),
    ],
)
def test_settings_that_cannot_act_are_refused(options, match):
    refuse(stored_classifier(), match, **options)


def test_one_pattern_in_place_of_a_list_is_refused():
    with pytest.raises(TypeError, match='list of patterns'):
        convert_state_dict(stored_classifier(), source='meta', target='mmcnx2', drop='head.*')
    with pytest.raises(TypeError, match='list of patterns'):
        convert_state_dict(stored_classifier(), source='meta', target='mmcnx2', expect_missing='head.*')


@pytest.mark.parametrize('source', [layout for layout in LAYOUTS if layout != 'meta'])
def test_the_wrong_layout_is_refused(source):
    if source == 'mmcnx2':
        refuse(stored_classifier(), 'does not have: .*', source=source)
    else:
        refuse(stored_classifier(), 'not a .* checkpoint', source=source)


def test_nothing_is_guessed_when_it_is_ambiguous():
    stored = stored_classifier()
    two = {
        **{f'backbone.{name}': tensor for name, tensor in stored.items()},
        **{f'encoder.{name}': tensor for name, tensor in stored.items()},
    }
    refuse(two, "2 backbones, under 'backbone.', 'encoder.'")
    refuse({f'student.{name}': tensor for name, tensor in stored.items()}, "stands under 'student.'")
    with pytest.raises(CheckpointError, match='both layouts mmcnx2 and meta'):
        detect_layout({**stored, 'head.fc.weight': stored['head.weight']})
    with pytest.raises(CheckpointError, match='several layouts'):
        detect_layout({**stored, **cases()['timm']['classifier'][0]})
    with pytest.raises(CheckpointError, match='no ConvNeXt of a known layout'):
        detect_layout({'conv1.weight': torch.zeros(1)})


@pytest.mark.parametrize('content', [{}, {'a': 1}, {'model': {'a': torch.zeros(1)}}])
def test_what_is_no_state_dict_is_refused(content):
    refuse(content, 'not a state dict')
