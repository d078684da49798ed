"""Half precision, autocast, scaled losses, memory format, compilation and copies, for every upsampler and network.

What low precision may cost is measured, not chosen: the exact result, in float64, moves when weights and inputs are
rounded to that precision and nothing else is. A computation in which every layer rounds may move it a few times as far.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Iterable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from fadeup import UPSAMPLERS, build_upsampler
from fadeup.upsamplers import ALIASES
from helpers import assert_within, budget
from networks import NETWORKS, build_network

pytest.importorskip("timm", reason="needs timm")
pytest.importorskip("transformers", reason="needs transformers")

NAMES = [*UPSAMPLERS, *ALIASES]
TRAINED = [name for name in NAMES if name not in ("nearest", "bilinear", "max_unpool")]
LOW = [torch.float16, torch.bfloat16]
TIMES = 8
"""How much farther than rounded weights and inputs alone may move a result: as many layers round theirs."""
SCALE = 2.0**8
"""Of the losses: gradients of a mean are below float16's normal numbers, which is what GradScaler is for."""

Values = dict[str, Tensor]


def upsampler(name: str) -> tuple[nn.Module, list[Tensor]]:
    """With weights large enough for the method to differ from plain interpolation, over an odd encoder."""
    torch.manual_seed(0)
    module = build_upsampler(name, 8).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    # Values that every precision holds, so that no maximum of max unpooling moves.
    return module, [torch.randn(2, 8, 7, 9).bfloat16().float(), torch.randn(2, 8, 13, 17).bfloat16().float()]


@functools.cache
def network(name: str) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    model, image = build_network(name)
    return model.eval(), [image]


def made(name: str) -> tuple[nn.Module, list[Tensor]]:
    return network(name) if name in NETWORKS else upsampler(name)


def run(module: nn.Module, inputs: Iterable[Tensor], *, autocast: torch.dtype | None = None) -> Values:
    """Output, and the gradients of its scaled mean square by inputs and parameters."""
    inputs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    with nullcontext() if autocast is None else torch.autocast("cpu", autocast):
        out = module(*inputs)
    (SCALE * out.to(torch.promote_types(out.dtype, torch.float32)).square().mean()).backward()
    parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
    leaves = parameters | {f"input {index}": x for index, x in enumerate(inputs) if x.grad is not None}
    assert all(leaf.grad is not None for leaf in leaves.values())
    return {"output": out.detach()} | {f"gradient of {key}": leaf.grad for key, leaf in leaves.items()}


def in_dtype(name: str, *dtypes: torch.dtype) -> tuple[nn.Module, list[Tensor]]:
    """Module and inputs of their own, rounded to one precision after another."""
    module, inputs = made(name)
    module = copy.deepcopy(module)
    for dtype in dtypes:
        module, inputs = module.to(dtype), [x.to(dtype) for x in inputs]
    return module, inputs


@functools.cache
def exact(name: str) -> Values:
    return run(*in_dtype(name, torch.float64))


@functools.cache
def rounded(name: str, dtype: torch.dtype) -> Values:
    """The exact result of rounded weights and inputs, rounded."""
    return {key: value.to(dtype) for key, value in run(*in_dtype(name, dtype, torch.float64)).items()}


def assert_near(name: str, actual: Values, low: Values) -> None:
    """Each tensor of an upsampler, and of a network output and gradients as a whole, `TIMES` as far off as `low`.

    Gradients may be 0 but for rounding (of a bias before a norm), which is then all there is to compare: in an
    upsampler a unit in the last place of the largest gradient is allowed, too.
    """
    true = {key: value for key, value in exact(name).items() if key in actual}
    assert actual.keys() == true.keys()
    if name not in NETWORKS:
        largest = max(value.abs().max().item() for key, value in exact(name).items() if key != "output")
        for key, value in actual.items():
            least = 0 if key == "output" else torch.finfo(low[key].dtype).eps * largest
            try:
                assert_within(value, true[key], TIMES * max(least, budget(true[key], low[key])))
            except AssertionError as error:
                raise AssertionError(f"{key} {error}") from error
        return
    for group in {key.split()[0] for key in actual}:
        far, allowed = (distance(values, true, group) for values in (actual, low))
        assert allowed > 0
        assert far <= TIMES * allowed, f"{group} off by {far:.3g}, more than {TIMES} times {allowed:.3g}"


