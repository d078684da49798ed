"""The native kernels: every path through them, what the public door refuses, threads, processes, compilers of graphs.

What they share with the other implementations is in test_reassemble.py, how they are built in test_native_build.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from test_reassemble import DTYPES, PARTS, Case, cotangent_of, make, outputs, tolerance, widened, window_dot_outputs
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fadeup
from fadeup.functional import nearest
from fadeup.kernels import native, reference
from helpers import assert_within, poisoned_memory

CASES = [
    Case((5, 7), (10, 14), channels=96),
    Case((4, 70), (8, 140), channels=33, batch=1),
    Case((3, 67), (6, 134), channels=64, batch=1),
    Case((6, 5), (11, 9), channels=130, batch=1),
    Case((9, 5), (18, 10), kernel_size=3, channels=130),
    Case((5, 6), (10, 12), kernel_size=7, channels=64, batch=1),
    Case((5, 6), (10, 12), kernel_size=1, channels=33, coarse=False),
    Case((4, 5), (12, 15), kernel_size=3, channels=6),
    Case((3, 4), (12, 16), channels=1),
    Case((2, 3), (16, 24), channels=64),
    Case((6, 8), (9, 12), kernel_size=7, channels=33, batch=1),
    Case((7, 9), (7, 9), kernel_size=3, channels=96),
    Case((3, 5), (11, 5), kernel_size=1, channels=6),
    Case((1, 80), (1, 200), channels=33, batch=1),
    Case((1, 1), (2, 2), channels=64),
    Case((9, 1), (18, 3), kernel_size=3, channels=130),
    Case((2, 130), (3, 131), channels=6, batch=1),
]


def as_it_is(x: Tensor) -> Tensor:
    return x


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def every_second_column(x: Tensor) -> Tensor:
    return torch.stack([x, x], dim=-1).flatten(3)[..., ::2]


def some_of_more_channels(x: Tensor) -> Tensor:
    return channels_last(torch.cat([x, x[:, :1], x], dim=1))[:, x.shape[1] + 1 :]


def transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def unaligned(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def unaligned_channels_last(x: Tensor) -> Tensor:
    return unaligned(x.movedim(1, 3)).movedim(3, 1)


def one_pixel_repeated(x: Tensor) -> Tensor:
    return x[:1, :, :1, :1].expand_as(x)


def one_channel_repeated(x: Tensor) -> Tensor:
    return x[:, :1].expand_as(x)


EVERYTHING = (*PARTS, "cotangent")
LAYOUTS = {
    layout.__name__: dict.fromkeys(EVERYTHING, layout)
    for layout in (
        as_it_is,
        channels_last,
        every_second_column,
        some_of_more_channels,
        transposed,
        unaligned,
        unaligned_channels_last,
        one_pixel_repeated,
        one_channel_repeated,
    )
} | {
    "mixed": dict.fromkeys(EVERYTHING, as_it_is) | dict.fromkeys(("decoder", "coarse_logits"), channels_last),
    "mixed the other way": dict.fromkeys(("decoder", "gate_logits", "cotangent"), as_it_is)
    | dict.fromkeys(("logits", "coarse_logits", "encoder"), channels_last),
}
# Each layout with each case in float32; in the other types each layout and each case with each type.
COVER = [(case, layout, torch.float32) for case in CASES for layout in LAYOUTS] + [
    (case, layout, DTYPES[(i + j) % 4])
    for i, case in enumerate(CASES)
    for j, layout in enumerate(LAYOUTS)
    if DTYPES[(i + j) % 4] != torch.float32
]


def within(case: Case, layout: str, exact: Tensor, low: Tensor) -> float:
    """The tolerance at 2x; the decoder's gradient adds the products of all pixels above a window in a row."""
    (height, width), (out_height, out_width) = case.size, case.out_size
    alike = 2 if layout == "one_pixel_repeated" else 1  # equal products all round the same way
    return alike * max(1, out_height * out_width / (4 * height * width)) * tolerance(exact, low)


