"""Photographs in, label maps out: an indexed PNG and a coloured overlay for each, in the photo's own size.

Photos stream one by one. What is finished is whole on the disk, and a photo that cannot be read stops no other.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fadeup.checkpoint import load_weights, read_about, write
from fadeup.data.labelled import SUFFIXES, distinct_colours, read_photo
from fadeup.data.transforms import TestTransform
from fadeup.engine.evaluation import evaluating
from fadeup.models import SegFormer
from fadeup.models.weights import IMAGENET
from fadeup.recipes import RECIPES, Recipe, Segmentation

RESULTS = (".label.png", ".overlay.png")
STRIP = 2**22  # logits held at once in the photo's size
HUGGING_FACE_SIDE = 512  # the short side that most of its SegFormers were trained on


@dataclass(frozen=True)
class PhotoResult:
    """What became of a photo."""

    photo: Path
    label: Path
    """Indexed PNG: a pixel's value is its class, its colour the palette's."""
    overlay: Path
    shares: dict[str, float]
    """Part of the photo that each class found in it covers, the largest first; empty where it was not predicted."""
    error: str = ""
    """Why there are no results; empty where there are."""


@dataclass(frozen=True)
class Segmenter:
    """A trained segmentation network, and what turns photographs into its input and its output into pictures."""

    network: nn.Module
    transform: Callable[[Tensor], Tensor]
    classes: tuple[str, ...]
    palette: np.ndarray
    recipe: Segmentation | None  # None for a SegFormer of Hugging Face


def load_segmenter(model: str | Path, device: str | torch.device = "cpu", *, resize: int = 0) -> Segmenter:
    """A network that `fadeup train` has trained, or a SegFormer of Hugging Face, in evaluation mode.

    Args:
        model: Run folder, its `model.safetensors`, or a SegFormer's folder or name on the Hugging Face hub, which is
            taken with ImageNet's normalisation.
        device: Where the network is put.
        resize: Short side to which photos are resized; 0 for that of the test pictures in the recipe, or for 512 with
            a SegFormer of Hugging Face.

    Raises:
        FileNotFoundError: There is no such model, or its training is not finished.
        ValueError: The file is of another kind, of another task, or does not fit this version's recipes.
    """
    path = weights_file(model)
    if path is None:
        network = SegFormer.from_pretrained(str(model), "bilinear")
        classes, palette = tuple(network.classes or ()), distinct_colours(len(network.classes or ()))
        recipe, (mean, std), size = None, IMAGENET, resize or HUGGING_FACE_SIDE
    else:
        network, recipe, about = load_trained(path)
        if not isinstance(recipe, Segmentation):
            raise ValueError(f"{model} must be a segmentation network, got one of {recipe.task}")
        classes, palette = tuple(about["classes"]), np.array(about["palette"], np.uint8)
        mean, std = about["mean"], about["std"]
        size = resize or ((recipe.size, recipe.size) if recipe.size else recipe.resize or None)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Segmenter(network, TestTransform(size, mean=mean, std=std).prepare, classes, palette, recipe)


def load_trained(path: Path) -> tuple[nn.Module, Recipe, dict[str, Any]]:
    """The network of a `model.safetensors`, its recipe, and what the file says of them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: `fadeup train` did not write it, or a version whose recipes were others.
    """
    about = read_about(path)
    try:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about["recipe"].items()}
        recipe = RECIPES[about["task"]](**fields)
    except (KeyError, TypeError) as error:
        version = about.get("fadeup", "unknown")
        raise ValueError(f"{path} must be of a recipe of this version, got one of fadeup {version}: {error}") from error
    if isinstance(recipe, Segmentation):
        network = recipe.build(about["upsampler"], len(about["classes"]), None)
    else:
        network = recipe.model(about["upsampler"])
    load_weights(path, network)
    return network.eval(), recipe, about


def weights_file(model: str | Path) -> Path | None:
    """The file of a trained network's weights, for its run folder or itself; None for what Hugging Face may know.

    Raises:
        FileNotFoundError: There is no such model, or its training is not finished.
        ValueError: It is a file of another kind.
    """
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
        raise FileNotFoundError(f"{rule}, which does not exist")
    return None


def _is_hugging_face(folder: Path) -> bool:
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def find_photos(paths: Sequence[str | Path]) -> list[Path]:
    """Files as they are, folders as the photos in them by name, each photo once.

    In a folder, hidden files and the results of an earlier prediction are passed over, and folders within it too.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A folder holds no photos, or no paths are given.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"photos must be files or folders, got {path}, which does not exist")
        photos = sorted(entry for entry in path.iterdir() if _is_photo(entry)) if path.is_dir() else [path]
        if not photos:
            raise ValueError(f"{path} must hold photos ({', '.join(SUFFIXES)}), got none")
        for photo in photos:
            found.setdefault(photo.resolve(), photo)
    if not found:
        raise ValueError("photos must be at least one, got none; name files or folders")
    return list(found.values())


