"""Guards mmcnx2/engine/config_nodes.py."""

from mmengine.config import Config

from mmcnx2.engine.config_nodes import dicts_in, innermost_dataset, value_at

CONFIG = dict(a=dict(b=[dict(c=1), 2, (dict(c=3),)]), d=4)


def test_every_dict_is_found_in_a_config_and_in_a_dict():
    for node in (CONFIG, Config(CONFIG)):
        assert [found.get('c') for found in dicts_in(node)] == [None, None, 1, 3]
    assert list(dicts_in(5)) == []


def test_a_dotted_key_leads_through_lists_or_nowhere():
    for node in (CONFIG, Config(CONFIG)):
        assert value_at(node, 'a.b.0.c') == 1 and value_at(node, 'a.b.2.0.c') == 3 and value_at(node, 'd') == 4
        assert value_at(node, 'a.b.3') is value_at(node, 'a.x.y') is value_at(node, 'd.e') is None


def test_wrappers_are_looked_into():
    inner = dict(type='Inner')
    assert innermost_dataset(inner) is inner
    wrapped = dict(type='RepeatDataset', dataset=dict(type='ClassBalancedDataset', dataset=inner))
    assert innermost_dataset(wrapped) is inner
    joined = dict(type='ConcatDataset', datasets=[inner])
    assert innermost_dataset(dict(dataset=joined)) is joined
