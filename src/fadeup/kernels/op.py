"""Chooses the implementation, and keeps the promises that do not depend on it: accumulation type and memory format.

An implementation is a module with `reassemble` and `window_dot` over tensors of one dtype. The fused kernels (native on
the CPU, triton on CUDA) are registered operators of torch in place of that: they take and give half precision as it
lies in memory, have a backward pass of their own, and are opaque to `torch.compile`. Nothing above this file knows
which one runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fadeup.kernels import eager, native, reference, triton

IMPLEMENTATIONS = ("reference", "eager", "native", "triton")
_PLAIN: dict[str, ModuleType] = {"reference": reference, "eager": eager}


def choose(impl: str, x: Tensor | None = None) -> str:
    """The implementation of that name, or for `"auto"` the fastest that serves `x`. A named one is used or refused."""
    if impl == "auto":
        return "eager" if x is None or torch.compiler.is_exporting() else _fastest(x)
    if impl not in IMPLEMENTATIONS:
        names = ", ".join(repr(name) for name in ("auto", *IMPLEMENTATIONS))
        raise ValueError(f"impl must be one of {names}, got {impl!r}")
    if impl == "native" and x is not None and x.device.type != "cpu":
        raise ValueError(
            f"impl must be 'auto', 'eager' or 'reference' on {x.device}, got 'native', which is for the CPU"
        )
    if impl == "native" and (reason := native.problem()):
        raise ValueError(
            f"impl must be 'auto', 'eager' or 'reference' here, got 'native', which could not be built ({reason}); "
            f"{native.remedy()}"
        )
    if impl == "triton" and x is not None and (reason := triton.problem(x.device, x.dtype)):
        raise ValueError(
            f"impl must be 'auto', 'eager' or 'reference' for {x.dtype} on {x.device}, got 'triton': {reason}"
        )
    return impl


def _fastest(x: Tensor) -> str:
    if x.device.type == "cpu":
        return "native" if native.is_available() else "eager"
    return "triton" if x.device.type == "cuda" and triton.is_available(x.device, x.dtype) else "eager"


def match_format(out: Tensor, like: Tensor) -> Tensor:
    """`out` in channels-last memory where `like` is, else contiguous."""
    return out.contiguous(memory_format=native.memory_format(like))


def in_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of `x`; meta knows none, and torch 2.10 cannot compile the question."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def _outside_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast would turn the einsum of the reference into bfloat16."""
    return torch.autocast(x.device.type, enabled=False) if in_autocast(x) else nullcontext()


