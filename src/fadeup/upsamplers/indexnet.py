"""IndexNet: upsampling by learned indices, predicted from the encoder.

Source: Lu, Dai, Shen, Xu, Indices Matter: Learning to Index for Deep Image Matting, ICCV 2019.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadeup.functional import check_choice, check_count, check_map, nearest
from fadeup.kernels.op import match_format
from fadeup.upsamplers.upsampler import Upsampler, extended

MODES = ("holistic", "o2o", "m2o")


class IndexNet(Upsampler):
    """IndexNet: the decoder, spread by nearest neighbour, times indices that the encoder predicts.

        y                = sigmoid(blocks(encoder))                    4 values per 2x2 block (and channel)
        index_of_pooling = pixel_shuffle(softmax of y over the 4)
        index_of_up      = pixel_shuffle(y)
        pool(encoder)    = 4 * avg_pool2d(index_of_pooling * encoder, 2)
        out              = index_of_up * nearest(decoder)

    `"holistic"` predicts one index map for all channels; `"o2o"` one per channel from that channel, `"m2o"` one per
    channel from all channels; the last two need equal encoder and decoder channels. 2x only. An odd encoder is
    extended by repeating its last row and column.

    Args:
        decoder_channels: C.
        encoder_channels: Must be C, save for `"holistic"`.
        scale: 2.
        mode: `"holistic"`, `"o2o"` or `"m2o"`.
        nonlinear: A hidden layer with BatchNorm and ReLU6, then a 1x1 convolution; else one convolution.
        context: Windows of 4x4 in place of 2x2.
        hidden_channels: Width of the hidden layer; by default 2 C (holistic) or C. The 12.26 M parameters of FADE's
            Table 3 are `"m2o"` with 2 C; the released code has C.
    """

    needs_encoder = True
    works_in_phases = True

    def __init__(
        self,
        decoder_channels: int,
        encoder_channels: int | None = None,
        *,
        scale: int = 2,
        mode: str = "m2o",
        nonlinear: bool = True,
        context: bool = True,
        hidden_channels: int | None = None,
    ):
        super().__init__(decoder_channels, encoder_channels, scale=scale)
        if self.scale != 2:
            raise ValueError(f"scale must be 2 for IndexNet, got {scale!r}")
        check_choice("mode", mode, MODES)
        if mode != "holistic" and self.encoder_channels != decoder_channels:
            raise ValueError(
                f"encoder_channels must be {decoder_channels} like decoder_channels for IndexNet's depthwise indices, "
                f"got {self.encoder_channels}; use mode='holistic', or project the encoder"
            )
        self.mode = mode
        channels = self.encoder_channels
        groups = channels if mode == "o2o" else 1
        out = 4 if mode == "holistic" else channels
        if hidden_channels is None:
            hidden_channels = 2 * channels if mode == "holistic" else channels
        hidden = check_count("hidden_channels", hidden_channels)
        size, padding = (4, 1) if context else (2, 0)

        def block() -> nn.Sequential:
            if not nonlinear:
                return nn.Sequential(nn.Conv2d(channels, out, size, 2, padding, groups=groups, bias=False))
            return nn.Sequential(
                nn.Conv2d(channels, hidden, size, 2, padding, groups=groups, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU6(inplace=True),
                nn.Conv2d(hidden, out, 1, groups=groups, bias=False),
            )

        self.blocks = nn.ModuleList(block() for _ in range(1 if mode == "holistic" else 4))

    def indices(self, encoder: Tensor) -> tuple[Tensor, Tensor]:
        """`(index_of_pooling, index_of_up)`, each `(B, C or 1, H', W')` in 0–1, for an encoder of even size."""
        check_map("encoder", encoder, self.encoder_channels)
        check_even(encoder)
        y = self._scores(encoder)
        return shuffle(y.softmax(1 if self.mode == "holistic" else 2)), shuffle(y)

    def pool(self, encoder: Tensor) -> Tensor:
        """The pooling half: `(B, C, H', W')` to half that size, rounded up."""
        check_map("encoder", encoder, self.encoder_channels)
        encoder = even(encoder)
        return match_format(4 * F.avg_pool2d(self.indices(encoder)[0] * encoder, 2), encoder)

    def upsample(self, decoder: Tensor, encoder: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Indices times the decoder; `encoder` is there, for `needs_encoder`."""
        assert encoder is not None
        return shuffle(self._scores(encoder)) * nearest(decoder, size)

    def macs(self, height: int, width: int) -> int:
        """The convolutions. Multiplying by the indices is left out, as in the papers' counts."""
        weights = (part.weight.numel() for part in self.modules() if isinstance(part, nn.Conv2d))
        return sum(weights) * height * width

    def _scores(self, encoder: Tensor) -> Tensor:
        """`(B, C, 4, h, w)`, holistic `(B, 4, 1, h, w)`, in 0–1."""
        return torch.stack([block(encoder) for block in self.blocks], dim=2).sigmoid()


def shuffle(y: Tensor) -> Tensor:
    """The four values of each block to the pixels of that block, `(B, C or 1, 2h, 2w)`."""
    return F.pixel_shuffle(y.flatten(1, 2), 2)


def check_even(encoder: Tensor) -> None:
    """Raise unless height and width are even: indices come by blocks of 2 x 2."""
    height, width = encoder.shape[2:]
    if height % 2 or width % 2:
        raise ValueError(f"encoder must be even in height and width for its indices, got {height} x {width}")


def even(encoder: Tensor) -> Tensor:
    """`encoder` extended to even height and width by repeating its last row and column."""
    height, width = encoder.shape[2:]
    return extended(encoder, ((height + 1) // 2 * 2, (width + 1) // 2 * 2), 2)


_PARTS = ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "3.weight")
OFFICIAL_KEYS = (
    {f"indexnet{i + 1}.{part}": f"blocks.{i}.{part}" for i in range(4) for part in _PARTS},  # depthwise
    {f"indexnet.{part}": f"blocks.0.{part}" for part in _PARTS},  # holistic, nonlinear
    {"indexnet.weight": "blocks.0.0.weight"},  # holistic, linear
)
