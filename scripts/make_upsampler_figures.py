"""The figures of docs/upsamplers/, one experiment for every method, and the table of docs/upsamplers/index.md.

    OMP_NUM_THREADS=1 python scripts/make_upsampler_figures.py [NAME ...]

The satellite tiles that ship, at 128 x 128. An upsampler gets the share of four kinds of land cover in blocks of 8 x 8,
interpolated to 64 x 64, and as its guide the picture through two convolutions, which learn with it; it is to give the
shares of each pixel. Seed, crops and 400 steps are the same for all. Six minutes on one core. Scores go to
benchmarks/results/upsamplers.json, from where `upsampler_tables.py` puts them into the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from fadeup import UPSAMPLERS, build_upsampler
from fadeup.checkpoint import write
from fadeup.data.landcover import landcover
from fadeup.models.autoencoder import conv_block
from fadeup.report import COLORS, figure_bytes
from fadeup.visualize import watch

ROOT = Path(__file__).parents[1]
IMAGES, RESULTS = ROOT / "docs/images", ROOT / "benchmarks/results/upsamplers.json"
KINDS = {"water": (0,), "forest": (1, 2, 3, 4, 5), "grass": (8, 9, 10, 11, 12, 14), "barren": (6, 7, 13, 15, 16)}
BLOCK, STEPS, BATCH, CROP, RATE = 8, 400, 4, 48, 1e-2
ABLATIONS = ("b1", "b4", "nearest+gate")
"""Scored, not drawn."""
TILE, VIEW = 3, (slice(8, 72), slice(16, 80))
POINT = (21, 26)
"""Row and column of the decoder point whose four pixels are looked at."""
REACH = 3
"""Effective kernels are shown up to so many decoder points away."""
Pair = tuple[Tensor, Tensor]


class Task(nn.Module):
    """An upsampler with its guide: shares and picture in, shares out."""

    def __init__(self, name: str):
        super().__init__()
        torch.manual_seed(0)
        self.guide = nn.Sequential(conv_block(3, 16), conv_block(16, len(KINDS)))
        self.upsampler = build_upsampler(name, len(KINDS))

    def forward(self, photo: Tensor, shares: Tensor) -> Tensor:
        return self.upsampler(coarse(shares), self.guide(photo - 0.3))


def coarse(shares: Tensor) -> Tensor:
    """The decoder's map: means of blocks, interpolated to half of the pixels' resolution."""
    return F.interpolate(F.avg_pool2d(shares, BLOCK), scale_factor=BLOCK / 2, mode="bilinear", align_corners=False)


def tiles(split: str) -> Pair:
    """Pictures 0–1 and shares of the kinds, at 128 x 128."""
    data = landcover(split, classes=KINDS)
    photos, labels = (torch.stack(maps) for maps in zip(*(data[index] for index in range(len(data))), strict=True))
    shares = F.one_hot(labels.long(), len(KINDS)).movedim(3, 1).float()
    return F.avg_pool2d(photos.float() / 255, 2), F.avg_pool2d(shares, 2)


def crops(photos: Tensor, shares: Tensor) -> Iterator[Pair]:
    """Batches of random crops whose corners lie on the grid of the blocks."""
    random = torch.Generator().manual_seed(0)
    places = (photos.shape[-1] - CROP) // BLOCK + 1
    for _ in range(STEPS):
        chosen = torch.randint(len(photos), (BATCH,), generator=random)
        corners = torch.randint(places, (BATCH, 2), generator=random) * BLOCK
        cuts = [
            (i, slice(None), slice(y, y + CROP), slice(x, x + CROP)) for i, (y, x) in zip(chosen, corners, strict=True)
        ]
        yield torch.stack([photos[cut] for cut in cuts]), torch.stack([shares[cut] for cut in cuts])


def trained(name: str, data: Pair) -> Task:
    """The upsampler and its guide after all steps of Adam on squared errors; at once where nothing is to be learned."""
    task = Task(name)
    if any(True for _ in task.upsampler.parameters()):
        optimizer = torch.optim.Adam(task.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
        for photo, shares in crops(*data):
            optimizer.zero_grad()
            F.mse_loss(task(photo, shares), shares).backward()
            optimizer.step()
            schedule.step()
    return task.eval()


@torch.no_grad()
def scores(task: Task, data: Pair) -> dict[str, float]:
    """Root mean square errors over the test tiles, of all kinds and of water."""
    errors = torch.cat([(task(p[None], s[None]) - s[None]).square() for p, s in zip(*data, strict=True)])
    return {"all": errors.mean().sqrt().item(), "water": errors[:, 0].mean().sqrt().item()}


def effective_kernels(task: Task, photo: Tensor, shares: Tensor) -> list[np.ndarray]:
    """Gradients of water in the four pixels above `POINT` by the decoder's water around it."""
    decoder = coarse(shares[None]).requires_grad_()
    result = task.upsampler(decoder, task.guide(photo[None] - 0.3).detach())
    y, x = POINT
    near = slice(y - REACH, y + REACH + 1), slice(x - REACH, x + REACH + 1)
    kernels = []
    for row, column in pixels():
        (gradient,) = torch.autograd.grad(result[0, 0, row, column], decoder, retain_graph=True)
        kernels.append(gradient[0, 0][near].numpy())
    return kernels


