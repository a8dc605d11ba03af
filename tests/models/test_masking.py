"""Which cells are seen: counts, independence, reproducibility."""

import pytest
import torch

from mmcnx2.models.fcmae.masking import num_visible_cells, random_visible


def test_counts_round_down_as_in_the_official_code():
    assert num_visible_cells(49, 0.6) == 19
    assert num_visible_cells(16, 0.75) == 4
    assert random_visible(5, (7, 7), 0.6).flatten(1).sum(1).tolist() == [19] * 5
    assert random_visible(2, (3, 5), 0.5).shape == (2, 3, 5)


@pytest.mark.parametrize('seeds', [None, range(4000)])
def test_every_cell_is_seen_equally_often(seeds):
    torch.manual_seed(0)
    share_GG = random_visible(4000, (4, 5), 0.6, seeds=seeds).double().mean(0)
    # 8 of 20 cells: 0.4 with a standard deviation of 0.0077; five of them
    assert (share_GG - 0.4).abs().max() < 0.039


@pytest.mark.parametrize('seeds', [None, range(4000)])
def test_pairs_of_cells_are_seen_together_as_often_as_chance_says(seeds):
    torch.manual_seed(1)
    visible_BL = random_visible(4000, (4, 4), 0.5, seeds=seeds).flatten(1).double()
    together = (visible_BL.T @ visible_BL / 4000)[~torch.eye(16, dtype=torch.bool)]
    assert (together - 8 / 16 * 7 / 15).abs().max() < 0.034


def test_a_seeded_mask_depends_on_its_seed_alone():
    alone = torch.cat([random_visible(1, (7, 7), 0.6, seeds=[seed]) for seed in (2**62, 3, 0)])
    torch.manual_seed(5)
    assert torch.equal(random_visible(3, (7, 7), 0.6, seeds=[2**62, 3, 0]), alone)
    assert not torch.equal(alone[1], alone[2])


def test_seeded_masks_are_the_same_in_every_version():
    """Guards the stream: a resumed run must draw the masks that it would have drawn."""
    rows = random_visible(1, (4, 4), 0.6, seeds=[1234])[0].int().tolist()
    assert rows == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]


def test_without_seeds_the_generator_of_torch_decides():
    torch.manual_seed(3)
    first, second = random_visible(2, (7, 7), 0.6), random_visible(2, (7, 7), 0.6)
    torch.manual_seed(3)
    assert torch.equal(first, random_visible(2, (7, 7), 0.6))
    assert not torch.equal(first, second)


def test_hiding_everything_is_refused():
    with pytest.raises(ValueError, match=r'mask_ratio=0.9 keeps int\(4 \* \(1 - 0.9\)\) = 0 of 4 cells'):
        random_visible(2, (2, 2), 0.9)
    with pytest.raises(ValueError, match=r'need \(2,\)'):
        random_visible(2, (2, 2), 0.5, seeds=[1, 2, 3])
