"""Weizmann Horse (FADE, Table 2).

fadeup compare weizmann --source FOLDER
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from fadeup.data.labelled import LabelledImages
from fadeup.data.weizmann import weizmann
from fadeup.recipes.segmentation import Segmentation


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
