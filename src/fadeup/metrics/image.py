"""PSNR, SSIM, MAE and RMSE of images with values in 0–1, one value per image of a batch.

FADE's Table 1 (right half) heads its last column "MSE"; its values are root mean square errors, since
10 ** (-PSNR / 20) of the first column comes close to them and not to their squares.
"""

from __future__ import annotations

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

    Gaussian window of 11 x 11 with σ = 1.5, K1 = 0.01, K2 = 0.03, by torchmetrics.

    Source: Wang et al., Image Quality Assessment: from Error Visibility to Structural Similarity, TIP 2004.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check(pred, target)
    if min(pred.shape[2:]) < 11:
        raise ValueError(f"pred must be at least 11 x 11 for SSIM's window, got {tuple(pred.shape)}")
    value = structural_similarity_index_measure(pred, target, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value.reshape(pred.shape[0])
