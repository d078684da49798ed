"""Losses of alpha matting. Values are in 0–1; half-precision predictions are summed in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fadeup.functional import check_count, check_map


def alpha_loss(pred: Tensor, alpha: Tensor, unknown: Tensor) -> Tensor:
    """Charbonnier distance of alphas in the unknown region, the mean over a batch.

        loss[b] = sum over y, x of sqrt((unknown · (pred - alpha))² + 1e-12) / (1 + sum over y, x of unknown)

    The sum runs over the whole crop as published, so that each known pixel adds a constant 1e-6.

    Args:
        pred: Alpha, `(B, 1, H, W)`; values outside 0–1 count as they are.
        alpha: The true one, `(B, 1, H, W)`, 0–1.
        unknown: 1 or True in the unknown region, else 0, `(B, 1, H, W)`.

    Returns:
        A scalar, float32 or float64.

    Raises:
        ValueError: A shape or dtype does not fit.

    Source: Lu et al., FADE, ECCV 2022, which trains matting as Dai et al., A2U, CVPR 2021.
    """
    _check_alphas(pred, alpha)
    return _charbonnier(_difference(pred, alpha), unknown)


def composition_loss(pred: Tensor, alpha: Tensor, foreground: Tensor, background: Tensor, unknown: Tensor) -> Tensor:
    """Charbonnier distance of the pictures that two alphas compose, in the unknown region, the mean over a batch.

        image(a) = a · foreground + (1 - a) · background
        loss[b]  = sum over c, y, x of sqrt((unknown · (image(pred) - image(alpha)))² + 1e-12)
                   / (1 + sum over y, x of unknown)

    Channels are summed and not averaged, and known pixels add 1e-6 for each channel, as published.

    Args:
        pred: Alpha, `(B, 1, H, W)`; values outside 0–1 count as they are.
        alpha: The true one, `(B, 1, H, W)`, 0–1.
        foreground: Colours, `(B, 3, H, W)`, 0–1.
        background: The same.
        unknown: 1 or True in the unknown region, else 0, `(B, 1, H, W)`.

    Returns:
        A scalar, float32 or float64.

    Raises:
        ValueError: A shape or dtype does not fit.

    Source: Xu et al., Deep Image Matting, CVPR 2017; in this form Dai et al., A2U, CVPR 2021.
    """
    _check_alphas(pred, alpha)
    colours = (pred.shape[0], 3, *pred.shape[2:])
    for name, image in (("foreground", foreground), ("background", background)):
        check_map(name, image)
        _check_shape(name, image, colours)
    return _charbonnier(_difference(pred, alpha) * _difference(foreground, background), unknown)


def laplacian_loss(pred: Tensor, alpha: Tensor, levels: int = 5) -> Tensor:
    """Distance of the Laplacian pyramids of two alphas, over all pixels.

        loss = sum over i of 2^i · mean |L[i](pred) - L[i](alpha)|,    i = 0 ... levels - 1
        G[0] = image,    G[i+1] = blur(G[i]) at even rows and columns
        L[i] = G[i] - 4 · blur(G[i+1] among zeros),    the last L[i] = G[i]

    blur is the binomial filter (1, 4, 6, 4, 1) / 16 along rows and columns, its borders reflected. It needs sides of 3
    pixels: the pyramid of a small image ends at the first level that has fewer.

    Args:
        pred: Alpha, `(B, 1, H, W)`, of any size.
        alpha: The true one, `(B, 1, H, W)`, 0–1.
        levels: Levels at most; 1 gives the mean absolute error.

    Returns:
        A scalar, float32 or float64.

    Raises:
        ValueError: A shape or dtype does not fit, or `levels` is no positive whole number.

    Source: Hou and Liu, Context-Aware Image Matting, ICCV 2019; the pyramid is Burt and Adelson's, 1983. That the
    low-pass image is the last level, so that a constant error counts, and the means in place of sums are choices here.
    """
    _check_alphas(pred, alpha)
    check_count("levels", levels)
    current = _difference(pred, alpha)  # the pyramid is linear, so the difference's pyramid is enough
    loss = current.new_zeros(())
    for level in range(levels - 1):
        if min(current.shape[2:]) < 3:
            return loss + 2**level * current.abs().mean()
        smaller = _blur(current)[:, :, ::2, ::2]
        expanded = torch.zeros_like(current)
        expanded[:, :, ::2, ::2] = 4 * smaller
        loss = loss + 2**level * (current - _blur(expanded)).abs().mean()
        current = smaller
    return loss + 2 ** (levels - 1) * current.abs().mean()


def _blur(x: Tensor) -> Tensor:
    # Sums of slices and no convolution, which autocast would take to half precision.
    x = F.pad(x, (2, 2, 2, 2), mode="reflect")
    for dim in (2, 3):
        size = x.shape[dim] - 4
        taps = [x.narrow(dim, start, size) for start in range(5)]
        x = (taps[0] + taps[4] + 4 * (taps[1] + taps[3]) + 6 * taps[2]) / 16
    return x


def _charbonnier(difference: Tensor, unknown: Tensor) -> Tensor:
    if isinstance(unknown, Tensor) and unknown.dtype == torch.bool:
        unknown = unknown.to(difference.dtype)
    check_map("unknown", unknown)
    _check_shape("unknown", unknown, (difference.shape[0], 1, *difference.shape[2:]))
    unknown = unknown.to(difference.dtype)
    distance = ((difference * unknown).square() + 1e-12).sqrt()
    return (distance.sum(dim=(1, 2, 3)) / (unknown.sum(dim=(1, 2, 3)) + 1)).mean()


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """`a - b` in float32 at least: in float16 the constant 1e-12 is 0, and sums over a crop overflow."""
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(dtype) - b.to(dtype)


def _check_alphas(pred: Tensor, alpha: Tensor) -> None:
    check_map("pred", pred, channels=1)
    check_map("alpha", alpha, channels=1)
    _check_shape("alpha", alpha, tuple(pred.shape))


def _check_shape(name: str, x: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(x.shape) != expected:
        raise ValueError(f"{name} must be {expected} like pred, got {tuple(x.shape)}")
