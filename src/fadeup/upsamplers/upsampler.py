"""What every upsampler shares: its call, its checks, and the size of its output."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadeup.functional import check_alike, check_count, check_map, check_not_smaller, nearest
from fadeup.kernels.op import in_autocast, match_format


class Upsampler(nn.Module):
    """`X(decoder_channels, encoder_channels=None, *, scale=2, ...)` and `forward(decoder, encoder=None)`.

    The output is `(B, decoder_channels, H', W')`. It has the encoder's size where there is an encoder, any size not
    below the decoder's, odd ones too; else `scale` times the decoder's, rounded down. A method that works in phases
    (`works_in_phases`) computes whole multiples: it takes an encoder with `(H - 1) * scale < H' <= H * scale`, extends
    one that falls short by repeating its last row and column, and crops the result at the bottom and right.

    To write an upsampler, subclass and define `upsample` and `macs`.

    Args:
        decoder_channels: Channels of the low-resolution map, and of the result.
        encoder_channels: Channels of the high-resolution map; the decoder's where None.
        scale: Ratio of sizes, at least 1; a whole number for methods that work in phases.

    Raises:
        ValueError: A number is out of range, or in the call a rank, size, channel count, dtype or device is wrong.
    """

    needs_encoder: ClassVar[bool] = False
    """Whether the encoder's values are used by the plain method (its size always is)."""
    works_in_phases: ClassVar[bool] = False

    def __init__(self, decoder_channels: int, encoder_channels: int | None = None, *, scale: float = 2):
        super().__init__()
        encoder_channels = decoder_channels if encoder_channels is None else encoder_channels
        for name, channels in (("decoder_channels", decoder_channels), ("encoder_channels", encoder_channels)):
            check_count(name, channels)
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale) or scale < 1:
            raise ValueError(f"scale must be a number not below 1, got {scale!r}")
        if self.works_in_phases and scale != int(scale):
            raise ValueError(f"scale must be a whole number for {type(self).__name__}, got {scale!r}; {ANY_RATIO}")
        self.decoder_channels, self.encoder_channels = decoder_channels, encoder_channels
        self.scale = int(scale) if scale == int(scale) else scale

    @property
    def reads_encoder(self) -> bool:
        """Whether the encoder's values, not only its size, enter the result."""
        fusion = getattr(self, "fusion", None)
        return self.needs_encoder or (fusion is not None and fusion.mode != "none")

    def upsample(self, decoder: Tensor, encoder: Tensor | None, size: tuple[int, int]) -> Tensor:
        """The method itself: checked maps in, a map of `size` out."""
        raise NotImplementedError(f"{type(self).__name__} must define upsample(decoder, encoder, size)")

    def macs(self, height: int, width: int) -> int:
        """Multiply–accumulates for one decoder map of `height` x `width`, output `scale` times as large."""
        raise NotImplementedError(f"{type(self).__name__} must define macs(height, width)")

    def forward(self, decoder: Tensor, encoder: Tensor | None = None) -> Tensor:
        """Upsample `decoder` `(B, C, H, W)` to the size of `encoder` `(B, C_en, H', W')`, or by `scale`."""
        self._check(decoder, encoder)
        size = self._scaled(decoder) if encoder is None else (encoder.shape[2], encoder.shape[3])
        if decoder.shape[0] == 0:
            return nearest(decoder, size)  # nothing to compute; keeps the graph
        if not self.works_in_phases:
            return match_format(self.upsample(decoder, encoder, size), decoder)
        full = self._scaled(decoder)
        if encoder is not None and self.reads_encoder:
            encoder = extended(encoder, full, int(self.scale))
        out = self.upsample(decoder, encoder, full)
        return match_format(out if encoder is None else cropped(out, size), decoder)

    def extra_repr(self) -> str:
        """Channels and scale, as given."""
        return f"{self.decoder_channels}, encoder_channels={self.encoder_channels}, scale={self.scale}"

    def _scaled(self, decoder: Tensor) -> tuple[int, int]:
        return self._times(decoder.shape[2]), self._times(decoder.shape[3])

    def _times(self, side: int) -> int:
        """`side * scale`, rounded down but for rounding errors; whole scales keep symbolic sizes symbolic."""
        if isinstance(self.scale, int):
            return side * self.scale
        if torch.compiler.is_exporting():  # in integers, which stay symbolic too
            ratio = Fraction(self.scale).limit_denominator(10**6)
            return side * ratio.numerator // ratio.denominator
        return int(side * self.scale + 1e-9)

    def positions(self, height: int, width: int) -> tuple[int, int]:
        """Numbers of low-resolution and of output positions, for `macs`."""
        return height * width, self._times(height) * self._times(width)

    def _check(self, decoder: Tensor, encoder: Tensor | None) -> None:
        name = type(self).__name__
        check_map("decoder", decoder, self.decoder_channels)
        weight = next(self.parameters(), None)
        if weight is not None:
            if weight.device != decoder.device:
                raise ValueError(
                    f"decoder must be on {weight.device} like the weights of {name}, got {decoder.device}; "
                    "move one of them with .to(...)"
                )
            if weight.dtype != decoder.dtype and not in_autocast(decoder):
                raise ValueError(
                    f"decoder must be {weight.dtype} like the weights of {name}, got {decoder.dtype}; "
                    "convert one of them with .to(...), or use torch.autocast"
                )
        if encoder is None:
            if self.reads_encoder:
                raise ValueError(f"encoder must be given: {name} upsamples with it, got None; {WITHOUT_ENCODER}")
            return
        check_map("encoder", encoder, self.encoder_channels if self.reads_encoder else None)
        check_alike("encoder", encoder, "decoder", decoder)
        self._check_size(decoder, encoder)

    def _check_size(self, decoder: Tensor, encoder: Tensor) -> None:
        (height, width), (out_height, out_width) = decoder.shape[2:], encoder.shape[2:]
        if not self.works_in_phases:
            check_not_smaller("encoder", encoder, "decoder", decoder, "; the call is upsampler(decoder, encoder)")
            return
        s = int(self.scale)
        if not ((height - 1) * s < out_height <= height * s and (width - 1) * s < out_width <= width * s):
            rule = f"{(height - 1) * s + 1} to {height * s} high and {(width - 1) * s + 1} to {width * s} wide"
            raise ValueError(
                f"encoder must be {rule} for {type(self).__name__} at scale {s} over a decoder of {height} x {width}, "
                f"got {out_height} x {out_width}; {ANY_RATIO}"
            )


def extended(encoder: Tensor, size: tuple[int, int], scale: int) -> Tensor:
    """`encoder` brought to `size` by repeating its last row and column fewer than `scale` times."""
    if torch.compiler.is_exporting():  # a comparison of sizes would fix in the graph whether it falls short
        return cropped(F.pad(encoder, (0, scale - 1, 0, scale - 1), mode="replicate"), size)
    height, width = encoder.shape[2:]
    if (height, width) == size:
        return encoder
    return F.pad(encoder, (0, size[1] - width, 0, size[0] - height), mode="replicate")


def cropped(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The first rows and columns of `x`."""
    if not torch.compiler.is_exporting():
        return x[:, :, : size[0], : size[1]]
    # By index: of a slice the exporter asks whether it is contiguous, which fixes whether anything is cut off.
    rows, columns = (torch.arange(side, device=x.device) for side in size)
    return x.index_select(2, rows).index_select(3, columns)


ANY_RATIO = "'fade', 'fade_lite', 'sapa', 'nearest' and 'bilinear' serve any ratio"
WITHOUT_ENCODER = "'carafe', 'dysample', 'nearest', 'bilinear', 'deconv' and 'pixel_shuffle' do without"
