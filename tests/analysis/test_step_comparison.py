"""The order of a comparison, its parity column and its quotients, on models of a few numbers; and how tables say it."""

import contextlib
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmcnx2.analysis.speed import Timing
from mmcnx2.analysis.speed_report import case_sections, comparison_lines, different, milliseconds, page, to_json
from mmcnx2.analysis.step_comparison import (
    Candidate,
    Comparison,
    Options,
    check_parity,
    compare,
    compiled,
    measure,
    steps_of,
)
from mmcnx2.analysis.step_floor import encoder_work


def linear(scale: float = 1.0) -> nn.Linear:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(scale * torch.arange(12.0).view(3, 4))
        model.bias.fill_(0.5)
    return model


X = torch.tensor([[1.0, -2.0, 3.0, 0.5]])


def candidate(name, model=None, equals=None, **others) -> Candidate:
    return Candidate(name, model or linear(), lambda run: [run(X)], equals, **others)


def test_a_step_is_the_gradient_of_the_sum_of_squares_and_starts_from_none():
    mine = candidate('mine')
    steps = steps_of(mine, Options())
    for _ in range(2):  # gradients do not add up
        steps['step'].prepare()
        steps['step'].run()
    expected = 2 * mine.model(X).detach().T @ X
    torch.testing.assert_close(mine.model.weight.grad, expected)
    steps['forward'].prepare()
    outputs = steps['forward'].run()
    assert not outputs[0].requires_grad and mine.model.weight.grad is None
    assert list(steps_of(mine, Options(with_backward=False))) == ['forward']


def test_bf16_is_autocast():
    assert steps_of(candidate('mine'), Options(dtype='bf16'))['forward'].run()[0].dtype == torch.bfloat16
    assert steps_of(candidate('mine'), Options())['forward'].run()[0].dtype == torch.float32


def test_parity_tells_equal_from_different():
    checks = check_parity(
        [
            candidate('right', equals='reference'),
            candidate('reference'),
            candidate('wrong', linear(1.01), equals='reference'),
            candidate('lonely', equals='nobody'),
        ],
        Options(),
    )
    assert set(checks) == {'right', 'wrong'}
    assert checks['right'] == dict(
        outputs=0.0, gradients=0.0, gradient='weight', is_same=True, against='reference', condition=None
    )
    assert not checks['wrong']['is_same'] and checks['wrong']['outputs'] == pytest.approx(0.01, rel=0.2)


def test_gradients_count_too():
    """The same outputs, but a part of them is cut off from its gradient."""
    model = linear()
    cut = Candidate('cut', model, lambda run: [run(X.clone()).detach() + 0 * run(X)], 'reference')
    check = check_parity([candidate('reference'), cut], Options())['cut']
    assert check['outputs'] == 0 and check['gradients'] == 1 and not check['is_same']
    assert check_parity([candidate('reference'), cut], Options(with_backward=False))['cut']['is_same']
    without = replace(cut, gradients=lambda: {'weight': torch.ones(3, 4)})
    check = check_parity([candidate('reference'), without], Options())['cut']
    assert check['gradients'] is None and check['gradient'] == 'bias' and not check['is_same']


def test_other_shapes_and_nan_are_different():
    for call in (lambda run: [run(X), run(X)], lambda run: [run(X)[:, :2]], lambda run: [run(X) * float('nan')]):
        odd = Candidate('odd', linear(), call, 'reference')
        check = check_parity([candidate('reference'), odd], Options(with_backward=False))['odd']
        assert check['outputs'] is None and not check['is_same']


def test_a_condition_holds_for_both_sides_and_only_for_the_check():
    biased, reference = linear(), linear()
    with torch.no_grad():
        biased.bias.fill_(7)

    @contextlib.contextmanager
    def without_bias(mine, theirs):
        before = [each.model.bias.detach().clone() for each in (mine, theirs)]
        for each in (mine, theirs):
            each.model.bias.data.zero_()
        yield
        for each, bias in zip((mine, theirs), before, strict=True):
            each.model.bias.data.copy_(bias)

    conditional = candidate('biased', biased, 'reference', condition=(without_bias, 'without bias'))
    plain = candidate('plain', linear(), 'reference')
    checks = check_parity([candidate('reference', reference), conditional, plain], Options())
    assert checks['biased']['is_same'] and checks['biased']['condition'] == 'without bias'
    assert checks['plain']['is_same']  # its reference is computed anew, with the bias
    assert biased.bias.tolist() == [7] * 3 and reference.bias.tolist() == [0.5] * 3
    assert not check_parity([candidate('reference', reference), replace(conditional, condition=None)], Options())[
        'biased'
    ]['is_same']


def test_in_bf16_everything_is_held_against_float32():
    uneven = [linear(1.003) for _ in range(2)]  # values that bfloat16 has to round
    both = [candidate('reference', uneven[0]), candidate('same', uneven[1], equals='reference')]
    checks = check_parity(both, Options(dtype='bf16'))
    assert checks['reference']['against'] == 'reference'
    assert 0 < checks['reference']['gradients'] < 0.1 and checks['same']['is_same']


