"""Guards mmcnx2/engine/non_finite_guard.py and step_dump.py: a bad step leaves traces on disk, none in the weights."""

import contextlib
import copy
import json
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.model.wrappers import MMFullyShardedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.structures import BaseDataElement
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmcnx2.engine import NonFiniteGuardHook, rendezvous
from mmcnx2.registry import HOOKS, MODELS

NUM_STEPS = 12
GOOD, LOSS, GRADIENT, BOTH, PART = range(5)  # PART: the gradient of one parameter
OPTIMIZERS = {
    'sgd': lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1),
    'adamw': lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


class BadGradient(torch.autograd.Function):
    """The identity, whose gradient is something else."""

    @staticmethod
    def forward(ctx, values, factor):
        ctx.factor = factor
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class Model(BaseModel):
    """A network with batch norm, whose step goes wrong in the way that the batch says."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.GELU(), nn.Linear(5, 1))

    def forward(self, inputs, trouble, data_samples=None, mode='loss'):
        if trouble == BOTH:
            inputs = inputs * float('nan')
        last = self.layers[-1]
        bias = BadGradient.apply(last.bias, float('nan')) if trouble == PART else last.bias
        outputs = nn.functional.linear(self.layers[:-1](inputs), last.weight, bias)
        if trouble == GRADIENT:
            outputs = BadGradient.apply(outputs, float('inf'))
        losses = dict(loss_a=outputs.square().mean(), loss_b=[outputs.mean()], accuracy=outputs.sum().detach() / 0)
        if trouble == LOSS:
            losses['loss_a'] = losses['loss_a'] + float('inf')
        return losses


def batches(troubles: dict[int, int]) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        dict(
            inputs=torch.randn(4, 3, generator=generator),
            trouble=troubles.get(step, GOOD),
            data_samples=[
                BaseDataElement(metainfo=dict(img_path=f'{step}_{index}.png', sample_seed=100 * step + index))
                for index in range(4)
            ],
        )
        for step in range(NUM_STEPS)
    ]


def new_model() -> Model:
    torch.manual_seed(0)
    return Model()


def train(
    work_dir, model, optimizer, data, hook, kind=OptimWrapper, hub=None, start=0, **wrapper_options
) -> SimpleNamespace:
    """mmengine's loop, with one hook: the runner, with `outputs` of all steps."""
    wrapper = kind(optimizer, **wrapper_options)
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, work_dir=work_dir, iter=0, epoch=0, outputs=[])
    runner.message_hub = hub or MessageHub('of this run')
    wrapper.initialize_count_status(model, start, NUM_STEPS)
    hook.before_train(runner)
    for index, batch in enumerate(data):
        hook.before_train_iter(runner, index, batch)
        outputs = model.train_step(batch, wrapper)
        hook.after_train_iter(runner, index, batch, outputs)
        runner.outputs.append(outputs)
        runner.iter += 1
    hook.after_train(runner)
    return runner


def train_by_hand(model, optimizer, data, bad_steps, accumulate=1, max_norm=None) -> None:
    """What should have happened: bad batches are not seen, the steps that they belong to are not made."""
    for step, batch in enumerate(data):
        if step not in bad_steps:
            losses = model(batch['inputs'], GOOD)
            ((losses['loss_a'] + losses['loss_b'][0]) / accumulate).backward()
        if step % accumulate == accumulate - 1:
            if not bad_steps & set(range(step - accumulate + 1, step + 1)):
                if max_norm:
                    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
                optimizer.step()
            optimizer.zero_grad()


