"""Scores of images, of label maps and of alpha mattes, as the papers' tables give them."""

from typing import TYPE_CHECKING, Any

from fadeup.metrics.image import mae, psnr, rmse, ssim
from fadeup.metrics.matting import conn, grad, mse, sad

if TYPE_CHECKING:
    from fadeup.metrics.accumulated import BoundaryIoU, MeanIoU

__all__ = ["BoundaryIoU", "MeanIoU", "conn", "grad", "mae", "mse", "psnr", "rmse", "sad", "ssim"]


def __getattr__(name: str) -> Any:
    if name in ("BoundaryIoU", "MeanIoU"):
        from fadeup.metrics import accumulated

        return getattr(accumulated, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
