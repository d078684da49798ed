"""Photographs in, label maps out: an indexed PNG and a coloured overlay for each, in the photo's own size.

Photos stream one by one. What is finished is whole on the disk, and a photo that cannot be read stops no other.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fadeup.data.labelled import distinct_colours, read_photo
from fadeup.data.matting import png
from fadeup.data.transforms import TestTransform
from fadeup.journal import network_digest
from fadeup.models import SegFormer
from fadeup.plug.trace import evaluating
from fadeup.predict.photos import LABELS, Results, check_photo, short_digest
from fadeup.predict.trained import load_trained, weights_file
from fadeup.recipes import Segmentation

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
    resumed: bool = False
    """Whether they were there from an interrupted run."""


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
        model: Name of a network that ships with the package, run folder, its `model.safetensors`, or a SegFormer's
            folder or name on the Hugging Face hub, which is taken with ImageNet's normalisation.
        device: Where the network is put.
        resize: Short side to which photos are resized; 0 for that of the test pictures in the recipe, which are then
            prepared as `fadeup eval` does, or for 512 with a SegFormer of Hugging Face.

    Raises:
        FileNotFoundError: There is no such model, or its training is not finished.
        ValueError: The file is of another kind, of another task, or does not fit this version's recipes.
    """
    path = weights_file(model)
    if path is None:
        network = SegFormer.from_pretrained(str(model))
        if network.record is not None:  # ours, on the hub; it is in the cache now
            return load_segmenter(model, device, resize=resize)
        classes, palette = tuple(network.classes or ()), distinct_colours(len(network.classes or ()))
        recipe, transform = None, TestTransform(resize or HUGGING_FACE_SIDE)  # ImageNet's normalisation
    else:
        network, recipe, about = load_trained(path)
        if not isinstance(recipe, Segmentation):
            raise ValueError(f"{model} must be a segmentation network, got one of {recipe.task}")
        classes, palette = tuple(about["classes"]), np.array(about["palette"], np.uint8)
        transform = recipe.test_transform()
        if resize:
            transform = TestTransform(resize, mean=about["mean"], std=about["std"])
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Segmenter(network, transform.prepare, classes, palette, recipe)


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
    check_photo(photo)
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
    check_photo(photo)
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
    resume: bool = False,
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
        resume: Pass over photos that an interrupted run of the same model and options has finished, and that have not
            changed since.
        device: Where the model is.
        on_photo: Called with each result as soon as it is there.

    Returns:
        A result for each photo, in their order.

    Raises:
        ValueError: Two photos have one stem, results are there and neither `overwrite` nor `resume` is set, or the
            palette does not fit; to resume, results are there of another model, of other options, of another version or
            of an unknown run. Nothing has been written then.
        OSError: A result cannot be written; the message names it.
    """
    _check_palette(palette)
    if len(classes) != len(palette):
        raise ValueError(f"classes must be {len(palette)} names, one for each colour of palette, got {len(classes)}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be 0 to 1, got {opacity}")
    files = [Path(photo) for photo in photos]
    identity = {"network": network_digest(model), "transform": _transform_digest(transform), "opacity": opacity}
    identity |= {"classes": short_digest(repr((*classes, palette.tolist())).encode())}
    kept = Results(files, Path(out), LABELS, kind="segment", identity=identity, overwrite=overwrite, resume=resume)

    def predict(photo: Path) -> tuple[list[bytes], dict[str, Any]]:
        pixels = read_photo(photo)
        labels = segment_photo(model, pixels, transform, device=device)
        picture = overlay(pixels, labels, palette, opacity)
        pictures = [label_png(labels, palette), png(picture.permute(1, 2, 0).numpy())]
        return pictures, {"shares": class_shares(labels, classes)}

    results = []
    for index, (photo, (label, coloured)) in enumerate(zip(files, kept.planned, strict=True)):
        told, error = kept.make(index, partial(predict, photo))
        results.append(PhotoResult(photo, label, coloured, told.get("shares", {}), error, bool(told.get("resumed"))))
        on_photo(results[-1])
    return results


def _transform_digest(transform: Callable[[Tensor], Tensor]) -> str:
    """What a transform does, seen by what it makes of a ramp of colours."""
    ramp = torch.arange(3 * 48 * 64).reshape(3, 48, 64) % 251
    try:
        made = transform(ramp.to(torch.uint8)).detach().cpu().float()
    except (ValueError, RuntimeError) as error:  # one for photos of other sizes
        return str(error)
    return short_digest(f"{tuple(made.shape)}".encode() + made.contiguous().numpy().tobytes())


def label_png(labels: Tensor, palette: np.ndarray) -> bytes:
    """A label map as an indexed PNG: a pixel's value is its class, its colour the palette's."""
    image = Image.fromarray(labels.numpy())
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def class_shares(labels: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Part of the map that each class found in it covers, the largest first."""
    counts = torch.bincount(labels.flatten(), minlength=len(classes))
    order = [int(index) for index in counts.argsort(descending=True, stable=True)]
    return {classes[index]: int(counts[index]) / labels.numel() for index in order if counts[index]}


def _check_palette(palette: np.ndarray) -> None:
    if palette.dtype != np.uint8 or palette.ndim != 2 or palette.shape[1] != 3 or not 1 <= len(palette) <= 255:
        raise ValueError(f"palette must be uint8 (1 to 255, 3), got {palette.dtype} {palette.shape}")
