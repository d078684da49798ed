"""What upsamplers do inside a network: gates, kernels, features over training, and where boundaries are wrong.

The papers show such figures of their own networks (FADE, Figures 1, 4, 6, 8, 9 and 11); these functions make them of
any network with upsamplers of ours in it, an upgraded one of somebody else too.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor, nn

from fadeup.functional import WATCHERS, nearest
from fadeup.kernels.reference import kernels
from fadeup.metrics.segmentation import boundary_map, boundary_width
from fadeup.plug.trace import evaluating
from fadeup.reading import read_arrays
from fadeup.report import COLORS, zoom
from fadeup.upsamplers.upsampler import Upsampler

Maps = tuple[Tensor, Tensor, Tensor | None, Tensor | None]

RIGHT, MISSED, INVENTED = (200, 200, 200), (0, 114, 178), (213, 94, 0)
"""Colours of boundary pixels: in both label maps, in the true one only, in the predicted one only."""


@dataclass
class Step:
    """One upsampling step of a pass: what went into it and came out, batch first, on the device of the network."""

    name: str
    """Of the module, as in `named_modules()`."""
    kind: str
    """The upsampler's class."""
    decoder: Tensor
    encoder: Tensor | None
    result: Tensor
    reassembled: list[Maps] = field(default_factory=list)
    """Decoder, logits, coarse logits and gate logits of each `reassemble` that it called; none for plain methods."""

    @property
    def has_kernels(self) -> bool:
        """Whether each output pixel has one kernel: the upsampler makes kernels, and one set of them."""
        return len(self.reassembled) == 1 and len(self.reassembled[0][0]) == len(self.result)

    def kernels(self) -> Tensor:
        """The kernel of every output pixel, `(B, K*K, H', W')`, each with a sum of 1.

        Raises:
            ValueError: The upsampler makes no kernels, or several sets of them.
        """
        return kernels(*self.logits())

    def logits(self) -> tuple[Tensor, Tensor | None]:
        """The kernels before the softmax: the part of each output pixel, and the part that neighbours share or None.

        Raises:
            ValueError: The upsampler makes no kernels, or several sets of them.
        """
        if not self.has_kernels:
            raise ValueError(f"step must be of one kernel for each pixel, got {self.name} ({self.kind})")
        return self.reassembled[0][1:3]

    def gate(self) -> Tensor | None:
        """Which part of each output pixel is the encoder's, in 0–1, `(B, 1, H', W')`; None without a gate."""
        gates = [maps[3] for maps in self.reassembled if maps[3] is not None]
        return nearest(gates[0].sigmoid(), (self.result.shape[2], self.result.shape[3])) if gates else None


def watch(network: nn.Module, *inputs: Tensor) -> list[Step]:
    """The upsampling steps of one pass in evaluation mode, in the order in which they ended.

    Args:
        network: Any module with upsamplers of ours in it, `fadeup.upgrade`'s among them.
        inputs: What it is called with.

    Raises:
        ValueError: No upsampler of ours ran.
    """
    steps: list[Step] = []
    # SegFormer's pass without gradients is a faster one, which does not call its upsamplers.
    with evaluating(network), torch.enable_grad(), _watching(network, steps):
        network(*inputs)
    if not steps:
        raise ValueError(
            f"network must have upsamplers of fadeup that run, got {type(network).__name__} without; "
            "fadeup.upgrade puts them in"
        )
    return steps


@contextmanager
def _watching(network: nn.Module, steps: list[Step]) -> Iterator[None]:
    """While it is open, the upsamplers' calls in this thread are added to `steps`."""
    here, seen, hooks = threading.get_ident(), [], []

    def see(
        decoder: Tensor, logits: Tensor, coarse: Tensor | None, encoder: Tensor | None, gate: Tensor | None
    ) -> None:
        if threading.get_ident() == here:
            seen.append(tuple(None if x is None else x.detach() for x in (decoder, logits, coarse, gate)))

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, named: Any, result: Tensor) -> None:
            decoder = arguments[0] if arguments else named["decoder"]
            encoder = arguments[1] if len(arguments) > 1 else named.get("encoder")
            maps = [None if x is None else x.detach() for x in (decoder, encoder)]
            steps.append(Step(name, type(module).__name__, maps[0], maps[1], result.detach(), list(seen)))  # type: ignore[arg-type]
            seen.clear()

        return hook

    for name, module in network.named_modules():
        if isinstance(module, Upsampler):
            hooks += [
                module.register_forward_pre_hook(lambda module, arguments: seen.clear()),
                module.register_forward_hook(keep(name or type(module).__name__), with_kwargs=True),
            ]
    WATCHERS.append(see)
    try:
        yield
    finally:
        WATCHERS.remove(see)
        for hook in hooks:
            hook.remove()


