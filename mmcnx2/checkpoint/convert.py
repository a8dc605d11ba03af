"""Checkpoint step 2 of 3: rename and reshape a state dict from one layout to another, all of it or nothing.

source layout --rules--> canonical layout --structure check--> canonical layout --rules--> target layout. The rules
are data (key_rules.py); this file applies them and is strict: a key that no rule knows, two keys for one target, a
wrong shape, or a tensor that a stage or block lacks stops the conversion with the list.

Touch this file to change what "strict" means. Not for files (read.py, save.py) and not for names (key_rules.py).
Guarded by tests/checkpoint/test_convert.py and tests/checkpoint/test_other_libraries.py.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

import torch
from torch import Tensor

from mmcnx2.checkpoint import key_rules
from mmcnx2.checkpoint.key_rules import KINDS, LAYOUTS, TENSORS, Layout, Rule

NUM_NAMES_SHOWN = 10
LONGEST_MESSAGE = 1500  # letters
STEM_WEIGHT = 'backbone.downsample_layers.0.0.weight'
INFLATIONS = ('mean', 'copy', 'zero')
_PLACEHOLDERS = {
    'i': '(?P<i>[0-3])',
    'k': '(?P<k>[1-3])',
    'j': r'(?P<j>0|[1-9]\d*)',
    'd': r'(?P<d>0|[1-9]\d*)',
    'p': '(?P<p>weight|bias)',
}
_ONLY_META = re.compile(r'(backbone\.)?(norm|head)\.(weight|bias)|(proj|pred|decoder\.\d+)\..*|mask_token|encoder\..*')
_ONLY_MMCNX2 = re.compile(r'neck\..*|head\.(fc|pred)\..*')
_REQUIRED_GROUPS = ('stem', 'downsample', 'block')


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, converted or loaded; the message is one line that says what to do.

    It stays one line of readable length whatever names a file brings along.
    """

    def __init__(self, message: str) -> None:
        line = ''.join(letter if letter.isprintable() else '?' for letter in message)
        super().__init__(line if len(line) <= LONGEST_MESSAGE else f'{line[:LONGEST_MESSAGE]} ...')


@dataclass(frozen=True)
class Structure:
    """The architecture that a canonical state dict belongs to, read off its shapes; None where a part is absent."""

    depths: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]
    in_channels: int
    decoder_depth: int | None = None
    decoder_channels: int | None = None

    def __str__(self) -> str:
        return f'depths {list(self.depths)}, channels {list(self.channels)}, {self.in_channels} input channels'


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    source: str,
    target: str,
    drop: Sequence[str] = (),
    expect_missing: Sequence[str] = (),
    in_channels: int | None = None,
    inflate: str | None = None,
) -> dict[str, Tensor]:
    """The same weights under the names and shapes of another layout, bit for bit.

    `state_dict` holds a ConvNeXt backbone, alone or with its classifier, its output norms (norm0..norm3) or its FCMAE
    decoder. `source` and `target` are among mmcnx2, meta, meta-sparse, timm, huggingface, mmpretrain; `source` may be
    'auto' (`detect_layout`). In layout mmcnx2 the backbone's names start with 'backbone.' as in a runner's
    checkpoint; the names of a bare backbone are read too. A wrapper's prefix ('module.') is taken off.

    `drop`: patterns (* and ?) of source names to leave out; each must match something. FCMAE's decoder has no place
    in timm, huggingface and mmpretrain, so exporting it there needs them. `expect_missing`: patterns of target names
    that may be absent. `in_channels` and `inflate` together give the stem another number of input channels
    (`inflate_stem` has the ways); every other tensor stays as it is.

    The classifier's norm comes after global average pooling. mmcnx2 and mmpretrain call it norm3 too, as the last of
    the dense output norms; a norm3 that stands alone, without norm0, norm1 and norm2, is taken for the classifier's.

    Raises CheckpointError for names left over, double targets, wrong shapes and incomplete blocks.
    """
    state_dict = without_dropped(state_dict, drop)
    if source == 'auto':
        source = detect_layout(state_dict)
    for role, name in (('source', source), ('target', target)):
        if name not in LAYOUTS:
            raise CheckpointError(f'unknown {role} layout {name!r}; allowed: {", ".join(LAYOUTS)}')
    canonical, prefix = to_canonical(state_dict, source)
    structure = measure_structure(canonical)
    if in_channels is not None or inflate is not None:
        canonical[STEM_WEIGHT] = _inflated(canonical, structure, in_channels, inflate)
        structure = measure_structure(canonical)
    to_target = _Exporter(target, canonical, structure)
    check_complete(
        canonical, structure, to_target.name_of, expect_missing, f'layout {source}, backbone under {prefix!r}'
    )
    return to_target.convert(_Exporter(source, canonical, structure).name_of)


