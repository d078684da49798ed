"""The GPU kernels: in Triton's interpreter where there is no GPU, with cases small enough for it.

On a GPU the same cases run there, and `pytest -m gpu` runs those of test_reassemble.py as well. How the kernels compile
is in test_triton_compiled.py.
"""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from test_native import INFINITY, LAYOUTS, NAN, SPOILED, laid_out, opchecks, with_gradients, within
from test_reassemble import (
    PARTS,
    Case,
    Reassemble,
    cotangent_of,
    make,
    outputs,
    reassemble_by_position,
    saved_bytes,
    similarity,
    widened,
    window_dot_outputs,
)
from torch import Tensor

import fadeup
from fadeup.kernels import native, reference
from fadeup.kernels import triton as ours
from fadeup.kernels.op import choose
from helpers import assert_within, poisoned_memory

pytest.importorskip("triton", reason="needs Triton, which torch brings on Linux")
pytestmark = [pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")]  # numpy, of NaN
if torch.cuda.is_available():
    pytestmark.append(pytest.mark.gpu)
HALVES = [torch.float16, torch.bfloat16]
GENERAL = [
    Case((3, 5), (6, 9), 3, 5, 1),
    Case((3, 4), (7, 9), 3, 37, 1),
    Case((2, 3), (6, 9), 3, 1, 2),
    Case((2, 3), (4, 6), 5, 6, 1),
    Case((2, 2), (3, 3), 3, 2, 1),
    Case((1, 1), (4, 2), 3, 2, 1),
    Case((2, 2), (4, 4), 7, 3, 1, gate=False),
    Case((3, 3), (3, 3), 1, 4, 2, coarse=False),
    Case((3, 5), (4, 7), 3, 70, 1, coarse=False, gate=False),
]
TILED = [
    Case((5, 6), (10, 12), 5, 6, 1),
    Case((5, 9), (9, 17), 5, 37, 1),
    Case((3, 5), (6, 9), 3, 70, 2),
    Case((1, 1), (2, 2), 3, 1, 2),
    Case((4, 4), (8, 7), 5, 1, 1, coarse=False),
    Case((2, 5), (4, 10), 3, 5, 1, gate=False),
    Case((3, 3), (5, 6), 5, 5, 1, coarse=False, gate=False),
]
ODD_LAYOUTS = (
    "mixed the other way",
    "every_second_column",
    "transposed",
    "unaligned_channels_last",
    "one_pixel_repeated",
)
SMALL_TILE = Case((2, 3), (4, 6), 3, 33, 2)
COVER = (
    [(case, ("as_it_is", "channels_last")[i % 2], torch.float32) for i, case in enumerate(GENERAL)]
    + [(case, ("channels_last", "as_it_is")[i % 2], HALVES[i % 2]) for i, case in enumerate(GENERAL[1:6:2])]
    + [(GENERAL[0], "mixed", torch.float64), (GENERAL[2], "as_it_is", torch.float64)]
    + [(case, layout, dtype) for case in TILED for layout, dtype in zip(LAYOUTS, HALVES, strict=False)]
    + [(Case((1, 2), (2, 3), 3, 33, 1), layout, torch.float32) for layout in ODD_LAYOUTS]
    + [(SMALL_TILE, layout, HALVES[i % 2]) for i, layout in enumerate(ODD_LAYOUTS)]
)


@pytest.fixture
def tf32():
    """Products of float32 may be rounded to TF32; the interpreter does not round."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def assert_matches_reference(case: Case, layout: str, dtype: torch.dtype, slack: float = 1) -> None:
    maps, lay = laid_out(case, dtype, layout), LAYOUTS[layout]["cotangent"]
    exact, low = outputs(widened(maps), "reference", lay), outputs(maps, "reference", lay)
    actual = outputs(maps, "triton", lay)
    assert actual.keys() == exact.keys()
    for name in exact:
        like = maps["decoder" if name == "out" else name]
        assert actual[name].dtype == dtype
        assert actual[name].is_contiguous(memory_format=native.memory_format(like))
        assert_within(actual[name], exact[name], slack * within(case, layout, exact[name], low[name]))


@pytest.mark.parametrize(("case", "layout", "dtype"), COVER, ids=str)
def test_value_and_gradients_match_reference_within_its_own_rounding(case, layout, dtype):
    assert_matches_reference(case, layout, dtype)


@pytest.mark.parametrize("case", [TILED[0], TILED[2]], ids=str)
def test_float32_goes_through_tiles_where_tf32_is_allowed(case, tf32):
    maps = make(case, torch.float32)
    assert ours._launcher(maps["decoder"], case.out_size, case.kernel_size) is ours._launch_tiles
    assert_matches_reference(case, "channels_last", torch.float32, 2000 if torch.cuda.is_available() else 1)


@pytest.mark.parametrize(
    ("change", "tiled"),
    [
        ({}, True),
        ({"out_size": (9, 11)}, True),
        ({"kernel_size": 3}, True),
        ({"kernel_size": 7}, False),
        ({"out_size": (10, 13)}, False),
        ({"out_size": (15, 18)}, False),
    ],
    ids=str,
)
def test_tiles_serve_half_precision_at_exact_2x_and_windows_of_3_and_5(change, tiled):
    case = Case(**{"size": (5, 6), "out_size": (10, 12)} | change)
    for dtype in HALVES:
        decoder = make(case, dtype)["decoder"]
        chosen = ours._launch_tiles if tiled else ours._launch_general
        assert ours._launcher(decoder, case.out_size, case.kernel_size) is chosen
    for dtype in (torch.float32, torch.float64):
        decoder = make(case, dtype)["decoder"]
        assert ours._launcher(decoder, case.out_size, case.kernel_size) is ours._launch_general


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (TILED[2], torch.float16),
        (TILED[3], torch.bfloat16),
        (GENERAL[1], torch.float32),
        (GENERAL[2], torch.float64),
        (GENERAL[4], torch.bfloat16),
    ],
    ids=str,
)
def test_window_dot_matches_reference_within_its_own_rounding(case, dtype):
    maps = laid_out(case, dtype, "channels_last")
    query, key = maps["encoder"], maps["decoder"]
    exact = window_dot_outputs(query.double(), key.double(), case.kernel_size, "reference")
    low = window_dot_outputs(query, key, case.kernel_size, "reference")
    actual = window_dot_outputs(query, key, case.kernel_size, "triton")
    for found, wanted, rounded in zip(actual, exact, low, strict=True):
        assert found.dtype == dtype
        assert_within(found, wanted, within(case, "channels_last", wanted, rounded))


def test_the_derivative_matches_finite_differences():
    maps = make(Case((1, 2), (2, 3), 3, 1, 1))
    assert torch.autograd.gradcheck(reassemble_by_position("triton"), tuple(maps.values()), fast_mode=True)
    pair = maps["encoder"], maps["decoder"]
    assert torch.autograd.gradcheck(similarity(3, "triton"), pair, fast_mode=True)


@pytest.mark.parametrize("wanted", PARTS)
@pytest.mark.parametrize(("case", "dtype"), [(TILED[0], torch.float16), (GENERAL[0], torch.float32)], ids=str)
def test_the_gradient_of_one_part_alone_has_the_bits_of_that_of_all(case, dtype, wanted):
    everything = outputs(make(case, dtype), "triton")
    maps = {name: x.detach().requires_grad_(name == wanted) for name, x in make(case, dtype).items()}
    out = fadeup.reassemble(**maps, impl="triton")
    (grad,) = torch.autograd.grad(out, [maps[wanted]], cotangent_of(out))
    torch.testing.assert_close(grad, everything[wanted], rtol=0, atol=0)


@pytest.mark.parametrize(("case", "dtype"), [(TILED[1], torch.bfloat16), (GENERAL[0], torch.float32)], ids=str)
def test_no_uninitialised_memory_is_read_and_every_run_has_the_same_bits(case, dtype):
    maps = make(case, dtype)
    clean = outputs(maps, "triton")
    with poisoned_memory():  # which asks for deterministic algorithms, too
        poisoned = outputs(maps, "triton")
    for name in clean:
        torch.testing.assert_close(poisoned[name], clean[name], rtol=0, atol=0)


@pytest.mark.parametrize(("case", "dtype"), [(TILED[2], torch.float16), (GENERAL[0], torch.float32)], ids=str)
def test_offsets_of_64_bits_give_the_same_bits(monkeypatch, case, dtype):
    import triton.language as tl

    maps = make(case, dtype)
    expected = outputs(maps, "triton")
    monkeypatch.setattr(ours, "_index_type", lambda tensors: tl.int64)
    found = outputs(maps, "triton")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_map_with_more_than_2_to_the_31_elements_is_indexed_in_64_bits(dtype):
    import triton.language as tl

    stride = 2**31 + 3  # between channels; of memory that is not touched nothing is taken
    try:
        memory = torch.empty(2 * stride, dtype=dtype)
    except (RuntimeError, torch.OutOfMemoryError):
        pytest.skip("needs 9 or 18 GB of address space")
    decoder = memory.as_strided((1, 2, 3, 3), (2 * stride, stride, 3, 1))
    decoder.copy_(torch.arange(18.0).view(1, 2, 3, 3))
    assert ours._index_type([decoder]) == tl.int64
    assert ours._index_type([decoder[:, :1], None]) == tl.int32
    assert ours._index_type([torch.empty(1, 1, 50_000, 1)]) == tl.int64  # y · H
    logits = torch.randn(1, 9, 6, 6).to(dtype)
    wanted = fadeup.reassemble(decoder.contiguous(), logits, impl="triton")
    torch.testing.assert_close(fadeup.reassemble(decoder, logits, impl="triton"), wanted, rtol=0, atol=0)


SPOILS = [(NAN, "one"), (INFINITY, "one"), (-INFINITY, "a pixel"), (INFINITY, "two of both signs")]
# Each map with each value, and each of both in the tiles (float16) and in the general kernels.
SPOILED_MAPS = [
    ((torch.float16, torch.float32)[(i + j) % 2], name, *spoil)
    for i, name in enumerate(("logits", "coarse_logits", "gate_logits"))
    for j, spoil in enumerate(SPOILS)
]


@pytest.mark.parametrize(("dtype", "name", "value", "place"), SPOILED_MAPS, ids=str)
def test_nan_and_infinity_in_logits_go_where_the_reference_has_them(dtype, name, value, place):
    maps = {part: x.detach().clone() for part, x in make(Case((4, 5), (8, 9), 3, 2, 1), dtype).items()}
    SPOILED[place](maps[name], value)
    operator = torch.ops.fadeup.reassemble if torch.cuda.is_available() else torch.ops.fadeup.interpreted_reassemble
    actual = with_gradients(operator, list(maps.values()))
    expected = with_gradients(reference.reassemble, [x.float() for x in maps.values()])
    for part, found, wanted in zip(("out", *PARTS), actual, expected, strict=True):
        wanted = wanted.to(dtype)
        slack = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
        torch.testing.assert_close(found, wanted, equal_nan=True, **slack, msg=lambda m, at=part: f"{at}: {m}")


def touched_by(value: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Where a spoiled point of the decoder makes the output not finite, here and in the reference."""
    case = Case((9, 9), (18, 18), 3, 1, 1, coarse=False, gate=False)
    maps = {name: x.detach().clone() for name, x in make(case, dtype).items() if x is not None}
    maps["decoder"][0, 0, 4, 4] = value
    found = fadeup.reassemble(**maps, impl="triton")
    return ~found.isfinite(), ~fadeup.reassemble(**maps, impl="reference").isfinite()


def test_features_that_are_not_finite_spoil_their_windows_and_in_half_precision_at_most_their_tiles():
    here, there = touched_by(INFINITY, torch.float32)
    assert here.equal(there)
    here, there = touched_by(INFINITY, torch.float16)
    assert here[there].all()
    reach = ours.TILE * 2
    rows = here.any(dim=(0, 1, 3)).nonzero().flatten()
    assert rows.min() >= 8 - reach
    assert rows.max() < 8 + reach


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("batch", "channels"), [(0, 6), (2, 0)])
def test_without_batch_or_channels_the_result_is_empty_and_the_kernels_gradients_are_zero(batch, channels, dtype):
    maps = make(Case((3, 5), (6, 9), 3, channels, batch), dtype)
    with poisoned_memory():
        actual = outputs(maps, "triton")
        query, key = maps["encoder"].detach().requires_grad_(), maps["decoder"].detach().requires_grad_()
        scores = fadeup.window_dot(query, key, 3, impl="triton")
        grads = torch.autograd.grad(scores.sum(), [query, key])
    assert actual["out"].shape == (batch, channels, 6, 9)
    assert not scores.any()
    assert [x.shape for x in grads] == [query.shape, key.shape]
    for name, x in maps.items():
        assert actual[name].shape == x.shape
        assert not actual[name].any()


