"""The Triton kernels against PyTorch in float64: in Triton's interpreter, on a GPU where there is one, and compiled for
an H100 without one.

Whether Triton interprets is decided when it is first imported, for the whole process. So the tests that run kernels
need a process of their own: `test_everything_in_the_interpreter` starts it. To see one test fail:

    TRITON_INTERPRET=1 python -m pytest tests/models/test_triton_kernels.py -k NAME
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

import mmcnx2  # noqa: F401  makes 'mmcnx2.X' known to the registry
from mmcnx2.models.layers import GRN, DenseLayout, DepthwiseConv, VisibleLayout, layout, triton_kernels
from mmcnx2.models.layers.kernel_choice import chosen_kernels

triton = pytest.importorskip('triton')

ROOT = Path(__file__).parents[2]
IS_INTERPRETED = triton_kernels.IS_INTERPRETED
# Of a result, norm over norm. The interpreter cuts bfloat16 off where a GPU rounds.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 4e-4}


@pytest.mark.skipif(IS_INTERPRETED, reason='this is the interpreter')
def test_everything_in_the_interpreter():
    run = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', __file__],
        env={**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert re.search(r'\d\d passed', run.stdout), run.stdout[-2000:]


@pytest.fixture
def device():
    """Where kernels run in this process."""
    if IS_INTERPRETED:
        return 'cpu'
    if not torch.cuda.is_available():
        pytest.skip('no GPU; test_everything_in_the_interpreter runs it')
    return 'cuda'


def relative_error(got, expected):
    assert got.shape == expected.shape
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


def between_nans(tensor):
    """The same values as part of a larger memory, so that a read outside of them shows in the result."""
    memory = tensor.new_full((tensor.numel() + 2048,), float('nan'))
    part = memory[1024:-1024].view(tensor.shape)
    part.copy_(tensor)
    return part


def tables(visible_BGG):
    """(slots_BGG, cells_N)."""
    cells_N = visible_BGG.flatten().nonzero().squeeze(1)
    slots = torch.full((visible_BGG.numel(),), -1, dtype=torch.int32, device=visible_BGG.device)
    slots[cells_N] = torch.arange(len(cells_N), dtype=torch.int32, device=slots.device)
    return slots.view(visible_BGG.shape), cells_N


def conv_on_the_whole_map(cells_NPQC, weight, bias, visible_BGG):
    """Zeros into hidden cells, a convolution of the whole map, the visible cells of the result."""
    _, P, Q, C = cells_NPQC.shape
    B, rows, columns = visible_BGG.shape
    cells_N = visible_BGG.flatten().nonzero().squeeze(1)
    everything = cells_NPQC.new_zeros(visible_BGG.numel(), P, Q, C).index_copy(0, cells_N, cells_NPQC)
    map_BCHW = everything.view(B, rows, columns, P, Q, C).permute(0, 5, 1, 3, 2, 4).reshape(B, C, rows * P, columns * Q)
    out_BCHW = F.conv2d(map_BCHW, weight, bias, padding=weight.shape[-1] // 2, groups=C)
    return out_BCHW.view(B, C, rows, P, columns, Q).permute(0, 2, 4, 3, 5, 1).reshape(-1, P, Q, C)[cells_N]


def masks(*pictures):
    """Drawings such as '#.#/.##', one per image; # is visible."""
    return torch.tensor([[[cell == '#' for cell in row] for row in picture.split('/')] for picture in pictures])


GEOMETRIES = {  # visible cells, P, Q, channels, kernel size
    'P=1, the window reaches three cells away': (masks('#..#/.#../#..#', '.#../#..#/....'), 1, 1, 24, 7),
    'P=2, two cells away': (masks('#.#/#..'), 2, 2, 24, 7),
    'P=4, channels that fill no block': (masks('#./.#'), 4, 4, 40, 3),
    'P=8': (masks('##.'), 8, 8, 8, 7),
    'cells of 3 x 6': (masks('#./##'), 3, 6, 8, 3),
    'cells larger than a tile': (masks('#/#'), 9, 3, 8, 3),
    'dense, smaller than a tile': (masks('#', '#'), 5, 7, 24, 5),
    'dense, several tiles': (masks('#'), 13, 10, 8, 3),
    'dense, tiles of seven rows': (masks('#'), 14, 4, 8, 3),
}


