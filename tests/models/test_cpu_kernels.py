"""The C++ kernels against PyTorch's operators in float64, and the choice between them. The slow way is the layout's own
with kernels='torch', which tests/models/test_layout.py holds against masked dense maps.
"""

import platform
import warnings

import pytest
import torch
import torch.nn.functional as F
from mmengine.analysis import get_model_complexity_info
from mmengine.registry import MODELS

from mmcnx2.models.fcmae.masking import random_visible
from mmcnx2.models.layers import GRN, DenseLayout, DepthwiseConv, VisibleLayout, cpu_kernels, layout

# images, rows and columns of cells, positions per side of a cell, channels; None for the grid: ordinary maps
VISIBLE = [(2, 3, 2, 8, 24), (3, 2, 4, 1, 16), (2, 3, 3, 2, 40), (1, 1, 5, 4, 5), (2, 2, 3, 16, 17)]
DENSE = [(1, 5, 9, 40), (2, 7, 14, 16), (3, 1, 1, 33), (1, 40, 300, 20), (2, 56, 28, 3)]
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1.5e-2}  # of the largest value


def worst(got, expected) -> float:
    return float((got.detach().double() - expected.detach()).abs().max() / expected.detach().abs().max())


def gradients(output, weight, inputs):
    return torch.autograd.grad((output * weight).sum(), inputs)


def visible_case(images, rows, columns, size, channels, dtype):
    visible = random_visible(images, (rows, columns), 0.5, seeds=list(range(images)))
    x = torch.randn(images, int(rows * columns * 0.5), size, size, channels).to(dtype)
    return x, lambda kernels: VisibleLayout(visible, kernels=kernels)


def dense_case(images, height, width, channels, dtype):
    return torch.randn(images, height, width, channels).to(dtype), lambda kernels: DenseLayout(kernels=kernels)


def check_convolution(x, make_layout, dtype):
    conv = DepthwiseConv(x.shape[-1], 7)
    torch.nn.init.normal_(conv.weight)
    torch.nn.init.normal_(conv.bias)
    x.requires_grad_()
    weight = torch.randn(x.shape).to(dtype)
    out = conv(x, make_layout('cpp'))
    assert out.dtype == dtype
    got = [out, *gradients(out, weight, [x, conv.weight, conv.bias])]
    x64 = x.detach().double().requires_grad_()
    conv.double()
    out = conv(x64, make_layout('torch'))
    expected = [out, *gradients(out, weight.double(), [x64, conv.weight, conv.bias])]
    assert all(gradient.abs().max() > 0 for gradient in expected)
    assert max(map(worst, got, expected)) < TOLERANCE[dtype]


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('case', VISIBLE)
def test_convolution_of_visible_cells(case, dtype):
    check_convolution(*visible_case(*case, dtype), dtype)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('case', DENSE)
def test_convolution_of_a_map(case, dtype):
    """Among them maps that are cut into several bands, and maps smaller than the kernel."""
    check_convolution(*dense_case(*case, dtype), dtype)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('grn_over', ['image', 'batch'])
@pytest.mark.parametrize('shape', [(2, 9, 15, 40), (3, 1, 1, 16), (2, 8, 8, 5)])
def test_gelu_and_grn(shape, grn_over, dtype, randomise):
    grn = randomise(GRN(shape[-1], eps=0.1))  # large enough to be seen
    x = (3 * torch.randn(shape)).to(dtype)
    x[..., 1] = 0  # a channel without anything
    x[0, 0, 0, :4] = torch.tensor([40.0, -40.0, 1e-4, -1e-4]).to(dtype)
    x.requires_grad_()
    weight = torch.randn(shape).to(dtype)
    got, expected = [], []
    for results, kernels, double in ((got, 'cpp', False), (expected, 'torch', True)):
        values = x.detach().double().requires_grad_() if double else x
        grn = grn.double() if double else grn
        out = grn(values, DenseLayout(grn_over=grn_over, kernels=kernels), after_gelu=True)
        assert out.dtype == values.dtype
        results += [out, *gradients(out, weight.to(out.dtype), [values, grn.gamma, grn.beta])]
    assert max(map(worst, got, expected)) < TOLERANCE[dtype]
    assert torch.isfinite(got[1]).all()


