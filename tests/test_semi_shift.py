from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fadeup import SemiShiftConv, build_upsampler, semi_shift_conv
from fadeup.functional import FORMS, compressed_conv, nearest
from fadeup.upsamplers import share_guide
from fadeup.upsamplers.fade import ConcatenatedKernels
from helpers import poisoned_memory

Size = tuple[int, int]
WHOLE = [
    ((5, 7), (10, 14)),
    ((5, 7), (9, 13)),
    ((5, 7), (10, 13)),
    ((5, 7), (15, 21)),
    ((5, 7), (10, 21)),
    ((5, 7), (9, 7)),
    ((4, 6), (4, 6)),
    ((1, 1), (2, 2)),
]


def arguments(
    size: Size, out_size: Size, *, batch: int = 2, conv_size: int = 3, depthwise: bool = False, compressed: int = 5
) -> dict[str, Tensor]:
    """Unequal channels, float64, every one of them a leaf."""
    random = torch.Generator().manual_seed(1)
    out = compressed if depthwise else 9
    shapes = {
        "encoder": (batch, 4, *out_size),
        "decoder": (batch, 3, *size),
        "encoder_weight": (compressed, 4, 1, 1),
        "decoder_weight": (compressed, 3, 1, 1),
        "kernel_weight": (out, 1 if depthwise else compressed, conv_size, conv_size),
        "encoder_bias": (compressed,),
        "kernel_bias": (out,),
    }
    return {
        name: torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }


def total(maps: dict[str, Tensor], form: str) -> Tensor:
    """The logits of the whole operator, `(B, M, H', W')`."""
    logits, coarse_logits = semi_shift_conv(**maps, form=form)
    if form == "high_to_low":
        assert coarse_logits is None
        return logits
    assert coarse_logits is not None
    assert coarse_logits.shape[2:] == maps["decoder"].shape[2:]
    return logits + nearest(coarse_logits, (logits.shape[2], logits.shape[3]))


def value_and_gradients(maps: dict[str, Tensor], form: str) -> list[Tensor]:
    out = total(maps, form)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad(out, list(maps.values()), cotangent)]


def assert_forms_are_equal(maps: dict[str, Tensor]) -> None:
    for ours, wanted in zip(*(value_and_gradients(maps, form) for form in FORMS), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("conv_size", [1, 3, 5])
@pytest.mark.parametrize(("size", "out_size"), WHOLE, ids=str)
def test_the_two_forms_are_equal_in_value_and_gradient(size, out_size, conv_size, depthwise):
    assert_forms_are_equal(arguments(size, out_size, conv_size=conv_size, depthwise=depthwise))


whole_ratios = st.tuples(st.integers(1, 6), st.integers(1, 4), st.booleans()).map(
    lambda side: (side[0], 2 * side[0] - 1 if side[2] else side[0] * side[1])
)


@given(rows=whole_ratios, columns=whole_ratios, depthwise=st.booleans())
def test_law_the_two_forms_are_equal_at_every_whole_ratio(rows, columns, depthwise):
    assert_forms_are_equal(arguments((rows[0], columns[0]), (rows[1], columns[1]), depthwise=depthwise))


@pytest.mark.parametrize("name", ["fade", "fade_lite"])
@pytest.mark.parametrize("out_size", [(10, 14), (9, 13), (15, 21)], ids=str)
def test_fade_is_the_same_in_both_forms(name, out_size):
    modules = [build_upsampler(name, 6, 4, form=form).double() for form in FORMS]
    modules[1].load_state_dict(modules[0].state_dict())
    decoder, encoder = torch.randn(2, 6, 5, 7).double(), torch.randn(2, 4, *out_size).double()
    results = []
    for module in modules:
        inputs = [x.clone().requires_grad_() for x in (decoder, encoder)]
        out = module(*inputs)
        results.append([out, *torch.autograd.grad(out.square().sum(), [*inputs, *module.parameters()])])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-10)


def test_the_high_to_low_form_fills_every_pixel():
    for size, out_size in WHOLE:
        maps = arguments(size, out_size)
        clean = total(maps, "high_to_low")
        with poisoned_memory():
            torch.testing.assert_close(total(maps, "high_to_low"), clean, rtol=0, atol=0)


