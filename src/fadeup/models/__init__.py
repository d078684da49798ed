"""Networks that take `upsampler="fade"`, or any other name."""

from fadeup.models.autoencoder import Autoencoder

__all__ = ["Autoencoder"]
