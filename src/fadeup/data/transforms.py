"""From a photograph and its label to a network's input and target: the protocol of SegFormer.

Randomness comes from torch's global generator, so that whoever seeds it has the same sample again.

Source: Xie et al., SegFormer, NeurIPS 2021; the settings are those of its ADE20K configuration in mmsegmentation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from fadeup.data.labelled import IGNORED

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LONGEST = 4
"""The long side is at most so many times `resize`, as in the (2048, 512) of the protocol."""
CROP_TRIES = 10

Size = int | tuple[int, int] | None


class TrainTransform(nn.Module):
    """Resize, crop at random, flip, distort colours, normalise, pad.

        size  = factor * resized,    factor ~ U(scale)
        crop  : the first of ten at random in which no class has more than cat_max_ratio of the pixels that count
        image = (crop / 255 - mean) / std,  0 where padded

    The image is resized bilinearly with antialiasing, the label to the nearest pixel centre, computed in integers.

    Args:
        crop: Side of the result. A smaller image is padded at the right and the bottom.
        resize: Short side, (the long one at most four times it), or exact `(height, width)`; None leaves the size.
        scale: Range of the random factor, or None for 1.
        flip: Mirror half of the samples.
        flip_vertical: Turn half of them upside down.
        photometric: Change brightness (by up to an eighth), contrast and saturation (by up to a half) and hue (by up to
            a tenth of the circle), each with probability ½.
        cat_max_ratio: Largest share of one class; 1 accepts every crop.
        mean: Of R, G, B in 0–1.
        std: Of R, G, B in 0–1.

    Raises:
        ValueError: An argument is out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        crop: int,
        resize: Size = None,
        scale: tuple[float, float] | None = (0.5, 2.0),
        flip: bool = True,
        flip_vertical: bool = False,
        photometric: bool = True,
        cat_max_ratio: float = 0.75,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        _check_resize(resize)
        if crop < 1:
            raise ValueError(f"crop must be at least 1, got {crop}")
        if scale is not None and not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be None or (low, high) with 0 < low <= high, got {scale}")
        if not 0 < cat_max_ratio <= 1:
            raise ValueError(f"cat_max_ratio must be above 0 and at most 1, got {cat_max_ratio}")
        self.crop = crop
        self.resize = resize
        self.scale = scale
        self.flip = flip
        self.flip_vertical = flip_vertical
        self.cat_max_ratio = cat_max_ratio
        self.photometric = _Photometric(hue=(-0.1, 0.1)) if photometric else nn.Identity()
        _register(self, mean, std)

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """A training sample.

        Args:
            image: RGB, uint8, `(3, H, W)`.
            label: Class numbers, uint8, `(H, W)`.

        Returns:
            Input, float32, `(3, crop, crop)`, and target, int64, `(crop, crop)`, 255 where ignored or padded.
        """
        factor = 1.0 if self.scale is None else torch.empty(()).uniform_(*self.scale).item()
        height, width = _resized(_height_width(image, label), self.resize, factor)
        top, left, target = self._choose(label, height, width)
        part = _resize_image(image, (height, width))[:, top : top + self.crop, left : left + self.crop]
        if self.flip and torch.rand(()) < 0.5:
            part, target = part.flip(-1), target.flip(-1)
        if self.flip_vertical and torch.rand(()) < 0.5:
            part, target = part.flip(-2), target.flip(-2)
        result = _normalise(self.photometric(part), self.mean, self.std)
        padding = (0, self.crop - part.shape[2], 0, self.crop - part.shape[1])
        return F.pad(result, padding), F.pad(target.long(), padding, value=IGNORED)

    def _choose(self, label: Tensor, height: int, width: int) -> tuple[int, int, Tensor]:
        """A crop of the label resized to that size, with its corner; only the crop is ever resized."""
        rows, columns = nearest_indices(label.shape[0], height), nearest_indices(label.shape[1], width)
        top = left = 0
        target = label
        for _ in range(CROP_TRIES):
            top = int(torch.randint(max(height - self.crop, 0) + 1, ()))
            left = int(torch.randint(max(width - self.crop, 0) + 1, ()))
            target = label[rows[top : top + self.crop]][:, columns[left : left + self.crop]]
            counts = torch.bincount(target.flatten(), minlength=IGNORED + 1)[:IGNORED]
            if self.cat_max_ratio == 1 or counts.max() < self.cat_max_ratio * counts.sum():
                break
        return top, left, target


