"""A short run of tests/faults/kill_campaign.py: two processes with workers. (A SIGKILL at a random moment is the easier
case of one while saving.) And one that torchrun starts again by itself.
"""

import os
import random
import signal
import time
from pathlib import Path

import kill_campaign
import pytest

KINDS = ['SIGTERM', 'SIGKILL while saving']


@pytest.fixture(scope='module')
def campaign(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kill_campaign, 'NUM_EPOCHS', 5)
        yield kill_campaign.Campaign(tmp_path_factory.mktemp('kills'), num_workers=1, rng=random.Random(1))


@pytest.fixture(scope='module')
def reference(campaign):
    return campaign.undisturbed(2)


def test_killed_in_each_way_a_run_is_the_undisturbed_one(campaign, reference):
    results = campaign.run('run', 2, KINDS, reference)
    assert [result.kind for result in results] == KINDS
    assert all(result.good for result in results), kill_campaign.table(results)


def test_torchrun_starts_it_again_and_it_goes_on(campaign, reference, monkeypatch):
    monkeypatch.setenv('MAX_RESTARTS', '1')
    work_dir = campaign.folder / 'restarted'
    launcher = campaign.start(work_dir, 2)
    while not (tried := kill_campaign.attempts(work_dir)) or len(tried[0]) < 6:
        assert launcher.poll() is None, (work_dir / 'output.txt').read_text()[-3000:]
        time.sleep(0.02)
    worker = Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text().split()[0]
    os.kill(int(worker), signal.SIGKILL)
    assert launcher.wait(120) == 0, (work_dir / 'output.txt').read_text()[-3000:]
    first, second = kill_campaign.attempts(work_dir)
    assert min(second) > kill_campaign.INTERVAL  # not from the beginning
    assert {**first, **second} == reference[1] and first.items() <= reference[1].items()


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
