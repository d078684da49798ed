"""PSNR, SSIM, MAE and RMSE of images with values in 0–1, one value per image of a batch.

FADE's Table 1 (right half) heads its last column "MSE"; its values are root mean square errors, since
10 ** (-PSNR / 20) of the first column comes close to them and not to their squares.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fadeup.functional import check_map


def _check(pred: Tensor, target: Tensor) -> None:
    check_map("pred", pred)
    check_map("target", target)
    if pred.shape != target.shape:
        raise ValueError(f"pred must be {tuple(target.shape)} like target, got {tuple(pred.shape)}")


def mae(pred: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error, `mean |pred - target|`, of `(B, C, H, W)` images in 0–1: `(B,)`, 0 is best."""
    _check(pred, target)
    return (pred - target).abs().mean(dim=(1, 2, 3))


def rmse(pred: Tensor, target: Tensor) -> Tensor:
    """Root mean square error, `sqrt(mean (pred - target)²)`, of `(B, C, H, W)` images in 0–1: `(B,)`, 0 is best."""
    _check(pred, target)
    return (pred - target).square().mean(dim=(1, 2, 3)).sqrt()


def psnr(pred: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, `-20 log10(RMSE)` dB, of `(B, C, H, W)` images in 0–1: `(B,)`, inf for equal ones."""
    return -20 * rmse(pred, target).log10()


def ssim(pred: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of `(B, C, H, W)` images in 0–1: `(B,)`, at most 1. Sides of at least 11 pixels.

        (2 μp μt + c1)(2 σpt + c2) / ((μp² + μt² + c1)(σp² + σt² + c2)),    c1 = 0.01², c2 = 0.03²

    averaged over channels and over the windows that lie within the image, with moments under a Gaussian window of
    11 x 11 and σ = 1.5. Libraries differ at the border: torchmetrics 1.9 also averages windows over a reflected border.

    Source: Wang et al., Image Quality Assessment: from Error Visibility to Structural Similarity, TIP 2004.
    """
    _check(pred, target)
    if min(pred.shape[2:]) < 11:
        raise ValueError(f"pred must be at least 11 x 11 for SSIM's window, got {tuple(pred.shape)}")
    batch, channels, height, width = pred.shape
    taps = torch.arange(-5, 6, dtype=pred.dtype, device=pred.device).square().div(-2 * 1.5**2).exp()
    taps = taps / taps.sum()

    def moment(x: Tensor) -> Tensor:
        rows = F.conv2d(x.reshape(batch * channels, 1, height, width), taps.reshape(1, 1, 11, 1))
        return F.conv2d(rows, taps.reshape(1, 1, 1, 11)).reshape(batch, channels, height - 10, width - 10)

    mean_p, mean_t = moment(pred), moment(target)
    var_p, var_t = moment(pred * pred) - mean_p.square(), moment(target * target) - mean_t.square()
    covariance = moment(pred * target) - mean_p * mean_t
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_p * mean_t + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_p.square() + mean_t.square() + c1) * (var_p + var_t + c2))
    return similarity.mean(dim=(1, 2, 3))