def without_dropped(state_dict: Mapping[str, Tensor], drop: Sequence[str]) -> dict[str, Tensor]:
    """The entries that no pattern of `drop` matches. A pattern that matches nothing is an error: it is a typing
    mistake."""
    if isinstance(drop, str):
        raise TypeError(f'drop takes a list of patterns, got the string {drop!r}')
    for pattern in drop:
        if not any(fnmatchcase(name, pattern) for name in state_dict):
            raise CheckpointError(
                f'drop pattern {pattern!r} matches no name of the checkpoint ({shown(state_dict, 3)})'
            )
    return {
        name: tensor for name, tensor in state_dict.items() if not any(fnmatchcase(name, pattern) for pattern in drop)
    }


def detect_layout(state_dict: Mapping[str, Tensor]) -> str:
    """The name of the layout whose markers the state dict carries. Raises CheckpointError when none or several fit."""
    state_dict = _backbone_of_a_model(without_wrapper(state_dict))
    names = list(state_dict)
    marked = [
        layout for layout, rules in LAYOUTS.items() if rules.marker and any(rules.marker in name for name in names)
    ]
    stems = {rules.stem for layout, rules in LAYOUTS.items() if backbone_prefixes(state_dict, layout)}
    if len(marked) > 1 or len(stems) > 1:
        raise CheckpointError(
            f'the checkpoint has names of several layouts ({shown(marked)}; stems {shown(stems)}): drop all but one'
        )
    if marked:
        return marked[0]
    if LAYOUTS['meta'].stem not in stems:
        raise CheckpointError(
            f'the checkpoint holds no ConvNeXt of a known layout ({", ".join(LAYOUTS)}); its names: {shown(names, 5)}'
        )
    # Meta's dense names are ours; what stands around the blocks and the axes of GRN tell them apart.
    votes = Counter()
    for name, tensor in state_dict.items():
        if _ONLY_META.fullmatch(name):
            votes['meta'] += 1
        elif _ONLY_MMCNX2.fullmatch(name):
            votes['mmcnx2'] += 1
        elif name.endswith(('.grn.gamma', '.grn.beta')):
            votes['mmcnx2' if tensor.dim() == 1 else 'meta'] += 1
    if len(votes) > 1:
        raise CheckpointError('the checkpoint has names or shapes of both layouts mmcnx2 and meta; say which one it is')
    # With no GRN and nothing around the blocks (a bare V1 backbone) both layouts are the same.
    return next(iter(votes), 'mmcnx2')


