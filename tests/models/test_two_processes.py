"""Gradients of a batch that two processes share, against one process with the whole batch."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import distributed, multiprocessing, nn

import mmcnx2  # noqa: F401  makes 'mmcnx2.X' known to the registries
from mmcnx2.engine.rendezvous import part

MICRO = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])
NUM_IMAGES = 4


def build(layout: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='mmcnx2.FCMAE',
            backbone=dict(type='mmcnx2.ConvNeXtV2', arch=MICRO),
            neck=dict(decoder_channels=16),
            layout=layout,
        )
    )
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


def batch(indices: slice, dtype: torch.dtype) -> tuple[torch.Tensor, list[BaseDataElement]]:
    """Pictures whose masks depend on themselves alone."""
    images = torch.randn(NUM_IMAGES, 3, 96, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    samples = [BaseDataElement(metainfo=dict(sample_seed=10 + i)) for i in range(NUM_IMAGES)]
    return images[indices], samples[indices]


def share(rank: int, layout: str, dtype: torch.dtype, folder: str) -> None:
    distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(build(layout, dtype))
    model(*batch(slice(rank, NUM_IMAGES, 2), dtype), mode='loss')['loss'].backward()
    if rank == 0:
        gradients = {name: parameter.grad for name, parameter in model.module.named_parameters()}
        torch.save(gradients, f'{folder}/shared.pth')
    part()


@pytest.mark.parametrize(
    ('layout', 'dtype', 'bound'),
    [('visible', torch.float32, 5e-6), ('visible', torch.float64, 1e-12), ('dense', torch.float64, 1e-12)],
)
def test_gradients_are_those_of_one_process(tmp_path: Path, layout: str, dtype: torch.dtype, bound: float):
    """Up to the order of additions: `bound` is relative to the largest value of each parameter's gradient."""
    multiprocessing.spawn(share, (layout, dtype, str(tmp_path)), nprocs=2)
    shared = torch.load(tmp_path / 'shared.pth', weights_only=True)
    model = build(layout, dtype)
    model(*batch(slice(None), dtype), mode='loss')['loss'].backward()
    worst = max(
        float((shared[name] - parameter.grad).abs().max() / parameter.grad.abs().max())
        for name, parameter in model.named_parameters()
    )
    assert 0 < worst < bound, f'gradients differ by {worst:.1e} of their largest value'
