"""Semantic segmentation: SegFormer's head or SegNet with any upsampler, on the data sets of the papers and on yours.

    fadeup compare landcover                   the shipped tiles, minutes on 2 cores
    fadeup train camvid --source FOLDER        one network
    fadeup train ade20k --protocol paper       SegFormer-B1, 160,000 steps; for GPUs

Scores are mIoU and boundary IoU from counts summed over the test data, at the labels' own size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from fadeup.data.ade20k import ade20k
from fadeup.data.camvid import camvid
from fadeup.data.folder import folder
from fadeup.data.labelled import LabelledImages
from fadeup.data.landcover import landcover
from fadeup.data.loading import Sample
from fadeup.data.sunrgbd import sunrgbd
from fadeup.data.transforms import TestTransform, TrainTransform, nearest_indices
from fadeup.data.weizmann import weizmann
from fadeup.metrics.segmentation import boundary_statistics, iou_statistics, mean_iou
from fadeup.models import SegFormer, SegNet
from fadeup.models.weights import normalisation
from fadeup.recipes.recipe import Metric, Recipe, Split

IGNORED = 255
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def percent(means: np.ndarray) -> np.ndarray:
    """Mean IoU in % from mean statistics."""
    return 100 * mean_iou(means)


@dataclass(frozen=True)
class Segmentation(Recipe):
    """Base of the segmentation recipes; the upsampler alone changes.

    Args:
        source: Folder of the data set; where None, the place that its loader looks in.
        network: `"segformer"`, its head on a pyramid, or `"segnet"`.
        backbone: As in `fadeup.models.SegFormer`, or SegNet's trunk.
        weights: Of the backbone, as in `fadeup.models.weights.load_backbone`.
        channels: Width of SegFormer's head.
        train_images: The first so many training pictures of the set; 0 for all.
        test_images: The same of the test pictures.
        size: Side to which pictures and labels are resized, 0 for their own size.
        resize: Shorter side to which pictures are resized, labels keeping theirs at test time; 0 for none.
        crop: Side of the training crop.
        scale: Range of a random factor on the size of training pictures.
        photometric: Whether colours are disturbed in training.
        iterations: Steps, in place of `epochs`, where not 0.
        algorithm: `"adamw"` or `"sgd"`.
        learning_rate: Of the backbone, at the start.
        head_factor: By how much the rate of everything but the backbone is larger.
        weight_decay: Norms have none.
        warmup: Part of the steps in which the rate rises from nearly 0.
        schedule: `"poly"`, linearly down to 0, or `"steps"`, ten times lower after 70 and 90 %.
        dilation_ratio: What boundary IoU takes as the boundary's width over the diagonal.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("miou", "mIoU %", "higher", 2, percent),
        Metric("biou", "boundary IoU %", "higher", 2, percent),
    )
    upsamplers: ClassVar[tuple[str, ...]] = ("bilinear", "carafe", "fade")
    notes: ClassVar[dict[str, str]] = {
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
    load: ClassVar[Callable[..., LabelledImages]]
    splits: ClassVar[tuple[str, str]] = ("train", "val")
    shown_size: ClassVar[tuple[int, int] | None] = None
    """Size of pictures in reports, where those of the data set differ."""
    cache: ClassVar[bool] = True
    """Whether decoded pictures stay in memory: not for large sets."""

    source: str | None = None
    network: str = "segformer"
    backbone: str = "tf_efficientnet_lite0"
    weights: str | None = "imagenet"
    channels: int = 64
    train_images: int = 0
    test_images: int = 0
    size: int = 0
    resize: int = 0
    crop: int = 256
    scale: tuple[float, float] = (0.5, 2.0)
    photometric: bool = True
    iterations: int = 0
    algorithm: str = "adamw"
    learning_rate: float = 1e-4
    head_factor: float = 10.0
    weight_decay: float = 0.01
    warmup: float = 0.05
    schedule: str = "poly"
    dilation_ratio: float = 0.02

    def labelled(self, split: str) -> LabelledImages:
        """One split of the data set."""
        return type(self).load(split, self.source, cache=self.cache)

    def data(self) -> Split:
        """Training and test pictures with their labels, uint8."""
        train, test = (self.labelled(split) for split in self.splits)
        return Split(first(train, self.train_images), first(test, self.test_images))

    def steps(self, data: Split) -> int:
        """`iterations`, or the epochs' steps."""
        return self.iterations or super().steps(data)

    @cached_property
    def about(self) -> tuple[tuple[str, ...], np.ndarray]:
        """Names and colours of the classes."""
        labelled = self.labelled(self.splits[0])
        return labelled.classes, labelled.palette

    @cached_property
    def _transforms(self) -> tuple[TrainTransform, TestTransform]:
        mean, std = normalisation(self.backbone, self.weights)
        resize = (self.size, self.size) if self.size else self.resize or None
        train = TrainTransform(
            self.crop,
            resize=resize,
            scale=None if self.scale == (1.0, 1.0) else self.scale,
            flip=True,
            photometric=self.photometric,
            mean=mean,
            std=std,
        )
        return train, TestTransform(resize, mean=mean, std=std)

    def augment(self, sample: Sample) -> Sample:
        """Resized, cropped, flipped, its colours disturbed."""
        return self._transforms[0](*sample)

    def prepare(self, sample: Sample) -> Sample:
        """Resized to a multiple of 32; the label too where `size` is set."""
        image, label = self._transforms[1](*sample)
        return image, nearest(label, (self.size, self.size)) if self.size else label

    def model(self, upsampler: str) -> nn.Module:
        """The network, its backbone with the recipe's weights."""
        return self.build(upsampler, len(self.about[0]), self.weights)

    def build(self, upsampler: str, num_classes: int, weights: str | None) -> nn.Module:
        """The network for so many classes."""
        if self.network == "segformer":
            return SegFormer(self.backbone, num_classes, upsampler, channels=self.channels, weights=weights)
        if self.network == "segnet":
            return SegNet(num_classes, upsampler, trunk=self.backbone, weights=weights)
        raise ValueError(f"network must be 'segformer' or 'segnet', got {self.network!r}")

    def optimizer(
        self, model: nn.Module, steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """AdamW or SGD with a higher rate for the head and no decay on norms."""
        groups = parameter_groups(model, self.learning_rate, self.head_factor, self.weight_decay)
        if self.algorithm == "adamw":
            optimizer = torch.optim.AdamW(groups, self.learning_rate, betas=(0.9, 0.999))
        elif self.algorithm == "sgd":
            optimizer = torch.optim.SGD(groups, self.learning_rate, momentum=0.9)
        else:
            raise ValueError(f"algorithm must be 'adamw' or 'sgd', got {self.algorithm!r}")
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, steps))

    def factor(self, step: int, steps: int) -> float:
        """What the learning rates are multiplied by in a step."""
        warm = self.warmup * steps
        rise = min(1.0, (step + 1) / warm) if warm else 1.0
        if self.schedule == "poly":
            return rise * max(0.0, 1 - step / steps)
        if self.schedule == "steps":
            return rise * 0.1 ** sum(step >= int(part * steps) for part in (0.7, 0.9))
        raise ValueError(f"schedule must be 'poly' or 'steps', got {self.schedule!r}")

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy over the labelled pixels, logits resized to the labels' size; 0 where there are none."""
        logits = F.interpolate(output, target.shape[1:], mode="bilinear", align_corners=False)
        total = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        return total / self.terms(target).clamp(min=1)

    def terms(self, target: Tensor) -> Tensor:
        """Number of labelled pixels."""
        return (target != IGNORED).sum()

    def finish(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """The class of each pixel."""
        return F.interpolate(output, size, mode="bilinear", align_corners=False).argmax(dim=1)

    def statistics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Intersections and unions of each class, of its region and of its boundary."""
        classes = len(self.about[0])
        return {
            "miou": iou_statistics(prediction, target, classes, IGNORED),
            "biou": boundary_statistics(prediction, target, classes, IGNORED, self.dilation_ratio),
        }

    def show(self, data: Split) -> list[int]:
        """Six test pictures, evenly spaced over the set."""
        count = len(data.test)  # type: ignore[arg-type]
        return sorted({int(place) for place in np.linspace(0, count - 1, min(6, count))})

    def picture(self, prediction: Tensor) -> np.ndarray:
        """Classes in their colours, ignored pixels black."""
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(self.about[1])] = self.about[1]
        return colors[self._shown(prediction).numpy()]

    def originals(self, sample: Sample) -> dict[str, np.ndarray]:
        """The picture and its label."""
        image, label = sample
        mean, std = (torch.tensor(values)[:, None, None] for values in normalisation(self.backbone, self.weights))
        target = self.picture(label[None])[0]
        shown = F.interpolate((image * std + mean)[None], target.shape[:2], mode="bilinear", antialias=True)[0]
        picture = (shown.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return {"input": picture, "label": target}

    def error(self, prediction: Tensor, target: Tensor) -> np.ndarray:
        """1 where a labelled pixel has another class."""
        return self._shown((prediction != target) & (target != IGNORED)).float().numpy()

    def _shown(self, labels: Tensor) -> Tensor:
        if self.shown_size is None:
            return labels
        return nearest(labels, self.shown_size)


def first(samples: Dataset[Sample], count: int) -> Dataset[Sample]:
    """The first `count` samples, all for 0."""
    return Subset(samples, range(min(count, len(samples)))) if count else samples  # type: ignore[arg-type]


def nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps `(..., H, W)` resized to the nearest pixel centres."""
    rows, columns = (nearest_indices(old, new) for old, new in zip(labels.shape[-2:], size, strict=True))
    return labels[..., rows, :][..., columns]


def parameter_groups(model: nn.Module, rate: float, head_factor: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters by learning rate and decay: all but backbone or trunk learns faster, norms do not decay."""
    norms = {p for module in model.modules() if isinstance(module, NORMS) for p in module.parameters()}
    backbone = set(model.get_submodule("backbone" if hasattr(model, "backbone") else "trunk").parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        key = rate * (1 if parameter in backbone else head_factor), 0.0 if parameter in norms else weight_decay
        groups.setdefault(key, []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


@dataclass(frozen=True)
class Weizmann(Segmentation):
    """Weizmann Horse with SegNet (FADE, Table 2; mIoU in %, 279 training and 49 test pictures).

    The paper: 89.15 nearest, 89.29 CARAFE, 93.42 max unpooling, 93.00 IndexNet, 95.26 nearest + gate, 95.25 CARAFE +
    gate, at 224 x 224, batch 4, SGD 0.01. Epochs (50), weight decay (0) and the split's seed (0) are our choice, as the
    paper does not give them. Flips are the only augmentation.
    """

    task: ClassVar[str] = "weizmann"
    upsamplers: ClassVar[tuple[str, ...]] = (
        "nearest", "carafe", "max_unpool", "indexnet", "nearest+gate", "carafe+gate", "fade",
    )  # fmt: skip
    paper: ClassVar[dict[str, dict[str, float]]] = {
        "nearest": {"miou": 89.15},
        "carafe": {"miou": 89.29},
        "indexnet": {"miou": 93.00},
        "max_unpool": {"miou": 93.42},
        "carafe+gate": {"miou": 95.25},
        "nearest+gate": {"miou": 95.26},
    }
    paper_protocol: ClassVar[str] = "224 x 224, one run, in FADE's Table 2"
    load: ClassVar[Callable[..., LabelledImages]] = staticmethod(weizmann)
    splits: ClassVar[tuple[str, str]] = ("train", "test")

    network: str = "segnet"
    backbone: str = "vgg16_bn"
    size: int = 112
    crop: int = 112
    scale: tuple[float, float] = (1.0, 1.0)
    photometric: bool = False
    epochs: int = 20
    batch_size: int = 4
    algorithm: str = "sgd"
    learning_rate: float = 0.01
    head_factor: float = 1.0
    weight_decay: float = 0.0
    warmup: float = 0.0
    schedule: str = "steps"

    @classmethod
    def from_paper(cls) -> Self:
        """224 x 224, 50 epochs."""
        return cls(size=224, crop=224, epochs=50)


@dataclass(frozen=True)
class CamVid(Segmentation):
    """CamVid with SegFormer's head: trained on the 367 pictures of `train`, scored on the 101 of `val`, 11 classes.

    The papers have no such table; FADE's Table 4 (SegFormer-B1, ADE20K) is the nearest.
    """

    task: ClassVar[str] = "camvid"
    load: ClassVar[Callable[..., LabelledImages]] = staticmethod(camvid)

    batch_size: int = 4
    iterations: int = 400

    @classmethod
    def from_paper(cls) -> Self:
        """SegFormer-B1 as on ADE20K, 20,000 steps of crops of 352."""
        return cls(backbone="mit_b1", channels=256, crop=352, batch_size=16, iterations=20_000, learning_rate=6e-5)


@dataclass(frozen=True)
class LandCover(Segmentation):
    """Land cover from space: 6 classes (IGBP groups) on NASA's Blue Marble, split by bands of longitude.

    `source` is `"assets"` (the tiles shipped here), `"full"` (all tiles, from two packages) or a folder.
    """

    task: ClassVar[str] = "landcover"
    load: ClassVar[Callable[..., LabelledImages]] = staticmethod(landcover)
    splits: ClassVar[tuple[str, str]] = ("train", "test")

    source: str | None = "assets"
    crop: int = 128
    scale: tuple[float, float] = (0.75, 1.5)
    batch_size: int = 8
    iterations: int = 200

    @classmethod
    def from_paper(cls) -> Self:
        """All tiles, ten times the steps."""
        return cls(source="full", iterations=2000)


@dataclass(frozen=True)
class ADE20K(Segmentation):
    """SegFormer-B1 on ADE20K (FADE, Table 3; mIoU / boundary IoU: 41.68 / 27.80 bilinear, 44.41 / 32.65 FADE).

    AdamW 6e-5, head times 10, poly with warm-up over 1,500 of 160,000 steps, batch 16, crops of 512, resized by 0.5 to
    2 from a shorter side of 512. The paper's scores are the best of ten evaluations; ours are the last step's.
    """

    task: ClassVar[str] = "ade20k"
    upsamplers: ClassVar[tuple[str, ...]] = ("bilinear", "carafe", "indexnet", "a2u", "fade", "fade_lite")
    paper: ClassVar[dict[str, dict[str, float]]] = {
        "bilinear": {"miou": 41.68, "biou": 27.80},
        "carafe": {"miou": 42.82, "biou": 29.84},
        "indexnet": {"miou": 41.50, "biou": 28.27},
        "a2u": {"miou": 41.45, "biou": 27.31},
        "fade": {"miou": 44.41, "biou": 32.65},
        "fade_lite": {"miou": 43.49, "biou": 31.55},
    }
    paper_protocol: ClassVar[str] = "SegFormer-B1, 160,000 steps, best of ten evaluations, one run"
    load: ClassVar[Callable[..., LabelledImages]] = staticmethod(ade20k)
    shown_size: ClassVar[tuple[int, int] | None] = (384, 512)
    cache: ClassVar[bool] = False

    backbone: str = "mit_b1"
    channels: int = 256
    resize: int = 512
    crop: int = 512
    batch_size: int = 16
    iterations: int = 2000
    learning_rate: float = 6e-5

    @classmethod
    def from_paper(cls) -> Self:
        """160,000 steps."""
        return cls(iterations=160_000, warmup=1500 / 160_000)


@dataclass(frozen=True)
class SUNRGBD(Segmentation):
    """SUN RGB-D with SegNet on RGB, 37 classes (FADE, Table 1, left half; mIoU / boundary IoU).

    The paper: 37.00 / 25.61 decoder-only, 36.71 / 27.89 encoder-only, 37.59 / 28.80 encoder + decoder. Its protocol
    could not be read; size, epochs and rates are our choice.
    """

    task: ClassVar[str] = "sunrgbd"
    upsamplers: ClassVar[tuple[str, ...]] = ("bilinear", "carafe", "b1", "b3")
    paper: ClassVar[dict[str, dict[str, float]]] = {
        "carafe": {"miou": 37.00, "biou": 25.61},
        "b1": {"miou": 36.71, "biou": 27.89},
        "b3": {"miou": 37.59, "biou": 28.80},
    }
    paper_protocol: ClassVar[str] = "SegNet, one run, in FADE's Table 1"
    load: ClassVar[Callable[..., LabelledImages]] = staticmethod(sunrgbd)
    splits: ClassVar[tuple[str, str]] = ("train", "test")
    shown_size: ClassVar[tuple[int, int] | None] = (384, 512)
    cache: ClassVar[bool] = False

    network: str = "segnet"
    backbone: str = "vgg16_bn"
    resize: int = 320
    crop: int = 320
    batch_size: int = 4
    epochs: int = 1
    algorithm: str = "sgd"
    learning_rate: float = 0.01
    head_factor: float = 1.0
    weight_decay: float = 5e-4
    warmup: float = 0.0
    schedule: str = "steps"

    @classmethod
    def from_paper(cls) -> Self:
        """100 epochs, batch 12."""
        return cls(epochs=100, batch_size=12)


@dataclass(frozen=True)
class Folder(Segmentation):
    """Your own folder of images and label PNGs, as `fadeup.data.folder` describes it."""

    task: ClassVar[str] = "folder"
    load: ClassVar[Callable[..., LabelledImages]] = staticmethod(folder)
    shown_size: ClassVar[tuple[int, int] | None] = (384, 512)
    cache: ClassVar[bool] = False

    batch_size: int = 8
    iterations: int = 1000

    @classmethod
    def from_paper(cls) -> Self:
        """SegFormer-B1 as on ADE20K, a quarter of its steps."""
        paper = ADE20K.from_paper()
        return replace(
            cls(),
            backbone=paper.backbone, channels=paper.channels, crop=paper.crop, resize=paper.resize,
            batch_size=paper.batch_size, learning_rate=paper.learning_rate, iterations=40_000,
        )  # fmt: skip