@pytest.mark.parametrize(
    ('geometry', 'dtype'),
    zip(GEOMETRIES, [torch.float32, torch.bfloat16] * 4 + [torch.float16], strict=True),
    ids=map(str, GEOMETRIES),
)
def test_depthwise_conv_and_its_gradients(geometry, dtype, device, monkeypatch):
    monkeypatch.setattr(triton_kernels, 'LARGEST_WHOLE_CELL', 8)  # fewer tiles for the interpreter
    visible_BGG, P, Q, C, K = GEOMETRIES[geometry]
    torch.manual_seed(0)
    shape = (int(visible_BGG.sum()), P, Q, C)
    exact = [torch.randn(shape).to(dtype), torch.randn(C, 1, K, K), torch.randn(C)]
    grad = torch.randn(shape).to(dtype)
    inputs = [between_nans(x.to(device)).requires_grad_() for x in exact]
    exact = [x.double().requires_grad_() for x in exact]
    got = triton_kernels.depthwise_conv(*inputs, *tables(visible_BGG.to(device)))
    expected = conv_on_the_whole_map(*exact, visible_BGG)
    assert got.dtype == dtype
    assert relative_error(got.cpu(), expected) < ROUNDING[dtype]
    grads = torch.autograd.grad(got, inputs, between_nans(grad.to(device)))
    limits = (ROUNDING[dtype], 1e-6, 1e-6)  # the parameters are float32, and so are their sums
    for x, a, b, limit in zip(inputs, grads, torch.autograd.grad(expected, exact, grad.double()), limits, strict=True):
        assert a.dtype == x.dtype
        assert relative_error(a.cpu(), b) < limit


def test_hidden_cells_and_other_images_do_not_enter(device):
    """Image 0 sees one cell: its result is that of a map of this cell alone, whatever image 1 holds."""
    visible_BGG = masks('.#', '##').to(device)
    torch.manual_seed(0)
    cells, weight, bias = torch.randn(3, 2, 2, 8), torch.randn(8, 1, 3, 3), torch.randn(8)
    cells, weight, bias = (x.to(device) for x in (cells, weight, bias))
    cells.requires_grad_()
    out = triton_kernels.depthwise_conv(cells, weight, bias, *tables(visible_BGG))
    alone = triton_kernels.depthwise_conv(cells[:1], weight, bias, *tables(masks('#').to(device)))
    assert torch.equal(out[0], alone[0])
    (grad,) = torch.autograd.grad(out[0].sum(), cells)
    assert grad[0].abs().min() > 0
    assert grad[1:].abs().max() == 0


def test_depthwise_conv_without_bias_and_with_frozen_weight(device, monkeypatch):
    torch.manual_seed(0)
    cells, weight = torch.randn(1, 3, 3, 8, device=device, requires_grad=True), torch.randn(8, 1, 3, 3, device=device)
    visible_BGG = masks('#').to(device)
    monkeypatch.setattr(triton_kernels, '_depthwise_weight_grad', None)  # nothing to do for it
    got = triton_kernels.depthwise_conv(cells, weight, None, *tables(visible_BGG))
    expected = conv_on_the_whole_map(cells.detach().double(), weight.double(), None, visible_BGG)
    assert relative_error(got, expected) < 1e-6
    got.sum().backward()
    assert cells.grad.abs().min() > 0


def test_depthwise_conv_casts_values_under_autocast_but_no_weight(device):
    """Two neighbours with weights 1 + 2 ** -9 and -1: in bfloat16 they would cancel."""
    weight = torch.zeros(8, 1, 3, 3, device=device)
    weight[:, :, 1, 0], weight[:, :, 1, 2] = 1 + 2**-9, -1
    weight.requires_grad_()
    cells = torch.full((1, 3, 3, 8), 1 + 2**-9, device=device)  # 1 in bfloat16
    with torch.autocast(device, torch.bfloat16):
        got = triton_kernels.depthwise_conv(cells, weight, None, *tables(masks('#').to(device)))
    assert got.dtype == torch.bfloat16
    assert got[0, 1, 1].tolist() == [2**-9] * 8
    (grad,) = torch.autograd.grad(got.sum(), weight)
    assert grad.dtype == torch.float32