def _is_photo(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(SUFFIXES) and not name.startswith(".") and not name.endswith(RESULTS) and path.is_file()


@torch.no_grad()
def segment_photo(
    model: nn.Module, photo: Tensor, transform: Callable[[Tensor], Tensor], *, device: str | torch.device = "cpu"
) -> Tensor:
    """Each pixel's class: the logits, resized bilinearly to the photo's size, are largest there.

    The resized logits are never held whole (14 GB for 150 classes and 24 megapixels), a strip of rows at a time is.
    Equals `F.interpolate(logits, size, mode="bilinear").argmax(1)` but for ties within rounding.

    Args:
        model: Gives logits `(1, C, h, w)` of any size for an input `(1, 3, h', w')`; in evaluation mode meanwhile.
        photo: RGB, uint8, `(3, H, W)`.
        transform: Photo to the network's input `(3, h', w')`, of the same field of view.
        device: Where the model is.

    Returns:
        uint8, `(H, W)`, on the CPU.

    Raises:
        ValueError: The photo is no such tensor, or the logits are not of that shape, not finite, or of more classes
            than a label map with 255 as "ignored" holds.
    """
    _check_photo(photo)
    with evaluating(model):
        logits = model(transform(photo)[None].to(device))
    if logits.ndim != 4 or len(logits) != 1 or 0 in logits.shape:
        raise ValueError(f"model must give logits (1, classes, height, width), got {tuple(logits.shape)}")
    if logits.shape[1] > 255:
        raise ValueError(f"model must give at most 255 classes, got {logits.shape[1]}")
    if not logits.isfinite().all():
        raise ValueError("model must give finite logits, got NaN or infinity; try float32 or other weights")
    return _resized_argmax(logits[0].float(), photo.shape[1], photo.shape[2])


def _resized_argmax(logits: Tensor, height: int, width: int) -> Tensor:
    """`(C, h, w)` logits to `(height, width)` labels, with rows interpolated before columns."""
    lines = logits.shape[1]
    at = ((torch.arange(height, device=logits.device) + 0.5) * (lines / height) - 0.5).clamp(min=0)
    above = at.long().clamp(max=lines - 1)
    below = (above + 1).clamp(max=lines - 1)
    weight = (at - above)[:, None]
    labels = torch.empty(height, width, dtype=torch.uint8)
    step = max(1, STRIP // (len(logits) * width))
    for start in range(0, height, step):
        rows = slice(start, start + step)
        strip = torch.lerp(logits[:, above[rows]], logits[:, below[rows]], weight[rows])
        strip = F.interpolate(strip[None], (strip.shape[1], width), mode="bilinear", align_corners=False)
        labels[rows] = strip.max(dim=1).indices[0]  # three times as fast as argmax over this dimension
    return labels


def overlay(photo: Tensor, labels: Tensor, palette: np.ndarray, opacity: float = 0.5) -> Tensor:
    """The photo with its classes' colours laid over it, and a line of half the brightness between classes.

        out = (1 - opacity) · photo + opacity · palette[label],    halved in the two pixels beside a change of label

    Args:
        photo: RGB, uint8, `(3, H, W)`.
        labels: uint8, `(H, W)`; 255 is left uncoloured.
        palette: RGB, uint8, `(classes, 3)`.
        opacity: 0–1.

    Returns:
        RGB, uint8, `(3, H, W)`.

    Raises:
        ValueError: Sizes differ, a label is not in the palette, or `opacity` is outside 0–1.
    """
    _check_photo(photo)
    _check_palette(palette)
    if labels.shape != photo.shape[1:] or labels.dtype != torch.uint8:
        wanted = tuple(photo.shape[1:])
        raise ValueError(f"labels must be uint8 {wanted} like photo, got {labels.dtype} {tuple(labels.shape)}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be 0 to 1, got {opacity}")
    highest = int(labels.where(labels != 255, 0).max())
    if highest >= len(palette):
        raise ValueError(f"labels must be 0 to {len(palette) - 1} or 255, as palette has colours for, got {highest}")
    colours, shown = torch.zeros(256, 3), torch.zeros(256)
    colours[: len(palette)] = torch.from_numpy(palette).float() * opacity
    shown[: len(palette)] = opacity
    line = _label_changes(labels)
    out = torch.empty_like(photo)
    for start in range(0, len(labels), 256):  # floats of a whole photo of 24 megapixels would take a gigabyte
        rows = slice(start, start + 256)
        index = labels[rows].long()
        blend = photo[:, rows] * (1 - shown[index]) + colours[index].permute(2, 0, 1)
        out[:, rows] = torch.where(line[rows], blend / 2, blend).round()
    return out


def _label_changes(labels: Tensor) -> Tensor:
    """Pixels whose neighbour beside, above or below has another label."""
    changes = torch.zeros_like(labels, dtype=torch.bool)
    beside, below = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    for part, change in (
        (changes[:, 1:], beside),
        (changes[:, :-1], beside),
        (changes[1:], below),
        (changes[:-1], below),
    ):
        part |= change
    return changes


def segment_photos(
    model: nn.Module,
    photos: Sequence[str | Path],
    out: str | Path,
    *,
    transform: Callable[[Tensor], Tensor],
    palette: np.ndarray,
    classes: Sequence[str],
    opacity: float = 0.5,
    overwrite: bool = False,
    device: str | torch.device = "cpu",
    on_photo: Callable[[PhotoResult], None] = lambda result: None,
) -> list[PhotoResult]:
    """Write `<stem>.label.png` and `<stem>.overlay.png` of each photo, each file whole or not at all.

    One photo is in memory at a time. One that cannot be read or predicted is reported in its result, and the others go
    on; a file that cannot be written ends the run, since the next one could not be written either.

    Args:
        model: As for `segment_photo`.
        photos: Files, as `find_photos` gives them.
        out: Folder for the results, made where it is missing.
        transform: As for `segment_photo`.
        palette: RGB, uint8, `(classes, 3)`.
        classes: Names of the classes.
        opacity: Of the colours in the overlay, 0–1.
        overwrite: Replace results of an earlier run.
        device: Where the model is.
        on_photo: Called with each result as soon as it is there.

    Returns:
        A result for each photo, in their order.

    Raises:
        ValueError: Two photos have one stem, results are there and `overwrite` is not set, or the palette does not fit;
            nothing has been written then.
        OSError: A result cannot be written; the message names it.
    """
    _check_palette(palette)
    if len(classes) != len(palette):
        raise ValueError(f"classes must be {len(palette)} names, one for each colour of palette, got {len(classes)}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be 0 to 1, got {opacity}")
    planned = _plan([Path(photo) for photo in photos], Path(out), overwrite)
    Path(out).mkdir(parents=True, exist_ok=True)
    results = []
    for photo, label, coloured in planned:
        shares, error = {}, ""
        try:
            pixels = read_photo(photo)
            labels = segment_photo(model, pixels, transform, device=device)
            picture = overlay(pixels, labels, palette, opacity)
        except (ValueError, OSError, RuntimeError, MemoryError) as problem:
            error = str(problem) if photo.name in str(problem) else f"{photo}: {problem or type(problem).__name__}"
        else:
            _write(label, _label_png(labels, palette))
            _write(coloured, _png(Image.fromarray(picture.permute(1, 2, 0).numpy())))
            shares = _shares(labels, classes)
        results.append(PhotoResult(photo, label, coloured, shares, error))
        on_photo(results[-1])
    return results


def _plan(photos: list[Path], out: Path, overwrite: bool) -> list[tuple[Path, Path, Path]]:
    """Each photo with the names of its two results, none of which is another photo's or, unless asked, there."""
    stems: dict[str, Path] = {}
    for photo in photos:
        other = stems.setdefault(photo.stem.casefold(), photo)  # some file systems know no case
        if other is not photo:
            raise ValueError(
                f"photos must have different names without suffix, got {other} and {photo}; "
                "rename one, or predict them into different folders"
            )
    planned = [(photo, out / (photo.stem + RESULTS[0]), out / (photo.stem + RESULTS[1])) for photo in photos]
    targets = [target for _, *pair in planned for target in pair]
    inputs = {photo.resolve() for photo in photos}
    for target in targets:
        if target.resolve() in inputs:
            raise ValueError(f"{out} must be another folder, got one where {target.name} is itself a photo to predict")
    there = [target for target in targets if target.exists()]
    if there and not overwrite:
        raise ValueError(
            f"{out} must not hold these photos' results, got {there[0].name} and {len(there) - 1} more; "
            "set overwrite or choose another folder"
        )
    return planned


def _write(path: Path, content: bytes) -> None:
    try:
        write(path, content)
    except OSError as error:
        raise OSError(f"{path} must be a file that can be written, got {error}") from error


def _label_png(labels: Tensor, palette: np.ndarray) -> bytes:
    image = Image.fromarray(labels.numpy())
    image.putpalette(palette.tobytes())
    return _png(image)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _shares(labels: Tensor, classes: Sequence[str]) -> dict[str, float]:
    counts = torch.bincount(labels.flatten(), minlength=len(classes))
    order = [int(index) for index in counts.argsort(descending=True, stable=True)]
    return {classes[index]: int(counts[index]) / labels.numel() for index in order if counts[index]}


def _check_photo(photo: Tensor) -> None:
    if photo.dtype != torch.uint8 or photo.ndim != 3 or len(photo) != 3 or 0 in photo.shape:
        raise ValueError(f"photo must be uint8 (3, height, width), got {photo.dtype} {tuple(photo.shape)}")


def _check_palette(palette: np.ndarray) -> None:
    if palette.dtype != np.uint8 or palette.ndim != 2 or palette.shape[1] != 3 or not 1 <= len(palette) <= 255:
        raise ValueError(f"palette must be uint8 (1 to 255, 3), got {palette.dtype} {palette.shape}")
