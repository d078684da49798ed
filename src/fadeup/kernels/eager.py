"""One pass per tap of the window in plain PyTorch: no K²-fold buffer, traceable, exportable, twice differentiable.

Written as two autograd functions because autograd, left alone, keeps or allocates a full map per tap; these keep
their inputs and add every tap's gradient into one buffer. Each is made of differentiable operations, so a second
derivative works, and each is the other's gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from fadeup.kernels.reference import blend, kernels, nearest, source_index

Size = tuple[int, int]


def _size(x: Tensor) -> Size:
    return x.shape[2], x.shape[3]


def whole_ratio(in_size: int, out_size: int) -> int:
    """The ratio s for which `(y * in_size) // out_size == y // s` everywhere: s·H for any s, and 2H − 1; else 0."""
    if out_size % in_size == 0:
        return out_size // in_size
    return 2 if out_size == 2 * in_size - 1 else 0


def _source(x: Tensor, kernel_size: int, size: Size) -> tuple[Tensor, Size]:
    """The zero-padded map from which taps are taken, and the ratios (0, 0) where taps must be gathered by index.

    At whole ratios it is upsampled once and each tap is a slice of it, a view that costs nothing.
    """
    padded = F.pad(x, (kernel_size // 2,) * 4)
    ratios = whole_ratio(x.shape[2], size[0]), whole_ratio(x.shape[3], size[1])
    if 0 in ratios:
        return padded, (0, 0)
    return nearest(padded, (padded.shape[2] * ratios[0], padded.shape[3] * ratios[1])), ratios


class _Taps:
    """Where tap t of the window of every output pixel lies in the source."""

    def __init__(self, source: Tensor, kernel_size: int, size: Size, ratios: Size):
        self.kernel_size, self.size, self.ratios = kernel_size, size, ratios
        if not ratios[0]:
            border = kernel_size - 1
            self.rows = source_index(size[0], source.shape[2] - border, source.device)
            self.columns = source_index(size[1], source.shape[3] - border, source.device)

    def _slices(self, t: int) -> tuple[slice, slice, slice, slice]:
        y, x = (shift * ratio for shift, ratio in zip(divmod(t, self.kernel_size), self.ratios, strict=True))
        return slice(None), slice(None), slice(y, y + self.size[0]), slice(x, x + self.size[1])

    def read(self, source: Tensor, t: int) -> Tensor:
        if self.ratios[0]:
            return source[self._slices(t)]
        i, j = divmod(t, self.kernel_size)
        return source.index_select(2, self.rows + i).index_select(3, self.columns + j)

    def add(self, target: Tensor, t: int, values: Tensor, weight: Tensor) -> None:
        if self.ratios[0]:
            target[self._slices(t)].addcmul_(values, weight)
            return
        values = values * weight
        i, j = divmod(t, self.kernel_size)
        rows = values.new_zeros(*target.shape[:3], values.shape[3]).index_add(2, self.rows + i, values)
        target.index_add_(3, self.columns + j, rows)


def _weighted_sum(source: Tensor, weights: Tensor, taps: _Taps) -> Tensor:
    up = weights[:, :1] * taps.read(source, 0)
    for t in range(1, taps.kernel_size**2):
        up = torch.addcmul(up, weights[:, t : t + 1], taps.read(source, t))
    return up


def _scores(query: Tensor, source: Tensor, taps: _Taps) -> Tensor:
    return torch.cat([(query * taps.read(source, t)).sum(1, True) for t in range(taps.kernel_size**2)], dim=1)


def _scatter(values: Tensor, weights: Tensor, source: Tensor, taps: _Taps) -> Tensor:
    target = torch.zeros_like(source)
    for t in range(taps.kernel_size**2):
        taps.add(target, t, values, weights[:, t : t + 1])
    return target


def _gathered(x: Tensor, kernel_size: int, size: Size) -> Iterator[tuple[int, Tensor]]:
    """Each tap's number and map by computed indices, so that an exported graph serves every size.

    Columns are gathered once per shift, in the few rows of the source: onnxruntime copies columns value by value and
    rows at once.
    """
    source = F.pad(x, (kernel_size // 2,) * 4)
    taps = _Taps(source, kernel_size, size, (0, 0))
    rows = [taps.rows + i for i in range(kernel_size)]
    for j in range(kernel_size):
        shifted = source.index_select(3, taps.columns + j)
        for i in range(kernel_size):
            yield i * kernel_size + j, shifted.index_select(2, rows[i])


def _exported_sum(decoder: Tensor, weights: Tensor, kernel_size: int) -> Tensor:
    parts = weights.split(1, dim=1)
    return reduce(torch.add, (parts[t] * tap for t, tap in _gathered(decoder, kernel_size, _size(weights))))


def _exported_dot(query: Tensor, key: Tensor, kernel_size: int) -> Tensor:
    scores = {t: (query * tap).sum(1, True) for t, tap in _gathered(key, kernel_size, _size(query))}
    return torch.cat([scores[t] for t in sorted(scores)], dim=1)


class _WindowSum(torch.autograd.Function):
    """`Σ_t weights[t] · tap_t(source)`."""

    @staticmethod
    def forward(source: Tensor, weights: Tensor, kernel_size: int, ratios: Size) -> Tensor:
        return _weighted_sum(source, weights, _Taps(source, kernel_size, _size(weights), ratios))

    @staticmethod
    def setup_context(ctx, inputs, output):
        source, weights, ctx.kernel_size, ctx.ratios = inputs
        ctx.save_for_backward(source, weights)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        source, weights = ctx.saved_tensors
        taps = _Taps(source, ctx.kernel_size, _size(weights), ctx.ratios)
        grad_source = _scatter(grad, weights, source, taps) if ctx.needs_input_grad[0] else None
        grad_weights = _scores(grad, source, taps) if ctx.needs_input_grad[1] else None
        return grad_source, grad_weights, None, None


class _WindowDot(torch.autograd.Function):
    """`Σ_c query[c] · tap_t(source)[c]` for every tap t."""

    @staticmethod
    def forward(query: Tensor, source: Tensor, kernel_size: int, ratios: Size) -> Tensor:
        return _scores(query, source, _Taps(source, kernel_size, _size(query), ratios))

    @staticmethod
    def setup_context(ctx, inputs, output):
        query, source, ctx.kernel_size, ctx.ratios = inputs
        ctx.save_for_backward(query, source)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        query, source = ctx.saved_tensors
        taps = _Taps(source, ctx.kernel_size, _size(query), ctx.ratios)
        grad_query = _weighted_sum(source, grad, taps) if ctx.needs_input_grad[0] else None
        grad_source = _scatter(query, grad, source, taps) if ctx.needs_input_grad[1] else None
        return grad_query, grad_source, None, None


def reassemble(
    decoder: Tensor, logits: Tensor, coarse_logits: Tensor | None, encoder: Tensor | None, gate_logits: Tensor | None
) -> Tensor:
    """`fadeup.functional.reassemble`, tap by tap."""
    kernel_size = round(logits.shape[1] ** 0.5)
    weights = kernels(logits, coarse_logits)
    if torch.compiler.is_exporting():
        return blend(_exported_sum(decoder, weights, kernel_size), encoder, gate_logits)
    source, ratios = _source(decoder, kernel_size, _size(logits))
    up = _WindowSum.apply(source, weights, kernel_size, ratios)
    return blend(up, encoder, gate_logits)  # type: ignore[arg-type]


def window_dot(query: Tensor, key: Tensor, kernel_size: int) -> Tensor:
    """`fadeup.functional.window_dot`, tap by tap."""
    if torch.compiler.is_exporting():
        return _exported_dot(query, key, kernel_size)
    source, ratios = _source(key, kernel_size, _size(query))
    return _WindowDot.apply(query, source, kernel_size, ratios)  # type: ignore[return-value]