def gelu_then_grn(x_BMF, gamma, beta, eps):
    gelu = 0.5 * x_BMF * (1 + torch.erf(x_BMF / 2**0.5))
    norms = gelu.square().sum(1, keepdim=True).sqrt()
    return gelu * (1 + gamma * norms / (norms.mean(-1, keepdim=True) + eps)) + beta


@pytest.mark.parametrize(
    ('shape', 'dtype'),
    [
        ((2, 5, 24), torch.float32),
        ((1, 70, 40), torch.float32),  # a norm over the batch, several parts
        ((3, 1, 200), torch.float32),  # several blocks of features
        ((2, 9, 640), torch.bfloat16),
        ((1, 40, 72), torch.bfloat16),
        ((1, 33, 24), torch.float16),
    ],
)
def test_gelu_grn_and_its_gradients(shape, dtype, device):
    torch.manual_seed(0)
    spread = 40 if dtype == torch.float16 else 1  # sums of squares beyond float16's range
    exact = [(torch.randn(shape) * spread).to(dtype), torch.randn(shape[-1]), torch.randn(shape[-1])]
    grad = torch.randn(shape).to(dtype)
    inputs = [between_nans(x.to(device)).requires_grad_() for x in exact]
    exact = [x.double().requires_grad_() for x in exact]
    got, expected = triton_kernels.gelu_grn(*inputs, 1e-2), gelu_then_grn(*exact, 1e-2)
    assert got.dtype == dtype
    assert relative_error(got.cpu(), expected) < ROUNDING[dtype]
    grads = torch.autograd.grad(got, inputs, between_nans(grad.to(device)))
    limits = (ROUNDING[dtype], 1e-6, 1e-6)
    for x, a, b, limit in zip(inputs, grads, torch.autograd.grad(expected, exact, grad.double()), limits, strict=True):
        assert a.dtype == x.dtype
        assert relative_error(a.cpu(), b) < limit


def test_a_feature_that_is_zero_everywhere_has_a_finite_gradient(device):
    x = torch.randn(1, 3, 4, device=device)
    x[..., 1] = 0
    x.requires_grad_()
    gamma, beta = torch.ones(4, device=device), torch.zeros(4, device=device)
    triton_kernels.gelu_grn(x, gamma, beta, 1e-6).sum().backward()
    torch.testing.assert_close(x.grad[..., 1], torch.full_like(x.grad[..., 1], 0.5))  # the slope of GELU at 0
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ('shape', 'dtype'),
    [((2, 3, 3, 24), torch.float32), ((70, 96), torch.float32), ((5, 640), torch.bfloat16), ((3, 24), torch.float16)],
)
def test_layer_norm_and_its_gradients(shape, dtype, device, monkeypatch):
    monkeypatch.setattr(triton_kernels, 'NUM_ROW_PROGRAMS', 2)  # several blocks of rows for each
    torch.manual_seed(0)
    exact = [(torch.randn(shape) + 3).to(dtype), torch.randn(shape[-1]), torch.randn(shape[-1])]
    grad = torch.randn(shape).to(dtype)
    inputs = [between_nans(x.to(device)).requires_grad_() for x in exact]
    exact = [x.double().requires_grad_() for x in exact]
    got = triton_kernels.layer_norm(*inputs, 1e-2)
    expected = F.layer_norm(exact[0], shape[-1:], *exact[1:], 1e-2)
    assert got.dtype == dtype
    assert relative_error(got.cpu(), expected) < ROUNDING[dtype]
    grads = torch.autograd.grad(got, inputs, between_nans(grad.to(device)))
    limits = (ROUNDING[dtype], 1e-6, 1e-6)
    for x, a, b, limit in zip(inputs, grads, torch.autograd.grad(expected, exact, grad.double()), limits, strict=True):
        assert a.dtype == x.dtype
        assert relative_error(a.cpu(), b) < limit