def pixels() -> list[tuple[int, int]]:
    return [(2 * POINT[0] + i, 2 * POINT[1] + j) for i in (0, 1) for j in (0, 1)]


def figure(task: Task, photo: Tensor, shares: Tensor) -> Figure:
    """Above: decoder, guide, target, result, error, gate. Beneath: the place, and the effective kernels there."""
    (step,) = watch(task, photo[None], shares[None])
    target, result, gate = shares[0], step.result[0, 0], step.gate()
    half = tuple(slice(side.start // 2, side.stop // 2) for side in VIEW)
    drawn = Figure(figsize=(7.4, 3.2), layout="constrained")
    axes = drawn.subplots(2, 6)
    above = {
        "decoder": step.decoder[0, 0][half],
        "picture": photo[:, *VIEW].movedim(0, 2),
        "target": target[VIEW],
        "result": result[VIEW],
        "error": (result - target)[VIEW],
        "": None if gate is None else gate[0, 0][VIEW],
    }
    for axis, (title, map_) in zip(axes[0], above.items(), strict=True):
        axis.set_axis_off()
        if map_ is not None:
            limits: dict[str, Any] = (
                {"cmap": "PuOr", "vmin": -1, "vmax": 1} if title == "error" else {"vmin": 0, "vmax": 1}
            )
            axis.imshow(map_.numpy(), **{"cmap": "cividis"} | limits, interpolation="nearest")
            axis.set_title(title or f"gate (mean {map_.mean():.2f})", fontsize=8)
    draw_place(axes[1, 0], target, axes[0, 2])
    draw_kernels(axes[1, 1:], effective_kernels(task, photo, shares))
    return drawn


def draw_place(axis: Any, target: Tensor, whole: Any) -> None:
    """The target over the window of the kernels, the four pixels framed; and where that is."""
    row, column = (2 * (place - REACH) for place in POINT)
    side = 2 * (2 * REACH + 1)
    axis.imshow(target[row : row + side, column : column + side].numpy(), cmap="cividis", vmin=0, vmax=1)
    axis.add_patch(Rectangle((2 * REACH - 0.5,) * 2, 2, 2, fill=False, color=COLORS[1], linewidth=1.5))
    axis.set_title("target,\nfour pixels", fontsize=8)
    axis.set_axis_off()
    corner = column - VIEW[1].start - 0.5, row - VIEW[0].start - 0.5
    whole.add_patch(Rectangle(corner, side, side, fill=False, color=COLORS[1], linewidth=1))


def draw_kernels(axes: Any, kernels: list[np.ndarray]) -> None:
    """Effective kernels on one scale, and their sums; the last place is for the scale."""
    limit = max(float(np.abs(kernel).max()) for kernel in kernels)
    shades = None
    for axis, kernel, (row, column) in zip(axes, kernels, pixels(), strict=False):
        shades = axis.imshow(kernel, cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.add_patch(Rectangle((REACH - 0.5,) * 2, 1, 1, fill=False, color=COLORS[6], linewidth=1))
        place = f"{('upper', 'lower')[row % 2]} {('left', 'right')[column % 2]}"
        axis.set_title(f"{place}\nsum {kernel.sum():.2f}", fontsize=8)
    for axis in axes:
        axis.set_axis_off()
    assert shades is not None
    bar = axes[-1].figure.colorbar(shades, ax=axes[-1], location="left", fraction=0.9, aspect=9, pad=-0.6)
    bar.set_label("effective kernels", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def main(names: list[str]) -> None:
    train, test = tiles("train"), tiles("test")
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for name in names or (*UPSAMPLERS, *ABLATIONS):
        task = trained(name, train)
        kept[name] = {key: round(value, 4) for key, value in scores(task, test).items()}
        print(name, kept[name], flush=True)
        if name in UPSAMPLERS:
            drawn = figure(task, test[0][TILE], test[1][TILE])
            write(IMAGES / f"upsampler-{name.replace('_', '-')}.png", figure_bytes(drawn))
    ordered = {name: kept[name] for name in (*UPSAMPLERS, *ABLATIONS) if name in kept}
    write(RESULTS, (json.dumps(ordered, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
