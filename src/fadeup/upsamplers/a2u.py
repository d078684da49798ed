"""A2U: affinity-aware upsampling, kernels from second-order features of the encoder.

Source: Dai, Lu, Shen, Learning Affinity-Aware Upsampling for Deep Image Matting, CVPR 2021.
"""

from __future__ import annotations

import math
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadeup.functional import check_impl, check_kernel_size, check_map, reassemble
from fadeup.kernels.op import match_format
from fadeup.upsamplers.indexnet import check_even, even
from fadeup.upsamplers.sapa import PlainGroupNorm
from fadeup.upsamplers.upsampler import Upsampler


class A2U(Upsampler):
    """A2U: 3x3 kernels from the product of two convolutions of the encoder, whose weights come from the encoder.

        u, v   = Conv1x1(adaptive_avg_pool(encoder, 6)), two of them             6x6 kernels, per sample
        a, b   = LeakyReLU(GroupNorm(conv(encoder, u or v, stride 2)))
        m      = Σ_c a · b / sqrt(C)                                             the affinity, 1 x h x w
        p      = Conv1x1(global_avg_pool(encoder))                               36 values, per sample
        logits = sigmoid(pixel_shuffle(p · m, 2))                                9 kernel weights per output pixel
        out    = reassemble(decoder, softmax(logits))

    78 C + 74 parameters, of which 36 C + 36 belong to the pooling half. 2x only; an odd encoder is extended by
    repeating its last row and column. GroupNorm has 32 groups, or as many of them as divide the channels.

    Args:
        decoder_channels: C.
        encoder_channels: Any; a multiple of 32 in the authors' code.
        scale: 2.
        kernel_size: K of the upsampling kernels, odd.
        dynamic: Predict u, v and p from the encoder. False learns them as constants; that reading of the paper's
            static variant is ours.
        shared: One u and v for all channels; else one per channel.
        pooling: Train the pooling half, for networks that call `pool`. Else its weights are there, as in the counts
            of FADE's Table 3, with `requires_grad=False`, since an unused branch stops distributed training.
        impl: Implementation of `reassemble`.
    """

    needs_encoder = True
    works_in_phases = True

    def __init__(
        self,
        decoder_channels: int,
        encoder_channels: int | None = None,
        *,
        scale: int = 2,
        kernel_size: int = 3,
        dynamic: bool = True,
        shared: bool = True,
        pooling: bool = False,
        impl: str = "auto",
    ):
        super().__init__(decoder_channels, encoder_channels, scale=scale)
        if self.scale != 2:
            raise ValueError(f"scale must be 2 for A2U, got {scale!r}")
        self.kernel_size = check_kernel_size("kernel_size", kernel_size)
        self.dynamic, self.shared, self.pooling, self.impl = dynamic, shared, pooling, check_impl(impl)
        channels, size = self.encoder_channels, 2 * kernel_size
        rows = 1 if shared else channels
        if dynamic:
            self.u, self.v = nn.Conv2d(channels, rows, 1), nn.Conv2d(channels, rows, 1)
            self.up, self.down = nn.Conv2d(channels, size**2, 1), nn.Conv2d(channels, size**2, 1)
            for part in (self.u, self.v, self.up, self.down):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]
            down = list(self.down.parameters())
        else:
            self.u, self.v = (nn.Parameter(torch.randn(rows, size, size) / size) for _ in range(2))
            self.up, self.down = (nn.Parameter(torch.randn(size**2, 1, 1)) for _ in range(2))
            down = [self.down]
        for parameter in down:
            parameter.requires_grad_(pooling)
        self.norm_u, self.norm_v = PlainGroupNorm(channels), PlainGroupNorm(channels)

    def indices(self, encoder: Tensor) -> tuple[Tensor, Tensor]:
        """`(logits_of_pooling (B, 4 K*K, h, w), logits_of_up (B, K*K, 2h, 2w))` for an encoder of even size."""
        check_map("encoder", encoder, self.encoder_channels)
        check_even(encoder)
        affinity = self._affinity(encoder)
        return self._logits(self.down, encoder, affinity), self._up_logits(encoder, affinity)

    def pool(self, encoder: Tensor) -> Tensor:
        """The pooling half: `(B, C, H', W')` to half that size, rounded up, by 2K x 2K kernels of stride 2."""
        if not self.pooling:
            raise ValueError("pooling must be True to use pool(), got False; build A2U with pooling=True")
        check_map("encoder", encoder, self.encoder_channels)
        encoder = even(encoder)
        if encoder.shape[0] == 0:
            return encoder[:, :, ::2, ::2]
        weights = self._logits(self.down, encoder, self._affinity(encoder)).softmax(dim=1)
        size = 2 * self.kernel_size
        if torch.compiler.is_exporting():
            parts = zip(weights.split(1, dim=1), _taps(encoder, size), strict=True)
            return reduce(torch.add, (weight * tap for weight, tap in parts))
        padded = F.pad(encoder, (self.kernel_size - 1,) * 4)
        height, width = weights.shape[2:]
        pooled = torch.zeros_like(encoder[:, :, ::2, ::2])
        for t in range(size**2):
            i, j = divmod(t, size)
            tap = padded[:, :, i : i + 2 * height : 2, j : j + 2 * width : 2]
            pooled = torch.addcmul(pooled, weights[:, t : t + 1], tap)
        return match_format(pooled, encoder)

    def upsample(self, decoder: Tensor, encoder: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Reassembly with kernels from the encoder, which is there, for `needs_encoder`."""
        assert encoder is not None
        return reassemble(decoder, self._up_logits(encoder, self._affinity(encoder)), impl=self.impl)

    def macs(self, height: int, width: int) -> int:
        """For n decoder positions n (72 C + 36) + 36 n C: the two 6x6 convolutions, p · m, the reassembly.

        As in the papers' counts the layers that run once a sample and the product a · b are left out.
        """
        taps = self.kernel_size**2
        generation = 8 * taps * self.encoder_channels + 4 * taps
        return height * width * (generation + 4 * taps * self.decoder_channels)

    def _logits(self, part: nn.Module | nn.Parameter, encoder: Tensor, affinity: Tensor) -> Tensor:
        return _values(part, F.adaptive_avg_pool2d(encoder, 1)) * affinity

    def _up_logits(self, encoder: Tensor, affinity: Tensor) -> Tensor:
        return F.pixel_shuffle(self._logits(self.up, encoder, affinity), 2).sigmoid()

    def _affinity(self, encoder: Tensor) -> Tensor:
        size = 2 * self.kernel_size
        if torch.compiler.is_exporting():  # neither that pooling nor groups by the batch have a form for every size
            pooled, convolve = _mean_of_cells(encoder, size), partial(_convolve_by_taps, _taps(encoder, size))
        else:
            pooled, convolve = F.adaptive_avg_pool2d(encoder, size), partial(_convolve_by_groups, encoder)
        maps = []
        for part, norm in ((self.u, self.norm_u), (self.v, self.norm_v)):
            out = convolve(_values(part, pooled))
            maps.append(F.leaky_relu(norm(out), 0.01))
        return (maps[0] * maps[1]).sum(dim=1, keepdim=True) / math.sqrt(encoder.shape[1])


def _values(part: nn.Module | nn.Parameter, pooled: Tensor) -> Tensor:
    """What a layer predicts from the pooled encoder; the same constants for every sample where it is learned."""
    return part(pooled) if isinstance(part, nn.Module) else part.expand(pooled.shape[0], *part.shape)


def _convolve_by_groups(encoder: Tensor, kernels: Tensor) -> Tensor:
    """Each sample and channel by its kernel, `(B, C or 1, 2K, 2K)`, with stride 2: `(B, C, H'/2, W'/2)`."""
    batch, channels, height, width = encoder.shape
    size = kernels.shape[-1]
    kernels = kernels.expand(batch, channels, size, size).reshape(batch * channels, 1, size, size)
    one_sample = encoder.reshape(1, batch * channels, height, width)  # each sample has kernels of its own
    out = F.conv2d(one_sample, kernels, stride=2, padding=size // 2 - 1, groups=batch * channels)
    return out.reshape(batch, channels, height // 2, width // 2)


def _convolve_by_taps(taps: list[Tensor], kernels: Tensor) -> Tensor:
    """The same for any batch, of what `_taps` gives."""
    return reduce(
        torch.add, (kernel[:, :, None, None] * tap for kernel, tap in zip(_cells(kernels), taps, strict=True))
    )


def _cells(kernels: Tensor) -> tuple[Tensor, ...]:
    return kernels.flatten(2).unbind(2)


def _taps(encoder: Tensor, size: int) -> list[Tensor]:
    """What each cell of a `size` x `size` kernel of stride 2 sees, `(B, C, H'/2, W'/2)`.

    The four phases are taken apart first, so that every tap is of whole runs of memory.
    """
    height, width = encoder.shape[2] // 2, encoder.shape[3] // 2
    padded = F.pad(encoder, (size // 2 - 1,) * 4)
    phases = F.pixel_unshuffle(padded, 2).unflatten(1, (encoder.shape[1], 4)).unbind(2)
    rows = {(i, p): phases[i % 2 * 2 + p].narrow(2, i // 2, height) for i in range(size) for p in range(2)}
    return [rows[i, j % 2].narrow(3, j // 2, width) for i in range(size) for j in range(size)]


def _mean_of_cells(x: Tensor, cells: int) -> Tensor:
    """`F.adaptive_avg_pool2d(x, cells)` for any size, as products with two averaging matrices."""

    def averaging(side: int) -> Tensor:
        cell, at = torch.arange(cells, device=x.device)[:, None], torch.arange(side, device=x.device)
        first, last = cell * side // cells, ((cell + 1) * side + cells - 1) // cells
        inside = ((at >= first) & (at < last)).to(x.dtype)
        return inside / inside.sum(dim=1, keepdim=True)

    return averaging(x.shape[2]) @ (x @ averaging(x.shape[3]).T)


OFFICIAL_KEYS = (
    {
        f"kernel_gen.{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in {
            "bconv_U.1": "u",
            "bconv_V.1": "v",
            "bconv_UP.1": "up",
            "bconv_DP.1": "down",
            "bnu.0": "norm_u",
            "bnv.0": "norm_v",
        }.items()
        for kind in ("weight", "bias")
    },
)
