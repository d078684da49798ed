"""Experiments of the papers, one frozen dataclass each."""

from fadeup.recipes.recipe import Metric, Recipe, Split
from fadeup.recipes.reconstruction import Reconstruction

RECIPES: dict[str, type[Recipe]] = {"reconstruction": Reconstruction}

__all__ = ["RECIPES", "Metric", "Recipe", "Reconstruction", "Split"]
