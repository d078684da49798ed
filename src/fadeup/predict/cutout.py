"""A matte put to use: the foreground's own colours, a cut-out, a composite."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fadeup.data.labelled import read_photo
from fadeup.data.matting import compose
from fadeup.models.weights import needed
from fadeup.predict.photos import check_photo

COLORS = "cut-outs and composites"
"""What pymatting is needed for."""


def foreground_colors(photo: Tensor, alpha: Tensor) -> np.ndarray:
    """The colours of the foreground alone, which the photo shows mixed with its background where alpha is not 255.

    Args:
        photo: RGB, uint8, `(3, H, W)`.
        alpha: uint8, `(H, W)`.

    Returns:
        RGB, uint8, `(H, W, 3)`; where alpha is 0, a smooth continuation.

    Raises:
        ValueError: Sizes or dtypes do not fit.
        ModuleNotFoundError: pymatting is missing.

    Source: Germer et al., Fast Multi-Level Foreground Estimation, ICPR 2020.
    """
    check_photo(photo)
    if alpha.shape != photo.shape[1:] or alpha.dtype != torch.uint8:
        wanted = tuple(photo.shape[1:])
        raise ValueError(f"alpha must be uint8 {wanted} like photo, got {alpha.dtype} {tuple(alpha.shape)}")
    pymatting = needed("pymatting", COLORS)
    pixels = photo.permute(1, 2, 0).contiguous().numpy()
    if alpha.numel() == 1:
        return pixels  # pymatting's pyramid needs two
    matte = alpha.numpy().astype(np.float32) / 255
    colors = pymatting.estimate_foreground_ml(pixels.astype(np.float32) / 255, matte)
    return np.rint(255 * colors).astype(np.uint8)


def cut_out(photo: Tensor, alpha: Tensor) -> np.ndarray:
    """The foreground with the matte as its alpha channel, RGBA, uint8, `(H, W, 4)`; arguments of `foreground_colors`.

    The colours are the foreground's alone, so that nothing of the old background shows before a new one.
    """
    return np.dstack((foreground_colors(photo, alpha), alpha.numpy()))


def composite_on(photo: Tensor, alpha: Tensor, background: Tensor) -> np.ndarray:
    """The foreground before another background.

        out = alpha · foreground_colors(photo, alpha) + (1 - alpha) · background

    Args:
        photo: RGB, uint8, `(3, H, W)`.
        alpha: uint8, `(H, W)`.
        background: RGB, uint8, `(3, h, w)` of any size: it is resized to cover the photo and its middle is taken.

    Returns:
        RGB, uint8, `(H, W, 3)`.

    Raises:
        ValueError: Sizes or dtypes do not fit.
        ModuleNotFoundError: pymatting is missing.
    """
    return compose(foreground_colors(photo, alpha), alpha.numpy(), covering(background, tuple(alpha.shape)))


def covering(background: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """The middle of a picture `(3, h, w)` resized to cover `size`, `(H, W, 3)`."""
    check_photo(background)
    picture = Image.fromarray(background.permute(1, 2, 0).contiguous().numpy())
    return np.array(ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BICUBIC))


def read_background(background: str | Path) -> Tensor:
    """A picture's file, or a colour `"#rrggbb"` as a picture of one pixel; RGB, uint8, `(3, h, w)`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or no colour.
    """
    text = str(background)
    if text.startswith("#") and not Path(text).exists():
        if not re.fullmatch("#[0-9a-fA-F]{6}", text):
            raise ValueError(f"background must be a picture or a colour such as #00ff7f, got {text!r}")
        return torch.tensor([int(text[place : place + 2], 16) for place in (1, 3, 5)], dtype=torch.uint8)[:, None, None]
    return read_photo(background)
