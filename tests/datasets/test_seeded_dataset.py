"""Guards mmcnx2/datasets/seeded_dataset.py: samples depend on their seed alone, everything else is the dataset's."""

import pickle
import random

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mmcnx2.datasets import SeededDataset, SeededIndex


class Draws(BaseDataset):
    METAINFO = dict(classes=('a', 'b'))

    def load_data_list(self) -> list[dict]:
        return [dict(number=number) for number in range(5)]


def draw(info: dict) -> dict | None:
    values = (torch.rand(1).item(), random.random(), float(np.random.rand()))
    if info['number'] == 3:
        return None  # another one is drawn
    return dict(info, values=values)


def dataset() -> SeededDataset:
    return SeededDataset(Draws(pipeline=[draw]))


def test_a_sample_depends_on_its_seed_alone():
    data = dataset()
    first = data[SeededIndex(1, seed=7)]
    torch.rand(3), random.random(), np.random.rand()
    assert data[SeededIndex(1, seed=7)] == first
    assert data[SeededIndex(1, seed=8)]['values'] != first['values']
    assert first['sample_idx'].seed == 7


def test_so_does_the_one_that_takes_the_place_of_an_unfit_one():
    data = dataset()
    found = [data[SeededIndex(3, seed=7)] for _ in range(3)]
    assert found[0] == found[1] == found[2] and found[0]['number'] != 3
    assert len({data[SeededIndex(3, seed=seed)]['number'] for seed in range(20)}) > 1


def test_the_generators_outside_go_on_as_if_nothing_had_been_drawn():
    def drawn(data: SeededDataset | None) -> tuple:
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        if data is not None:
            data[SeededIndex(1, seed=7)]
        return torch.rand(1).item(), random.random(), float(np.random.rand())

    assert drawn(dataset()) == drawn(None)


def test_with_a_plain_index_nothing_changes():
    data = dataset()
    assert data[1]['values'] != data[1]['values']


def test_it_is_otherwise_the_dataset():
    DATASETS.register_module(module=Draws, force=True)
    try:
        data = DATASETS.build(dict(type='mmcnx2.SeededDataset', dataset=dict(type='Draws', lazy_init=True)))
    finally:
        DATASETS._module_dict.pop('Draws')
    data.full_init()
    assert len(data) == 5 and data.metainfo['classes'] == ('a', 'b') and data.get_data_info(2)['number'] == 2
    assert not hasattr(data, 'no_such_thing')
    assert len(pickle.loads(pickle.dumps(data))) == 5