def assert_equal_states(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def assert_equal_optimizers(first, second) -> None:
    for one, two in zip(first.state.values(), second.state.values(), strict=True):
        for key, value in one.items():
            assert value is None or torch.equal(value, two[key]), key


@pytest.mark.parametrize('kind', OPTIMIZERS)
@pytest.mark.parametrize('accumulate', [1, 3])
@pytest.mark.parametrize('max_norm', [None, 0.1])
def test_a_bad_step_did_not_happen(tmp_path, kind, accumulate, max_norm):
    """Weights, batch statistics and the optimiser's state equal those of a run that never saw the bad batches."""
    troubles = {0: LOSS, 1: GRADIENT, 5: BOTH, 10: GRADIENT}
    expected, model = new_model(), new_model()
    optimizers = [OPTIMIZERS[kind](one.parameters()) for one in (expected, model)]
    train_by_hand(expected, optimizers[0], batches({}), set(troubles), accumulate, max_norm)
    clip = dict(clip_grad=dict(max_norm=max_norm)) if max_norm else {}
    runner = train(tmp_path, model, optimizers[1], batches(troubles), NonFiniteGuardHook(),
                   accumulative_counts=accumulate, **clip)  # fmt: skip
    assert_equal_states(expected.state_dict(), model.state_dict())
    assert_equal_optimizers(*optimizers)
    # What is logged: no loss where it is not finite, as it was everywhere else
    assert [step for step, outputs in enumerate(runner.outputs) if 'loss' not in outputs] == [0, 5]
    assert sorted(path.name for path in (tmp_path / 'non_finite').glob('*.json')) == [
        f'iter_{step}_rank_0.json' for step in (11, 1, 2, 6)]  # fmt: skip


def test_without_it_one_step_spoils_the_weights(tmp_path):
    model = new_model()
    optimizer = OPTIMIZERS['adamw'](model.parameters())
    train(tmp_path, model, optimizer, batches({5: BOTH}), NonFiniteGuardHook(enabled=False))
    assert model.layers[0].weight.isnan().all()
    assert not list(tmp_path.iterdir())


def test_a_good_run_is_left_alone(tmp_path):
    """Bit-identical to a run without the hook, whose optimiser and model look as before at the end."""
    models = [new_model() for _ in range(2)]
    optimizers = [OPTIMIZERS['adamw'](model.parameters()) for model in models]
    runners = [train(tmp_path, model, optimizer, batches({}), NonFiniteGuardHook(enabled), clip_grad=dict(max_norm=1.0))
               for model, optimizer, enabled in zip(models, optimizers, (False, True), strict=True)]  # fmt: skip
    assert_equal_states(models[0].state_dict(), models[1].state_dict())
    assert [outputs['loss'] for outputs in runners[0].outputs] == [outputs['loss'] for outputs in runners[1].outputs]
    assert not models[1]._forward_hooks and not optimizers[1]._optimizer_step_pre_hooks
    assert runners[1].optim_wrapper.clip_func is nn.utils.clip_grad_norm_
    assert not list(tmp_path.iterdir())


def test_a_run_of_bad_steps_ends_with_what_to_look_at(tmp_path):
    model = new_model()
    data = batches({2: LOSS, 3: LOSS, 5: GRADIENT, 6: LOSS, 7: BOTH})
    with pytest.raises(FloatingPointError) as caught:
        train(tmp_path, model, OPTIMIZERS['sgd'](model.parameters()), data, NonFiniteGuardHook(max_in_row=3))
    said = str(caught.value)
    assert said.startswith('3 steps in a row, up to iteration 8,')
    for hint in ('learning rate (now 0.05', 'warm up', f'{tmp_path}/non_finite/', 'OptimWrapper', 'GRN', '--resume',
                 'keeps the learning rate', 'load_from=CHECKPOINT', 'default_hooks.non_finite_guard'):  # fmt: skip
        assert hint in said
    assert all(values.isfinite().all() for values in model.state_dict().values())
    # The weights themselves
    nn.init.constant_(model.layers[3].bias, float('nan'))
    with pytest.raises(FloatingPointError, match=r'weights themselves are not \(layers.3.bias\)'):
        train(tmp_path, model, OPTIMIZERS['sgd'](model.parameters()), batches({}), NonFiniteGuardHook())


def test_counts_survive_an_interruption(tmp_path):
    """Also in the middle of a step that is gathered from several batches: the resumed run skips it as well."""
    expected, model = new_model(), new_model()
    optimizers = [OPTIMIZERS['sgd'](one.parameters()) for one in (expected, model)]
    train_by_hand(expected, optimizers[0], batches({}), {0, 1, 2, 3, 4}, accumulate=2)
    data = batches({0: LOSS, 1: LOSS, 2: LOSS, 3: LOSS, 4: LOSS})
    first = train(tmp_path, model, optimizers[1], data[:5], NonFiniteGuardHook(), accumulative_counts=2)
    hook = NonFiniteGuardHook(max_in_row=4)
    train(tmp_path, model, optimizers[1], data[5:], hook, hub=first.message_hub, start=5, accumulative_counts=2)
    assert_equal_states(expected.state_dict(), model.state_dict())
    assert hook._num_skipped == 3 and hook._in_row == 0
    with pytest.raises(FloatingPointError):  # four before, one after
        train(tmp_path, model, optimizers[1], data[:4], NonFiniteGuardHook(), hub=first.message_hub)
        train(tmp_path, model, optimizers[1], data[:1], NonFiniteGuardHook(max_in_row=5), hub=first.message_hub)


def test_the_dump_names_files_seeds_losses_and_parameters(tmp_path):
    model = new_model()
    data = batches({4: LOSS, 6: GRADIENT})
    data[4]['inputs'][1, 2] = float('inf')
    train(
        tmp_path, model, OPTIMIZERS['sgd'](model.parameters()), data, NonFiniteGuardHook(), clip_grad=dict(max_norm=1)
    )
    said = json.loads((tmp_path / 'non_finite/iter_5_rank_0.json').read_text())
    assert said['iteration'] == 5 and said['rank'] == 0 and said['not_finite'] == 'loss'
    assert said['losses'].keys() == {'loss_a', 'loss_b'} and said['losses']['loss_a'] in ('inf', 'nan')
    assert said['samples'][1]['img_path'] == '4_1.png' and said['samples'][3]['sample_seed'] == 403
    assert said['samples'][1]['max'] == 'inf' and isinstance(said['samples'][0]['max'], float)
    tensors = load_file(tmp_path / 'non_finite/iter_5_rank_0.safetensors')
    assert torch.equal(tensors['batch.inputs'], data[4]['inputs'])
    assert {'random_state.python', 'random_state.numpy', 'random_state.torch'} <= tensors.keys()
    said = json.loads((tmp_path / 'non_finite/iter_7_rank_0.json').read_text())
    assert said['not_finite'] == 'gradient' and said['lr'] == [0.05]
    # before clipping, which makes all of them NaN: the bias of the norm behind which the trouble arose, and above
    assert 'layers.3.weight' in said['gradients_not_finite']
    assert all(isinstance(value, float) for value in said['losses'].values())


def test_gradients_are_named_as_they_were_before_clipping(tmp_path):
    model = new_model()
    train(tmp_path, model, OPTIMIZERS['sgd'](model.parameters()), batches({3: PART}), NonFiniteGuardHook(),
          clip_grad=dict(max_norm=1))  # fmt: skip
    said = json.loads((tmp_path / 'non_finite/iter_4_rank_0.json').read_text())
    assert said['gradients_not_finite'] == ['layers.3.bias']


def test_dumps_are_limited_in_number_and_size(tmp_path):
    model = new_model()
    hook = NonFiniteGuardHook(max_dumps=2, max_dump_megabytes=30 / 2**20)  # two samples of 12 bytes each
    train(tmp_path, model, OPTIMIZERS['sgd'](model.parameters()), batches({1: LOSS, 3: LOSS, 5: LOSS}), hook)
    assert len(list((tmp_path / 'non_finite').glob('*.json'))) == 2
    said = json.loads((tmp_path / 'non_finite/iter_2_rank_0.json').read_text())
    assert said['left_out_for_size'] == ['batch.inputs: all but the first 2 of 4']
    assert load_file(tmp_path / 'non_finite/iter_2_rank_0.safetensors')['batch.inputs'].shape == (2, 3)


def test_a_dump_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / 'non_finite').write_text('a file where the folder should be')
    model = new_model()
    train(tmp_path, model, OPTIMIZERS['sgd'](model.parameters()), batches({1: LOSS}), NonFiniteGuardHook())
    assert [path.name for path in tmp_path.iterdir()] == ['non_finite']