def laid_out(case: Case, dtype: torch.dtype, layout: str) -> dict[str, Tensor | None]:
    maps = make(case, dtype)
    return {name: None if x is None else LAYOUTS[layout][name](x.detach()).requires_grad_() for name, x in maps.items()}


@pytest.mark.parametrize(("case", "layout", "dtype"), COVER, ids=str)
def test_every_path_matches_reference_within_its_own_rounding(case, layout, dtype):
    maps, lay = laid_out(case, dtype, layout), LAYOUTS[layout]["cotangent"]
    exact, low = outputs(widened(maps), "reference", lay), outputs(maps, "reference", lay)
    for name, actual in outputs(maps, "native", lay).items():
        like = maps["decoder" if name == "out" else name]
        assert actual.dtype == dtype
        assert actual.is_contiguous(memory_format=native.memory_format(like))
        assert_within(actual, exact[name], within(case, layout, exact[name], low[name]))


@pytest.mark.parametrize(("case", "layout", "dtype"), COVER[::3], ids=str)
def test_every_path_of_window_dot_matches_reference_within_its_own_rounding(case, layout, dtype):
    maps, lay = laid_out(case, dtype, layout), LAYOUTS[layout]["cotangent"]
    query, key = maps["encoder"], maps["decoder"]
    exact = window_dot_outputs(query.double(), key.double(), case.kernel_size, "reference", lay)
    low = window_dot_outputs(query, key, case.kernel_size, "reference", lay)
    actual = window_dot_outputs(query, key, case.kernel_size, "native", lay)
    for ours, wanted, rounded, like in zip(actual, exact, low, (query, query, key), strict=True):
        assert ours.dtype == dtype
        assert ours.is_contiguous(memory_format=native.memory_format(like))
        assert_within(ours, wanted, within(case, layout, wanted, rounded))


def with_gradients(function: Callable[..., Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent_of(out))]


@pytest.mark.parametrize("layout", ["as_it_is", "channels_last", "mixed", "mixed the other way"])
def test_kernels_in_half_precision_beside_float32_features_keep_type_and_format(layout):
    maps = laid_out(Case((7, 9), (13, 17), channels=33), torch.float32, layout)
    halves = ("logits", "coarse_logits", "gate_logits")
    maps = {name: x.bfloat16() if name in halves else x for name, x in maps.items()}
    actual = with_gradients(torch.ops.fadeup.reassemble, list(maps.values()))
    exact = with_gradients(reference.reassemble, [x.double() for x in maps.values()])
    for ours, wanted, like in zip(actual, exact, (maps["decoder"], *maps.values()), strict=True):
        assert ours.dtype == like.dtype
        assert ours.is_contiguous(memory_format=native.memory_format(like))
        assert_within(ours, wanted, 2 * torch.finfo(like.dtype).eps * wanted.abs().max().item() + 1e-5)


INFINITY, NAN = float("inf"), float("nan")
SPOILED = {
    "one": lambda x, value: x[0, -1, 2, 3].fill_(value),
    "two of both signs": lambda x, value: x[0, 0, 2, 3:5].copy_(torch.tensor([value, -value])),
    "a pixel": lambda x, value: x[0, :, 2, 3].fill_(value),
    "all": lambda x, value: x.fill_(value),
}


@pytest.mark.parametrize("place", SPOILED)
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(
    ("case", "layout"),
    [
        (Case((7, 9), (14, 18), channels=64), "channels_last"),
        (Case((7, 9), (12, 19), kernel_size=3, channels=33), "as_it_is"),
        (Case((7, 9), (12, 19), kernel_size=1, channels=33), "as_it_is"),
    ],
    ids=str,
)
def test_nan_and_infinity_go_where_the_reference_has_them(case, layout, name, value, place):
    maps = laid_out(case, torch.float32, layout)
    maps = {part: x.detach().clone(memory_format=torch.preserve_format) for part, x in maps.items()}
    SPOILED[place](maps[name], value)
    actual = with_gradients(torch.ops.fadeup.reassemble, list(maps.values()))
    expected = with_gradients(reference.reassemble, list(maps.values()))
    for part, ours, wanted in zip(("out", *PARTS), actual, expected, strict=True):
        torch.testing.assert_close(
            ours, wanted, equal_nan=True, rtol=1e-5, atol=1e-4, msg=lambda m, at=part: f"{at}: {m}"
        )


