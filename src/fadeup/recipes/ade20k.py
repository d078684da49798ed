"""ADE20K (FADE, Table 3).

fadeup train ade20k --protocol paper --source FOLDER --device cuda
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from fadeup.data.ade20k import ade20k
from fadeup.data.labelled import LabelledImages
from fadeup.recipes.segmentation import Segmentation


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
