"""DySample: upsampling by point sampling at learned offsets, from the decoder alone.

Source: Liu, Lu, Fu, Cao, Learning to Upsample by Learning to Sample, ICCV 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadeup.functional import check_choice, check_count
from fadeup.upsamplers.upsampler import Upsampler

STYLES = ("lp", "pl")


class DySample(Upsampler):
    """DySample: each output pixel is a bilinear sample of the decoder at a predicted point.

        offset = 0.25 * Conv1x1(decoder) + start                         start: the points of bilinear upsampling
        offset = 0.5 * sigmoid(Conv1x1(decoder)) * Conv1x1(decoder) + start                    with `dyscope`
        out    = grid_sample(decoder, pixel centres + offset)            bilinear, border values beyond the edge

    In style `"lp"` the convolution runs at low resolution and its channels are shuffled to pixels; in style `"pl"`
    the decoder is shuffled first. Groups of channels have offsets of their own. Parameters at 2x with 4 groups:
    lp 32 C + 32 (dyscope 64 C + 32), pl 2 C + 8 (dyscope 4 C + 8).

    Args:
        decoder_channels: C.
        encoder_channels: Unused; DySample looks at the decoder only.
        scale: Whole number.
        style: `"lp"` or `"pl"`; `"pl"` needs C divisible by scale².
        groups: Must divide C.
        dyscope: Predict the range of the offsets too.
    """

    works_in_phases = True
    start: Tensor

    def __init__(
        self,
        decoder_channels: int,
        encoder_channels: int | None = None,
        *,
        scale: int = 2,
        style: str = "lp",
        groups: int = 4,
        dyscope: bool = False,
    ):
        super().__init__(decoder_channels, encoder_channels, scale=scale)
        check_choice("style", style, STYLES)
        if decoder_channels % check_count("groups", groups):
            raise ValueError(f"groups must be a divisor of {decoder_channels} channels, got {groups}")
        s = int(self.scale)
        if style == "pl" and decoder_channels % s**2:
            raise ValueError(f"decoder_channels must be divisible by {s**2} for style 'pl', got {decoder_channels}")
        self.style, self.groups = style, groups
        shuffled = 1 if style == "lp" else s**2  # "pl" moves channels to pixels before its convolution
        channels, out = decoder_channels // shuffled, 2 * groups * s**2 // shuffled
        self.offset = nn.Conv2d(channels, out, 1)
        nn.init.normal_(self.offset.weight, std=1e-3)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        self.scope = nn.Conv2d(channels, out, 1, bias=False) if dyscope else None
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)
        steps = (torch.arange(s) - (s - 1) / 2) / s
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        start = torch.stack([x, y]).reshape(2, 1, s * s).expand(2, groups, s * s)
        self.register_buffer("start", start.reshape(1, -1, 1, 1).contiguous())

    def upsample(self, decoder: Tensor, encoder: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Offsets, then sampling in at least float32, where half precision would misplace points."""
        dtype = torch.promote_types(decoder.dtype, torch.float32)
        points = self._points(self._offsets(decoder).to(dtype), int(self.scale))
        if points.requires_grad and not torch.compiler.is_exporting():
            # Torch takes NaN to the first pixel, but its gradient there writes outside the map and may end the process.
            points = points.masked_fill(points.isnan(), -1)
        batch, channels, height, width = decoder.shape
        folded = decoder.to(dtype).reshape(batch * self.groups, channels // self.groups, height, width)
        sampled = F.grid_sample(folded, points, mode="bilinear", padding_mode="border", align_corners=False)
        return sampled.reshape(batch, channels, *size).to(decoder.dtype)

    def macs(self, height: int, width: int) -> int:
        """The convolutions and four products per sampled value."""
        positions, out_positions = self.positions(height, width)
        convolutions = self.offset.weight.numel() * (1 if self.scope is None else 2)
        per_point = positions if self.style == "lp" else out_positions
        return convolutions * per_point + 4 * self.decoder_channels * out_positions

    def _offsets(self, decoder: Tensor) -> Tensor:
        """`(B, 2 * groups * s * s, H, W)`, in low-resolution pixels, x before y."""
        s = int(self.scale)
        x = decoder if self.style == "lp" else F.pixel_shuffle(decoder, s)
        offset = self.offset(x) * (0.25 if self.scope is None else 0.5 * self.scope(x).sigmoid())
        return (offset if self.style == "lp" else F.pixel_unshuffle(offset, s)) + self.start

    def _points(self, offsets: Tensor, s: int) -> Tensor:
        """Sampling points `(B * groups, s H, s W, 2)` in grid_sample's -1 to 1."""
        batch, _, height, width = offsets.shape
        x = torch.arange(width, device=offsets.device, dtype=offsets.dtype) + 0.5
        y = torch.arange(height, device=offsets.device, dtype=offsets.dtype) + 0.5
        offsets = offsets.reshape(batch, 2, -1, height, width)
        columns, rows = (offsets[:, 0] + x) * 2 / width - 1, (offsets[:, 1] + y[:, None]) * 2 / height - 1
        points = torch.stack([columns, rows], dim=1)
        points = F.pixel_shuffle(points.reshape(batch * 2 * self.groups, s * s, height, width), s)
        points = points.reshape(batch, 2, self.groups, s * height, s * width).permute(0, 2, 3, 4, 1)
        return points.reshape(batch * self.groups, s * height, s * width, 2)


OFFICIAL_KEYS = (
    {
        "offset.weight": "offset.weight",
        "offset.bias": "offset.bias",
        "scope.weight": "scope.weight",
        "init_pos": "start",
    },
)