def test_gelu_is_the_exact_one():
    """To float32's precision, over the range in which it is neither 0 nor x: not the tanh form (3e-4 off)."""
    x = torch.linspace(-9, 9, 40_000).view(1, -1, 1)
    y = cpu_kernels.gelu_grn(x, torch.zeros(1), torch.zeros(1), 1e-6)
    scale = x.abs().clamp(min=1)
    assert ((y.double() - F.gelu(x.double())).abs() / scale).max() < 3e-7
    slope = torch.ops.mmcnx2.gelu_grn_backward(torch.ones_like(x), x, torch.zeros(1), torch.ones(1, 1), 1e-6)[0]
    x64 = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(F.gelu(x64).sum(), x64)
    assert (slope.double() - expected).abs().max() < 5e-7
    far = torch.tensor([-1e4, -40.0, -6.5, 6.5, 40.0, 1e4]).view(1, -1, 1)
    y = cpu_kernels.gelu_grn(far, torch.zeros(1), torch.zeros(1), 1e-6)
    assert ((y - far.clamp(min=0)).abs() < 1e-7 * far.abs()).all()


def test_in_place_the_same_bits():
    x, gamma, beta = torch.randn(3, 70, 20) * 3, torch.randn(20), torch.randn(20)
    expected = cpu_kernels.gelu_grn(x, gamma, beta, 1e-6)
    cpu_kernels.gelu_grn_in_place(x, gamma, beta, 1e-6)
    assert torch.equal(x, expected)


@pytest.mark.parametrize('x', [torch.zeros(1, 4, 8).bfloat16(), torch.zeros(1, 8, 4).mT])
def test_in_place_refuses_what_it_would_spoil(x):
    with pytest.raises(ValueError, match='contiguous float32'):
        cpu_kernels.gelu_grn_in_place(x, torch.zeros(8), torch.zeros(8), 1e-6)


def test_nan_is_not_swallowed():
    """The guard against broken steps has to see it."""
    x = torch.ones(1, 4, 20)
    x[0, 2, 17] = float('nan')
    for dtype in TOLERANCE:
        y = cpu_kernels.gelu_grn(x.to(dtype), torch.ones(20), torch.zeros(20), 1e-6)
        assert y.isnan().all()  # through the mean over channels
        out = DepthwiseConv(20, 7)(x.to(dtype).view(1, 2, 2, 20), DenseLayout(kernels='cpp'))
        assert out[..., 17].isnan().all() and not out[..., :17].isnan().any()


def test_bfloat16_is_rounded_to_the_nearest():
    """Ties to even, as PyTorch does; cutting off would double the error. All bits set is a NaN too."""
    x = torch.randn(1, 4000, 16).bfloat16()
    y = cpu_kernels.gelu_grn(x, torch.zeros(16), torch.zeros(16), 1e-6)
    assert (y == F.gelu(x.double()).bfloat16()).float().mean() > 0.999
    conv = DepthwiseConv(16, 7)
    conv.bias.data.copy_(torch.full((16,), -1, dtype=torch.int32).view(torch.float32))
    assert conv(x.view(1, 40, 100, 16), DenseLayout(kernels='cpp')).isnan().all()


def test_values_may_lie_in_memory_in_any_order(randomise):
    """Those of a gradient too: that of a sum is one number, seen at every position."""
    conv, grn = randomise(DepthwiseConv(8, 7)), randomise(GRN(8))
    x = torch.randn(2, 8, 5, 6).permute(0, 2, 3, 1).requires_grad_()
    assert not x.is_contiguous()
    for layer, options in ((conv, {}), (grn, dict(after_gelu=True))):
        got, expected = (layer(x, DenseLayout(kernels=kernels), **options) for kernels in ('cpp', 'torch'))
        torch.testing.assert_close(got, expected)
        got, expected = (torch.autograd.grad(y.sum(), [x, *layer.parameters()]) for y in (got, expected))
        torch.testing.assert_close(got, expected)


