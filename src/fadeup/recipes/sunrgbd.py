"""SUN RGB-D (FADE, Table 1, left half).

fadeup compare sunrgbd --source FOLDER
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from fadeup.data.labelled import LabelledImages
from fadeup.data.sunrgbd import sunrgbd
from fadeup.recipes.segmentation import Segmentation


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
