"""A part of the campaign on the conversion tables: every rule of every layout, and a sample of the other breaks.

The whole of it is `python tests/faults/table_mutations.py`.
"""

import itertools

import pytest
import table_mutations
from table_mutations import all_mutations, noticed_by, prepare

WHOLE = ('rule dropped', 'values transposed', 'two rules swapped', 'layout changed', 'constant changed')
SAMPLE = 16  # of the others, every so many


@pytest.fixture(scope='module', autouse=True)
def unbroken_tables_pass_every_check():
    prepare()


def _part():
    others = itertools.count()
    return [
        mutation
        for mutation in all_mutations()
        if not mutation.equivalent and (mutation.family in WHOLE or next(others) % SAMPLE == 0)
    ]


@pytest.mark.parametrize('family', dict.fromkeys(mutation.family for mutation in _part()))
def test_every_break_is_noticed(family):
    mutations = [mutation for mutation in _part() if mutation.family == family]
    unnoticed = [mutation.what for mutation in mutations if not noticed_by(mutation)]
    assert mutations and not unnoticed, f'{len(unnoticed)} of {len(mutations)} breaks of the tables were not noticed'


def test_the_campaign_sees_when_nothing_notices(monkeypatch):
    """A check that is taken away leaves breaks behind: the count is not empty talk."""
    outputs = table_mutations.CHECKS['outputs']
    transposed = [mutation for mutation in _part() if mutation.family == 'values transposed']
    monkeypatch.setattr(
        table_mutations, 'CHECKS', {k: v for k, v in table_mutations.CHECKS.items() if v is not outputs}
    )
    assert any(not noticed_by(mutation) for mutation in transposed[:6])


def test_nothing_stays_broken():
    before = table_mutations.LAYOUTS.copy(), table_mutations.KINDS.copy(), table_mutations.convert.TENSORS
    for mutation in _part()[::80]:
        noticed_by(mutation)
    assert before == (table_mutations.LAYOUTS, table_mutations.KINDS, table_mutations.convert.TENSORS)