# ---- figures ----


def figure_gates(steps: Sequence[Step], photo: np.ndarray | None = None) -> Figure:
    """The gate of every step that has one: 1 lets the encoder through, 0 the upsampled decoder (FADE, Figure 6).

    Raises:
        ValueError: No step has a gate.
    """
    gates = [(step.name, gate[0, 0].cpu().numpy()) for step in steps if (gate := step.gate()) is not None]
    if not gates:
        raise ValueError(f"steps must have a gate, got {', '.join(f'{step.name} ({step.kind})' for step in steps)}")
    panels = ([] if photo is None else [("input", photo)]) + gates
    lines = -(-len(panels) // 4)
    columns = -(-len(panels) // lines)
    figure = Figure(figsize=(2.4 * columns + 0.6, 2.8 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    shades = None
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, picture) in zip(axes, panels, strict=False):
        if picture.ndim == 3:
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(name, fontsize=9)
            continue
        shades = axis.imshow(picture, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"{name}\n{picture.shape[0]} × {picture.shape[1]}, mean {picture.mean():.2f}", fontsize=8)
    assert shades is not None
    figure.colorbar(shades, ax=axes.tolist(), shrink=0.7, label="encoder's part")
    return figure


def figure_kernels(step: Step, point: tuple[float, float], photo: np.ndarray | None = None) -> Figure:
    """The kernels of the output pixels above one decoder point, beside what they are added up of.

    With semi-shift convolution the rows are the encoder's logits, which differ from pixel to pixel, the decoder's,
    which all of them share, and the softmax of the sum: the encoder alone decides how neighbours differ.

    Args:
        step: One with kernels.
        point: Row and column in 0–1 of height and width.
        photo: Shown with the point marked, `(H, W, 3)` uint8.

    Raises:
        ValueError: The point is outside, or the step has no kernels.
    """
    fine, coarse = step.logits()
    shares, pixels = step.kernels(), pixels_above(step, point)
    rows: list[tuple[str, list[np.ndarray]]] = []
    if coarse is not None:
        row, column = _decoder_point(step, point)
        rows.append(("encoder's logits", [_tile(fine, *pixel) for pixel in pixels]))
        rows.append(("decoder's logits", [_tile(coarse, row, column)]))
    rows.append(("kernels", [_tile(shares, *pixel) for pixel in pixels]))
    shown = 0 if photo is None else 1
    figure = Figure(figsize=(1.7 * len(pixels) + 3.2 * shown, 1.9 * len(rows) + 0.6), layout="constrained")
    ratios = (3.2, 1.7 * len(pixels))
    sides: Any = figure.subfigures(1, 2, width_ratios=ratios) if shown else [figure]
    if photo is not None:
        _mark_point(sides[0].subplots(), photo, point)
    axes = sides[-1].subplots(len(rows), len(pixels), squeeze=False)
    for line, (label, tiles) in zip(axes, rows, strict=True):
        logits = label != "kernels"
        limit = max(float(np.abs(tile).max()) for tile in tiles) or 1.0
        colours = (
            {"cmap": "PuOr_r", "vmin": -limit, "vmax": limit}
            if logits
            else {"cmap": "cividis", "vmin": 0, "vmax": limit}
        )
        for axis in line:
            axis.set_axis_off()
        for axis, tile, pixel in zip(line, tiles, pixels, strict=False):
            axis.imshow(tile, **colours, interpolation="nearest")
            axis.set_title("shared by all" if len(tiles) < len(pixels) else f"({pixel[0]}, {pixel[1]})", fontsize=7)
        limits = f"±{limit:.2g}" if logits else f"0 … {limit:.2g}"
        line[0].text(
            -0.12,
            0.5,
            f"{label}\n{limits}",
            transform=line[0].transAxes,
            rotation=90,
            ha="right",
            va="center",
            fontsize=8,
        )
    sides[-1].suptitle(f"{step.name} ({step.kind})", fontsize=9)
    return figure


def pixels_above(step: Step, point: tuple[float, float]) -> list[tuple[int, int]]:
    """Rows and columns of the output pixels that share the decoder point at `point`; four at 2x, nine at most."""
    row, column = _decoder_point(step, point)
    sides = []
    for at, low, high in zip((row, column), step.decoder.shape[2:], step.result.shape[2:], strict=True):
        sides.append([y for y in range(high) if y * low // high == at][:3])
    return [(y, x) for y in sides[0] for x in sides[1]]


def _decoder_point(step: Step, point: tuple[float, float]) -> tuple[int, int]:
    if not all(0 <= value <= 1 for value in point):
        raise ValueError(f"point must be within 0 and 1 in both directions, got {point}")
    height, width = step.decoder.shape[2:]
    return min(height - 1, int(point[0] * height)), min(width - 1, int(point[1] * width))


def _tile(maps: Tensor, y: int, x: int) -> np.ndarray:
    side = round(maps.shape[1] ** 0.5)
    return maps[0, :, y, x].reshape(side, side).cpu().float().numpy()


def _mark_point(axis: Any, photo: np.ndarray, point: tuple[float, float]) -> None:
    axis.imshow(photo, interpolation="nearest")
    at = point[1] * photo.shape[1], point[0] * photo.shape[0]
    for colour, width in (("white", 5), (COLORS[1], 2)):  # the rim shows it on any ground
        axis.plot(*at, "o", mfc="none", mec=colour, markersize=13, mew=width)
    axis.set_axis_off()


def figure_panels(panels: Mapping[str, np.ndarray], crop: tuple[slice, slice] | None = None) -> Figure:
    """Pictures side by side, and under each the same crop of it (FADE, Figures 1, 4 and 11).

    Args:
        panels: Pictures of one size by their titles, `(H, W)` or `(H, W, 3)`, uint8.
        crop: Rows and columns; None for the square with the most detail in the last picture.

    Raises:
        ValueError: There are none, or their sizes differ.
    """
    sizes = {picture.shape[:2] for picture in panels.values()}
    if len(sizes) != 1:
        raise ValueError(f"panels must be pictures of one size, got {sorted(sizes) or 'none'}")
    rows, columns = crop or zoom(list(panels.values())[-1])
    height, width = next(iter(sizes))
    figure = Figure(figsize=(2.4 * len(panels), 2.4 * height / width + 2.8), layout="constrained")
    grid = figure.subplots(2, len(panels), squeeze=False, height_ratios=(height / width, 1))
    for (above, beneath), (title, picture) in zip(grid.T, panels.items(), strict=True):
        above.set_title(title, fontsize=9)
        for axis, view in ((above, picture), (beneath, picture[rows, columns])):
            axis.imshow(view, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_axis_off()
        corner = columns.start - 0.5, rows.start - 0.5
        sides = columns.stop - columns.start, rows.stop - rows.start
        above.add_patch(Rectangle(corner, *sides, fill=False, color=COLORS[1], linewidth=1.2))
    return figure


def boundary_errors(labels: Tensor, truth: Tensor, ratio: float = 0.02) -> np.ndarray:
    """Inner boundaries of predicted and true labels in colours: grey in both, blue missed, orange where none is.

    Args:
        labels: Predicted classes, `(H, W)`.
        truth: True classes, `(H, W)`.
        ratio: Width of the boundaries as part of the diagonal, as in boundary IoU.

    Returns:
        uint8, `(H, W, 3)`, white elsewhere.

    Raises:
        ValueError: The maps differ in size.
    """
    if labels.shape != truth.shape or labels.ndim != 2:
        raise ValueError(f"labels must be {tuple(truth.shape)} like truth, got {tuple(labels.shape)}")
    height, width = labels.shape
    reach = boundary_width(height, width, ratio)
    rows, columns = (torch.arange(-reach, side + reach).clamp(0, side - 1) for side in (height, width))
    inner = slice(reach, -reach)  # the end of the picture is no boundary to look at
    ours, theirs = (
        boundary_map(x.cpu()[rows][:, columns][None], reach)[0, inner, inner].numpy() for x in (labels, truth)
    )
    wrong = (labels != truth).cpu().numpy()
    picture = np.full((*labels.shape, 3), 255, np.uint8)
    picture[(ours | theirs) & ~wrong] = RIGHT
    picture[theirs & wrong] = MISSED
    picture[ours & ~theirs & wrong] = INVENTED
    return picture


# ---- snapshots of a training ----


def read_snapshots(run: Path) -> dict[int, dict[str, np.ndarray]]:
    """What `fadeup train --snapshot-steps` kept, by step: `feature.N` and `gradient.N` of test picture N.

    Raises:
        FileNotFoundError: The folder has none.
        ValueError: One is damaged, too large, or holds something else.
    """
    files = sorted((run / "snapshots").glob("step*.npz"))
    if not files:
        raise FileNotFoundError(
            f"runs must be folders with snapshots, got {run} without; fadeup train --snapshot-steps 10 100 "
            "--snapshot-layer LAYER keeps them"
        )
    found = {}
    for file in files:
        step, arrays = file.stem.removeprefix("step"), read_arrays(file)
        if not step.isdecimal() or not arrays or not all(map(_is_snapshot, arrays.items())):
            raise ValueError(
                f"{file} must hold feature.N and gradient.N, pictures of numbers, got "
                f"{', '.join(arrays)[:80] or 'none'}; delete it, or train anew"
            )
        found[int(step)] = arrays
    return found


def _is_snapshot(item: tuple[str, np.ndarray]) -> bool:
    name, array = item
    named = re.fullmatch(r"(feature|gradient)\.[0-9]{1,9}", name) is not None
    return named and array.ndim == 2 and array.size > 0 and array.dtype.kind in "fiu"


def figure_snapshots(
    runs: Mapping[str, dict[int, dict[str, np.ndarray]]], kind: str, picture: int | None = None
) -> Figure:
    """A row of pictures over training for each run, beneath each other (FADE, Figures 6, 8 and 9).

    Args:
        runs: Snapshots by the names of the rows, of the same layer and picture.
        kind: `"feature"`, the mean over channels, each in its own range; `"gradient"`, the positive part summed over
            channels, from 0 to the largest of the row's, which is 255.
        picture: Number of the test picture; None for the first that is there.

    Raises:
        ValueError: The runs have no step or no such picture in common.
    """
    frames = _frames(runs, kind, picture)
    steps = sorted(frames)
    figure = Figure(figsize=(1.7 * len(steps) + 0.5, 1.75 * len(runs) + 0.4), layout="constrained")
    grid = figure.subplots(len(runs), len(steps), squeeze=False)
    for line, name in zip(grid, runs, strict=True):
        for axis, step in zip(line, steps, strict=True):
            axis.imshow(frames[step][name], cmap="gray" if kind == "gradient" else "cividis", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=9)
    for axis, step in zip(grid[0], steps, strict=True):
        axis.set_title(f"step {step}", fontsize=9)
    return figure


def gif_snapshots(
    runs: Mapping[str, dict[int, dict[str, np.ndarray]]], kind: str, picture: int | None = None, seconds: float = 0.6
) -> bytes:
    """The same as an animation, the runs beside each other; its last frame stays three times as long."""
    frames = _frames(runs, kind, picture)
    pictures = []
    for step in sorted(frames):
        height = max(view.shape[0] for view in frames[step].values())
        gap = np.full((height, 4), 255, np.uint8)
        views = [
            x for view in frames[step].values() for x in (np.pad(view, ((0, height - view.shape[0]), (0, 0))), gap)
        ]
        joined = np.concatenate(views[:-1], axis=1)
        factor = max(1, 160 // height)
        pictures.append(Image.fromarray(joined.repeat(factor, 0).repeat(factor, 1)))
    times = [int(seconds * 1000)] * (len(pictures) - 1) + [int(seconds * 3000)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)
    return buffer.getvalue()


def _frames(
    runs: Mapping[str, dict[int, dict[str, np.ndarray]]], kind: str, picture: int | None
) -> dict[int, dict[str, np.ndarray]]:
    """By step and run, the picture in 0–255."""
    if kind not in ("feature", "gradient"):
        raise ValueError(f"kind must be 'feature' or 'gradient', got {kind!r}")
    every = [arrays for snapshots in runs.values() for arrays in snapshots.values()]
    steps = {step for step in next(iter(runs.values())) if all(step in snapshots for snapshots in runs.values())}
    names = {name for name in every[0] if all(name in arrays for arrays in every)}
    numbers = sorted(int(name.split(".")[1]) for name in names if name.startswith(kind))
    if not steps or not numbers or picture not in (None, *numbers):
        raise ValueError(
            f"runs must have steps and test pictures in common, got steps {sorted(steps)}, pictures {numbers}"
            + ("" if picture is None else f" without {picture}")
        )
    key = f"{kind}.{numbers[0] if picture is None else picture}"
    frames: dict[int, dict[str, np.ndarray]] = {step: {} for step in sorted(steps)}
    for name, snapshots in runs.items():
        most = max(float(snapshots[step][key].max()) for step in steps)
        for step in steps:
            array = snapshots[step][key].astype(float)
            low, high = (0.0, most) if kind == "gradient" else (float(array.min()), float(array.max()))
            frames[step][name] = (255 * (array - low) / ((high - low) or 1)).round().clip(0, 255).astype(np.uint8)
    return frames
