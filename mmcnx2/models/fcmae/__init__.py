"""FCMAE pretraining, one file per step."""

from .decoder import FCMAEDecoder
from .fcmae import FCMAE
from .pixel_loss import PixelReconstructionHead
from .transformer_decoder import TransformerDecoder
from .unet_decoder import UNetDecoder

__all__ = ['FCMAE', 'FCMAEDecoder', 'PixelReconstructionHead', 'TransformerDecoder', 'UNetDecoder']
