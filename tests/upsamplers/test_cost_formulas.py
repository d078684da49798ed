"""Parameters and multiply–accumulates against the papers' formulas, and against what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fadeup import UPSAMPLERS, Upsampler, build_upsampler
from fadeup.upsamplers import ALIASES

NAMES = [*UPSAMPLERS, *ALIASES]
WITH_IMPL = [
    name for name in NAMES if name in ("fade", "fade_lite", "carafe", "a2u", "sapa", "nearest") or name in ALIASES
]
CHANNELS = [32, 64, 256]
SEGMENTATION = [(256, 16), (256, 32), (256, 64), (256, 32), (256, 64), (256, 64)]  # (C, side of the decoder map)
MATTING = [(256, 32), (128, 64), (64, 128), (64, 256)]


def build(name: str, channels: int, encoder_channels: int | None = None, **options) -> Upsampler:
    """Without memory for its weights: only shapes are counted here."""
    with torch.device("meta"):
        return build_upsampler(name, channels, encoder_channels, **options)


def parameters(name: str, channels: int, **options) -> int:
    return sum(parameter.numel() for parameter in build(name, channels, **options).parameters())


PARAMETERS = {
    "fade": ("fade", {}, lambda c: 129 * c + 14490),
    "fade, no gate": ("fade", {"fusion": "none"}, lambda c: 128 * c + 14489),
    "fade_lite": ("fade_lite", {}, lambda c: 51 * c + 276),
    "carafe": ("carafe", {}, lambda c: 64 * c + 57764),
    "carafe+gate": ("carafe+gate", {}, lambda c: 65 * c + 57765),
    "nearest": ("nearest", {}, lambda c: 0),
    "nearest+gate": ("nearest+gate", {}, lambda c: c + 1),
    "bilinear": ("bilinear", {}, lambda c: 0),
    "max_unpool": ("max_unpool", {}, lambda c: 0),
    "deconv": ("deconv", {}, lambda c: 9 * c**2 + c),
    "pixel_shuffle": ("pixel_shuffle", {}, lambda c: 36 * c**2 + 4 * c),
    "b1": ("b1", {}, lambda c: 64 * c + 14489),
    "b2": ("b2", {}, lambda c: 64 * c + 57764),
    "b3": ("b3", {}, lambda c: 128 * c + 14489),
    "b4": ("b4", {}, lambda c: 128 * c + 14489),
    "b5": ("b5", {}, lambda c: 128 * c + 14489),
    "b6": ("b6", {}, lambda c: 129 * c + 14490),
    "a2u": ("a2u", {}, lambda c: 78 * c + 74),
    "a2u, pooling": ("a2u", {"pooling": True}, lambda c: 78 * c + 74),
    # unshared: U and V, C+1 each where shared, are C(C+1) each
    "a2u, unshared": ("a2u", {"shared": False}, lambda c: 78 * c + 74 - 2 * (c + 1) + 2 * c * (c + 1)),
    # static: two 6x6 kernels, two times 36 constants, GroupNorm
    "a2u, static": ("a2u", {"dynamic": False}, lambda c: 72 + 72 + 4 * c),
    "a2u, static, unshared": ("a2u", {"dynamic": False, "shared": False}, lambda c: 72 * c + 72 + 4 * c),
    "sapa": ("sapa", {}, lambda c: 68 * c + 64),
    "sapa, d = 64": ("sapa", {"embedding_dim": 64, "norm": "layer"}, lambda c: 132 * c + 128),
    "dysample lp": ("dysample", {}, lambda c: 32 * c + 32),
    "dysample lp dyscope": ("dysample", {"dyscope": True}, lambda c: 64 * c + 32),
    "dysample pl": ("dysample", {"style": "pl"}, lambda c: 2 * c + 8),
    "dysample pl dyscope": ("dysample", {"style": "pl", "dyscope": True}, lambda c: 4 * c + 8),
    "indexnet": ("indexnet", {}, lambda c: 4 * (16 * c**2 + 2 * c + c**2)),
    **{
        f"indexnet holistic nonlinear {k}x{k}": (
            "indexnet",
            {"mode": "holistic", "nonlinear": True, "context": k == 4},
            lambda c, k=k: 2 * k**2 * c**2 + 12 * c,
        )
        for k in (2, 4)
    },
    **{
        f"indexnet holistic linear {k}x{k}": (
            "indexnet",
            {"mode": "holistic", "nonlinear": False, "context": k == 4},
            lambda c, k=k: 4 * k**2 * c,
        )
        for k in (2, 4)
    },
    **{
        f"indexnet o2o {'nonlinear' if more else 'linear'} {k}x{k}": (
            "indexnet",
            {"mode": "o2o", "nonlinear": more, "context": k == 4},
            lambda c, k=k, more=more: 4 * (k**2 * c + 3 * c * more),
        )
        for k in (2, 4)
        for more in (False, True)
    },
    **{
        f"indexnet m2o {'nonlinear' if more else 'linear'} {k}x{k}": (
            "indexnet",
            {"mode": "m2o", "nonlinear": more, "context": k == 4},
            lambda c, k=k, more=more: 4 * (k**2 * c**2 + (2 * c + c**2) * more),
        )
        for k in (2, 4)
        for more in (False, True)
    },
}


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("row", PARAMETERS)
def test_parameters(row, channels):
    name, options, formula = PARAMETERS[row]
    assert parameters(name, channels, **options) == formula(channels)


def test_a2u_counts_its_pooling_half_though_it_does_not_train():
    module = build("a2u", 64)
    assert sum(p.numel() for p in module.parameters() if not p.requires_grad) == 36 * 64 + 36


@pytest.mark.parametrize(
    ("name", "options", "matting", "segmentation"),
    [
        ("fade", {}, 124_008, 285_084),
        ("fade_lite", {}, 27_216, 79_992),
        ("carafe", {}, 263_824, 444_888),
        ("a2u", {}, 40_232, 120_252),
        ("indexnet", {}, 6_131_712, None),
        ("indexnet", {"mode": "holistic"}, None, 12_601_344),
        ("indexnet", {"nonlinear": False, "context": False}, None, 6_291_456),
        ("sapa", {}, 35_072, 104_832),
        ("deconv", {}, None, 3_540_480),
    ],
    ids=str,
)
def test_parameters_of_the_papers_tables(name, options, matting, segmentation):
    for channels, expected in ((MATTING, matting), (SEGMENTATION, segmentation)):
        if expected is not None:
            assert sum(parameters(name, c, **options) for c, _ in channels) == expected


def test_the_12_26_million_of_indexnet_are_a_hidden_layer_of_twice_the_width():
    assert sum(parameters("indexnet", c, hidden_channels=2 * c) for c, _ in MATTING) == 12_263_424


MACS = {
    "fade": ("fade", {}, lambda n, c: n * (429 * c + 72000)),
    "fade_lite": ("fade_lite", {}, lambda n, c: n * (234 * c + 1125)),
    "carafe": ("carafe", {}, lambda n, c: n * (64 * c + 57600) + 100 * n * c),
    "a2u": ("a2u", {}, lambda n, c: n * (72 * c + 36) + 36 * n * c),
    "deconv": ("deconv", {}, lambda n, c: 9 * c**2 * n),
    "pixel_shuffle": ("pixel_shuffle", {}, lambda n, c: 36 * c**2 * n),
    "b1": ("b1", {}, lambda n, c: n * (356 * c + 57600)),
    "b2": ("b2", {}, lambda n, c: n * (164 * c + 57600)),
    "b3": ("b3", {}, lambda n, c: n * (612 * c + 57600)),
    "b4": ("b4", {}, lambda n, c: n * (420 * c + 72000)),
    "b5": ("b5", {}, lambda n, c: n * (420 * c + 72000)),
    "b6": ("b6", {}, lambda n, c: n * (429 * c + 72000)),
    "nearest": ("nearest", {}, lambda n, c: 0),
    "max_unpool": ("max_unpool", {}, lambda n, c: 0),
    "bilinear": ("bilinear", {}, lambda n, c: 16 * n * c),
    "nearest+gate": ("nearest+gate", {}, lambda n, c: 9 * n * c),
    "carafe+gate": ("carafe+gate", {}, lambda n, c: n * (173 * c + 57600)),
    "sapa": ("sapa", {}, lambda n, c: n * (160 * c + 100 * (32 + c))),
    "dysample lp": ("dysample", {}, lambda n, c: n * (32 * c + 16 * c)),
    "dysample pl dyscope": ("dysample", {"style": "pl", "dyscope": True}, lambda n, c: n * (4 * 4 * c + 16 * c)),
    "indexnet": ("indexnet", {}, lambda n, c: n * 4 * 17 * c**2),
    "indexnet holistic": ("indexnet", {"mode": "holistic"}, lambda n, c: n * (2 * 16 * c**2 + 8 * c)),
    "indexnet o2o": ("indexnet", {"mode": "o2o"}, lambda n, c: n * 4 * 17 * c),
}


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("row", MACS)
def test_macs(row, channels):
    name, options, formula = MACS[row]
    for height, width in ((7, 9), (16, 16), (1, 1)):
        assert build(name, channels, **options).macs(height, width) == formula(height * width, channels)


@pytest.mark.parametrize(
    ("name", "options", "matting", "segmentation"),
    [
        ("fade", {}, 8.853, 2.653),
        ("fade_lite", {}, 1.509, 0.891),
        ("carafe", {}, 6.002, 1.453),
        ("a2u", {}, 0.654, 0.404),
        ("indexnet", {}, 31.94, None),
        ("indexnet", {"mode": "holistic"}, None, 30.63),
    ],
    ids=str,
)
def test_macs_of_the_papers_tables_in_billions(name, options, matting, segmentation):
    for stages, expected in ((MATTING, matting), (SEGMENTATION, segmentation)):
        if expected is not None:
            macs = sum(build(name, c, **options).macs(side, side) for c, side in stages) / 1e9
            assert macs == pytest.approx(expected, abs=0.006 if expected > 10 else 0.0006)


def uncounted(name: str, n: int, out: int, c: int, c_en: int, options: dict) -> int:
    """What `macs` counts and torch does not (positive), or torch counts and `macs` leaves out (negative).

    torch counts convolutions and matrix products only.
    """
    kind, preset = ALIASES.get(name, (name, {}))
    options = preset | options
    difference = 0
    if options.get("fusion", "gate" if kind.startswith("fade") else "none") == "gate":
        difference += 2 * c * out  # the blend
    if kind == "bilinear":
        difference += 4 * c * out  # interpolation
    if kind == "dysample":
        difference += 4 * c * out  # grid_sample
    if kind == "a2u":
        difference += 36 * n  # p · m
        difference -= 72 * c_en + 36 * c_en  # u and v on 6x6, p on 1x1: once a sample
    return difference


FLOPS = [
    *((name, {}) for name in NAMES),
    *((name, {"kernel_size": 3}) for name in ("fade", "fade_lite", "carafe", "sapa")),
    ("fade", {"compressed_channels": 16, "conv_size": 5}),
    ("fade", {"form": "high_to_low"}),
    ("carafe", {"groups": 4}),
    ("carafe", {"compressed_channels": 16, "conv_size": 5}),
    ("sapa", {"embedding_dim": 64, "norm": "layer"}),
    *(("dysample", {"style": style, "dyscope": scope}) for style in ("lp", "pl") for scope in (False, True)),
    *(("indexnet", {"mode": mode, "nonlinear": n}) for mode in ("holistic", "o2o", "m2o") for n in (False, True)),
    ("indexnet", {"context": False}),
    ("indexnet", {"hidden_channels": 64}),
    *((name, {"scale": 3}) for name in ("fade", "fade_lite", "carafe", "sapa", "dysample", "deconv", "pixel_shuffle")),
    *((name, {"scale": 1.5}) for name in ("fade", "b1", "b3", "fade_lite", "sapa", "nearest+gate")),
]
EQUAL_CHANNELS = ("indexnet", "max_unpool")


def counted(module: Upsampler, size: tuple[int, int]) -> int:
    """Half of the floating-point operations of a call, by torch."""
    out_size = (int(size[0] * module.scale), int(size[1] * module.scale))
    decoder = torch.empty(1, module.decoder_channels, *size, device="meta")
    encoder = torch.empty(1, module.encoder_channels, *out_size, device="meta")
    with FlopCounterMode(display=False) as counter:  # with gradients: without, two convolutions may be folded into one
        assert module(decoder, encoder).shape == (1, module.decoder_channels, *out_size)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def assert_macs_are_counted(name: str, options: dict, channels: int, encoder_channels: int) -> None:
    if name in WITH_IMPL:
        options = options | {"impl": "reference"}  # its reassembly is a matrix product, which torch counts
    module = build(name, channels, encoder_channels, **options).eval()
    n, out = 63, int(7 * module.scale) * int(9 * module.scale)
    missing = uncounted(name, n, out, channels, encoder_channels, options)
    assert counted(module, (7, 9)) == module.macs(7, 9) - missing


@pytest.mark.parametrize("channels", [32, 64])
@pytest.mark.parametrize(("name", "options"), FLOPS, ids=str)
def test_macs_are_what_torch_counts(name, options, channels):
    assert_macs_are_counted(name, options, channels, channels)


@pytest.mark.parametrize(
    ("name", "options"),
    [*(row for row in FLOPS if row[0] not in EQUAL_CHANNELS), ("indexnet", {"mode": "holistic"})],
    ids=str,
)
def test_macs_of_unequal_channels_are_what_torch_counts(name, options):
    assert_macs_are_counted(name, options, 32, 48)
