"""Breaks the tables of checkpoint conversion, one place at a time, and counts how many of the breaks are noticed.

    python tests/faults/table_mutations.py [--family TEXT]      a few minutes; exit code 1 when a break goes unnoticed

A break ("mutation") drops a rule, renames it, stores its tensor another way, transposes or reverses its values, gives
it another rule's place, changes a letter of a shape, and so on (`all_mutations`). The checks that must notice are those
of the tests: real models of the other libraries and the official code's stored outputs (checkpoint_cases.py), plus the
names and shapes of whole models, and refusals (below). A break that changes nothing (one letter for another of the
same meaning) is counted apart, with its reason, and never as caught.

Touch this file for new kinds of breaks and for checks that they need; not for what is right (checkpoint_cases.py).
tests/faults/test_table_mutations.py runs a part of it.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'checkpoint')]

import torch  # noqa: E402
from checkpoint_cases import LAYOUT_KINDS, cases, check_layout, same_tensors  # noqa: E402

from mmcnx2.checkpoint import convert, convert_state_dict, detect_layout, key_rules  # noqa: E402
from mmcnx2.checkpoint.key_rules import KINDS, LAYOUTS, TENSORS, Kind, Layout, Rule  # noqa: E402

NOTICED = (ValueError, AssertionError, RuntimeError, KeyError, IndexError, TypeError)  # what a failing check raises


class Mutation(NamedTuple):
    """`layouts`: those whose checks must notice. `row`: the canonical tensor that is changed, when one is."""

    family: str
    what: str
    layouts: tuple[str, ...]
    patches: tuple[Any, ...]
    row: int | None = None
    equivalent: str = ''  # why it changes nothing; '' when it does


# --------------------------------------------------------------------------------------------------- rules of layouts


def _rules(layout: Layout) -> tuple[Rule, ...]:
    return layout.backbone + layout.around


def _with_rules(layout: Layout, index: int, *instead: Rule) -> Layout:
    """The layout with one rule replaced by any number of others."""
    backbone, around = list(layout.backbone), list(layout.around)
    part, at = (backbone, index) if index < len(backbone) else (around, index - len(backbone))
    part[at : at + 1] = instead
    return layout._replace(backbone=tuple(backbone), around=tuple(around))


def _layout_mutation(family: str, what: str, name: str, layout: Layout, *patches: Any) -> Mutation:
    # Broken alike on both ways, our own layout gives itself back; the official code's does not.
    checked = (name, 'meta') if name == 'mmcnx2' else (name,)
    return Mutation(family, f'{name}: {what}', checked, (patch.dict(LAYOUTS, {name: layout}), *patches))


def dropped_rules() -> Iterator[Mutation]:
    for name, layout in LAYOUTS.items():
        for index, rule in enumerate(_rules(layout)):
            yield _layout_mutation('rule dropped', rule.name, name, _with_rules(layout, index))


def renamed_rules() -> Iterator[Mutation]:
    for name, layout in LAYOUTS.items():
        for index, rule in enumerate(_rules(layout)):
            renamed = rule._replace(name=f'x{rule.name}')
            yield _layout_mutation('rule renamed', rule.name, name, _with_rules(layout, index, renamed))


def other_kinds() -> Iterator[Mutation]:
    for name, layout in LAYOUTS.items():
        for index, rule in enumerate(_rules(layout)):
            for kind in KINDS:
                if kind != rule.kind:
                    what = f'{rule.name} as {kind}'
                    broken = _with_rules(layout, index, rule._replace(kind=kind))
                    yield _layout_mutation('kind exchanged', what, name, broken)


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(-1, -2).contiguous() if tensor.dim() > 1 else tensor


def _reversed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flip(0)


PERMUTATIONS = {'transposed': _transposed, 'reversed': _reversed}


def permuted_values() -> Iterator[Mutation]:
    """Each rule's tensor with its last two axes exchanged, or its first reversed, alike on both ways: every round trip
    is exact and most shapes fit."""
    for name, layout in LAYOUTS.items():
        for (index, rule), (how, permute) in itertools.product(enumerate(_rules(layout)), PERMUTATIONS.items()):
            kind = KINDS[rule.kind]
            is_flat = all(len(_row_of(rule, p).shape.split()) == 1 for p in ('weight', 'bias'))
            if how == 'transposed' and is_flat:
                continue
            broken = _with_rules(layout, index, rule._replace(kind='permuted'))
            permuted = _permuted(kind, permute, 'both ways')
            values = patch.dict(KINDS, {'permuted': permuted})
            yield _layout_mutation(f'values {how}', rule.name, name, broken, values)


def _row_of(rule: Rule, p: str) -> key_rules.CanonicalTensor:
    pattern = rule.canonical.replace('{p}', p)
    return next(row for row in TENSORS if pattern in (row.name, row.name.replace('{p}', p)))


def _permuted(kind: Kind, permute: Any, ways: str) -> Kind:
    def read(tensor: torch.Tensor) -> torch.Tensor:
        return permute(kind.to_canonical(tensor))

    def write(tensor: torch.Tensor) -> torch.Tensor:
        return kind.from_canonical(permute(tensor))

    return Kind(
        read if ways != 'in writing' else kind.to_canonical, write if ways != 'in reading' else kind.from_canonical
    )


def permuted_kinds() -> Iterator[Mutation]:
    """The same for each way of storing, in all rules that use it."""
    for name, (how, permute), ways in itertools.product(
        KINDS, PERMUTATIONS.items(), ('in reading', 'in writing', 'both ways')
    ):
        using = tuple(layout for layout, rules in LAYOUTS.items() if any(rule.kind == name for rule in _rules(rules)))
        rows = [_row_of(rule, p) for layout in using for rule in _rules(LAYOUTS[layout]) for p in ('weight', 'bias')
                if rule.kind == name]  # fmt: skip
        equivalent = ''
        if how == 'transposed' and all(len(row.shape.split()) == 1 for row in rows):
            equivalent = 'vectors have nothing to transpose'
        if name == 'timm_mlp' and ways == 'in writing':
            equivalent = 'convert.py writes it as one of two other kinds'
        if name == 'as_is' and how == 'reversed' and ways == 'both ways':
            using = ('meta-sparse', 'timm')  # every layout that shares it gives itself back; those also write otherwise
        kind = patch.dict(KINDS, {name: _permuted(KINDS[name], permute, ways)})
        yield Mutation('kind broken', f'{name} {how} {ways}', using, (kind,), None, equivalent)


def swapped_targets() -> Iterator[Mutation]:
    """Two rules of one shape, each in the other's place: nothing but an output or a name can tell."""
    for name, layout in LAYOUTS.items():
        rules = _rules(layout)
        for first, second in itertools.combinations(range(len(rules)), 2):
            one, other = rules[first], rules[second]
            places = [set(re.findall(r'\{([ikjd])\}', rule.canonical)) for rule in (one, other)]
            same_p = ('{p}' in one.canonical) == ('{p}' in other.canonical)
            if places[0] == places[1] and same_p and _row_of(one, 'weight').shape == _row_of(other, 'weight').shape:
                broken = _with_rules(layout, first, one._replace(canonical=other.canonical))
                broken = _with_rules(broken, second, other._replace(canonical=one.canonical))
                yield _layout_mutation('two rules swapped', f'{one.name} <-> {other.name}', name, broken)


