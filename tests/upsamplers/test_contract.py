"""What every upsampler promises, whatever its method. The tables are written by hand, not read from the classes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadeup import UPSAMPLERS, Upsampler, build_upsampler
from fadeup.functional import nearest
from fadeup.upsamplers import ALIASES, resolve
from helpers import poisoned_memory

NAMES = [*UPSAMPLERS, *ALIASES]
PHASES = ["carafe", "indexnet", "a2u", "dysample", "deconv", "pixel_shuffle", "max_unpool", "b2", "carafe+gate"]
ANY_RATIO = [name for name in NAMES if name not in PHASES]
ALONE = ["carafe", "dysample", "nearest", "bilinear", "deconv", "pixel_shuffle", "b2"]
GUIDED = [name for name in NAMES if name not in ALONE]
ONLY_2X = ["indexnet", "a2u"]
EQUAL_CHANNELS = ["indexnet", "max_unpool"]
PROJECTED = ["fade", "fade_lite", "b5", "b6", "nearest+gate", "carafe+gate"]
PARAMETERLESS = ["nearest", "bilinear", "max_unpool"]


def make(name: str, channels: int = 8, encoder_channels: int | None = None, **options) -> Upsampler:
    """In evaluation mode, and with weights large enough for the method to differ from plain interpolation."""
    module = build_upsampler(name, channels, encoder_channels, **options).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return module


def maps(
    size=(7, 9), out_size=(14, 18), channels=8, encoder_channels=None, batch=2, dtype=torch.float32
) -> tuple[Tensor, Tensor]:
    encoder_channels = encoder_channels or channels
    return torch.randn(batch, channels, *size).to(dtype), torch.randn(batch, encoder_channels, *out_size).to(dtype)


def test_the_tables_cover_what_there_is():
    assert set(NAMES) == {*UPSAMPLERS, *ALIASES}
    assert {*PHASES, *ALONE, *ONLY_2X, *EQUAL_CHANNELS, *PROJECTED, *PARAMETERLESS} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_built_by_name_with_the_options_of_its_row(name):
    kind, options = ALIASES.get(name, (name, {}))
    module = build_upsampler(name, 8)
    assert type(module) is UPSAMPLERS[kind]
    assert resolve(name) == (UPSAMPLERS[kind], options)
    for key, value in options.items():
        if key == "fusion":
            assert module.fusion.mode == value


@pytest.mark.parametrize("out_size", [(14, 18), (13, 17), (14, 17)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_output_has_the_size_of_the_encoder(name, out_size):
    decoder, encoder = maps(out_size=out_size)
    out = make(name)(decoder, encoder)
    assert out.shape == (2, 8, *out_size)
    assert out.isfinite().all()


@pytest.mark.parametrize("out_size", [(2, 2), (1, 1), (2, 1)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_one_pixel(name, out_size):
    decoder, encoder = maps(size=(1, 1), out_size=out_size, batch=1)
    out = make(name)(decoder, encoder)
    assert out.shape == (1, 8, *out_size)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dysample"])  # four groups of channels
def test_one_channel(name):
    decoder, encoder = maps(out_size=(13, 17), channels=1)
    assert make(name, 1)(decoder, encoder).shape == (2, 1, 13, 17)


@pytest.mark.parametrize("name", NAMES)
def test_without_an_encoder(name):
    decoder, encoder = maps()
    module = make(name)
    if name in ALONE:
        assert module(decoder).shape == (2, 8, 14, 18)
        torch.testing.assert_close(module(decoder), module(decoder, encoder), rtol=0, atol=0)
    else:
        with pytest.raises(
            ValueError, match=f"encoder must be given: {type(module).__name__} upsamples with it.*'carafe'"
        ):
            module(decoder)


@pytest.mark.parametrize("scale", [3, 4, 1.5, 1])
@pytest.mark.parametrize("name", NAMES)
def test_other_scales(name, scale):
    if name in PHASES and scale == 1.5:
        with pytest.raises(ValueError, match=r"scale must be a whole number for \w+, got 1.5; 'fade', .* any ratio"):
            make(name, scale=scale)
        return
    if name in ONLY_2X:
        with pytest.raises(ValueError, match=f"scale must be 2 for (IndexNet|A2U), got {scale}"):
            make(name, scale=scale)
        return
    out_size = (int(7 * scale), int(9 * scale))
    decoder, encoder = maps(out_size=out_size)
    module = make(name, scale=scale)
    assert module(decoder, encoder).shape == (2, 8, *out_size)
    if name in ALONE:
        assert module(decoder).shape == (2, 8, *out_size)
    if name in PHASES and scale > 1:
        assert module(decoder, encoder[:, :, 1:, 2:]).shape == (2, 8, out_size[0] - 1, out_size[1] - 2)


@pytest.mark.parametrize(("side", "scale", "expected"), [(45, 1.4, 63), (100, 1.15, 115), (7, 1.5, 10), (10, 1.33, 13)])
def test_without_an_encoder_a_size_is_rounded_down_but_for_rounding_errors(side, scale, expected):
    assert build_upsampler("nearest", 1, scale=scale)(torch.ones(1, 1, side, 2)).shape[2] == expected


@pytest.mark.parametrize("out_size", [(30, 30), (15, 18), (14, 16), (12, 18), (7, 9)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_sizes_far_from_2x(name, out_size):
    decoder, encoder = maps(out_size=out_size)
    module = make(name)
    if name in ANY_RATIO:
        assert module(decoder, encoder).shape == (2, 8, *out_size)
        return
    message = (
        rf"encoder must be 13 to 14 high and 17 to 18 wide for \w+ at scale 2 .* got {out_size[0]} x {out_size[1]}"
    )
    with pytest.raises(ValueError, match=message):
        module(decoder, encoder)


@pytest.mark.parametrize(("channels", "encoder_channels"), [(12, 8), (8, 12)])
@pytest.mark.parametrize("name", NAMES)
def test_unequal_channels(name, channels, encoder_channels):
    if name in EQUAL_CHANNELS:
        message = f"encoder_channels must be {channels} like decoder_channels for .*, got {encoder_channels}; .*project"
        with pytest.raises(ValueError, match=message):
            make(name, channels, encoder_channels)
        return
    decoder, encoder = maps(channels=channels, encoder_channels=encoder_channels)
    module = make(name, channels, encoder_channels)
    assert module(decoder, encoder).shape == (2, channels, 14, 18)
    assert f"({channels}, encoder_channels={encoder_channels}, scale=2" in repr(module).replace("\n  ", "")
    assert (f"Conv2d({encoder_channels}, {channels}, " in repr(module)) == (name in PROJECTED)


@pytest.mark.parametrize("mode", ["o2o", "m2o"])
def test_depthwise_indices_need_equal_channels_and_holistic_ones_do_not(mode):
    with pytest.raises(ValueError, match=r"encoder_channels must be 12 .*, got 8; use mode='holistic', or project"):
        make("indexnet", 12, 8, mode=mode)
    decoder, encoder = maps(channels=12, encoder_channels=8)
    assert make("indexnet", 12, 8, mode="holistic")(decoder, encoder).shape == (2, 12, 14, 18)


@pytest.mark.parametrize("name", NAMES)
def test_repr_shows_channels_and_scale(name):
    text = repr(make(name, 8))
    assert text.startswith(type(make(name, 8)).__name__)
    assert "8, encoder_channels=8, scale=2" in text


def test_repr_shows_the_fusion():
    assert "gate" in repr(make("fade"))
    assert "skip" in repr(make("b5"))


QUICK = {
    "fade": {"compressed_channels": 3},
    "b1": {"compressed_channels": 3},
    "b3": {"compressed_channels": 3},
    "carafe": {"compressed_channels": 3, "kernel_size": 3},
    "sapa": {"embedding_dim": 3},
    "dysample": {"groups": 2},
}


@pytest.mark.parametrize("out_size", [(4, 6), (3, 5)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_by_inputs_and_parameters_match_finite_differences(name, out_size):
    module = make(name, 4, **QUICK.get(name, {})).double()
    decoder = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    # Distinct by more than the step of the finite differences, so that no maximum moves.
    encoder = torch.randperm(4 * out_size[0] * out_size[1]).double().reshape(1, 4, *out_size) / 40 - 1
    parameters = {key: value for key, value in module.named_parameters() if value.requires_grad}

    def call(decoder, encoder, *values):
        weights = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(module, weights, (decoder, encoder))

    inputs = (decoder, encoder.requires_grad_(), *parameters.values())
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_that_trains_gets_a_gradient(name):
    module = make(name).train()
    decoder, encoder = maps(batch=3)
    module(decoder.requires_grad_(), encoder).square().mean().backward()
    for key, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
    assert decoder.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("out_size", [(14, 18), (13, 17)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_near_float32(name, out_size, dtype):
    module = build_upsampler(name, 8).eval().to(dtype)
    decoder, encoder = maps(out_size=out_size, dtype=dtype)
    out = module(decoder, encoder)
    assert out.dtype == dtype
    wide = copy.deepcopy(module).float()(decoder.float(), encoder.float())
    tolerance = 8 * torch.finfo(dtype).eps * wide.abs().max().item()  # a few layers, each rounding its result
    assert (out.float() - wide).abs().max() <= tolerance


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_trains(name):
    module = build_upsampler(name, 8).bfloat16()
    decoder, encoder = maps(dtype=torch.bfloat16)
    module(decoder.requires_grad_(), encoder).float().square().sum().backward()
    assert decoder.grad.dtype == torch.bfloat16
    assert decoder.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_autocast_stays_near_float32(name):
    module = build_upsampler(name, 8).eval()
    decoder, encoder = maps(out_size=(13, 17))
    exact = module(decoder, encoder)
    decoder.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = module(decoder, encoder)
    assert out.dtype in (torch.float32, torch.bfloat16)
    assert (out.float() - exact).abs().max() <= 8 * torch.finfo(torch.bfloat16).eps * exact.abs().max()
    out.float().sum().backward()
    assert decoder.grad.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_takes_maps_of_two_precisions(name):
    module = build_upsampler(name, 8).eval()
    decoder, encoder = maps(out_size=(13, 17))
    exact = module(decoder, encoder)
    tolerance = 16 * torch.finfo(torch.bfloat16).eps * exact.abs().max()
    for halves in ((decoder.bfloat16(), encoder), (decoder, encoder.bfloat16())):
        with torch.autocast("cpu", torch.bfloat16):
            out = module(*halves)
        if name != "max_unpool":  # rounding the encoder makes ties, which moves its maxima
            assert (out.float() - exact).abs().max() <= tolerance
        assert out.shape == exact.shape


@pytest.mark.parametrize("out_size", [(14, 18), (13, 17)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_memory_format_in_is_memory_format_out(name, out_size):
    decoder, encoder = maps(out_size=out_size)
    module = make(name)
    out = module(decoder, encoder)
    assert out.is_contiguous()
    last = [x.to(memory_format=torch.channels_last) for x in (decoder, encoder)]
    module = module.to(memory_format=torch.channels_last)
    assert module(*last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(module(*last), out, rtol=1e-4, atol=5e-5)  # logits reach 20, and round at 2e-5


@pytest.mark.parametrize("out_size", [(14, 18), (13, 17)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_gives_an_empty_result(name, out_size):
    decoder, encoder = maps(out_size=out_size, batch=0)
    for module in (make(name), make(name).train()):
        out = module(decoder.requires_grad_(), encoder)
        assert out.shape == (0, 8, *out_size)
        assert out.dtype == torch.float32
        out.sum().backward()
        assert decoder.grad.shape == decoder.shape


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_saved_weights_give_the_same(name, tmp_path):
    module = make(name, channels=8)
    decoder, encoder = maps(out_size=(13, 17))
    expected = module(decoder, encoder)
    torch.testing.assert_close(module(decoder, encoder), expected, rtol=0, atol=0)  # called twice
    assert len(module.state_dict()) == 0 or name not in PARAMETERLESS
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    fresh = make(name)
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
        torch.testing.assert_close(other(decoder, encoder), expected, rtol=0, atol=0)
        assert repr(other) == repr(module)


@pytest.mark.parametrize("name", NAMES)
def test_a_permuted_batch_permutes_and_entries_do_not_mix(name):
    decoder, encoder = maps(out_size=(13, 17), batch=3)
    module = make(name)
    out, order = module(decoder, encoder), torch.tensor([2, 0, 1])
    torch.testing.assert_close(module(decoder[order], encoder[order]), out[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module(decoder[:1], encoder[:1]), out[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_as_they_were(name):
    decoder, encoder = maps(out_size=(13, 17))
    before = decoder.clone(), encoder.clone()
    make(name)(decoder, encoder)
    torch.testing.assert_close((decoder, encoder), before, rtol=0, atol=0)


# torch has no deterministic max_unpool2d and refuses it in the mode that poisons memory.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "max_unpool"])
def test_no_uninitialised_memory_is_read(name):
    decoder, encoder = maps(out_size=(13, 17))
    module = make(name)
    clean = module(decoder, encoder)
    with poisoned_memory():
        torch.testing.assert_close(module(decoder, encoder), clean)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PARAMETERLESS])
def test_weights_of_nan_are_refused_or_come_through(name):
    module = make(name)
    for parameter in module.parameters():
        nn.init.constant_(parameter, float("nan"))
    decoder, encoder = maps()
    try:
        out = module(decoder, encoder)
    except ValueError as error:
        assert "must be free of NaN" in str(error)  # noqa: PT017 - either answer is right
    else:
        # A sampler at NaN coordinates may give the border instead, and a clamp may hide it: it must not crash.
        assert out.shape == (2, 8, 14, 18)


def with_maps(**change):
    decoder, encoder = maps()
    arguments = {"decoder": decoder, "encoder": encoder}
    return arguments | {key: value(arguments[key]) for key, value in change.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_does_not_fit_is_named(name):
    module = make(name)
    kind = type(module).__name__
    expected = [
        ({"decoder": lambda x: x[0]}, r"decoder must be of shape \(batch, channels, height, width\), got \(8, 7, 9\)"),
        (
            {"encoder": lambda x: x[0]},
            r"encoder must be of shape \(batch, channels, height, width\), got \(8, 14, 18\)",
        ),
        ({"decoder": lambda x: x[:, :6]}, "decoder must be of 8 channels, got 6"),
        ({"decoder": lambda x: x.int()}, "decoder must be float16, .*, got torch.int32; convert it with"),
        ({"encoder": lambda x: x.int()}, "encoder must be float16, .*, got torch.int32; convert it with"),
        ({"encoder": lambda x: x.double()}, "encoder must be torch.float32 like decoder, got torch.float64"),
        ({"encoder": lambda x: x[:1]}, "encoder must be of batch size 2 like decoder, got 1"),
        ({"encoder": lambda x: x.to("meta")}, "encoder must be on cpu like decoder, got meta"),
        ({"encoder": lambda x: x[:, :, :6]}, "encoder must be .*, got 6 x 18"),
        ({"decoder": lambda x: x[:, :, :0]}, "decoder must be at least 1 x 1 in height and width, got"),
        ({"encoder": lambda x: x[..., :0]}, "encoder must be at least 1 x 1 in height and width, got"),
        ({"decoder": lambda x: x.tolist()}, "decoder must be a torch.Tensor, got list"),
    ]
    if name in GUIDED:
        expected.append(({"encoder": lambda x: x[:, :6]}, "encoder must be of 8 channels, got 6"))
    if name not in PARAMETERLESS:
        wide = {"decoder": lambda x: x.double(), "encoder": lambda x: x.double()}
        expected.append((wide, f"decoder must be torch.float32 like the weights of {kind}, got torch.float64; convert"))
        away = {"decoder": lambda x: x.to("meta"), "encoder": lambda x: x.to("meta")}
        expected.append((away, f"decoder must be on cpu like the weights of {kind}, got meta; move one"))
    for change, message in expected:
        with pytest.raises(ValueError, match=message):
            module(**with_maps(**change))


def test_shapes_alone_are_checked_like_values():
    with torch.device("meta"):
        module, (decoder, encoder) = make("fade"), maps()
    assert module(decoder, encoder).shape == (2, 8, 14, 18)
    with pytest.raises(ValueError, match=r"decoder must be torch.float32 like the weights of FADE, got torch.float64"):
        module(decoder.double(), encoder.double())
    with pytest.raises(ValueError, match=r"encoder must be torch.float32 like decoder, got torch.float64"):
        module(decoder, encoder.double())


@pytest.mark.parametrize("name", ALONE)
def test_only_the_size_of_the_encoder_matters_where_it_is_not_read(name):
    decoder, encoder = maps(out_size=(13, 17))
    module = make(name)
    torch.testing.assert_close(module(decoder, encoder[:, :3]), module(decoder, -encoder), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [0.5, 0, -2, float("nan"), float("inf"), "2", True, None])
def test_a_scale_out_of_range_is_named(name, scale):
    with pytest.raises(ValueError, match=f"scale must be a number not below 1, got {scale!r}"):
        build_upsampler(name, 8, scale=scale)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [0, -8, 8.0, True, "8"])
def test_channels_out_of_range_are_named(name, channels):
    with pytest.raises(ValueError, match=f"decoder_channels must be a whole number, 1 or more, got {channels!r}"):
        build_upsampler(name, channels)
    with pytest.raises(ValueError, match=f"encoder_channels must be a whole number, 1 or more, got {channels!r}"):
        build_upsampler(name, 8, channels)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        build_upsampler(name, 8, colour="red")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("carafee", "carafe"),
        ("FADE", "fade"),
        ("fade-lite", "fade_lite"),
        ("index_net", "indexnet"),
        ("pixelshuffle", "pixel_shuffle"),
    ],
)
def test_a_misspelt_name_gets_a_suggestion(name, suggestion):
    message = rf"upsampler must be one of fade, .*, carafe\+gate, got '{name}'; did you mean '{suggestion}'\?"
    with pytest.raises(ValueError, match=message):
        build_upsampler(name, 8)


def test_a_name_like_no_other_gets_none():
    with pytest.raises(ValueError, match=r"upsampler must be one of fade, .*, got 'qqq'$"):
        build_upsampler("qqq", 8)


def test_a_name_that_is_no_text():
    with pytest.raises(ValueError, match=r"upsampler must be one of fade, .*, got \['fade'\]"):
        build_upsampler(["fade"], 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["fade", "sapa", "nearest"])
def test_maps_in_the_wrong_order_are_told_the_right_one(name):
    decoder, encoder = maps()
    with pytest.raises(
        ValueError, match=r"at least 14 x 18 like decoder, got 7 x 9; the call is .*\(decoder, encoder\)"
    ):
        make(name)(encoder, decoder)


ODD = "must be an odd whole number, 1, 3, 5 ..., got 4"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((name, {"kernel_size": 4}, f"kernel_size {ODD}") for name in ("fade", "fade_lite", "carafe", "sapa", "a2u")),
        *((name, {"conv_size": 4}, f"conv_size {ODD}") for name in ("fade", "fade_lite", "carafe")),
        *(
            (name, {"fusion": "add"}, "fusion must be one of 'gate', 'skip', 'none', got 'add'")
            for name in ("fade", "fade_lite", "carafe", "nearest")
        ),
        *(
            (name, {"kernels": "both"}, "kernels must be one of 'semi_shift', 'naive', 'encoder', got 'both'")
            for name in ("fade", "fade_lite")
        ),
        *(
            (name, {"form": "h2l"}, "form must be one of 'low_to_high', 'high_to_low', got 'h2l'")
            for name in ("fade", "fade_lite")
        ),
        ("fade", {"depthwise": True}, "compressed_channels must be 25 where depthwise, got 64"),
        ("indexnet", {"mode": "o2m"}, "mode must be one of 'holistic', 'o2o', 'm2o', got 'o2m'"),
        ("dysample", {"style": "sp"}, "style must be one of 'lp', 'pl', got 'sp'"),
        ("dysample", {"groups": 3}, "groups must be a divisor of 8 channels, got 3"),
        ("dysample", {"groups": 0}, "groups must be a whole number, 1 or more, got 0"),
        ("carafe", {"groups": 0}, "groups must be a whole number, 1 or more, got 0"),
        ("dysample", {"style": "pl", "scale": 3}, "decoder_channels must be divisible by 9 for style 'pl', got 8"),
        ("carafe", {"groups": 3}, "groups must divide the 8 channels, and be 1 with fusion, got 3"),
        ("carafe", {"groups": 2, "fusion": "gate"}, "groups must divide the 8 channels, and be 1 with fusion, got 2"),
        ("sapa", {"norm": "batch"}, "norm must be one of 'group', 'layer', got 'batch'"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_upsampler(name, 8, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"compressed_channels": 0}) for name in ("fade", "carafe")),
        ("carafe", {"groups": 2.0}),
        ("dysample", {"groups": 2.0}),
        ("sapa", {"embedding_dim": 0}),
        ("indexnet", {"hidden_channels": -8}),
    ],
    ids=str,
)
def test_a_width_that_is_no_whole_number_above_0_is_named(name, options):
    (option,) = options
    with pytest.raises(ValueError, match=f"{option} must be"):
        build_upsampler(name, 8, **options)


@pytest.mark.parametrize("name", ["fade", "carafe", "sapa", "a2u"])
def test_an_unknown_implementation_is_refused(name):
    with pytest.raises(ValueError, match=r"impl must be one of 'auto', .*, got 'fast'"):
        build_upsampler(name, 8, impl="fast")(*maps())


# What each method does, apart from its numbers


@pytest.mark.parametrize("name", ["carafe", "dysample", "deconv", "pixel_shuffle", "b2"])
def test_a_method_of_phases_is_cropped_at_the_bottom_and_right(name):
    decoder, encoder = maps(out_size=(13, 17))
    module = make(name)
    torch.testing.assert_close(module(decoder, encoder), module(decoder)[:, :, :13, :17], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["indexnet", "a2u", "max_unpool", "carafe+gate"])
def test_an_odd_encoder_is_extended_by_its_last_row_and_column(name):
    decoder, encoder = maps(out_size=(13, 17))
    module = make(name)
    extended = torch.cat([encoder, encoder[:, :, -1:]], dim=2)
    extended = torch.cat([extended, extended[..., -1:]], dim=3)
    torch.testing.assert_close(module(decoder, encoder), module(decoder, extended)[:, :, :13, :17])


@pytest.mark.parametrize("name", ["fade", "fade_lite", "nearest+gate", "carafe+gate"])
@pytest.mark.parametrize("out_size", [(14, 18), (13, 17)], ids=str)
def test_an_open_gate_gives_the_encoder_and_a_shut_one_the_upsampled_decoder(name, out_size):
    decoder, encoder = maps(out_size=out_size)
    module = make(name)
    kind, _ = ALIASES.get(name, (name, {}))
    ungated = build_upsampler(kind, 8, fusion="none")
    ungated.load_state_dict(module.state_dict(), strict=False)
    for bias, expected in ((1e4, encoder), (-1e4, ungated(decoder, encoder))):
        nn.init.constant_(module.fusion.gate.bias, bias)
        torch.testing.assert_close(module(decoder, encoder), expected, rtol=0, atol=0)


def test_a_skip_adds_the_encoder():
    decoder, encoder = maps(out_size=(13, 17))
    skip, none = make("b5"), make("b4")
    none.load_state_dict(skip.state_dict())
    torch.testing.assert_close(skip(decoder, encoder), none(decoder, encoder) + encoder)


def test_the_gate_reads_the_projected_encoder():
    decoder, encoder = maps(channels=8, encoder_channels=6)
    module = make("fade", 8, 6)
    nn.init.constant_(module.fusion.gate.bias, 1e4)
    torch.testing.assert_close(module(decoder, encoder), module.fusion.project(encoder))


@pytest.mark.parametrize(("name", "twin"), [("b6", "fade"), ("b2", "carafe")])
def test_an_alias_of_the_plain_method_is_that_method(name, twin):
    module, other = make(name), make(twin)
    other.load_state_dict(module.state_dict())
    decoder, encoder = maps()
    torch.testing.assert_close(other(decoder, encoder), module(decoder, encoder), rtol=0, atol=0)


def test_options_override_those_of_an_alias():
    assert build_upsampler("b5", 8, fusion="none").fusion.mode == "none"


@pytest.mark.parametrize("out_size", [(14, 18), (13, 17), (19, 12)], ids=str)
def test_nearest_and_bilinear_are_what_they_say(out_size):
    decoder, encoder = maps(out_size=out_size)
    torch.testing.assert_close(make("nearest")(decoder, encoder), nearest(decoder, out_size), rtol=0, atol=0)
    expected = F.interpolate(decoder, out_size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(make("bilinear")(decoder, encoder), expected, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [2, 3])
def test_max_unpool_puts_each_value_where_the_maximum_was(scale):
    encoder = torch.randn(2, 8, 7 * scale, 9 * scale)
    pooled = F.max_pool2d(encoder, scale)
    out = make("max_unpool", scale=scale)(pooled, encoder)
    kept = out != 0
    torch.testing.assert_close(out[kept], encoder[kept], rtol=0, atol=0)
    torch.testing.assert_close(F.max_pool2d(kept.float(), scale), torch.ones_like(pooled))
    assert kept.sum() == pooled.numel()


@pytest.mark.parametrize("scale", [2, 3])
def test_pixel_shuffle_and_deconvolution_are_those_of_torch(scale):
    decoder, _ = maps()
    module = make("pixel_shuffle", scale=scale)
    expected = nn.PixelShuffle(scale)(F.conv2d(decoder, module.conv.weight, module.conv.bias, padding=1))
    torch.testing.assert_close(module(decoder), expected)
    conv = make("deconv").conv
    assert (conv.kernel_size, conv.stride, conv.padding, conv.output_padding) == ((3, 3), (2, 2), (1, 1), (1, 1))


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_of_carafe_have_kernels_of_their_own(groups):
    decoder, _ = maps()
    module = make("carafe", groups=groups)
    out = module(decoder)
    logits = module.content_encoder(module.compressor(decoder)).unflatten(1, (groups * 25, 4)).flatten(1, 2)
    kernels = F.pixel_shuffle(logits, 2).unflatten(1, (groups, 25)).softmax(2)
    windows = nearest(F.unfold(decoder, 5, padding=2).reshape(2, 8 * 25, 7, 9), (14, 18)).unflatten(1, (groups, -1, 25))
    torch.testing.assert_close(out, torch.einsum("bgckyx,bgkyx->bgcyx", windows, kernels).flatten(1, 2))


def test_sapa_with_layer_norm_normalises_each_point():
    module = make("sapa", norm="layer")
    decoder, encoder = maps()
    out = module.norm_encoder(encoder)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 14, 18), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(2, 14, 18), atol=1e-3, rtol=0)
    assert module(decoder, encoder).shape == encoder.shape


@pytest.mark.parametrize("style", ["lp", "pl"])
@pytest.mark.parametrize("scale", [2, 3])
def test_dysample_without_offsets_is_bilinear(style, scale):
    channels = 4 * scale**2
    module = build_upsampler("dysample", channels, scale=scale, style=style)
    nn.init.zeros_(module.offset.weight)
    decoder, _ = maps(channels=channels)
    expected = F.interpolate(decoder, scale_factor=scale, mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(decoder), expected, rtol=1e-4, atol=1e-5)


def test_dysample_in_half_precision_samples_a_wide_map_at_the_right_points():
    module = build_upsampler("dysample", 8).bfloat16()  # 8 bits of a coordinate would be off by a pixel in 200
    nn.init.zeros_(module.offset.weight)
    decoder = torch.randn(1, 8, 3, 200).bfloat16()
    expected = F.interpolate(decoder.float(), scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(decoder).float(), expected, rtol=2**-8, atol=1e-3)


INDEX_OPTIONS = [
    {"mode": mode, "nonlinear": nonlinear, "context": context}
    for mode in ("holistic", "o2o", "m2o")
    for nonlinear in (False, True)
    for context in (False, True)
]


@pytest.mark.parametrize("options", INDEX_OPTIONS, ids=str)
def test_indices(options):
    module = make("indexnet", **options)
    decoder, encoder = maps()
    pooling, up = module.indices(encoder)
    channels = 1 if options["mode"] == "holistic" else 8
    assert pooling.shape == up.shape == (2, channels, 14, 18)
    torch.testing.assert_close(4 * F.avg_pool2d(pooling, 2), torch.ones(2, channels, 7, 9))  # sums to 1 over a block
    assert ((up > 0) & (up < 1)).all()
    torch.testing.assert_close(module(decoder, encoder), up * nearest(decoder, (14, 18)))
    # The index of pooling is the softmax of the index of upsampling over each block.
    blocks = F.pixel_unshuffle(up, 2).unflatten(1, (channels, 4)).softmax(2).flatten(1, 2)
    torch.testing.assert_close(F.pixel_shuffle(blocks, 2), pooling)


@pytest.mark.parametrize("options", INDEX_OPTIONS, ids=str)
def test_pooling_by_indices(options):
    module = make("indexnet", **options)
    even, odd = torch.randn(2, 8, 14, 18), torch.randn(2, 8, 13, 17)
    assert module.pool(even).shape == module.pool(odd).shape == (2, 8, 7, 9)
    torch.testing.assert_close(module.pool(torch.ones(2, 8, 14, 18)), torch.ones(2, 8, 7, 9))  # a weighted mean
    pooled = module.pool(even)
    assert (pooled <= F.max_pool2d(even, 2) + 1e-6).all()
    assert (pooled >= -F.max_pool2d(-even, 2) - 1e-6).all()


def test_o2o_indices_of_a_channel_depend_on_that_channel_alone_and_m2o_on_all():
    encoder = torch.randn(2, 8, 14, 18)
    changed = encoder.clone()
    changed[:, 3] = torch.randn(2, 14, 18)
    for mode, alone in (("o2o", True), ("m2o", False)):
        module = make("indexnet", mode=mode)
        differs = (module.indices(encoder)[1] - module.indices(changed)[1]).abs().amax(dim=(0, 2, 3)) > 0
        assert differs[3]
        assert differs.sum() == (1 if alone else 8)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_a2u_pools_when_asked_to(dynamic, shared):
    options = {"dynamic": dynamic, "shared": shared}
    closed, module = make("a2u", **options), make("a2u", pooling=True, **options)
    even, odd = torch.randn(2, 8, 14, 18), torch.randn(2, 8, 13, 17)
    assert module.pool(even).shape == module.pool(odd).shape == (2, 8, 7, 9)
    assert module.indices(even)[0].shape == (2, 36, 7, 9)
    assert module.indices(even)[1].shape == (2, 9, 14, 18)
    with pytest.raises(
        ValueError, match=r"pooling must be True to use pool\(\), got False; build A2U with pooling=True"
    ):
        closed.pool(even)
    for one, trains in ((closed, False), (module, True)):
        down = [parameter for key, parameter in one.named_parameters() if key.startswith("down")]
        assert down
        assert all(parameter.requires_grad == trains for parameter in down)
        others = [parameter for key, parameter in one.named_parameters() if not key.startswith("down")]
        assert all(parameter.requires_grad for parameter in others)


def test_a2u_pools_a_constant_to_that_constant_inside():
    module = make("a2u", pooling=True)
    out = module.pool(torch.full((2, 8, 14, 18), 3.0))
    torch.testing.assert_close(out[:, :, 1:-1, 1:-1], torch.full((2, 8, 5, 7), 3.0))
    assert (out <= 3 + 1e-5).all()


def test_a2u_pooling_is_its_formula():
    module = make("a2u", pooling=True)
    encoder = torch.randn(2, 8, 14, 18)
    kernels = module.indices(encoder)[0].softmax(1)
    windows = F.unfold(encoder, 6, padding=2, stride=2).reshape(2, 8, 36, 7, 9)
    torch.testing.assert_close(module.pool(encoder), torch.einsum("bckyx,bkyx->bcyx", windows, kernels))


PARTIAL = [("indexnet", {}), ("indexnet", {"mode": "holistic", "context": False}), ("a2u", {"pooling": True})]


@pytest.mark.parametrize(("name", "options"), PARTIAL, ids=str)
def test_pooling_an_empty_batch_or_one_pixel(name, options):
    module = make(name, **options)
    assert module.pool(torch.randn(2, 8, 1, 1)).shape == (2, 8, 1, 1)
    assert module.pool(torch.randn(0, 8, 13, 17)).shape == (0, 8, 7, 9)


@pytest.mark.parametrize(("name", "options"), PARTIAL, ids=str)
def test_pooling_keeps_the_memory_format(name, options):
    module = make(name, **options)
    encoder = torch.randn(2, 8, 13, 17)
    pooled, last = module.pool(encoder), module.pool(encoder.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, pooled, rtol=1e-4, atol=1e-5)
    assert pooled.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("name", "options"), PARTIAL, ids=str)
def test_pooling_a_permuted_batch_permutes(name, options):
    module = make(name, **options)
    encoder, order = torch.randn(3, 8, 13, 17), torch.tensor([2, 0, 1])
    torch.testing.assert_close(module.pool(encoder[order]), module.pool(encoder)[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), PARTIAL, ids=str)
def test_pooling_in_half_precision_stays_near_float32(name, options):
    module = build_upsampler(name, 8, **options).eval().bfloat16()
    wide = copy.deepcopy(module).float()
    encoder = torch.randn(2, 8, 13, 17).bfloat16()
    half, exact = module.pool(encoder), wide.pool(encoder.float())
    with torch.autocast("cpu", torch.bfloat16):
        cast = wide.pool(encoder.float())
    assert half.dtype == torch.bfloat16
    for out in (half, cast):
        assert (out.float() - exact).abs().max() <= 8 * torch.finfo(torch.bfloat16).eps * exact.abs().max()


@pytest.mark.parametrize("method", ["pool", "indices"])
@pytest.mark.parametrize(("name", "options"), PARTIAL, ids=str)
def test_pooling_names_what_does_not_fit(name, options, method):
    call = getattr(make(name, **options), method)
    with pytest.raises(ValueError, match=r"encoder must be of shape .*, got \(8, 14, 18\)"):
        call(torch.randn(8, 14, 18))
    with pytest.raises(ValueError, match=r"encoder must be of 8 channels, got 6"):
        call(torch.randn(2, 6, 14, 18))
    if method == "indices":
        with pytest.raises(ValueError, match=r"encoder must be .*even.*, got 13 x 18"):
            call(torch.randn(2, 8, 13, 18))


def a2u_affinity(module: nn.Module, encoder: Tensor) -> Tensor:
    """The affinity as written, a sample at a time."""
    out = []
    for x in encoder.split(1):
        pooled = F.adaptive_avg_pool2d(x, 6)
        maps = []
        for part, norm in ((module.u, module.norm_u), (module.v, module.norm_v)):
            kernel = part(pooled)[0] if isinstance(part, nn.Module) else part
            kernel = kernel.expand(x.shape[1], 6, 6)[:, None]
            maps.append(F.leaky_relu(norm(F.conv2d(x, kernel, stride=2, padding=2, groups=x.shape[1])), 0.01))
        out.append((maps[0] * maps[1]).sum(1, True) / x.shape[1] ** 0.5)
    return torch.cat(out)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_a2u_upsamples_by_its_formula(dynamic, shared):
    module = make("a2u", dynamic=dynamic, shared=shared)
    decoder, encoder = maps()
    p = module.up(F.adaptive_avg_pool2d(encoder, 1)) if dynamic else module.up[None]
    kernels = F.pixel_shuffle(p * a2u_affinity(module, encoder), 2).sigmoid().softmax(1)
    windows = nearest(F.unfold(decoder, 3, padding=1).reshape(2, 8 * 9, 7, 9), (14, 18)).unflatten(1, (8, 9))
    expected = torch.einsum("bckyx,bkyx->bcyx", windows, kernels)
    torch.testing.assert_close(module(decoder, encoder), expected, rtol=1e-4, atol=1e-5)


def test_a_new_upsampler_says_what_it_must_define():
    class Empty(Upsampler):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty must define upsample\(decoder, encoder, size\)"):
        Empty(8)(maps()[0])
    with pytest.raises(NotImplementedError, match=r"Empty must define macs\(height, width\)"):
        Empty(8).macs(7, 9)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fade", {}),
        ("fade,gate_bias=-2", {"gate_bias": -2}),
        ("fade,init=small,kernel_size=3", {"init": "small", "kernel_size": 3}),
        ("b3,conv_size=1", {"kernels": "naive", "fusion": "none", "conv_size": 1}),
        ("nearest+gate,fusion=none", {"fusion": "none"}),
    ],
)
def test_options_may_follow_a_name(name, options):
    kind, given = resolve(name)
    assert given == options
    assert isinstance(build_upsampler(name, 8, 8), kind)


@pytest.mark.parametrize(
    "name", ["fade,kernel=3", "fade,gate_bias", "fade,", "carafe,gate_bias=1", "fade,decoder_channels=3"]
)
def test_unknown_option_in_a_name(name):
    plain, _, option = name.partition(",")
    with pytest.raises(
        ValueError, match=rf"options of '{plain}' must be key=value with scale, .* got '{option.split('=')[0]}'"
    ):
        resolve(name)


def run(module: Upsampler, decoder: Tensor, encoder: Tensor) -> list[Tensor]:
    """The result, and the gradients of what it was made of, on the CPU in float64."""
    weights = [x for x in module.parameters() if x.requires_grad]
    leaves = [decoder.detach().requires_grad_(), encoder.detach().requires_grad_(), *weights]
    out = module(*leaves[:2])
    grads = torch.autograd.grad(out.sum(), leaves, allow_unused=True)
    return [x.detach().cpu().double() for x in (out, *grads) if x is not None]


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu_results_and_gradients_are_those_of_the_cpu(name):
    with torch.device("cpu"):
        module, inputs = make(name).double(), maps(dtype=torch.float64)
    expected = run(module, *inputs)
    found = run(copy.deepcopy(module).to("cuda"), *(x.to("cuda") for x in inputs))
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())
    half = run(copy.deepcopy(module).to("cuda", torch.float16), *(x.to("cuda", torch.float16) for x in inputs))
    up, wanted = half[0], expected[0]  # gradients of IndexNet and A2U are small differences of large numbers
    torch.testing.assert_close(up, wanted, rtol=3e-2, atol=3e-2 * wanted.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dysample_at_nan_has_the_same_values_with_gradients_and_none_where_it_sampled_nan(dtype):
    module = build_upsampler("dysample", 8).to(dtype)
    decoder = torch.randn(2, 8, 5, 6, dtype=dtype)
    decoder[:, 0, 2, 3] = float("nan")
    with torch.no_grad():
        expected = module(decoder)
    out = module(decoder.requires_grad_())
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    out.nan_to_num().sum().backward()  # torch's own gradient of grid_sample ended the process here
    assert decoder.grad.shape == decoder.shape
