"""Networks that take `upsampler="fade"`, or any other name."""

from fadeup.models.autoencoder import Autoencoder
from fadeup.models.matting import MattingNet
from fadeup.models.segformer import SegFormer
from fadeup.models.segnet import SegNet
from fadeup.models.weights import load_backbone, normalisation

__all__ = ["Autoencoder", "MattingNet", "SegFormer", "SegNet", "load_backbone", "normalisation"]