def swapped_weight_and_bias() -> Iterator[Mutation]:
    for name, layout in LAYOUTS.items():
        for index, rule in enumerate(_rules(layout)):
            if '{p}' in rule.name:
                pair = [
                    rule._replace(name=rule.name.replace('{p}', p), canonical=rule.canonical.replace('{p}', q))
                    for p, q in (('weight', 'bias'), ('bias', 'weight'))
                ]
                broken = _with_rules(layout, index, *pair)
                yield _layout_mutation('weight and bias swapped', rule.name, name, broken)


# -------------------------------------------------------------------------------------------------- layouts as a whole


def layout_fields() -> Iterator[Mutation]:
    family = 'layout changed'
    for name, layout in LAYOUTS.items():
        for prefix in layout.prefixes:
            left = tuple(other for other in layout.prefixes if other != prefix)
            yield _layout_mutation(family, f'without prefix {prefix!r}', name, layout._replace(prefixes=left))
        other_first = layout._replace(prefixes=layout.prefixes[::-1])
        yield _layout_mutation(family, 'another prefix first', name, other_first)
        yield _layout_mutation(family, 'stem renamed', name, layout._replace(stem=f'x{layout.stem}'))
        if layout.marker:
            yield _layout_mutation(family, 'without marker', name, layout._replace(marker=None))
            yield _layout_mutation(family, 'marker renamed', name, layout._replace(marker=f'x{layout.marker}'))
        flipped = layout._replace(shares_norm3=not layout.shares_norm3)
        mutation = _layout_mutation(family, 'shares_norm3 flipped', name, flipped)
        has_norm3 = any(rule.canonical == 'backbone.norm3.{p}' for rule in layout.backbone)
        if not layout.shares_norm3 and not has_norm3:
            mutation = mutation._replace(equivalent='the layout has no norm3 to share')
        yield mutation