def test_the_door_refuses_nan_logits_before_the_kernels_see_them():
    maps = make(Case((7, 9), (13, 17)), torch.float32)
    maps["logits"] = torch.full_like(maps["logits"], NAN)
    with pytest.raises(ValueError, match="logits must be free of NaN"):
        fadeup.reassemble(**maps, impl="native")


@pytest.mark.parametrize("layout", ["as_it_is", "channels_last"])
def test_denormals_are_not_flushed(layout):
    native.library()
    assert (torch.tensor([1e-40]) * torch.ones(1)).item() > 0
    decoder = LAYOUTS[layout]["decoder"](torch.arange(1.0, 2 * 33 * 35 + 1).view(2, 33, 5, 7) * 1e-43)
    assert decoder.max() < torch.finfo(torch.float32).tiny
    logits = torch.full((2, 25, 10, 14), -INFINITY)
    logits[:, 12] = 0
    out = fadeup.reassemble(decoder, logits, impl="native")
    torch.testing.assert_close(out, nearest(decoder, (10, 14)), rtol=0, atol=0)
    assert out.count_nonzero() == out.numel()


@pytest.mark.parametrize(("batch", "channels"), [(0, 6), (2, 0), (0, 0)])
def test_without_batch_or_channels_the_result_is_empty_and_the_kernels_gradients_are_zero(batch, channels):
    maps = make(Case((7, 9), (13, 17), batch=batch, channels=channels), torch.float32)
    with poisoned_memory():
        actual = outputs(maps, "native")
        query, key = maps["encoder"].detach().requires_grad_(), maps["decoder"].detach().requires_grad_()
        scores = fadeup.window_dot(query, key, 3, impl="native")
        grads = torch.autograd.grad(scores.sum(), [query, key])
    assert actual["out"].shape == (batch, channels, 13, 17)
    for name, x in maps.items():
        assert actual[name].shape == x.shape
        assert not actual[name].any()
    assert scores.shape == (batch, 9, 13, 17)
    assert not scores.any()
    assert [x.shape for x in grads] == [query.shape, key.shape]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [64, 80, 96])