def _wide(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    """Half precision is stored, never summed: 25 products and a softmax are added up in float32."""
    wide = torch.promote_types(dtype, torch.float32)
    return [None if tensor is None else tensor.to(wide) for tensor in tensors]


def _as_wide_as(like: Tensor, x: Tensor | None) -> Tensor | None:
    """`x` in float64 where `like` is, and only there; half precision may stand beside float32."""
    wide = like.dtype == torch.float64
    return x if x is None or wide == (x.dtype == torch.float64) else x.to(like.dtype)


def reassemble(
    decoder: Tensor,
    logits: Tensor,
    coarse_logits: Tensor | None,
    encoder: Tensor | None,
    gate_logits: Tensor | None,
    impl: str,
) -> Tensor:
    """Run `reassemble` of the chosen implementation; the result has the dtype and memory format of `decoder`."""
    chosen = choose(impl, decoder)
    if chosen not in _PLAIN:
        maps = (logits, coarse_logits, encoder, gate_logits)
        return _operator("reassemble", chosen, decoder)(decoder, *(_as_wide_as(decoder, x) for x in maps))
    tensors = _wide(decoder.dtype, decoder, logits, coarse_logits, encoder, gate_logits)
    with _outside_autocast(decoder):
        return match_format(_PLAIN[chosen].reassemble(*tensors).to(decoder.dtype), decoder)


def window_dot(query: Tensor, key: Tensor, kernel_size: int, impl: str) -> Tensor:
    """Run `window_dot` of the chosen implementation; the result has the dtype and memory format of `query`."""
    chosen = choose(impl, query)
    if chosen not in _PLAIN:
        common = torch.promote_types(query.dtype, key.dtype)
        run = _operator("window_dot", chosen, query)
        return run(query.to(common), key.to(common), kernel_size).to(query.dtype)
    tensors = _wide(query.dtype, query, key)
    with _outside_autocast(query):
        return match_format(_PLAIN[chosen].window_dot(*tensors, kernel_size).to(query.dtype), query)


# ---- the registered operators: schema, fake, CPU, CUDA, gradient ----

_MAPS = "Tensor decoder, Tensor logits, Tensor? coarse_logits, Tensor? encoder, Tensor? gate_logits"


def _operator(name: str, implementation: str, x: Tensor) -> Callable[..., Tensor]:
    """The operator that runs a fused implementation; Triton's interpreter is a guest on the CPU, under another name."""
    guest = implementation == "triton" and x.device.type == "cpu"
    return getattr(torch.ops.fadeup, f"interpreted_{name}" if guest else name)


def _present(tensors: Any, needed: Any) -> list[Tensor]:
    """What the backward operators give: the tensors that are there and needed, in order."""
    return [x for x, need in zip(tensors, needed, strict=True) if need and x is not None]


class _Once(Function):
    """A backward operator where a graph of it is asked for: the graph ends in an error, not in a wrong number."""

    @staticmethod
    def forward(ctx, operator, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(operator(*arguments))

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "impl must be 'eager' for second derivatives: the fused kernels have none; use impl='eager' in this "
            "upsampler or function"
        )


def _tracked(arguments: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments)


def _reassemble_fake(decoder, logits, coarse_logits, encoder, gate_logits):
    return native.empty((*decoder.shape[:2], *logits.shape[2:]), decoder)


def _reassemble_backward_fake(grad, decoder, logits, coarse_logits, encoder, gate_logits, needed):
    return [native.empty(x.shape, x) for x in _present((decoder, logits, coarse_logits, encoder, gate_logits), needed)]


def _window_dot_fake(query, key, kernel_size):
    return native.empty((query.shape[0], kernel_size**2, *query.shape[2:]), query)


def _window_dot_backward_fake(grad, query, key, needed):
    return [native.empty(x.shape, x) for x in _present((query, key), needed)]


def _reassemble_backward_of(implementation: ModuleType) -> Callable[..., list[Tensor]]:
    def backward(grad, decoder, logits, coarse_logits, encoder, gate_logits, needed):
        maps = (decoder, logits, coarse_logits, encoder, gate_logits)
        return _present(implementation.backward(grad, *maps, needed), needed)

    return backward


def _window_dot_backward_of(implementation: ModuleType) -> Callable[..., list[Tensor]]:
    """Reassemblies with the scores' gradient for weights."""

    def backward(grad, query, key, needed):
        maps, only_decoder = (key, grad, None, None, None), (True, False, False, False, False)
        grads = [implementation.forward(*maps, raw=True, like=query)] if needed[0] else []
        return grads + (implementation.backward(query, *maps, only_decoder, raw=True)[:1] if needed[1] else [])

    return backward


def _define(prefix: str, devices: dict[str, ModuleType]) -> None:
    """Two operators and their backward operators: schema, fake, what runs on each device, gradient."""
    schemas = {
        "reassemble": (f"({_MAPS}) -> Tensor", _reassemble_fake),
        "reassemble_backward": (f"(Tensor grad, {_MAPS}, bool[5] needed) -> Tensor[]", _reassemble_backward_fake),
        "window_dot": ("(Tensor query, Tensor key, int kernel_size) -> Tensor", _window_dot_fake),
        "window_dot_backward": (
            "(Tensor grad, Tensor query, Tensor key, bool[2] needed) -> Tensor[]",
            _window_dot_backward_fake,
        ),
    }
    for name, (schema, fake) in schemas.items():
        torch.library.define(f"fadeup::{prefix}{name}", schema)
        torch.library.register_fake(f"fadeup::{prefix}{name}", fake)
    for device, module in devices.items():
        runs = {
            "reassemble": module.forward,
            "reassemble_backward": _reassemble_backward_of(module),
            "window_dot": module.window_dot,
            "window_dot_backward": _window_dot_backward_of(module),
        }
        for name, run in runs.items():
            torch.library.impl(f"fadeup::{prefix}{name}", device)(run)
    _with_gradient(f"{prefix}reassemble", 5)
    _with_gradient(f"{prefix}window_dot", 2)


def _with_gradient(name: str, tensors: int) -> None:
    """Register the gradients of an operator, whose first arguments are so many maps, and of its backward operator."""
    run, run_backward = getattr(torch.ops.fadeup, name), getattr(torch.ops.fadeup, f"{name}_backward")

    class Differentiable(Function):
        @staticmethod
        def forward(*arguments):
            with torch._C._AutoDispatchBelowAutograd():
                return run(*arguments)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs[:tensors])

        @staticmethod
        def backward(ctx, grad):  # type: ignore[override]
            needed = ctx.needs_input_grad
            found = iter(run_backward(grad, *ctx.saved_tensors, list(needed[:tensors])))
            return tuple(next(found) if need else None for need in needed)

    def forward_kernel(*arguments):
        if _tracked(arguments):
            return Differentiable.apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return run(*arguments)

    def backward_kernel(*arguments):
        if _tracked(arguments):
            return list(_Once.apply(run_backward, *arguments))  # type: ignore[arg-type]
        with torch._C._AutoDispatchBelowAutograd():
            return run_backward(*arguments)

    torch.library.impl(f"fadeup::{name}", "Autograd")(forward_kernel)
    torch.library.impl(f"fadeup::{name}_backward", "Autograd")(backward_kernel)


_define("", {"CPU": native, "CUDA": triton})
_define("interpreted_", {"CPU": triton})
