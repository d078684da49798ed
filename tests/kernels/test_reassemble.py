from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fadeup
from fadeup.functional import nearest, reassemble
from fadeup.kernels.eager import whole_ratio
from fadeup.kernels.op import IMPLEMENTATIONS
from helpers import ALL, FASTER, assert_within, budget, poisoned_memory

SLACK = 4  # times the reference's rounding: native adds 4*K*K products in a row, where the reference adds in two levels
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
PARTS = ("decoder", "logits", "coarse_logits", "encoder", "gate_logits")


@dataclass(frozen=True)
class Case:
    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel_size: int = 5
    channels: int = 6
    batch: int = 2
    coarse: bool = True
    gate: bool = True

    def __str__(self) -> str:
        sizes = "{}x{}-{}x{}".format(*self.size, *self.out_size)
        options = f"K{self.kernel_size}-C{self.channels}-B{self.batch}"
        return f"{sizes}-{options}{'-coarse' * self.coarse}{'-gate' * self.gate}"


CASES = [
    Case((7, 9), (14, 18)),
    Case((7, 9), (13, 17)),
    Case((7, 9), (14, 17), kernel_size=3),
    Case((7, 9), (7, 9)),
    Case((7, 9), (21, 27)),
    Case((3, 4), (12, 16), batch=3),
    Case((6, 8), (9, 12)),
    Case((5, 7), (10, 21)),
    Case((5, 7), (11, 13)),
    Case((5, 7), (10, 13)),
    Case((7, 9), (14, 18), channels=1),
    Case((5, 7), (11, 13), channels=1),
    Case((1, 1), (2, 2)),
    Case((1, 1), (1, 1), channels=1, batch=1),
    Case((1, 1), (5, 3)),
    Case((1, 6), (1, 11), kernel_size=3),
    *(Case((5, 6), (10, 12), kernel_size=k) for k in (1, 3, 7)),
    *(Case((5, 6), (8, 11), kernel_size=k) for k in (1, 3, 7)),
    *(Case((7, 9), out, coarse=c, gate=g) for out in [(13, 17), (12, 19)] for c, g in [(0, 0), (1, 0), (0, 1)]),
]
SMALL = [Case((2, 3), (4, 6), 3, 2, 2), Case((2, 3), (3, 6), 3, 2, 2), Case((3, 2), (4, 5), 3, 2, 1)]


