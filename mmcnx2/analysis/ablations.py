"""The ablation tables of the ConvNeXt V2 paper: which options make each row, what the paper measured, and what to say
about rows measured here.

A row is options on its table's pretraining config (configs/ablation/); those of the backbone hold for fine-tuning too.
Nothing is run here. Touch this file for rows and wording; not for how a small sweep trains (ablation_runs.py). Guarded
by tests/analysis/test_ablations.py.

Source: arXiv 2301.00808, tables 1 and 2 and section 3: ConvNeXt base, 800 epochs of pretraining, 100 of fine-tuning,
ImageNet-1K top-1 in per cent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .comparison import NOT_RUN, Row, differences, format_values, markdown_table

V1_PRETRAINING = 'ablation/fcmae_convnext-base_32xb128-amp-800e_in1k-{}.py'
V1_FINE_TUNING = 'ablation/convnext-base_16xb64-amp-100e-fcmae_in1k.py'
V2_PRETRAINING = 'ablation/fcmae_convnextv2-base_32xb128-amp-800e_in1k-grn.py'
V2_FINE_TUNING = 'ablation/convnextv2-base_16xb64-amp-100e-fcmae_in1k-grn.py'
TOP1, LOSS = 'top-1', 'held-out loss'


@dataclass(frozen=True)
class AblationRow:
    """`options` on the pretraining config; `fine_tuning` on the fine-tuning config, None: those of the backbone;
    `published` is None where the paper has a curve without numbers, or nothing."""

    name: str
    options: Mapping[str, Any]
    published: float | None = None
    fine_tuning: Mapping[str, Any] | None = None

    @property
    def fine_tuning_options(self) -> dict[str, Any]:
        if self.fine_tuning is not None:
            return dict(self.fine_tuning)
        return {key: value for key, value in self.options.items() if key.startswith('model.backbone.')}


@dataclass(frozen=True)
class AblationTable:
    """Rows that are compared with the row `reference`, the paper's choice or its baseline."""

    title: str
    pretraining: str  # config below configs/
    fine_tuning: str
    reference: str
    rows: tuple[AblationRow, ...]


def _grn(**settings: Any) -> dict[str, Any]:
    """GRN's settings in encoder and decoder."""
    return {
        f'model.{part}.response_norm.{key}': value for key, value in settings.items() for part in ('backbone', 'neck')
    }


WITHOUT_GRN = {'model.backbone.use_grn': False, 'model.neck.use_grn': False}
GRN_ROW = AblationRow('GRN', {}, 84.6)
BASELINE_ROW = AblationRow('no GRN', WITHOUT_GRN, 83.7)
_CHANGED = {'model.backbone.init_cfg.change_grn': True}

TABLES: dict[str, AblationTable] = {
    'decoder-type': AblationTable(
        'Table 1a: type of the decoder',
        V1_PRETRAINING.format('decoder'),
        V1_FINE_TUNING,
        'ConvNeXt block',
        (
            AblationRow('UNet with skips', {'model.neck.type': 'mmcnx2.UNetDecoder', 'model.neck.skips': True}, 83.7),
            AblationRow('UNet without skips', {'model.neck.type': 'mmcnx2.UNetDecoder'}, 83.5),
            AblationRow(
                'Transformer',
                {
                    'model.neck._delete_': True,
                    'model.neck.type': 'mmcnx2.TransformerDecoder',
                    'model.neck.decoder_channels': 512,
                    'model.neck.decoder_depth': 1,
                },
                83.4,
            ),
            AblationRow('ConvNeXt block', {}, 83.7),
        ),
    ),
    'decoder-depth': AblationTable(
        'Table 1b: blocks of the decoder',
        V1_PRETRAINING.format('decoder'),
        V1_FINE_TUNING,
        '1',
        tuple(
            AblationRow(str(depth), {'model.neck.decoder_depth': depth} if depth > 1 else {}, published)
            for depth, published in ((1, 83.7), (2, 83.5), (4, 83.7), (8, 83.6), (12, 83.3))
        ),
    ),
    'decoder-width': AblationTable(
        'Table 1c: width of the decoder',
        V1_PRETRAINING.format('decoder'),
        V1_FINE_TUNING,
        '512',
        tuple(
            AblationRow(str(width), {'model.neck.decoder_channels': width} if width != 512 else {}, published)
            for width, published in ((128, 83.5), (256, 83.7), (512, 83.7), (768, 83.6), (1024, 83.5))
        ),
    ),
    'sparse-convolution': AblationTable(
        'Section 3: sparse convolution',
        V1_PRETRAINING.format('masking'),
        V1_FINE_TUNING,
        'sparse',
        (AblationRow('leaking', {'model.layout': 'leaking'}, 79.3), AblationRow('sparse', {}, 83.7)),
    ),
    'mask-ratio': AblationTable(
        'Figure 8: share of hidden cells (the figure prints no numbers; 0.5 to 0.7 best, 0.6 highest)',
        V1_PRETRAINING.format('masking'),
        V1_FINE_TUNING,
        '0.6',
        tuple(
            AblationRow(f'{tenths / 10:g}', {'model.mask_ratio': tenths / 10} if tenths != 6 else {})
            for tenths in range(1, 10)
        ),
    ),
    'grn-aggregation': AblationTable(
        'Table 2a: how GRN gathers a channel',
        V2_PRETRAINING,
        V2_FINE_TUNING,
        'L2 norm',
        (
            AblationRow('average', _grn(aggregation='mean'), 83.7),
            AblationRow('L1 norm', _grn(aggregation='l1'), 84.3),
            AblationRow('L2 norm', {}, 84.6),
        ),
    ),
    'grn-normalisation': AblationTable(
        'Table 2b: how GRN compares channels',
        V2_PRETRAINING,
        V2_FINE_TUNING,
        'divided by the mean',
        (
            AblationRow('standardised', _grn(normalisation='standardise'), 84.5),
            AblationRow('1 / sum', _grn(normalisation='one_over_sum'), 83.8),
            AblationRow('divided by the mean', {}, 84.6),
        ),
    ),
    'grn-residual': AblationTable(
        'Table 2c: residual of GRN, and its affine part (not in the paper)',
        V2_PRETRAINING,
        V2_FINE_TUNING,
        'with both',
        (
            AblationRow('without residual', _grn(residual=False), 84.0),
            AblationRow('without affine', _grn(affine=False)),
            AblationRow('with both', {}, 84.6),
        ),
    ),
    'norm-layers': AblationTable(
        'Table 2d: other norms in its place',
        V2_PRETRAINING,
        V2_FINE_TUNING,
        'no GRN',
        (
            BASELINE_ROW,
            AblationRow('LRN', _grn(name='lrn'), 83.2),
            AblationRow('BN', _grn(name='bn'), 80.5),
            AblationRow('LN', _grn(name='ln'), 83.8),
            GRN_ROW,
        ),
    ),
    'reweighting': AblationTable(
        'Table 2e: gates in its place',
        V2_PRETRAINING,
        V2_FINE_TUNING,
        'no GRN',
        (
            BASELINE_ROW,
            AblationRow('SE', _grn(name='se'), 84.4),
            AblationRow('CBAM', _grn(name='cbam'), 84.5),
            GRN_ROW,
        ),
    ),
    'grn-stages': AblationTable(
        'Table 2f: GRN in pretraining and fine-tuning',
        V2_PRETRAINING,
        V2_FINE_TUNING,
        'in neither',
        (
            AblationRow('in neither', WITHOUT_GRN, 83.7),
            AblationRow('in pretraining only', {}, 78.8, {'model.backbone.use_grn': False, **_CHANGED}),
            AblationRow('in fine-tuning only', WITHOUT_GRN, 80.6, _CHANGED),
            AblationRow('in both', {}, 84.6),
        ),
    ),
}  # fmt: skip