def test_numbers_do_not_depend_on_the_threads():
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            torch.manual_seed(0)
            x, make_layout = visible_case(4, 3, 3, 8, 48, torch.float32)
            x.requires_grad_()
            conv, grn = DepthwiseConv(48, 7), GRN(48)
            torch.nn.init.normal_(grn.gamma)
            out = grn(conv(x, make_layout('cpp')), make_layout('cpp'), after_gelu=True)
            weight = torch.randn_like(out)
            results.append([out, *gradients(out, weight, [x, conv.weight, conv.bias, grn.gamma, grn.beta])])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize('kind', ['visible', 'dense'])
@pytest.mark.parametrize('kernels', ['cpp', 'torch'])
def test_an_image_does_not_depend_on_its_neighbours_in_the_batch(build_fcmae, kind, kernels):
    """Bit for bit, in float32."""
    model = build_fcmae(dtype=torch.float32, layout=kind)
    model.backbone.kernels = kernels
    images = torch.randn(3, 3, 96, 128)
    visible = random_visible(3, (3, 4), 0.6, seeds=[1, 2, 3])
    features = model.encode(images, visible)
    images[1:] = 5 * torch.randn(2, 3, 96, 128)
    visible[1:] = random_visible(2, (3, 4), 0.6, seeds=[4, 5])
    assert torch.equal(model.encode(images, visible)[0], features[0])
    assert not torch.equal(model.encode(images, visible)[1], features[1])


@pytest.mark.parametrize('autocast', [False, True])
def test_a_training_step_is_as_exact_as_pytorchs(build_fcmae, autocast):
    """Loss and gradients of the whole model against float64, also under autocast to bfloat16."""
    images, visible = torch.randn(2, 3, 96, 128), random_visible(2, (3, 4), 0.6, seeds=[1, 2])
    steps = {}
    for name, kernels, dtype in (
        ('float64', 'auto', torch.float64),
        ('torch', 'torch', torch.float32),
        ('cpp', 'cpp', torch.float32),
    ):
        model = build_fcmae(dtype=dtype)
        model.backbone.kernels = model.neck.kernels = kernels
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast and dtype == torch.float32):
            loss = model.loss(images.to(dtype), visible=visible)['loss']
        loss.backward()
        steps[name] = [loss, *(parameter.grad for parameter in model.parameters())]
    errors = {name: max(map(worst, steps[name], steps['float64'])) for name in ('torch', 'cpp')}
    assert errors['cpp'] < 1.5 * errors['torch'], errors
    assert errors['cpp'] < (0.3 if autocast else 2e-5), errors


def test_compiled_without_a_graph_break(build_fcmae):
    """The whole step is one graph, kernels included, and its gradients are those of the plain step."""
    model = build_fcmae(dtype=torch.float32)
    images, visible = torch.randn(2, 3, 64, 96), random_visible(2, (2, 3), 0.6, seeds=[1, 2])
    of_these = model._layout_of(visible)
    compiled = torch.compile(model.backbone, backend='aot_eager', fullgraph=True)
    outputs = [encoder(images, of_these)[-1] for encoder in (model.backbone, compiled)]
    torch.testing.assert_close(*outputs)
    parameters = list(model.backbone.parameters())
    for a, b in zip(*(gradients(output, output.detach() + 1, parameters) for output in outputs), strict=True):
        torch.testing.assert_close(a, b)