class ScaledWrapper(OptimWrapper):
    """As mmengine's AmpOptimWrapper, which needs a GPU: the scaler refuses a step with infinite gradients."""

    loss_scaler = 'here'

    def step(self, **kwargs):
        finite = all(parameter.grad.isfinite().all() for parameter in self.optimizer.param_groups[0]['params'])
        self._clip_grad()
        if finite:
            self.optimizer.step()


def test_beside_a_loss_scaler_only_losses_count(tmp_path):
    model, expected = new_model(), new_model()
    optimizers = [OPTIMIZERS['adamw'](one.parameters()) for one in (expected, model)]
    train_by_hand(expected, optimizers[0], batches({}), {2, 4, 6, 7, 8})
    troubles = {2: LOSS, 4: BOTH, 6: GRADIENT, 7: GRADIENT, 8: GRADIENT}
    runner = train(tmp_path, model, optimizers[1], batches(troubles), NonFiniteGuardHook(max_in_row=2),
                   ScaledWrapper, clip_grad=dict(max_norm=1e9))  # fmt: skip
    assert_equal_optimizers(*optimizers)
    for one, two in zip(expected.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert [step for step, outputs in enumerate(runner.outputs) if 'loss' not in outputs] == [2, 4]
    assert len(list((tmp_path / 'non_finite').glob('*.json'))) == 2


def test_settings_out_of_range_are_named():
    assert HOOKS.build(dict(type='mmcnx2.NonFiniteGuardHook', max_in_row=1)).max_in_row == 1
    for options in (dict(max_in_row=0), dict(max_dumps=-1), dict(max_dump_megabytes=0)):
        with pytest.raises(ValueError, match=next(iter(options))):
            NonFiniteGuardHook(**options)


# ---- several processes


def _one_of_two(rank: int, folder, accumulate: int, sharded: bool) -> None:
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    _train_as_one_of_two(rank, folder, accumulate, sharded)
    rendezvous.part()


def _train_as_one_of_two(rank: int, folder, accumulate: int, sharded: bool) -> None:
    troubles = [{3: PART}, {1: LOSS, 3: PART, 6: BOTH}][rank]
    if sharded:  # the parameter of PART lies in one process alone
        model = MMFullyShardedDataParallel(new_model(), use_orig_params=True, device_id=torch.device('cpu'))
    else:
        model = MMDistributedDataParallel(new_model(), device_ids=None, broadcast_buffers=False)
    optimizer = OPTIMIZERS['adamw'](model.parameters())
    hook = NonFiniteGuardHook()
    train(folder, model, optimizer, batches(troubles), hook, accumulative_counts=accumulate)
    with FullyShardedDataParallel.summon_full_params(model) if sharded else contextlib.nullcontext():
        state = {name: parameter.clone() for name, parameter in model.module.named_parameters()}
    torch.save((state, hook._num_skipped), f'{folder}/{rank}.pth')


@pytest.mark.parametrize(('accumulate', 'sharded'), [(1, False), (2, False), (1, True)])
def test_two_processes_skip_the_same_steps(tmp_path, accumulate, sharded):
    mp.start_processes(_one_of_two, args=(tmp_path, accumulate, sharded), nprocs=2, start_method='spawn')
    (first, num_first), (second, num_second) = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    assert_equal_states(first, second)  # both saw the same pictures otherwise
    assert num_first == num_second == 3
    expected = new_model()
    train_by_hand(expected, OPTIMIZERS['adamw'](expected.parameters()), batches({}), {1, 3, 6}, accumulate)
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(first[name], parameter, rtol=1e-5, atol=1e-6)
    # The process whose loss was bad tells; both do when none was
    names = sorted(path.name for path in (tmp_path / 'non_finite').glob('*.json'))
    assert names == ['iter_2_rank_1.json', 'iter_4_rank_0.json', 'iter_4_rank_1.json', 'iter_7_rank_1.json']


# ---- FCMAE

FCMAE = dict(
    type='mmcnx2.FCMAE', backbone=dict(type='mmcnx2.ConvNeXtV2', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8])),
    neck=dict(decoder_channels=16),
    data_preprocessor=dict(type='mmpretrain.SelfSupDataPreprocessor', mean=[0.5] * 3, std=[2.0] * 3),
)  # fmt: skip