def to_canonical(state_dict: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], str]:
    """(canonical state dict, prefix under which the backbone stood). Knows nothing yet about completeness."""
    layout = LAYOUTS[source]
    state_dict = without_wrapper(state_dict)
    prefix = find_backbone_prefix(state_dict, source)
    canonical: dict[str, Tensor] = {}
    left_over, twice, unfit = [], [], []
    rules = [(prefix, rule) for rule in _read_order(layout, state_dict, prefix)]
    rules += [('', rule) for rule in layout.around]
    for name, tensor in state_dict.items():
        rule, values = first_match(rules, name)
        if rule is None:
            left_over.append(name)
            continue
        target = rule.canonical.format(**values)
        if target in canonical:
            twice.append(name)
            continue
        if not tensor.is_floating_point():
            unfit.append(f'{name} has dtype {tensor.dtype}')
            continue
        try:
            canonical[target] = KINDS[rule.kind].to_canonical(tensor)
        except ValueError as error:
            unfit.append(f'{name} {tuple(tensor.shape)} {error}')
    problems = []
    if left_over:
        problems.append(f'{len(left_over)} names that the layout does not have: {shown(left_over)}')
    if twice:
        problems.append(f'{len(twice)} names for a tensor that another name has given already: {shown(twice)}')
    if unfit:
        problems.append(f'{len(unfit)} tensors that cannot be what their names say: {shown(unfit)}')
    if problems:
        raise CheckpointError(f'not a {source} checkpoint (backbone under {prefix!r}): ' + '; '.join(problems))
    return canonical, prefix


def find_backbone_prefix(state_dict: Mapping[str, Tensor], source: str) -> str:
    """What stands before the stem's name: one of the layout's prefixes. Raises when there is no stem, or more than
    one."""
    layout = LAYOUTS[source]
    found = backbone_prefixes(state_dict, source)
    if not found:
        raise CheckpointError(
            f'not a {source} checkpoint: there is no stem ({layout.stem}) among its '
            f'{len(state_dict)} names ({shown(state_dict, 3)})'
        )
    if len(found) > 1:
        raise CheckpointError(
            f'the checkpoint holds {len(found)} backbones, under {", ".join(map(repr, found))}; drop all but one'
        )
    if found[0] not in layout.prefixes:
        raise CheckpointError(
            f'the backbone stands under {found[0]!r}; layout {source} knows '
            f'{", ".join(map(repr, layout.prefixes))}: take the prefix off first'
        )
    return found[0]


def backbone_prefixes(state_dict: Mapping[str, Tensor], source: str) -> list[str]:
    """Everything that stands before a stem of the layout, '' for a bare backbone."""
    stem = LAYOUTS[source].stem
    found = [name.removesuffix(stem) for name in state_dict if name.endswith(stem)]
    return [prefix for prefix in found if prefix == '' or prefix.endswith('.')]


