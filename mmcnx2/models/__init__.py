"""Everything that a config can build as a model. Imported by the registry when it is first asked."""

from .backbones import ConvNeXtV2
from .fcmae import FCMAE, FCMAEDecoder, PixelReconstructionHead, TransformerDecoder, UNetDecoder

__all__ = ['FCMAE', 'ConvNeXtV2', 'FCMAEDecoder', 'PixelReconstructionHead', 'TransformerDecoder', 'UNetDecoder']