@pytest.fixture
def calls(monkeypatch):
    """How often each kernel was asked for."""
    counted = dict.fromkeys(('depthwise_conv', 'gelu_grn', 'layer_norm'), 0)

    def counting(name):
        kernel = getattr(triton_kernels, name)

        def counted_kernel(*arguments):
            counted[name] += 1
            return kernel(*arguments)

        return counted_kernel

    for name in counted:
        monkeypatch.setattr(triton_kernels, name, counting(name))
    return counted


@pytest.mark.parametrize('layout', [VisibleLayout, DenseLayout])
def test_an_encoder_built_with_the_kernels(layout, build_fcmae, randomise, device, calls):
    """Outputs and gradients of the PyTorch path: two neighbouring cells of P = 8, 4, 2 and 1, or a picture of one."""
    model = build_fcmae(dtype=torch.float32).backbone
    for stage in model.stages:  # 3 x 3 kernels spare the interpreter two thirds of its work
        for block in stage:
            block.dwconv = randomise(DepthwiseConv(block.dwconv.in_channels, 3))
    model = model.to(device)
    images = torch.randn(1, 3, 64 if layout is VisibleLayout else 32, 32, device=device, requires_grad=True)
    visible_BGG = masks('#/#').to(device) if layout is VisibleLayout else None
    leaves = [images, *model.parameters()]
    (expected,) = model(images, layout(visible_BGG, kernels='torch'))
    weight = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * weight).sum(), leaves)
    assert set(calls.values()) == {0}
    (got,) = model(images, layout(visible_BGG, kernels='triton'))
    assert set(calls.values()) == {5}  # one for each block
    assert relative_error(got, expected) < 1e-5
    for a, b in zip(torch.autograd.grad((got * weight).sum(), leaves), expected_grads, strict=True):
        assert relative_error(a, b) < 1e-4


@pytest.mark.parametrize('grn_over', ['image', 'batch'])
def test_grn_over_the_images_that_the_layout_names(grn_over, device, randomise):
    """Hidden cells, two images, their visible cells in other places of the grid."""
    visible_BGG = masks('#./.#', '.#/.#').to(device)
    grn = randomise(GRN(8)).to(device)
    x = torch.randn(2, 2, 2, 2, 8, device=device)
    expected, got = (
        grn(x, VisibleLayout(visible_BGG, grn_over, kernels), after_gelu=True) for kernels in ('torch', 'triton')
    )
    assert relative_error(got, expected) < 1e-6


def test_an_algorithm_takes_the_kernels_through_its_backbone(device, calls, micro):
    model = MODELS.build(
        dict(type='mmcnx2.FCMAE', backbone=dict(type='mmcnx2.ConvNeXtV2', arch=micro, kernels='triton'))
    ).to(device)
    visible_BGG = masks('#.').to(device)
    features = model.encode(torch.randn(1, 3, 32, 64, device=device), visible_BGG)
    assert set(calls.values()) == {5} and features.isfinite().all()


def test_the_benchmark_compares_equal_things(device):
    """tools/benchmark/kernel_speed.py: values and gradients of both implementations of each step."""
    spec = importlib.util.spec_from_file_location('kernel_speed', ROOT / 'tools/benchmark/kernel_speed.py')
    kernel_speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernel_speed)
    torch.manual_seed(0)
    cases = list(kernel_speed.kernel_cases(8, 1, masks('#.#').to(device), torch.bfloat16))
    assert [case.name.split(',')[0] for case in cases] == ['depthwise 7 x 7'] * 2 + ['GELU + GRN', 'LayerNorm']
    for case in cases:
        assert kernel_speed.largest_error(case, torch.bfloat16) < kernel_speed.LARGEST_ERROR[torch.bfloat16]