def test_autograd_keeps_the_inputs_alone():
    maps = make(Case((4, 4), (8, 8), 3, 8, 1), torch.float32)
    assert saved_bytes(maps, "triton") == sum(x.numel() * 4 for x in maps.values())


def test_under_autocast_half_kernels_serve_float32_features():
    maps = make(Case((3, 5), (6, 9), 3, 5, 1), torch.float32)
    half = {name: maps[name].detach().bfloat16() for name in ("logits", "coarse_logits", "gate_logits")}
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        out = fadeup.reassemble(**maps | half, impl="triton")
    assert out.dtype == torch.float32
    exact = fadeup.reassemble(**{name: x.double() for name, x in (maps | half).items()}, impl="reference")
    assert_within(out.detach(), exact.detach(), 1e-5)


def test_compiles_in_one_graph():
    module, maps = Reassemble("triton"), make(Case((2, 3), (4, 6), 3, 2, 1), torch.float32)
    out = torch.compile(module, backend="aot_eager", fullgraph=True)(*maps.values())
    expected = module(*maps.values())
    torch.testing.assert_close(out, expected)
    given = list(maps.values())
    grads = torch.autograd.grad(out.square().sum(), given), torch.autograd.grad(expected.square().sum(), given)
    for actual, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(actual, wanted)


