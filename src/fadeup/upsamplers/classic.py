"""Upsamplers from before dynamic kernels: nearest, bilinear, deconvolution, pixel shuffle, max unpooling."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fadeup.functional import check_impl, nearest
from fadeup.upsamplers.fade import Fusion
from fadeup.upsamplers.upsampler import Upsampler


class Nearest(Upsampler):
    """Nearest neighbour: `out[y, x] = decoder[(y * H) // H', (x * W) // W']`.

    Any ratio not below 1. `fusion="gate"` is the "NN + gate" of FADE's Table 2.

    Args:
        decoder_channels: C.
        encoder_channels: Used by `fusion` only.
        scale: At least 1.
        fusion: `"none"`, `"gate"` or `"skip"`, as in FADE.
        impl: Implementation of the fused reassembly and gate.
    """

    def __init__(
        self,
        decoder_channels: int,
        encoder_channels: int | None = None,
        *,
        scale: float = 2,
        fusion: str = "none",
        impl: str = "auto",
    ):
        super().__init__(decoder_channels, encoder_channels, scale=scale)
        self.fusion, self.impl = Fusion(fusion, decoder_channels, self.encoder_channels), check_impl(impl)

    def upsample(self, decoder: Tensor, encoder: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Indexing; with `fusion`, reassembly by a kernel of one tap."""
        if self.fusion.mode == "none":
            return nearest(decoder, size)
        return self.fusion(decoder, encoder, decoder.new_zeros(decoder.shape[0], 1, *size), None, self.impl)

    def macs(self, height: int, width: int) -> int:
        """The fusion's; 0 without."""
        return self.fusion.macs(*self.positions(height, width))


class Bilinear(Upsampler):
    """Bilinear interpolation with pixel centres aligned (`align_corners=False`). Any ratio not below 1."""

    def upsample(self, decoder: Tensor, encoder: Tensor | None, size: tuple[int, int]) -> Tensor:
        """`F.interpolate`."""
        return F.interpolate(decoder, size, mode="bilinear", align_corners=False)

    def macs(self, height: int, width: int) -> int:
        """Four per output value; the papers count interpolation as nothing."""
        return 4 * self.decoder_channels * self.positions(height, width)[1]


class Deconvolution(Upsampler):
    """Transposed convolution, C to C channels, stride `scale`, window `2 * scale - 1`.

    At 2x it is the papers' 3x3 with padding 1 and output padding 1: 9 C² + C parameters, 9 C² n multiply–accumulates.

    Source: Zeiler et al., Deconvolutional Networks, CVPR 2010.
    """

    works_in_phases = True

    def __init__(self, decoder_channels: int, encoder_channels: int | None = None, *, scale: int = 2):
        super().__init__(decoder_channels, encoder_channels, scale=scale)
        s = int(self.scale)
        self.conv = nn.ConvTranspose2d(decoder_channels, decoder_channels, 2 * s - 1, s, s - 1, s - 1)

    def upsample(self, decoder: Tensor, encoder: Tensor | None, size: tuple[int, int]) -> Tensor:
        """The transposed convolution."""
        return self.conv(decoder)

    def macs(self, height: int, width: int) -> int:
        """Every weight once per low-resolution position."""
        return self.conv.weight.numel() * height * width


class PixelShuffle(Upsampler):
    """3x3 convolution to `scale² C` channels, then channels become pixels.

    36 C² + 4 C parameters at 2x, 36 C² n multiply–accumulates.

    Source: Shi et al., Real-Time Single Image and Video Super-Resolution, CVPR 2016.
    """

    works_in_phases = True

    def __init__(self, decoder_channels: int, encoder_channels: int | None = None, *, scale: int = 2):
        super().__init__(decoder_channels, encoder_channels, scale=scale)
        self.conv = nn.Conv2d(decoder_channels, decoder_channels * int(self.scale) ** 2, 3, padding=1)

    def upsample(self, decoder: Tensor, encoder: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Convolution and shuffle."""
        return F.pixel_shuffle(self.conv(decoder), int(self.scale))

    def macs(self, height: int, width: int) -> int:
        """Every weight once per low-resolution position."""
        return self.conv.weight.numel() * height * width


class MaxUnpool(Upsampler):
    """Max unpooling: each decoder value goes to the place of the maximum of its encoder block, zeros elsewhere.

    Needs equal channels: the encoder is the map that max pooling of window and stride `scale` was applied to.

    Source: Badrinarayanan et al., SegNet, TPAMI 2017.
    """

    needs_encoder = True
    works_in_phases = True

    def __init__(self, decoder_channels: int, encoder_channels: int | None = None, *, scale: int = 2):
        super().__init__(decoder_channels, encoder_channels, scale=scale)
        if self.encoder_channels != decoder_channels:
            raise ValueError(
                f"encoder_channels must be {decoder_channels} like decoder_channels for max unpooling, got "
                f"{self.encoder_channels}; project the encoder before it is pooled"
            )

    def upsample(self, decoder: Tensor, encoder: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Indices of the encoder's maxima, then unpooling."""
        assert encoder is not None
        _, indices = F.max_pool2d(encoder, int(self.scale), return_indices=True)
        return F.max_unpool2d(decoder, indices, [int(self.scale)] * 2, output_size=list(size))

    def macs(self, height: int, width: int) -> int:
        """Nothing is multiplied."""
        return 0
