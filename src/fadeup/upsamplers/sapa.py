"""SAPA: kernels from the similarity of encoder and decoder points.

Source: Lu, Liu, Ye, Fu, Liu, Cao, SAPA: Similarity-Aware Point Affiliation for Feature Upsampling, NeurIPS 2022.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fadeup.functional import check_choice, check_count, check_impl, check_kernel_size, reassemble, window_dot
from fadeup.upsamplers.upsampler import Upsampler

NORMS = ("group", "layer")


class SAPA(Upsampler):
    """SAPA-B: each encoder point attends to the decoder window below it.

        q      = Conv1x1(norm(encoder)),   k = Conv1x1(norm(decoder))
        logits = Σ_d q · window(k)                                        not scaled; 0 for taps outside the decoder
        out    = reassemble(decoder, softmax(logits))

    With d = 32 and equal channels C, 68 C + 64 parameters. Serves any ratio of sizes and any channels.

    Args:
        decoder_channels: C.
        encoder_channels: Channels of the high-resolution map.
        scale: For `macs` and repr; in the call the encoder's size decides.
        kernel_size: K, odd.
        embedding_dim: d; 32 gives the parameters the paper reports, 64 is the default of the first public code.
        norm: `"group"` (32 groups, or as many of them as divide the channels) or `"layer"` (over channels at each
            point), as in the second and first public code.
        impl: Implementation of `reassemble` and `window_dot`.
    """

    needs_encoder = True

    def __init__(
        self,
        decoder_channels: int,
        encoder_channels: int | None = None,
        *,
        scale: float = 2,
        kernel_size: int = 5,
        embedding_dim: int = 32,
        norm: str = "group",
        impl: str = "auto",
    ):
        super().__init__(decoder_channels, encoder_channels, scale=scale)
        check_choice("norm", norm, NORMS)
        self.kernel_size, self.impl = check_kernel_size("kernel_size", kernel_size), check_impl(impl)
        make = PointNorm if norm == "layer" else PlainGroupNorm
        self.norm_encoder, self.norm_decoder = make(self.encoder_channels), make(decoder_channels)
        check_count("embedding_dim", embedding_dim)
        self.query = nn.Conv2d(self.encoder_channels, embedding_dim, 1)
        self.key = nn.Conv2d(decoder_channels, embedding_dim, 1)
        for part in (self.query, self.key):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]

    def upsample(self, decoder: Tensor, encoder: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Similarities, then reassembly of the decoder as it came; `encoder` is there, for `needs_encoder`."""
        query, key = self.query(self.norm_encoder(encoder)), self.key(self.norm_decoder(decoder))
        logits = window_dot(query, key, self.kernel_size, impl=self.impl)
        return reassemble(decoder, logits, impl=self.impl)

    def macs(self, height: int, width: int) -> int:
        """Embeddings, similarities and reassembly; the norms are left out."""
        positions, out_positions = self.positions(height, width)
        embeddings = self.query.weight.numel() * out_positions + self.key.weight.numel() * positions
        taps = self.kernel_size**2
        return embeddings + taps * (self.query.out_channels + self.decoder_channels) * out_positions


class PlainGroupNorm(nn.GroupNorm):
    """GroupNorm of 32 groups, or as many of them as divide the channels; takes a single point of one channel too.

    `F.group_norm` refuses a group of one value, in evaluation as well, though its result, the bias, is well defined.
    """

    def __init__(self, channels: int):
        super().__init__(math.gcd(32, channels), channels)

    def forward(self, input: Tensor) -> Tensor:
        """Normalised map of the same shape."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class PointNorm(nn.LayerNorm):
    """LayerNorm over the channels of each point of a `(B, C, H, W)` map."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalised map of the same shape."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


OFFICIAL_KEYS = (
    {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in {"norm_y": "norm_encoder", "norm_x": "norm_decoder", "q": "query", "k": "key"}.items()
        for kind in ("weight", "bias")
    },
)
