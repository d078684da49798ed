"""SAD, MSE, Grad and Conn of alpha mattes in the unknown region, equal to the MATLAB code of the benchmark.

Units are those of the papers' tables: SAD, Grad and Conn in thousands, MSE as it is. A table's value is the mean over
its test pictures. On uint8 mattes the values agree with MATLAB's to single precision; widely used Python versions
differ, in Grad by 0.1 % and in Conn by 5 %.

A matte is uint8 0 to 255 or floats 0 to 1. Floats are used as they are, while the tables' numbers were taken from
8-bit files: to compare with them, pass `(255 * pred).astype(np.uint8)`, which cuts off as the authors' code does.

Source: Xu et al., Deep Image Matting, CVPR 2017 (evaluation code, 2018); Rhemann et al., A Perceptually Motivated
Online Benchmark for Image Matting, CVPR 2009 (Grad and Conn).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Matte = np.ndarray | Tensor

SIGMA = 1.4
RADIUS = math.ceil(SIGMA * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * SIGMA * 0.01)))  # 4; beyond, below 0.01
STEPS = 10
TOLERANCE = 0.15


def unknown_region(trimap: Matte) -> np.ndarray:
    """The unknown region of a trimap.

        unknown = 64 <= t <= 191,    t = trimap of uint8, round(255 * trimap) of floats

    so that smaller values are background, larger ones foreground, and a trimap of 0, 128 and 255, or of 0, 0.5 and 1,
    is read as meant, also after lossy compression. MATLAB's code counts pixels of exactly 128.

    Args:
        trimap: `(H, W)`, uint8 0 to 255 or floats 0 to 1.

    Returns:
        Bool, `(H, W)`.

    Raises:
        ValueError: `trimap` is no such map, or no pixel is unknown.
    """
    values = 255 * _matte("trimap", trimap)
    unknown = (values >= 63.5) & (values < 191.5)
    if not unknown.any():
        low, high = float(values.min()), float(values.max())
        raise ValueError(
            f"trimap must have unknown pixels, 64 to 191 of 255, got none among {low:g} to {high:g}; "
            "mark the region to score with 128 in a uint8 trimap, with 0.5 in one of floats"
        )
    return unknown


def sad(pred: Matte, alpha: Matte, trimap: Matte) -> float:
    """Sum of absolute differences in thousands: `sum |pred - alpha| / 1000` over unknown pixels, mattes in 0–1.

    Args:
        pred: Predicted matte, `(H, W)`, uint8 0 to 255 or floats 0 to 1.
        alpha: True matte, the same.
        trimap: As in `unknown_region`.

    Returns:
        0 is best.

    Raises:
        ValueError: An input is no such map, sizes differ, or no pixel is unknown.
    """
    return _sad(*_case(pred, alpha, trimap))


def mse(pred: Matte, alpha: Matte, trimap: Matte) -> float:
    """Mean squared error: the mean of `(pred - alpha)²` over unknown pixels, mattes in 0–1.

    Args:
        pred: Predicted matte, `(H, W)`, uint8 0 to 255 or floats 0 to 1.
        alpha: True matte, the same.
        trimap: As in `unknown_region`.

    Returns:
        0 to 1, 0 is best.

    Raises:
        ValueError: As `sad`.
    """
    return _mse(*_case(pred, alpha, trimap))


def grad(pred: Matte, alpha: Matte, trimap: Matte) -> float:
    """Gradient error in thousands.

        sum (|∇pred| - |∇alpha|)² / 1000 over unknown pixels

    Each matte is first stretched to 0–1 over the whole picture. The gradient is a convolution with the derivatives of
    a Gaussian of σ = 1.4 on 9 x 9 points, each of unit L2 norm, with the border replicated. A constant matte, for which
    stretching is undefined, has no gradient.

    Args:
        pred: Predicted matte, `(H, W)`, uint8 0 to 255 or floats 0 to 1.
        alpha: True matte, the same.
        trimap: As in `unknown_region`.

    Returns:
        0 is best.

    Raises:
        ValueError: As `sad`.
        ModuleNotFoundError: OpenCV is not installed.
    """
    return _grad(*_case(pred, alpha, trimap))


def conn(pred: Matte, alpha: Matte, trimap: Matte) -> float:
    """Connectivity error in thousands.

        sum |φ(pred) - φ(alpha)| / 1000 over unknown pixels,    φ(a) = 1 - d [d >= 0.15],    d = a - l

    where `l` is the level up to which a pixel is connected to the object: of the thresholds i / 10, i = 1 .. 10, the
    one before the first whose Ω lacks the pixel, and 1 where none lacks it. Ω of a threshold is the largest
    4-connected component of the pixels that reach it in both mattes; of equally large ones the first by columns. A
    threshold that no pixel reaches is passed over. Computed in single precision, in which α = 153 / 255 reaches 0.6.

    Args:
        pred: Predicted matte, `(H, W)`, uint8 0 to 255 or floats 0 to 1.
        alpha: True matte, the same.
        trimap: As in `unknown_region`.

    Returns:
        0 is best.

    Raises:
        ValueError: As `sad`.
        ModuleNotFoundError: OpenCV is not installed.
    """
    return _conn(*_case(pred, alpha, trimap))


def matting_statistics(pred: Matte, alpha: Matte, trimap: Matte) -> dict[str, float]:
    """All four scores of one picture, from inputs that are read once.

    Args:
        pred: Predicted matte, `(H, W)`, uint8 0 to 255 or floats 0 to 1.
        alpha: True matte, the same.
        trimap: As in `unknown_region`.

    Returns:
        `"sad"`, `"mse"`, `"grad"` and `"conn"` with the values of the functions of these names.

    Raises:
        ValueError: As `sad`.
        ModuleNotFoundError: OpenCV is not installed.
    """
    case = _case(pred, alpha, trimap)
    return {name: score(*case) for name, score in _SCORES.items()}


def _sad(pred: np.ndarray, alpha: np.ndarray, unknown: np.ndarray) -> float:
    return float(np.abs(pred - alpha)[unknown].sum() / 1000)


def _mse(pred: np.ndarray, alpha: np.ndarray, unknown: np.ndarray) -> float:
    return float(np.square(pred - alpha)[unknown].mean())


def _grad(pred: np.ndarray, alpha: np.ndarray, unknown: np.ndarray) -> float:
    return float(np.square(_gradient(pred, unknown) - _gradient(alpha, unknown)).sum() / 1000)


def _gradient(matte: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Gradient magnitude of the stretched matte at the unknown pixels."""
    span = matte.max() - matte.min()
    if span == 0:
        return np.zeros(np.count_nonzero(unknown))
    cv2 = _cv2()
    points = np.arange(-RADIUS, RADIUS + 1)
    smooth = np.exp(-np.square(points) / (2 * SIGMA**2))
    derive = points * smooth
    smooth, derive = smooth / np.linalg.norm(smooth), derive / np.linalg.norm(derive)
    # OpenCV correlates; with an odd filter that is convolution but for the sign, which the magnitude does not see.
    x, y = (
        cv2.sepFilter2D(matte, -1, *taps, borderType=cv2.BORDER_REPLICATE)[unknown]
        for taps in ((derive, smooth), (smooth, derive))
    )
    # Stretching is a subtraction, to which the filter is blind, and this division.
    return np.sqrt(np.square(x) + np.square(y)) / span