def constants() -> Iterator[Mutation]:
    channels = key_rules.TIMM_CONV_MLP_CHANNELS
    for widths in channels:
        left = tuple(other for other in channels if other != widths)
        change = patch.object(key_rules, 'TIMM_CONV_MLP_CHANNELS', left)
        yield Mutation('constant changed', f'timm stores {widths} as matrices', ('timm',), (change,))
    for wrapper in key_rules.WRAPPER_PREFIXES:
        left = tuple(other for other in key_rules.WRAPPER_PREFIXES if other != wrapper)
        change = patch.object(key_rules, 'WRAPPER_PREFIXES', left)
        yield Mutation('constant changed', f'without wrapper {wrapper}', ('mmcnx2',), (change,))
    change = patch.object(key_rules, 'SHARED_NORM', 'norm2')
    yield Mutation('constant changed', 'another norm is shared', ('mmcnx2',), (change,))


# ---------------------------------------------------------------------------------------------- the canonical tensors


def _tensors_mutation(family: str, index: int, row: key_rules.CanonicalTensor | None, equivalent: str) -> Mutation:
    tensors = (*TENSORS[:index], *([row] if row else []), *TENSORS[index + 1 :])
    what = f'{TENSORS[index].name} {TENSORS[index].shape!r}' + (f' -> {row.shape!r}, {row.group}' if row else '')
    return Mutation(family, what, ('mmcnx2', 'meta'), (patch.object(convert, 'TENSORS', tensors),), index, equivalent)


def dropped_tensors() -> Iterator[Mutation]:
    for index in range(len(TENSORS)):
        yield _tensors_mutation('tensor dropped', index, None, '')


LETTERS = ('C', 'CC', 'B', 'I', 'L', 'D', 'DD', 'N', 'P', 'C0', 'C1', 'C2', 'C3', '1', '2', '4', '7')
UNSIZED = ('N', 'P')  # any size


def _meaning(letter: str, name: str) -> tuple:
    """What a shape letter says in this row, at each of its places."""
    if letter in UNSIZED or (letter == 'B' and '{' not in name.replace('{p}', '')):  # no stage, so none before it
        return ('any',)
    stages = range(4) if '{i}' in name else range(1, 4) if '{k}' in name else [0]
    return tuple(convert._symbol(letter, {'i': str(stage)}) for stage in stages)


def changed_letters() -> Iterator[Mutation]:
    for index, row in enumerate(TENSORS):
        letters = row.shape.split()
        for axis, letter in enumerate(letters):
            for other in LETTERS:
                same = _meaning(letter, row.name) == _meaning(other, row.name)
                if other == letter:
                    continue
                shape = ' '.join([*letters[:axis], other, *letters[axis + 1 :]])
                reason = 'the letters mean the same here' if same else ''
                yield _tensors_mutation('shape letter changed', index, row._replace(shape=shape), reason)
        for shape in (f'{row.shape} 1', ' '.join(letters[:-1])):
            if shape:
                yield _tensors_mutation('axis added or taken', index, row._replace(shape=shape), '')


ALWAYS_TOGETHER = ({'stem', 'downsample', 'block'}, {'decoder', 'decoder_block'})
OF_DECODER_BLOCKS = {'stem', 'downsample', 'block', 'decoder', 'decoder_block'}


def changed_groups() -> Iterator[Mutation]:
    groups = sorted({row.group for row in TENSORS})
    for index, row in enumerate(TENSORS):
        for group in groups:
            if group != row.group:
                together = any({group, row.group} <= same for same in ALWAYS_TOGETHER)
                reason = 'the two groups always come together' if together else ''
                if row.name == convert.STEM_WEIGHT and group == 'decoder_block':
                    reason = 'without it the number of input channels is not known, so it is always asked for'
                if '{d}' in row.name and {group, row.group} <= OF_DECODER_BLOCKS:
                    reason = 'the number of decoder blocks says what there is'
                yield _tensors_mutation('group changed', index, row._replace(group=group), reason)


