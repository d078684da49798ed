"""Scores of images and of label maps, as the papers' tables give them."""

from typing import TYPE_CHECKING, Any

from fadeup.metrics.image import mae, psnr, rmse, ssim

if TYPE_CHECKING:
    from fadeup.metrics.segmentation import BoundaryIoU, MeanIoU

__all__ = ["BoundaryIoU", "MeanIoU", "mae", "psnr", "rmse", "ssim"]


def __getattr__(name: str) -> Any:
    # torchmetrics takes seconds to import, and the scores of images do without it.
    if name in ("BoundaryIoU", "MeanIoU"):
        from fadeup.metrics import segmentation

        return getattr(segmentation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