def _conn(pred: np.ndarray, alpha: np.ndarray, unknown: np.ndarray) -> float:
    pred, alpha = pred.astype(np.float32), alpha.astype(np.float32)
    common = np.minimum(pred, alpha)
    levels = np.ones(np.count_nonzero(unknown), np.float32)
    connected = np.ones(len(levels), bool)
    for step in range(1, STEPS + 1):
        reached = common >= np.float32(step / STEPS)
        if not reached.any():
            break
        inside = _largest_component(reached, unknown)
        levels[connected & ~inside] = np.float32((step - 1) / STEPS)
        connected &= inside
    phi_pred, phi_alpha = _phi(pred[unknown] - levels), _phi(alpha[unknown] - levels)
    return float(np.abs(phi_pred - phi_alpha).sum(dtype=np.float64) / 1000)


def _phi(distance: np.ndarray) -> np.ndarray:
    return 1 - distance * (distance >= np.float32(TOLERANCE))


def _largest_component(mask: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Whether the points `where` are in the largest 4-connected component of `mask`, which is not empty."""
    cv2 = _cv2()
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    sizes = stats[1:, cv2.CC_STAT_AREA]
    largest = np.flatnonzero(sizes == sizes.max()) + 1
    if len(largest) > 1:  # MATLAB numbers components by their first pixel, down the columns
        left = stats[largest, cv2.CC_STAT_LEFT]
        column = labels[:, left.min()]
        largest = column[np.isin(column, largest[left == left.min()])]
    return labels[where] == largest[0]


_SCORES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "sad": _sad,
    "mse": _mse,
    "grad": _grad,
    "conn": _conn,
}


def _case(pred: Matte, alpha: Matte, trimap: Matte) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both mattes in 0–1, float64, and the unknown region."""
    p, a, unknown = _matte("pred", pred), _matte("alpha", alpha), unknown_region(trimap)
    for name, image in (("pred", p), ("trimap", unknown)):
        if image.shape != a.shape:
            raise ValueError(f"{name} must be {a.shape} like alpha, got {image.shape}; scores are taken at full size")
    return p, a, unknown


def _matte(name: str, image: Matte) -> np.ndarray:
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()  # NumPy has no bfloat16
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{name} must be a NumPy array or a tensor, got {type(image).__name__}")
    if image.ndim != 2 or 0 in image.shape:
        raise ValueError(f"{name} must be (H, W) without empty sides, got {image.shape}; take one picture, one channel")
    if image.dtype == np.uint8:
        return image / 255.0
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"{name} must be uint8 of 0 to 255 or floats of 0 to 1, got {image.dtype}; convert it")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):  # NaN fails this too
        wrong = low if not low >= 0 else high
        raise ValueError(f"{name} must be in 0 to 1 where of floats, got {wrong:g}; clip it, or divide 0 to 255 by 255")
    return image.astype(np.float64, copy=False)


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ModuleNotFoundError(
            f"cv2 must be installed for Grad and Conn, got {error}; pip install opencv-python-headless", name="cv2"
        ) from error
    return cv2
