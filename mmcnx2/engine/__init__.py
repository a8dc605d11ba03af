"""What training needs besides a model and data: precision, parameter groups.

Imported as a whole by the registries of `mmcnx2/registry.py`; touch this file to add a module to the package.
"""

from .average_loss_hook import AverageLossHook
from .bf16_optim_wrapper import BF16OptimWrapper
from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = ['AverageLossHook', 'BF16OptimWrapper', 'LayerDecayOptimWrapperConstructor']