def distance(values: Values, true: Values, group: str) -> float:
    """Euclidean, over all tensors of a group."""
    return sum((values[key].double() - true[key]).square().sum() for key in true if key.startswith(group)).sqrt().item()


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", [*NAMES, *NETWORKS])
def test_low_precision_trains(name, dtype):
    module, inputs = in_dtype(name, dtype)
    values = run(module, inputs)
    assert {value.dtype for value in values.values()} == {dtype}
    assert_near(name, values, rounded(name, dtype))


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", [*NAMES, *NETWORKS])
def test_autocast_trains(name, dtype):
    module, inputs = in_dtype(name, torch.float32)
    values = run(module, inputs, autocast=dtype)
    assert {value.dtype for key, value in values.items() if key != "output"} == {torch.float32}
    assert_near(name, values, rounded(name, dtype))


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", [*TRAINED, *NETWORKS])
def test_a_scaled_loss_steps_and_an_overflow_is_skipped(name, dtype):
    module, inputs = in_dtype(name, torch.float32)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-4)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)

    def step(times: float = 1) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            out = module(*inputs)
        scaler.scale(times * out.float().square().mean()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    before = copy.deepcopy(module.state_dict())
    step()
    gradients = {f"gradient of {key}": SCALE * p.grad for key, p in module.named_parameters() if p.requires_grad}
    assert_near(name, gradients, rounded(name, dtype))
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert any(not torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert scaler.get_scale() == SCALE

    before = copy.deepcopy(module.state_dict())
    step(times=float("inf"))
    torch.testing.assert_close(dict(module.state_dict()), dict(before), rtol=0, atol=0)
    assert scaler.get_scale() == SCALE / 2


@pytest.mark.parametrize("name", [*NAMES, *NETWORKS])
def test_channels_last_trains(name):
    module, inputs = in_dtype(name, torch.float32)
    single = run(copy.deepcopy(module), inputs)
    last = {"memory_format": torch.channels_last}
    values = run(module.to(**last), [x.to(**last) for x in inputs])
    assert values["output"].is_contiguous(**last)
    assert_near(name, values, single)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("name", ["segformer-mit", "segformer-timm"])
def test_segformers_faster_way_without_gradients_keeps_the_precision(name, dtype):
    module, inputs = in_dtype(name, dtype)
    with torch.no_grad():
        fast = module(*inputs)
    plain = module(*inputs)
    assert fast.dtype == dtype
    assert not torch.equal(fast, plain)
    low = {"output": plain} if dtype == torch.float32 else rounded(name, dtype)
    true = exact(name)
    assert distance(true | {"output": fast}, true, "output") <= TIMES * distance(low, true, "output")


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_of_networks_compute_the_same(name, tmp_path):
    model, inputs = network(name)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(1)
    fresh, _ = build_network(name)
    assert any(not torch.equal(value, fresh.state_dict()[key]) for key, value in model.state_dict().items())
    fresh.eval().load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        expected = model(*inputs)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
            torch.testing.assert_close(other(*inputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", ["autoencoder", "segformer-mit"])
def test_weights_of_half_precision_survive_the_disk(name, dtype, tmp_path):
    model, inputs = in_dtype(name, dtype)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = copy.deepcopy(network(name)[0]).to(dtype)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    torch.testing.assert_close(other(*inputs), model(*inputs), rtol=0, atol=0)


def assert_compiles(name: str) -> nn.Module:
    torch._dynamo.reset()
    module, inputs = in_dtype(name, torch.float32)
    single = run(copy.deepcopy(module), inputs)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    values = {key.replace("_orig_mod.", ""): value for key, value in run(compiled, inputs).items()}
    assert_near(name, values, single)
    return compiled


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("b2", "b4", "b6", "carafe+gate")])
def test_upsamplers_compile_in_one_graph(name):
    compiled = assert_compiles(name)
    module, _ = upsampler(name)
    decoder, encoder = torch.randn(2, 8, 7, 10), torch.randn(2, 8, 14, 20)  # the odd sizes before, and now even ones
    low = run(copy.deepcopy(module), [decoder, encoder])["output"]
    true = run(copy.deepcopy(module).double(), [decoder.double(), encoder.double()])["output"]
    compiled.eval()
    assert_within(compiled(decoder, encoder), true, TIMES * budget(true, low))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("segnet-timm", "matting-timm")])
def test_networks_compile_in_one_graph(name):
    assert_compiles(name)