def equation_3(maps: dict[str, Tensor], *, shift_decoder: bool = False) -> Tensor:
    """FADE's equation 3 as loops, its bias b once; a, the compressor's, with the encoder or with the decoder."""
    bias = maps["encoder_bias"][:, None, None]
    fine = torch.einsum("dc,cyx->dyx", maps["encoder_weight"][:, :, 0, 0], maps["encoder"][0])
    coarse = torch.einsum("dc,cyx->dyx", maps["decoder_weight"][:, :, 0, 0], maps["decoder"][0])
    fine, coarse = (fine, coarse + bias) if shift_decoder else (fine + bias, coarse)
    (height, width), (out_height, out_width) = coarse.shape[1:], fine.shape[1:]
    weight = maps["kernel_weight"]
    reach = weight.shape[-1] // 2
    out = maps["kernel_bias"][:, None, None].repeat(1, out_height, out_width)
    for y, x, i, j in product(range(out_height), range(out_width), *[range(weight.shape[-1])] * 2):
        for source, row, column in ((fine, y, x), (coarse, y * height // out_height, x * width // out_width)):
            row, column = row + i - reach, column + j - reach
            if 0 <= row < source.shape[1] and 0 <= column < source.shape[2]:
                out[:, y, x] += weight[:, :, i, j] @ source[:, row, column]
    return out[None]


@pytest.mark.parametrize("form", FORMS)
def test_half_the_bias_gives_equation_3(form):
    maps = {name: x.detach() for name, x in arguments((4, 5), (8, 10), batch=1).items()}
    halved = maps | {"kernel_bias": maps["kernel_bias"] / 2}
    torch.testing.assert_close(total(halved, form), equation_3(maps), rtol=1e-11, atol=1e-11)
    doubled = total(maps, form) - maps["kernel_bias"][:, None, None]
    torch.testing.assert_close(doubled, equation_3(maps), rtol=1e-11, atol=1e-11)


def test_the_compressors_bias_may_move_to_the_decoder_but_for_the_outer_two_pixels():
    maps = {name: x.detach() for name, x in arguments((4, 5), (8, 10), batch=1).items()}
    ours = total(maps | {"kernel_bias": maps["kernel_bias"] / 2}, "low_to_high")
    moved = equation_3(maps, shift_decoder=True)
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], moved[..., 2:-2, 2:-2], rtol=1e-11, atol=1e-11)
    assert (ours - moved)[..., 1, :].abs().min() > 1e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["fade", "fade_lite"])
def test_law_the_decoder_does_not_change_how_the_children_of_a_point_differ(name, form):
    kernels = build_upsampler(name, 6, form=form, init="xavier").double().kernels
    encoder = torch.randn(1, 6, 10, 14).double()

    def differences(decoder: Tensor) -> Tensor:
        logits, coarse = kernels(encoder, decoder)
        whole = logits if coarse is None else logits + nearest(coarse, (10, 14))
        children = torch.nn.functional.pixel_unshuffle(whole, 2).unflatten(1, (25, 4))
        return children - children[:, :, :1]

    first, other = differences(torch.randn(1, 6, 5, 7).double()), differences(torch.randn(1, 6, 5, 7).double())
    assert first.abs().max() > 0.1
    torch.testing.assert_close(first, other, rtol=1e-12, atol=1e-12)


def footprint(kernels: torch.nn.Module, y: int, x: int) -> int:
    """How many decoder points the kernel at (y, x) depends on."""
    decoder = torch.randn(1, 6, 5, 7, dtype=torch.float64, requires_grad=True)
    logits, coarse = kernels(torch.randn(1, 6, 10, 14, dtype=torch.float64), decoder)
    whole = logits if coarse is None else logits + nearest(coarse, (10, 14))
    (grad,) = torch.autograd.grad(whole[0, :, y, x].square().sum(), decoder)
    return int((grad.abs().sum(dim=(0, 1)) > 0).sum())


@pytest.mark.parametrize(("y", "x"), [(4, 6), (4, 7), (5, 6), (5, 7)])
@pytest.mark.parametrize("form", FORMS)
def test_law_a_kernel_sees_9_decoder_points_where_the_naive_one_sees_4(form, y, x):
    semi_shift = SemiShiftConv(6, 6, form=form).double()
    naive = ConcatenatedKernels(6, 6, 25, with_decoder=True, compressed_channels=64, conv_size=3, groups=1).double()
    assert footprint(semi_shift, y, x) == 9
    assert footprint(naive, y, x) == 4