@opchecks
@pytest.mark.skipif(torch.cuda.is_available(), reason="the operators of the interpreter are for the CPU")
def test_the_operators_of_the_interpreter_are_sound():
    maps = make(Case((2, 3), (4, 6), 3, 2, 1), torch.float32)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.fadeup.interpreted_reassemble, tuple(maps.values()), test_utils=checks)
    pair = maps["encoder"], maps["decoder"]
    torch.library.opcheck(torch.ops.fadeup.interpreted_window_dot, (*pair, 3), test_utils=checks)


def test_a_second_derivative_is_refused():
    maps = make(Case((2, 2), (4, 4), 3, 1, 1), torch.float32)
    leaves = list(maps.values())
    out = reassemble_by_position("triton")(*leaves).square().sum()
    grads = torch.autograd.grad(out, leaves, create_graph=True)
    with pytest.raises(RuntimeError, match=r"impl must be 'eager' for second derivatives"):
        torch.autograd.grad(grads[0].sum(), leaves)


def test_tuning_takes_the_fastest_configuration_once_for_a_class_of_shapes(monkeypatch):
    from triton.runtime.autotuner import Autotuner

    tried = []

    def seconds(self, call, quantiles):
        call()
        tried.append(self.base_fn.__name__)
        return [float(len(tried) % 4), 0.0, 0.0]  # the fourth is the fastest

    monkeypatch.setattr(Autotuner, "do_bench", seconds)
    monkeypatch.setattr(ours, "_is_tuning", lambda: True)
    ours._tuned.cache_clear()
    case = Case((4, 4), (8, 8), 3, 5, 1, coarse=False, gate=False)
    maps = [x.detach() for x in make(case, torch.float16).values() if x is not None]
    expected = fadeup.reassemble(*maps, impl="reference")
    for _ in range(2):
        torch.testing.assert_close(fadeup.reassemble(*maps, impl="triton"), expected, rtol=1e-2, atol=1e-2)
    assert tried == ["forward"] * len(ours.CONFIGS["forward"])
    ours._tuned.cache_clear()


