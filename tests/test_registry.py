"""The registries of mmcnx2/registry.py: a config's 'mmcnx2.X' resolves from everywhere, in a process that imported
little.
"""

import subprocess
import sys

import pytest
from mmengine import registry as mmengine_registry

from mmcnx2 import registry

KINDS = [name for name in vars(registry) if name.isupper()]


@pytest.mark.parametrize('kind', KINDS)
def test_is_a_child_of_mmengines_registry_of_the_same_name(kind):
    ours = getattr(registry, kind)
    assert ours.parent is getattr(mmengine_registry, kind)
    assert ours.scope == 'mmcnx2'


def test_all_modules_named_as_locations_import():
    for kind in KINDS:
        getattr(registry, kind).import_from_location()


@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain', 'mmdet', 'mmseg'])
def test_the_backbone_is_built_by_name_in_every_scope(scope):
    if scope == 'mmdet':
        pytest.importorskip('mmcv._ext')
    from mmengine.registry import MODELS, init_default_scope

    import mmcnx2  # noqa: F401

    init_default_scope(scope)
    backbone = MODELS.build(dict(type='mmcnx2.ConvNeXtV2', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8])))
    assert type(backbone).__name__ == 'ConvNeXtV2'


def test_asking_for_a_name_is_enough_in_a_fresh_process():
    code = (
        'import mmcnx2, sys; assert "torch" not in sys.modules, "import mmcnx2 imports torch"; '
        'from mmengine.registry import MODELS; assert MODELS.get("mmcnx2.ConvNeXtV2") is not None'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
