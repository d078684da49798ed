"""Foregrounds with alpha, trimaps, and test sets of image matting.

Colours, alphas and trimaps are uint8 arrays here, `(H, W, 3)` and `(H, W)`; data sets give tensors.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fadeup.checkpoint import write
from fadeup.data.labelled import GREY16, converted, find_pictures, open_picture, read_photo

BACKGROUNDS_KEPT = 8
"""Decoded for test composites: a set has few, of megapixels each."""
UNKNOWN = 128
"""The trimap's value where alpha is to be found; 0 is background, 255 foreground."""
LAYOUT = (("merged", "image", "images"), ("alpha_copy", "alpha", "alphas"), ("trimaps", "trimap"))
"""Folders of a test set: Composition-1K's own names first."""

CUT = 4
"""`fit_background` first cuts off what is longer than so many times the part that is seen."""

Triple = tuple[Tensor, Tensor, Tensor]
"""Image `(3, H, W)`, alpha `(H, W)` and trimap `(H, W)`, uint8."""


@dataclass(frozen=True)
class Foreground:
    """A cut-out: a picture with an alpha channel, or one of colours and one of alpha."""

    name: str
    color: Path
    alpha: Path | None = None


def read_foreground(foreground: Foreground, *, max_pixels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Colours `(H, W, 3)` and alpha `(H, W)`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged or too large, has no alpha channel or the same alpha everywhere, or the two differ
            in size.
    """
    if foreground.alpha is None:
        image, _ = open_picture(foreground.color, max_pixels)
        if not image.has_transparency_data:
            raise ValueError(
                f"{foreground.color} must have an alpha channel, got mode {image.mode}; save it as RGBA, or put its "
                "alpha into a picture of its own"
            )
        values = np.array(converted(image, "RGBA", foreground.color))
        color, alpha = np.ascontiguousarray(values[..., :3]), np.ascontiguousarray(values[..., 3])
    else:
        color = read_colors(foreground.color, max_pixels=max_pixels)
        alpha = read_alpha(foreground.alpha, max_pixels=max_pixels)
        _check_size(foreground.alpha, alpha.shape, color.shape[:2])
    if alpha.min() == alpha.max():
        raise ValueError(
            f"{foreground.alpha or foreground.color} must have opaque and transparent pixels, got an alpha of "
            f"{alpha.min()} everywhere; cut the background out"
        )
    return color, alpha


def read_colors(path: str | Path, *, max_pixels: int | None = None) -> np.ndarray:
    """A photograph, `(H, W, 3)`; errors are those of `fadeup.data.labelled.read_photo`."""
    return read_photo(path, max_pixels=max_pixels).permute(1, 2, 0).contiguous().numpy()


def read_alpha(path: str | Path, *, max_pixels: int | None = None) -> np.ndarray:
    """An alpha or trimap picture, `(H, W)`: grey of 1, 8 or 16 bits, or RGB, of which the luminance is taken.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or too large, of floating point, or has transparent pixels.
    """
    image, _ = open_picture(Path(path), max_pixels)
    if image.mode == "F":
        raise ValueError(f"{path} must have 8 or 16 bits a value, got floating point; convert it to 8 bits")
    if image.has_transparency_data and np.asarray(converted(image, "RGBA", path))[..., 3].min() < 255:
        raise ValueError(f"{path} must be opaque grey, got transparent pixels; save it without an alpha channel")
    if image.mode in GREY16:
        return ((np.asarray(image).astype(np.int64) + 128) // 257).clip(0, 255).astype(np.uint8)
    return np.array(converted(image, "L", path))


def mapped_trimap(values: np.ndarray) -> np.ndarray:
    """A trimap with 0, 128 and 255 alone: values below 64 become 0, those above 191 become 255, the others 128."""
    return np.where(values < 64, 0, np.where(values > 191, 255, UNKNOWN)).astype(np.uint8)


def read_trimap(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """A trimap, its values mapped by `mapped_trimap`.

    Args:
        path: Of the picture.
        size: Height and width that it must have.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another size, or has no unknown pixels.
    """
    trimap = mapped_trimap(read_alpha(path))
    if size is not None:
        _check_size(path, trimap.shape, size)
    if not (trimap == UNKNOWN).any():
        raise ValueError(
            f"{path} must have unknown pixels (64 to 191, best 128), got none; paint grey where alpha is to be found"
        )
    return trimap


def _check_size(path: str | Path, got: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if got != wanted:
        raise ValueError(f"{path} must be {wanted[0]} x {wanted[1]} like its picture, got {got[0]} x {got[1]}")


def trimap_from_alpha(alpha: np.ndarray, foreground_kernel: int, background_kernel: int) -> np.ndarray:
    """The trimap with all that is not wholly foreground or background unknown, widened by an erosion of both.

    Args:
        alpha: uint8.
        foreground_kernel: Diameter of the ellipse that erodes alpha of 255; 1 for none.
        background_kernel: The same for alpha of 0. What lies outside the picture erodes neither.
    """
    sure = [_eroded(alpha == 255, foreground_kernel), _eroded(alpha == 0, background_kernel)]
    return np.where(sure[0], 255, np.where(sure[1], 0, UNKNOWN)).astype(np.uint8)


def _eroded(mask: np.ndarray, diameter: int) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter))
    return cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1) > 0


def trimap_from_mask(mask: np.ndarray, width: float | None = None) -> np.ndarray:
    """A trimap from a rough mask: unknown is what lies within `width` pixels of its boundary, on either side.

    Args:
        mask: bool, or uint8 with foreground above 127.
        width: In pixels, 1 or more; it should cover hair and blur. None for 2 % of the longer side, 5 at least.

    Raises:
        ValueError: The mask is empty or full, or `width` is too small.
    """
    width = max(5, 0.02 * max(mask.shape)) if width is None else width
    if width < 1:
        raise ValueError(f"width must be 1 pixel or more, got {width}")
    inside = mask if mask.dtype == bool else mask > 127
    if inside.all() or not inside.any():
        kind = "foreground" if inside.any() else "background"
        raise ValueError(f"mask must have foreground (above 127) and background, got {kind} alone")
    # The centre of a pixel beside the boundary is a distance of 1 from the nearest centre of the other kind.
    far = [
        cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for part in (inside, ~inside)
    ]
    return np.where(far[0] > width, 255, np.where(far[1] > width, 0, UNKNOWN)).astype(np.uint8)


def cubic(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture in another size, by OpenCV's cubic interpolation (a = −0.75)."""
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_CUBIC)


