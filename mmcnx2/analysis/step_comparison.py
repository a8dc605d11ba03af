"""Several ways to compute the same step, measured in one go: that they agree, how long they take, what memory they
need, where the time goes.

    candidates --parity--> --warm-up--> --interleaved rounds--> --peak memory--> (--profile, floor-->) results

Results are plain numbers, lists and dicts, as they stand in the JSON file. Touch it for the order of these steps and
for what is kept; how each is measured stands in speed.py, operator_shares.py and step_floor.py, how results look in
speed_report.py. Guarded by tests/analysis/test_step_comparison.py.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mmcnx2.analysis import operator_shares
from mmcnx2.analysis.speed import (
    Step,
    Timing,
    count_page_faults,
    interleave,
    num_rounds_within,
    peak_memory,
    time_once,
    waiter,
    worst_difference,
)
from mmcnx2.analysis.step_floor import Speeds, Work, floor_of

FORWARD, STEP, MEMORY = 'forward', 'step', 'peak memory'
COMPILED = ', compiled'
LONG_STEP = 1.0  # seconds above which one run is profiled instead of three
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}
# Differences up to which two ways count as the same (outputs, gradients). They are shares of the largest value, and
# rounding in bfloat16 makes a per cent or more of them.
TOLERANCES = {'fp32': (1e-4, 1e-3), 'bf16': (0.05, 0.3)}


@dataclass(frozen=True)
class Candidate:
    """One way to compute a step.

    Args:
        name: as it is called in tables.
        model: whose parameters get gradients.
        call: (model, or its compiled form) -> the outputs, a sequence of tensors; the step's objective is the sum of
            their squares.
        equals: name of the candidate that computes the same; None for one that others are compared with.
        gradients: of all parameters, under names that the candidates of one comparison share; by default those of
            `model`.
        condition: candidates -> context within which the two compute the same, and what it is, in words.
        work: with_backward -> what has to be done, for the floor.
        notes: what a reader of the table must know.
        runner: the compiled form, where there is one; see `compiled`.
    """

    name: str
    model: nn.Module
    call: Callable[[Callable], Sequence[Tensor]]
    equals: str | None = None
    gradients: Callable[[], Mapping[str, Tensor]] | None = None
    condition: tuple[Callable[[Candidate, Candidate], AbstractContextManager], str] | None = None
    work: Callable[[bool], list[Work]] | None = None
    notes: tuple[str, ...] = ()
    runner: Callable | None = None

    def forward(self) -> Sequence[Tensor]:
        return self.call(self.model if self.runner is None else self.runner)

    def named_gradients(self) -> Mapping[str, Tensor]:
        if self.gradients:
            return self.gradients()
        return {name: parameter.grad for name, parameter in self.model.named_parameters() if parameter.grad is not None}


def compiled(candidate: Candidate) -> Candidate:
    """The same candidate under torch.compile, on the same parameters."""
    return replace(
        candidate,
        name=f'{candidate.name}{COMPILED}',
        runner=torch.compile(candidate.model, dynamic=False),
        equals=candidate.equals or candidate.name,
        work=None,
    )


@dataclass(frozen=True)
class Comparison:
    """A quotient to report: `of` over the best of `against`, in each phase (forward, step, peak memory) by itself."""

    label: str
    of: str
    against: tuple[str, ...]
    phases: tuple[str, ...] = (FORWARD, STEP)


@dataclass(frozen=True)
class Options:
    """How the candidates of one table are measured.

    Args:
        device, dtype: 'fp32' or 'bf16' (under autocast).
        with_backward: False measures inference alone.
        seconds: about as long may the rounds take; `num_rounds` sets their number instead.
        with_memory, with_profile: measure these too.
        floor_seconds: how long each measurement of the machine is repeated.
    """

    device: str = 'cpu'
    dtype: str = 'fp32'
    with_backward: bool = True
    seconds: float = 60.0
    num_rounds: int | None = None
    with_memory: bool = True
    with_profile: bool = False
    floor_seconds: float = 0.05

    @property
    def phases(self) -> tuple[str, ...]:
        return (FORWARD, STEP) if self.with_backward else (FORWARD,)


def autocast(options: Options) -> AbstractContextManager:
    if options.dtype == 'fp32':
        return contextlib.nullcontext()
    return torch.autocast(options.device.split(':')[0], DTYPES[options.dtype])


def steps_of(candidate: Candidate, options: Options) -> dict[str, Step]:
    """Inference (no gradients kept), and forward with backward pass of the sum of squares of all outputs."""

    def infer() -> object:
        with torch.no_grad(), autocast(options):
            return candidate.forward()

    def train() -> object:
        with autocast(options):
            outputs = candidate.forward()
        sum(x.float().square().sum() for x in outputs).backward()
        return outputs

    def clear() -> None:
        candidate.model.zero_grad(set_to_none=True)

    return {FORWARD: Step(infer, clear), **({STEP: Step(train, clear)} if options.with_backward else {})}


# ---- parity


@dataclass
class _Outcome:
    outputs: list[Tensor]
    gradients: Mapping[str, Tensor] = field(default_factory=dict)


def _outcome(candidate: Candidate, options: Options) -> _Outcome:
    steps = steps_of(candidate, options)
    step = steps[options.phases[-1]]
    step.prepare()
    outputs = [x.detach().clone() for x in step.run()]
    if not options.with_backward:
        return _Outcome(outputs)
    gradients = {name: gradient.clone() for name, gradient in candidate.named_gradients().items()}
    candidate.model.zero_grad(set_to_none=True)
    return _Outcome(outputs, gradients)


def check_parity(
    candidates: Sequence[Candidate], options: Options, say: Callable[[str], None] = lambda text: None
) -> dict[str, dict]:
    """{name: how far outputs and gradients are from those of the candidate that it equals, computed in float32}.

    A candidate that others are compared with has an entry of its own only in bf16: how far it is from itself in
    float32.
    """
    exact = Options(device=options.device, with_backward=options.with_backward)
    by_name = {candidate.name: candidate for candidate in candidates}
    checks: dict[str, dict] = {}
    kept: tuple[tuple, _Outcome] | None = None  # the last reference: candidates of one reference follow each other
    order = sorted(candidates, key=lambda candidate: (candidate.equals or candidate.name, bool(candidate.condition)))
    for candidate in order:
        if candidate.equals is None and options.dtype == 'fp32':
            continue
        reference = by_name.get(candidate.equals or candidate.name)
        if reference is None:
            continue
        say(f'parity: {candidate.name}')
        condition, words = candidate.condition or (lambda *both: contextlib.nullcontext(), None)
        key = (reference.name, words)
        with condition(candidate, reference):
            if kept is None or kept[0] != key:
                kept = (key, _outcome(reference, exact))
            found = _outcome(candidate, options)
        checks[candidate.name] = _compare(found, kept[1], options) | dict(against=reference.name, condition=words)
    return checks


def _compare(found: _Outcome, reference: _Outcome, options: Options) -> dict:
    """Infinite differences (another number of outputs, another shape, NaN) become None, which JSON has a word for."""
    tolerance, gradient_tolerance = TOLERANCES[options.dtype]
    worst, _ = worst_difference(dict(enumerate(found.outputs)), dict(enumerate(reference.outputs)))
    result = dict(outputs=_finite(worst), is_same=worst <= tolerance)
    if options.with_backward:
        worst, name = worst_difference(found.gradients, reference.gradients)
        is_same = result['is_same'] and worst <= gradient_tolerance
        result |= dict(gradients=_finite(worst), gradient=name, is_same=is_same)
    return result


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ---- everything


def measure(
    candidates: Sequence[Candidate],
    comparisons: Sequence[Comparison],
    options: Options,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """All numbers of one table; see the head of this file. `say` is told what is done at the moment."""
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise ValueError(f'candidates need different names, got {names}')
    wait = waiter(options.device)
    checks = check_parity(candidates, options, say)
    steps = {candidate.name: steps_of(candidate, options) for candidate in candidates}
    flat = {(name, phase): step for name, phases in steps.items() for phase, step in phases.items()}

    seconds_per_round, faults = 0.0, {}
    for (name, phase), step in flat.items():
        say(f'warm-up: {name}, {phase}')
        if name.endswith(COMPILED):
            time_once(step, wait)  # compiles it for this phase
        faults[name, phase], seconds = count_page_faults(step, wait)
        seconds_per_round += seconds
    num_rounds = options.num_rounds or num_rounds_within(options.seconds, seconds_per_round)
    say(f'{num_rounds} rounds of about {seconds_per_round:.1f} s')
    timings = interleave(flat, num_rounds, wait, after_round=lambda done: say(f'round {done} of {num_rounds}'))

    memory = dict.fromkeys(names)
    if options.with_memory:
        for name in names:
            say(f'memory: {name}')
            memory[name] = peak_memory(steps[name][options.phases[-1]], options.device)
    rows = [
        dict(
            name=candidate.name,
            **{phase: _timing(timings[candidate.name, phase]) for phase in options.phases},
            page_faults={phase: faults[candidate.name, phase] for phase in options.phases},
            peak_bytes=memory[candidate.name],
            parity=checks.get(candidate.name),
            notes=list(candidate.notes),
        )
        for candidate in candidates
    ]
    quotients = [quotient for each in comparisons for quotient in compare(each, timings, memory, options.phases)]
    results = dict(num_rounds=num_rounds, candidates=rows, comparisons=quotients)
    if options.with_profile:
        results |= _profiles(candidates, steps, timings, options, say)
    return results


def compare(
    comparison: Comparison,
    timings: Mapping[tuple[str, str], Timing],
    memory: Mapping[str, int | None],
    phases: Sequence[str],
) -> list[dict]:
    """One entry per phase that was measured for both sides; the opponent is the fastest (smallest) of those there
    are.
    """
    found = []
    for phase in comparison.phases:
        if phase == MEMORY:
            sizes = {name: memory.get(name) for name in (comparison.of, *comparison.against)}
            there = [name for name in comparison.against if sizes[name]]
            if sizes[comparison.of] and there:
                best = min(there, key=sizes.get)
                ratio = sizes[comparison.of] / sizes[best]
                found.append(dict(label=comparison.label, phase=phase, of=comparison.of, against=best, ratio=ratio))
            continue
        there = [name for name in comparison.against if (name, phase) in timings]
        if phase not in phases or (comparison.of, phase) not in timings or not there:
            continue
        best = min(there, key=lambda name: timings[name, phase].median)
        ratio = timings[comparison.of, phase].over(timings[best, phase])
        found.append(
            dict(
                label=comparison.label,
                phase=phase,
                of=comparison.of,
                against=best,
                ratio=ratio.median,
                low=ratio.low,
                high=ratio.high,
            )
        )
    return found


def _timing(timing: Timing) -> dict:
    return dict(median=timing.median, quartiles=list(timing.quartiles), seconds=list(timing.seconds))


def _profiles(
    candidates: Sequence[Candidate],
    steps: Mapping[str, Mapping[str, Step]],
    timings: Mapping[tuple[str, str], Timing],
    options: Options,
    say: Callable[[str], None],
) -> dict:
    """Profiles of all candidates, and the floors of those whose work is known."""
    speeds = Speeds(options.device, DTYPES[options.dtype], options.floor_seconds)
    profiles, floors = {}, {}
    phase = options.phases[-1]
    for candidate in candidates:
        say(f'profile: {candidate.name}')
        step = steps[candidate.name][phase]

        def run(step: Step = step) -> None:
            step.prepare()
            step.run()

        num_runs = 1 if timings[candidate.name, phase].median > LONG_STEP else 3
        seconds, operators = operator_shares.profile_step(run, options.device, num_runs)
        profiles[candidate.name] = dict(
            phase=phase,
            seconds=seconds,
            groups=operator_shares.group_seconds(operators),
            operators=[vars(operator) for operator in operators if operator.seconds > 0.001 * seconds],
        )
        if candidate.work:
            say(f'floor: {candidate.name}')
            floor = floor_of(candidate.work(options.with_backward), speeds)
            floors[candidate.name] = dict(
                seconds=floor.total,
                groups=floor.seconds,
                multiply_adds=floor.multiply_adds,
                moved_bytes=floor.moved_bytes,
            )
    found = dict(profiles=profiles)
    if floors:
        found |= dict(floors=floors, machine_speed=speeds.summary())
    return found