def test_encoder_alone_sees_no_decoder_point():
    kernels = ConcatenatedKernels(6, 6, 25, with_decoder=False, compressed_channels=64, conv_size=3, groups=1)
    decoder = torch.randn(1, 6, 5, 7)
    encoder = torch.randn(1, 6, 10, 14)
    torch.testing.assert_close(kernels(encoder, decoder)[0], kernels(encoder, 2 * decoder)[0], rtol=0, atol=0)


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_derivatives_match_finite_differences(form, depthwise):
    maps = arguments((2, 3), (4, 6), batch=1, compressed=2, depthwise=depthwise)

    def call(*parts):
        return total(dict(zip(maps, parts, strict=True)), form)

    assert torch.autograd.gradcheck(call, tuple(maps.values()))
    assert torch.autograd.gradgradcheck(call, tuple(maps.values()), fast_mode=True)


def test_the_low_to_high_form_serves_any_ratio():
    maps = arguments((5, 7), (8, 19))
    logits, coarse_logits = semi_shift_conv(**maps)
    assert logits.shape == (2, 9, 8, 19)
    assert coarse_logits.shape == (2, 9, 5, 7)


def test_biases_may_be_absent():
    maps = {name: x for name, x in arguments((5, 7), (10, 14)).items() if not name.endswith("bias")}
    zeros = {"encoder_bias": torch.zeros(5).double(), "kernel_bias": torch.zeros(9).double()}
    for form in FORMS:
        torch.testing.assert_close(total(maps, form), total(maps | zeros, form))


