"""Training composites of image matting, drawn anew whenever they are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from fadeup.data.loading import Sample
from fadeup.data.matting import (
    UNKNOWN,
    Foreground,
    fit_background,
    read_colors,
    read_foreground,
    resampled,
    resized_cutout,
    trimap_from_alpha,
)

ROTATION, SHEAR, SCALES = 30.0, 10.0, (0.8, 1.25)
"""Degrees to either side, and factors per axis, of the random affine map."""
HUE = 40.0
"""Degrees to either side."""
MARGIN = 1.1
"""Short side of a cut-out over the crop that is enlarged."""
CANDIDATES = 10
"""Unknown pixels that must be far enough from the border for one of them to be the crop's centre."""


class TrainComposites(Dataset[Sample]):
    """Composites of foregrounds on backgrounds in the order of the published pipeline.

    1. With probability 1/2 another foreground, resized to the first, lies behind it:
       α = 1 − (1 − α1)(1 − α2), F = (α1 F1 + (1 − α1) α2 F2) / α; not where α would be 1 everywhere.
    2. With probability 1/4 the cut-out is resized to `enlarged` squared (nearest).
    3. A random affine map: rotation up to 30° where the longer side has `rotate_from` pixels, scales 0.8 to 1.25 and
       shear up to 10° per axis, either axis flipped with probability 1/2; nearest, transparent outside.
    4. Flipped left to right with probability 1/2.
    5. Trimap: wholly opaque and wholly transparent pixels eroded by ellipses of 1 to `largest_kernel`, each its own.
    6. The background is fitted, and all maps are cropped: `crop` pixels, or where the short side has no more than that,
       1 / 1.1 of it, enlarged to `crop` (colours and alpha linearly, background cubic, trimap nearest). The centre is
       an unknown pixel drawn from those that are half a crop from every border, or any pixel where there are fewer
       than 10. As published, all is enlarged before the crop: the same but for parts of a pixel, and without bound
       for a slender cut-out.
    7. The foreground's colours are disturbed: hue by up to 40°, saturation and value by up to (1.1 − mean) / 10,
       reflected at 0 and 1.
    8. Composition.

    `composites[i]` draws from torch's generator once, which the engine seeds for each sample and epoch: a batch does
    not depend on the number of workers. Foreground `i` modulo their number is the first; all else is random.

    The input `(4, crop, crop)` is the composite, normalised, and the trimap (0, 128/255, 1). The target `(8, crop,
    crop)` is alpha, the unknown region (0 or 1), foreground and background, in 0–1; the composite is exactly
    α F + (1 − α) B of it.

    Args:
        foregrounds: Cut-outs.
        backgrounds: Photographs.
        length: Samples in an epoch; by default as many as backgrounds.
        crop: Side of the crop.
        largest_kernel: Of the trimap's erosions.
        enlarged: Side of step 2.
        rotate_from: Longer side from which step 3 rotates.
        adapted: Adapted to cut-outs of a few hundred pixels and few, large backgrounds: no step 2; step 3 rotates at
            any size and interpolates linearly; the background is cut from anywhere at any scale, of which
            Composition-1K's rule would show the top left corner alone.
        mean: Of the normalisation, in units of 0–1.
        std: The same.
        skip_unreadable: Take the next file in place of one that cannot be read, and count it.
        cache: Keep decoded pictures in memory, for each process its own.

    Raises:
        ValueError: There are no foregrounds or backgrounds, or a size is below 1; on reading: a file is damaged, or has
            no alpha channel.

    Source: Dai et al., Learning Affinity-Aware Upsampling for Deep Image Matting, CVPR 2021 (its public code).
    """

    def __init__(
        self,
        foregrounds: Sequence[Foreground],
        backgrounds: Sequence[Path],
        *,
        length: int | None = None,
        crop: int = 512,
        largest_kernel: int = 29,
        enlarged: int = 640,
        rotate_from: int = 1024,
        adapted: bool = False,
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        std: tuple[float, ...] = (1.0, 1.0, 1.0),
        skip_unreadable: bool = False,
        cache: bool = False,
    ):
        for name, files in (("foregrounds", foregrounds), ("backgrounds", backgrounds)):
            if not files:
                raise ValueError(f"{name} must be a picture or more, got none; is the folder empty?")
        self.foregrounds, self.backgrounds = list(foregrounds), list(backgrounds)
        self.length = len(backgrounds) if length is None else length
        sizes = {"length": self.length, "crop": crop, "largest_kernel": largest_kernel, "enlarged": enlarged}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be 1 or more, got {size}")
        self.crop, self.largest_kernel, self.enlarged, self.rotate_from = crop, largest_kernel, enlarged, rotate_from
        self.adapted, self.skip_unreadable, self.cache = adapted, skip_unreadable, cache
        self.mean, self.std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (mean, std))
        # Shared with the processes that load, so that what they pass over is known here.
        self.unreadable = torch.zeros(len(self.foregrounds) + len(self.backgrounds), dtype=torch.bool).share_memory_()
        self._kept: dict[int, tuple[np.ndarray, ...]] = {}

    def __len__(self) -> int:
        return self.length

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_kept": {}}

    def __getitem__(self, index: int) -> Sample:
        index = range(self.length)[index]
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        color, alpha = self._combined(index % len(self.foregrounds), rng)
        if not self.adapted and rng.random() < 0.25:
            side = (self.enlarged, self.enlarged)
            color, alpha = (cv2.resize(x, side, interpolation=cv2.INTER_NEAREST) for x in (color, alpha))
        color, alpha = self._warped(color, alpha, rng)
        if rng.random() < 0.5:
            color, alpha = color[:, ::-1], alpha[:, ::-1]
        kernels = (int(size) for size in rng.integers(1, self.largest_kernel + 1, size=2))
        trimap = trimap_from_alpha(alpha, *kernels)
        background = self._background(int(rng.integers(len(self.backgrounds))))
        fitted = anywhere(background, alpha.shape, rng) if self.adapted else fit_background(background, alpha.shape)
        parts = self._cropped(color, alpha, trimap, fitted, rng)
        return self._sample(*parts, rng)

    def skipped(self) -> list[Path]:
        """The files that could not be read and were passed over."""
        files = [foreground.color for foreground in self.foregrounds] + self.backgrounds
        return [file for file, wrong in zip(files, self.unreadable.tolist(), strict=True) if wrong]

    def _read(self, index: int) -> tuple[np.ndarray, ...]:
        """Foreground or, beyond them, background."""
        if index in self._kept:
            return self._kept[index]
        count = len(self.foregrounds)
        if index < count:
            parts: tuple[np.ndarray, ...] = read_foreground(self.foregrounds[index])
        else:
            parts = (read_colors(self.backgrounds[index - count]),)
        if self.cache:
            self._kept[index] = parts
        return parts

    def _readable(self, first: int, start: int, count: int) -> tuple[np.ndarray, ...]:
        """File `first` of `count` from `start` on, or the next one that can be read, where that is asked for."""
        for step in range(count):
            index = start + (first + step) % count
            try:
                return self._read(index)
            except (ValueError, OSError) as error:
                if not self.skip_unreadable:
                    raise ValueError(f"{error}; mend or remove it, or set skip_unreadable") from error
                self.unreadable[index] = True
        kind = "foregrounds" if start == 0 else "backgrounds"
        raise ValueError(f"{kind} must be a picture or more that can be read, got none of {count}")

    def _background(self, index: int) -> np.ndarray:
        return self._readable(index, len(self.foregrounds), len(self.backgrounds))[0]

    def _combined(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The foreground, before another one half of the time."""
        count = len(self.foregrounds)
        color, alpha = self._readable(index, 0, count)
        if count == 1 or rng.random() >= 0.5:
            return color, alpha
        other = (index + 1 + int(rng.integers(count - 1))) % count
        size = alpha.shape[::-1]
        color2, alpha2 = (cv2.resize(x, size, interpolation=cv2.INTER_NEAREST) for x in self._readable(other, 0, count))
        return over(color, alpha, color2, alpha2)

    def _warped(self, color: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        height, width = alpha.shape
        rotated = self.adapted or max(height, width) >= self.rotate_from
        angle = rng.uniform(-ROTATION, ROTATION) if rotated else 0.0
        scales = rng.uniform(*SCALES, size=2) * np.where(rng.random(2) < 0.5, -1, 1)
        matrix = affine((height, width), angle, scales, rng.uniform(-SHEAR, SHEAR, size=2))
        if self.adapted:
            return resampled(color, alpha, lambda x: cv2.warpAffine(x, matrix, (width, height)))
        nearest = lambda x: cv2.warpAffine(x, matrix, (width, height), flags=cv2.INTER_NEAREST)  # noqa: E731
        return nearest(color), nearest(alpha)

    def _cropped(
        self,
        color: np.ndarray,
        alpha: np.ndarray,
        trimap: np.ndarray,
        background: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The four maps around an unknown pixel."""
        crop, (height, width) = self.crop, alpha.shape
        short = min(height, width)
        side = crop if short > crop else max(1, round(short / MARGIN))
        half = side // 2
        rows, columns = np.nonzero(trimap[half : height - side + half + 1, half : width - side + half + 1] == UNKNOWN)
        if len(rows) < CANDIDATES:
            top, left = (int(rng.integers(extent - side + 1)) for extent in (height, width))
        else:
            chosen = int(rng.integers(len(rows)))
            top, left = int(rows[chosen]), int(columns[chosen])
        window = slice(top, top + side), slice(left, left + side)
        color, alpha, trimap, background = color[window], alpha[window], trimap[window], background[window]
        if side < crop:
            color, alpha = resized_cutout(color, alpha, (crop, crop))
            trimap = cv2.resize(trimap, (crop, crop), interpolation=cv2.INTER_NEAREST)
            trimap[(alpha > 0) & (alpha < 255)] = UNKNOWN  # interpolation makes more of them
            background = cv2.resize(background, (crop, crop), interpolation=cv2.INTER_CUBIC)
        return color, alpha, trimap, background

    def _sample(
        self,
        color: np.ndarray,
        alpha: np.ndarray,
        trimap: np.ndarray,
        background: np.ndarray,
        rng: np.random.Generator,
    ) -> Sample:
        # Planes are written where they belong: twice as fast at 512 as joining and transposing them.
        inputs, target = (np.empty((count, *alpha.shape), np.float32) for count in (4, 8))
        matte, front, behind = target[0], target[2:5], target[5:]
        np.divide(alpha, np.float32(255), out=matte)
        np.divide(background.transpose(2, 0, 1), np.float32(255), out=behind)
        front[:] = jittered(color.astype(np.float32) / 255, alpha > 0, rng).transpose(2, 0, 1)
        target[1] = trimap == UNKNOWN
        inputs[:3] = (matte * front + (1 - matte) * behind - self.mean) / self.std
        np.divide(trimap, np.float32(255), out=inputs[3])
        return torch.from_numpy(inputs), torch.from_numpy(target)


def over(
    color: np.ndarray, alpha: np.ndarray, other: np.ndarray, other_alpha: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A cut-out before another of its size; the first alone where nothing of a background would be seen."""
    first, second = (x.astype(np.float32)[..., None] / 255 for x in (alpha, other_alpha))
    both = 1 - (1 - first) * (1 - second)
    matte = np.rint(255 * both[..., 0]).astype(np.uint8)
    if (matte == 255).all():
        return color, alpha
    mixed = (first * color + (1 - first) * second * other) / np.maximum(both, 1 / 255)
    return mixed.clip(0, 255).round().astype(np.uint8), matte


def affine(size: tuple[int, int], angle: float, scales: np.ndarray, shears: np.ndarray) -> np.ndarray:
    """The map of a picture of `size` onto itself about its centre: sheared (degrees), scaled, rotated (degrees)."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    shear = np.array([[1, math.tan(math.radians(shears[0]))], [math.tan(math.radians(shears[1])), 1]])
    linear = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag(scales) @ shear
    centre = np.array([size[1] - 1, size[0] - 1]) / 2
    return np.column_stack((linear, centre - linear @ centre))


def anywhere(background: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random part of the background of the given shape, at a random scale, as `size`."""
    largest = min(background.shape[0] / size[0], background.shape[1] / size[1])
    scale = math.exp(rng.uniform(min(0.0, math.log(largest)), math.log(largest)))
    window = [max(1, min(full, round(side * scale))) for side, full in zip(size, background.shape, strict=False)]
    top, left = (int(rng.integers(full - side + 1)) for side, full in zip(window, background.shape, strict=False))
    part = background[top : top + window[0], left : left + window[1]]
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    return cv2.resize(part, size[::-1], interpolation=method)


def jittered(color: np.ndarray, seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours in 0–1 with hue, saturation and value disturbed; means are over what is `seen`."""
    hue, *levels = cv2.split(cv2.cvtColor(color, cv2.COLOR_RGB2HSV))
    hue = (hue + np.float32(rng.uniform(-HUE, HUE))) % 360
    changed = []
    for level in levels:
        reach = (1.1 - (float(level[seen].mean()) if seen.any() else 1.0)) / 10
        level = np.abs(level + np.float32(rng.uniform(-reach, reach)))
        changed.append(np.where(level > 1, 2 - level, level))
    return cv2.cvtColor(cv2.merge([hue, *changed]), cv2.COLOR_HSV2RGB).clip(0, 1)
