"""What all kernels read: an element of a map by its strides, kernels from logits, the gate.

A map is `(pointer, strides of batch, channel, row, column)`.
"""

# Triton compiles these functions from their source; to a checker of Python their values have no types.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # pyright: ignore[reportAttributeAccessIssue]


@triton.jit
def at(of, b, c, y, x, INDEX: tl.constexpr):
    """Pointers into a map. `INDEX` is the type that holds an offset within one image."""
    image = of[0] + tl.cast(b, tl.int64) * of[1]
    return image + tl.cast(c, INDEX) * of[2] + tl.cast(y, INDEX) * of[3] + tl.cast(x, INDEX) * of[4]


@triton.jit
def logits_at(
    logits, coarse, b, y, x, qy, qx, there, K: tl.constexpr, TAPS: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr
):  # fmt: skip
    """`logits[t, y, x] + coarse[t, qy, qx]` as `(pixels, TAPS)`; 0 beyond K² and in pixels that are not there."""
    t = tl.arange(0, TAPS)[None, :]
    wanted = there[:, None] & (t < K * K)
    values = tl.load(at(logits, b, t, y[:, None], x[:, None], INDEX), mask=wanted, other=0.0).to(ACC)
    if coarse is not None:
        values += tl.load(at(coarse, b, t, qy[:, None], qx[:, None], INDEX), mask=wanted, other=0.0).to(ACC)
    return values


@triton.jit
def peak_of(values, K: tl.constexpr, TAPS: tl.constexpr):
    """Each pixel's largest logit, `exp(logits − largest)`, which is 0 beyond K², and the sum of these."""
    values = tl.where(tl.arange(0, TAPS)[None, :] < K * K, values, float("-inf"))
    top = tl.max(values, 1)
    values = tl.exp(values - top[:, None])
    return top, values, tl.sum(values, 1)


@triton.jit
def kernels_at(
    logits, coarse, b, y, x, qy, qx, there,
    K: tl.constexpr, TAPS: tl.constexpr, RAW: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """`softmax_t(logits[t, y, x] + coarse[t, qy, qx])` as `(pixels, TAPS)`, or where `RAW` the logits as they are."""
    values = logits_at(logits, coarse, b, y, x, qy, qx, there, K, TAPS, ACC, INDEX)
    if not RAW:
        _, values, total = peak_of(values, K, TAPS)
        values = values / total[:, None]
    return values


@triton.jit
def gate_at(gate, b, qy, qx, there, ACC: tl.constexpr, INDEX: tl.constexpr):
    """`sigmoid(gate[qy, qx])`."""
    value = tl.load(at(gate, b, 0, qy, qx, INDEX), mask=there, other=0.0).to(ACC)
    return 1 / (1 + tl.exp(-value))


@triton.jit
def product(a, b):
    """`a @ b`, added up in float32. Factors in float32 are rounded to TF32; others are taken as they are."""
    if INTERPRETED:  # the interpreter would multiply the bits of bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="tf32")
