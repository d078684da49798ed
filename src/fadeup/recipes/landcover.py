"""Land cover, on the tiles shipped with the package.

fadeup compare landcover
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from fadeup.data.labelled import LabelledImages
from fadeup.data.landcover import landcover
from fadeup.recipes.segmentation import Segmentation


@dataclass(frozen=True)
class LandCover(Segmentation):
    """Land cover from space: 6 classes (IGBP groups) on NASA's Blue Marble, split by bands of longitude.

    `source` is `"assets"` (the tiles shipped here), `"full"` (all tiles, from two packages) or a folder.
    """

    task: ClassVar[str] = "landcover"
    remark: ClassVar[str] = (
        "A short schedule favours what has nothing to learn. With 200 steps FADE is ahead of bilinear in boundary IoU "
        "and behind in mIoU, neither beyond doubt (lab log)."
    )
    load: ClassVar[Callable[..., LabelledImages]] = staticmethod(landcover)
    splits: ClassVar[tuple[str, str]] = ("train", "test")

    source: str | None = "assets"
    crop: int = 128
    scale: tuple[float, float] = (0.75, 1.5)
    learning_rate: float = 3e-4
    batch_size: int = 8
    iterations: int = 80

    @classmethod
    def from_paper(cls) -> Self:
        """The tiles cut from their sources, 2,000 steps."""
        return cls(source="full", iterations=2000)