def test_large_results_written_past_the_caches_have_the_same_bits(monkeypatch, channels, dtype):
    maps = laid_out(Case((7, 9), (14, 18), channels=channels), dtype, "channels_last")
    expected = outputs(maps, "native")
    monkeypatch.setattr(native, "STREAM_BYTES", 0)  # every result is large
    monkeypatch.setattr(native, "HUGE_BYTES", 0)
    found = outputs(maps, "native")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def threads():
    """Sets the number of threads, and sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


BANDS = [
    (Case((17, 40), (34, 80), channels=64), torch.float32, "channels_last"),
    (Case((17, 40), (33, 79), channels=33), torch.float32, "as_it_is"),
    (Case((17, 40), (25, 60), kernel_size=3, channels=64), torch.bfloat16, "channels_last"),
    (Case((17, 20), (34, 60), kernel_size=7, channels=33), torch.float16, "mixed"),
    (Case((17, 20), (34, 40), channels=16), torch.float64, "channels_last"),
]


@pytest.mark.parametrize(("case", "dtype", "layout"), BANDS, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(threads, case, dtype, layout):
    maps = laid_out(case, dtype, layout)
    found = []
    for count in (1, 2, 3):
        threads(count)
        scores = window_dot_outputs(maps["encoder"], maps["decoder"], case.kernel_size, "native")
        found.append([*outputs(maps, "native").values(), *scores])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize(("case", "dtype", "layout"), BANDS, ids=str)
def test_a_batch_entry_alone_gives_the_same_bits(case, dtype, layout):
    maps = laid_out(case, dtype, layout)
    together = outputs(maps, "native", torch.ones_like)
    for i in range(case.batch):
        entry = {name: x[i : i + 1].detach().requires_grad_() for name, x in maps.items()}
        alone = outputs(entry, "native", torch.ones_like)
        assert all(torch.equal(alone[name], together[name][i : i + 1]) for name in together)


# opcheck reads `.grad` of copies that it made itself.
opchecks = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@opchecks
@pytest.mark.parametrize("layout", ["as_it_is", "channels_last", "mixed"])
@pytest.mark.parametrize(("coarse", "gate"), [(True, True), (False, False), (True, False), (False, True)])
def test_the_operators_keep_what_they_declare(layout, coarse, gate):
    maps = laid_out(Case((5, 7), (9, 14), 3, coarse=coarse, gate=gate), torch.float32, layout)
    torch.library.opcheck(torch.ops.fadeup.reassemble, tuple(maps.values()))
    plain = [None if x is None else x.detach() for x in maps.values()]
    out = torch.ops.fadeup.reassemble(*plain)
    needed = [x is not None for x in plain]
    for wanted in (needed, [need and i in (0, 2, 4) for i, need in enumerate(needed)]):
        torch.library.opcheck(torch.ops.fadeup.reassemble_backward, (cotangent_of(out), *plain, wanted))


@opchecks
@pytest.mark.parametrize("layout", ["as_it_is", "channels_last", "mixed"])
def test_the_operators_of_window_dot_keep_what_they_declare(layout):
    maps = laid_out(Case((5, 7), (9, 14), 3), torch.float32, layout)
    query, key = maps["encoder"], maps["decoder"]
    torch.library.opcheck(torch.ops.fadeup.window_dot, (query, key, 3))
    query, key = query.detach(), key.detach()
    grad = cotangent_of(torch.ops.fadeup.window_dot(query, key, 3))
    for needed in ([True, True], [True, False], [False, True]):
        torch.library.opcheck(torch.ops.fadeup.window_dot_backward, (grad, query, key, needed))


def guided(name: str, **options) -> tuple[nn.Module, Tensor, Tensor]:
    module = fadeup.build_upsampler(name, 8, **options).eval()
    return module, torch.randn(2, 8, 7, 9, requires_grad=True), torch.randn(2, 8, 14, 18, requires_grad=True)


def learned(module: nn.Module, decoder: Tensor, encoder: Tensor) -> list[Tensor]:
    """The result, and the gradients of the maps and of what `module` learns."""
    out = module(decoder, encoder)
    leaves = [x for x in (decoder, encoder, *module.parameters()) if x.requires_grad]
    grads = torch.autograd.grad(out, leaves, cotangent_of(out), allow_unused=True, materialize_grads=True)
    return [out.detach(), *grads]


@pytest.mark.parametrize("name", fadeup.UPSAMPLERS)
def test_every_upsampler_compiles_in_one_graph_with_its_gradients(name):
    torch.compiler.reset()  # all share one `forward`, and the ninth module to compile it would be refused
    module, decoder, encoder = guided(name)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(learned(compiled, decoder, encoder), learned(module, decoder, encoder))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["as_it_is", "channels_last"])
def test_fade_compiles_with_inductor(layout):
    torch.compiler.reset()
    module, decoder, encoder = guided("fade", impl="native")
    lay = LAYOUTS[layout]["decoder"]
    decoder, encoder = (lay(x.detach()).requires_grad_() for x in (decoder, encoder))
    compiled = torch.compile(module, fullgraph=True)
    actual, expected = learned(compiled, decoder, encoder), learned(module, decoder, encoder)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["fade", "sapa"])
def test_autocast_gives_what_eager_gives_under_it(name):
    module, decoder, encoder = guided(name, impl="native")
    found = {}
    for module.impl in ("native", "eager"):
        with torch.autocast("cpu", torch.bfloat16):
            found[module.impl] = learned(module, decoder, encoder)
    for ours, wanted in zip(found["native"], found["eager"], strict=True):
        assert ours.dtype == wanted.dtype
        assert_within(ours, wanted.double(), 4 * torch.finfo(torch.bfloat16).eps * wanted.abs().max().item())


def test_python_threads_that_call_at_once_get_what_they_get_alone(threads):
    threads(2)
    cases = [Case((9, 20), out_size, channels=c) for out_size in [(18, 40), (17, 39)] for c in (16, 33)]
    inputs = [laid_out(case, torch.float32, layout) for case in cases for layout in ("as_it_is", "channels_last")]
    alone = [outputs(maps, "native") for maps in inputs]
    with ThreadPoolExecutor(len(inputs)) as pool:
        for _ in range(5):
            for wanted, found in zip(alone, pool.map(lambda maps: outputs(maps, "native"), inputs), strict=True):
                assert all(torch.equal(found[name], wanted[name]) for name in wanted)


class Upsampled(Dataset):
    """What a loader might do: features upsampled by FADE in the worker."""

    def __init__(self):
        torch.manual_seed(0)
        self.module = fadeup.build_upsampler("fade", 8, impl="native").eval().requires_grad_(False)

    def __len__(self):
        return 4

    def __getitem__(self, i):
        random = torch.Generator().manual_seed(i)
        return self.module(torch.randn(1, 8, 7, 9, generator=random), torch.randn(1, 8, 14, 18, generator=random))[0]


@pytest.mark.parametrize(
    "start",
    [
        # Python 3.12 warns of any fork beside threads, and torch has threads: that it works is what is tested.
        pytest.param("fork", marks=pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")),
        pytest.param("spawn", marks=pytest.mark.slow),
    ],
)
def test_workers_of_a_data_loader_get_what_this_process_gets(threads, start):
    threads(2)
    dataset = Upsampled()
    expected = torch.stack([dataset[i] for i in range(len(dataset))])  # kernels have run here before the fork
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=start, timeout=60)
    torch.testing.assert_close(torch.cat(list(loader)), expected, rtol=1e-5, atol=1e-5)


# Maps too small for torch's own operators to use threads, which would hang in the child, and large enough for ours.
FORK = """
import os, signal, time, torch
from fadeup import reassemble

