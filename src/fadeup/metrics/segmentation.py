"""Mean IoU and boundary IoU of label maps, from counts summed over a whole data set.

The papers' mIoU divides sums over the data set; `torchmetrics.segmentation.MeanIoU` averages the images' own scores,
which is another number.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def boundary_width(height: int, width: int, ratio: float = 0.02) -> int:
    """Width in pixels of the boundaries of an image: `max(1, round(ratio · sqrt(height² + width²)))`.

    Raises:
        ValueError: `ratio` is not positive.
    """
    if not ratio > 0:
        raise ValueError(f"dilation_ratio must be greater than 0, got {ratio}")
    return max(1, round(ratio * math.hypot(height, width)))


def boundary_map(labels: Tensor, width: int) -> Tensor:
    """Pixels on the inner boundary of their own class.

        boundary[y, x] = some (y', x') with |y' - y| <= width, |x' - x| <= width has another label or is outside

    This is each class's mask less its erosion by a square of 2·width + 1 with zeros outside the image, for all classes
    at once, since every pixel is in one mask only.

    Args:
        labels: `(B, H, W)`, integers of any range.
        width: In pixels, at least 1.

    Returns:
        Bool, `(B, H, W)`.

    Raises:
        ValueError: `labels` are not label maps, or `width` is less than 1.

    Source: Cheng et al., Boundary IoU, CVPR 2021, whose masks are of one class each.
    """
    _check_labels("labels", labels)
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    # A square is uniform where each of its rows is, and its middle column; the padding marks the image's edge.
    beside = F.pad(labels[:, :, 1:] == labels[:, :, :-1], (width, width))
    below = F.pad(labels[:, 1:] == labels[:, :-1], (0, 0, width, width))
    rows = F.pad(_all_of(beside, 2 * width, 2), (0, 0, width, width))
    return ~(_all_of(rows, 2 * width + 1, 1) & _all_of(below, 2 * width, 1))


def _all_of(flags: Tensor, length: int, dim: int) -> Tensor:
    """Whether all flags of a window are set, for each window along `dim`; doubling takes log2(length) steps."""
    covered = 1
    while covered < length:
        step = min(covered, length - covered)
        size = flags.shape[dim] - step
        flags = flags.narrow(dim, 0, size) & flags.narrow(dim, step, size)
        covered += step
    return flags


def iou_statistics(pred: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Intersections and unions of each image's classes, for `mean_iou`.

        intersection[c] = |{target = c} ∩ {pred = c}|,    union[c] = |{target = c} ∪ {pred = c}|

    over the pixels whose target is not `ignore_index`.

    Args:
        pred: Labels 0 to `num_classes` - 1, integers, `(B, H, W)`.
        target: The same, or `ignore_index`.
        num_classes: C.
        ignore_index: Label of the pixels that count for nothing; not one of the classes.

    Returns:
        int64, `(B, 2C)`: C intersections, then C unions.

    Raises:
        ValueError: Shapes differ, labels are not integers, or one is outside the classes; the message names it.
    """
    pred, target = _check_pair(pred, target, num_classes, ignore_index)
    valid = target != ignore_index
    return _statistics(pred, target, valid, valid, num_classes)


def boundary_statistics(
    pred: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255, dilation_ratio: float = 0.02
) -> Tensor:
    """Intersections and unions of the boundaries of each image's classes, for `mean_iou`.

    As `iou_statistics`, with the inner boundary of each class's mask in place of the mask: the pixels within
    `boundary_width` of another class or of the image's edge. An ignored pixel is in no mask of the target and leaves
    the prediction's masks as they are; after the boundaries are found it is left out of both counts. Labels should have
    the image's original size, for the width depends on it.

    Args:
        pred: Labels 0 to `num_classes` - 1, integers, `(B, H, W)`.
        target: The same, or `ignore_index`.
        num_classes: C.
        ignore_index: Label of the pixels that count for nothing; not one of the classes.
        dilation_ratio: Width of a boundary as a part of the image's diagonal.

    Returns:
        int64, `(B, 2C)`: C intersections, then C unions.

    Raises:
        ValueError: As `iou_statistics`, or `dilation_ratio` is not positive.

    Source: Cheng et al., Boundary IoU, CVPR 2021, defined for single masks; that counts are kept per class and summed
    over the data set is this library's reading, since none was published for semantic segmentation.
    """
    pred, target = _check_pair(pred, target, num_classes, ignore_index)
    height, width = pred.shape[1:]
    d = boundary_width(height, width, dilation_ratio)
    valid = target != ignore_index
    return _statistics(pred, target, boundary_map(pred, d) & valid, boundary_map(target, d) & valid, num_classes)


def _statistics(pred: Tensor, target: Tensor, pred_mask: Tensor, target_mask: Tensor, num_classes: int) -> Tensor:
    intersections = _class_counts(target, pred_mask & target_mask & (pred == target), num_classes)
    sums = _class_counts(pred, pred_mask, num_classes) + _class_counts(target, target_mask, num_classes)
    return torch.cat([intersections, sums - intersections], dim=1)


def _class_counts(labels: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Masked pixels of each class, `(B, num_classes)`."""
    bins = num_classes + 1  # the last one takes the pixels outside the mask
    offsets = torch.arange(len(labels), device=labels.device)[:, None, None] * bins
    counts = torch.bincount((torch.where(mask, labels, num_classes) + offsets).flatten(), minlength=len(labels) * bins)
    return counts.reshape(-1, bins)[:, :num_classes]


def mean_iou(statistics: np.ndarray) -> np.ndarray:
    """Mean over classes of intersection / union, from statistics summed or averaged over images.

    Args:
        statistics: `(..., 2C)`: intersections, then unions.

    Returns:
        float64, `(...)`, 0–1. A class with an empty union is left out; NaN where all are.
    """
    intersections, unions = np.split(np.asarray(statistics, np.float64), 2, axis=-1)
    present = unions > 0
    scores = np.divide(intersections, unions, out=np.zeros_like(unions), where=present)
    classes = present.sum(axis=-1)
    return np.divide(scores.sum(axis=-1), classes, out=np.full(classes.shape, np.nan), where=classes > 0)


def check_classes(num_classes: int, ignore_index: int) -> None:
    """Refuse no classes, and an ignored label that is one of them.

    Raises:
        ValueError: It is so.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if 0 <= ignore_index < num_classes:
        raise ValueError(f"ignore_index must be outside the classes 0 to {num_classes - 1}, got {ignore_index}")


def _check_labels(name: str, labels: Tensor) -> None:
    if not isinstance(labels, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(labels).__name__}")
    if labels.ndim != 3 or 0 in labels.shape:
        raise ValueError(f"{name} must be label maps (B, H, W) without empty sides, got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name} must be integers, got {labels.dtype}; take the argmax over classes of logits")


def _check_pair(pred: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Both as int64, in which an `ignore_index` of any sign compares as it should."""
    check_classes(num_classes, ignore_index)
    for name, labels in (("pred", pred), ("target", target)):
        _check_labels(name, labels)
    if pred.shape != target.shape:
        raise ValueError(f"pred must be {tuple(target.shape)} like target, got {tuple(pred.shape)}")
    pred, target = pred.long(), target.long()
    for name, labels, rule in (
        ("pred", pred, ""),
        ("target", target.where(target != ignore_index, 0), f" or {ignore_index} (ignored)"),
    ):
        low, high = (int(value) for value in labels.aminmax())
        if low < 0 or high >= num_classes:
            wrong = low if low < 0 else high
            raise ValueError(f"{name} must be labels 0 to {num_classes - 1}{rule}, got {wrong}")
    return pred, target