def values(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """The same on every device."""
    return torch.randn(shape, generator=random, dtype=torch.float64, device="cpu").to(torch.get_default_device())


def make(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Tensor | None]:
    """Leaves of `dtype`; the same values, rounded to it, for every dtype."""
    random = torch.Generator("cpu").manual_seed(1)
    (height, width), (out_height, out_width) = case.size, case.out_size
    shapes = {
        "decoder": (case.batch, case.channels, height, width),
        "logits": (case.batch, case.kernel_size**2, out_height, out_width),
        "coarse_logits": (case.batch, case.kernel_size**2, height, width),
        "encoder": (case.batch, case.channels, out_height, out_width),
        "gate_logits": (case.batch, 1, height, width),
    }
    maps = {name: values(shape, random) for name, shape in shapes.items()}
    absent = ["coarse_logits"] * (not case.coarse) + ["encoder", "gate_logits"] * (not case.gate)
    return {name: None if name in absent else x.to(dtype).requires_grad_() for name, x in maps.items()}


def widened(maps: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if x is None else x.detach().double().requires_grad_() for name, x in maps.items()}


def cotangent_of(out: Tensor) -> Tensor:
    return values(tuple(out.shape), torch.Generator("cpu").manual_seed(2)).to(out.dtype)


def outputs(
    maps: dict[str, Tensor | None], impl: str, lay: Callable[[Tensor], Tensor] = torch.clone
) -> dict[str, Tensor]:
    """The result and the gradient of every part, under a fixed random cotangent that is laid out by `lay`."""
    out = reassemble(**maps, impl=impl)
    given = {name: x for name, x in maps.items() if x is not None}
    grads = torch.autograd.grad(out, list(given.values()), lay(cotangent_of(out)))
    return {"out": out.detach(), **dict(zip(given, grads, strict=True))}


def tolerance(exact: Tensor, low: Tensor) -> float:
    if low.dtype == torch.float64:
        return 1e-13 * exact.abs().max().item()
    return SLACK * budget(exact, low)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("impl", FASTER)
def test_value_and_gradients_match_reference_within_its_own_rounding(case, impl):
    maps = make(case, torch.float32)
    exact, low = outputs(widened(maps), "reference"), outputs(maps, "reference")
    actual = outputs(maps, impl)
    assert actual.keys() == exact.keys()
    for name in exact:
        assert_within(actual[name], exact[name], tolerance(exact[name], low[name]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out_size", [(13, 17), (12, 19)], ids=str)
@pytest.mark.parametrize("impl", FASTER)
def test_every_dtype_matches_reference_and_comes_back(impl, out_size, dtype):
    maps = make(Case((7, 9), out_size), dtype)
    exact, low = outputs(widened(maps), "reference"), outputs(maps, "reference")
    actual = outputs(maps, impl)
    for name in exact:
        assert actual[name].dtype == dtype
        assert_within(actual[name], exact[name], tolerance(exact[name], low[name]))


def literal(decoder, logits, coarse_logits=None, encoder=None, gate_logits=None) -> Tensor:
    """The three lines at the head of fadeup.functional, a number at a time."""
    batch, channels, height, width = decoder.shape
    taps, out_height, out_width = logits.shape[1:]
    kernel_size = round(taps**0.5)
    out = torch.zeros(batch, channels, out_height, out_width, dtype=decoder.dtype)
    for b, y, x in product(range(batch), range(out_height), range(out_width)):
        sy, sx = (y * height) // out_height, (x * width) // out_width
        exponents = []
        for t in range(taps):
            coarse = 0.0 if coarse_logits is None else coarse_logits[b, t, sy, sx].item()
            exponents.append(torch.tensor(logits[b, t, y, x].item() + coarse, dtype=torch.float64).exp().item())
        for c in range(channels):
            value = 0.0
            for t in range(taps):
                row, column = sy + t // kernel_size - kernel_size // 2, sx + t % kernel_size - kernel_size // 2
                if 0 <= row < height and 0 <= column < width:
                    value += exponents[t] / sum(exponents) * decoder[b, c, row, column].item()
            if encoder is not None:
                gate = torch.sigmoid(gate_logits[b, 0, sy, sx]).item()
                value = gate * encoder[b, c, y, x].item() + (1 - gate) * value
            out[b, c, y, x] = value
    return out


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize(
    "case",
    [*SMALL, Case((3, 4), (5, 9), 5, 2, 1), Case((2, 2), (4, 4), 3, 1, 1, coarse=False, gate=False)],
    ids=str,
)
def test_matches_the_formula_written_as_loops(case, impl):
    maps = {name: None if x is None else x.detach() for name, x in make(case).items()}
    torch.testing.assert_close(reassemble(**maps, impl=impl), literal(**maps), rtol=1e-12, atol=1e-12)


def reassemble_by_position(impl: str) -> Callable[..., Tensor]:
    return lambda *parts: reassemble(**dict(zip(PARTS, parts, strict=True)), impl=impl)


def similarity(kernel_size: int, impl: str) -> Callable[..., Tensor]:
    return lambda query, key: fadeup.window_dot(query, key, kernel_size, impl=impl)


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("impl", FASTER)
def test_the_derivative_matches_finite_differences(case, impl):
    maps = make(case)
    assert torch.autograd.gradcheck(reassemble_by_position(impl), tuple(maps.values()))
    assert torch.autograd.gradcheck(similarity(case.kernel_size, impl), (maps["encoder"], maps["decoder"]))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_second_derivative_of_eager_matches_finite_differences(case):
    maps = make(case)
    pair = maps["encoder"], maps["decoder"]
    assert torch.autograd.gradgradcheck(reassemble_by_position("eager"), tuple(maps.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(similarity(case.kernel_size, "eager"), pair, fast_mode=True)


@pytest.mark.parametrize("function", [reassemble_by_position, partial(similarity, 3)], ids=["reassemble", "window_dot"])
def test_a_second_derivative_of_native_is_refused_and_create_graph_alone_is_not(function):
    maps = make(SMALL[0])
    leaves = list(maps.values()) if function is reassemble_by_position else [maps["encoder"], maps["decoder"]]

    def gradients(impl: str, create_graph: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(impl)(*leaves).square().sum(), leaves, create_graph=create_graph)

    grads = gradients("native", create_graph=True)
    for actual, expected in zip(grads, gradients("eager", create_graph=False), strict=True):
        torch.testing.assert_close(actual, expected)
    for grad in grads:
        with pytest.raises(RuntimeError, match=r"impl must be 'eager' for second derivatives: .* use impl='eager' in"):
            torch.autograd.grad(grad.sum(), leaves, retain_graph=True)


@pytest.mark.parametrize("wanted", PARTS)
@pytest.mark.parametrize("out_size", [(13, 17), (12, 19)], ids=str)
@pytest.mark.parametrize("impl", FASTER)
def test_the_gradient_of_one_part_alone_is_that_of_all(impl, out_size, wanted):
    case = Case((7, 9), out_size)
    everything = outputs(make(case), impl)
    maps = {name: x.detach().requires_grad_(name == wanted) for name, x in make(case).items()}
    out = reassemble(**maps, impl=impl)
    (grad,) = torch.autograd.grad(out, [maps[wanted]], cotangent_of(out))
    torch.testing.assert_close(grad, everything[wanted])


@pytest.mark.parametrize("out_size", [(13, 17), (14, 18), (12, 19)], ids=str)
@pytest.mark.parametrize("impl", FASTER)
def test_no_uninitialised_memory_is_read(impl, out_size):
    maps = make(Case((7, 9), out_size))
    clean = outputs(maps, impl)
    with poisoned_memory():
        poisoned = outputs(maps, impl)
    for name in clean:
        torch.testing.assert_close(poisoned[name], clean[name])


def saved_bytes(maps: dict[str, Tensor | None], impl: str) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass."""
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), x)  # the tensor stays alive, so that no address is used twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = reassemble(**maps, impl=impl)
    assert out.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("out_size", [(32, 32), (24, 24)], ids=str)
def test_eager_keeps_no_buffer_of_a_window_per_pixel_and_native_only_its_inputs(out_size, gate):
    maps = make(Case((16, 16), out_size, channels=64, gate=gate), torch.float32)
    inputs = sum(x.numel() * 4 for x in maps.values() if x is not None)
    output = 2 * 64 * out_size[0] * out_size[1] * 4
    assert saved_bytes(maps, "native") == inputs
    assert saved_bytes(maps, "eager") < 2 * (inputs + output)
    assert saved_bytes(maps, "reference") > 4 * (inputs + output)  # the measure sees such a buffer where there is one


class Reassemble(nn.Module):
    def __init__(self, impl: str = "eager"):
        super().__init__()
        self.impl = impl

    def forward(self, decoder, logits, coarse_logits, encoder, gate_logits):
        return reassemble(
            decoder, logits, coarse_logits=coarse_logits, encoder=encoder, gate_logits=gate_logits, impl=self.impl
        )


def detached(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return tuple(x.detach() for x in make(case, dtype).values() if x is not None)


def test_exported_from_an_exact_2x_example_serves_every_size():
    dynamic = {name: {i: torch.export.Dim.DYNAMIC for i in (0, 2, 3)} for name in PARTS}
    program = torch.export.export(
        Reassemble(), detached(Case((8, 10), (16, 20))), dynamic_shapes=dynamic, strict=False
    ).module()
    for case in CASES[:9]:
        if case.kernel_size == 5:
            maps = detached(case)
            torch.testing.assert_close(program(*maps), Reassemble()(*maps))


@pytest.mark.parametrize("out_size", [(14, 18), (12, 19)], ids=str)
@pytest.mark.parametrize("impl", FASTER)
def test_compiles_in_one_graph(impl, out_size):
    module = Reassemble(impl)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    maps = make(Case((7, 9), out_size), torch.float32)
    out, expected = compiled(*maps.values()), module(*maps.values())
    torch.testing.assert_close(out, expected)
    given = list(maps.values())
    grads = torch.autograd.grad(out.square().sum(), given), torch.autograd.grad(expected.square().sum(), given)
    for actual, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("impl", ALL)
def test_under_autocast_half_logits_serve_a_float32_decoder(impl):
    maps = make(Case((7, 9), (13, 17)), torch.float32)
    half = {
        name: maps[name].detach().bfloat16().requires_grad_() for name in ("logits", "coarse_logits", "gate_logits")
    }
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        out = reassemble(**{**maps, **half}, impl=impl)
    assert out.dtype == torch.float32
    exact = reassemble(**{**widened(maps), **widened(half)}, impl="reference")
    low = reassemble(**{**maps, **{name: x.float() for name, x in half.items()}}, impl="reference")
    assert_within(out, exact, tolerance(exact, low))
    out.sum().backward()
    assert maps["decoder"].grad.dtype == torch.float32
    assert half["logits"].grad.dtype == torch.bfloat16


@pytest.mark.parametrize("impl", ALL)
def test_under_autocast_a_half_decoder_meets_a_float32_encoder(impl):
    maps = make(Case((7, 9), (13, 17)), torch.float32)
    maps["decoder"] = maps["decoder"].detach().bfloat16()
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        out = reassemble(**maps, impl=impl)
    assert out.dtype == torch.float32
    assert_within(out, reassemble(**widened(maps), impl="reference"), 1e-5)


@pytest.mark.parametrize("halved", [0, 1])
@pytest.mark.parametrize("impl", ALL)
def test_under_autocast_window_dot_takes_maps_of_two_precisions_and_sums_in_float32(impl, halved):
    query, key = torch.randn(2, 6, 13, 17), torch.randn(2, 6, 7, 9)
    pair = [query.bfloat16(), key] if halved == 0 else [query, key.bfloat16()]
    exact = fadeup.window_dot(pair[0].double(), pair[1].double(), 3, impl="reference")
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        out = fadeup.window_dot(*pair, 3, impl=impl)
    assert out.dtype == pair[0].dtype
    assert_within(out, exact, 2 * torch.finfo(out.dtype).eps * exact.abs().max().item())


sizes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 8), st.integers(0, 8)).map(
    lambda s: ((s[0], s[1]), (s[0] + s[2], s[1] + s[3]))
)
cases = st.builds(
    lambda s, k, c, b, coarse, gate: Case(s[0], s[1], k, c, b, coarse, gate),
    sizes,
    st.sampled_from([1, 3, 5]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)


def plain(case: Case) -> dict[str, Tensor | None]:
    return {name: None if x is None else x.detach() for name, x in make(case).items()}


@pytest.mark.parametrize("impl", FASTER)
@given(case=cases)
def test_law_is_reference_at_any_size(impl, case):
    maps = plain(case)
    torch.testing.assert_close(reassemble(**maps, impl=impl), reassemble(**maps, impl="reference"))


@pytest.mark.parametrize("impl", ALL)
@given(case=cases, a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_law_linear_in_the_decoder(impl, case, a, b):
    maps = plain(case) | {"encoder": None, "gate_logits": None}
    first, other = maps["decoder"], torch.randn_like(maps["decoder"])

    def up(decoder):
        return reassemble(**maps | {"decoder": decoder}, impl=impl)

    torch.testing.assert_close(up(a * first + b * other), a * up(first) + b * up(other), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("impl", ALL)
@given(case=cases, value=st.floats(-5, 5))
def test_law_a_constant_stays_where_the_window_is_inside(impl, case, value):
    maps = plain(case) | {"encoder": None, "gate_logits": None}
    maps["decoder"] = torch.full_like(maps["decoder"], value)
    (height, width), (out_height, out_width), reach = case.size, case.out_size, case.kernel_size // 2
    rows = torch.arange(out_height) * height // out_height
    columns = torch.arange(out_width) * width // out_width
    inside = ((rows >= reach) & (rows < height - reach))[:, None] & ((columns >= reach) & (columns < width - reach))
    out = reassemble(**maps, impl=impl)
    torch.testing.assert_close(out[..., inside], torch.full_like(out[..., inside], value))
    assert (out.abs() <= abs(value) + 1e-12).all()  # zeros outside only damp


@pytest.mark.parametrize("impl", ALL)
@given(case=cases, shift=st.floats(-50, 50))
def test_law_a_constant_added_to_all_logits_changes_nothing(impl, case, shift):
    maps = plain(case)
    shifted = reassemble(**maps | {"logits": maps["logits"] + shift}, impl=impl)
    torch.testing.assert_close(shifted, reassemble(**maps, impl=impl), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("limit", [float("inf"), 1e4])
@given(case=cases.filter(lambda case: case.gate))
def test_law_an_open_gate_gives_the_encoder_and_a_shut_one_the_decoder(impl, limit, case):
    maps = plain(case)
    up = reassemble(**maps | {"encoder": None, "gate_logits": None}, impl=impl)
    for value, expected in ((limit, maps["encoder"]), (-limit, up)):
        gate_logits = torch.full_like(maps["gate_logits"], value)
        out = reassemble(**maps | {"gate_logits": gate_logits}, impl=impl)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize("impl", ALL)
@given(case=cases)
def test_law_batch_entries_do_not_mix_and_permute(impl, case):
    maps = plain(case)
    out = reassemble(**maps, impl=impl)
    order = torch.randperm(case.batch)
    permuted = reassemble(**{name: None if x is None else x[order] for name, x in maps.items()}, impl=impl)
    torch.testing.assert_close(permuted, out[order])
    alone = reassemble(**{name: None if x is None else x[:1] for name, x in maps.items()}, impl=impl)
    torch.testing.assert_close(alone, out[:1])


@pytest.mark.parametrize("impl", ALL)
@given(case=cases)
def test_law_one_open_tap_is_nearest(impl, case):
    maps = plain(case) | {"encoder": None, "gate_logits": None}
    logits = torch.full_like(maps["logits"], float("-inf"))
    logits[:, case.kernel_size**2 // 2] = 0
    out = reassemble(**maps | {"logits": logits}, impl=impl)
    torch.testing.assert_close(out, nearest(maps["decoder"], case.out_size), rtol=0, atol=0)


@pytest.mark.parametrize("impl", ALL)
@given(case=cases)
def test_law_the_logarithm_of_kernels_gives_those_kernels(impl, case):
    maps = plain(case) | {"coarse_logits": None, "encoder": None, "gate_logits": None}
    kernels = maps["logits"].softmax(1)
    # The response to one unit impulse at a time is the kernel's weight at its tap.
    impulse = torch.zeros_like(maps["decoder"])
    y, x = case.size[0] // 2, case.size[1] // 2
    impulse[:, :, y, x] = 1
    out = reassemble(impulse, kernels.log(), impl=impl)
    reach = case.kernel_size // 2
    for row, column in product(range(case.out_size[0]), range(case.out_size[1])):
        i = y - row * case.size[0] // case.out_size[0] + reach
        j = x - column * case.size[1] // case.out_size[1] + reach
        seen = 0 <= i < case.kernel_size and 0 <= j < case.kernel_size
        expected = kernels[:, i * case.kernel_size + j, row, column] if seen else torch.zeros(case.batch).double()
        torch.testing.assert_close(out[:, 0, row, column], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(height=st.integers(1, 40), more=st.integers(0, 60))
def test_law_nearest_follows_the_integer_rule(dtype, height, more):
    out_height = height + more
    x = torch.arange(height).to(dtype).reshape(1, 1, height, 1)
    expected = torch.tensor([(y * height) // out_height for y in range(out_height)], dtype=dtype)
    torch.testing.assert_close(nearest(x, (out_height, 3))[0, 0], expected[:, None].expand(-1, 3), rtol=0, atol=0)
    turned = nearest(x.transpose(2, 3), (3, out_height))[0, 0]
    torch.testing.assert_close(turned, expected.expand(3, -1), rtol=0, atol=0)


@pytest.mark.parametrize("out_size", [(14, 18), (13, 17)], ids=str)
def test_nearest_at_2x_is_that_of_torch(out_size):
    x = torch.randn(2, 3, 7, 9)
    torch.testing.assert_close(nearest(x, out_size), F.interpolate(x, out_size, mode="nearest"), rtol=0, atol=0)


def test_nearest_is_not_that_of_torch_where_it_rounds_in_float32():
    x = torch.arange(9.0).reshape(1, 1, 1, 9)
    differs = [n for n in range(9, 400) if not nearest(x, (1, n)).equal(F.interpolate(x, (1, n), mode="nearest"))]
    assert differs  # if torch ever becomes exact, `nearest` can be that of torch
    assert not {17, 18} & set(differs)


@given(in_size=st.integers(1, 30), more=st.integers(0, 90))
def test_law_a_whole_ratio_is_integer_division(in_size, more):
    out_size = in_size + more
    ratio = whole_ratio(in_size, out_size)
    if ratio:
        assert [y * in_size // out_size for y in range(out_size)] == [y // ratio for y in range(out_size)]
    else:
        assert out_size % in_size
        assert out_size != 2 * in_size - 1


def window_dot_outputs(
    query: Tensor, key: Tensor, kernel_size: int, impl: str, lay: Callable[[Tensor], Tensor] = torch.clone
) -> tuple[Tensor, ...]:
    query, key = (x.detach().requires_grad_() for x in (query, key))
    out = fadeup.window_dot(query, key, kernel_size, impl=impl)
    return out.detach(), *torch.autograd.grad(out, [query, key], lay(cotangent_of(out)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case.coarse and case.gate], ids=str)
@pytest.mark.parametrize("impl", FASTER)
def test_window_dot_matches_reference_within_its_own_rounding(impl, case, dtype):
    maps = make(case, dtype)
    query, key = maps["encoder"], maps["decoder"]
    exact = window_dot_outputs(query.double(), key.double(), case.kernel_size, "reference")
    low = window_dot_outputs(query, key, case.kernel_size, "reference")
    actual = window_dot_outputs(query, key, case.kernel_size, impl)
    for ours, wanted, rounded in zip(actual, exact, low, strict=True):
        assert ours.dtype == dtype
        assert_within(ours, wanted, tolerance(wanted, rounded))


@pytest.mark.parametrize("impl", ALL)
@given(case=cases)
def test_law_window_dot_is_the_dot_product_inside_and_zero_outside(impl, case):
    maps = make(case)
    query, key = make(Case(case.size, case.out_size, channels=case.channels, batch=1))["encoder"], maps["decoder"][:1]
    out = fadeup.window_dot(query, key, case.kernel_size, impl=impl).detach()
    (height, width), (out_height, out_width), reach = case.size, case.out_size, case.kernel_size // 2
    for y, x, t in product((0, out_height - 1), (0, out_width - 1), range(case.kernel_size**2)):
        row = y * height // out_height + t // case.kernel_size - reach
        column = x * width // out_width + t % case.kernel_size - reach
        if 0 <= row < height and 0 <= column < width:
            torch.testing.assert_close(out[0, t, y, x], (query[0, :, y, x] * key[0, :, row, column]).sum().detach())
        else:
            assert out[0, t, y, x] == 0


@pytest.mark.parametrize("out_size", [(14, 18), (13, 17), (12, 19)], ids=str)
@pytest.mark.parametrize("impl", ALL)
def test_memory_format_in_is_memory_format_out(impl, out_size):
    maps = detached(Case((7, 9), out_size))
    last = [x.to(memory_format=torch.channels_last) for x in maps]
    for inputs, memory_format in ((maps, torch.contiguous_format), (last, torch.channels_last)):
        parts = dict(zip(PARTS, inputs, strict=True))
        assert reassemble(**parts, impl=impl).is_contiguous(memory_format=memory_format)
        scores = fadeup.window_dot(parts["encoder"], parts["decoder"], 3, impl=impl)
        assert scores.is_contiguous(memory_format=memory_format)
    decoder, logits = last[0], maps[1]
    assert reassemble(decoder, logits, impl=impl).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(reassemble(*last[:2], impl=impl), reassemble(*maps[:2], impl=impl))


@pytest.mark.parametrize("impl", ALL)
def test_strided_views_give_the_same(impl):
    maps = plain(Case((7, 9), (13, 17)))
    views = {name: torch.stack([x, x], dim=-1).flatten(3)[..., ::2] for name, x in maps.items()}
    torch.testing.assert_close(reassemble(**views, impl=impl), reassemble(**maps, impl=impl))


@pytest.mark.parametrize("impl", ALL)
def test_an_empty_batch_gives_an_empty_result(impl):
    maps = {name: x[:0].detach().requires_grad_() for name, x in make(Case((7, 9), (13, 17))).items()}
    out = reassemble(**maps, impl=impl)
    assert out.shape == (0, 6, 13, 17)
    out.sum().backward()
    assert maps["decoder"].grad.shape == (0, 6, 7, 9)
    assert fadeup.window_dot(maps["encoder"], maps["decoder"], 3, impl=impl).shape == (0, 9, 13, 17)


@pytest.mark.parametrize("name", ["logits", "coarse_logits", "gate_logits"])
@pytest.mark.parametrize("impl", ALL)
def test_infinite_logits_are_accepted(impl, name):
    maps = plain(Case((7, 9), (13, 17)))
    maps[name] = maps[name].clone()
    maps[name][:, 0] = float("-inf") if name != "gate_logits" else float("inf")
    maps[name][0, 0, 2, 3] = -maps[name][0, 0, 2, 3] if name == "gate_logits" else float("-inf")
    out = reassemble(**maps, impl=impl)
    assert out.isfinite().all()
    torch.testing.assert_close(out, reassemble(**maps, impl="reference"))


@pytest.mark.parametrize("name", ["logits", "coarse_logits", "gate_logits"])
def test_nan_is_refused_and_counted(name):
    maps = plain(Case((7, 9), (13, 17)))
    maps[name] = maps[name].clone()
    maps[name][0, 0, 2, 3:5] = float("nan")
    maps[name][0, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match=rf"{name} must be free of NaN, got 2 NaN of {maps[name].numel()} values"):
        reassemble(**maps)


def five_by_seven() -> dict[str, Tensor | None]:
    return plain(Case((5, 7), (10, 14)))


ERRORS = {
    "rank 3": (
        "decoder",
        lambda x: x[0],
        r"decoder must be of shape \(batch, channels, height, width\), got \(6, 5, 7\)",
    ),
    "no tensor": ("decoder", lambda x: x.numpy(), "decoder must be a torch.Tensor, got ndarray"),
    "integers": ("decoder", lambda x: x.int(), r"decoder must be float16, .*, got torch.int32; convert it with"),
    "integer logits": ("logits", lambda x: x.int(), r"logits must be float16, .*, got torch.int32"),
    "complex": ("encoder", lambda x: x.to(torch.complex64), r"encoder must be float16, .*, got torch.complex64"),
    "too small": ("logits", lambda x: x[:, :, :4], "logits must be at least 5 x 7 like decoder, got 4 x 14"),
    "too narrow": ("logits", lambda x: x[..., :6], "logits must be at least 5 x 7 like decoder, got 10 x 6"),
    "no square": ("logits", lambda x: x[:, :8], r"logits must be of K\*K channels with K odd .*, got 8"),
    "even K": ("logits", lambda x: x[:, :16], r"logits must be of K\*K channels with K odd .*, got 16"),
    "no taps": ("logits", lambda x: x[:, :0], r"logits must be of K\*K channels with K odd .*, got 0"),
    "transposed": (
        "coarse_logits",
        lambda x: x.transpose(2, 3),
        r"coarse_logits must be \(2, 25, 5, 7\) .* got \(2, 25, 7, 5\)",
    ),
    "encoder's channels": ("encoder", lambda x: x[:, 1:], r"encoder must be \(2, 6, 10, 14\) .* got \(2, 5, 10, 14\)"),
    "encoder's size": ("encoder", lambda x: x[:, :, 1:], r"encoder must be \(2, 6, 10, 14\) .* got \(2, 6, 9, 14\)"),
    "gate's channels": (
        "gate_logits",
        lambda x: x.expand(-1, 6, -1, -1),
        r"gate_logits must be \(2, 1, 5, 7\) .* got \(2, 6, 5, 7\)",
    ),
    "no gate": ("gate_logits", lambda x: None, "gate_logits must be given with encoder, got None"),
    "no encoder": ("encoder", lambda x: None, "encoder must be given with gate_logits, got None"),
    "dtype": ("logits", lambda x: x.float(), "logits must be torch.float64 like decoder, got torch.float32"),
    "dtype of the encoder": (
        "encoder",
        lambda x: x.half(),
        "encoder must be torch.float64 like decoder, got torch.float16",
    ),
    "batch": ("logits", lambda x: x[:1], "logits must be of batch size 2 like decoder, got 1"),
    "batch of the encoder": ("encoder", lambda x: x[:1], r"encoder must be \(2, 6, 10, 14\) .* got \(1, 6, 10, 14\)"),
    "device": ("logits", lambda x: x.to("meta"), "logits must be on cpu like decoder, got meta; move it"),
    "device of the gate": ("gate_logits", lambda x: x.to("meta"), "gate_logits must be on cpu like decoder, got meta"),
    "empty height": ("decoder", lambda x: x[:, :, :0], "decoder must be at least 1 x 1 in height and width"),
    "empty width": ("logits", lambda x: x[..., :0], "logits must be at least 1 x 1 in height and width"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_what_does_not_fit_is_named(error):
    name, spoil, message = ERRORS[error]
    maps = five_by_seven()
    with pytest.raises(ValueError, match=message):
        reassemble(**maps | {name: spoil(maps[name])})


@pytest.mark.parametrize("impl", ["fast", "EAGER", "", None])
def test_an_unknown_implementation_is_refused(impl):
    choices = ", ".join(f"'{name}'" for name in ("auto", *IMPLEMENTATIONS))
    maps = five_by_seven()
    with pytest.raises(ValueError, match=rf"impl must be one of {choices}, got {impl!r}"):
        reassemble(**maps, impl=impl)
    with pytest.raises(ValueError, match=rf"impl must be one of {choices}, got {impl!r}"):
        fadeup.window_dot(maps["encoder"], maps["decoder"], 3, impl=impl)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be an odd whole number, 1, 3, 5 ..., got 4"),
        ({"kernel_size": 0}, "kernel_size must be an odd whole number, 1, 3, 5 ..., got 0"),
        ({"kernel_size": True}, "kernel_size must be an odd whole number, 1, 3, 5 ..., got True"),
        ({"kernel_size": 3.0}, "kernel_size must be an odd whole number, 1, 3, 5 ..., got 3.0"),
        ({"key": torch.ones(2, 5, 5, 7)}, "key must be of 6 channels, got 5"),
        ({"key": torch.ones(1, 6, 5, 7)}, "key must be of batch size 2 like query, got 1"),
        ({"key": torch.ones(2, 6, 11, 7)}, "query must be at least 11 x 7 like key, got 10 x 14"),
        ({"key": torch.ones(2, 6, 5, 7).double()}, "key must be torch.float32 like query, got torch.float64"),
        ({"key": torch.ones(2, 6, 5, 7, device="meta")}, "key must be on cpu like query, got meta"),
        ({"key": torch.ones(6, 5, 7)}, r"key must be of shape .*, got \(6, 5, 7\)"),
        ({"query": torch.ones(2, 6, 10, 14).int()}, "query must be float16, .*, got torch.int32"),
    ],
    ids=str,
)
def test_window_dot_names_what_does_not_fit(change, message):
    arguments = {"query": torch.ones(2, 6, 10, 14), "key": torch.ones(2, 6, 5, 7), "kernel_size": 3}
    with pytest.raises(ValueError, match=message):
        fadeup.window_dot(**arguments | change)


def test_inputs_are_left_as_they_were():
    maps = plain(Case((7, 9), (13, 17)))
    before = copy.deepcopy(maps)
    reassemble(**maps)
    for name, x in maps.items():
        torch.testing.assert_close(x, before[name], rtol=0, atol=0)