def gradients():
    leaves = [x.clone().requires_grad_() for x in maps]
    return torch.autograd.grad(reassemble(*leaves, impl="native").square().sum(), leaves)

torch.set_num_threads(2)
maps = torch.randn(1, 16, 12, 24), torch.randn(1, 25, 24, 48)
before = gradients()
child = os.fork()
if child == 0:
    os._exit(0 if all(map(torch.equal, before, gradients())) else 1)
until = time.monotonic() + 20
while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
    time.sleep(0.05)
if ended[0] == 0:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
assert ended == (child, 0), ended
assert all(map(torch.equal, before, gradients()))
"""


def test_a_fork_after_kernels_ran_on_two_threads_computes_the_same_and_ends():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr


def test_another_device_is_refused_by_name_and_served_by_auto():
    decoder, logits = torch.ones(1, 2, 3, 3, device="meta"), torch.ones(1, 9, 6, 6, device="meta")
    message = r"impl must be 'auto', 'eager' or 'reference' on meta, got 'native', which is for the CPU"
    with pytest.raises(ValueError, match=message):
        fadeup.reassemble(decoder, logits, impl="native")
    with pytest.raises(ValueError, match=message):
        fadeup.window_dot(logits[:, :2], decoder, 3, impl="native")
    assert fadeup.reassemble(decoder, logits).shape == (1, 2, 6, 6)


FAR = 2**31 + 2**12
SPREAD = {  # strides that take the last element beyond 2**31 elements, by each of the four in turn
    "batch": lambda shape: (FAR, 1, shape[3] * shape[1], shape[1]),
    "channel": lambda shape: (shape[2] * shape[3], FAR // (shape[1] - 1), shape[3], 1),
    "row": lambda shape: (shape[1] * shape[3], 1, FAR // (shape[2] - 1), shape[1]),
    "column": lambda shape: (shape[1] * shape[2], 1, shape[1], FAR // (shape[3] - 1)),
}


def spread(x: Tensor, by: str) -> Tensor:
    """A copy over more than 2**31 elements, of which only the pages of its own are touched."""
    strides = SPREAD[by](x.shape)
    length = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True))
    assert length > 2**31
    return torch.empty(length, dtype=x.dtype).as_strided(x.shape, strides).copy_(x)


@pytest.mark.parametrize(
    ("name", "by"),
    [(name, by) for name in EVERYTHING for by in SPREAD if (name, by) != ("gate_logits", "channel")],  # it has one
)
def test_inputs_spread_over_more_than_2_to_the_31_elements(name, by):
    maps = make(Case((4, 5), (8, 10), 3), torch.bfloat16)
    far = {part: spread(x.detach(), by).requires_grad_() if part == name else x for part, x in maps.items()}
    lay = partial(spread, by=by) if name == "cotangent" else torch.clone
    actual, expected = outputs(far, "native", lay), outputs(maps, "native")
    for part in expected:
        torch.testing.assert_close(actual[part], expected[part])


@pytest.mark.slow
def test_an_output_of_more_than_2_to_the_31_elements():
    decoder = channels_last(torch.randn(1, 1024, 2, 3).bfloat16())
    size = (1448, 1449)
    out = fadeup.reassemble(decoder, decoder.new_zeros(1, 1, 1, 1).expand(1, 1, *size), impl="native")
    assert out.numel() > 2**31
    for y in (0, size[0] // 2 - 1, size[0] // 2, size[0] - 1):  # with one tap the result is `nearest`
        torch.testing.assert_close(
            out[:, :, y : y + 1], nearest(decoder[:, :, 2 * y // size[0]].unsqueeze(2), (1, size[1]))
        )


def constant(channels: int, size: tuple[int, int]) -> Tensor:
    """A map of `size` that holds one pixel."""
    return torch.randn(1, channels, 1, 1).bfloat16().expand(-1, -1, *size)


@pytest.mark.slow
def test_a_gradient_of_the_encoder_of_more_than_2_to_the_31_elements():
    size, out_size = (724, 725), (1448, 1450)
    decoder, encoder, grad = constant(1024, size), constant(1024, out_size), constant(1024, out_size)
    gate_logits = torch.randn(1, 1, *size).bfloat16()
    needed = [False, False, False, True, False]
    (found,) = torch.ops.fadeup.reassemble_backward(
        grad, decoder, constant(1, out_size), None, encoder, gate_logits, needed
    )
    assert found.numel() > 2**31
    for y in (0, size[0] // 2, size[0] - 1):
        gate = nearest(gate_logits[:, :, y : y + 1].float().sigmoid(), (1, out_size[1]))
        for row in (2 * y, 2 * y + 1):
            torch.testing.assert_close(found[:, :, row], (gate * grad[:, :, :1]).bfloat16()[:, :, 0])


@pytest.mark.slow
def test_a_gradient_of_the_logits_of_more_than_2_to_the_31_elements():
    size, out_size = (3310, 3312), (6620, 6624)
    decoder = torch.randn(1, 1, 1, size[1]).bfloat16().expand(-1, -1, size[0], -1)
    logits, grad, needed = constant(49, out_size), constant(1, out_size), [False, True, False, False, False]
    (found,) = torch.ops.fadeup.reassemble_backward(grad, decoder, logits, None, None, None, needed)
    assert found.numel() > 2**31
    ends = [x[:, :, -16:].contiguous() for x in (grad, decoder[:, :, :8], logits)]
    (expected,) = torch.ops.fadeup.reassemble_backward(*ends, None, None, None, needed)
    torch.testing.assert_close(found[:, :, -8:], expected[:, :, -8:], rtol=0, atol=0)
    torch.testing.assert_close(found[:, :, :8], expected[:, :, :8], rtol=0, atol=0)


def test_below_the_door_float64_stands_alone():
    maps = [x.detach() for x in make(Case((5, 7), (10, 14), coarse=False, gate=False)).values() if x is not None]
    with pytest.raises(ValueError, match="all maps must be float64 where one is, got float64 beside others"):
        torch.ops.fadeup.reassemble(maps[0], maps[1].float(), None, None, None)
