"""Half precision at exact 2x: sums over windows as products of small matrices, on tensor cores.

A program owns a tile of TH x TW decoder points, the 4·TH·TW output pixels above them (P) and the points that their
windows cover (S). Kernels become a matrix of P x S, zero outside each pixel's window, and

    up = kernels @ decoder,    scores = grad @ decoderᵀ,    grad_decoder = kernelsᵀ @ grad

More than half of each matrix is zeros, which costs nothing that counts: memory is the bound, and the products take a
tenth of its time. The same points are above and below each other at 2H − 1, so that size is served too.
"""

# Triton compiles these functions from their source; to a checker of Python their values have no types.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from fadeup.kernels.triton.parts import at, gate_at, kernels_at, product


@triton.jit
def tile_of(program, H, W, TH: tl.constexpr, TW: tl.constexpr):
    """The image, and the first row and column, of a program's tile of decoder points."""
    rows, columns = tl.cdiv(H, TH), tl.cdiv(W, TW)
    place = program % (rows * columns)
    return program // (rows * columns), place // columns * TH, place % columns * TW


@triton.jit
def pixels_of(parent, qy, qx, H, W, OH, OW):
    """The output pixels above decoder points, four by four: rows, columns, and which of them are there."""
    child = tl.arange(0, parent.shape[0]) % 4
    y, x = 2 * qy + child // 2, 2 * qx + child % 2
    return y, x, (qy >= 0) & (qy < H) & (qx >= 0) & (qx < W) & (y < OH) & (x < OW)


@triton.jit
def band(kernels, ty, tx, K: tl.constexpr):
    """Kernels of `(P, taps)` as a matrix of `(P, points)`, where `ty, tx` say which tap a point is to a pixel."""
    inside = (ty >= 0) & (ty < K) & (tx >= 0) & (tx < K)
    return tl.where(inside, tl.gather(kernels, tl.where(inside, ty * K + tx, 0), 1), 0.0)


