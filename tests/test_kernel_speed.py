"""The benchmark of the GPU kernels, as far as a machine without a GPU can tell. That its two implementations agree is
tested with the kernels, in tests/models/test_triton_kernels.py.
"""

import importlib.util
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).parents[1] / 'tools' / 'benchmark' / 'kernel_speed.py'


@pytest.fixture(scope='module')
def kernel_speed():
    spec = importlib.util.spec_from_file_location('kernel_speed', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason='says that there is no GPU')
def test_without_a_gpu_it_says_so_in_one_line(call, tmp_path):
    code, out, _ = call('benchmark/kernel_speed', '--out', tmp_path / 'results')
    assert code == 'error: there is no GPU here; kernel_speed.py times the Triton kernels on one.'  # exit code 1
    assert out == ''
    assert not (tmp_path / 'results').exists()


@pytest.mark.parametrize('way', ['visible, PyTorch', 'masked dense, PyTorch', 'no mask, PyTorch'])
def test_the_encoder_step_leaves_gradients(kernel_speed, monkeypatch, way):
    models = []
    build = kernel_speed.MODELS.build

    def build_and_keep(config):
        models.append(build(config))
        return models[-1]

    monkeypatch.setattr(kernel_speed.MODELS, 'build', build_and_keep)
    args = Namespace(image_size=64, mask_ratio=0.5, float32=True)
    kernel_speed.encoder_step(dict(depths=[1] * 4, channels=[8, 16, 24, 32]), 2, args, way, 'cpu')()
    assert models[-1].backbone.kernels == 'torch'
    assert all(p.grad.abs().max() > 0 for p in models[-1].backbone.parameters())


def test_the_report_divides_rightly(kernel_speed, tmp_path):
    seconds = dict(torch=[3e-5, 4e-5, 5e-5], triton=[1e-5, 2e-5, 9e-5])
    results = dict(
        date='2026-01-02',
        card='A card',
        command=['kernel_speed.py', '--runs', '3'],
        versions='torch 0',
        dtype='bfloat16',
        image_size=224,
        mask_ratio=0.6,
        runs=3,
        kernel_batch_size=64,
        copy_bytes_per_second=2e12,
        kernels=[
            dict(
                name='step',
                num_bytes=dict(forward=10**7, backward=2 * 10**7),
                seconds=dict.fromkeys(('forward', 'backward'), seconds),
            )
        ],
        encoder=[
            {
                'arch': 'tiny',
                'batch_size': 64,
                'visible, Triton': dict(images_per_second=2500.0, peak_gib=8.0),
                'visible, PyTorch': dict(images_per_second=1000.0, peak_gib=10.0),
            },
            {
                'arch': 'large',
                'batch_size': 256,
                'visible, Triton': dict(images_per_second=500.0, peak_gib=70.0),
                'visible, PyTorch': None,
            },
        ],
    )
    target = kernel_speed.write(results, tmp_path / 'results')
    assert target.name == 'kernel_speed_a-card_2026-01-02'
    report = (target.parent / f'{target.name}.md').read_text()
    assert json.loads((target.parent / f'{target.name}.json').read_text()) == results
    assert 'moves 2.00 TB/s' in report
    assert '| step | forward | 40.0 | 20.0 | 2.00 | 25% |' in report  # 10 MB in 20 us are 0.5 TB/s
    assert '| step | backward | 40.0 | 20.0 | 2.00 | 50% |' in report
    assert '| arch | batch | visible, Triton | visible, PyTorch |\n|---|---|---|---|' in report
    assert '| tiny | 64 | 2500 | 1000 (2.50) |' in report
    assert '| large | 256 | 500 | out of memory |' in report
    assert '| tiny | 64 | 8.0 GiB | 10.0 GiB |' in report