def test_macs_of_the_layer():
    layer = SemiShiftConv(8, 6, 25, compressed_channels=16)
    assert layer.macs(10, 40) == 16 * 8 * 40 + 16 * 6 * 10 + 25 * 16 * 9 * 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "both"}, "form must be one of 'low_to_high', 'high_to_low', got 'both'"),
        (
            {"encoder": (2, 4, 11, 14)},
            "encoder must be a whole multiple of decoder's 5 x 7 .*, got 11 x 14; form='low_to_high' serves any size",
        ),
        ({"encoder": (2, 4, 10, 20)}, "encoder must be a whole multiple of decoder's 5 x 7 .*, got 10 x 20"),
        ({"encoder": (2, 4, 10, 6)}, "encoder must be at least 5 x 7 like decoder, got 10 x 6"),
        ({"encoder": (2, 5, 10, 14)}, r"encoder must be of 4 channels, got 5 in \(2, 5, 10, 14\)"),
        ({"decoder": (2, 4, 5, 7)}, r"decoder must be of 3 channels, got 4 in \(2, 4, 5, 7\)"),
        ({"encoder": (1, 4, 10, 14)}, "encoder must be of batch size 2 like decoder, got 1"),
        ({"encoder": (4, 10, 14)}, r"encoder must be of shape .*, got \(4, 10, 14\)"),
        ({"encoder": (2, 4, 0, 14)}, r"encoder must be at least 1 x 1 in height and width, got \(2, 4, 0, 14\)"),
        ({"kernel_weight": (9, 5, 2, 2)}, r"kernel_weight.shape\[-1\] must be an odd whole number, .*, got 2"),
        ({"kernel_weight": (9, 5, 1, 3)}, r"kernel_weight must be \(9, 5, 3, 3\) .*, got \(9, 5, 1, 3\)"),
        ({"kernel_weight": (9, 2, 3, 3)}, r"kernel_weight.shape\[1\] must divide 5 channels, got 2"),
        ({"decoder_weight": (4, 3, 1, 1)}, r"decoder_weight must be \(5, 3, 1, 1\) .*, got \(4, 3, 1, 1\)"),
        ({"encoder_weight": (5, 4, 3, 3)}, r"encoder_weight must be \(5, 4, 1, 1\) .*, got \(5, 4, 3, 3\)"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(change, message):
    maps = {name: x.detach() for name, x in arguments((5, 7), (10, 14)).items()}
    change = {name: value if name == "form" else torch.ones(value).double() for name, value in change.items()}
    with pytest.raises(ValueError, match=message):
        semi_shift_conv(**maps | {"form": "high_to_low"} | change)


def test_an_encoder_of_another_dtype_or_device_is_named():
    maps = {name: x.detach() for name, x in arguments((5, 7), (10, 14)).items()}
    with pytest.raises(ValueError, match=r"encoder must be torch.float64 like decoder, got torch.float32"):
        semi_shift_conv(**maps | {"encoder": maps["encoder"].float()})
    with pytest.raises(ValueError, match="encoder must be on cpu like decoder, got meta"):
        semi_shift_conv(**maps | {"encoder": maps["encoder"].to("meta")})


def test_the_layer_names_an_unknown_form_and_an_even_window():
    with pytest.raises(ValueError, match="form must be one of 'low_to_high', 'high_to_low', got 'l2h'"):
        SemiShiftConv(4, 4, form="l2h")
    with pytest.raises(ValueError, match=r"conv_size must be an odd whole number, 1, 3, 5 ..., got 2"):
        SemiShiftConv(4, 4, conv_size=2)


@pytest.mark.parametrize(("size", "out_size"), [((1, 4), (1, 7)), ((1, 4), (1, 8)), ((4, 1), (8, 1))], ids=str)
def test_one_pixel_is_2h_minus_1_too(size, out_size):
    assert_forms_are_equal(arguments(size, out_size))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("size", [(5, 9), (3, 3), (1, 7), (16, 16)], ids=str)
@pytest.mark.parametrize("conv_size", [1, 3, 5])
@pytest.mark.parametrize("channels", [3, 64, 89, 90])
def test_a_folded_compressor_gives_the_same_borders_included(channels, conv_size, size, with_bias):
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    compressor, weight = torch.randn(64, channels, 1, 1).double(), torch.randn(25, 64, conv_size, conv_size).double()
    compressor_bias, bias = (torch.randn(64).double(), torch.randn(25).double()) if with_bias else (None, None)
    expected = F.conv2d(F.conv2d(x, compressor, compressor_bias), weight, bias, padding=conv_size // 2)
    with torch.no_grad():
        actual = compressed_conv(x, compressor, compressor_bias, weight, bias)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("channels", "convolutions"), [(89, 1), (90, 2)])
def test_the_compressor_is_folded_only_where_that_is_cheaper(channels, convolutions):
    x, compressor, weight = torch.ones(1, channels, 4, 4), torch.ones(64, channels, 1, 1), torch.ones(25, 64, 3, 3)

    def count() -> int:
        with torch.profiler.profile(acc_events=True) as profile:
            compressed_conv(x, compressor, None, weight, None)
        return sum(event.count for event in profile.key_averages() if event.key == "aten::conv2d")

    with torch.no_grad():
        assert count() == convolutions
    assert count() == 2


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", ["fade", "fade_lite", "b4"])
def test_a_shared_guide_gives_what_each_upsampler_gives_alone(name, memory_format):
    first, second = (build_upsampler(name, c, 6).double() for c in (6, 4))
    encoder = torch.randn(2, 6, 13, 17, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    decoders = [torch.randn(2, c, *size, dtype=torch.float64) for c, size in ((6, (7, 9)), (4, (13, 17)))]
    decoders = [x.to(memory_format=memory_format) for x in decoders]
    alone = [up(x, encoder) for up, x in zip((first, second), decoders, strict=True)]
    logits = share_guide([first, second], encoder)
    shared = [up(x, encoder, fine_logits=y) for up, x, y in zip((first, second), decoders, logits, strict=True)]
    inputs = [encoder, *first.parameters(), *second.parameters()]
    grads = [torch.autograd.grad(sum(x.square().sum() for x in outs), inputs) for outs in (alone, shared)]
    for actual, expected in zip((*shared, *grads[1]), (*alone, *grads[0]), strict=True):
        torch.testing.assert_close(actual, expected)
    assert all(x.is_contiguous(memory_format=memory_format) for x in shared)


@pytest.mark.parametrize("other", [("b1", {}), ("carafe", {}), ("fade_lite", {}), ("fade", {"conv_size": 5})], ids=str)
def test_what_cannot_share_a_guide_is_refused(other):
    name, options = other
    with pytest.raises(
        ValueError, match=r"upsamplers must be alike, with kernels='semi_shift' .* got 2, [12] with semi"
    ):
        share_guide([build_upsampler("fade", 6), build_upsampler(name, 6, **options)], torch.ones(1, 6, 8, 8))


def test_logits_of_a_shared_guide_need_semi_shift_kernels():
    decoder, encoder = torch.ones(1, 6, 4, 4), torch.ones(1, 6, 8, 8)
    with pytest.raises(ValueError, match="fine_logits must be None with kernels other than 'semi_shift', got Tensor"):
        build_upsampler("b1", 6)(decoder, encoder, fine_logits=torch.ones(1, 25, 8, 8))
    with pytest.raises(ValueError, match=r"logits must be of batch size 1 like decoder, got 2"):
        build_upsampler("fade", 6)(decoder, encoder, fine_logits=torch.ones(2, 25, 8, 8))
