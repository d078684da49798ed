"""The reconstruction network of FADE's Table 1, right half."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fadeup.models.pretrained import Pretrained
from fadeup.upsamplers import A2U, IndexNet, build_upsampler, resolve

POOLINGS = ("max", "guided")


class Autoencoder(Pretrained, tags=["image-reconstruction"]):
    """Convolutional autoencoder whose upsampler is the argument.

        C(32) D C(64) D C(128) D C(256) C(128) U C(64) U C(32) U C(1)

    C is a 3x3 convolution with BatchNorm and ReLU (the last one without), D halves and U doubles the size. Each U is
    guided by the map that the D of its level took in, whose channels are its decoder's. After Index Networks (Lu et
    al., TPAMI 2022), whose protocol FADE follows; widths and details were not retrievable, so they are our choice.

    Args:
        upsampler: Key of `fadeup.UPSAMPLERS` or an alias.
        channels: Widths of the levels.
        in_channels: Of the picture.
        pooling: `"max"`, as in the paper, or `"guided"` for the pooling half of IndexNet and A2U.
        **options: Of the upsampler.

    Raises:
        ValueError: The upsampler or pooling is unknown, or the upsampler has no pooling half.
    """

    def __init__(
        self,
        upsampler: str = "fade",
        *,
        channels: tuple[int, ...] = (32, 64, 128),
        in_channels: int = 1,
        pooling: str = "max",
        **options: Any,
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be 'max' or 'guided', got {pooling!r}")
        if pooling == "guided":
            kind, _ = resolve(upsampler)
            if kind not in (IndexNet, A2U):
                raise ValueError(f"pooling must be 'max' for {upsampler!r}, which has no pooling half, got 'guided'")
            if kind is A2U:
                options["pooling"] = True
        self.pooling, self.in_channels = pooling, in_channels
        self.encoders = nn.ModuleList(conv_block(a, b) for a, b in pairwise((in_channels, *channels)))
        self.bottleneck = nn.Sequential(
            conv_block(channels[-1], 2 * channels[-1]), conv_block(2 * channels[-1], channels[-1])
        )
        self.decoders = nn.ModuleList(conv_block(b, a) for a, b in pairwise(channels))
        self.head = nn.Conv2d(channels[0], in_channels, 3, padding=1)
        # Upsamplers last: with one seed all other layers start the same whatever the upsampler draws.
        self.upsamplers = nn.ModuleList(build_upsampler(upsampler, width, width, **options) for width in channels)

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct `(B, in_channels, H, W)`, any size from 1 x 1; values as in the data, here 0–1."""
        x, guides = image, []
        for encoder, upsampler in zip(self.encoders, self.upsamplers, strict=True):
            guides.append(encoder(x))
            if isinstance(upsampler, IndexNet | A2U) and self.pooling == "guided":
                x = upsampler.pool(guides[-1])
            else:
                x = F.max_pool2d(guides[-1], 2, ceil_mode=True)
        x = self.bottleneck(x)
        for level in reversed(range(len(guides))):
            x = self.upsamplers[level](x, guides[level])
            x = self.decoders[level - 1](x) if level else self.head(x)
        return x


def conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
