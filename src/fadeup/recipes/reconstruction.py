"""Image reconstruction: Fashion-MNIST (FADE, Table 1, right half), and colour photographs.

The paper: PSNR 24.35 decoder-only, 32.25 encoder-only, 33.83 dB with kernels from both.

    fadeup compare reconstruction                       the shipped subset, minutes on 2 cores
    fadeup compare reconstruction --protocol paper      60,000 pictures, 100 epochs; see the lab log for its cost

The protocol is after Index Networks (TPAMI 2022), which the paper follows: 32 x 32, ℓ1 loss, SGD with learning rate
0.01, batch 100, 100 epochs, rate divided by ten after 50, 70 and 85 % of them. Its text was not retrievable, so that
these are our choice, as are momentum 0.9, bilinear resizing from 28 x 28 and clipping of predictions to 0–1.

    fadeup compare reconstruction-colour                the same in colour, on the satellite tiles that ship
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fadeup.data.fashion_mnist import fashion_mnist
from fadeup.data.landcover import landcover
from fadeup.data.loading import Sample
from fadeup.metrics import mae, psnr, rmse, ssim
from fadeup.models import Autoencoder
from fadeup.recipes.recipe import Metric, Recipe, Split


@dataclass(frozen=True)
class Reconstruction(Recipe):
    """Autoencoder on Fashion-MNIST; the upsampler alone changes.

    Args:
        source: As in `fadeup.data.fashion_mnist.fashion_mnist`.
        train_images: The first so many training pictures; all where fewer.
        test_images: The first so many test pictures; all where fewer.
        size: Side to which pictures are resized.
        epochs: Passes over the training pictures.
        batch_size: Pictures a step.
        learning_rate: Of SGD, at the start.
        momentum: Of SGD.
        pooling: `"max"`, or `"guided"` for the pooling half of IndexNet and A2U.
    """

    task: ClassVar[str] = "reconstruction"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("psnr", "PSNR dB", "higher", 2),
        Metric("ssim", "SSIM %", "higher", 2),
        Metric("mae", "MAE", "lower", 4),
        Metric("rmse", "RMSE", "lower", 4),
    )
    upsamplers: ClassVar[tuple[str, ...]] = ("bilinear", "carafe", "b1", "b3", "fade")
    notes: ClassVar[dict[str, str]] = {
        "carafe": "decoder-only",
        "b2": "decoder-only",
        "b1": "encoder-only",
        "b3": "encoder + decoder",
        "b4": "semi-shift",
        "b5": "semi-shift, skip",
        "b6": "semi-shift, gate",
        "fade": "semi-shift, gate",
        "fade_lite": "depthwise, gate",
    }
    paper: ClassVar[dict[str, dict[str, float]]] = {
        "carafe": {"psnr": 24.35, "ssim": 87.19, "mae": 0.0357, "rmse": 0.0643},
        "b1": {"psnr": 32.25, "ssim": 97.73, "mae": 0.0157, "rmse": 0.0257},
        "b3": {"psnr": 33.83, "ssim": 98.47, "mae": 0.0122, "rmse": 0.0218},
    }
    paper_protocol: ClassVar[str] = "60,000 pictures, 100 epochs, one run, in FADE's Table 1"
    remark: ClassVar[str] = (
        "The gate of fade lets encoder features into the result; carafe, b1 and b3 pass on decoder features only, "
        "weighed by kernels. The paper's table has no gate: its counterpart without one is b4."
    )

    shown: ClassVar[str] = "Test pictures with the most detail"
    test_batch: ClassVar[int] = 100

    source: str = "assets"
    train_images: int = 1600
    test_images: int = 500
    size: int = 32
    epochs: int = 3
    batch_size: int = 20
    learning_rate: float = 0.05
    momentum: float = 0.9
    pooling: str = "max"

    @classmethod
    def from_paper(cls) -> Self:
        """60,000 pictures, 100 epochs."""
        return cls(
            source="full", train_images=60_000, test_images=10_000, epochs=100, batch_size=100, learning_rate=0.01
        )

    @property
    def trained(self) -> str:
        """The autoencoder."""
        return "autoencoder from scratch, Fashion-MNIST"

    def data(self) -> Split:
        """Pictures 0–1, `(1, size, size)`; the target is the input."""
        train, test = (
            self._pictures(split, n) for split, n in (("train", self.train_images), ("test", self.test_images))
        )
        return Split(TensorDataset(train, train), TensorDataset(test, test))

    def model(self, upsampler: str) -> nn.Module:
        """The autoencoder."""
        return Autoencoder(upsampler, pooling=self.pooling)

    def optimizer(
        self, model: nn.Module, steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """SGD; the rate falls tenfold after 50, 70 and 85 % of the steps."""
        optimizer = torch.optim.SGD(model.parameters(), self.learning_rate, self.momentum)
        milestones = [int(steps * part) for part in (0.5, 0.7, 0.85)]
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """ℓ1."""
        return F.l1_loss(output, target)

    def finish(self, output: Tensor, inputs: Tensor, size: tuple[int, int]) -> Tensor:
        """Clipped to 0–1."""
        return output.clamp(0, 1)

    def statistics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """PSNR (dB), SSIM (%), MAE and RMSE of each picture; tables average them over pictures."""
        values = {"psnr": psnr, "mae": mae, "rmse": rmse}
        result = {name: function(prediction, target)[:, None] for name, function in values.items()}
        return result | {"ssim": 100 * ssim(prediction, target)[:, None]}

    def show(self, data: Split) -> list[int]:
        """The six test pictures with the most detail, by their mean gradient: there upsamplers differ."""
        pictures = torch.stack([target for _, target in data.test])  # type: ignore[not-iterable]
        detail = pictures.diff(dim=2).abs().mean(dim=(1, 2, 3)) + pictures.diff(dim=3).abs().mean(dim=(1, 2, 3))
        return detail.topk(min(6, len(pictures))).indices.tolist()

    def picture(self, prediction: Tensor) -> np.ndarray:
        """Grey or RGB, 0–255."""
        pixels = (prediction * 255).round().to(torch.uint8).movedim(1, -1)
        return (pixels[..., 0] if pixels.shape[-1] == 1 else pixels).numpy()

    def originals(self, sample: Sample) -> dict[str, np.ndarray]:
        """The picture, which is input and target in one."""
        return {"input = target": self.picture(sample[1][None])[0]}

    def error(self, prediction: Tensor, target: Tensor) -> np.ndarray:
        """Absolute difference, the mean over colours."""
        return (prediction - target).abs().mean(dim=1).numpy()

    def _pictures(self, split: str, count: int) -> Tensor:
        images = torch.from_numpy(fashion_mnist(split, self.source)[0][:count].copy())
        resized = F.interpolate(images[:, None].float() / 255, (self.size, self.size), mode="bilinear")
        return resized.clamp(0, 1)


@dataclass(frozen=True)
class ColourReconstruction(Reconstruction):
    """The same network for colour photographs, half as wide, on squares of the satellite tiles that ship.

    Args:
        source: As in `fadeup.data.landcover.landcover`.
        size: Side of the squares that the tiles of 256 x 256 are cut into; a divisor of 256.
        channels: Widths of the network's levels.
    """

    task: ClassVar[str] = "reconstruction-colour"
    upsamplers: ClassVar[tuple[str, ...]] = ("bilinear", "carafe", "a2u", "fade")
    paper: ClassVar[dict[str, dict[str, float]]] = {}
    paper_protocol: ClassVar[str] = ""
    remark: ClassVar[str] = "The gate of fade lets encoder features into the result; the others pass on the decoder's."

    train_images: int = 704
    test_images: int = 208
    size: int = 64
    epochs: int = 20
    batch_size: int = 16
    channels: tuple[int, ...] = (16, 32, 64)

    @classmethod
    def from_paper(cls) -> Self:
        """No paper has it; five times the epochs."""
        return cls(epochs=100)

    @property
    def trained(self) -> str:
        """The autoencoder."""
        return "autoencoder from scratch, satellite tiles in colour"

    def model(self, upsampler: str) -> nn.Module:
        """The autoencoder."""
        return Autoencoder(upsampler, channels=self.channels, in_channels=3, pooling=self.pooling)

    def _pictures(self, split: str, count: int) -> Tensor:
        if 256 % self.size:
            raise ValueError(f"size must be a divisor of 256, the side of the tiles, got {self.size}")
        tiles = landcover(split, self.source)
        photos = torch.stack([tiles.photo(index) for index in range(len(tiles))]).float() / 255
        squares = photos.unfold(2, self.size, self.size).unfold(3, self.size, self.size)  # (N, 3, rows, columns, ...)
        return squares.permute(2, 3, 0, 1, 4, 5).reshape(-1, 3, self.size, self.size)[:count].contiguous()