def test_the_benchmark_compiles_stages_side_by_side(device, tmp_path):
    """In processes of their own, so in a script of its own. The interpreter compiles nothing: there it only runs."""
    script = tmp_path / 'compile.py'
    script.write_text(
        'import sys, torch\n'
        f'sys.path.insert(0, {str(ROOT / "tools/benchmark")!r})\n'
        'import kernel_speed\n'
        "if __name__ == '__main__':\n"
        '    visible_BGG = torch.ones(1, 1, 1, dtype=torch.bool)\n'
        f'    kernel_speed.compile_side_by_side({{(8, 1), (16, 2)}}, visible_BGG, torch.float32, {device!r}, 2)\n'
    )
    env = {**os.environ, 'TRITON_CACHE_DIR': str(tmp_path / 'cache'), 'OMP_NUM_THREADS': '1'}
    run = subprocess.run([sys.executable, script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split('\n') == ['compiled: P=1, C=8', 'compiled: P=2, C=16', '']
    if device == 'cuda':
        assert len({path.name for path in tmp_path.glob('cache/*/*.cubin')}) >= 10  # kernels, by name


def test_a_compiled_step_has_no_graph_break(device):
    torch.manual_seed(0)
    slots_cells = tables(masks('#').to(device))
    cells = torch.randn(1, 2, 2, 8, device=device, requires_grad=True)
    weight, other = torch.randn(8, 1, 3, 3, device=device), torch.randn(3, 8, device=device)

    def step(cells):
        y = triton_kernels.depthwise_conv(cells, weight, other[0], *slots_cells)
        y = triton_kernels.layer_norm(y, other[1], other[0], 1e-6)
        return triton_kernels.gelu_grn(y.flatten(1, 2), other[1], other[2], 1e-6).square().sum()

    (expected,) = torch.autograd.grad(step(cells), cells)
    compiled = torch.compile(step, backend='aot_eager', fullgraph=True)  # raises at a break
    (got,) = torch.autograd.grad(compiled(cells), cells)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('name', ['depthwise', 'gelu_grn', 'layer_norm'])
def test_the_operators_describe_themselves_rightly(name, device):
    """Schema, shapes without values, and registration of gradients, by PyTorch's own check."""
    visible_BGG = masks('#').to(device)
    x, rows = torch.randn(1, 2, 2, 8, device=device, requires_grad=True), torch.randn(2, 8, device=device)
    grad, sums = x.detach().flatten(0, 2), torch.ones(2, 4, device=device)
    checks = ('test_schema', 'test_autograd_registration', 'test_faketensor')
    for operator, arguments in {
        'depthwise': [
            (triton_kernels._depthwise, (x, torch.randn(9, 8, device=device), rows[0], *tables(visible_BGG), False)),
            (triton_kernels._depthwise_weight_grad, (x.detach(), x.detach(), *tables(visible_BGG), 3)),
        ],
        'gelu_grn': [
            (triton_kernels._gelu_grn, (x.flatten(1, 2), rows[0], rows[1], 1e-6)),
            (triton_kernels._gelu_grn_backward, (grad[None], grad[None], rows[0], sums.new_ones(1, 8), sums[0, :1])),
        ],
        'layer_norm': [
            (triton_kernels._layer_norm, (x.flatten(0, 2), rows[0], rows[1], 1e-6)),
            (triton_kernels._layer_norm_backward, (grad, grad, rows[0], sums)),
        ],
    }[name]:
        torch.library.opcheck(operator, arguments, test_utils=checks)


# --- without running a kernel ----------------------------------------------------------------------------------------


def test_mistakes_are_named(monkeypatch):
    slots, cells_N = tables(masks('#'))
    x, weight, ones = torch.randn(1, 2, 2, 8), torch.randn(8, 1, 3, 3), torch.ones(8)
    conv = triton_kernels.depthwise_conv
    with pytest.raises(TypeError, match=r'depthwise_conv got torch.float64'):
        conv(x.double(), weight.double(), None, slots, cells_N)
    with pytest.raises(TypeError, match=r'gelu_grn got torch.float64'):
        triton_kernels.gelu_grn(x.double().flatten(1, 2), ones, ones, 1e-6)
    with pytest.raises(TypeError, match=r'layer_norm got torch.float64'):
        triton_kernels.layer_norm(x.double(), ones, ones, 1e-6)
    if not IS_INTERPRETED:
        with pytest.raises(ValueError, match='got values on cpu'):
            conv(x, weight, None, slots, cells_N)
    monkeypatch.setattr(triton_kernels, 'IS_INTERPRETED', True)  # values on the CPU pass
    with pytest.raises(ValueError, match=r'4 x 4; this convolution takes odd sizes up to 13'):
        conv(x, torch.randn(8, 1, 4, 4), None, slots, cells_N)
    with pytest.raises(ValueError, match='15 x 15'):
        conv(x, torch.randn(8, 1, 15, 15), None, slots, cells_N)
    with pytest.raises(ValueError, match='values of 8 channels'):
        conv(x, torch.randn(4, 1, 3, 3), None, slots, cells_N)
    with pytest.raises(ValueError, match='for 1 visible cells'):
        conv(x, weight, None, slots, cells_N.repeat(2))
    with pytest.raises(TypeError, match=r'slots_BGG is torch.int64'):
        conv(x, weight, None, slots.long(), cells_N)
    with pytest.raises(ValueError, match='one number per feature'):
        triton_kernels.gelu_grn(x.flatten(1, 2), ones[:4], ones, 1e-6)
    with pytest.raises(ValueError, match='one number per channel'):
        triton_kernels.layer_norm(x, ones[:4], ones, 1e-6)


@pytest.mark.skipif(IS_INTERPRETED, reason='the interpreter computes on the CPU')
def test_values_on_the_cpu_are_not_for_the_kernels():
    assert not triton_kernels.is_available(torch.zeros(1))
    x, layout = torch.zeros(1, 2, 2, 8), DenseLayout(kernels='triton')
    message = r"kernels='triton' needs .* this is torch.float32 on cpu. Use 'auto'"
    with pytest.raises(ValueError, match=message):
        layout.conv(x, DepthwiseConv(8, 7))
    with pytest.raises(ValueError, match=message):
        GRN(8)(x, layout, after_gelu=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_which_values_on_a_gpu_are_for_the_kernels():
    assert triton_kernels.is_available(torch.zeros(1, device='cuda'))
    assert not triton_kernels.is_available(torch.zeros(1, device='cuda', dtype=torch.float64))


@pytest.mark.parametrize(
    ('dtype', 'expected'), [(torch.bfloat16, 'triton'), (torch.float32, 'triton'), (torch.float64, 'torch')]
)
def test_values_on_a_gpu_are_computed_by_the_kernels_where_they_can(dtype, expected, monkeypatch):
    x = SimpleNamespace(device=torch.device('cuda', 0), dtype=dtype, is_cuda=True, numel=lambda: 1)
    monkeypatch.setattr(triton_kernels, 'IS_INTERPRETED', False)
    for capability, chosen in (((9, 0), expected), ((7, 5), 'torch')):
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index, of=capability: of)
        assert chosen_kernels('auto', x) == chosen
        assert chosen_kernels('torch', x) == 'torch'
    monkeypatch.setattr(triton_kernels, 'triton', None)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index: (9, 0))
    assert chosen_kernels('auto', x) == 'torch'


def test_larger_convolutions_are_left_to_pytorch_unless_the_kernels_are_asked_for(monkeypatch):
    x = torch.zeros(1, 20, 20, 8)
    monkeypatch.setattr(layout, 'chosen_kernels', lambda kernels, x: 'triton')
    small, large = DepthwiseConv(8, 13), DepthwiseConv(8, 15)
    assert layout._kernels_of(x, small, 'auto') == 'triton'
    assert layout._kernels_of(x, large, 'auto') == 'torch'
    assert layout._kernels_of(x, large, 'triton') == 'triton'  # which names the mistake
    assert layout.LARGEST_TRITON_KERNEL == triton_kernels.LARGEST_KERNEL_SIZE


@pytest.mark.skipif(IS_INTERPRETED, reason='once is enough')
def test_the_package_needs_no_triton():
    """The kernels are neither loaded with the models, nor is Triton missed where it is not installed."""
    code = (
        'import sys\n'
        'import mmcnx2.models\n'
        "assert 'mmcnx2.models.layers.triton_kernels' not in sys.modules\n"
        "sys.modules['triton'] = None\n"
        'import torch\n'
        'from mmcnx2.models.layers import triton_kernels\n'
        'assert triton_kernels.triton is None\n'
        'assert not triton_kernels.is_available(torch.zeros(1))\n'
    )
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


class DriverOfAbsentH100:
    """What Triton asks of a GPU, answered for an H100: kernels are compiled to machine code and not started."""

    def __init__(self, folder):
        self.folder, self.utils, self.resources = folder, self, {}

    def get_current_target(self):
        return triton.backends.compiler.GPUTarget('cuda', 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_device_properties(self, device):
        return dict(max_shared_mem=232448, multiprocessor_count=132)

    def get_benchmarker(self):
        def once(start_kernel, quantiles):
            start_kernel()
            return [1.0, 1.0, 1.0]

        return once

    def launcher_cls(self, source, metadata):
        return lambda *arguments: None

    def load_binary(self, name, binary, shared_memory, device):
        (self.folder / 'kernel.cubin').write_bytes(binary)
        tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
        command = [tool, '--dump-resource-usage', self.folder / 'kernel.cubin']
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, stack_bytes = re.search(r'REG:(\d+) STACK:(\d+)', listing).groups()
        self.resources.setdefault(name, []).append((int(registers), int(stack_bytes)))
        return 1, 1, int(registers), 0, 1024


@pytest.fixture
def absent_h100(tmp_path, monkeypatch):
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setattr(triton_kernels, '_check_values', lambda values, name: None)
    monkeypatch.setattr(triton_kernels._depthwise_kernel, 'configs', triton_kernels._depthwise_kernel.configs[:1])
    driver = DriverOfAbsentH100(tmp_path)
    monkeypatch.setattr(triton.runtime.driver, '_active', driver)
    return driver


@pytest.mark.skipif(IS_INTERPRETED or torch.cuda.is_available(), reason='compiled without a GPU')
@pytest.mark.parametrize(
    ('picture', 'P', 'dtype'), [('#.#/.##', 8, torch.bfloat16), ('#', 56, torch.float32)], ids=['visible', 'dense']
)
def test_the_convolution_compiles_for_an_h100_and_keeps_to_registers(picture, P, dtype, absent_h100):
    """The interpreter takes what the compiler refuses. A stack would mean sums in memory, many times slower."""
    visible_BGG = masks(picture)
    cells = torch.zeros(int(visible_BGG.sum()), P, P, 96, dtype=dtype, requires_grad=True)
    weight, bias = torch.zeros(96, 1, 7, 7, requires_grad=True), torch.zeros(96)
    triton_kernels.depthwise_conv(cells, weight, bias, *tables(visible_BGG)).sum().backward()
    resources = absent_h100.resources
    assert {name: len(each) for name, each in resources.items()} == {
        '_depthwise_kernel': 2,
        '_depthwise_weight_grad_kernel': 1,
    }
    assert [stack for each in resources.values() for _, stack in each] == [0, 0, 0]
    ((weight_grad_registers, _),) = resources['_depthwise_weight_grad_kernel']
    assert 3 * 128 * weight_grad_registers <= 65536 or dtype == torch.float32  # three programs at once


@pytest.mark.skipif(IS_INTERPRETED or torch.cuda.is_available(), reason='compiled without a GPU')
def test_the_norms_compile_for_an_h100_and_keep_to_registers(absent_h100):
    x = torch.zeros(2, 4, 384, dtype=torch.bfloat16, requires_grad=True)
    features = torch.zeros(384)
    out = triton_kernels.layer_norm(x, features, features, 1e-6)
    triton_kernels.gelu_grn(out, features, features, 1e-6).sum().backward()
    resources = absent_h100.resources
    assert {name: len(each) for name, each in resources.items()} == {
        '_layer_norm_kernel': 1,
        '_layer_norm_grad_kernel': 1,
        '_feature_sums_kernel': 2,
        '_norms_kernel': 1,
        '_scale_kernel': 1,
        '_parameter_grads_kernel': 1,
        '_scale_grad_kernel': 1,
    }
    assert [stack for each in resources.values() for _, stack in each] == [0] * 8
