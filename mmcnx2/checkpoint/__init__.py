"""Checkpoints from anywhere: read safely (read.py), converted strictly (convert.py) by tables (key_rules.py), loaded
completely or not at all (load.py), as a module's init_cfg asks (init_cfg.py), written whole (save.py); published ones
by name (official_weights.py).

Nothing here builds a model: the backbones import this package. Guarded by tests/checkpoint/.
"""

from mmcnx2.checkpoint.convert import CheckpointError, convert_state_dict, detect_layout
from mmcnx2.checkpoint.init_cfg import pretrained_options
from mmcnx2.checkpoint.load import load_pretrained_backbone, load_pretrained_fcmae
from mmcnx2.checkpoint.read import read_checkpoint
from mmcnx2.checkpoint.save import save_checkpoint_atomically

__all__ = [
    'CheckpointError',
    'convert_state_dict',
    'detect_layout',
    'load_pretrained_backbone',
    'load_pretrained_fcmae',
    'pretrained_options',
    'read_checkpoint',
    'save_checkpoint_atomically',
]
