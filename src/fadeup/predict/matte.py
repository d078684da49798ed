"""Photographs and trimaps in; alpha mattes, cut-outs and composites out, in the photo's own size.

Photos stream one by one. What is finished is whole on the disk, and a photo that cannot be read stops no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fadeup.data.labelled import read_photo
from fadeup.data.matting import UNKNOWN, compose, png, read_alpha, read_trimap, trimap_from_mask
from fadeup.journal import network_digest
from fadeup.models.weights import needed
from fadeup.plug.trace import evaluating
from fadeup.predict.cutout import COLORS, covering, foreground_colors, read_background
from fadeup.predict.photos import MATTES, Results, check_photo, short_digest
from fadeup.predict.trained import load_trained, weights_file
from fadeup.recipes import Matting
from fadeup.recipes.matting import MULTIPLE, network_input, reflected, with_known
from fadeup.upsamplers import A2U

STEP = 32
"""Tiles begin at multiples of it, where poolings and the trunk's strides meet the same pixels as in the whole."""
OVERLAP = 512
"""At most so much by default: a network on EfficientNet-Lite0 sees about 280 pixels around each."""
MARGIN = 0.25
"""Part of the overlap, at a tile's end, that is computed for what lies beside it and not used."""
Colors = Sequence[float]


@dataclass(frozen=True)
class Matter:
    """A trained matting network, and the normalisation of its input."""

    network: nn.Module
    mean: Colors
    std: Colors
    recipe: Matting


@dataclass(frozen=True)
class MatteResult:
    """What became of a photo."""

    photo: Path
    alpha: Path
    """Grey PNG: 0 is background, 255 foreground."""
    cutout: Path | None
    """RGBA PNG of the foreground's own colours; None where it was not asked for."""
    composite: Path | None
    """RGB PNG of the foreground before the new background; None where it was not asked for."""
    covered: float
    """Part of the photo that is foreground: the mean of alpha in 0–1."""
    unknown: float
    """Part of the photo that the trimap left to the network."""
    error: str = ""
    """Why there are no results; empty where there are."""
    resumed: bool = False
    """Whether they were there from an interrupted run."""


def load_matter(model: str | Path, device: str | torch.device = "cpu") -> Matter:
    """A matting network that `fadeup train` has trained, in evaluation mode.

    Args:
        model: Name of a network that ships with the package, run folder, or its `model.safetensors`.
        device: Where the network is put.

    Raises:
        FileNotFoundError: There is no such model, or its training is not finished.
        ValueError: The file is of another kind, of another task, or does not fit this version's recipes.
        ModuleNotFoundError: A package that holds the network or its trunk's weights is missing.
    """
    path = weights_file(model)
    if path is None:
        raise ValueError(f"model must be a matting network that fadeup train wrote, got another kind, {str(model)!r}")
    network, recipe, _ = load_trained(path)
    if not isinstance(recipe, Matting):
        raise ValueError(f"{model} must be a matting network, got one of {recipe.task}")
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalisation = recipe.description()
    return Matter(network, normalisation["mean"], normalisation["std"], recipe)


