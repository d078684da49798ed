"""The fused primitives on a GPU, forward and backward, in Triton: which kernel serves a call, and with what tiles.

Nothing of Triton is imported before a kernel is launched or asked for. `tiles` has the kernels for half precision at
exact 2x, `general` those for everything else, `parts` what both read. With TRITON_INTERPRET=1 in the environment,
Triton runs them in Python over tensors on the CPU, to check them where there is no GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fadeup.kernels.eager import whole_ratio
from fadeup.kernels.native import empty

TILE = 4
"""Decoder points along each side of a tile."""
TILED_KERNEL_SIZES = (3, 5)
CONFIGS = {
    "forward": ((64, 8), (64, 4), (32, 8), (32, 4)),
    "backward_kernels": ((64, 8), (64, 4), (32, 8), (32, 4)),
    "backward_decoder": ((256, 8), (128, 4), (64, 8), (64, 4)),
}
"""Channels at a time, and warps: what is tried for `tiles` where torch.backends.cudnn.benchmark asks for tuning."""
MINIMUM = (7, 0)
"""The compute capability below which Triton makes no code."""
TENSOR_CORES = (8, 0)
"""That below which Triton multiplies matrices without tensor cores, and makes no bfloat16."""


# ---- whether ----


def is_interpreted() -> bool:
    """Whether Triton runs kernels in Python, on the CPU: TRITON_INTERPRET=1 when it was first imported."""
    if not os.environ.get("TRITON_INTERPRET") or importlib.util.find_spec("triton") is None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)  # pyright: ignore[reportAttributeAccessIssue]


def problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot serve tensors of that device and type, or None where they can."""
    if device.type == "cpu":
        return None if is_interpreted() else "it is for CUDA; TRITON_INTERPRET=1 runs it on the CPU, slowly, as a check"
    if device.type != "cuda":
        return "it is for CUDA"
    if torch.version.hip:
        return "it has been checked for NVIDIA's GPUs only"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    capability = torch.cuda.get_device_capability(device)
    name = f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}"
    if capability < MINIMUM:
        return f"{name} and Triton needs {MINIMUM[0]}.{MINIMUM[1]}"
    if dtype == torch.bfloat16 and capability < TENSOR_CORES:
        return f"{name} and bfloat16 needs {TENSOR_CORES[0]}.{TENSOR_CORES[1]}"
    return None


_warned: set[str] = set()


