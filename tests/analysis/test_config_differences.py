"""Differences of configs, by examples worked by hand."""

from mmcnx2.analysis.config_differences import NOT_SET, Difference, config_differences


def test_only_what_differs_with_flat_keys():
    configs = [
        dict(model=dict(type='A', backbone=dict(arch='atto', rate=0.1)), lr=1.0, work_dir='a'),
        dict(model=dict(type='A', backbone=dict(arch='pico', rate=0.1)), lr=1.0, work_dir='b'),
    ]
    assert config_differences(configs) == [Difference('model.backbone.arch', ("'atto'", "'pico'"))]
    assert config_differences(configs, ignored=()) == [
        Difference('model.backbone.arch', ("'atto'", "'pico'")),
        Difference('work_dir', ("'a'", "'b'")),
    ]


def test_a_key_that_one_has_alone_and_a_whole_branch():
    configs = [dict(a=1), dict(a=1, head=dict(type='H', size=3)), dict(a=1, head=None)]
    assert config_differences(configs) == [Difference('head', (NOT_SET, "{'type': 'H', 'size': 3}", 'None'))]


def test_lists_of_dicts_are_compared_place_by_place_and_others_as_a_whole():
    steps = [dict(type='Load'), dict(type='Flip', prob=0.5)]
    configs = [dict(pipeline=steps, size=[1, 2]), dict(pipeline=[steps[0], dict(type='Flip', prob=0.7)], size=[1, 3])]
    assert config_differences(configs) == [
        Difference('pipeline.1.prob', ('0.5', '0.7')),
        Difference('size', ('[1, 2]', '[1, 3]')),
    ]
    longer = [dict(pipeline=steps), dict(pipeline=steps[:1])]
    assert config_differences(longer) == [Difference('pipeline', (repr(steps), repr(steps[:1])))]


def test_tuples_equal_lists_but_true_is_not_one():
    assert config_differences([dict(betas=(0.9, 0.95)), dict(betas=[0.9, 0.95])]) == []
    assert config_differences([dict(a=True), dict(a=1)]) == [Difference('a', ('True', '1'))]
    assert config_differences([dict(a=[dict(b=1)]), dict(a=[dict(b=1.0)])]) == []


def test_no_differences_without_something_to_compare_with():
    assert config_differences([]) == config_differences([dict(a=1)]) == []
    assert config_differences([dict(a=1)] * 3) == []
