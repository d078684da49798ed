"""Scores of images, per image, as the papers' tables give them."""

from fadeup.metrics.image import mae, psnr, rmse, ssim

__all__ = ["mae", "psnr", "rmse", "ssim"]