def test_operators_are_well_formed():
    """torch's own check of schemas and fake results, and of strides, which torch.compile relies on; gradients are
    checked above."""
    checks = ('test_schema', 'test_faketensor')
    cells, weight, bias = torch.randn(4, 2, 3, 20), torch.randn(20, 1, 7, 7), torch.randn(20)
    rest = (torch.tensor([0, 3, 4, 7]), 2, [2, 2])
    x, norms = torch.randn(2, 6, 20), torch.rand(2, 20)
    for operator, arguments in (
        (torch.ops.mmcnx2.depthwise, (cells, weight, bias, *rest)),
        (torch.ops.mmcnx2.depthwise_backward, (cells, cells, weight, *rest)),
        (torch.ops.mmcnx2.gelu_grn, (x, bias, bias, 1e-6)),
        (torch.ops.mmcnx2.gelu_grn_backward, (x, x, bias, norms, 1e-6)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=checks)
        results = operator(*arguments)
        assert all(each.is_contiguous() for each in (results if isinstance(results, tuple) else [results]))


def test_a_second_derivative_is_refused_rather_than_wrong():
    x = torch.randn(1, 4, 4, 20, requires_grad=True)
    for layer, options in ((DepthwiseConv(20, 7), {}), (GRN(20), dict(after_gelu=True))):
        y = layer(x, DenseLayout(kernels='cpp'), **options)
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match='once_differentiable'):
            grad.sum().backward()


# ---- the choice


def test_what_is_asked_for_computes(monkeypatch):
    calls = []
    monkeypatch.setattr(cpu_kernels, 'depthwise', lambda cells, *_: calls.append(cells.dtype) or cells)
    conv, x = DepthwiseConv(8, 7), torch.randn(1, 4, 4, 8)
    conv(x, DenseLayout(kernels='auto'))
    assert calls.pop() == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        conv(x, DenseLayout(kernels='auto'))
    assert calls.pop() == torch.bfloat16
    conv(x, DenseLayout(kernels='torch'))
    conv.double()(x.double(), DenseLayout(kernels='auto'))
    DepthwiseConv(8, 5)(x, DenseLayout(kernels='auto'))
    DepthwiseConv(8, 7)(x, DenseLayout(torch.ones(1, 1, 1, dtype=torch.bool)))  # masked maps: the yardstick
    assert not calls
    with pytest.raises(ValueError, match="'cpp' computes float32 and bfloat16 on the CPU; this is torch"):
        conv(x.double(), DenseLayout(kernels='cpp'))
    with pytest.raises(ValueError, match="kernels='fast' is not known; choose one of"):
        DenseLayout(kernels='fast')


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """As on a machine where nothing has been compiled yet."""
    monkeypatch.setenv('MMCNX2_CACHE', str(tmp_path / 'cache'))
    for function in (cpu_kernels._warn, cpu_kernels._load):
        function.cache_clear()
    yield tmp_path / 'cache' / 'kernels'
    for function in (cpu_kernels._warn, cpu_kernels._load):
        function.cache_clear()


def test_it_is_compiled_once(unbuilt, monkeypatch):
    cpu_kernels.library()
    (built,) = unbuilt.iterdir()
    cpu_kernels._load.cache_clear()
    monkeypatch.setattr(cpu_kernels, 'build', lambda *_: pytest.fail('compiled again'))
    cpu_kernels.library()
    assert [built] == list(unbuilt.iterdir())


@pytest.mark.skipif(platform.machine() != 'x86_64', reason='names an instruction set of x86')
@pytest.mark.parametrize('dtype', TOLERANCE)
def test_processors_without_avx_512(unbuilt, monkeypatch, dtype, randomise):
    """Registers half as wide, and another way to GELU."""
    monkeypatch.setattr(cpu_kernels, 'COMPILE', (*cpu_kernels.COMPILE, '-mno-avx512f'))
    test_gelu_is_the_exact_one()
    test_nan_is_not_swallowed()
    test_bfloat16_is_rounded_to_the_nearest()
    for case in VISIBLE:
        check_convolution(*visible_case(*case, dtype), dtype)
    for case in DENSE:
        check_convolution(*dense_case(*case, dtype), dtype)
    test_gelu_and_grn((3, 5, 14, 20), 'image', dtype, randomise)


