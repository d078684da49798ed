"""CARAFE: kernels from the decoder alone.

Source: Wang et al., CARAFE: Content-Aware ReAssembly of FEatures, ICCV 2019.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fadeup.functional import check_count, check_impl, check_kernel_size, compressed_conv, reassemble
from fadeup.upsamplers.fade import Fusion, xavier_
from fadeup.upsamplers.upsampler import Upsampler


class CARAFE(Upsampler):
    """CARAFE: each decoder point predicts the kernels of the scale² output pixels above it.

        logits = pixel_shuffle(Conv3x3(Conv1x1(decoder)), scale)        K*K kernel weights per output pixel and group
        out    = reassemble(decoder, softmax(logits))

    64 C + 57764 parameters and n (64 C + 57600) + 100 n C multiply–accumulates for n decoder positions at 2x. It is
    B2, "decoder-only", of FADE's Table 4; `fusion="gate"` is the "CARAFE + gate" of its Table 2.

    Args:
        decoder_channels: C.
        encoder_channels: Used by `fusion` only.
        scale: Whole number.
        kernel_size: K, odd.
        compressed_channels: Channels after the 1x1 convolution.
        conv_size: Window of the convolution that predicts kernels, odd.
        groups: Groups of channels with kernels of their own; must divide C, and be 1 with `fusion`.
        fusion: `"none"`, `"gate"` or `"skip"`, as in FADE.
        impl: Implementation of `reassemble`.
    """

    works_in_phases = True

    def __init__(
        self,
        decoder_channels: int,
        encoder_channels: int | None = None,
        *,
        scale: int = 2,
        kernel_size: int = 5,
        compressed_channels: int = 64,
        conv_size: int = 3,
        groups: int = 1,
        fusion: str = "none",
        impl: str = "auto",
    ):
        super().__init__(decoder_channels, encoder_channels, scale=scale)
        check_kernel_size("kernel_size", kernel_size)
        check_kernel_size("conv_size", conv_size)
        check_count("compressed_channels", compressed_channels)
        if decoder_channels % check_count("groups", groups) or (groups > 1 and fusion != "none"):
            raise ValueError(f"groups must divide the {decoder_channels} channels, and be 1 with fusion, got {groups}")
        self.kernel_size, self.groups, self.impl = kernel_size, groups, check_impl(impl)
        out_channels = int(self.scale) ** 2 * kernel_size**2 * groups
        self.compressor = nn.Conv2d(decoder_channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(compressed_channels, out_channels, conv_size, padding="same")
        self.fusion = Fusion(fusion, decoder_channels, self.encoder_channels)
        xavier_(self)
        nn.init.normal_(self.content_encoder.weight, std=1e-3)

    def upsample(self, decoder: Tensor, encoder: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Kernels, reassembly and, where asked, fusion."""
        compressor, content_encoder = self.compressor, self.content_encoder
        logits = compressed_conv(
            decoder, compressor.weight, compressor.bias, content_encoder.weight, content_encoder.bias
        )
        logits = F.pixel_shuffle(logits, int(self.scale))
        if self.groups == 1:
            return self.fusion(decoder, encoder, logits, None, self.impl)
        batch, channels, height, width = decoder.shape
        folded = decoder.reshape(batch * self.groups, channels // self.groups, height, width)
        up = reassemble(folded, logits.reshape(batch * self.groups, -1, *size), impl=self.impl)
        return up.reshape(batch, channels, *size)

    def macs(self, height: int, width: int) -> int:
        """Kernel generation and reassembly, and the fusion's."""
        positions, out_positions = self.positions(height, width)
        generation = (self.compressor.weight.numel() + self.content_encoder.weight.numel()) * positions
        reassembly = self.kernel_size**2 * self.decoder_channels * out_positions
        return generation + reassembly + self.fusion.macs(positions, out_positions)


OFFICIAL_KEYS = (
    {  # mmcv's CARAFEPack
        "channel_compressor.weight": "compressor.weight",
        "channel_compressor.bias": "compressor.bias",
        "content_encoder.weight": "content_encoder.weight",
        "content_encoder.bias": "content_encoder.bias",
    },
)
