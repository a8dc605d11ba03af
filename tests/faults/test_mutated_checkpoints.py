"""One round of the campaign passes, and the campaign notices what it is there for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mutated_checkpoints
import pytest
import torch
from mutated_checkpoints import FORMATS, KINDS, ROUND, Damage, Uses, campaign, independent_weights, report, saved

from mmcnx2.checkpoint import CheckpointError


@pytest.fixture(scope='module')
def uses(tmp_path_factory):
    return Uses(tmp_path_factory.mktemp('uses'))


def index_of(kind, nth=0):
    return [index for index, each in enumerate(ROUND) if each == kind][nth]


@pytest.fixture(scope='module')
def one_round(tmp_path_factory):
    return campaign(len(ROUND), 1, tmp_path_factory.mktemp('round'))


def test_nothing_gets_through_in_one_round_of_every_kind(one_round):
    wrong = [(each['index'], each['kind'], each['wrong']) for each in one_round if each['wrong']]
    assert not wrong
    assert [each['index'] for each in one_round] == list(range(len(ROUND)))
    assert {each['kind'] for each in one_round} == set(KINDS)
    num_read = sum(each['read'] == 'ok' for each in one_round)
    assert 5 < num_read < len(ROUND) / 2  # damage that leaves a valid file is among it, and is not most of it


def test_the_report_counts_every_file_once(one_round):
    text = report(one_round, 'python x.py')
    assert text.startswith(f'# {len(ROUND)} mutated checkpoints: 0 not as they must be')
    rows = [line.split('|') for line in text.splitlines() if line.startswith('| ') and not line.startswith('| damage')]
    assert sum(int(row[2]) for row in rows[:-1]) == int(rows[-1][2]) == len(ROUND)
    assert all(int(row[2]) == int(row[3]) + int(row[4]) for row in rows)


def test_a_file_is_the_same_each_time_and_another_with_another_seed(uses, tmp_path):
    """In another process too, for every format: a finding can be looked at again."""
    files = [mutated_checkpoints.mutated(uses.contents, seed, 0, uses.marks)[1] for seed in (0, 0, 1)]
    assert files[0] == files[1] != files[2]
    script = (
        'import sys, pathlib, mutated_checkpoints as m\n'
        'contents = m.base_contents()\n'
        'for form in m.FORMATS: pathlib.Path(sys.argv[1], form).write_bytes(m.saved(contents[form], form))\n'
    )
    subprocess.run([sys.executable, '-c', script, tmp_path], cwd=Path(__file__).parent, check=True)
    for form in FORMATS:
        assert (tmp_path / form).read_bytes() == saved(uses.contents[form], form), form


@pytest.mark.parametrize('form', FORMATS)
def test_undamaged_files_pass_all_three_uses(uses, monkeypatch, form):
    def undamaged(damage: Damage):
        damage.form = form
        return saved(damage.content, form)

    monkeypatch.setitem(KINDS, ROUND[0], (undamaged, 1))
    result = uses.run(0, 0)
    assert [result[use] for use in ('read', 'load', 'convert')] == ['ok'] * 3 and not result['wrong']
    weights = mutated_checkpoints.weights_of(uses.contents[form])
    assert mutated_checkpoints.same(independent_weights(saved(uses.contents[form], form)), dict(weights))


# ---- what it must notice


def test_code_that_runs_is_noticed(uses, monkeypatch):
    """Read as torch.load would without weights_only."""
    content = {'state_dict': {'a': torch.ones(1)}, 'x': mutated_checkpoints.Calls(os.mkdir, str(uses.marks / 'mark'))}
    monkeypatch.setitem(KINDS, ROUND[0], (lambda damage: saved(content, 'zip'), 1))
    assert 'CODE WAS RUN' not in uses.run(0, 0)['wrong']
    load = torch.load
    monkeypatch.setattr('torch.load', lambda *args, **options: load(*args, **{**options, 'weights_only': False}))
    monkeypatch.setattr('mmcnx2.checkpoint.read._check_torch_file', lambda *args: None)
    assert 'CODE WAS RUN' in uses.run(0, 0)['wrong']
    (uses.marks / 'mark').rmdir()


def test_wrong_values_and_values_that_are_not_finite_are_noticed(uses, monkeypatch):
    monkeypatch.setattr('mmcnx2.checkpoint.read._check_weights', lambda *args: None)
    assert 'read what must be refused' in uses.run(0, index_of('NaN and Inf'))['wrong']
    swapped = index_of('tensors swapped')
    assert not uses.run(0, swapped)['wrong']
    look = mutated_checkpoints.independent_weights
    monkeypatch.setattr(mutated_checkpoints, 'independent_weights',
                        lambda data: {name: tensor + 1 for name, tensor in look(data).items()})  # fmt: skip
    assert 'read: not what the independent reader finds' in uses.run(0, swapped)['wrong']


def test_other_exceptions_and_unclear_messages_are_noticed(uses, monkeypatch):
    for error, says in ((KeyError('x'), 'read: KeyError'), (CheckpointError('MemoryError: 1 TB'), 'no clear line')):

        def fail(*args, error=error):
            raise error

        monkeypatch.setattr('mmcnx2.checkpoint.read_checkpoint', fail)
        assert any(says in text for text in uses.run(0, 0)['wrong'])


def test_files_that_are_left_behind_are_noticed(uses, monkeypatch):
    def begin_and_fail(argv):
        Path(argv[1]).with_suffix('.partial').touch()
        raise CheckpointError('no')

    monkeypatch.setattr(uses.tool, 'main', begin_and_fail)
    assert "left ['converted.partial'] behind" in uses.run(0, 0)['wrong']
    assert not os.listdir(uses.folder)


@pytest.mark.parametrize(('ending', 'says'), [
    ('os.kill(os.getpid(), 11)', 'ended the process (SIGSEGV)'), ('sys.exit("no")', 'ended the process (1): no'),
    ('time.sleep(60)', 'hangs'),
])  # fmt: skip
def test_a_worker_that_dies_or_hangs_is_counted_for_its_file_and_replaced(tmp_path, monkeypatch, ending, says):
    worker = tmp_path / 'worker.py'
    worker.write_text(
        'import json, os, sys, time\n'
        'for index in range(int(sys.argv[1]), int(sys.argv[2])):\n'
        '    print(json.dumps(dict(begins=index)), flush=True)\n'
        f'    if index == 2: {ending}\n'
        '    answer = dict(index=index, kind="noise", wrong=[], seconds=0.1, memory=0)\n'
        '    answer.update(read="x", load="x", convert="x")\n'
        '    print(json.dumps(answer), flush=True)\n'
    )
    monkeypatch.setattr(mutated_checkpoints, 'MAX_SECONDS', 0.5)

    def stand_in(folder, seed, first, end):
        return [sys.executable, str(worker), str(first), str(end)]

    monkeypatch.setattr(mutated_checkpoints, 'worker_command', stand_in)
    results = campaign(5, 0, tmp_path)
    assert [each['index'] for each in results] == [0, 1, 2, 3, 4]
    assert [bool(each['wrong']) for each in results] == [False, False, True, False, False]
    assert results[2]['wrong'][0].startswith(says)
    assert json.dumps(results) and says in report(results, 'x')
