"""Guards mmcnx2/datasets/epoch_seeded_sampler.py: order, split over processes, seeds, resuming."""
import itertools

import pytest
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS

from mmcnx2.datasets import epoch_seeded_sampler
from mmcnx2.datasets.epoch_seeded_sampler import EpochSeededSampler
from mmcnx2.datasets.seeding import SeededIndex


@pytest.fixture
def build(monkeypatch):
    def make(num_images=10, rank=0, world_size=1, seed=3, **options):
        monkeypatch.setattr(epoch_seeded_sampler, 'get_dist_info', lambda: (rank, world_size))
        return EpochSeededSampler(range(num_images), seed=seed, **options)
    return make


def seen(sampler, count=None):
    return [(int(index), index.seed) for index in itertools.islice(sampler, count)]


def test_registered_where_a_runner_looks():
    sampler = DATA_SAMPLERS.build(dict(type='mmcnx2.EpochSeededSampler', dataset=range(4), seed=0))
    assert all(isinstance(index, SeededIndex) for index in sampler)


def test_every_picture_once_and_a_new_order_each_epoch(build):
    sampler = build(50)
    first, again = seen(sampler), seen(sampler)
    assert first == again and sorted(index for index, _ in first) == list(range(50))
    sampler.set_epoch(1)
    second = seen(sampler)
    assert [index for index, _ in second] != [index for index, _ in first]
    assert not {seed for _, seed in first} & {seed for _, seed in second}


def test_shuffle_and_seed_act(build):
    assert [index for index, _ in seen(build(shuffle=False))] == list(range(10))
    assert seen(build(seed=3)) != seen(build(seed=4))
    # seeds belong to pictures, not to the order
    assert dict(seen(build(shuffle=False))) == dict(seen(build(shuffle=True)))


@pytest.mark.parametrize('infinite', [False, True])
def test_two_processes_share_the_batch_of_one(build, infinite):
    batch = 3
    one = seen(build(24, infinite=infinite), 24)
    ranks = [seen(build(24, rank, 2, infinite=infinite), 12) for rank in range(2)]
    for step in range(24 // (2 * batch)):
        together = [sample for rank in ranks for sample in rank[step * batch:(step + 1) * batch]]
        assert sorted(together) == sorted(one[step * 2 * batch:(step + 1) * 2 * batch])


@pytest.mark.parametrize('round_up', [False, True])
@pytest.mark.parametrize(('num_images', 'world_size'), [(10, 3), (2, 5), (9, 3)])
def test_lengths_equal_those_of_mmengine(build, monkeypatch, num_images, world_size, round_up):
    for rank in range(world_size):
        ours = build(num_images, rank, world_size, round_up=round_up)
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, world_size))
        theirs = DefaultSampler(range(num_images), seed=0, round_up=round_up)
        assert len(ours) == len(theirs) == len(list(ours))


def test_infinite_runs_through_the_epochs(build):
    finite, infinite = build(10), build(10, infinite=True)
    expected = []
    for epoch in range(3):
        finite.set_epoch(epoch)
        expected += seen(finite)
    infinite.set_epoch(0)  # mmengine's hook calls this once more after a resume; it must not move the sampler
    assert seen(infinite, 30) == expected


@pytest.mark.parametrize('options', [dict(infinite=True), dict(infinite=False)])
def test_skip_continues_where_the_run_stopped(build, options):
    whole = seen(build(20, 1, 2, **options), 10)
    sampler = build(20, 1, 2, **options)
    sampler.skip(4)
    assert seen(sampler, 6) == whole[4:]
    assert seen(sampler, 10) == whole  # for one iteration only


def test_skip_over_epochs_of_an_infinite_sampler(build):
    sampler = build(7, 1, 2, infinite=True)
    whole = seen(sampler, 40)
    sampler.skip(25)
    assert seen(sampler, 15) == whole[25:]


def test_mistakes_are_named(build):
    with pytest.raises(ValueError, match='empty'):
        build(0)
    with pytest.raises(ValueError, match='round_up'):
        build(infinite=True, round_up=False)
    with pytest.raises(ValueError, match='num_samples=-1'):
        build().skip(-1)
