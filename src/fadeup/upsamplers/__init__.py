"""Every upsampler under one interface: `build_upsampler(name, decoder_channels, encoder_channels, **options)`."""

from __future__ import annotations

import ast
import difflib
import inspect
import warnings
from typing import Any

from fadeup.upsamplers.a2u import A2U
from fadeup.upsamplers.carafe import CARAFE
from fadeup.upsamplers.classic import Bilinear, Deconvolution, MaxUnpool, Nearest, PixelShuffle
from fadeup.upsamplers.dysample import DySample
from fadeup.upsamplers.fade import FADE, FADELite, SemiShiftConv, share_guide
from fadeup.upsamplers.indexnet import IndexNet
from fadeup.upsamplers.official import load_official
from fadeup.upsamplers.sapa import SAPA
from fadeup.upsamplers.upsampler import Upsampler

__all__ = [
    "A2U",
    "ALIASES",
    "CARAFE",
    "FADE",
    "SAPA",
    "UPSAMPLERS",
    "Bilinear",
    "Deconvolution",
    "DySample",
    "FADELite",
    "IndexNet",
    "MaxUnpool",
    "Nearest",
    "PixelShuffle",
    "SemiShiftConv",
    "Upsampler",
    "build_upsampler",
    "load_official",
    "resolve",
    "share_guide",
]

UPSAMPLERS: dict[str, type[Upsampler]] = {
    "fade": FADE,
    "fade_lite": FADELite,
    "carafe": CARAFE,
    "indexnet": IndexNet,
    "a2u": A2U,
    "sapa": SAPA,
    "dysample": DySample,
    "nearest": Nearest,
    "bilinear": Bilinear,
    "deconv": Deconvolution,
    "pixel_shuffle": PixelShuffle,
    "max_unpool": MaxUnpool,
}
"""Classes by name. An entry of your own is a name too, wherever a name is taken, as long as the process lives."""

ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "b1": ("fade", {"kernels": "encoder", "fusion": "none"}),
    "b2": ("carafe", {}),
    "b3": ("fade", {"kernels": "naive", "fusion": "none"}),
    "b4": ("fade", {"kernels": "semi_shift", "fusion": "none"}),
    "b5": ("fade", {"kernels": "semi_shift", "fusion": "skip"}),
    "b6": ("fade", {"kernels": "semi_shift", "fusion": "gate"}),
    "nearest+gate": ("nearest", {"fusion": "gate"}),
    "carafe+gate": ("carafe", {"fusion": "gate"}),
}
"""Rows of FADE's Tables 2 and 4 as a name and its options."""


def resolve(name: str) -> tuple[type[Upsampler], dict[str, Any]]:
    """The class and options that `name` stands for.

    `name` is a key of `UPSAMPLERS` or `ALIASES`, and may go on with options: `"fade,gate_bias=-2,init=small"`.

    >>> resolve("fade,kernel_size=3,fusion=none")
    (<class 'fadeup.upsamplers.fade.FADE'>, {'kernel_size': 3, 'fusion': 'none'})

    Raises:
        ValueError: The name is unknown, and the message suggests the nearest; or an option is no `key=value` that the
            class knows.
    """
    names = [*UPSAMPLERS, *ALIASES]
    plain, *given = str(name).split(",")
    if plain not in names:
        near = difflib.get_close_matches(plain.lower().replace("-", "_"), names, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"upsampler must be one of {', '.join(names)}, got {name!r}{hint}")
    key, options = ALIASES.get(plain, (plain, {}))
    kind = UPSAMPLERS[key]
    known = [option for option in inspect.signature(kind).parameters if not option.endswith("_channels")]
    pairs = [option.partition("=") for option in given]
    for option, sign, _ in pairs:
        if not sign or option not in known:
            raise ValueError(f"options of {plain!r} must be key=value with {', '.join(known)}, got {option!r}")
    return kind, options | {option: literal(value) for option, _, value in pairs}


def literal(text: str) -> Any:
    """A number, a truth value or None where the text is one; else the text."""
    try:
        with warnings.catch_warnings():  # of what looks like an escape, in C:\\data
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # the parser gives up in these ways
        return text


def build_upsampler(name: str, decoder_channels: int, encoder_channels: int | None = None, **options: Any) -> Upsampler:
    """Build an upsampler by name.

    Args:
        name: A key of `UPSAMPLERS`, or of `ALIASES` for the ablations `b1` to `b6` and `nearest+gate`, `carafe+gate`;
            options may follow it, as in `"fade,gate_bias=-2"`.
        decoder_channels: Channels of the low-resolution map and of the result.
        encoder_channels: Channels of the high-resolution map; the decoder's where None.
        **options: Arguments of the class, `scale` among them; they override an alias's.

    Raises:
        ValueError: The name is unknown (the nearest is suggested), or an option is out of range.
        TypeError: The class does not know an option.

    >>> import torch
    >>> build_upsampler("fade", 64, 32)(torch.rand(1, 64, 7, 9), torch.rand(1, 32, 13, 17)).shape
    torch.Size([1, 64, 13, 17])
    """
    kind, preset = resolve(name)
    return kind(decoder_channels, encoder_channels, **preset | options)
