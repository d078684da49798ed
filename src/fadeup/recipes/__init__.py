"""Experiments of the papers, and one for each data set that a user can get, a frozen dataclass each."""

from fadeup.recipes.ade20k import ADE20K
from fadeup.recipes.camvid import CamVid
from fadeup.recipes.composition1k import Composition1K
from fadeup.recipes.cutouts import Cutouts, MattingFolder
from fadeup.recipes.folder import Folder
from fadeup.recipes.landcover import LandCover
from fadeup.recipes.matting import Matting
from fadeup.recipes.recipe import Metric, Recipe, Split
from fadeup.recipes.reconstruction import ColourReconstruction, Reconstruction
from fadeup.recipes.segmentation import Segmentation
from fadeup.recipes.sunrgbd import SUNRGBD
from fadeup.recipes.weizmann import Weizmann

RECIPES: dict[str, type[Recipe]] = {
    kind.task: kind
    for kind in (
        Reconstruction,
        Weizmann,
        CamVid,
        LandCover,
        ColourReconstruction,
        ADE20K,
        SUNRGBD,
        Folder,
        Composition1K,
        Cutouts,
        MattingFolder,
    )
}

__all__ = [
    "ADE20K",
    "RECIPES",
    "SUNRGBD",
    "CamVid",
    "ColourReconstruction",
    "Composition1K",
    "Cutouts",
    "Folder",
    "LandCover",
    "Matting",
    "MattingFolder",
    "Metric",
    "Recipe",
    "Reconstruction",
    "Segmentation",
    "Split",
    "Weizmann",
]
