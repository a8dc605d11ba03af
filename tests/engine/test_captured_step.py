"""Guards mmcnx2/engine/captured_step.py: recorded steps train as ordinary ones do. Without a GPU the recording is
replaced by calling the work again, which leaves everything but CUDA's own part to test.
"""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS

import mmcnx2  # noqa: F401
from mmcnx2.engine import BF16OptimWrapper
from mmcnx2.engine.captured_step import NUM_ORDINARY, CapturedStep, CapturedStepHook

CUDA = pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'))


class Calls:
    """In the place of a CUDA graph: replaying is doing it again, into the same memory."""

    def __init__(self, model):
        self.model, self.count = model, 0

    def __call__(self, work):
        found = work()
        gradients = [parameter.grad for parameter in self.model.parameters()]

        def replay():
            self.count += 1
            parameters = list(self.model.parameters())
            kept = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None
            for name, value in work().items():
                found[name].copy_(value)
            torch._foreach_copy_(gradients, [parameter.grad for parameter in parameters])
            for parameter, gradient in zip(parameters, kept, strict=True):
                parameter.grad = gradient  # a graph knows memory, not attributes

        return replay, found


@pytest.fixture
def model():
    torch.manual_seed(0)
    backbone = dict(type='mmcnx2.ConvNeXtV2', arch=dict(depths=[1] * 4, channels=[8, 16, 24, 32]))
    preprocessor = dict(type='mmpretrain.SelfSupDataPreprocessor', mean=[100.0] * 3, std=[50.0] * 3)
    return MODELS.build(
        dict(type='mmcnx2.FCMAE', backbone=backbone, neck=dict(decoder_channels=16), data_preprocessor=preprocessor)
    )


def wrapped(model, kind=OptimWrapper):
    """Under SGD clipping shows; under Adam only directions count."""
    return kind(torch.optim.SGD(model.parameters(), lr=10.0, momentum=0.9), clip_grad=dict(max_norm=1e-3))


def batches(device, count=8, size=64):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (count, 4, 3, size, size), generator=generator, dtype=torch.uint8).to(device)
    return [dict(inputs=each, data_samples=None) for each in images]


@pytest.mark.parametrize('device', ['cpu', CUDA])
@pytest.mark.parametrize('kind', [OptimWrapper, BF16OptimWrapper])
def test_recorded_steps_train_as_ordinary_ones(model, device, kind):
    """Also when somebody takes the gradients away between two steps, as the guard against NaN does."""
    model = model.to(device)
    other = copy.deepcopy(model)
    optim, other_optim = wrapped(model, kind), wrapped(other, kind)
    calls = Calls(model) if device == 'cpu' else None
    step = CapturedStep(model, calls)
    visible = torch.tensor([[True, False], [False, True]], device=device).repeat(4, 1, 1)
    for each in (model, other):
        each.draw_visible = lambda images, samples=None: visible
        each.mask_ratio = 0.5
    for batch in batches(device):
        log_vars = step(batch, optim)
        expected = other.train_step(batch, other_optim)
        torch.testing.assert_close(log_vars['loss'], expected['loss'].detach(), rtol=1e-5, atol=0)
        optim.optimizer.zero_grad(set_to_none=True)
    assert calls is None or calls.count == len(batches('cpu')) - NUM_ORDINARY
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('device', ['cpu', CUDA])
def test_masks_differ_from_step_to_step(model, device):
    model = model.to(device)
    step, optim = CapturedStep(model, Calls(model) if device == 'cpu' else None), wrapped(model)
    for group in optim.optimizer.param_groups:
        group['lr'] = 0.0
        group['weight_decay'] = 0.0
    (batch,) = batches(device, 1)
    losses = [step(batch, optim)['loss'].item() for _ in range(8)]
    assert len(set(losses)) > 4  # of the few masks that a grid of 2 x 2 cells has, in four pictures


def test_what_it_returns_is_not_overwritten(model):
    step, optim = CapturedStep(model, Calls(model)), wrapped(model)
    kept = [step(batch, optim)['loss'] for batch in batches('cpu')][-2:]
    assert kept[0].item() != kept[1].item()


def test_batches_of_another_size_and_seeds_are_refused(model):
    step, optim = CapturedStep(model, Calls(model)), wrapped(model)
    for batch in batches('cpu', NUM_ORDINARY + 1):
        step(batch, optim)
    before = copy.deepcopy(model.state_dict())
    (batch,) = batches('cpu', 1)
    with pytest.raises(ValueError, match=r'step of \(4, 3, 64, 64\) and got \(2, 3, 64, 64\).*drop_last=True'):
        step(dict(inputs=batch['inputs'][:2], data_samples=None), optim)
    with pytest.raises(ValueError, match='carry seeds'):
        step(dict(inputs=batch['inputs'], data_samples=[dict(sample_seed=1)] * 4), optim)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Runner:
    def __init__(self, model, optim_wrapper):
        self.model, self.optim_wrapper = model, optim_wrapper


def test_without_a_gpu_steps_stay_ordinary(model, monkeypatch):
    said = []
    monkeypatch.setattr('mmcnx2.engine.captured_step.print_log', lambda text, *_, **__: said.append(text))
    hook, runner = CapturedStepHook(), Runner(model, wrapped(model))
    hook.before_train(runner)
    assert said == ['mmcnx2.CapturedStepHook: there is no GPU, steps stay ordinary.']
    assert 'train_step' not in model.__dict__
    hook.after_train(runner)


def test_the_hook_refuses_what_a_graph_cannot_do(model):
    with pytest.raises(ValueError, match='accumulative_counts=1'):
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), accumulative_counts=2)
        CapturedStepHook().before_train(Runner(model, wrapper))
    from mmengine.model import MMDistributedDataParallel

    monkey = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
    torch.nn.Module.__init__(monkey)
    with pytest.raises(ValueError, match='one GPU'):
        CapturedStepHook().before_train(Runner(monkey, wrapped(model)))


def test_a_step_of_fcmae_looks_at_no_values(model):
    """What a graph needs, as far as it shows without a GPU: the meta device has no values to look at."""
    model = model.to('meta')
    loss = model.loss(torch.empty(4, 3, 64, 64, device='meta'))['loss']
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