@pytest.mark.parametrize(
    ('compiler', 'message'),
    [('/nowhere/cxx', r'no C\+\+ compiler: install g\+\+'), ('false', r'could not compile cpu_kernels.cpp.*in \$CXX')],
)
def test_without_a_compiler_torch_computes_after_one_warning(unbuilt, monkeypatch, compiler, message):
    monkeypatch.setenv('CXX', compiler)
    monkeypatch.setattr(cpu_kernels, 'COMPILERS', ())
    conv, x = DepthwiseConv(8, 7), torch.randn(1, 4, 4, 8)
    with pytest.warns(UserWarning, match=message):
        got = conv(x, DenseLayout())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        conv(x, DenseLayout())
    torch.testing.assert_close(got, conv(x, DenseLayout(kernels='torch')))
    with pytest.raises(cpu_kernels.KernelBuildError, match=message):
        conv(x, DenseLayout(kernels='cpp'))
    assert not unbuilt.exists() or not list(unbuilt.iterdir())


def test_a_damaged_file_is_named(unbuilt):
    path = cpu_kernels.library_path(cpu_kernels.find_compiler())
    path.parent.mkdir(parents=True)
    path.write_bytes(b'not a library')
    with pytest.raises(cpu_kernels.KernelBuildError, match=f'{path}.*delete the file'):
        cpu_kernels.library()


def test_a_model_hands_its_choice_on(micro, monkeypatch):
    """From the backbone's argument to both layouts of FCMAE, the encoder's and the decoder's."""
    chosen = []
    monkeypatch.setattr(layout, 'chosen_kernels', lambda kernels, x: chosen.append(kernels) or 'torch')
    for given in ('torch', 'cpp'):
        model = MODELS.build(
            dict(type='mmcnx2.FCMAE', backbone=dict(type='mmcnx2.ConvNeXtV2', arch=micro, kernels=given))
        )
        model.loss(torch.randn(1, 3, 64, 64))
        assert chosen == [given] * (5 + 1)
        chosen.clear()
    model.backbone(torch.randn(1, 3, 64, 64))
    assert chosen == ['cpp'] * 5
    with pytest.raises(ValueError, match="kernels='fast' is not known"):
        MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch=micro, kernels='fast'))


def test_a_compiler_that_does_not_start_is_one_that_is_not_there(unbuilt, monkeypatch, tmp_path):
    (tmp_path / 'compiler').write_text('#!/nowhere/interpreter')
    (tmp_path / 'compiler').chmod(0o755)
    monkeypatch.setenv('CXX', str(tmp_path / 'compiler'))
    conv, x = DepthwiseConv(8, 7), torch.randn(1, 4, 4, 8)
    with pytest.warns(UserWarning, match='compiler does not start .* in \\$CXX'):
        torch.testing.assert_close(conv(x, DenseLayout()), conv(x, DenseLayout(kernels='torch')))


@pytest.mark.parametrize('with_gradients', [True, False])
def test_a_traced_model_is_pytorchs_and_is_counted_whole(micro, randomise, with_gradients):
    """OpenMMLab's FLOP counter and TorchScript trace; our operators would be left out, or refused."""
    images = torch.randn(1, 3, 64, 64)
    flops = {}
    for kernels in ('auto', 'torch'):
        model = randomise(MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch=micro, kernels=kernels))).eval()
        with torch.set_grad_enabled(with_gradients):
            traced = torch.jit.trace(model, images)
        torch.testing.assert_close(traced(images)[0], model(images)[0])
        flops[kernels] = get_model_complexity_info(model, inputs=(images,), show_table=False)['flops']
    assert flops['auto'] == flops['torch'] > 100_000


def test_no_images_are_no_error(micro):
    model = MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch=micro, kernels='auto')).eval()
    for with_gradients in (True, False):
        with torch.set_grad_enabled(with_gradients):
            assert model(torch.zeros(0, 3, 64, 64))[0].shape == (0, 32, 2, 2)


def test_float16_autocast_goes_to_pytorch(micro, randomise):
    """V1 adds in float32, so the next convolution's values are float32 until autocast narrows them."""
    arch = dict(type='mmcnx2.ConvNeXtV2', arch=micro, use_grn=False, layer_scale_init_value=0.5)
    maps = []
    for kernels in ('auto', 'torch'):
        model = randomise(MODELS.build(dict(**arch, kernels=kernels))).eval()
        with torch.autocast('cpu', dtype=torch.float16):
            maps.append(model(torch.ones(1, 3, 64, 64))[0])
    assert maps[0].equal(maps[1])