def measure_structure(canonical: Mapping[str, Tensor]) -> Structure:
    """The architecture that most tensors agree on. A tensor that disagrees is found by `check_complete`."""
    votes: dict[str, Counter] = defaultdict(Counter)
    depths = [0, 0, 0, 0]
    decoder_depth = 0
    for name, tensor in canonical.items():
        pattern, values = _canonical_pattern(name)
        if 'j' in values:
            depths[int(values['i'])] = max(depths[int(values['i'])], int(values['j']) + 1)
        if 'd' in values:
            decoder_depth = max(decoder_depth, int(values['d']) + 1)
        letters = pattern.shape.split()
        if len(letters) == tensor.dim():
            for letter, size in zip(letters, tensor.shape, strict=True):
                symbol, factor = _symbol(letter, values)
                if not symbol.isdigit() and size % factor == 0:
                    votes[symbol][size // factor] += 1
    absent = [symbol for symbol in ('C0', 'C1', 'C2', 'C3', 'I') if not votes[symbol]]
    if absent or 0 in depths:
        stages = [f'stage {i}' for i in range(4) if depths[i] == 0] or ['the stem']
        raise CheckpointError(f'the checkpoint lacks {", ".join(stages)} of the backbone; it has depths {depths}')
    size = {symbol: counter.most_common(1)[0][0] for symbol, counter in votes.items()}
    has_decoder = any(name.startswith(('neck.', 'head.pred.')) for name in canonical)
    return Structure(
        tuple(depths),
        tuple(size[f'C{i}'] for i in range(4)),
        size['I'],
        decoder_depth if has_decoder else None,
        size.get('D') if has_decoder else None,
    )


def check_complete(
    canonical: Mapping[str, Tensor],
    structure: Structure,
    name_of: Callable[[str], str],
    expect_missing: Sequence[str],
    where: str,
) -> None:
    """Raise CheckpointError unless every stage and block has all of its tensors, each of the shape the structure asks
    for.

    `name_of` gives the name under which a missing tensor is reported and compared with `expect_missing`."""
    if isinstance(expect_missing, str):
        raise TypeError(f'expect_missing takes a list of patterns, got the string {expect_missing!r}')
    group_of = {name: _canonical_pattern(name)[0].group for name in canonical}
    groups = set(_REQUIRED_GROUPS) | set(group_of.values())
    if structure.decoder_depth is not None:
        groups |= {'decoder', 'decoder_block'}
        if 'block grn' in groups:
            groups.add('decoder_block grn')
    if 'block layer_scale' not in groups:
        groups.add('block grn')
    sizes = {
        'I': structure.in_channels,
        'D': structure.decoder_channels,
        **{f'C{i}': width for i, width in enumerate(structure.channels)},
    }

    missing, wrong = [], []
    for name, letters, values in _expected(structure, groups):
        if name not in canonical:
            missing.append(name_of(name))
            continue
        shape = tuple(canonical[name].shape)
        expected = tuple(
            int(symbol) if symbol.isdigit() else factor * sizes.get(symbol, 0)
            for symbol, factor in (_symbol(letter, values) for letter in letters)
        )
        free = {index for index, size in enumerate(expected) if size == 0}  # N and P: any size
        if len(shape) != len(expected) or any(shape[n] != expected[n] for n in range(len(shape)) if n not in free):
            wanted = tuple('any' if n in free else size for n, size in enumerate(expected))
            wrong.append(f'{name} {shape} instead of ({", ".join(map(str, wanted))})')
    heads = [
        (name, canonical[f'{name}.weight'], canonical[f'{name}.bias'])
        for name in ('head.fc', 'head.pred')
        if f'{name}.weight' in canonical and f'{name}.bias' in canonical
    ]
    wrong += [
        f'{name}.bias {tuple(bias.shape)} beside a weight {tuple(weight.shape)}'
        for name, weight, bias in heads
        if weight.shape[:1] != bias.shape
    ]
    unused = [pattern for pattern in expect_missing if not any(fnmatchcase(name, pattern) for name in missing)]
    missing = [name for name in missing if not any(fnmatchcase(name, pattern) for pattern in expect_missing)]
    problems = []
    if missing:
        problems.append(f'{len(missing)} tensors are missing: {shown(missing)}')
    if wrong:
        problems.append(f'{len(wrong)} tensors of a wrong shape: {shown(wrong)}')
    if unused:
        problems.append(f'nothing that matches is missing for expect_missing {unused}')
    if problems:
        raise CheckpointError(f'incomplete or inconsistent checkpoint ({where}; {structure}): ' + '; '.join(problems))


def inflate_stem(weight_OIYX: Tensor, in_channels: int, how: str) -> Tensor:
    """The stem's filters for another number of input channels.

    'mean' gives every channel the mean filter, 'copy' repeats the filters in order (both times old / new channels, so
    that the sum over channels keeps its size), 'zero' adds filters of zeros behind the old ones. Only 'mean' can make
    fewer channels.
    """
    if how not in INFLATIONS:
        raise CheckpointError(f'inflate={how!r} is not known; choose one of {", ".join(INFLATIONS)}')
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


def _inflated(
    canonical: Mapping[str, Tensor], structure: Structure, in_channels: int | None, inflate: str | None
) -> Tensor:
    """The new weight of the stem, once it is certain that the change makes sense."""
    if in_channels is None or inflate is None:
        raise CheckpointError(
            f'in_channels={in_channels} and inflate={inflate}: give both, the number of input channels and how the '
            f'filters for them are made ({", ".join(INFLATIONS)})'
        )
    if in_channels < 1:
        raise CheckpointError(f'in_channels={in_channels}: a stem needs at least 1 input channel')
    if in_channels == structure.in_channels:
        raise CheckpointError(
            f'the checkpoint has {in_channels} input channels already; leave in_channels and inflate out'
        )
    if structure.decoder_depth is not None:
        raise CheckpointError(
            f'the FCMAE decoder predicts the pixels of {structure.in_channels} channels, so it cannot go along to '
            f'in_channels={in_channels}; drop it and keep the backbone (from mmcnx2: drop neck.* and head.*; from '
            'meta or meta-sparse: drop proj.*, decoder.*, pred.* and mask_token)'
        )
    if STEM_WEIGHT not in canonical:
        raise CheckpointError(f'there is no {STEM_WEIGHT} whose input channels could be changed')
    return inflate_stem(canonical[STEM_WEIGHT], in_channels, inflate)


class _Exporter:
    """Gives canonical tensors the names, prefix and storage of one layout."""

    def __init__(self, target: str, canonical: Mapping[str, Tensor], structure: Structure) -> None:
        self.target = target
        self.layout = LAYOUTS[target]
        self.canonical = canonical
        self.prefix = self._choose_prefix()
        self.timm_mlp = 'conv1x1' if structure.channels in key_rules.TIMM_CONV_MLP_CHANNELS else 'matrix'
        self.rules = [(self.prefix, rule) for rule in self.layout.backbone]
        self.rules += [('', rule) for rule in self.layout.around]

    def _choose_prefix(self) -> str:
        if self.target == 'meta' and 'neck.mask_token' in self.canonical:
            return 'encoder.'  # the pretraining model keeps its backbone there
        if self.target == 'huggingface' and 'head.fc.weight' in self.canonical:
            is_v1 = not any('.grn.' in name for name in self.canonical)
            return 'convnext.' if is_v1 else 'convnextv2.'
        return self.layout.prefixes[0]

    def _place_of(self, name: str) -> tuple[str, Rule] | None:
        for prefix, rule in self.rules:
            match = _regex(rule.canonical).fullmatch(name)
            if match:
                return prefix + rule.name.format(**match.groupdict()), rule
        return None

    def name_of(self, name: str) -> str:
        """The target's name of a canonical tensor; the canonical name where the target has no place for it."""
        place = self._place_of(name)
        return place[0] if place else name

    def convert(self, source_name_of: Callable[[str], str]) -> dict[str, Tensor]:
        """The state dict in the target layout. `source_name_of` gives the names that an error should speak of."""
        converted: dict[str, Tensor] = {}
        homeless, twice = [], []
        for name, tensor in self.canonical.items():
            place = self._place_of(name)
            if place is None:
                homeless.append(source_name_of(name))
                continue
            target_name, rule = place
            if target_name in converted:
                twice.append(target_name)
            kind = self.timm_mlp if rule.kind == 'timm_mlp' else rule.kind
            converted[target_name] = KINDS[kind].from_canonical(tensor)
        if homeless:
            patterns = dict.fromkeys(f'{name.split(".")[0]}.*' if '.' in name else name for name in homeless)
            raise CheckpointError(
                f'layout {self.target} has no place for {len(homeless)} tensors: {shown(homeless)}; leave them out '
                f'with drop patterns such as {" ".join(map(repr, patterns))}'
            )
        if twice:
            raise CheckpointError(f'two tensors would get one name in layout {self.target}: {shown(twice)}')
        return converted


def shown(names: Iterable[str], count: int = NUM_NAMES_SHOWN) -> str:
    """The first `count` names in one line, and how many more there are."""
    names = [str(name) for name in names]
    rest = f' and {len(names) - count} more' if len(names) > count else ''
    return ', '.join(names[:count]) + rest


def without_wrapper(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names_are_fine = all(isinstance(name, str) for name in state_dict)
    others = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if not names_are_fine or others or not state_dict:
        what = f'entries that are no tensors ({shown(others, 3)})' if others else 'no named tensors'
        raise CheckpointError(f'not a state dict: it has {what}')
    while wrapper := next((w for w in key_rules.WRAPPER_PREFIXES if all(n.startswith(w) for n in state_dict)), None):
        state_dict = {name.removeprefix(wrapper): tensor for name, tensor in state_dict.items()}
    return dict(state_dict)


def _backbone_of_a_model(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Only the names under 'backbone.' where that is the one place of a stem.

    What stands around the backbone of a detector may have names that another layout's backbone has."""
    prefixes = {prefix for layout in LAYOUTS for prefix in backbone_prefixes(state_dict, layout)}
    if prefixes == {'backbone.'}:
        return {name: tensor for name, tensor in state_dict.items() if name.startswith('backbone.')}
    return state_dict


def _read_order(layout: Layout, state_dict: Mapping[str, Tensor], prefix: str) -> list[Rule]:
    """The layout's rules for backbone tensors; where it shares norm3, only the reading of it that applies here."""
    if not layout.shares_norm3:
        return list(layout.backbone)
    is_dense = any(name.startswith((f'{prefix}norm0.', f'{prefix}norm1.', f'{prefix}norm2.')) for name in state_dict)
    other_reading = 'backbone.final_norm.{p}' if is_dense else f'backbone.{key_rules.SHARED_NORM}.{{p}}'
    return [rule for rule in layout.backbone if rule.canonical != other_reading]


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    """A pattern of key_rules.py as a regular expression with one named group per placeholder."""
    pieces = re.split(r'\{([a-z])\}', pattern)
    return re.compile(''.join(_PLACEHOLDERS[piece] if n % 2 else re.escape(piece) for n, piece in enumerate(pieces)))


def first_match(rules: list[tuple[str, Rule]], name: str) -> tuple[Rule | None, dict[str, str]]:
    """(the first rule that knows a name standing under its prefix, its placeholders' values); (None, {}) without."""
    for prefix, rule in rules:
        if name.startswith(prefix):
            match = _regex(rule.name).fullmatch(name, len(prefix))
            if match:
                return rule, match.groupdict()
    return None, {}


@cache
def _canonical_pattern(name: str):
    """(the row of TENSORS, its placeholders' values) for a canonical name."""
    for tensor in TENSORS:
        match = _regex(tensor.name).fullmatch(name)
        if match:
            return tensor, match.groupdict()
    raise AssertionError(f'a rule points at {name!r}, which is not a canonical name')


def _symbol(letter: str, values: Mapping[str, str]) -> tuple[str, int]:
    """(the size's name in the whole model, factor) of a shape letter: 'CC' in stage 2 is 4 times 'C2'."""
    stage = int(values.get('i', values.get('k', 0)))
    symbols = {'C': (f'C{stage}', 1), 'CC': (f'C{stage}', 4), 'B': (f'C{stage - 1}', 1), 'L': ('C3', 1), 'DD': ('D', 4)}
    return symbols.get(letter, (letter, 1))


def _expected(structure: Structure, groups: set[str]):
    """(canonical name, shape letters, placeholder values) of every tensor that the given groups consist of."""
    for tensor in TENSORS:
        if tensor.group not in groups:
            continue
        for values in _places(tensor.name, structure):
            yield tensor.name.format(**values), tensor.shape.split(), values


def _places(pattern: str, structure: Structure) -> list[dict[str, str]]:
    """Every combination of placeholder values with which a pattern occurs in a model."""
    places: list[dict[str, str]] = [{}]
    if '{i}' in pattern:
        places = [{'i': str(i)} for i in range(4)]
    if '{k}' in pattern:
        places = [{'k': str(k)} for k in range(1, 4)]
    if '{j}' in pattern:
        places = [{**place, 'j': str(j)} for place in places for j in range(structure.depths[int(place['i'])])]
    if '{d}' in pattern:
        places = [{'d': str(d)} for d in range(structure.decoder_depth or 0)]
    if '{p}' in pattern:
        places = [{**place, 'p': p} for place in places for p in ('weight', 'bias')]
    return places
