"""The specification: unfold, softmax, weighted sum. Any dtype, any device, differentiable, slow and hungry."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def source_index(out_size: int, in_size: int, device: torch.device | None = None) -> Tensor:
    """Index of the low-resolution point above which each output position lies: `(y * in_size) // out_size`.

    Written in integers. `F.interpolate(mode="nearest")` rounds in float32 and differs for some ratios, though never
    for `out_size` of `2 * in_size` or `2 * in_size - 1`.
    """
    return torch.arange(out_size, device=device) * in_size // out_size


def nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour upsampling of `(B, C, H, W)` by the integer rule of `source_index`."""
    height, width = x.shape[2], x.shape[3]
    exporting = torch.compiler.is_exporting()
    if not exporting:  # a comparison of sizes would fix the ratio in the exported graph
        if (height, width) == size:
            return x
        if (2 * height, 2 * width) == size:
            return F.interpolate(x, size, mode="nearest")  # the same points, five times faster than indexing
    rows = source_index(size[0], height, x.device)
    columns = source_index(size[1], width, x.device)
    if exporting:  # onnxruntime copies columns value by value, rows at once: fewer rows first
        return x.index_select(3, columns).index_select(2, rows)
    return x.index_select(2, rows).index_select(3, columns)


def window(x: Tensor, kernel_size: int, size: tuple[int, int]) -> Tensor:
    """The source window of every output pixel, `(B, C, K*K, H', W')`, zero outside `x`."""
    batch, channels, height, width = x.shape
    columns = F.unfold(x, kernel_size, padding=kernel_size // 2)
    columns = columns.reshape(batch, channels * kernel_size**2, height, width)
    return nearest(columns, size).reshape(batch, channels, kernel_size**2, *size)


def kernels(logits: Tensor, coarse_logits: Tensor | None) -> Tensor:
    """Softmax over the window of fine plus coarse logits, `(B, K*K, H', W')`."""
    if coarse_logits is not None:
        logits = logits + nearest(coarse_logits, (logits.shape[2], logits.shape[3]))
    return logits.softmax(dim=1)


def blend(up: Tensor, encoder: Tensor | None, gate_logits: Tensor | None) -> Tensor:
    """`g * encoder + (1 - g) * up` with `g = sigmoid(gate_logits)`; `up` where there is no gate (FADE, equation 4)."""
    if encoder is None or gate_logits is None:
        return up
    gate = nearest(gate_logits, (up.shape[2], up.shape[3])).sigmoid()
    return gate * encoder + (1 - gate) * up


def reassemble(
    decoder: Tensor, logits: Tensor, coarse_logits: Tensor | None, encoder: Tensor | None, gate_logits: Tensor | None
) -> Tensor:
    """`fadeup.functional.reassemble` as its formula is written."""
    kernel_size = round(logits.shape[1] ** 0.5)
    windows = window(decoder, kernel_size, (logits.shape[2], logits.shape[3]))
    up = torch.einsum("bckyx,bkyx->bcyx", windows, kernels(logits, coarse_logits))
    return blend(up, encoder, gate_logits)


def window_dot(query: Tensor, key: Tensor, kernel_size: int) -> Tensor:
    """`fadeup.functional.window_dot` as its formula is written."""
    windows = window(key, kernel_size, (query.shape[2], query.shape[3]))
    return torch.einsum("bcyx,bckyx->bkyx", query, windows)
