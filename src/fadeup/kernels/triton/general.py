"""Any type, kernel size and ratio: sums over windows tap by tap.

`forward` goes by output pixels; the gradients go by decoder points and gather what the pixels above them give, so that
every element has one writer: no atomics, and the same bits in every run.
"""

# Triton compiles these functions from their source; to a checker of Python their values have no types.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from fadeup.kernels.triton.parts import at, gate_at, kernels_at, logits_at, peak_of


@triton.jit
def below(y, H, OH, INDEX: tl.constexpr):
    """The decoder row (column) beneath a row of the output: `(y · H) // H'`."""
    return (tl.cast(y, INDEX) * H // OH).to(tl.int32)


@triton.jit
def above(qy, H, OH, INDEX: tl.constexpr):
    """The first row (column) of the output above a decoder row."""
    return ((tl.cast(qy, INDEX) * OH + H - 1) // H).to(tl.int32)


@triton.jit
def points_of(size, width, P: tl.constexpr):
    """The image of a program and its P points in row-major order: rows, columns, and which are there."""
    parts = tl.cdiv(size, P)
    n = tl.program_id(0) % parts * P + tl.arange(0, P)
    return tl.program_id(0) // parts, n // width, n % width, n < size


@triton.jit
def normalise(
    logits, coarse, gate, kernels, H, W, OH, OW,
    ACC: tl.constexpr, INDEX: tl.constexpr, K: tl.constexpr, TAPS: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """`(1 − g) · softmax(logits + coarse)`, zero beyond K²: each is read by K² points of the decoder's gradient."""
    b, y, x, there = points_of(OH * OW, OW, P)
    qy, qx = below(y, H, OH, INDEX), below(x, W, OW, INDEX)
    values = kernels_at(logits, coarse, b, y, x, qy, qx, there, K, TAPS, False, ACC, INDEX)
    if gate is not None:
        values *= (1 - gate_at(gate, b, qy, qx, there, ACC, INDEX))[:, None]
    place = at(kernels, b, tl.arange(0, TAPS)[None, :], y[:, None], x[:, None], INDEX)
    tl.store(place, values.to(kernels[0].dtype.element_ty), mask=there[:, None])


@triton.jit
def forward(
    decoder, logits, coarse, encoder, gate, out, C, H, W, OH, OW,
    RAW: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, K: tl.constexpr, TAPS: tl.constexpr,
    P: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """`out = g · encoder + (1 − g) · Σ_t kernels_t · decoder_t`; where `RAW`, `logits` are the kernels themselves."""
    b, y, x, there = points_of(OH * OW, OW, P)
    qy, qx = below(y, H, OH, INDEX), below(x, W, OW, INDEX)
    c = tl.program_id(1) * CB + tl.arange(0, CB)[None, :]
    known = there[:, None] & (c < C)
    if not RAW:
        values = logits_at(logits, coarse, b, y, x, qy, qx, there, K, TAPS, ACC, INDEX)
        top, values, total = peak_of(values, K, TAPS)
        share = 1 / total
    up = tl.zeros((P, CB), ACC)
    centre = at(decoder, b, c, qy[:, None], qx[:, None], INDEX)
    fine = at(logits, b, 0, y, x, INDEX)
    if coarse is not None:
        shared = at(coarse, b, 0, qy, qx, INDEX)
    for i in range(K):
        dy = i - K // 2
        in_rows = (qy + dy >= 0) & (qy + dy < H)
        for j in range(K):
            dx, t = j - K // 2, tl.cast(i * K + j, INDEX)
            inside = in_rows & (qx + dx >= 0) & (qx + dx < W)
            kernel = tl.load(fine + t * logits[2], mask=there, other=0.0).to(ACC)
            if coarse is not None:
                kernel += tl.load(shared + t * coarse[2], mask=there, other=0.0).to(ACC)
            if not RAW:
                kernel = tl.exp(kernel - top) * share
            step = tl.cast(dy, INDEX) * decoder[3] + tl.cast(dx, INDEX) * decoder[4]
            window = tl.load(centre + step, mask=inside[:, None] & known, other=0.0).to(ACC)
            up += kernel[:, None] * window
    if gate is not None:
        g = gate_at(gate, b, qy, qx, there, ACC, INDEX)[:, None]
        detail = tl.load(at(encoder, b, c, y[:, None], x[:, None], INDEX), mask=known, other=0.0).to(ACC)
        up = g * detail + (1 - g) * up
    tl.store(at(out, b, c, y[:, None], x[:, None], INDEX), up.to(out[0].dtype.element_ty), mask=known)


@triton.jit
def backward_kernels(
    grad, decoder, logits, coarse, encoder, gate, grad_logits, grad_coarse, grad_encoder, grad_gate, C, H, W, OH, OW,
    RAW: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, K: tl.constexpr, TAPS: tl.constexpr,
    P: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Gradients of all maps but the decoder; where `RAW`, the scores `Σ_c grad · decoder_t` alone."""
    b, qy, qx, low = points_of(H * W, W, P)
    taps = tl.arange(0, TAPS)[None, :]
    of_coarse = tl.zeros((P, TAPS), ACC)
    of_gate = tl.zeros((P,), ACC)
    if gate is not None:
        g = gate_at(gate, b, qy, qx, low, ACC, INDEX)
    rows, columns = above(qy, H, OH, INDEX), above(qx, W, OW, INDEX)
    last_rows, last_columns = above(qy + 1, H, OH, INDEX), above(qx + 1, W, OW, INDEX)
    for child in range(tl.cdiv(OH, H) * tl.cdiv(OW, W)):
        y, x = rows + child // tl.cdiv(OW, W), columns + child % tl.cdiv(OW, W)
        there = low & (y < last_rows) & (x < last_columns)
        given = tl.zeros((P, TAPS), ACC)
        through = tl.zeros((P,), ACC)
        for first in range(0, C, CB):
            c = first + tl.arange(0, CB)[None, :]
            known = there[:, None] & (c < C)
            part = tl.load(at(grad, b, c, y[:, None], x[:, None], INDEX), mask=known, other=0.0).to(ACC)
            if grad_gate is not None:
                detail = tl.load(at(encoder, b, c, y[:, None], x[:, None], INDEX), mask=known, other=0.0).to(ACC)
                through += tl.sum(part * detail, 1)
            if grad_encoder is not None:
                kept = (g[:, None] * part).to(grad_encoder[0].dtype.element_ty)
                tl.store(at(grad_encoder, b, c, y[:, None], x[:, None], INDEX), kept, mask=known)
            centre = at(decoder, b, c, qy[:, None], qx[:, None], INDEX)
            for i in range(K):
                dy = i - K // 2
                in_rows = (qy + dy >= 0) & (qy + dy < H)
                for j in range(K):
                    dx = j - K // 2
                    inside = in_rows & (qx + dx >= 0) & (qx + dx < W)
                    step = tl.cast(dy, INDEX) * decoder[3] + tl.cast(dx, INDEX) * decoder[4]
                    window = tl.load(centre + step, mask=inside[:, None] & known, other=0.0).to(ACC)
                    given += tl.where(taps == i * K + j, tl.sum(part * window, 1)[:, None], 0.0)
        wanted = there[:, None] & (taps < K * K)
        if not RAW:
            kernels = kernels_at(logits, coarse, b, y, x, qy, qx, there, K, TAPS, RAW, ACC, INDEX)
            through_up = tl.sum(kernels * given, 1)
            given = kernels * (given - through_up[:, None])
            if gate is not None:
                given *= (1 - g)[:, None]
                of_gate += tl.where(there, g * (1 - g) * (through - through_up), 0.0)
            of_coarse += tl.where(wanted, given, 0.0)
        if grad_logits is not None:
            given = given.to(grad_logits[0].dtype.element_ty)
            tl.store(at(grad_logits, b, taps, y[:, None], x[:, None], INDEX), given, mask=wanted)
    if grad_gate is not None:
        tl.store(at(grad_gate, b, 0, qy, qx, INDEX), of_gate.to(grad_gate[0].dtype.element_ty), mask=low)
    if grad_coarse is not None:
        of_coarse = of_coarse.to(grad_coarse[0].dtype.element_ty)
        wanted = low[:, None] & (taps < K * K)
        tl.store(at(grad_coarse, b, taps, qy[:, None], qx[:, None], INDEX), of_coarse, mask=wanted)


@triton.jit
def backward_decoder(
    grad, kernels, grad_decoder, C, H, W, OH, OW,
    ACC: tl.constexpr, INDEX: tl.constexpr, K: tl.constexpr, P: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """`Σ kernels_t · grad` over the pixels in whose windows a decoder point is tap t."""
    b, my, mx, low = points_of(H * W, W, P)
    c = tl.program_id(1) * CB + tl.arange(0, CB)[None, :]
    mine = low[:, None] & (c < C)
    gathered = tl.zeros((P, CB), ACC)
    for i in range(K):
        qy = my - i + K // 2
        rows, last_rows = above(qy, H, OH, INDEX), above(qy + 1, H, OH, INDEX)
        for j in range(K):
            qx = mx - j + K // 2
            columns, last_columns = above(qx, W, OW, INDEX), above(qx + 1, W, OW, INDEX)
            inside = low & (qy >= 0) & (qy < H) & (qx >= 0) & (qx < W)
            for child in range(tl.cdiv(OH, H) * tl.cdiv(OW, W)):
                y, x = rows + child // tl.cdiv(OW, W), columns + child % tl.cdiv(OW, W)
                there = inside & (y < last_rows) & (x < last_columns)
                kernel = tl.load(at(kernels, b, i * K + j, y, x, INDEX), mask=there, other=0.0).to(ACC)
                known = there[:, None] & mine
                part = tl.load(at(grad, b, c, y[:, None], x[:, None], INDEX), mask=known, other=0.0).to(ACC)
                gathered += kernel[:, None] * part
    gathered = gathered.to(grad_decoder[0].dtype.element_ty)
    tl.store(at(grad_decoder, b, c, my[:, None], mx[:, None], INDEX), gathered, mask=mine)
