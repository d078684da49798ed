"""Mean IoU and boundary IoU as classes of torchmetrics, which takes seconds to import: nothing else here needs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from fadeup.metrics.segmentation import boundary_statistics, boundary_width, check_classes, iou_statistics


class MeanIoU(Metric):
    """Mean intersection over union, from counts summed over all updates and processes.

        mean over c of sum_images intersection[c] / sum_images union[c]

    without the classes whose union is empty. `update` takes labels `(B, H, W)` as `iou_statistics` does; `compute`
    gives a value of 0–1, NaN when all pixels were ignored.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of the pixels that count for nothing; not one of the classes.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: There are no classes, or `ignore_index` is one of them; at `compute`, nothing was counted.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    statistics: Tensor
    images: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any):
        super().__init__(**kwargs)
        check_classes(num_classes, ignore_index)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.add_state("statistics", torch.zeros(2 * num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count the images of a batch."""
        self.statistics += self._statistics(pred, target).sum(dim=0)
        self.images += len(pred)

    def compute(self) -> Tensor:
        """The mean over classes, a scalar of 0–1."""
        return self._per_class().nanmean()

    def per_class(self) -> Tensor:
        """Each class's value, `(num_classes,)`, NaN where its union is empty; all processes must call it together."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, process_group=self.process_group):
            return self._per_class()

    def _statistics(self, pred: Tensor, target: Tensor) -> Tensor:
        return iou_statistics(pred, target, self.num_classes, self.ignore_index)

    def _per_class(self) -> Tensor:
        if not self.images:
            raise ValueError(f"{type(self).__name__} must be updated before it is computed, got no images")
        intersections, unions = self.statistics.chunk(2)
        return intersections / unions  # 0 / 0 is NaN


class BoundaryIoU(MeanIoU):
    """Mean intersection over union of the classes' boundaries, from counts summed over all updates and processes.

    As `MeanIoU`, with the counts of `boundary_statistics`.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of the pixels that count for nothing; not one of the classes.
        dilation_ratio: Width of a boundary as a part of the image's diagonal.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: As `MeanIoU`, or `dilation_ratio` is not positive.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, dilation_ratio: float = 0.02, **kwargs: Any):
        super().__init__(num_classes, ignore_index, **kwargs)
        boundary_width(1, 1, dilation_ratio)  # raises now, not at the first update
        self.dilation_ratio = dilation_ratio

    def _statistics(self, pred: Tensor, target: Tensor) -> Tensor:
        return boundary_statistics(pred, target, self.num_classes, self.ignore_index, self.dilation_ratio)