def find_table(name: str) -> AblationTable:
    if name not in TABLES:
        raise ValueError(f'there is no ablation table {name!r}; choose among {", ".join(TABLES)}')
    return TABLES[name]


# ---- what came out


@dataclass(frozen=True)
class MeasuredRow:
    """top-1 in per cent, and the loss on held-out pictures, one value per seed, in the order of the seeds."""

    name: str
    published: float | None
    top1: Sequence[float] = ()
    loss: Sequence[float] = ()
    seconds: Sequence[float] = field(default=())


def judged(reference: MeasuredRow, row: MeasuredRow) -> str:
    """What the row says about the paper's finding, from the numbers alone.

    A difference counts when it is larger than two standard errors over the seeds (paired) and has the same sign with
    every seed.
    """
    if row.name == reference.name:
        return 'reference'
    found = differences(Row('', {TOP1: reference.top1}), Row('', {TOP1: row.top1}), [TOP1])
    if not found:
        return 'not run'
    gains = [after - before for before, after in zip(reference.top1, row.top1, strict=True)]
    if not (found[0].is_clear and (min(gains) > 0 or max(gains) < 0)):
        return 'no conclusion'
    said = 'better' if found[0].gain > 0 else 'worse'
    if row.published is None or reference.published is None:
        return f'{said}; the paper has no number'
    of_paper = row.published - reference.published
    if of_paper == 0:
        return f'{said}; the paper sees no difference'
    return f'{said}, as in the paper' if (of_paper > 0) == (found[0].gain > 0) else f'{said}; the paper: the reverse'


def table_markdown(name: str, rows: Sequence[MeasuredRow]) -> str:
    """Heading, table and one sentence."""
    table = find_table(name)
    reference = next(row for row in rows if row.name == table.reference)
    verdicts = [judged(reference, row) for row in rows]
    lines = [
        [
            row.name,
            NOT_RUN if row.published is None else f'{row.published:.1f}',
            format_values(row.top1, 1),
            format_values(row.loss, 4),
            verdict,
        ]
        for row, verdict in zip(rows, verdicts, strict=True)
    ]
    header = ['', "paper's top-1", 'top-1 here', f'{LOSS} here', f'against {table.reference}']
    return '\n\n'.join([f'## {table.title}', markdown_table(header, lines), conclusion(table.reference, rows)])


def conclusion(reference: str, rows: Sequence[MeasuredRow]) -> str:
    """One sentence about the whole table."""
    first = next(row for row in rows if row.name == reference)
    verdicts = {row.name: judged(first, row) for row in rows if row.name != reference}
    decided = {name: verdict for name, verdict in verdicts.items() if verdict not in ('no conclusion', 'not run')}
    if not decided:
        return 'No conclusion at this scale: no difference exceeds its spread over the seeds.'
    agree = [name for name, verdict in decided.items() if verdict.endswith('as in the paper')]
    against = [name for name, verdict in decided.items() if verdict.endswith('the reverse')]
    parts = [f'{len(decided)} of {len(verdicts)} differences exceed their spread']
    parts += [f'as in the paper: {", ".join(agree)}'] if agree else []
    parts += [f'the reverse of the paper: {", ".join(against)}'] if against else []
    return f'{"; ".join(parts)}.'
