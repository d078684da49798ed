"""Chooses the implementation, and keeps the promises that do not depend on it: accumulation type and memory format.

An implementation is a module with `reassemble` and `window_dot` over tensors of one dtype. The fused kernels (native on
the CPU) are registered operators of torch in place of that: they take and give half precision as it lies in memory,
have a backward pass of their own, and are opaque to `torch.compile`. Nothing above this file knows which one runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fadeup.kernels import eager, native, reference

IMPLEMENTATIONS = ("reference", "eager", "native")
_PLAIN: dict[str, ModuleType] = {"reference": reference, "eager": eager}


def choose(impl: str, x: Tensor | None = None) -> str:
    """The implementation of that name, or for `"auto"` the fastest that serves `x`. A named one is used or refused."""
    if impl == "auto":
        fits = x is not None and x.device.type == "cpu" and not torch.compiler.is_exporting()
        return "native" if fits and native.is_available() else "eager"
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
            f"{native.INSTALL}"
        )
    return impl


def match_format(out: Tensor, like: Tensor) -> Tensor:
    """`out` in channels-last memory where `like` is, else contiguous."""
    return out.contiguous(memory_format=native.memory_format(like))


def in_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of `x`; some devices (meta) know no autocast."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


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
    if chosen == "native":
        maps = (logits, coarse_logits, encoder, gate_logits)
        return torch.ops.fadeup.reassemble(decoder, *(_as_wide_as(decoder, x) for x in maps))
    tensors = _wide(decoder.dtype, decoder, logits, coarse_logits, encoder, gate_logits)
    with _outside_autocast(decoder):
        return match_format(_PLAIN[chosen].reassemble(*tensors).to(decoder.dtype), decoder)


def window_dot(query: Tensor, key: Tensor, kernel_size: int, impl: str) -> Tensor:
    """Run `window_dot` of the chosen implementation; the result has the dtype and memory format of `query`."""
    chosen = choose(impl, query)
    if chosen == "native":
        common = torch.promote_types(query.dtype, key.dtype)
        return torch.ops.fadeup.window_dot(query.to(common), key.to(common), kernel_size).to(query.dtype)
    tensors = _wide(query.dtype, query, key)
    with _outside_autocast(query):
        return match_format(_PLAIN[chosen].window_dot(*tensors, kernel_size).to(query.dtype), query)


# ---- the registered operators: schema, fake, CPU, gradient ----

_MAPS = "Tensor decoder, Tensor logits, Tensor? coarse_logits, Tensor? encoder, Tensor? gate_logits"
torch.library.define("fadeup::reassemble", f"({_MAPS}) -> Tensor")
torch.library.define("fadeup::reassemble_backward", f"(Tensor grad, {_MAPS}, bool[5] needed) -> Tensor[]")
torch.library.define("fadeup::window_dot", "(Tensor query, Tensor key, int kernel_size) -> Tensor")
torch.library.define(
    "fadeup::window_dot_backward", "(Tensor grad, Tensor query, Tensor key, bool[2] needed) -> Tensor[]"
)


def _present(tensors: Any, needed: Any) -> list[Tensor]:
    """What the backward operators give: the tensors that are there and needed, in order."""
    return [x for x, need in zip(tensors, needed, strict=True) if need and x is not None]


def _empty(like: Tensor, *shape: Any) -> Tensor:
    return torch.empty(
        shape or like.shape, dtype=like.dtype, device=like.device, memory_format=native.memory_format(like)
    )


@torch.library.register_fake("fadeup::reassemble")
def _(decoder, logits, coarse_logits, encoder, gate_logits):
    return _empty(decoder, *decoder.shape[:2], *logits.shape[2:])


@torch.library.register_fake("fadeup::reassemble_backward")
def _(grad, decoder, logits, coarse_logits, encoder, gate_logits, needed):
    return [_empty(x) for x in _present((decoder, logits, coarse_logits, encoder, gate_logits), needed)]


@torch.library.register_fake("fadeup::window_dot")
def _(query, key, kernel_size):
    return _empty(query, query.shape[0], kernel_size**2, *query.shape[2:])


@torch.library.register_fake("fadeup::window_dot_backward")
def _(grad, query, key, needed):
    return [_empty(x) for x in _present((query, key), needed)]


@torch.library.impl("fadeup::reassemble_backward", "CPU")
def _reassemble_backward_cpu(grad, decoder, logits, coarse_logits, encoder, gate_logits, needed):
    return _present(native.backward(grad, decoder, logits, coarse_logits, encoder, gate_logits, needed), needed)


torch.library.impl("fadeup::reassemble", "CPU")(native.forward)
torch.library.impl("fadeup::window_dot", "CPU")(native.window_dot)
torch.library.impl("fadeup::window_dot_backward", "CPU")(native.window_dot_backward)


class _Reassemble(Function):
    @staticmethod
    def forward(*maps):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.fadeup.reassemble(*maps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        needed = ctx.needs_input_grad
        found = iter(torch.ops.fadeup.reassemble_backward(grad, *ctx.saved_tensors, list(needed)))
        return tuple(next(found) if need else None for need in needed)


class _WindowDot(Function):
    @staticmethod
    def forward(query, key, kernel_size):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.fadeup.window_dot(query, key, kernel_size)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        needed = ctx.needs_input_grad[:2]
        found = iter(torch.ops.fadeup.window_dot_backward(grad, *ctx.saved_tensors, list(needed)))
        return *(next(found) if need else None for need in needed), None


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


def _with_gradient(name: str, function: type[Function]) -> None:
    """Register the gradients of an operator and of its backward operator."""
    forward, backward = getattr(torch.ops.fadeup, name), getattr(torch.ops.fadeup, f"{name}_backward")

    def forward_kernel(*arguments):
        if _tracked(arguments):
            return function.apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return forward(*arguments)

    def backward_kernel(*arguments):
        if _tracked(arguments):
            return list(_Once.apply(backward, *arguments))  # type: ignore[arg-type]
        with torch._C._AutoDispatchBelowAutograd():
            return backward(*arguments)

    torch.library.impl(f"fadeup::{name}", "Autograd")(forward_kernel)
    torch.library.impl(f"fadeup::{name}_backward", "Autograd")(backward_kernel)


_with_gradient("reassemble", _Reassemble)
_with_gradient("window_dot", _WindowDot)
