"""Matting on the cut-outs that Debian ships, or on your own.

fadeup compare cutouts
fadeup train folder --source FOLDER          a folder with foregrounds/ and backgrounds/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch.utils.data import Dataset

from fadeup.data.cutouts import cutouts
from fadeup.data.matting_folder import matting_folder
from fadeup.recipes.composition1k import Composition1K
from fadeup.recipes.matting import Matting


@dataclass(frozen=True)
class Cutouts(Matting):
    """Cut-out photographs of Tux Paint on photographs of two sets of wallpapers, and 200 fixed test composites."""

    task: ClassVar[str] = "cutouts"
    words: ClassVar[str] = "Tux Paint's cut-outs on photographs"
    remark: ClassVar[str] = (
        "The paper's network is ten times larger and was trained 360 times longer on larger pictures. With 500 steps "
        "its order does not show: IndexNet and bilinear are ahead, FADE is behind (lab log)."
    )
    adapted: ClassVar[bool] = True
    cached: ClassVar[bool] = True
    test_batch: ClassVar[int] = 8

    trunk: str = "tf_efficientnet_lite0"
    crop: int = 128
    largest_kernel: int = 15
    batch_size: int = 8
    images: int = 800
    iterations: int = 500
    precision: str = "bfloat16"
    algorithm: str = "adamw"
    learning_rate: float = 5e-4
    head_factor: float = 10.0
    upsampler_factor: float = 1.0
    weight_decay: float = 0.01
    warmup: float = 0.05
    schedule: str = "cosine"

    @classmethod
    def from_paper(cls) -> Self:
        """The papers' network, optimizer and schedule on these pictures."""
        paper = Composition1K.from_paper()
        changed = ("trunk", "crop", "largest_kernel", "batch_size", "images", "epochs", "algorithm", "learning_rate")
        changed += ("head_factor", "upsampler_factor", "weight_decay", "warmup", "schedule", "precision")
        return cls(iterations=0, **{name: getattr(paper, name) for name in changed})

    def ingredients(self) -> tuple[Any, Any]:
        """The training cut-outs and backgrounds."""
        return cutouts("train", self.source)

    def test_set(self) -> Dataset[Any]:
        """200 composites of 256 x 256."""
        return cutouts("test", self.source)


@dataclass(frozen=True)
class MattingFolder(Cutouts):
    """Your own cut-outs and backgrounds, as `fadeup.data.matting_folder` describes them."""

    task: ClassVar[str] = "matting-folder"
    words: ClassVar[str] = "your folder"
    cached: ClassVar[bool] = False
    test_batch: ClassVar[int] = 1

    iterations: int = 2000

    def ingredients(self) -> tuple[Any, Any]:
        """Your cut-outs and backgrounds."""
        return matting_folder("train", self.source)

    def test_set(self) -> Dataset[Any]:
        """Your test pictures, or composites of the cut-outs held out."""
        return matting_folder("test", self.source)
