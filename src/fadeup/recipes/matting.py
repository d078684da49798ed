"""Image matting: A2U's network with any upsampler, on Composition-1K, on cut-outs that Debian ships, and on yours.

    fadeup compare cutouts                       a small network, minutes a row on 2 cores
    fadeup train composition1k --source FOLDER   the papers' network and data; for GPUs
    fadeup train folder --source FOLDER          your own cut-outs and backgrounds

Scores are SAD, MSE, Grad and Conn in the unknown region, as the MATLAB code computes them, means over test pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fadeup.data.compositing import TrainComposites
from fadeup.data.loading import Sample
from fadeup.losses import alpha_loss, composition_loss, laplacian_loss
from fadeup.metrics.matting import matting_statistics
from fadeup.models.matting import MattingNet
from fadeup.models.weights import normalisation
from fadeup.recipes.optimizer import Scheduled
from fadeup.recipes.recipe import KERNELS_FROM, WEIGHTS, Metric, Split, evenly_spaced, first

MULTIPLE = 16
"""Sides of pictures are padded to it, as the authors do."""


@dataclass(frozen=True)
class Matting(Scheduled):
    """Base of the matting recipes; the upsampler alone changes.

    Args:
        source: Folder of the data set; where None, the place that its loader looks in.
        trunk: As in `fadeup.models.MattingNet`.
        channels: Of guides and decoder, with a trunk of timm.
        weights: Of the trunk, as in `fadeup.models.weights.load_backbone`.
        pooling: `"max"`, or `"guided"` for the pooling half of IndexNet and A2U (ResNet only).
        images: Composites in an epoch, each drawn anew; 0 for as many as backgrounds.
        test_images: The first so many test pictures; 0 for all.
        crop: Side of the training crop.
        largest_kernel: Of the erosions that make the trimap in training.
        iterations: Steps, in place of `epochs`, where not 0.
        algorithm: As in `fadeup.recipes.optimizer.build_optimizer`.
        learning_rate: Of the trunk, at the start.
        head_factor: By how much the rate of everything but the trunk is larger.
        upsampler_factor: By how much the upsamplers' rate is larger than the rest of the head's. The authors' filter of
            names leaves FADE's weights at the trunk's rate, a hundredth of the head's: 0.01 in the papers' protocol.
        weight_decay: Norms have none.
        warmup: Part of the steps in which the rate rises from nearly 0.
        schedule: As in `fadeup.recipes.optimizer.rate_factor`.
        alpha_weight: Of the alpha loss.
        composition_weight: Of the composition loss.
        laplacian_weight: Of the Laplacian-pyramid loss, which the papers do not use.
        skip_unreadable: Pass over pictures that cannot be read, and count them, in place of an error.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("sad", "SAD", "lower", 3),
        Metric("mse", "MSE", "lower", 4),
        Metric("grad", "Grad", "lower", 3),
        Metric("conn", "Conn", "lower", 3),
    )
    upsamplers: ClassVar[tuple[str, ...]] = ("bilinear", "carafe", "indexnet", "a2u", "fade")
    notes: ClassVar[dict[str, str]] = KERNELS_FROM
    paper: ClassVar[dict[str, dict[str, float]]] = {
        name: dict(zip(("sad", "mse", "grad", "conn"), values, strict=True))
        for name, values in {
            "bilinear": (37.31, 0.0103, 21.38, 35.39),
            "carafe": (41.01, 0.0118, 21.39, 39.01),
            "indexnet": (34.28, 0.0081, 15.94, 31.91),
            "a2u": (32.15, 0.0082, 16.39, 29.25),
            "fade": (31.10, 0.0073, 14.52, 28.11),
            "fade_lite": (31.36, 0.0075, 14.83, 28.21),
            "b1": (34.22, 0.0087, 15.90, 32.03),
            "b2": (41.01, 0.0118, 21.39, 39.01),
            "b3": (32.41, 0.0083, 16.56, 29.82),
            "b4": (31.78, 0.0075, 15.12, 28.95),
            "b5": (32.64, 0.0076, 15.90, 29.92),
            "b6": (31.10, 0.0073, 14.52, 28.11),
        }.items()
    }
    paper_protocol: ClassVar[str] = "Composition-1K, 180,000 steps, best epoch on the test set, one run"
    shown: ClassVar[str] = "Test pictures, evenly spaced over the set"
    words: ClassVar[str]
    """What the data is, for the head of tables."""
    adapted: ClassVar[bool] = False
    """As in `TrainComposites`."""
    cached: ClassVar[bool] = False
    """Whether decoded pictures stay in memory: not for large sets."""

    source: str | None = None
    trunk: str = "resnet34"
    channels: int = 32
    weights: str | None = "imagenet"
    pooling: str = "max"
    images: int = 0
    test_images: int = 0
    crop: int = 512
    largest_kernel: int = 29
    iterations: int = 0
    algorithm: str = "adam"
    learning_rate: float = 1e-4
    head_factor: float = 100.0
    upsampler_factor: float = 0.01
    weight_decay: float = 0.0
    warmup: float = 0.0
    schedule: str = "milestones"
    alpha_weight: float = 0.5
    composition_weight: float = 0.5
    laplacian_weight: float = 0.0
    skip_unreadable: bool = False

    @property
    def trained(self) -> str:
        """Network, its trunk, the trunk's weights, and the data."""
        return f"A2U's matting network on {self.trunk}, {WEIGHTS.get(self.weights, self.weights)}; {self.words}"

    def ingredients(self) -> tuple[Any, Any]:
        """Foregrounds and backgrounds for training."""
        raise NotImplementedError

    def test_set(self) -> Dataset[Any]:
        """Triples of image, alpha and trimap, uint8."""
        raise NotImplementedError

    def data(self) -> Split:
        """Composites, drawn anew whenever they are asked for, and the test pictures."""
        foregrounds, backgrounds = self.ingredients()
        mean, std = normalisation(self.trunk, self.weights)
        count = self.images or len(backgrounds)
        train = TrainComposites(
            foregrounds,
            backgrounds,
            length=-(-count // self.batch_size) * self.batch_size,  # BatchNorm cannot learn from a batch of one
            crop=self.crop,
            largest_kernel=self.largest_kernel,
            mean=mean,
            std=std,
            skip_unreadable=self.skip_unreadable,
            adapted=self.adapted,
            cache=self.cached,
        )
        return Split(train, self.test())

    def test(self) -> Dataset[Sample]:
        """The test pictures; those for training need not be there."""
        return first(self.test_set(), self.test_images)

    def prepare(self, sample: Sample) -> Sample:
        """The network's input `(4, H', W')`, and alpha and trimap `(2, H, W)` in 0–1."""
        image, alpha, trimap = sample
        mean, std = normalisation(self.trunk, self.weights)
        return network_input(image, trimap, mean, std), torch.stack((alpha, trimap)).float() / 255

    def model(self, upsampler: str) -> nn.Module:
        """The network, its trunk with the recipe's weights."""
        return self.build(upsampler, self.weights)

    def build(self, upsampler: str, weights: str | None) -> MattingNet:
        """The network with those weights of its trunk."""
        return MattingNet(
            upsampler,
            trunk=self.trunk,
            channels=self.channels,
            pooling=self.pooling,
            weights=weights,
        )

    def description(self) -> dict[str, Any]:
        """The normalisation of pictures."""
        mean, std = normalisation(self.trunk, self.weights)
        return {"mean": mean, "std": std}

    def rebuild(self, upsampler: str, description: dict[str, Any], weights: str | None = None) -> nn.Module:
        """The network; the data need not be there."""
        return self.build(upsampler, weights)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Alpha and composition loss, and Laplacian loss where it has a weight.

        Args:
            output: `(B, 1, H, W)`.
            target: `(B, 8, H, W)`: alpha, unknown region, foreground, background; or of test pictures `(B, 2, h, w)`,
                alpha and trimap, with the alpha loss alone.
        """
        if target.shape[1] == 2:
            height, width = target.shape[2:]
            unknown = (target[:, 1:] > 0.25) & (target[:, 1:] < 0.75)
            return alpha_loss(output[..., :height, :width], target[:, :1], unknown.to(output))
        alpha, unknown, foreground, background = target.split((1, 1, 3, 3), dim=1)
        loss = self.alpha_weight * alpha_loss(output, alpha, unknown)
        loss = loss + self.composition_weight * composition_loss(output, alpha, foreground, background, unknown)
        if self.laplacian_weight:
            loss = loss + self.laplacian_weight * laplacian_loss(output, alpha)
        return loss

    def terms(self, target: Tensor) -> Tensor:
        """Number of samples: each has its own mean over the unknown region."""
        return torch.tensor(len(target), device=target.device)

    def finish(self, output: Tensor, inputs: Tensor, size: tuple[int, int]) -> Tensor:
        """Alpha `(B, H, W)`, clipped to 0–1, without the padding, known pixels as the trimap has them."""
        return with_known(output, inputs)[:, 0, : size[0], : size[1]]

    def statistics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """SAD, MSE, Grad and Conn of each picture as `stored`."""
        rows = []
        for alpha, (truth, trimap) in zip(self.stored(prediction), (255 * target).round().byte(), strict=True):
            rows.append(matting_statistics(alpha, truth.numpy(), trimap.numpy()))
        return {metric.name: torch.tensor([[row[metric.name]] for row in rows]) for metric in self.metrics}

    def stored(self, prediction: Tensor) -> np.ndarray:
        """Predictions in the 8 bits of a PNG, uint8; cut off, not rounded, as the authors store what they score."""
        return (255 * prediction).to(torch.uint8).numpy()

    def show(self, data: Split) -> list[int]:
        """Six test pictures, evenly spaced over the set."""
        return evenly_spaced(data.test, 6)

    def picture(self, prediction: Tensor) -> np.ndarray:
        """Grey, 0–255."""
        return (255 * prediction).round().to(torch.uint8).numpy()

    def originals(self, sample: Sample) -> dict[str, np.ndarray]:
        """The picture, its trimap and its alpha."""
        image, target = sample
        height, width = target.shape[1:]
        mean, std = (torch.tensor(values)[:, None, None] for values in normalisation(self.trunk, self.weights))
        picture = self.picture((image[:3, :height, :width] * std + mean).clamp(0, 1).permute(1, 2, 0))
        alpha, trimap = self.picture(target)
        return {"input": picture, "trimap": trimap, "alpha": alpha}

    def error(self, prediction: Tensor, target: Tensor) -> np.ndarray:
        """Absolute difference."""
        return (prediction - target[:, 0]).abs().numpy()


def network_input(
    image: Tensor, trimap: Tensor, mean: tuple[float, ...], std: tuple[float, ...], multiple: int = MULTIPLE
) -> Tensor:
    """Picture and trimap as the network takes them, padded at the right and below to a multiple by reflection.

    Args:
        image: RGB, uint8, `(3, H, W)`.
        trimap: 0, 128 and 255, uint8, `(H, W)`.
        mean: Of the normalisation, in units of 0–1.
        std: The same.
        multiple: Of the padded sides.

    Returns:
        `(4, H', W')`.
    """
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    x = torch.cat(((image.float() / 255 - shift) / scale, trimap[None].float() / 255))
    rows, columns = (reflected(side, -side % multiple) for side in x.shape[1:])
    return x[:, rows][:, :, columns]


def reflected(side: int, more: int) -> Tensor:
    """Indices of `side` pixels and `more` reflected ones, back and forth where there are more than pixels."""
    index = torch.arange(side + more) % max(1, 2 * side - 2)
    return torch.minimum(index, 2 * side - 2 - index) if side > 1 else index


def with_known(output: Tensor, inputs: Tensor) -> Tensor:
    """The network's output clipped to 0–1, with 0 and 1 where the trimap in its input says so."""
    trimap = inputs[:, 3:]
    return torch.where(trimap > 0.75, 1.0, torch.where(trimap < 0.25, 0.0, output.float().clamp(0, 1)))
