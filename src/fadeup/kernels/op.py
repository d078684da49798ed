"""Chooses the implementation, and keeps the promises that do not depend on it: accumulation type and memory format.

An implementation is a module with `reassemble` and `window_dot` over tensors of one dtype. A faster one is added to
`IMPLEMENTATIONS` and to the preference in `choose`; nothing above this file knows which one runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import torch
from torch import Tensor

from fadeup.kernels import eager, reference

IMPLEMENTATIONS: dict[str, ModuleType] = {"reference": reference, "eager": eager}


def choose(impl: str) -> ModuleType:
    """The implementation of that name, or for `"auto"` the fastest that fits. A named one is used or refused."""
    if impl == "auto":
        return eager
    if impl not in IMPLEMENTATIONS:
        names = ", ".join(repr(name) for name in ("auto", *IMPLEMENTATIONS))
        raise ValueError(f"impl must be one of {names}, got {impl!r}")
    return IMPLEMENTATIONS[impl]


def match_format(out: Tensor, like: Tensor) -> Tensor:
    """`out` in channels-last memory where `like` is, else contiguous."""
    if like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        return out.contiguous(memory_format=torch.channels_last)
    return out.contiguous()


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


def reassemble(
    decoder: Tensor,
    logits: Tensor,
    coarse_logits: Tensor | None,
    encoder: Tensor | None,
    gate_logits: Tensor | None,
    impl: str,
) -> Tensor:
    """Run `reassemble` of the chosen implementation; the result has the dtype and memory format of `decoder`."""
    tensors = _wide(decoder.dtype, decoder, logits, coarse_logits, encoder, gate_logits)
    with _outside_autocast(decoder):
        return match_format(choose(impl).reassemble(*tensors).to(decoder.dtype), decoder)


def window_dot(query: Tensor, key: Tensor, kernel_size: int, impl: str) -> Tensor:
    """Run `window_dot` of the chosen implementation; the result has the dtype and memory format of `query`."""
    tensors = _wide(query.dtype, query, key)
    with _outside_autocast(query):
        return match_format(choose(impl).window_dot(*tensors, kernel_size).to(query.dtype), query)
