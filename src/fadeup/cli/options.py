"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

OTHER_NAMES = {"segmentation": "landcover", "matting": "cutouts"}
"""What a task may be called besides."""
PLACED = ("epochs", "train_images", "test_images", "source")
"""Options that are fields of a recipe."""


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """What to train, apart from the upsampler and the seed."""
    parser.add_argument("--protocol", default="quick", help="quick (default) or paper")
    parser.add_argument("--epochs", type=positive, metavar="N", help="in place of the protocol's")
    parser.add_argument("--train-images", type=positive, metavar="N", help="in place of the protocol's")
    parser.add_argument("--test-images", type=positive, metavar="N", help="in place of the protocol's")
    parser.add_argument("--source", help="folder with the data set; assets or full where it ships with the package")
    parser.add_argument("--set", nargs="+", metavar="FIELD=VALUE", help="any other field of the recipe, as in its docs")


def run_folder(arguments: argparse.Namespace, default: str) -> Path:
    """The folder of a run: `--name` in `--out`.

    Raises:
        ValueError: The name leads out of it.
    """
    name = Path(arguments.name or default)
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"--name must be a name within {arguments.out}, got {arguments.name!r}; --out is the folder")
    return arguments.out / name


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Where to compute."""
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument("--workers", type=natural, default=0, metavar="N", help="processes that load data (default: 0)")


def chosen_recipe(task: str, arguments: argparse.Namespace) -> Any:
    """The protocol of that name, with what the command line sets in its place.

    Raises:
        ValueError: The task is unknown, or an option does not fit its recipe.
    """
    from fadeup.recipes import RECIPES

    task = OTHER_NAMES.get(task, task)
    if task == "folder" and arguments.source and (Path(arguments.source) / "foregrounds").is_dir():
        task = "matting-folder"  # cut-outs and backgrounds, in place of images and labels
    kind = RECIPES.get(task)
    if kind is None:
        raise ValueError(f"task must be one of {', '.join(RECIPES)}, got {task!r}")
    known = {field.name for field in fields(kind)}
    given = {name: getattr(arguments, name) for name in PLACED if getattr(arguments, name) is not None}
    for name in given.keys() - known:
        raise ValueError(f"--{name.replace('_', '-')} must be left out for {kind.task}, got {given[name]!r}")
    if "epochs" in given and "iterations" in known:
        given["iterations"] = 0  # they would take the place of the epochs
    recipe = kind.protocol(arguments.protocol)
    for pair in arguments.set or ():
        name, sign, text = pair.partition("=")
        if not sign or name not in known:
            raise ValueError(f"--set must be FIELD=VALUE with one of {', '.join(sorted(known))}, got {pair!r:.200}")
        given[name] = _like(getattr(recipe, name), name, text)
    return replace(recipe, **given)


def _like(value: Any, name: str, text: str) -> Any:
    """The text as a value of the same kind; whatever it says where the present one is None."""
    from fadeup.upsamplers import literal

    given = literal(text)
    if isinstance(value, float) and type(given) is int:
        given = float(given)
    if value is not None and given is not None and type(given) is not type(value):
        raise ValueError(f"--set {name} must be of type {type(value).__name__}, as {value!r} is, got {text!r:.200}")
    return given


def check_device(device: str) -> None:
    """Refuse a device that torch does not have here.

    Raises:
        ValueError: With torch's reason.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device must be one that torch can use here, got {device!r}: {reason}") from error


def progress_bar(console: Any, *columns: Any) -> Any:
    """A bar of rich that leaves nothing behind, and is not there where no terminal is."""
    from rich.progress import Progress

    shown = (*Progress.get_default_columns(), *columns)
    return Progress(*shown, console=console, transient=True, disable=not console.is_terminal)


def written(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file; an error names it."""
    try:
        write(path)
    except OSError as error:
        raise OSError(f"{path} must be a file that can be written, got {error}") from error


def save(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file and say so."""
    written(path, write)
    print(f"wrote {path}")


def positive(text: str) -> int:
    """A number of 1 or more."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """A number of 0 or more."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"must be {least} or more, got {value}")
    return value