def all_mutations() -> Iterator[Mutation]:
    for family in (
        dropped_rules, renamed_rules, other_kinds, permuted_values, permuted_kinds, swapped_targets,
        swapped_weight_and_bias, layout_fields, constants, dropped_tensors, changed_letters, changed_groups,
    ):  # fmt: skip
        yield from family()


# ------------------------------------------------------------------------------------------------------- the checks

DEPTHS = (1, 1, 2, 1)
ODD_CHANNELS = (6, 10, 14, 18)  # no two sizes of a model of these are equal, 4 times them included
IN_CHANNELS, NUM_CLASSES, DECODER_CHANNELS = 5, 23, 11
CONVOLUTIONS = re.compile(
    r'.*(dwconv|conv_dw|depthwise_conv|patch_embeddings|stem\.0|downsample\.1|downsampling_layer\.1|'
    r'downsample_layers\.(0\.0|[123]\.1))\.(weight|bias|kernel)'
)
PREFIXES = {
    'mmcnx2': ('backbone.', ''),
    'meta': ('', 'encoder.', 'backbone.'),
    'meta-sparse': ('encoder.', ''),
    'timm': ('', 'backbone.'),
    'huggingface': ('', 'convnextv2.', 'convnext.'),
    'mmpretrain': ('backbone.', ''),
}


