"""Networks that `fadeup train` has written, and those that ship with the package."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import fadeup
from fadeup.checkpoint import read_about, save_weights
from fadeup.models.pretrained import Pretrained, class_names, downloaded_weights, rebuilt
from fadeup.predict.provenance import provenance
from fadeup.reading import read_json
from fadeup.recipes import RECIPES, Recipe

ASSETS = Path(__file__).parent.parent / "assets"
"""Holds `models.json` and the files that it lists."""


def save_trained(
    path: Path, recipe: Recipe, network: nn.Module, *, upsampler: str, seed: int, scores: dict[str, float]
) -> dict[str, Any]:
    """Write a trained network's weights with all that is needed to use them.

    Returns:
        What the file says of the network.
    """
    about = {
        "fadeup": fadeup.__version__,
        "task": recipe.task,
        "recipe": asdict(recipe),
        "upsampler": upsampler,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "scores": scores,
        **recipe.description(),
    }
    save_weights(path, network, about)
    return about


def load_trained(path: Path) -> tuple[nn.Module, Recipe, dict[str, Any]]:
    """The network of a `model.safetensors`, its recipe, and what the file says of them.

    A file may leave out a frozen trunk, which is then built with the weights that it started from.

    Raises:
        FileNotFoundError: There is no such file, or the trunk's weights are not within reach.
        ValueError: `fadeup train` did not write it, or a version whose recipes were others.
        ModuleNotFoundError: A package that holds the network or its trunk's weights is missing.
    """
    about = read_about(path)
    if "recipe" not in about and "network" in about:
        raise ValueError(
            f"{path} must be weights that fadeup train wrote, got a network that was saved without a recipe; load it "
            f"in Python by {about['network']}.from_pretrained"
        )
    recipe = _recipe(path, about)
    network = rebuilt(path, about, partial(_built, path, recipe, about))
    if isinstance(network, Pretrained):
        network.classes = class_names(about.get("classes"), str(path))
        try:
            network.record = provenance(recipe, about)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} must tell scores as numbers, got {error!r:.200}") from error
    return network, recipe, about


def _recipe(path: Path, about: dict[str, Any]) -> Recipe:
    """The recipe that the file tells, its fields of the kinds that they have in this version."""
    version = about.get("fadeup", "unknown")
    try:
        kind, given = RECIPES[about["task"]], about["recipe"]
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        recipe, usual = kind(**fields), kind()
        for name, value in fields.items():
            like = getattr(usual, name)
            if like is not None and value is not None and not isinstance(value, (type(like), int)):
                raise TypeError(f"{value!r:.80} as {name}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} must be of a recipe of this version, got one of fadeup {version!s:.20}: {error!s:.300}"
        ) from error
    return recipe


def _built(path: Path, recipe: Recipe, about: dict[str, Any], weights: str | None) -> nn.Module:
    try:
        return recipe.rebuild(about["upsampler"], about, weights)
    except (FileNotFoundError, ModuleNotFoundError):  # of the trunk's weights, or of a package
        raise
    except Exception as error:  # arguments that make no network fail in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise ValueError(f"{path} must tell how its network is built, got {reason}") from error


def shipped(task: str | None = None) -> dict[str, dict[str, Any]]:
    """The trained networks that ship with this version: their entries in `assets/models.json`, by name.

    Args:
        task: Of the recipe that they were trained by; None for all.
    """
    file = ASSETS / "models.json"
    entries = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return {entry["name"]: entry for entry in entries if task in (None, entry["task"])}


def default_model(name: str) -> str:
    """The name, where a network of that name ships with this version.

    Raises:
        ValueError: None does.
    """
    if name not in shipped():
        raise ValueError("model must be given, got none; no trained network ships with this version")
    return name


def weights_file(model: str | Path) -> Path | None:
    """The file of a trained network's weights; None for what Hugging Face may know.

    Args:
        model: Name of a network that ships with the package (a folder of that name is `./name`), run folder or folder
            that `save_pretrained` wrote, the file itself, or name on the hub of a network that was downloaded before.

    Raises:
        FileNotFoundError: There is no such model, or its training is not finished.
        ValueError: It is a file of another kind.
    """
    ours = shipped()
    if str(model) in ours:
        return ASSETS / ours[str(model)]["file"]
    path = Path(model)
    rule = f"model must be a run folder, a .safetensors file or a SegFormer of Hugging Face, got {str(model)!r}"
    if path.is_dir() and _is_hugging_face(path):
        return None
    if path.is_dir():
        file = path / "model.safetensors"
        if not file.is_file():
            raise FileNotFoundError(f"{rule}, without model.safetensors; fadeup train writes it when it has finished")
        return file
    if path.suffix == ".safetensors":
        return path
    if path.exists():
        raise ValueError(f"{rule}, another kind of file")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)) or path.parent.is_dir():
        names = f"; {', '.join(ours)} ship with this version" if ours else ""
        raise FileNotFoundError(f"{rule}, which does not exist{names}")
    return downloaded_weights(str(model))


def _is_hugging_face(folder: Path) -> bool:
    try:
        config = read_json(folder / "config.json")
        return isinstance(config, dict) and "model_type" in config
    except (OSError, ValueError):
        return False