@triton.jit
def forward(
    decoder, logits, coarse, encoder, gate, out, C, H, W, OH, OW,
    RAW: tl.constexpr, INDEX: tl.constexpr, K: tl.constexpr, TAPS: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, S: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """`out = g · encoder + (1 − g) · kernels @ decoder`; where `RAW`, `logits` are the kernels themselves."""
    SW: tl.constexpr = TW + K - 1
    b, top, left = tile_of(tl.program_id(0), H, W, TH, TW)
    parent = tl.arange(0, 4 * TH * TW) // 4
    qy, qx = top + parent // TW, left + parent % TW
    y, x, there = pixels_of(parent, qy, qx, H, W, OH, OW)
    kernels = kernels_at(logits, coarse, b, y, x, qy, qx, there, K, TAPS, RAW, tl.float32, INDEX)
    s = tl.arange(0, S)
    matrix = band(kernels, (s // SW)[None, :] - (parent // TW)[:, None], (s % SW)[None, :] - (parent % TW)[:, None], K)
    matrix = matrix.to(decoder[0].dtype.element_ty)
    sy, sx = top + s // SW - K // 2, left + s % SW - K // 2
    covered = (s < SW * (TH + K - 1)) & (sy >= 0) & (sy < H) & (sx >= 0) & (sx < W)
    if gate is not None:
        g = gate_at(gate, b, qy, qx, there, tl.float32, INDEX)[:, None]
    for first in range(0, C, CB):
        c = first + tl.arange(0, CB)[None, :]
        window = tl.load(at(decoder, b, c, sy[:, None], sx[:, None], INDEX), mask=covered[:, None] & (c < C), other=0.0)
        up = product(matrix, window)
        known = there[:, None] & (c < C)
        if gate is not None:
            detail = tl.load(at(encoder, b, c, y[:, None], x[:, None], INDEX), mask=known, other=0.0).to(tl.float32)
            up = g * detail + (1 - g) * up
        tl.store(at(out, b, c, y[:, None], x[:, None], INDEX), up.to(out[0].dtype.element_ty), mask=known)


@triton.jit
def backward_kernels(
    grad, decoder, logits, coarse, encoder, gate, grad_logits, grad_coarse, grad_encoder, grad_gate, C, H, W, OH, OW,
    RAW: tl.constexpr, INDEX: tl.constexpr, K: tl.constexpr, TAPS: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, S: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Gradients of all maps but the decoder, in one pass over the output's gradient; where `RAW`, its scores alone."""
    P: tl.constexpr = 4 * TH * TW
    SW: tl.constexpr = TW + K - 1
    b, top, left = tile_of(tl.program_id(0), H, W, TH, TW)
    parent = tl.arange(0, P) // 4
    qy, qx = top + parent // TW, left + parent % TW
    y, x, there = pixels_of(parent, qy, qx, H, W, OH, OW)
    s = tl.arange(0, S)
    sy, sx = top + s // SW - K // 2, left + s % SW - K // 2
    covered = (s < SW * (TH + K - 1)) & (sy >= 0) & (sy < H) & (sx >= 0) & (sx < W)
    scores = tl.zeros((P, S), tl.float32)
    if gate is not None:
        g = gate_at(gate, b, qy, qx, there, tl.float32, INDEX)
        through = tl.zeros((P,), tl.float32)
    for first in range(0, C, CB):
        c = first + tl.arange(0, CB)[None, :]
        known = there[:, None] & (c < C)
        part = tl.load(at(grad, b, c, y[:, None], x[:, None], INDEX), mask=known, other=0.0)
        window = tl.load(at(decoder, b, c, sy[:, None], sx[:, None], INDEX), mask=covered[:, None] & (c < C), other=0.0)
        scores += product(part, tl.trans(window))
        if gate is not None:
            if grad_gate is not None:
                detail = tl.load(at(encoder, b, c, y[:, None], x[:, None], INDEX), mask=known, other=0.0)
                through += tl.sum(part.to(tl.float32) * detail.to(tl.float32), 1)
            if grad_encoder is not None:
                kept = (g[:, None] * part.to(tl.float32)).to(grad_encoder[0].dtype.element_ty)
                tl.store(at(grad_encoder, b, c, y[:, None], x[:, None], INDEX), kept, mask=known)
    t = tl.arange(0, TAPS)[None, :]
    point = (parent // TW)[:, None] * SW + (parent % TW)[:, None] + t // K * SW + t % K
    given = tl.gather(scores, tl.where(t < K * K, point, 0), 1)
    wanted = there[:, None] & (t < K * K)
    if not RAW:
        kernels = kernels_at(logits, coarse, b, y, x, qy, qx, there, K, TAPS, RAW, tl.float32, INDEX)
        through_up = tl.sum(tl.where(t < K * K, kernels * given, 0.0), 1)
        given = kernels * (given - through_up[:, None])
        if gate is not None:
            given *= (1 - g)[:, None]
            if grad_gate is not None:
                of_gate = tl.where(there, g * (1 - g) * (through - through_up), 0.0)
                of_gate = tl.sum(tl.reshape(of_gate, (P // 4, 4)), 1)
        if grad_coarse is not None:
            of_coarse = tl.sum(tl.reshape(tl.where(wanted, given, 0.0), (P // 4, 4, TAPS)), 1)
        q = tl.arange(0, P // 4)
        qy, qx = top + q // TW, left + q % TW
        low = (qy < H) & (qx < W)
        if grad_gate is not None:
            tl.store(at(grad_gate, b, 0, qy, qx, INDEX), of_gate.to(grad_gate[0].dtype.element_ty), mask=low)
        if grad_coarse is not None:
            tl.store(
                at(grad_coarse, b, t, qy[:, None], qx[:, None], INDEX),
                of_coarse.to(grad_coarse[0].dtype.element_ty), mask=low[:, None] & (t < K * K),
            )  # fmt: skip
    if grad_logits is not None:
        tl.store(
            at(grad_logits, b, t, y[:, None], x[:, None], INDEX),
            given.to(grad_logits[0].dtype.element_ty), mask=wanted,
        )  # fmt: skip


@triton.jit
def backward_decoder(
    grad, kernels, grad_decoder, C, H, W, OH, OW,
    INDEX: tl.constexpr, K: tl.constexpr, TAPS: tl.constexpr, GIVEN: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, PARENTS: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """`kernelsᵀ @ grad` over the pixels whose windows reach the tile, those of sixteen decoder points at a time."""
    PW: tl.constexpr = TW + K - 1
    b, top, left = tile_of(tl.program_id(0), H, W, TH, TW)
    c = tl.program_id(1) * CB + tl.arange(0, CB)[None, :]
    m = tl.arange(0, TH * TW)
    t = tl.arange(0, TAPS)[None, :]
    total = tl.zeros((TH * TW, CB), tl.float32)
    for first in range(0, PARENTS, 16):
        parent = first + tl.arange(0, 64) // 4
        qy, qx = top + parent // PW - K // 2, left + parent % PW - K // 2
        y, x, there = pixels_of(parent, qy, qx, H, W, OH, OW)
        there &= parent < PW * (TH + K - 1)
        place = at(kernels, b, t, y[:, None], x[:, None], INDEX)
        given = tl.load(place, mask=there[:, None] & (t < GIVEN), other=0.0)
        ty = (m // TW)[None, :] - (parent // PW)[:, None] + K - 1
        tx = (m % TW)[None, :] - (parent % PW)[:, None] + K - 1
        part = tl.load(at(grad, b, c, y[:, None], x[:, None], INDEX), mask=there[:, None] & (c < C), other=0.0)
        total += product(tl.trans(band(given, ty, tx, K).to(part.dtype)), part)
    my, mx = top + m // TW, left + m % TW
    wanted = ((my < H) & (mx < W))[:, None] & (c < C)
    total = total.to(grad_decoder[0].dtype.element_ty)
    tl.store(at(grad_decoder, b, c, my[:, None], mx[:, None], INDEX), total, mask=wanted)
