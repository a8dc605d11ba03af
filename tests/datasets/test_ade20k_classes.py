"""Guards ade20k_classes.py: mmsegmentation's order, the challenge's numbers, objects with like names."""

import pytest
from mmseg.datasets import ADE20KDataset

from mmcnx2.datasets.ade20k_classes import CLASS_OF_NAME, CLASS_OF_OBJECT, CLASSES, class_of, normalised


def test_order_is_that_of_mmsegmentation():
    assert len(CLASSES) == len(ADE20KDataset.METAINFO['classes']) == 150
    for (names, _), called in zip(CLASSES, ADE20KDataset.METAINFO['classes'], strict=True):
        assert called.strip() in names.split(', '), (called, names)


def test_every_name_and_number_belongs_to_one_class():
    assert len({normalised(names) for names, _ in CLASSES}) == 150
    assert len(CLASS_OF_OBJECT) == sum(len(numbers) for _, numbers in CLASSES) == 153
    assert set(CLASS_OF_OBJECT.values()) == set(CLASS_OF_NAME.values()) == set(range(1, 151))
    assert all(normalised(name) == name for name in CLASS_OF_NAME)


# name, number in the release, class of the challenge
OBJECTS = [
    ('wall', 2978, 1),
    ('door', 774, 15),
    ('double door', 783, 15),
    ('screen door, screen', 2251, 59),
    ('blind, screen', 212, 64),
    ('screen, silver screen, projection screen', 2254, 131),
    ('screen, CRT screen', 3109, 142),
    ('plant, flora, plant life', 1910, 18),
    ('plant pots', 1908, 0),
    ('pot, flowerpot', 1981, 126),
    ('pot', 1974, 0),
    ('bag', 95, 116),
    ('bag, handbag, pocketbook, purse', 96, 0),
    ('pier, wharf, wharfage, dock', 1858, 141),
    ('pier', 1857, 0),
    ('basket, handbasket', 146, 113),
    ('basket, basketball hoop, hoop', 145, 0),
    ('wardrobe, closet, press', 2985, 36),
    ('closet', 533, 36),
    ('television receiver, television, television set, tv, tv set, idiot box, boob tube, telly, goggle box', 2733, 90),
    ('windowpane, window', 3055, 9),
    ('window', 3050, 0),
    ('earth, ground', 838, 14),
    ('land, ground, soil', 1401, 95),
]


@pytest.mark.parametrize(('name', 'number', 'expected'), OBJECTS)
def test_objects_with_like_names(name, number, expected):
    assert class_of(name, number) == expected
    assert class_of(None, number) == expected, 'by number alone'
    assert class_of(name, 0) == expected, 'by name alone'


def test_name_goes_before_number():
    assert class_of('sky', 2978) == 3
    assert class_of('something new', 2978) == 1
    assert class_of('something new', 2978, trust_number=False) == 0
    assert class_of(None, 2978, trust_number=False) == 0
    assert class_of('  Plant,flora,  plant  life', 1) == 18
