"""The registries of mmcnx2: children of mmengine's, one per kind of thing that a config can name.

`locations` lets 'mmcnx2.X' in a config import the module that defines X when it is first asked for; no
`custom_imports` per class is needed. Touch this file to add a registry; not to register anything. Guarded by
tests/test_registry.py.
"""

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry


def _child(kind: str, parent: Registry, location: str) -> Registry:
    return Registry(kind, parent=parent, scope='mmcnx2', locations=[location])


MODELS = _child('model', mmengine_registry.MODELS, 'mmcnx2.models')
DATASETS = _child('dataset', mmengine_registry.DATASETS, 'mmcnx2.datasets')
FUNCTIONS = _child('function', mmengine_registry.FUNCTIONS, 'mmcnx2.datasets')
TRANSFORMS = _child('transform', mmengine_registry.TRANSFORMS, 'mmcnx2.datasets')
DATA_SAMPLERS = _child('data sampler', mmengine_registry.DATA_SAMPLERS, 'mmcnx2.datasets')
HOOKS = _child('hook', mmengine_registry.HOOKS, 'mmcnx2.engine')
LOOPS = _child('loop', mmengine_registry.LOOPS, 'mmcnx2.engine')
METRICS = _child('metric', mmengine_registry.METRICS, 'mmcnx2.engine')
OPTIM_WRAPPERS = _child('optimizer wrapper', mmengine_registry.OPTIM_WRAPPERS, 'mmcnx2.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    'optimizer wrapper constructor', mmengine_registry.OPTIM_WRAPPER_CONSTRUCTORS, 'mmcnx2.engine'
)
STRATEGIES = _child('strategy', mmengine_registry.STRATEGIES, 'mmcnx2.engine')
VISUALIZERS = _child('visualizer', mmengine_registry.VISUALIZERS, 'mmcnx2.engine')