def is_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels can serve such tensors; of each reason why not, one warning on a GPU."""
    reason = problem(device, dtype)
    if reason and reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"fadeup's GPU kernels cannot be used ({reason}); the slower impl='eager' is. `fadeup doctor` tells more.",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason is None


for _constant in (problem, is_available):  # as in native.py
    _constant._dynamo_marked_constant = True  # type: ignore[attr-defined]


# ---- launching ----

Tensors = Sequence[Tensor | None]


def _map(x: Tensor | None) -> tuple[Any, ...] | None:
    """What the kernels know of a map: `(pointer, strides)`."""
    return None if x is None else (x, *x.stride())


def _index_type(tensors: Tensors) -> Any:
    """The type that holds every offset within an image, whose own offset is always held in 64 bits, and y · H."""
    import triton.language as tl

    maps = [x for x in tensors if x is not None]
    reaches = (sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True)) for x in maps)
    side = max(max(x.shape[2:]) for x in maps) + 1
    return tl.int64 if max(*reaches, side**2) >= 2**31 else tl.int32


def _power(n: int) -> int:
    """The power of two that is `n` or next above it."""
    return 1 << max(0, n - 1).bit_length()


def _taps(kernel_size: int) -> int:
    return max(16, _power(kernel_size**2))


def _are_channels_inner(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.shape[1] > 1


def launch(
    kernel: Any, grid: Callable[[Any], tuple[int, ...]], device: torch.device, *arguments: Any, **options: Any
) -> None:
    """Run a kernel on a device; all launches go through here."""
    if 0 in grid({"CB": 1}):
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **options)


def _is_tuning() -> bool:
    return torch.backends.cudnn.benchmark


@functools.cache
def _tuned(name: str, *shape_class: Any) -> Any:
    """One of `tiles` in its fastest configuration, which is found at the first launch of a class of shapes."""
    import triton

    from fadeup.kernels.triton import tiles

    configs = [triton.Config({"CB": channels}, num_warps=warps, num_stages=2) for channels, warps in CONFIGS[name]]
    return triton.autotune(configs, key=[])(getattr(tiles, name))


def _untuned(name: str, channels: int, inner: bool) -> dict[str, int]:
    """A configuration that spills no registers: few channels at a time where they are not adjacent in memory."""
    of_decoder = name == "backward_decoder"
    most = (256 if inner else 64) if of_decoder else (64 if inner else 32)
    at_once = min(most, max(16, _power(channels)))
    return {"CB": at_once, "num_warps": 4 if of_decoder and at_once == 128 else 8, "num_stages": 2}


def _launch_tiles(
    name: str, decoder: Tensor, size: Sequence[int], kernel_size: int, raw: bool, tensors: Tensors
) -> None:
    """Launch one of `tiles`. `decoder` is the map of the decoder's size, which lies as the others mostly do."""
    from fadeup.kernels.triton import tiles

    batch, channels, height, width = decoder.shape
    inner, taps, halo = _are_channels_inner(decoder), _taps(kernel_size), (TILE + kernel_size - 1) ** 2
    programs = batch * -(-height // TILE) * -(-width // TILE)
    options: dict[str, Any] = {"INDEX": _index_type(tensors), "K": kernel_size, "TAPS": taps, "TH": TILE, "TW": TILE}
    if name == "backward_decoder":
        options |= {"PARENTS": -(-halo // 16) * 16, "GIVEN": kernel_size**2 if raw else taps}
    else:
        options |= {"S": _power(halo), "RAW": raw}

    def grid(meta: Any) -> tuple[int, ...]:
        return (programs, -(-channels // meta["CB"]) if name == "backward_decoder" else 1)

    if _is_tuning():
        types = tuple(None if x is None else x.dtype for x in tensors)
        kernel = _tuned(name, types, kernel_size, raw, inner, _power(channels), _power(programs))
    else:
        kernel = getattr(tiles, name)
        options |= _untuned(name, channels, inner)
    launch(kernel, grid, decoder.device, *map(_map, tensors), channels, height, width, *size, **options)


def _accumulator(x: Tensor) -> Any:
    import triton.language as tl

    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _launch_general(
    name: str, decoder: Tensor, size: Sequence[int], kernel_size: int, raw: bool, tensors: Tensors
) -> None:
    """Launch one of `general`: many channels at a time where they are adjacent in memory, else many points."""
    from fadeup.kernels.triton import general

    batch, channels, height, width = decoder.shape
    taps, at_once = _taps(kernel_size), min(64 if _are_channels_inner(decoder) else 16, _power(channels))
    values = 512 if name == "backward_kernels" else 2048  # of a program, which has 128 threads
    points = max(1, min(values // at_once, 4096 // taps))
    options = {"ACC": _accumulator(decoder), "INDEX": _index_type(tensors), "K": kernel_size}
    options |= {"P": points, "CB": at_once}
    if name != "backward_decoder":
        options |= {"RAW": raw, "TAPS": taps}
    programs = batch * -(-(size[0] * size[1] if name == "forward" else height * width) // points)
    parts = 1 if name == "backward_kernels" else -(-channels // at_once)
    arguments = (*map(_map, tensors), channels, height, width, *size)
    launch(getattr(general, name), lambda meta: (programs, parts), decoder.device, *arguments, **options)


@functools.cache
def _has_tensor_cores(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= TENSOR_CORES


def _launcher(decoder: Tensor, size: Sequence[int], kernel_size: int) -> Callable[..., None]:
    """What serves a call: `tiles` in half precision at 2x, and in float32 where the user allows TF32 in products."""
    half = decoder.dtype in (torch.float16, torch.bfloat16)
    rounded = decoder.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    exact = all(whole_ratio(low, high) == 2 for low, high in zip(decoder.shape[2:], size, strict=True))
    fits = (half or rounded) and exact and kernel_size in TILED_KERNEL_SIZES
    return _launch_tiles if fits and _has_tensor_cores(decoder.device) else _launch_general


# ---- calling: as in native.py ----


def forward(
    decoder: Tensor,
    logits: Tensor,
    coarse_logits: Tensor | None,
    encoder: Tensor | None,
    gate_logits: Tensor | None,
    *,
    raw: bool = False,
    like: Tensor | None = None,
) -> Tensor:
    """`reassemble`; where `raw`, `logits` are the weights themselves. `decoder` and `encoder` are of one dtype.

    The result has the memory format of `like`, by default of `decoder`.
    """
    size, kernel_size = logits.shape[2:], round(logits.shape[1] ** 0.5)
    out = empty((*decoder.shape[:2], *size), decoder if like is None else like)
    tensors = (decoder, logits, coarse_logits, encoder, gate_logits, out)
    _launcher(decoder, size, kernel_size)("forward", decoder, size, kernel_size, raw, tensors)
    return out


def backward(
    grad: Tensor,
    decoder: Tensor,
    logits: Tensor,
    coarse_logits: Tensor | None,
    encoder: Tensor | None,
    gate_logits: Tensor | None,
    needed: Sequence[bool],
    *,
    raw: bool = False,
) -> list[Tensor | None]:
    """Gradients of `forward`'s five maps, None where not needed. Each has the dtype and memory format of its map."""
    inputs = (decoder, logits, coarse_logits, encoder, gate_logits)
    grads = [empty(x.shape, x) if x is not None and need else None for x, need in zip(inputs, needed, strict=True)]
    if decoder.shape[1] == 0:  # without channels the kernels make no difference
        return [None if x is None else x.zero_() for x in grads]
    size, kernel_size = grad.shape[2:], round(logits.shape[1] ** 0.5)
    launcher = _launcher(decoder, size, kernel_size)
    of_decoder, *others = grads
    if any(x is not None for x in others):
        launcher("backward_kernels", decoder, size, kernel_size, raw, (grad, *inputs, *others))
    if of_decoder is not None:
        kernels = logits if raw else _normalise(decoder, logits, coarse_logits, gate_logits)
        launcher("backward_decoder", decoder, size, kernel_size, raw, (grad, kernels, of_decoder))
    return grads


def _normalise(decoder: Tensor, logits: Tensor, coarse_logits: Tensor | None, gate_logits: Tensor | None) -> Tensor:
    """The kernels times 1 − g, filled up to a power of two of taps, which lie side by side."""
    from fadeup.kernels.triton import general

    batch, _, *size = logits.shape
    kernel_size = round(logits.shape[1] ** 0.5)
    taps = _taps(kernel_size)
    kernels = torch.empty(batch, *size, taps, dtype=decoder.dtype, device=logits.device).movedim(3, 1)
    tensors, points = (logits, coarse_logits, gate_logits, kernels), max(1, 4096 // taps)
    programs = batch * -(-size[0] * size[1] // points)
    options = {"ACC": _accumulator(decoder), "INDEX": _index_type(tensors), "K": kernel_size, "TAPS": taps, "P": points}
    arguments = (*map(_map, tensors), *decoder.shape[2:], *size)
    launch(general.normalise, lambda meta: (programs,), decoder.device, *arguments, **options)
    return kernels


def window_dot(query: Tensor, key: Tensor, kernel_size: int) -> Tensor:
    """`window_dot`: the gradient of `reassemble` by its weights, with `query` in place of the output's gradient."""
    size = query.shape[2:]
    out = empty((query.shape[0], kernel_size**2, *size), query)
    if query.shape[1] == 0:
        return out.zero_()
    tensors = (query, key, None, None, None, None, out, None, None, None)
    _launcher(key, size, kernel_size)("backward_kernels", key, size, kernel_size, True, tensors)
    return out
