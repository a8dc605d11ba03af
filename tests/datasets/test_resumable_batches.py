"""Guards mmcnx2/datasets/resumable_batches.py: which batches come after a skip, whoever makes them."""

import pytest
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS, init_default_scope
from torch.utils.data import DataLoader

from mmcnx2.datasets import EpochSeededSampler, ResumableBatches

NUM_IMAGES = 23


class Pictures:
    """Wide and high ones, as a dataset of mmdet tells."""

    def __len__(self) -> int:
        return NUM_IMAGES

    def get_data_info(self, index: int) -> dict:
        return dict(width=2, height=1 + 2 * (index % 3 == 0))


@pytest.fixture(params=['plain', 'no last', 'by aspect ratio', 'sampler that cannot skip'])
def batches(request) -> ResumableBatches:
    pictures = Pictures()
    if request.param == 'sampler that cannot skip':
        return ResumableBatches(DefaultSampler(pictures, seed=1), 4)
    sampler = EpochSeededSampler(pictures, seed=1)
    if request.param == 'by aspect ratio':
        init_default_scope('mmdet')
        given = dict(type='AspectRatioBatchSampler')
        return DATA_SAMPLERS.build(
            dict(type='mmcnx2.ResumableBatches', batch_sampler=given), default_args=dict(sampler=sampler, batch_size=4)
        )
    return ResumableBatches(sampler, 4, drop_last=request.param == 'no last')


@pytest.mark.parametrize('num_skipped', [0, 1, 3, 5, 6])
def test_the_next_iteration_alone_begins_later(batches, num_skipped):
    whole = list(batches)
    assert len(whole) == len(batches)
    batches.skip(num_skipped)
    assert list(batches) == whole[num_skipped:]
    assert list(batches) == whole
    seeds = [[getattr(index, 'seed', None) for index in batch] for batch in whole]
    batches.skip(num_skipped)
    assert [[getattr(index, 'seed', None) for index in batch] for batch in batches] == seeds[num_skipped:]


@pytest.mark.parametrize('num_workers', [0, 1])
def test_in_a_data_loader(batches, num_workers):
    loader = DataLoader(range(NUM_IMAGES), batch_sampler=batches, num_workers=num_workers, collate_fn=list)
    whole = list(loader)
    batches.skip(2)
    assert list(loader) == whole[2:]


def test_a_negative_number_is_refused(batches):
    with pytest.raises(ValueError, match='num_batches=-1'):
        batches.skip(-1)
