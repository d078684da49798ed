"""One of the two processes of test_parallel.py: it runs every check and writes down what failed.

python parallel_worker.py rank folder name...
"""

from __future__ import annotations

import copy
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from fadeup import UPSAMPLERS, Upsampler, build_upsampler
from fadeup.models import MattingNet, SegFormer, SegNet
from fadeup.upsamplers import ALIASES
from helpers import assert_within, budget
from networks import NETWORKS, build_network

WORLD = 2
BATCH = 4
RATE = 1e-3
TRAINED = [name for name in (*UPSAMPLERS, *ALIASES) if name not in ("nearest", "bilinear", "max_unpool")]

SHARDED = [name for name in NETWORKS if name not in ("segnet-timm", "segformer-timm")]  # their parts are in others


def build(name: str) -> tuple[nn.Module, list[Tensor]]:
    """A network or an upsampler, in evaluation so that batches of two and of four have the same statistics."""
    torch.manual_seed(0)
    if name in NETWORKS:
        module, image = build_network(name, WORLD, (32, 33))
        return module.eval(), [image]
    module = build_upsampler(name, 8).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return module, [torch.randn(BATCH, 8, 7, 9), torch.randn(BATCH, 8, 13, 17)]


def own_part(inputs: Iterable[Tensor]) -> list[Tensor]:
    return [x.chunk(WORLD)[dist.get_rank()] for x in inputs]


def backward(module: nn.Module, inputs: Iterable[Tensor]) -> None:
    module(*inputs).square().mean().backward()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {key: p.grad.clone() for key, p in module.named_parameters() if p.grad is not None}


def single(module: nn.Module, inputs: list[Tensor], dtype: torch.dtype) -> nn.Module:
    """A copy after one backward pass over the whole batch, in one process."""
    module = copy.deepcopy(module).to(dtype)
    backward(module, [x.to(dtype) for x in inputs])
    return module


def accumulated(module: nn.Module, inputs: list[Tensor]) -> nn.Module:
    """A copy after one backward pass over each process's part, one after another, in one process."""
    module = copy.deepcopy(module)
    for part in zip(*(x.chunk(WORLD) for x in inputs), strict=True):
        (module(*part).square().mean() / WORLD).backward()
    return module


def assert_close(actual: dict[str, Tensor], exact: dict[str, Tensor], *lows: dict[str, Tensor], step: float) -> None:
    """Every tensor within twice the rounding of one process, in the worst of the ways to compute it there.

    `step` is the largest gradient, or change of a weight: a unit in its last place is rounding too, since some
    gradients (of a key's bias before softmax) are 0 but for rounding.
    """
    assert actual.keys() == exact.keys()
    for key, value in actual.items():
        if not value.is_floating_point():
            assert torch.equal(value, exact[key]), key
            continue
        least = torch.finfo(lows[0][key].dtype).eps * step
        try:
            assert_within(value, exact[key], 2 * max(least, *(budget(exact[key], low[key]) for low in lows)))
        except AssertionError as error:
            raise AssertionError(f"{key} {error}") from error


def largest(tensors: Iterable[Tensor]) -> float:
    return max(x.abs().max().item() for x in tensors)


def differ(some: dict[str, Tensor], exact: dict[str, Tensor], low: dict[str, Tensor]) -> bool:
    """Whether something lies so far apart that `assert_close` would notice."""
    floats = [key for key in exact if exact[key].is_floating_point()]
    return any((some[key] - exact[key]).abs().max() > 4 * budget(exact[key], low[key]) for key in floats)


def check_ddp(name: str) -> None:
    """Gradients are those of one process with the whole batch; a second pass fails where a parameter got none."""
    module, inputs = build(name)
    exact, low = (gradients(single(module, inputs, dtype)) for dtype in (torch.float64, torch.float32))
    assert differ(gradients(single(module, own_part(inputs), torch.float64)), exact, low)
    parts = gradients(accumulated(module, inputs))
    wrapped = DistributedDataParallel(module)
    for _ in range(2):
        wrapped.zero_grad()
        backward(wrapped, own_part(inputs))
    torch.testing.assert_close(gradients(module), parts, rtol=0, atol=0)
    assert_close(gradients(module), exact, low, parts, step=largest(exact.values()))


def check_ddp_autocast(dtype: torch.dtype) -> None:
    module, inputs = build("fade")
    wrapped = DistributedDataParallel(module)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(2):
        wrapped.zero_grad()
        with torch.autocast("cpu", dtype):
            out = wrapped(*own_part(inputs))
        scaler.scale(out.float().square().mean()).backward()
    scaler.unscale_(torch.optim.SGD(module.parameters()))
    exact = gradients(single(module, inputs, torch.float64))
    low = gradients(single(copy.deepcopy(module), inputs, dtype))
    assert_close(gradients(module), exact, low, step=largest(exact.values()))