def shapes(state_dict: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


@cache
def contents(channels: tuple[int, ...] = ODD_CHANNELS) -> dict[str, dict[str, torch.Tensor]]:
    """{what: state dict of our own model} without memory behind the tensors."""
    from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2
    from mmcnx2.models.fcmae import FCMAE

    arch = {'depths': list(DEPTHS), 'channels': list(channels)}
    v1 = {'use_grn': False, 'layer_scale_init_value': 1e-6}
    with torch.device('meta'):
        head = {
            f'head.fc.{name}': tensor for name, tensor in torch.nn.Linear(channels[3], NUM_CLASSES).state_dict().items()
        }
        fcmae = FCMAE(
            backbone={'type': 'mmcnx2.ConvNeXtV2', 'arch': arch, 'in_channels': IN_CHANNELS},
            neck={'type': 'mmcnx2.FCMAEDecoder', 'decoder_channels': DECODER_CHANNELS},
        ).state_dict()

        def backbone(**settings: Any) -> dict[str, torch.Tensor]:
            state_dict = ConvNeXtV2(arch, in_channels=IN_CHANNELS, **settings).state_dict()
            return {f'backbone.{name}': tensor for name, tensor in state_dict.items()}

        found = {
            'encoder': backbone(out_norm=False),
            'pooled': backbone(gap_before_final_norm=True),
            'classifier': {**backbone(gap_before_final_norm=True), **head},
            'v1': {**backbone(gap_before_final_norm=True, **v1), **head},
            'dense': backbone(out_indices=(0, 1, 2, 3)),
            'two norms': backbone(out_indices=(1, 3)),
            'first norms': backbone(out_indices=(0, 1)),
            'fcmae': fcmae,
        }
        v1_encoder = backbone(out_norm=False, **v1)
    decoder = {name: tensor for name, tensor in fcmae.items() if name not in found['encoder']}
    found['v1 encoder, v2 decoder'] = {**v1_encoder, **decoder}
    # The paper's ablation without GRN: neither encoder nor decoder has it.
    without_grn = {name: tensor for name, tensor in decoder.items() if '.grn.' not in name}
    return {**found, 'v1 fcmae': {**v1_encoder, **without_grn}}


LAYOUTS_OF = {
    'encoder': tuple(PREFIXES),
    'pooled': ('mmcnx2', 'meta', 'timm', 'huggingface', 'mmpretrain'),
    'classifier': ('mmcnx2', 'meta', 'timm', 'huggingface', 'mmpretrain'),
    'v1': ('mmcnx2', 'meta', 'timm', 'huggingface', 'mmpretrain'),
    'dense': ('mmcnx2', 'meta', 'huggingface', 'mmpretrain'),
    'two norms': ('mmcnx2', 'meta', 'huggingface', 'mmpretrain'),
    'first norms': ('mmcnx2', 'meta', 'huggingface', 'mmpretrain'),
    'fcmae': ('mmcnx2', 'meta', 'meta-sparse'),
    'v1 encoder, v2 decoder': ('mmcnx2', 'meta'),
    'v1 fcmae': ('mmcnx2', 'meta'),
}


@cache
@torch.no_grad()
def library_shapes(layout: str, channels: tuple[int, ...]) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of that library's own classifier."""
    settings: dict[str, Any] = {}
    with torch.device('meta'):
        if layout == 'timm':
            from timm.models.convnext import ConvNeXt

            settings = {'use_grn': True, 'ls_init_value': None, 'conv_mlp': channels in TIMM_STORES_AS_CONVOLUTIONS}
            model = ConvNeXt(in_chans=IN_CHANNELS, depths=DEPTHS, dims=channels, num_classes=NUM_CLASSES, **settings)
        elif layout == 'huggingface':
            import transformers

            settings = {'hidden_sizes': list(channels), 'depths': list(DEPTHS), 'num_labels': NUM_CLASSES}
            config = transformers.ConvNextV2Config(num_channels=IN_CHANNELS, **settings)
            model = transformers.ConvNextV2ForImageClassification(config)
        else:
            return None
    return shapes(model.state_dict())


TIMM_STORES_AS_CONVOLUTIONS = tuple(tuple(width << i for i in range(4)) for width in (40, 48, 64, 80))  # atto to nano


def check_forms(layout: str) -> None:
    """Names, shapes, prefixes and detection; nothing is computed."""
    for channels in (ODD_CHANNELS, *TIMM_STORES_AS_CONVOLUTIONS):
        few = {'classifier', 'fcmae'}
        for what, ours in contents(channels).items():
            if layout not in LAYOUTS_OF[what] or (channels != ODD_CHANNELS and what not in few):
                continue
            theirs = convert_state_dict(ours, source='mmcnx2', target=layout)
            back = convert_state_dict(theirs, source=layout, target='mmcnx2')
            assert shapes(back) == shapes(ours), f'{what} comes back from {layout} in another form'
            expected = library_shapes(layout, channels) if what == 'classifier' else None
            assert expected is None or shapes(theirs) == expected, f'{what} of {layout}'
            if layout != 'timm' and channels != ODD_CHANNELS:
                odd = convert_state_dict(contents()[what], source='mmcnx2', target=layout)
                assert all(odd[name].dim() == tensor.dim() for name, tensor in theirs.items()), (
                    'axes depend on the size'
                )
    if layout == 'meta':  # the only one in which the classifier's norm and those of dense tasks can stand side by side
        both = convert_state_dict(contents()['classifier'], source='mmcnx2', target='meta')
        both |= {f'norm3.{p}': both[f'norm.{p}'] for p in ('weight', 'bias')}
        assert shapes(convert_state_dict(both, source='meta', target='meta')) == shapes(both)
    ours = contents()['encoder']
    theirs = convert_state_dict(ours, source='mmcnx2', target=layout)
    first = PREFIXES[layout][0]
    assert all(name.startswith(first) for name in theirs), f'{layout} puts its backbone under {first!r}'
    bare = {name.removeprefix(first): tensor for name, tensor in theirs.items()}
    for prefix in PREFIXES[layout]:
        standing = {f'{prefix}{name}': tensor for name, tensor in bare.items()}
        read = convert_state_dict(standing, source=layout, target='mmcnx2')
        assert shapes(read) == shapes(ours), f'{layout} under {prefix!r}'
    for wrapper in (
        'module.',
        '_orig_mod.',
        'module._orig_mod.',
        '_orig_mod.module.',
    ):  # DDP and compile, either outside
        wrapped = {f'{wrapper}{name}': tensor for name, tensor in theirs.items()}
        read = convert_state_dict(wrapped, source='auto', target='mmcnx2')
        assert shapes(read) == shapes(ours), f'{layout} wrapped in {wrapper!r}'


def check_tolerance(layout: str) -> None:
    """Vectors with further axes of size 1, and linears that are 1x1 convolutions, are read; and the layout is found."""
    for of_layout, kind in LAYOUT_KINDS:
        if of_layout != layout:
            continue
        state_dict, _ = cases()[layout][kind]
        assert detect_layout(state_dict) == layout
        ours = convert_state_dict(state_dict, source=layout, target='mmcnx2')
        unusual = {}
        for name, tensor in state_dict.items():
            if not CONVOLUTIONS.fullmatch(name):
                is_matrix = tensor.dim() == 2 and tensor.shape[0] > 1
                tensor = tensor[:, :, None, None] if is_matrix else tensor[None] if tensor.dim() == 1 else tensor
            unusual[name] = tensor
        assert same_tensors(convert_state_dict(unusual, source=layout, target='mmcnx2'), ours), (layout, kind)


def check_refusals(row: key_rules.CanonicalTensor) -> None:
    """Refused: one tensor of this row is missing, or all of them in every block, or one has an axis twice as long."""
    pattern = convert._regex(row.name)
    for what, ours in contents().items():
        canonical, _ = convert.to_canonical(ours, 'mmcnx2')
        of_row = [name for name in canonical if pattern.fullmatch(name)]
        if of_row and row.name.startswith(('backbone.downsample', 'backbone.stages', 'neck.')):  # others may be absent
            for ending in ('weight', 'bias', ''):
                left = {
                    name: tensor for name, tensor in canonical.items() if not (name in of_row and name.endswith(ending))
                }
                if len(left) < len(canonical):
                    _must_be_refused(left, f'{what} without any {row.name} {ending}')
        for name in of_row:
            left = {other: tensor for other, tensor in canonical.items() if other != name}
            _must_be_refused(left, f'{what} without {name}')
            for axis in range(canonical[name].dim()):
                if (name, axis) != (convert.STEM_WEIGHT, 1):  # a stem may have any number of input channels
                    doubled = {**canonical, name: torch.cat([canonical[name]] * 2, dim=axis)}
                    _must_be_refused(doubled, f'{what} with axis {axis} of {name} twice as long')


def _must_be_refused(canonical: dict[str, torch.Tensor], what: str) -> None:
    try:
        structure = convert.measure_structure(canonical)
        convert.check_complete(canonical, structure, lambda name: name, (), 'mutation')
    except convert.CheckpointError:
        return
    raise AssertionError(f'{what} was accepted')


# In this order, the slowest last; 'refusals' for changes of one canonical tensor.
CHECKS = {'forms': check_forms, 'refusals': check_refusals, 'tolerance': check_tolerance, 'outputs': check_layout}


def noticed_by(mutation: Mutation) -> str:
    """The name of the first check that notices the break; '' when none does."""
    with ExitStack() as stack:
        for change in mutation.patches:
            stack.enter_context(change)
        convert._canonical_pattern.cache_clear()  # made from TENSORS
        stack.callback(convert._canonical_pattern.cache_clear)
        for name, check in CHECKS.items():
            try:
                if name == 'refusals':
                    if mutation.row is not None:
                        check(TENSORS[mutation.row])
                else:
                    for layout in mutation.layouts:
                        check(layout)
            except NOTICED:
                return name
    return ''


def prepare() -> None:
    """Every yardstick is made, and every check passes, before anything is broken."""
    for channels in (ODD_CHANNELS, *TIMM_STORES_AS_CONVOLUTIONS):
        contents(channels)
        for layout in LAYOUTS:
            library_shapes(layout, channels)
    for name, check in CHECKS.items():
        for one in TENSORS if name == 'refusals' else LAYOUTS:
            check(one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--family', default='', metavar='TEXT', help='only families with this in their name')
    args = parser.parse_args()
    started = time.perf_counter()
    prepare()
    tried: dict[str, Counter] = defaultdict(Counter)
    unnoticed, reasons = [], Counter()
    for mutation in all_mutations():
        if args.family not in mutation.family:
            continue
        if mutation.equivalent:
            tried[mutation.family]['changes nothing'] += 1
            reasons[mutation.equivalent] += 1
            continue
        check = noticed_by(mutation)
        tried[mutation.family][check or 'unnoticed'] += 1
        if not check:
            unnoticed.append(f'{mutation.family}: {mutation.what}')
    columns = [*CHECKS, 'unnoticed', 'changes nothing']
    print(f'{"break":<26}{"tried":>6}' + ''.join(f'{column:>17}' for column in columns))
    total = sum(tried.values(), Counter())
    for family, counts in [*tried.items(), ('all', total)]:
        num_tried = sum(counts.values()) - counts['changes nothing']
        print(f'{family:<26}{num_tried:>6}' + ''.join(f'{counts[column]:>17}' for column in columns))
    print(''.join(f'changes nothing: {count} because {reason}\n' for reason, count in reasons.items()), end='')
    num_tried = sum(total.values()) - total['changes nothing']
    print(f'{num_tried - len(unnoticed)} of {num_tried} noticed, {time.perf_counter() - started:.0f} s')
    if unnoticed:
        print('NOT noticed:', *unnoticed, sep='\n  ')
        raise SystemExit(1)


if __name__ == '__main__':
    main()
