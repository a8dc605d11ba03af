"""What training needs besides a model and data: precision, parameter groups, guards, checkpoints, loops that can be
interrupted.

Imported as a whole by the registries of `mmcnx2/registry.py`; touch this file to add a module to the package.
"""

from .atomic_backend import AtomicBackend
from .average_loss_hook import AverageLossHook
from .bf16_optim_wrapper import BF16OptimWrapper
from .captured_step import CapturedStepHook
from .checkpoint_hook import CheckpointHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .non_finite_guard import NonFiniteGuardHook
from .picture_hooks import CollapseHook, ReconstructionHook
from .skipped_images import SkippedImagesHook
from .train_loops import EpochBasedTrainLoop, IterBasedTrainLoop

__all__ = [
    'AtomicBackend',
    'AverageLossHook',
    'BF16OptimWrapper',
    'CapturedStepHook',
    'CheckpointHook',
    'CollapseHook',
    'EpochBasedTrainLoop',
    'IterBasedTrainLoop',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteGuardHook',
    'ReconstructionHook',
    'SkippedImagesHook',
]
