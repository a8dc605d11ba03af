"""A config and a checkpoint -> a model that is looked at: a whole pretraining model, or the backbone of any task.

Nothing here trains. Touch this file for what is built from a config to be looked at; what is accepted into a model is
decided in mmcnx2/checkpoint/load.py. Guarded by tests/analysis/test_trained_models.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmcnx2.checkpoint import load_pretrained_backbone, load_pretrained_fcmae, read_checkpoint
from mmcnx2.checkpoint.official_weights import local_file
from mmcnx2.registry import MODELS

from .pictures import build_preprocessor, preprocessed, preprocessor_config

RANDOM = 'random'  # instead of a checkpoint


def load_trained_fcmae(cfg: Config, checkpoint: str | os.PathLike) -> nn.Module:
    """The pretraining model of a config in evaluation mode, with all values of the checkpoint and no others.

    The checkpoint is of such a run, or of the official code's FCMAE with its decoder.

    Raises:
        ValueError: the config builds no FCMAE, or the checkpoint does not fit (CheckpointError).
    """
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model)
    if not hasattr(model, 'reconstruct'):
        raise ValueError(
            f'{cfg.filename} builds a {type(model).__name__}, which reconstructs nothing; give one of an FCMAE run'
        )
    weights = read_checkpoint(checkpoint)['state_dict']
    own = model.state_dict()
    if {name: tensor.shape for name, tensor in weights.items()} == {name: own[name].shape for name in own}:
        model.load_state_dict(weights)
    else:  # of another layout; where it is not, this says what does not fit
        load_pretrained_fcmae(model, checkpoint)
    return model.eval()


@dataclass(frozen=True)
class TrainedBackbone:
    """A backbone in evaluation mode and what turns pictures into its images.

    `origin` says in words where the weights are from; `digest` is the SHA-256 of the checkpoint file, or of
    random weights; `settings` are the config of the backbone and of its preprocessor, as text.
    """

    model: nn.Module
    preprocessor: nn.Module | None
    origin: str
    digest: str
    settings: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def images(self, pictures_BCHW: Tensor) -> Tensor:
        """What the backbone gets for pictures as a reader of the config gives them."""
        return preprocessed(pictures_BCHW.to(self.device), self.preprocessor)


def load_trained_backbone(
    cfg: Config, checkpoint: str | os.PathLike, seed: int = 0, device: torch.device | str = 'cpu'
) -> TrainedBackbone:
    """The backbone of a config of any task (pretraining, classification, detection, segmentation).

    Args:
        cfg: whole config.
        checkpoint: a file of any layout that `load_pretrained_backbone` reads, 'official:NAME', or 'random' for the
            values that training starts from.
        seed: of random weights; it leaves torch's generator as it was.
        device: where the backbone lies.

    Raises:
        ValueError: the config has no backbone, or the checkpoint does not fit it (CheckpointError).
    """
    backbone_cfg = cfg.model.get('backbone')
    if not isinstance(backbone_cfg, dict):
        raise ValueError(f'{cfg.filename} has no model.backbone')
    backbone_cfg = {key: value for key, value in backbone_cfg.items() if key != 'init_cfg'}
    if str(cfg.model.get('type')).endswith('FCMAE'):  # as FCMAE sets them
        backbone_cfg.update(out_norm=False, out_indices=-1)
    devices = [torch.device(device)] if torch.device(device).type == 'cuda' else []
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        model = MODELS.build(backbone_cfg)
        if str(checkpoint) == RANDOM:
            model.init_weights()
    if str(checkpoint) == RANDOM:
        origin, digest = f'random weights, seed {seed}', f'{RANDOM} {_values_sha256(model)}'
    else:
        path = local_file(checkpoint)
        load_pretrained_backbone(model, path)
        origin, digest = str(checkpoint), file_sha256(path)
    preprocessor = build_preprocessor(cfg)
    settings = json.dumps([backbone_cfg, preprocessor_config(cfg)], sort_keys=True, default=str)
    return TrainedBackbone(model.eval().to(device), preprocessor and preprocessor.to(device), origin, digest, settings)


def file_sha256(path: str | os.PathLike) -> str:
    with Path(path).expanduser().open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _values_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
