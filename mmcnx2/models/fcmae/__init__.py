"""FCMAE pretraining, one file per step."""

from .decoder import FCMAEDecoder
from .fcmae import FCMAE
from .pixel_loss import PixelReconstructionHead

__all__ = ['FCMAE', 'FCMAEDecoder', 'PixelReconstructionHead']