@torch.no_grad()
def matte_photo(
    network: nn.Module,
    photo: Tensor,
    trimap: Tensor,
    mean: Colors,
    std: Colors,
    *,
    tile: int = 0,
    overlap: int | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """The alpha matte of a photo in its own size, known pixels as the trimap has them.

    With a tile, memory does not grow with the photo: squares that overlap go through the network one by one and are
    blended linearly, and the mean of the whole picture that ASPP takes in is taken beforehand, once for all of them.
    Squares without unknown pixels are passed over.

    Args:
        network: `fadeup.models.MattingNet`; in evaluation mode meanwhile.
        photo: RGB, uint8, `(3, H, W)`.
        trimap: 0, 128 and 255, uint8, `(H, W)`.
        mean: Of the normalisation, in units of 0–1.
        std: The same.
        tile: Side of the squares, a multiple of 32, 256 or more; 0 for the photo at once.
        overlap: Of the squares, a multiple of 32 from 64 to half a tile; None for half a tile, 512 at most. What lies
            within a quarter of it from a square's end is not used.
        device: Where the network is.

    Returns:
        uint8, `(H, W)`, on the CPU.

    Raises:
        ValueError: Photo, trimap, tile or overlap are others, a tile is given for a network that looks at the whole
            picture (A2U, SAPA), or it gives no finite alpha.
    """
    check_photo(photo)
    _check_trimap(trimap, tuple(photo.shape[1:]))
    overlap = check_tile(network, tile, overlap) if tile else 0

    def inputs(photo: Tensor, trimap: Tensor) -> Tensor:
        return network_input(photo, trimap, tuple(mean), tuple(std))[None].to(device)

    def matte(photo: Tensor, trimap: Tensor, context: Tensor | None = None) -> Tensor:
        given = inputs(photo, trimap)
        output = network(given, context)
        if output.shape != given[:, :1].shape:
            wanted, got = tuple(given[:, :1].shape), tuple(output.shape)
            raise ValueError(f"network must give alpha {wanted}, got {got}")
        if not output.isfinite().all():
            raise ValueError("network must give finite alpha, got NaN or infinity; try float32 or other weights")
        return with_known(output, given)[0, 0].cpu()

    height, width = trimap.shape
    with evaluating(network):
        if tile and max(height, width) > tile:
            context = _context(lambda *part: network.context(inputs(*part)), photo, trimap, tile)  # type: ignore[operator]
            alpha = _tiled(lambda photo, trimap: matte(photo, trimap, context), photo, trimap, tile, overlap)
        else:
            alpha = matte(photo, trimap)[:height, :width]
    return torch.where(trimap == UNKNOWN, (255 * alpha).round().to(torch.uint8), trimap)


def _tiled(matte: Callable[[Tensor, Tensor], Tensor], photo: Tensor, trimap: Tensor, tile: int, overlap: int) -> Tensor:
    """Mattes of the tiles that hold unknown pixels, blended; `(H, W)`."""
    rows, columns = (reflected(side, -side % MULTIPLE) for side in trimap.shape)
    alpha = torch.zeros(len(rows), len(columns))
    for vertical, down in tiles(len(rows), tile, overlap):
        for horizontal, across in tiles(len(columns), tile, overlap):
            part = trimap[rows[vertical]][:, columns[horizontal]]
            weight = down[:, None] * across
            if ((part == UNKNOWN) & (weight > 0)).any():
                pixels = photo[:, rows[vertical]][:, :, columns[horizontal]]
                alpha[vertical, horizontal] += weight * matte(pixels, part)
    return alpha[: trimap.shape[0], : trimap.shape[1]]


def tiles(size: int, tile: int, overlap: int) -> list[tuple[slice, Tensor]]:
    """Stretches of an axis, evenly spread, and their weights, which sum to 1 wherever they overlap.

    Args:
        size: Of the axis.
        tile: Of a stretch; an axis that is not longer is one.
        overlap: Of neighbours at least.
    """
    count = max(1, -(-(size - overlap) // (tile - overlap)))
    starts = [-(-(size - tile) * index // (STEP * (count - 1))) * STEP for index in range(count)] if count > 1 else [0]
    weights = torch.zeros(count, size)
    places = []
    for weight, start in zip(weights, starts, strict=True):
        place = slice(start, min(start + tile, size))
        centers = torch.arange(place.start, place.stop) + 0.5
        ends = torch.full_like(centers, torch.inf)
        if place.start > 0:
            ends = centers - place.start
        if place.stop < size:
            ends = torch.minimum(ends, place.stop - centers)
        weight[place] = ((ends - MARGIN * overlap) / (overlap - 2 * MARGIN * overlap)).clamp(0, 1)
        places.append(place)
    weights /= weights.sum(dim=0)
    return [(place, weight[place]) for place, weight in zip(places, weights, strict=True)]


def _context(context: Callable[[Tensor, Tensor], Tensor], photo: Tensor, trimap: Tensor, tile: int) -> Tensor:
    """What ASPP takes in of the whole picture, as the mean over squares side by side, each by its share of the pixels.

    A reduced copy of the photo would do with one pass through the trunk, but shows it another scale: the mattes were
    off by 11 / 255 in the mean, in place of 0.7.
    """
    height, width = trimap.shape
    squares = [(slice(y, y + tile), slice(x, x + tile)) for y in range(0, height, tile) for x in range(0, width, tile)]
    parts = [(trimap[square].numel(), context(photo[:, *square], trimap[square])) for square in squares]
    return torch.stack([part * (count / trimap.numel()) for count, part in parts]).sum(dim=0)


def matte_photos(
    matter: Matter,
    photos: Sequence[str | Path],
    trimaps: Sequence[str | Path],
    out: str | Path,
    *,
    masks: bool = False,
    width: float | None = None,
    cutout: bool = False,
    background: str | Path | None = None,
    tile: int = 0,
    overlap: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    device: str | torch.device = "cpu",
    on_photo: Callable[[MatteResult], None] = lambda result: None,
) -> list[MatteResult]:
    """Write `<stem>.alpha.png`, and where asked `.cutout.png` and `.composite.png`, of each photo, whole or not at all.

    One photo is in memory at a time. One that cannot be read or predicted is reported in its result, and the others go
    on; a file that cannot be written ends the run, since the next one could not be written either.

    Args:
        matter: As `load_matter` gives it.
        photos: Files, as `find_photos` gives them.
        trimaps: Files, one for each photo, as `find_guides` gives them.
        out: Folder for the results, made where it is missing.
        masks: The trimaps are rough masks, of which trimaps are made.
        width: As in `read_guide`.
        cutout: Write cut-outs.
        background: Picture or colour `"#rrggbb"`, before which composites are written; None for no composites.
        tile: As in `matte_photo`.
        overlap: As in `matte_photo`.
        overwrite: Replace results of an earlier run.
        resume: Pass over photos that an interrupted run of the same model and options has finished, and that have not
            changed since, nor have their trimaps.
        device: Where the network is.
        on_photo: Called with each result as soon as it is there.

    Returns:
        A result for each photo, in their order.

    Raises:
        ValueError: Two photos have one stem, there is not a trimap for each, results are there and neither `overwrite`
            nor `resume` is set, or background, tile or overlap do not fit; to resume, results are there of another
            model, of other options, of another version or of an unknown run. Nothing has been written then.
        FileNotFoundError: There is no such background.
        ModuleNotFoundError: pymatting is missing, and colours are asked for.
        OSError: A result cannot be written; the message names it.
    """
    files, guides = [Path(photo) for photo in photos], [Path(trimap) for trimap in trimaps]
    if len(files) != len(guides):
        raise ValueError(f"trimaps must be {len(files)}, one for each photo, got {len(guides)}")
    endings = [ending for ending, asked in zip(MATTES, (True, cutout, background), strict=True) if asked]
    if tile:
        check_tile(matter.network, tile, overlap)
    behind = None if background is None else read_background(background)
    if len(endings) > 1:
        needed("pymatting", COLORS)
    identity = {"network": network_digest(matter.network), "mean": list(matter.mean), "std": list(matter.std)}
    identity |= {"masks": masks, "width": width, "cutout": cutout, "tile": tile, "overlap": overlap}
    identity |= {"background": None if behind is None else short_digest(behind.numpy().tobytes())}
    kept = Results(
        files, Path(out), endings, kind="matte", identity=identity, overwrite=overwrite, resume=resume, guides=guides
    )

    def predict(photo: Path, guide: Path) -> tuple[list[bytes], dict[str, Any]]:
        pixels = read_photo(photo)
        trimap = read_guide(guide, (pixels.shape[1], pixels.shape[2]), mask=masks, width=width)
        alpha = matte_photo(
            matter.network, pixels, trimap, matter.mean, matter.std, tile=tile, overlap=overlap, device=device
        )
        covered, unknown = float(alpha.float().mean() / 255), float((trimap == UNKNOWN).float().mean())
        pictures = _pictures(pixels, alpha, cutout, behind)
        return [png(picture) for picture in pictures], {"covered": covered, "unknown": unknown}

    results = []
    for index, (photo, guide, targets) in enumerate(zip(files, guides, kept.planned, strict=True)):
        told, error = kept.make(index, partial(predict, photo, guide))
        named = dict(zip(endings, targets, strict=True))
        others = named.get(MATTES[1]), named.get(MATTES[2])
        parts = told.get("covered", 0.0), told.get("unknown", 0.0)
        results.append(MatteResult(photo, targets[0], *others, *parts, error, bool(told.get("resumed"))))
        on_photo(results[-1])
    return results


def read_guide(path: str | Path, size: tuple[int, int], *, mask: bool = False, width: float | None = None) -> Tensor:
    """A trimap, or one made from a rough mask, uint8 `(H, W)`.

    Args:
        path: Of the picture.
        size: Height and width of the photo.
        mask: Whether it is a mask, foreground above 127.
        width: How far from the mask's boundary pixels are unknown, on either side; None for 2 % of the longer side, and
            5 pixels at least.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another size, without unknown pixels, or the mask is empty or full.
    """
    guide = read_alpha(path) if mask else read_trimap(path)
    if guide.shape != size:
        turned = guide.shape == size[::-1]
        hint = "; is the photo's EXIF rotation missing in it? Save the photo upright and draw on that" if turned else ""
        wanted, got = (" x ".join(map(str, sides)) for sides in (size, guide.shape))
        raise ValueError(f"{path} must be {wanted} like its photo, got {got} (height x width){hint}")
    if mask:
        try:
            guide = trimap_from_mask(guide, width)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return torch.from_numpy(guide)


def _pictures(photo: Tensor, alpha: Tensor, cutout: bool, behind: Tensor | None) -> list[np.ndarray]:
    """The matte, and where asked cut-out and composite, whose colours are estimated once."""
    matte = alpha.numpy()
    pictures = [matte]
    if cutout or behind is not None:
        colors = foreground_colors(photo, alpha)
        if cutout:
            pictures.append(np.dstack((colors, matte)))
        if behind is not None:
            pictures.append(compose(colors, matte, covering(behind, matte.shape)))
    return pictures


def check_tile(network: nn.Module, tile: int, overlap: int | None) -> int:
    """The overlap, or the default one, of tiles that fit together, for a network that can be given a part of a picture.

    Raises:
        ValueError: `tile` or `overlap` is out of range, or the network has GroupNorm.
    """
    if tile < 256 or tile % STEP:
        raise ValueError(f"tile must be 0 or a multiple of {STEP} from 256, got {tile}")
    if overlap is None:
        overlap = min(OVERLAP, tile // 2 // STEP * STEP)
    if not 64 <= overlap <= tile // 2 or overlap % STEP:
        raise ValueError(f"overlap must be a multiple of {STEP} from 64 to half a tile ({tile // 2}), got {overlap}")
    # Its statistics are of the whole picture, as A2U's kernels are.
    normed = [module for module in network.modules() if isinstance(module, A2U | nn.GroupNorm)]
    if normed:
        raise ValueError(
            f"tile must be 0 for a network with {type(normed[0]).__name__}, which takes statistics of the whole "
            f"picture, got {tile}; leave it out, or take a model with another upsampler, such as fade"
        )
    return overlap


def _check_trimap(trimap: Tensor, size: tuple[int, ...]) -> None:
    if trimap.dtype != torch.uint8 or tuple(trimap.shape) != size:
        raise ValueError(f"trimap must be uint8 {size} like photo, got {trimap.dtype} {tuple(trimap.shape)}")
    values = torch.bincount(trimap.flatten(), minlength=256).nonzero().flatten().tolist()
    if others := sorted({*values} - {0, UNKNOWN, 255}):
        raise ValueError(f"trimap must be 0, {UNKNOWN} and 255, got {others[0]}; map it with mapped_trimap")
