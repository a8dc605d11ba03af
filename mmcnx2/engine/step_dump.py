"""What is kept of a training step that went wrong: a description to read, and tensors to do it again.

Touch this file for what a dump holds; not for when one is written (non_finite_guard.py). Guarded by
tests/engine/test_non_finite_guard.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mmcnx2.atomic_write import write_atomically

from .random_state import get_random_state, set_random_state

MEGABYTE = 1 << 20
SAMPLE_KEYS = ('img_path', 'sample_idx', 'sample_seed')  # metainfo of data samples


def write_step_dump(
    stem: Path,
    description: dict,
    losses: dict[str, Tensor],
    data_batch: object,
    model: nn.Module,
    random_state: dict[str, Any],
    max_bytes: int,
) -> None:
    """Writes STEM.json and STEM.safetensors.

    The first holds `description`, the loss terms and for each sample its file, seed, smallest and largest value. The
    second holds the batch as the data loader gave it (`batch.inputs` ...) up to `max_bytes`, `visible` (what an FCMAE
    let its encoder see) and `random_state.*`: the integers of the generators before the step, as
    random_state.get_random_state gave them (of Python and NumPy without what they keep of normal numbers).

    Raises:
        OSError: the files cannot be written.
    """
    kept, left_out = _within(dict(_named_tensors(data_batch, 'batch')), max_bytes)
    visible = _visible_cells(model, data_batch, random_state)
    description = {
        **description,
        'losses': {name: _plain(value.item()) for name, value in losses.items()},
        'samples': _samples(data_batch),
        'tensors': {name: [str(values.dtype).removeprefix('torch.'), *values.shape] for name, values in kept.items()},
        'left_out_for_size': left_out,
        'visible_cells': 'in the tensor file' if visible is not None else None,
    }
    tensors = {**kept, **_as_tensors(random_state)}
    if visible is not None:
        tensors['visible'] = visible
    tensors = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(stem.with_name(f'{stem.name}.safetensors'), save(tensors))
    write_atomically(stem.with_name(f'{stem.name}.json'), json.dumps(description, indent=1) + '\n')


def losses_of(output: object) -> dict[str, Tensor]:
    """The terms that mmengine sums up to the loss of a forward pass, each a float32 scalar; {} for other outputs."""
    if not isinstance(output, dict):
        return {}
    terms = {name: value if isinstance(value, list | tuple) else [value] for name, value in output.items()}
    return {
        name: torch.stack([one.detach().float().mean() for one in values]).sum()
        for name, values in terms.items()
        if 'loss' in name and values and all(isinstance(one, Tensor) for one in values)
    }


def _named_tensors(node: object, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts and lists, under its place: 'batch.inputs.0'."""
    if isinstance(node, Tensor):
        yield name, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _named_tensors(value, f'{name}.{key}')
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _named_tensors(value, f'{name}.{index}')


def _within(tensors: dict[str, Tensor], max_bytes: int) -> tuple[dict[str, Tensor], list[str]]:
    """The first tensors that fit, of the one that does not its first samples; and what was left out, in words."""
    kept, left_out = {}, []
    for name, values in tensors.items():
        size = values.nbytes
        fitting = len(values) * max_bytes // size if values.ndim and size else 1
        if size <= max_bytes:
            kept[name] = values
        else:
            left_out.append(f'{name}: all but the first {fitting} of {len(values)}' if values.ndim else name)
            if values.ndim and fitting:
                kept[name] = values[:fitting]
        max_bytes -= kept[name].nbytes if name in kept else 0
    return kept, left_out


def _samples(data_batch: object) -> list[dict]:
    """For each: what its data sample knows of its origin, and the range of its pixels."""
    if not isinstance(data_batch, dict):
        return []
    infos = data_batch.get('data_samples')
    infos = infos if isinstance(infos, list | tuple) else []
    samples = [{key: info.get(key) for key in SAMPLE_KEYS if info.get(key) is not None} for info in infos]
    images = data_batch.get('inputs')
    if isinstance(images, Tensor | list | tuple) and len(images) == len(samples):
        for sample, image in zip(samples, images, strict=True):
            if isinstance(image, Tensor) and image.numel():
                sample.update(min=_plain(image.float().min().item()), max=_plain(image.float().max().item()))
    return samples


def _visible_cells(model: nn.Module, data_batch: object, random_state: dict[str, Any]) -> Tensor | None:
    """The mask of this step, drawn once more as it was drawn then; None for models that draw none."""
    if not hasattr(model, 'draw_visible'):
        return None
    now = get_random_state()
    try:
        set_random_state(random_state)
        data = model.data_preprocessor(data_batch, True)
        return model.draw_visible(data['inputs'], data.get('data_samples'))
    finally:
        set_random_state(now)


def _as_tensors(random_state: dict[str, Any]) -> dict[str, Tensor]:
    _, integers, _ = random_state['python']
    _, keys, position, *_ = random_state['numpy']
    plain = dict(python=torch.tensor(integers), numpy=torch.cat([keys, torch.tensor([position])]))
    return {f'random_state.{name}': plain.get(name, state) for name, state in random_state.items()}


def _plain(number: float) -> float | str:
    """Strict JSON has no NaN."""
    return number if abs(number) < float('inf') else str(number)