# ---- what is used, and what is refused ----

A_GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(capability)` makes torch tell of a GPU that is not there."""

    def pretend(capability: tuple[int, int], name: str = "Some GPU") -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)

    monkeypatch.setattr(ours, "_warned", set())
    return pretend


@pytest.mark.parametrize(("capability", "has"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_tensor_cores_are_those_that_triton_uses(gpu, capability, has):
    gpu(capability)
    ours._has_tensor_cores.cache_clear()
    assert ours._has_tensor_cores(A_GPU) is has
    ours._has_tensor_cores.cache_clear()


class OnAGpu:
    """What `choose` asks of a tensor."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        self.device, self.dtype = A_GPU, dtype


def test_on_a_gpu_auto_is_triton(gpu):
    gpu((8, 0))
    assert choose("auto", OnAGpu()) == "triton"
    assert choose("triton", OnAGpu(torch.bfloat16)) == "triton"


PROBLEMS = {
    "old": ((6, 1), torch.float16, r"Some GPU has compute capability 6.1 and Triton needs 7.0"),
    "bfloat16": ((7, 5), torch.bfloat16, r"Some GPU has compute capability 7.5 and bfloat16 needs 8.0"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_gpu_that_the_kernels_cannot_serve_gets_eager_which_is_said_once(gpu, problem):
    capability, dtype, message = PROBLEMS[problem]
    gpu(capability)
    with pytest.warns(RuntimeWarning, match=rf"GPU kernels cannot be used \({message}\); the slower impl='eager' is"):
        assert choose("auto", OnAGpu(dtype)) == "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("auto", OnAGpu(dtype)) == "eager"
    with pytest.raises(ValueError, match=rf"impl must be 'auto', 'eager' or 'reference' for {dtype} .*: {message}"):
        choose("triton", OnAGpu(dtype))


def test_a_gpu_without_triton_gets_eager_which_is_said_once(gpu, monkeypatch):
    gpu((9, 0))
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="Triton is not installed: pip install triton"):
        assert choose("auto", OnAGpu()) == "eager"
    with pytest.raises(ValueError, match="got 'triton': Triton is not installed: pip install triton"):
        choose("triton", OnAGpu())


def test_a_gpu_of_another_maker_gets_eager(gpu, monkeypatch):
    gpu((9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.warns(RuntimeWarning, match="it has been checked for NVIDIA's GPUs only"):
        assert choose("auto", OnAGpu()) == "eager"


@pytest.mark.parametrize("device", ["meta", "xpu"])
def test_other_devices_are_refused_by_name_and_get_eager_without_a_word(device):
    with pytest.raises(ValueError, match=rf"impl must be .* on {device}, got 'triton': it is for CUDA"):
        choose("triton", type("X", (), {"device": torch.device(device), "dtype": torch.float32})())
    assert choose("auto", type("X", (), {"device": torch.device(device), "dtype": torch.float32})()) == "eager"


def test_the_cpu_is_refused_where_triton_does_not_interpret(monkeypatch):
    monkeypatch.setattr(ours, "is_interpreted", lambda: False)
    decoder, logits = torch.ones(1, 3, 4, 5, device="cpu"), torch.zeros(1, 9, 8, 10, device="cpu")
    with pytest.raises(ValueError, match=r"float32 on cpu, got 'triton': it is for CUDA; TRITON_INTERPRET=1 runs it"):
        fadeup.reassemble(decoder, logits, impl="triton")


def test_maps_on_two_devices_are_refused():
    maps = make(Case((2, 3), (4, 6), 3, 2, 1), torch.float32)
    maps["encoder"] = maps["encoder"].to("meta")
    with pytest.raises(ValueError, match=r"encoder must be on \S+ like decoder, got meta; move it"):
        fadeup.reassemble(**maps, impl="triton")


ALONE = """
import os, sys
os.environ.pop("TRITON_INTERPRET", None)
import torch, fadeup
before = {name for name in sys.modules if name.split(".")[0] == "triton"}
module = fadeup.build_upsampler("fade", 8)
module(torch.randn(1, 8, 4, 5), torch.randn(1, 8, 8, 10)).sum().backward()
assert not any(name.startswith("fadeup.kernels.triton.") for name in sys.modules)
print(sorted({name for name in sys.modules if name.split(".")[0] == "triton"} - before))
"""


def test_nothing_of_triton_is_imported_without_a_gpu():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_everything_but_triton_works_where_it_is_not_installed():
    hidden = 'import sys; sys.modules["triton"] = None\n' + ALONE.replace("before = {", "before = {'triton'} | {")
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