class TestTransform(nn.Module):
    """Resize a whole image so that its sides are multiples of `divisor`, and normalise it. The label stays as it is.

    The sides are those of `resize`, rounded up ("AlignedResize"), by one bilinear resizing with antialiasing: nothing
    is cut off, and no stage of a network has an odd size. Predictions are to be resized to the label.

    Args:
        resize: Short side (the long one at most four times it), or exact `(height, width)`; None leaves the size.
        divisor: Both sides become multiples of it.
        mean: Of R, G, B in 0–1.
        std: Of R, G, B in 0–1.

    Raises:
        ValueError: An argument is out of range.
    """

    __test__ = False  # to pytest the name looks like a class of tests
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        resize: Size = None,
        divisor: int = 32,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        _check_resize(resize)
        if divisor < 1:
            raise ValueError(f"divisor must be at least 1, got {divisor}")
        self.resize = resize
        self.divisor = divisor
        _register(self, mean, std)

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """A test sample.

        Args:
            image: RGB, uint8, `(3, H, W)`.
            label: Class numbers, uint8, `(H, W)`.

        Returns:
            Input, float32, `(3, H', W')`, and target, int64, `(H, W)`.
        """
        _height_width(image, label)
        return self.prepare(image), label.long()

    def prepare(self, image: Tensor) -> Tensor:
        """The input for an image without a label, float32, `(3, H', W')`."""
        height, width = _resized((image.shape[1], image.shape[2]), self.resize)
        size = (-(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor)
        return _normalise(_resize_image(image, size), self.mean, self.std)


class _Photometric(v2.RandomPhotometricDistort):
    """torchvision's also shuffles the channels, which the protocol does not: the sky would be red."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return super().make_params(flat_inputs) | {"channel_permutation": None}


def nearest_indices(size: int, resized: int) -> Tensor:
    """The source pixel under the centre of each pixel of a resized axis: `(2 i + 1) size // (2 resized)`, int64."""
    return (2 * torch.arange(resized) + 1) * size // (2 * resized)


def _resized(size: tuple[int, int], resize: Size, factor: float = 1.0) -> tuple[int, int]:
    if isinstance(resize, tuple):
        height, width = resize
    elif resize is None:
        height, width = size
    else:
        ratio = min(resize / min(size), LONGEST * resize / max(size))
        height, width = size[0] * ratio, size[1] * ratio
    return max(1, math.floor(height * factor + 0.5)), max(1, math.floor(width * factor + 0.5))


def _resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    if (image.shape[1], image.shape[2]) == size:
        return image
    return TF.resize(image, list(size), antialias=True)


def _normalise(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return image.float().div_(255).sub_(mean).div_(std)


def _register(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std must be three numbers each, std above 0, got {tuple(mean)} and {tuple(std)}")
    module.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
    module.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)


def _check_resize(resize: Size) -> None:
    if resize is not None and min(resize if isinstance(resize, tuple) else (resize,)) < 1:
        raise ValueError(f"resize must be None, a short side or (height, width) of at least 1, got {resize}")


def _height_width(image: Tensor, label: Tensor) -> tuple[int, int]:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image must be uint8 (3, H, W), got {image.dtype} {tuple(image.shape)}")
    if label.shape != image.shape[1:]:
        raise ValueError(f"label must be {tuple(image.shape[1:])} as the image, got {tuple(label.shape)}")
    return image.shape[1], image.shape[2]
