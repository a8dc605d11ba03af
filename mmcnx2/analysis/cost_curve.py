"""How the cost of a step grows with batch, resolution and mask ratio: measured points in, table and plot out.

One base point, and three lines of points through it, each with one setting changed. Touch it for what is derived from
the seconds; measuring stands in tools/benchmark/encoder_speed.py. Guarded by tests/analysis/test_cost_curve.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import numpy as np

from mmcnx2.analysis.comparison import markdown_table
from mmcnx2.analysis.figures import Line, Panel, draw_curves
from mmcnx2.analysis.run_log import Curve
from mmcnx2.analysis.speed_report import how, milliseconds

SETTINGS = ('batch_size', 'size', 'mask_ratio')


@dataclass(frozen=True)
class Point:
    """What a step computes: a batch of square images of `size` px, of which `mask_ratio` is hidden."""

    batch_size: int
    size: int
    mask_ratio: float

    def __str__(self) -> str:
        return f'batch {self.batch_size}, {self.size} px, mask ratio {self.mask_ratio:g}'


@dataclass(frozen=True)
class Measured:
    """Seconds of a layout's step at a point. `share` of the cells is computed, which is not exactly 1 - mask_ratio,
    because the number of cells is whole.
    """

    layout: str
    point: Point
    share: float
    seconds: float
    quartiles: tuple[float, float]

    @property
    def pixels(self) -> float:
        """Of the whole batch, those that are computed."""
        return self.point.batch_size * self.point.size**2 * self.share


def points(base: Point, batch_sizes: Iterable[int], sizes: Iterable[int], mask_ratios: Iterable[float]) -> list[Point]:
    """The points of the three lines, each once, the base point among them."""
    lines = dict(zip(SETTINGS, (batch_sizes, sizes, mask_ratios), strict=True))
    found = {base: None}
    for setting, values in lines.items():
        found |= {replace(base, **{setting: value}): None for value in values}
    return sorted(found, key=astuple)


def line(measured: Sequence[Measured], layout: str, setting: str, base: Point) -> list[Measured]:
    """The points of one line of a layout, by the setting that changes along it."""
    others = [name for name in SETTINGS if name != setting]
    found = [
        each
        for each in measured
        if each.layout == layout and all(getattr(each.point, name) == getattr(base, name) for name in others)
    ]
    return sorted(found, key=lambda each: getattr(each.point, setting))


def growth_per_image(along: Sequence[Measured]) -> float:
    """Time per image at the largest batch, as a multiple of the least time per image of any batch."""
    per_image = [each.seconds / each.point.batch_size for each in along]
    return per_image[-1] / min(per_image)


def exponent(along: Sequence[Measured]) -> float:
    """p of seconds ~ pixels^p, the least squares line through the logarithms; 1 is linear growth."""
    pixels, seconds = (np.log([getattr(each, name) for each in along]) for name in ('pixels', 'seconds'))
    return float(np.polyfit(pixels, seconds, 1)[0])


def summarise(title: str, base: Point, measured: Sequence[Measured]) -> dict:
    """Points and what they say, as in the JSON file."""
    layouts = list(dict.fromkeys(each.layout for each in measured))
    findings = {}
    for layout in layouts:
        batches, sizes = (line(measured, layout, setting, base) for setting in ('batch_size', 'size'))
        findings[layout] = dict(
            per_image_largest_batch_over_least=growth_per_image(batches) if len(batches) > 1 else None,
            exponent_of_pixels=exponent(sizes) if len(sizes) > 1 else None,
        )
    return dict(
        title=title,
        base=asdict(base),
        points=[asdict(each) | dict(quartiles=list(each.quartiles)) for each in measured],
        findings=findings,
    )


def _measured(case: Mapping) -> tuple[Point, list[Measured]]:
    found = [Measured(**{**each, 'point': Point(**each['point'])}) for each in case['points']]
    return Point(**case['base']), found


def sections(case: Mapping) -> list[str]:
    """Three tables and two sentences."""
    base, measured = _measured(case)
    layouts = list(case['findings'])
    parts = [f'## {case["title"]}', f'Medians of {case["num_rounds"]} interleaved rounds; base point: {base}.']
    for setting, title in zip(SETTINGS, ('batch', 'image, px', 'mask ratio'), strict=True):
        lines = {layout: line(measured, layout, setting, base) for layout in layouts}
        lines = {layout: along for layout, along in lines.items() if len(along) > 1}
        if not lines:
            continue
        header = [title]
        for layout in lines:
            header += [f'{layout}, ms', 'quartiles', *_derived_header(setting)]
        values = sorted({getattr(each.point, setting) for along in lines.values() for each in along})
        rows = []
        for value in values:
            row = [f'{value:g}']
            for along in lines.values():
                here = next((each for each in along if getattr(each.point, setting) == value), None)
                row += _cells(here, along, setting) if here else ['-'] * (2 + len(_derived_header(setting)))
            rows.append(row)
        parts.append(markdown_table(header, rows))
    for layout, found in case['findings'].items():
        texts = []
        if found['per_image_largest_batch_over_least'] is not None:
            growth = found['per_image_largest_batch_over_least']
            texts.append(f'time per image at the largest batch is {growth:.2f} of the least of all batches')
        if found['exponent_of_pixels'] is not None:
            texts.append(f'the time grows with the computed pixels to the power of {found["exponent_of_pixels"]:.2f}')
        if texts:
            parts.append(f'{layout}: {"; ".join(texts)}.')
    return parts


def _derived_header(setting: str) -> list[str]:
    return {
        'batch_size': ['ms per image'],
        'size': ['visible', 'ms per million visible pixels'],
        'mask_ratio': ['visible', 'ratio to the least masked'],
    }[setting]


def _cells(here: Measured, along: Sequence[Measured], setting: str) -> list[str]:
    low, high = here.quartiles
    cells = [milliseconds(here.seconds), f'{milliseconds(low)} to {milliseconds(high)}']
    if setting == 'batch_size':
        return [*cells, milliseconds(here.seconds / here.point.batch_size)]
    if setting == 'size':
        return [*cells, f'{here.share:.3f}', milliseconds(here.seconds / here.pixels * 1e6)]
    return [*cells, f'{here.share:.3f}', f'{here.seconds / along[0].seconds:.3f}']


def page(results: Mapping) -> str:
    """The Markdown file."""
    parts = [f'# {results["title"]}']
    for case in results['cases']:
        parts += sections(case)
    if results.get('plot'):
        parts.append(f'![Cost against batch size, resolution and mask ratio]({results["plot"]})')
    return '\n\n'.join([*parts, '## How', how(results)]) + '\n'


def draw(cases: Sequence[Mapping], path: str | Path) -> Path:
    """Three panels: time per image against the batch, time of a step against megapixels and against the mask ratio."""
    found: dict[str, list[Line]] = {setting: [] for setting in SETTINGS}
    for case in cases:
        base, measured = _measured(case)
        for layout in sorted(case['findings'], key=lambda name: name == 'dense'):  # last: it has no mask ratio
            label = layout if len(cases) == 1 else f'{layout}, {case["title"].split(",")[0]}'
            for setting in SETTINGS:
                along = line(measured, layout, setting, base)
                if len(along) > 1:
                    found[setting].append(Line(label, _curve(along, setting)))
    first = Point(**cases[0]['base'])
    panels = [
        Panel(
            f'{first.size} px, mask ratio {first.mask_ratio:g}',
            'images in the batch',
            'ms per image',
            found['batch_size'],
            from_zero=True,
        ),
        Panel(
            f'batch {first.batch_size}, mask ratio {first.mask_ratio:g}',
            'thousand pixels per image',
            'ms per step',
            found['size'],
            from_zero=True,
        ),
        Panel(
            f'batch {first.batch_size}, {first.size} px',
            'mask ratio',
            'ms per step',
            found['mask_ratio'],
            from_zero=True,
        ),
    ]
    return draw_curves([panel for panel in panels if panel.lines], path)


def _curve(along: Sequence[Measured], setting: str) -> Curve:
    if setting == 'batch_size':
        images = [each.point.batch_size for each in along]
        return Curve(
            tuple(images), tuple(1000 * each.seconds / number for each, number in zip(along, images, strict=True))
        )
    values = tuple(1000 * each.seconds for each in along)
    if setting == 'size':
        return Curve(tuple(each.point.size**2 / 1000 for each in along), values)
    return Curve(tuple(each.point.mask_ratio for each in along), values)
