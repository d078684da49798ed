"""A2U matting on Composition-1K (FADE, Table 3: SAD 37.31 bilinear, 31.10 FADE).

fadeup train composition1k --protocol paper --source FOLDER
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch.utils.data import Dataset

from fadeup.data.composition1k import composition1k
from fadeup.recipes.matting import Matting


@dataclass(frozen=True)
class Composition1K(Matting):
    """Adobe's Composition-1K: 431 foregrounds on COCO for training, 50 on 20 pictures of VOC each for test.

    A2U's published protocol: 30 epochs of 6,000 steps, batch 16, crops of 512, Adam with 0.01 for the decoder and 1e-4
    for trunk and upsamplers, ten times less after 20 and 26 epochs. The quick form is a hundredth of that.
    """

    task: ClassVar[str] = "composition1k"
    words: ClassVar[str] = "Composition-1K"

    images: int = 960
    epochs: int = 30

    @classmethod
    def from_paper(cls) -> Self:
        """180,000 steps."""
        return cls(images=96_000)

    def ingredients(self) -> tuple[Any, Any]:
        """431 foregrounds, COCO."""
        return composition1k("train", self.source)

    def test_set(self) -> Dataset[Any]:
        """1,000 composites."""
        return composition1k("test", self.source)
