"""CamVid.

fadeup compare camvid --source FOLDER
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from fadeup.data.camvid import camvid
from fadeup.data.labelled import LabelledImages
from fadeup.recipes.segmentation import Segmentation


@dataclass(frozen=True)
class CamVid(Segmentation):
    """CamVid with SegFormer's head: trained on the 367 pictures of `train`, scored on the 101 of `val`, 11 classes.

    The papers have no such table; FADE's Table 4 (SegFormer-B1, ADE20K) is the nearest.
    """

    task: ClassVar[str] = "camvid"
    load: ClassVar[Callable[..., LabelledImages]] = staticmethod(camvid)

    learning_rate: float = 3e-4
    batch_size: int = 4
    iterations: int = 400

    @classmethod
    def from_paper(cls) -> Self:
        """SegFormer-B1 as on ADE20K, 20,000 steps of crops of 352."""
        return cls(backbone="mit_b1", channels=256, crop=352, batch_size=16, iterations=20_000, learning_rate=6e-5)
