"""A short run of tests/faults/kill_campaign.py: two processes with workers. (A SIGKILL at a random moment is
the easier case of one while saving.)
"""

import random

import kill_campaign
import pytest

KINDS = ['SIGTERM', 'SIGKILL while saving']


def test_killed_in_each_way_a_run_is_the_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(kill_campaign, 'NUM_EPOCHS', 5)
    campaign = kill_campaign.Campaign(tmp_path, num_workers=1, rng=random.Random(1))
    reference = campaign.undisturbed(2)
    results = campaign.run('run', 2, KINDS, reference)
    assert [result.kind for result in results] == KINDS
    assert all(result.good for result in results), kill_campaign.table(results)


@pytest.mark.parametrize(
    ('changes', 'good'),
    [
        ({}, True),
        (dict(resumed_at=5), False),  # more than an interval is lost
        (dict(resumed_at=11), False),  # an iteration was left out
        (dict(resumed_at=None), False),
        (dict(identical=False), False),
        (dict(kind='SIGTERM', resumed_at=10), True),
        (dict(kind='SIGTERM', resumed_at=9), False),
        (dict(kind='SIGTERM', resumed_at=10, exit_code=1), False),
    ],
)
def test_what_counts_as_survived(changes, good):
    values = dict(kind='SIGKILL', num_processes=1, exit_code=75, left_a_part=False, seconds=1.0, last_iter=10)
    assert kill_campaign.Result(**{**values, 'resumed_at': 8, 'identical': True, **changes}).good == good