def test_a_compiled_candidate_runs_the_compiled_form_on_the_same_parameters(monkeypatch):
    def compile_as_marked(model, dynamic):
        return lambda x: model(x) + 1

    monkeypatch.setattr(torch, 'compile', compile_as_marked)
    plain = candidate('plain', work=lambda with_backward: [])
    marked = compiled(plain)
    assert marked.name == 'plain, compiled' and marked.equals == 'plain' and marked.work is None
    assert torch.equal(marked.forward()[0], plain.forward()[0] + 1) and marked.model is plain.model
    assert compiled(candidate('peer', equals='ours')).equals == 'ours'


# ---- quotients


TIMINGS = {
    ('ours', 'step'): Timing((1.0, 2.0, 3.0)),
    ('slow', 'step'): Timing((9.0, 9.0, 9.0)),
    ('fast', 'step'): Timing((2.0, 5.0, 4.0)),
    ('ours', 'forward'): Timing((1.0, 1.0, 1.0)),
    ('slow', 'forward'): Timing((2.0, 2.0, 2.0)),
    ('fast', 'forward'): Timing((4.0, 4.0, 4.0)),
}
MEMORY = {'ours': 50, 'slow': 80, 'fast': 100}


def test_the_opponent_is_the_best_of_each_phase():
    asked = Comparison('ours / fastest', 'ours', ('slow', 'fast', 'absent'), ('step', 'forward', 'peak memory'))
    step, forward, memory = compare(asked, TIMINGS, MEMORY, ('forward', 'step'))
    assert (step['against'], step['ratio'], step['low'], step['high']) == ('fast', 0.5, 0.45, 0.625)
    assert (forward['against'], forward['ratio']) == ('slow', 0.5)
    assert (memory['against'], memory['ratio']) == ('slow', 0.625)
    case = dict(comparisons=[step, forward, memory])
    assert comparison_lines(case) == [
        '* ours / fastest: step 0.500 (0.450 to 0.625) of fast; forward 0.500 (0.500 to 0.500) of slow; '
        'peak memory 0.62 of slow'
    ]


def test_what_was_not_measured_is_not_compared():
    asked = Comparison('x', 'ours', ('slow',), ('step', 'forward', 'peak memory'))
    assert [each['phase'] for each in compare(asked, TIMINGS, {}, ('forward',))] == ['forward']
    assert compare(Comparison('x', 'absent', ('slow',)), TIMINGS, MEMORY, ('forward', 'step')) == []
    assert compare(Comparison('x', 'ours', ('absent',)), TIMINGS, MEMORY, ('forward', 'step')) == []


# ---- together


def test_everything_is_measured_and_written():
    said = []
    work = encoder_work([1], [8], [6], with_backward=True)
    case = measure(
        [
            candidate('ours', work=lambda with_backward: work, notes=('a note',)),
            candidate('same', equals='ours'),
            candidate('wrong', linear(2.0), equals='ours'),
        ],
        [Comparison('same / ours', 'same', ('ours',), ('forward', 'step', 'peak memory'))],
        Options(num_rounds=3, with_profile=True, floor_seconds=0),
        said.append,
    )
    assert [row['name'] for row in case['candidates']] == ['ours', 'same', 'wrong']
    assert all(len(row[phase]['seconds']) == 3 for row in case['candidates'] for phase in ('forward', 'step'))
    assert all(row['peak_bytes'] is not None for row in case['candidates'])
    assert different(case) == ['wrong'] and case['candidates'][0]['parity'] is None
    assert set(case['profiles']) == {'ours', 'same', 'wrong'} and set(case['floors']) == {'ours'}
    assert case['floors']['ours']['multiply_adds'] == sum(
        each.product.multiply_adds if each.product else each.multiply_adds for each in work
    )
    assert 'round 3 of 3' in said and 'memory: same' in said
    case |= dict(title='toy', not_run=['spark: not installed'])
    text = '\n\n'.join(case_sections(case))
    wrong = next(line for line in text.splitlines() if line.startswith('| wrong'))
    assert wrong.count('DIFFERENT') == 2 and 'wrong: other outputs or gradients' in text
    assert '* ours: a note' in text and '* not run: spark: not installed' in text and '* same / ours: ' in text
    assert 'G multiply-adds per second' in text and '### Operators: ours, step' in text
    machine = dict(processor='p', cores=2, accelerator='no GPU')
    results = dict(
        title='Title', cases=[case], command='python x', setup=dict(threads=2), machine=machine,
        versions=dict(torch='1'), finished='today',
    )  # fmt: skip
    assert json.loads(to_json(results))['cases'][0]['candidates'][2]['parity']['is_same'] is False
    written = page(results)
    assert written.startswith('# Title\n') and 'threads 2; p, 2 cores, no GPU; torch 1; today.' in written


def test_inference_alone_needs_no_gradients():
    with torch.no_grad():
        model = linear()
    model.requires_grad_(False)
    case = measure([candidate('ours', model)], [], Options(with_backward=False, num_rounds=1, with_memory=False))
    assert set(case['candidates'][0]) >= {'forward'} and 'step' not in case['candidates'][0]
    assert case['candidates'][0]['peak_bytes'] is None
    assert 'gradients' not in '\n'.join(case_sections(case | dict(title='x')))


def test_names_must_differ():
    with pytest.raises(ValueError, match='different names'):
        measure([candidate('a'), candidate('a')], [], Options())


@pytest.mark.parametrize(('seconds', 'text'), [(12.3456, '12346'), (0.1234, '123'), (0.01234, '12.3'), (1e-4, '0.1')])
def test_milliseconds_have_three_digits(seconds, text):
    assert milliseconds(seconds) == text
