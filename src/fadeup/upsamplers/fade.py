"""FADE and FADE-Lite, and the parts of which their ablations are made.

Source: Lu, Liu, Fu, Cao, FADE: Fusing the Assets of Decoder and Encoder for Task-Agnostic Upsampling, ECCV 2022;
FADE-Lite: the journal version, IJCV 2024.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadeup.functional import (
    FORMS,
    check_choice,
    check_count,
    check_impl,
    check_kernel_size,
    check_map,
    compressed_conv,
    nearest,
    reassemble,
    semi_shift_conv,
)
from fadeup.kernels.op import match_format
from fadeup.upsamplers.initialise import GATE_BIAS, INITS, gate_bias_, small_, xavier_
from fadeup.upsamplers.upsampler import Upsampler

FUSIONS = ("gate", "skip", "none")
KERNELS = ("semi_shift", "naive", "encoder")


class SemiShiftConv(nn.Module):
    """Semi-shift convolution: one convolution over two maps of different resolution (FADE, section 4, equation 3).

    See `fadeup.functional.semi_shift_conv` for the formula. For upsampling `out_channels` is K*K; the layer is public
    for other uses.

    Args:
        encoder_channels: Channels of the high-resolution map.
        decoder_channels: Channels of the low-resolution map.
        out_channels: M.
        compressed_channels: D, to which both maps are compressed by 1x1 convolutions.
        conv_size: h, the window of the shared convolution, odd.
        groups: Groups of the shared convolution; D for the depthwise one of FADE-Lite.
        form: `"low_to_high"` (any ratio) or `"high_to_low"` (the paper's sub-processes; whole ratios).
    """

    def __init__(
        self,
        encoder_channels: int,
        decoder_channels: int,
        out_channels: int = 25,
        *,
        compressed_channels: int = 64,
        conv_size: int = 3,
        groups: int = 1,
        form: str = "low_to_high",
    ):
        super().__init__()
        check_choice("form", form, FORMS)
        check_kernel_size("conv_size", conv_size)
        check_count("compressed_channels", compressed_channels)
        self.form = form
        self.encoder_compressor = nn.Conv2d(encoder_channels, compressed_channels, 1)
        self.decoder_compressor = nn.Conv2d(decoder_channels, compressed_channels, 1, bias=False)
        self.content_encoder = nn.Conv2d(compressed_channels, out_channels, conv_size, groups=groups, padding="same")
        xavier_(self)

    def forward(self, encoder: Tensor, decoder: Tensor) -> tuple[Tensor, Tensor | None]:
        """`(logits (B, M, H', W'), coarse_logits (B, M, H, W))`; None for the second in the high-to-low form."""
        return semi_shift_conv(
            encoder,
            decoder,
            self.encoder_compressor.weight,
            self.decoder_compressor.weight,
            self.content_encoder.weight,
            self.encoder_compressor.bias,
            self.content_encoder.bias,
            form=self.form,
        )

    def coarse(self, decoder: Tensor) -> Tensor:
        """The decoder's share alone, `(B, M, H, W)`, for an encoder's share that `share_guide` has computed."""
        return compressed_conv(
            decoder, self.decoder_compressor.weight, None, self.content_encoder.weight, self.content_encoder.bias
        )

    def macs(self, positions: int, out_positions: int) -> int:
        """Multiply–accumulates over so many low-resolution and high-resolution positions."""
        return (
            self.encoder_compressor.weight.numel() * out_positions
            + self.decoder_compressor.weight.numel() * positions
            + self.content_encoder.weight.numel() * (positions + out_positions)
        )


class ConcatenatedKernels(nn.Module):
    """Kernels from one map, or from several brought to one size and concatenated (Table 4, B1 and B3).

    logits = content_encoder(compressor(concat(encoder, nearest(decoder))))        "naive", B3
    logits = content_encoder(compressor(encoder))                                  "encoder", B1
    """

    def __init__(
        self,
        encoder_channels: int,
        decoder_channels: int,
        out_channels: int,
        *,
        with_decoder: bool,
        compressed_channels: int,
        conv_size: int,
        groups: int,
    ):
        super().__init__()
        self.with_decoder = with_decoder
        channels = encoder_channels + (decoder_channels if with_decoder else 0)
        self.compressor = nn.Conv2d(channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(compressed_channels, out_channels, conv_size, groups=groups, padding="same")
        xavier_(self)

    def forward(self, encoder: Tensor, decoder: Tensor) -> tuple[Tensor, None]:
        """`(logits (B, M, H', W'), None)`."""
        if self.with_decoder:
            encoder = torch.cat([encoder, nearest(decoder, (encoder.shape[2], encoder.shape[3]))], dim=1)
        compressor, content_encoder = self.compressor, self.content_encoder
        logits = compressed_conv(
            encoder, compressor.weight, compressor.bias, content_encoder.weight, content_encoder.bias
        )
        return logits, None

    def macs(self, positions: int, out_positions: int) -> int:
        """Multiply–accumulates over so many low-resolution and high-resolution positions."""
        return (self.compressor.weight.numel() + self.content_encoder.weight.numel()) * out_positions


class Fusion(nn.Module):
    """Reassembles, and lets encoder features into the result.

        "gate"  g * encoder + (1 - g) * up,  g = sigmoid(nearest(Conv1x1(decoder)))      equation 4
        "skip"  encoder + up                                                            Table 4, B5
        "none"  up

    Where encoder and decoder channels differ, "gate" and "skip" first project the encoder's by a 1x1 convolution.
    `gate_bias` is where the bias of the gate's convolution starts.
    """

    def __init__(self, mode: str, decoder_channels: int, encoder_channels: int, gate_bias: float | None = None):
        super().__init__()
        self.mode, self.decoder_channels = check_choice("fusion", mode, FUSIONS), decoder_channels
        self.gate = nn.Conv2d(decoder_channels, 1, 1) if mode == "gate" else None
        project = mode != "none" and encoder_channels != decoder_channels
        self.project = nn.Conv2d(encoder_channels, decoder_channels, 1) if project else None
        xavier_(self)
        if gate_bias is not None:
            gate_bias_(self.gate, gate_bias, mode)

    def forward(
        self, decoder: Tensor, encoder: Tensor | None, logits: Tensor, coarse_logits: Tensor | None, impl: str
    ) -> Tensor:
        """`reassemble` of `decoder`, fused with `encoder`."""
        if encoder is None or self.mode == "none":
            return reassemble(decoder, logits, coarse_logits=coarse_logits, impl=impl)
        fine = encoder if self.project is None else self.project(encoder)
        if self.gate is None:
            return reassemble(decoder, logits, coarse_logits=coarse_logits, impl=impl) + fine
        gate_logits = self.gate(decoder)
        return reassemble(
            decoder, logits, coarse_logits=coarse_logits, encoder=fine, gate_logits=gate_logits, impl=impl
        )

    def extra_repr(self) -> str:
        """The mode."""
        return self.mode

    def macs(self, positions: int, out_positions: int) -> int:
        """The gate's convolution, the blend (2 per output value) and the projection; additions count nothing."""
        gate = 0 if self.gate is None else self.decoder_channels * (positions + 2 * out_positions)
        return gate + (0 if self.project is None else self.project.weight.numel() * out_positions)


class FADE(Upsampler):
    """FADE: kernels from encoder and decoder by semi-shift convolution, then a decoder-dependent gate.

        logits = semi_shift_conv(encoder, decoder)                      25 kernel weights per output pixel
        up     = reassemble(decoder, softmax(logits))
        out    = g * encoder + (1 - g) * up,    g = sigmoid(nearest(Conv1x1(decoder)))

    129 C + 14490 parameters and n (429 C + 72000) multiply–accumulates for equal channels C and n decoder positions.
    Serves any ratio of sizes not below 1. With unequal channels the encoder is projected for the gate by a 1x1
    convolution, `fusion.project`. The bias of the shared convolution is counted twice, see `semi_shift_conv`.

    Args:
        decoder_channels: C of the low-resolution map and of the result.
        encoder_channels: Channels of the high-resolution map.
        scale: For `macs` and for repr; in the call the encoder's size decides.
        kernel_size: K, odd.
        compressed_channels: d of equation 1.
        conv_size: h of equation 1, odd.
        kernels: `"semi_shift"`; or Table 4's `"naive"` (nearest, concatenation, convolution: B3) and
            `"encoder"` (B1).
        fusion: `"gate"`, `"skip"` (adds the encoder, B5) or `"none"` (B4).
        form: `"low_to_high"` or `"high_to_low"`, equal in value; the second needs whole ratios.
        depthwise: Make the shared convolution depthwise; `compressed_channels` must then be K*K.
        init: How kernels start: `"small"`, near the mean of the window, as in CARAFE; `"centred"`, the same with half
            of the weight on the centre tap; or `"xavier"`, the authors' start, which learns more slowly (lab log).
        gate_bias: Where the gate's bias starts: at 0 half of the encoder gets through, at -2 an eighth, at -4 2 %.
            None is 0 with `"xavier"`, as the authors have it, else -2.
        impl: Implementation of `reassemble`.

    Source: Lu et al., ECCV 2022, equations 1 to 4, Figures 3 and 5.
    """

    needs_encoder = True

    def __init__(
        self,
        decoder_channels: int,
        encoder_channels: int | None = None,
        *,
        scale: float = 2,
        kernel_size: int = 5,
        compressed_channels: int = 64,
        conv_size: int = 3,
        kernels: str = "semi_shift",
        fusion: str = "gate",
        form: str = "low_to_high",
        depthwise: bool = False,
        init: str = "small",
        gate_bias: float | None = None,
        impl: str = "auto",
    ):
        super().__init__(decoder_channels, encoder_channels, scale=scale)
        taps = check_kernel_size("kernel_size", kernel_size) ** 2
        check_kernel_size("conv_size", conv_size)
        check_count("compressed_channels", compressed_channels)
        check_choice("form", form, FORMS)
        if depthwise and compressed_channels != taps:
            raise ValueError(f"compressed_channels must be {taps} where depthwise, got {compressed_channels}")
        self.kernel_size, self.impl = kernel_size, check_impl(impl)
        channels = (self.encoder_channels, decoder_channels, taps)
        groups = taps if depthwise else 1
        if check_choice("kernels", kernels, KERNELS) == "semi_shift":
            self.kernels = SemiShiftConv(
                *channels, compressed_channels=compressed_channels, conv_size=conv_size, groups=groups, form=form
            )
        else:
            self.kernels = ConcatenatedKernels(
                *channels,
                with_decoder=kernels == "naive",
                compressed_channels=compressed_channels,
                conv_size=conv_size,
                groups=groups,
            )
        if check_choice("init", init, INITS) != "xavier":
            gate_bias = GATE_BIAS if gate_bias is None and fusion == "gate" else gate_bias
            small_(self.kernels.content_encoder, centred=init == "centred", counted=1 + (kernels == "semi_shift"))
        self.fusion = Fusion(fusion, decoder_channels, self.encoder_channels, gate_bias)

    def forward(self, decoder: Tensor, encoder: Tensor | None = None, *, fine_logits: Tensor | None = None) -> Tensor:
        """Upsample `decoder` to the size of `encoder`; `fine_logits` are what `share_guide` gave for this upsampler."""
        if fine_logits is None:
            return super().forward(decoder, encoder)
        self._check(decoder, encoder)
        if not isinstance(self.kernels, SemiShiftConv):
            got = type(fine_logits).__name__
            raise ValueError(f"fine_logits must be None with kernels other than 'semi_shift', got {got}")
        return match_format(
            self.fusion(decoder, encoder, fine_logits, self.kernels.coarse(decoder), self.impl), decoder
        )

    def upsample(self, decoder: Tensor, encoder: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Kernels, reassembly and fusion; `encoder` is there, for `needs_encoder`."""
        logits, coarse_logits = self.kernels(encoder, decoder)
        return self.fusion(decoder, encoder, logits, coarse_logits, self.impl)

    def macs(self, height: int, width: int) -> int:
        """Kernel generation, reassembly, gate and blend; n (429 C + 72000) at 2x for equal channels."""
        positions, out_positions = self.positions(height, width)
        reassembly = self.kernel_size**2 * self.decoder_channels * out_positions
        return self.kernels.macs(positions, out_positions) + reassembly + self.fusion.macs(positions, out_positions)


class FADELite(FADE):
    """FADE-Lite: both maps are compressed to K*K channels and the shared convolution is depthwise.

    51 C + 276 parameters and n (234 C + 1125) multiply–accumulates for equal channels C. All else is FADE.

    Args:
        decoder_channels: C of the low-resolution map and of the result.
        encoder_channels: Channels of the high-resolution map.
        kernel_size: K, odd.
        conv_size: Window of the depthwise convolution, odd.
        scale, kernels, fusion, form, init, gate_bias, impl: As in FADE.

    Source: Lu et al., IJCV 2024.
    """

    def __init__(
        self,
        decoder_channels: int,
        encoder_channels: int | None = None,
        *,
        scale: float = 2,
        kernel_size: int = 5,
        conv_size: int = 3,
        kernels: str = "semi_shift",
        fusion: str = "gate",
        form: str = "low_to_high",
        init: str = "small",
        gate_bias: float | None = None,
        impl: str = "auto",
    ):
        super().__init__(
            decoder_channels,
            encoder_channels,
            scale=scale,
            kernel_size=kernel_size,
            compressed_channels=check_kernel_size("kernel_size", kernel_size) ** 2,
            conv_size=conv_size,
            kernels=kernels,
            fusion=fusion,
            form=form,
            depthwise=True,
            init=init,
            gate_bias=gate_bias,
            impl=impl,
        )


def share_guide(upsamplers: Sequence[FADE], encoder: Tensor) -> list[Tensor]:
    """The encoder's share of the kernels of several upsamplers, in one pass over the guide that they have in common.

    In SegFormer's head (FADE, Figure 10) the map of 1/4 guides three upsamplers and that of 1/8 two. One 1x1
    convolution compresses the guide for all of them and one grouped convolution makes their logits:

        first, second = share_guide([up1, up2], encoder)
        up1(decoder1, encoder, fine_logits=first), up2(decoder2, encoder, fine_logits=second)

    is `up1(decoder1, encoder), up2(decoder2, encoder)`, with gradients, for less time.

    Args:
        upsamplers: FADE or FADE-Lite with semi-shift kernels, alike in all but their decoders.
        encoder: The guide, `(B, C_en, H', W')`.

    Raises:
        ValueError: The upsamplers have no semi-shift kernels, or differ in the shapes of their encoder's part.
    """
    parts = [part for upsampler in upsamplers if isinstance(part := getattr(upsampler, "kernels", None), SemiShiftConv)]
    shapes = {
        (part.encoder_compressor.weight.shape, part.content_encoder.weight.shape, part.content_encoder.groups)
        for part in parts
    }
    if len(shapes) != 1 or len(parts) != len(upsamplers):
        raise ValueError(
            "upsamplers must be alike, with kernels='semi_shift' and the same numbers of encoder, compressed and "
            f"kernel channels, got {len(upsamplers)}, {len(parts)} with semi-shift kernels, of {len(shapes)} shapes"
        )
    check_map("encoder", encoder, parts[0].encoder_compressor.in_channels)

    def joined(layer: str, name: str) -> Tensor:
        return torch.cat([getattr(getattr(part, layer), name) for part in parts])

    compressed = F.conv2d(encoder, joined("encoder_compressor", "weight"), joined("encoder_compressor", "bias"))
    content = parts[0].content_encoder
    logits = F.conv2d(
        compressed,
        joined("content_encoder", "weight"),
        joined("content_encoder", "bias"),
        padding=content.kernel_size[0] // 2,
        groups=content.groups * len(parts),
    )
    return list(logits.chunk(len(parts), dim=1))


_GATE = {"gate_generator.conv.weight": "fusion.gate.weight", "gate_generator.conv.bias": "fusion.gate.bias"}
OFFICIAL_KEYS = (
    {  # FADE, FADELite and SemiShiftUp, low-to-high
        "ker_generator.compressor_en.weight": "kernels.encoder_compressor.weight",
        "ker_generator.compressor_en.bias": "kernels.encoder_compressor.bias",
        "ker_generator.compressor_de.weight": "kernels.decoder_compressor.weight",
        "ker_generator.content_encoder.weight": "kernels.content_encoder.weight",
        "ker_generator.content_encoder.bias": "kernels.content_encoder.bias",
        **_GATE,
    },
    {  # high-to-low
        "kernel_generator.conv1_en.weight": "kernels.encoder_compressor.weight",
        "kernel_generator.conv1_en.bias": "kernels.encoder_compressor.bias",
        "kernel_generator.conv1_de.weight": "kernels.decoder_compressor.weight",
        "kernel_generator.conv2_kernels": "kernels.content_encoder.weight",
        "kernel_generator.conv2_bias": "kernels.content_encoder.bias",
        **_GATE,
    },
)
