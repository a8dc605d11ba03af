"""Checkpoints from anywhere: read safely (load.py), converted strictly (convert.py) by tables (key_rules.py)."""
from mmcnx2.checkpoint.convert import CheckpointError, convert_state_dict, detect_layout

__all__ = ['CheckpointError', 'convert_state_dict', 'detect_layout']