def fit_background(
    background: np.ndarray,
    size: tuple[int, int],
    enlarge: Callable[[np.ndarray, tuple[int, int]], np.ndarray] = cubic,
) -> np.ndarray:
    """The background of Composition-1K's rule: enlarged where it is smaller, cut at the top left, never shrunk.

    Args:
        background: `(H, W, 3)`.
        size: Height and width of the foreground.
        enlarge: How, to a height and width.
    """
    ratio = max(size[0] / background.shape[0], size[1] / background.shape[1])
    if ratio > 1:
        # Of a slender one only what will be seen is enlarged: all of it might take gigabytes.
        seen = [math.ceil(CUT * side / ratio) for side in size]
        background = background[: seen[0], : seen[1]]
        height, width = (math.ceil(side * ratio) for side in background.shape[:2])
        background = enlarge(background, (height, width))
    return background[: size[0], : size[1]]


def compose(foreground: np.ndarray, alpha: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Alpha · foreground + (1 − alpha) · background, of uint8, rounded."""
    weight = alpha[..., None].astype(np.float32) / 255
    return np.rint(weight * foreground + (1 - weight) * background).astype(np.uint8)


def compose_test(
    foreground: np.ndarray, alpha: np.ndarray, background: np.ndarray, seed: int, side: int = 256, kernel: int = 15
) -> Triple:
    """A composite for testing; the same for the same seed.

    The foreground's longer side becomes 0.7 to 1 of `side` (at most 1.5 of its own), somewhere on a square cut from the
    background, of at least 256 pixels before it is resized; the trimap is eroded by ellipses of 3 to `kernel`.
    """
    rng = np.random.default_rng(seed)
    height, width = alpha.shape
    scale = min(1.5, side * rng.uniform(0.7, 1.0) / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    color, alpha = resized_cutout(foreground, alpha, (height, width))
    top, left = (int(rng.integers(side - extent + 1)) for extent in (height, width))
    canvas, matte = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.uint8)
    canvas[top : top + height, left : left + width] = color
    matte[top : top + height, left : left + width] = alpha
    short = min(background.shape[:2])
    window = int(rng.integers(min(256, short), short + 1))
    y, x = (int(rng.integers(extent - window + 1)) for extent in background.shape[:2])
    method = cv2.INTER_AREA if window > side else cv2.INTER_CUBIC
    behind = cv2.resize(background[y : y + window, x : x + window], (side, side), interpolation=method)
    trimap = trimap_from_alpha(matte, *(int(size) for size in rng.integers(3, kernel + 1, size=2)))
    image = torch.from_numpy(compose(canvas, matte, behind)).permute(2, 0, 1).contiguous()
    return image, torch.from_numpy(matte), torch.from_numpy(trimap)


def resized_cutout(color: np.ndarray, alpha: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A cut-out of another size, by area when it shrinks, else linearly."""
    method = cv2.INTER_AREA if size[0] < alpha.shape[0] else cv2.INTER_LINEAR
    return resampled(color, alpha, lambda x: cv2.resize(x, size[::-1], interpolation=method))


def resampled(
    color: np.ndarray, alpha: np.ndarray, resample: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A cut-out resampled with its colours weighed by alpha, so that what alpha hides leaves no fringe."""
    weight = alpha.astype(np.float32)[..., None] / 255
    mixed = resample(np.concatenate((color * weight, weight), axis=2))
    colors = mixed[..., :3] / np.maximum(mixed[..., 3:], 0.5 / 255)  # less is rounded to 0
    return colors.clip(0, 255).round().astype(np.uint8), (255 * mixed[..., 3]).clip(0, 255).round().astype(np.uint8)


class ComposedImages(Dataset[Triple]):
    """Fixed test composites, made when they are first asked for and kept.

    Args:
        items: Name, cut-out, background and seed of each, for `compose_test`.
        side: Of the composites.
    """

    def __init__(self, items: Sequence[tuple[str, Foreground, Path, int]], side: int = 256):
        self.items, self.side = list(items), side
        self.names = [name for name, *_ in self.items]
        self._made: dict[int, Triple] = {}
        self._backgrounds: dict[Path, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Triple:
        index = range(len(self.items))[index]
        if index not in self._made:
            _, foreground, background, seed = self.items[index]
            cutout = read_foreground(foreground)
            if background not in self._backgrounds:
                if len(self._backgrounds) == BACKGROUNDS_KEPT:
                    self._backgrounds.clear()
                self._backgrounds[background] = read_colors(background)
            self._made[index] = compose_test(*cutout, self._backgrounds[background], seed, self.side)
        return self._made[index]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_made": {}, "_backgrounds": {}}  # what a worker process is sent


class MattingImages(Dataset[Triple]):
    """A test set on disk in Composition-1K's layout: pictures of equal names in three folders.

    Args:
        root: Folder with `merged`, `alpha_copy` and `trimaps`, or `images`, `alpha` and `trimap`.

    Raises:
        FileNotFoundError: A folder is missing or empty.
        ValueError: A picture has no partner; on reading: sizes differ, or a file is damaged.
    """

    def __init__(self, root: str | Path):
        folders = [_folder(Path(root), names) for names in LAYOUT]
        files = [find_pictures(folder) for folder in folders]
        for folder, there in zip(folders[1:], files[1:], strict=True):
            missing = sorted(files[0].keys() ^ there.keys())
            if missing:
                raise ValueError(
                    f"{folder} must hold a picture for each of {folders[0].name}, got {len(missing)} without partner, "
                    f"such as {missing[0]}"
                )
        self.names = sorted(files[0])
        self.files = [tuple(there[name] for there in files) for name in self.names]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Triple:
        picture, matte, trimap = self.files[range(len(self.files))[index]]
        image, alpha = read_photo(picture), read_alpha(matte)
        size = image.shape[1], image.shape[2]
        _check_size(matte, alpha.shape, size)
        return image, torch.from_numpy(alpha), torch.from_numpy(read_trimap(trimap, size))


def _folder(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(
        f"{root} must hold a folder {' or '.join(names)}, got none; pictures, their alphas and their trimaps go, by "
        "equal names, into merged, alpha_copy and trimaps"
    )


class MattingSet(Protocol):
    """A data set of triples that have names."""

    names: list[str]

    def __getitem__(self, index: int) -> Triple: ...


def write_test_set(
    samples: MattingSet,
    out: str | Path,
    *,
    overwrite: bool = False,
    on_sample: Callable[[str], None] = lambda name: None,
) -> int:
    """Write a test set in Composition-1K's layout: `merged`, `alpha_copy` and `trimaps`, PNGs of the samples' names.

    Args:
        samples: What is written.
        out: Folder, made where it is missing.
        overwrite: Write into a folder that holds something, if only a test set of no other names.
        on_sample: Called with each name as it is there.

    Returns:
        How many samples were written.

    Raises:
        FileExistsError: The folder holds something, and `overwrite` is not set, or it holds pictures of other names.
    """
    path = Path(out)
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise FileExistsError(f"{path} must be a new or empty folder, got one with files; set overwrite or another one")
    wanted = {path / names[0] / f"{name}.png" for names in LAYOUT for name in samples.names}
    there = {file for names in LAYOUT for file in (path / names[0]).rglob("*") if file.is_file()}
    if others := sorted(there - wanted):
        raise FileExistsError(f"{path} must hold no other test set, got {others[0]}; remove it or set another folder")
    for index, name in enumerate(samples.names):
        image, *planes = samples[index]
        pictures = [image.permute(1, 2, 0).numpy(), *(plane.numpy() for plane in planes)]
        for names, picture in zip(LAYOUT, pictures, strict=True):
            file = path / names[0] / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file, png(picture))
        on_sample(name)
    return len(samples.names)


def png(picture: np.ndarray) -> bytes:
    """A PNG file of a uint8 picture, grey, RGB or RGBA."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
