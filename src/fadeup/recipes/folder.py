"""Your own folder of images and label PNGs.

fadeup train folder --source FOLDER
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from fadeup.data.folder import folder
from fadeup.data.labelled import LabelledImages
from fadeup.recipes.ade20k import ADE20K
from fadeup.recipes.segmentation import Segmentation


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
        return cls(
            backbone=paper.backbone,
            channels=paper.channels,
            resize=paper.resize,
            crop=paper.crop,
            batch_size=paper.batch_size,
            learning_rate=paper.learning_rate,
            iterations=paper.iterations // 4,
        )