def check_unused() -> None:
    """That the checks above would notice a parameter without gradient."""

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    wrapped = DistributedDataParallel(Unused())
    try:
        for _ in range(2):
            backward(wrapped, [torch.ones(1, 1, 2, 2)])
    except RuntimeError as error:
        assert "unused parameter" in str(error)  # noqa: PT017 - the error is what is checked
    else:
        raise AssertionError("a parameter without gradient went unnoticed")


def shard(module: nn.Module, **options) -> nn.Module:
    """Every upsampler by itself, MiT's stages and VGG, then the rest."""
    mesh = init_device_mesh("cpu", (WORLD,))
    parts = [part for part in module.modules() if isinstance(part, Upsampler) and part is not module]
    if isinstance(module, SegFormer):
        parts += module.backbone.stages if hasattr(module.backbone, "stages") else [module.backbone]
    if isinstance(module, SegNet | MattingNet):
        parts.append(module.trunk)
    for part in parts:
        if next(part.parameters(), None) is not None:
            fully_shard(part, mesh=mesh, **options)
    return fully_shard(module, mesh=mesh, **options)


def stepped(module: nn.Module) -> nn.Module:
    torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=RATE, momentum=0.9).step()
    return module


def gathered(module: nn.Module) -> dict[str, Tensor]:
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))


def check_fsdp(name: str) -> None:
    """A step of sharded weights is that of whole ones; gathered, they load into a module that is not sharded."""
    module, inputs = build(name)
    fresh, before = copy.deepcopy(module), copy.deepcopy(module.state_dict())
    whole = single(module, inputs, torch.float64)
    step = RATE * largest(gradients(whole).values())
    exact, low = (stepped(x).state_dict() for x in (whole, single(module, inputs, torch.float32)))
    assert differ(before, exact, low)
    parts = stepped(accumulated(module, inputs)).state_dict()
    sharded = shard(module)
    backward(sharded, own_part(inputs))
    assert all(parameter.grad is not None for parameter in sharded.parameters() if parameter.requires_grad)
    state = gathered(stepped(sharded))
    assert_close(state, exact, low, parts, step=step)
    fresh.load_state_dict(state)
    # With gradients: without, SegFormer takes a faster way that hooks, and so sharding, keep it from.
    torch.testing.assert_close(sharded(*inputs), fresh(*inputs), rtol=0, atol=0)
    sharded.reshard()  # the outermost module keeps its weights whole after a forward pass without backward
    set_model_state_dict(sharded, dict(before), options=StateDictOptions(full_state_dict=True))
    torch.testing.assert_close(gathered(sharded), dict(before), rtol=0, atol=0)


def check_fsdp_bfloat16(name: str) -> None:
    """FSDP2's own mixed precision: weights gathered and maps cast to bfloat16."""
    module, inputs = build(name)
    exact, low = (gradients(single(module, inputs, dtype)) for dtype in (torch.float64, torch.bfloat16))
    sharded = shard(module, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    backward(sharded, own_part(inputs))
    whole = {key: p.grad.full_tensor() for key, p in sharded.named_parameters() if p.grad is not None}
    assert_close(whole, exact, low, step=largest(exact.values()))


def check_fsdp_pool(name: str) -> None:
    """The pooling half is no forward: it has to be made known to FSDP2."""
    torch.manual_seed(0)
    module = build_upsampler(name, 8, **({"pooling": True} if name == "a2u" else {})).eval()
    encoder = torch.randn(BATCH, 8, 14, 18)
    expected = module.pool(encoder)  # type: ignore[operator]
    sharded = shard(copy.deepcopy(module))
    register_fsdp_forward_method(sharded, "pool")
    torch.testing.assert_close(sharded.pool(encoder), expected, rtol=0, atol=0)


CHECKS: dict[str, Callable[[], None]] = {
    **{f"ddp-{name}": partial(check_ddp, name) for name in (*TRAINED, *NETWORKS)},
    "ddp-autocast-float16": partial(check_ddp_autocast, torch.float16),
    "ddp-autocast-bfloat16": partial(check_ddp_autocast, torch.bfloat16),
    "ddp-unused": check_unused,
    **{f"fsdp-{name}": partial(check_fsdp, name) for name in (*TRAINED, *SHARDED)},
    **{f"fsdp-bfloat16-{name}": partial(check_fsdp_bfloat16, name) for name in ("fade", "carafe", "sapa", "dysample")},
    **{f"fsdp-pool-{name}": partial(check_fsdp_pool, name) for name in ("indexnet", "a2u")},
}


def main() -> None:
    rank, folder, *names = sys.argv[1:]
    torch.set_num_threads(1)
    store = (Path(folder) / "store").resolve().as_uri()
    dist.init_process_group("gloo", store, timedelta(seconds=60), world_size=WORLD, rank=int(rank))
    results = {}
    for name in names or CHECKS:
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                # A depthwise kernel of 1 x 3 x 3 has two sets of strides for one order in memory; either may be met.
                warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
                CHECKS[name]()
            results[name] = ""
        except Exception:  # a check that fails is reported, and the others still run
            results[name] = traceback.format_exc()
        print(f"{time.perf_counter() - start:5.1f} s {name}", flush=True)
        (Path(folder) / f"results{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
