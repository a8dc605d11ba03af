"""Small models with non-zero biases and GRN: with the zeros of a fresh model, leaks and swapped terms stay
invisible."""

import pytest
import torch
from mmengine.registry import MODELS

import mmcnx2  # noqa: F401  makes 'mmcnx2.X' known to the registries

MICRO = dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])


def _randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm_weight = parameter.ndim == 1 and name.endswith('weight')
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise if is_norm_weight else noise)
    return model


@pytest.fixture
def micro() -> dict:
    """Depths and channels of a four-stage network of 40 thousand parameters."""
    return {key: list(value) for key, value in MICRO.items()}


@pytest.fixture
def randomise():
    """Overwrites every parameter of a model with noise, the same at every call."""
    return _randomise


@pytest.fixture
def build_fcmae():
    """FCMAE on the micro network with random parameters, in float64 unless dtype is given; equal seeds give equal
    parameters."""

    def build(dtype=torch.float64, seed=0, in_channels=3, **settings):
        decoder = settings.pop('neck', {})
        response_norm = settings.pop('response_norm', 'grn')
        model = MODELS.build(
            dict(
                type='mmcnx2.FCMAE',
                backbone=dict(
                    type='mmcnx2.ConvNeXtV2', arch=MICRO, in_channels=in_channels, response_norm=response_norm
                ),
                neck={'type': 'mmcnx2.FCMAEDecoder', 'decoder_channels': 16, **decoder},
                **settings,
            )
        )
        return _randomise(model, seed).to(dtype)

    return build
