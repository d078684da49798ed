"""Parameters and multiply–accumulates: of an upsampler, of the two published heads, of a whole network.

All counts are of one sample. The papers' "GFLOPs" are multiply–accumulates (MACs) at an input of 512 x 512, with
interpolation counted as nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fadeup.plug import Blend
from fadeup.plug.trace import evaluating
from fadeup.upsamplers import UPSAMPLERS, Upsampler, build_upsampler

MATTING_HEAD = ((256, 32), (128, 64), (64, 128), (64, 256))
"""Channels and decoder side of each upsampler in A2U matting at 512 x 512 (FADE, Table 3)."""
SEGMENTATION_HEAD = ((256, 16), (256, 32), (256, 64), (256, 32), (256, 64), (256, 64))
"""The same for SegFormer's head (FADE, Figure 10)."""

FIGURE_7 = {
    "FADE": "fade",
    "FADE, no gate": "b4",
    "FADE-naive": "b3",
    "FADE-Lite": "fade_lite",
    "CARAFE": "carafe",
    "IndexNet": "indexnet",
    "A2U": "a2u",
}
FIGURE_7_CHANNELS = (32, 64, 128, 256, 512)
FIGURE_7_SIZES = (14, 28, 56, 112, 224)


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply–accumulates of one sample."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class Row:
    """A line of `fadeup cost`."""

    upsampler: str
    single: Cost
    matting_head: Cost
    segmentation_head: Cost


def upsampler_cost(name: str, channels: int, height: int, width: int, **options: Any) -> Cost:
    """Cost of one upsampler with equal encoder and decoder channels over a decoder map of `height` x `width`."""
    with torch.device("meta"):
        module = build_upsampler(name, channels, **options)
    return Cost(sum(p.numel() for p in module.parameters()), module.macs(height, width))


def head_cost(name: str, head: Sequence[tuple[int, int]], **options: Any) -> Cost:
    """Sum over the upsamplers of a published head."""
    costs = [upsampler_cost(name, channels, side, side, **options) for channels, side in head]
    return Cost(sum(c.parameters for c in costs), sum(c.macs for c in costs))


def cost_table(
    names: Sequence[str] = tuple(UPSAMPLERS), channels: int = 256, height: int = 64, width: int = 64
) -> list[Row]:
    """Cost of each upsampler alone, and in the two published heads."""
    return [
        Row(
            name,
            upsampler_cost(name, channels, height, width),
            head_cost(name, MATTING_HEAD),
            head_cost(name, SEGMENTATION_HEAD),
        )
        for name in names
    ]


def network_cost(model: nn.Module, example: Tensor) -> Cost:
    """Cost of a network on one example: what torch's counter sees, with `macs` of upsamplers and blends."""
    from torch.utils.flop_counter import FlopCounterMode

    macs, handles = 0, []
    for module in model.modules():
        if isinstance(module, Upsampler | Blend):

            def count(module: Upsampler | Blend, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                nonlocal macs
                macs += module.macs(inputs[0].shape[2], inputs[0].shape[3])

            handles.append(module.register_forward_hook(count))
    counter = FlopCounterMode(display=False)
    try:
        with evaluating(model), torch.no_grad(), counter:
            model(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    counts = counter.get_flop_counts()
    names = [name for name, module in model.named_modules() if isinstance(module, Upsampler)]
    inside = sum(sum(counts.get(f"{type(model).__name__}.{name}", {}).values()) for name in names)
    return Cost(sum(p.numel() for p in model.parameters()), macs + (counter.get_total_flops() - inside) // 2)


def curves() -> dict[str, Any]:
    """The two curves of FADE's Figure 7, in multiply–accumulates.

    Channels varied over a decoder map of 112 x 112, and its side varied at 256 channels; 2x, so that the encoder's
    side is twice as large. The paper does not say which of the two sides its axis gives.
    """
    by_channels = {
        label: [upsampler_cost(name, c, 112, 112).macs for c in FIGURE_7_CHANNELS] for label, name in FIGURE_7.items()
    }
    by_size = {
        label: [upsampler_cost(name, 256, s, s).macs for s in FIGURE_7_SIZES] for label, name in FIGURE_7.items()
    }
    return {
        "channels": {"x": list(FIGURE_7_CHANNELS), "size": 112, "macs": by_channels},
        "sizes": {"x": list(FIGURE_7_SIZES), "channels": 256, "macs": by_size},
    }
