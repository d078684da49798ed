"""What an experiment says: which data, which network, which loss, how it is scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from fadeup.data.loading import Sample


@dataclass(frozen=True)
class Metric:
    """A column of the table.

    A score of a data set is `reduce(mean over images of statistics)`, so that a bootstrap can weigh images anew: the
    statistic of PSNR is one number per image, that of mIoU intersections and unions per class.
    """

    name: str
    label: str
    better: str
    digits: int
    reduce: Callable[[np.ndarray], np.ndarray] = lambda means: means[..., 0]
    """`(..., k)` mean statistics to `(...)` scores."""

    def score(self, statistics: np.ndarray) -> float:
        """The score of `(samples, k)` statistics."""
        return float(self.reduce(statistics.mean(axis=0)))


@dataclass(frozen=True)
class Split:
    """The samples of training and test, as the data set gives them: before augmentation and preparation."""

    train: Dataset[Sample]
    test: Dataset[Sample]


WEIGHTS = {None: "from scratch", "imagenet": "ImageNet weights", "hed": "weights of an edge detector (HED, BSDS500)"}
KERNELS_FROM = {
    "carafe": "kernels from decoder",
    "b1": "kernels from encoder",
    "b2": "kernels from decoder",
    "b3": "from both, naive",
    "b4": "from both, semi-shift",
    "b5": "semi-shift, skip",
    "b6": "semi-shift, gate",
    "fade": "semi-shift, gate",
    "fade_lite": "depthwise, gate",
}
"""What stands beside upsamplers in tables: where their kernels come from, and what else lets details through."""
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Recipe:
    """Base of all recipes; its fields are the configuration that a run folder belongs to."""

    task: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    """The first one orders the table."""
    upsamplers: ClassVar[tuple[str, ...]]
    """Compared by default, the baseline first."""
    notes: ClassVar[dict[str, str]] = {}
    """What stands beside an upsampler's name in the table."""
    paper: ClassVar[dict[str, dict[str, float]]] = {}
    """The paper's figures, upsampler to metric to value."""
    paper_protocol: ClassVar[str] = ""
    remark: ClassVar[str] = ""
    """What a reader of the table must know."""
    shown: ClassVar[str] = "Test pictures"
    """Which pictures the report shows, in words."""
    test_batch: ClassVar[int] = 1
    """Test samples predicted at once; 1 where their sizes differ."""

    epochs: int = 1
    batch_size: int = 16
    precision: str = "float32"
    ema: float = 0.0

    @classmethod
    def protocol(cls, name: str) -> Self:
        """The recipe's `"quick"` form, for minutes on a laptop, or the `"paper"`'s.

        Raises:
            ValueError: The name is another.
        """
        if name not in ("quick", "paper"):
            raise ValueError(f"protocol must be 'quick' or 'paper', got {name!r}")
        return cls() if name == "quick" else cls.from_paper()

    @classmethod
    def from_paper(cls) -> Self:
        """The paper's settings."""
        raise NotImplementedError

    @property
    def trained(self) -> str:
        """Network, weights that it starts from, and data, in words, for the head of every table."""
        raise NotImplementedError

    def legend(self) -> dict[str, tuple[int, int, int]]:
        """Names and RGB colours of what pictures show; empty where they need none."""
        return {}

    def data(self) -> Split:
        """Load the data."""
        raise NotImplementedError

    def test(self) -> Dataset[Sample]:
        """Load the test data alone, where that can be done."""
        return self.data().test

    def steps(self, data: Split) -> int:
        """Steps of the whole training; a last batch that is not full counts."""
        return self.epochs * math.ceil(len(data.train) / self.batch_size)  # type: ignore[arg-type]

    def augment(self, sample: Sample) -> Sample:
        """A sample as it is trained on. Randomness comes from torch's generator, which the engine seeds."""
        return sample

    def prepare(self, sample: Sample) -> Sample:
        """A test sample as the network takes it, with the target that it is scored against."""
        return sample

    def model(self, upsampler: str) -> nn.Module:
        """The network with that upsampler."""
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        """What a file of trained weights says of the network, beside the recipe: plain data."""
        return {}

    def rebuild(self, upsampler: str, description: dict[str, Any], weights: str | None = None) -> nn.Module:
        """The network that trained weights are put into.

        Args:
            upsampler: As in `model`.
            description: What the file of weights says.
            weights: Of the backbone, where the file leaves it out.
        """
        return self.model(upsampler)

    def optimizer(
        self, model: nn.Module, steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Optimizer and its schedule over so many steps; the scheduler is stepped once a batch."""
        raise NotImplementedError

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar training loss of a batch, a mean over `terms(target)` terms."""
        raise NotImplementedError

    def terms(self, target: Tensor) -> Tensor:
        """How many terms the loss of a batch is the mean of: its weight beside other processes' and other parts'."""
        return torch.tensor(target.numel(), device=target.device)

    def finish(self, output: Tensor, inputs: Tensor, size: tuple[int, int]) -> Tensor:
        """The network's output for `inputs` as it is scored and shown, for a target of `size`."""
        return output

    def statistics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Per metric, `(B, k)` statistics of a batch."""
        raise NotImplementedError

    def show(self, data: Split) -> list[int]:
        """Indices of the test pictures to show."""
        raise NotImplementedError

    def picture(self, prediction: Tensor) -> np.ndarray:
        """Predictions or targets as uint8 pictures, `(B, H, W)` or `(B, H, W, 3)`."""
        raise NotImplementedError

    def originals(self, sample: Sample) -> dict[str, np.ndarray]:
        """What a test sample shows beside the predictions, by title: uint8 pictures of the predictions' size."""
        raise NotImplementedError

    def error(self, prediction: Tensor, target: Tensor) -> np.ndarray:
        """Error maps in 0–1, `(B, H, W)`."""
        raise NotImplementedError


def first(samples: Dataset[Sample], count: int) -> Dataset[Sample]:
    """The first `count` samples, all for 0."""
    return Subset(samples, range(min(count, len(samples)))) if count else samples  # type: ignore[arg-type]


def evenly_spaced(samples: Dataset[Sample], count: int) -> list[int]:
    """Indices of at most `count` samples, from the first to the last."""
    size = len(samples)  # type: ignore[arg-type]
    return sorted({int(place) for place in np.linspace(0, size - 1, min(count, size))})