@pytest.mark.parametrize('seeded', [True, False])
def test_fcmae_with_a_nan_image(tmp_path, seeded):
    """The step is skipped, the image is named, and the dump holds the mask that was used."""
    import mmpretrain.models  # noqa: F401  (its data preprocessor)

    torch.manual_seed(0)
    model = MODELS.build(FCMAE)
    used = []
    draw = model.draw_visible
    model.draw_visible = lambda *args: used.append(draw(*args)) or used[-1]
    data = [dict(inputs=list(torch.rand(4, 3, 64, 96)), data_samples=[
        BaseDataElement(metainfo=dict(img_path=f'{step}_{index}.tif', **(dict(sample_seed=index) if seeded else {})))
        for index in range(4)]) for step in range(4)]  # fmt: skip
    data[2]['inputs'][3][0, 5, 7] = float('nan')
    data = [dict(inputs=torch.stack(batch['inputs']), data_samples=batch['data_samples']) for batch in data]
    before = copy.deepcopy(data[2]['inputs'])
    runner = train(tmp_path, model, torch.optim.AdamW(model.parameters(), lr=1e-3), data, NonFiniteGuardHook())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert 'loss' in runner.outputs[3] and not runner.outputs[2]
    said = json.loads((tmp_path / 'non_finite/iter_3_rank_0.json').read_text())
    assert [sample['max'] == 'nan' for sample in said['samples']] == [False, False, False, True]
    assert said['samples'][3]['img_path'] == '2_3.tif'
    tensors = load_file(tmp_path / 'non_finite/iter_3_rank_0.safetensors')
    assert torch.equal(tensors['batch.inputs'], before) or torch.equal(tensors['batch.inputs'].isnan(), before.isnan())
    assert torch.equal(tensors['visible'], used[2]) and len(used) == 5
