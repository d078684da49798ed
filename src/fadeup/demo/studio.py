"""What the page computes: what networks make of a photograph, their gates and kernels. Nothing of Gradio here."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fadeup.bench.timing import peak_memory
from fadeup.checkpoint import read_about
from fadeup.data.labelled import LabelledImages, read_photo
from fadeup.data.landcover import landcover
from fadeup.data.matting import UNKNOWN, mapped_trimap, png, read_alpha, trimap_from_mask
from fadeup.demo import EDGE, INSIDE, MATTE, RECONSTRUCT, SEGMENT, STAGES, TASKS
from fadeup.demo.worker import Prediction
from fadeup.kernels import native
from fadeup.metrics import psnr, ssim
from fadeup.plug.trace import evaluating
from fadeup.predict import Matter, Segmenter, cut_out, load_trained, matte_photo, overlay, read_guide, segment_photo
from fadeup.predict.matte import load_matter
from fadeup.predict.segment import class_shares, label_png, load_segmenter
from fadeup.predict.trained import ASSETS, shipped, weights_file
from fadeup.recipes import RECIPES, Matting, Reconstruction, Segmentation
from fadeup.recipes.matting import network_input
from fadeup.report import figure_bytes
from fadeup.upsamplers.upsampler import Upsampler
from fadeup.visualize import Step, boundary_errors, figure_gates, figure_kernels, watch

RECIPE: dict[str, type] = {SEGMENT: Segmentation, MATTE: Matting, RECONSTRUCT: Reconstruction}
PHOTOS = ASSETS / "photos"
TILES = {
    "band11-row2": "Caspian Sea, from space",
    "band11-row3": "Persian Gulf, from space",
    "band15-row2": "Korea, from space",
    "band03-row3": "Gulf of California, from space",
    "band03-row0": "Canadian Arctic, from space",
}
"""Those of the test tiles that are offered, by what they show."""
FILE_PIXELS = 89_478_485
"""Files with more pixels are refused; those with more than `max_pixels` are made smaller."""
LINE = 0.006
"""Width of boundaries where two results are compared, as part of the diagonal."""
WAIT = 3.0
"""Seconds that the first picture waits for the kernels to be compiled; then it is computed without them."""

Guide = Path | np.ndarray | None
"""A trimap or rough mask as a file, or strokes of the brush as RGBA `(h, w, 4)`."""


@dataclass(frozen=True)
class Photograph:
    """A decoded file: RGB, uint8, `(3, H, W)`, `max_pixels` at most, and the height and width that it has itself."""

    pixels: Tensor
    size: tuple[int, int]
    digest: str


@dataclass
class Loaded:
    """A network, and what stands before it: None for reconstruction."""

    network: nn.Module
    front: Segmenter | Matter | None

    def set_impl(self, impl: str) -> None:
        """Let its upsamplers compute by that implementation."""
        for module in self.network.modules():
            if isinstance(module, Upsampler) and hasattr(module, "impl"):
                module.impl = impl  # type: ignore[assignment]


class Studio:
    """Networks that ship with the package and given ones, each loaded when it is first used.

    Args:
        models: As in `fadeup predict`, besides those that ship.
        max_pixels: Photographs with more are made smaller before anything else.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It is none that the page has a task for, or two have one name.
    """

    def __init__(self, models: Sequence[str] = (), max_pixels: int = 1_500_000):
        self.max_pixels, self._loaded, self._sources = max_pixels, {}, {}
        self._decoded: tuple[Any, Photograph] | None = None
        for name, entry in shipped().items():
            self._sources[name.rsplit("-", 1)[1], self._task_of(ASSETS / entry["file"])] = name
        for model in models:
            path = weights_file(model)
            if path is None:
                raise ValueError(f"models must be networks that fadeup train wrote, got {model}")
            name = Path(model).name if Path(model).is_dir() else Path(model).stem  # mine-0.5 is no mine-0
            key = (name, self._task_of(path))
            if key in self._sources:
                raise ValueError(f"models must have names of their own, got {key[0]} twice; rename the folder")
            self._sources[key] = model
        self._building = threading.Thread(target=native.problem, daemon=True)
        self._building.start()

    @staticmethod
    def _task_of(path: Path) -> str:
        kind = RECIPES.get(read_about(path).get("task", ""), object)
        for task, base in RECIPE.items():
            if issubclass(kind, base):
                return task
        raise ValueError(f"models must be networks of {', '.join(TASKS)} by fadeup train, got {path}")

    def choices(self) -> dict[str, list[str]]:
        """The networks' names by task."""
        return {task: [name for name, its in self._sources if its == task] for task in TASKS}

    def predict(self, task: str, name: str, photo: Path, guide: Guide = None) -> Prediction:
        """What the network of that name makes of a photograph.

        Raises:
            ValueError: The photograph or trimap is none, or the network gives nothing that can be shown.
        """
        loaded, pixels = self._network(task, name), self._photo(photo)
        trimap = self._trimap(guide, photo, pixels) if task == MATTE else None
        took, out = [], []

        def run() -> None:
            start = time.perf_counter()
            out.append(self._run(loaded, pixels, trimap))
            took.append(time.perf_counter() - start)

        memory = peak_memory(run)
        if not out:  # nothing ran where memory cannot be measured
            run()
        result = out[0]
        parameters = sum(parameter.numel() for parameter in loaded.network.parameters())
        classes, picture = (), result
        if isinstance(loaded.front, Segmenter):
            picture = overlay(pixels, torch.from_numpy(result), loaded.front.palette).movedim(0, 2).numpy()
            palette = dict(zip(loaded.front.classes, loaded.front.palette.tolist(), strict=True))
            covered = class_shares(torch.from_numpy(result), loaded.front.classes)
            classes = tuple((name, tuple(palette[name]), share) for name, share in covered.items())
        score = self._score(task, photo, pixels, result)
        return Prediction(png(picture), result, took[0], memory, parameters, score, classes)

    @torch.no_grad()
    def _run(self, loaded: Loaded, pixels: Tensor, trimap: Tensor | None) -> np.ndarray:
        if isinstance(loaded.front, Segmenter):
            return segment_photo(loaded.network, pixels, loaded.front.transform).numpy()
        if isinstance(loaded.front, Matter):
            assert trimap is not None
            return matte_photo(loaded.network, pixels, trimap, loaded.front.mean, loaded.front.std).numpy()
        with evaluating(loaded.network):
            given_back = loaded.network(self._inputs(loaded, pixels, None))[0].clamp(0, 1)
        values = (255 * given_back).round().byte().movedim(0, 2).numpy()
        return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values

    def difference(self, task: str, left: np.ndarray, right: np.ndarray, photo: Path) -> bytes:
        """Where two results differ, as a PNG.

        Of labels, the boundaries: grey in both, orange in the left one only, blue in the right one only. Of alphas,
        orange where the left one's is larger. Of photographs given back, orange where the left one is further off.
        """
        if task == SEGMENT:
            return png(boundary_errors(torch.from_numpy(left), torch.from_numpy(right), LINE))
        if task == MATTE:
            return png(signed(left.astype(np.float32) - right))
        true = self._photo(photo).movedim(0, 2).numpy().astype(np.float32)
        return png(signed(abs(left - true).mean(axis=2) - abs(right - true).mean(axis=2)))

    def gates(self, task: str, names: Sequence[str], photo: Path, guide: Guide = None) -> bytes | None:
        """The gates of every stage of networks as a PNG, beneath each other; None where no network has any."""
        pictures = []
        for name in names:
            steps, shown = self._watch(task, name, photo, guide)
            if any(step.gate() is not None for step in steps):
                figure = figure_gates(steps, shown)
                figure.suptitle(name, fontsize=10)
                pictures.append(np.array(Image.open(io.BytesIO(figure_bytes(figure))).convert("RGB")))
        if not pictures:
            return None
        width = max(picture.shape[1] for picture in pictures)
        sides = [((0, 0), (0, width - picture.shape[1]), (0, 0)) for picture in pictures]
        padded = [np.pad(picture, side, constant_values=255) for picture, side in zip(pictures, sides, strict=True)]
        return png(np.concatenate(padded))

    def kernels(
        self, task: str, name: str, photo: Path, guide: Guide, stage: str, point: tuple[float, float]
    ) -> bytes | None:
        """The kernels at a point (row and column in 0–1) of one of `STAGES` as a PNG; None where there are none."""
        steps, shown = self._watch(task, name, photo, guide)
        steps = sorted((step for step in steps if step.has_kernels), key=lambda step: -step.result.shape[2])
        if not steps:
            return None
        index = round(STAGES.index(stage) / (len(STAGES) - 1) * (len(steps) - 1))
        return figure_bytes(figure_kernels(steps[index], point, shown))

    def _watch(self, task: str, name: str, photo: Path, guide: Guide) -> tuple[list[Step], np.ndarray]:
        loaded, pixels = self._network(task, name), self._photo(photo)
        trimap = self._trimap(guide, photo, pixels) if task == MATTE else None
        shown = pixels.movedim(0, 2).numpy()
        if not any(isinstance(module, Upsampler) for module in loaded.network.modules()):
            return [], shown  # SegFormer's own bilinear way
        inputs = self._inputs(loaded, pixels, trimap)
        if task == MATTE:  # padded as the network sees it
            shown = np.pad(
                shown, [(0, b - a) for a, b in zip(shown.shape, (*inputs.shape[2:], 3), strict=True)], "edge"
            )
        return watch(loaded.network, inputs), shown

    @staticmethod
    def _inputs(loaded: Loaded, pixels: Tensor, trimap: Tensor | None) -> Tensor:
        if isinstance(loaded.front, Segmenter):
            return loaded.front.transform(pixels)[None]
        if isinstance(loaded.front, Matter):
            assert trimap is not None
            return network_input(pixels, trimap, tuple(loaded.front.mean), tuple(loaded.front.std))[None]
        colours = pixels.float()[None] / 255
        return colours if getattr(loaded.network, "in_channels", 3) == 3 else colours.mean(dim=1, keepdim=True)

    def size(self, photo: Path) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of the file's picture, and those in which it is used."""
        decoded = self._decode(photo)
        return decoded.size, tuple(decoded.pixels.shape[1:])  # type: ignore[return-value]

    def backdrop(self, photo: Path) -> bytes:
        """The photograph in the size in which it is used, as a PNG."""
        return png(self._photo(photo).movedim(0, 2).contiguous().numpy())

    def file(self, task: str, name: str, result: np.ndarray) -> bytes:
        """The result as a PNG; labels are its palette's indices."""
        front = self._network(task, name).front
        if isinstance(front, Segmenter):
            return label_png(torch.from_numpy(result), front.palette)
        return png(result)

    def cutout(self, photo: Path, alpha: np.ndarray) -> bytes:
        """The foreground in its own colours as a PNG with alpha."""
        return png(cut_out(self._photo(photo), torch.from_numpy(alpha)))

    # ---- networks ----

    def _network(self, task: str, name: str) -> Loaded:
        if (name, task) not in self._sources:
            raise ValueError(f"upsampler must be one of {', '.join(self.choices().get(task, []))}, got {name}")
        if (name, task) not in self._loaded:
            self._loaded[name, task] = self._load(task, self._sources[name, task])
        self._building.join(WAIT)
        loaded = self._loaded[name, task]
        loaded.set_impl("eager" if self._building.is_alive() else "auto")
        return loaded

    @staticmethod
    def _load(task: str, model: str) -> Loaded:
        loaders: dict[str, Callable[[str], Any]] = {SEGMENT: load_segmenter, MATTE: load_matter}
        if task in loaders:
            front = loaders[task](model)
            network = front.network
        else:
            path = weights_file(model)
            assert path is not None
            front, network = None, load_trained(path)[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Loaded(network.requires_grad_(False), front)

    # ---- photographs and trimaps ----

    def _photo(self, path: Path) -> Tensor:
        return self._decode(path).pixels

    def _decode(self, path: Path) -> Photograph:
        """The file's photograph; the last one is kept, since a comparison asks for it six times."""
        status = path.stat()
        key = path, status.st_mtime_ns, status.st_size
        if self._decoded is None or self._decoded[0] != key:
            pixels = read_photo(path, max_pixels=FILE_PIXELS)
            size: tuple[int, int] = tuple(pixels.shape[1:])  # type: ignore[assignment]
            self._decoded = key, Photograph(self._smaller(pixels), size, _digest(path))
        return self._decoded[1]

    def _smaller(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[1:]
        if height * width <= self.max_pixels:
            return pixels
        factor = (self.max_pixels / (height * width)) ** 0.5
        size = max(1, int(height * factor)), max(1, int(width * factor))
        picture = Image.fromarray(pixels.movedim(0, 2).contiguous().numpy())
        smaller = picture.resize((size[1], size[0]), Image.Resampling.LANCZOS, reducing_gap=3.0)
        return torch.from_numpy(np.array(smaller)).movedim(2, 0).contiguous()

    def _trimap(self, guide: Guide, photo: Path, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[1:]
        if isinstance(guide, np.ndarray):
            trimap = torch.from_numpy(trimap_from_strokes(guide, (height, width)))
        else:
            shipped = self._known.get(self._decode(photo).digest)
            guide = guide or (shipped if isinstance(shipped, Path) else None)
            if guide is None:
                raise ValueError("trimap must be drawn or uploaded for matting, got none; paint over the thing")
            mask = UNKNOWN not in mapped_trimap(read_alpha(guide))
            trimap = read_guide(guide, self._decode(photo).size, mask=mask)
            trimap = F.interpolate(trimap[None, None].float(), (height, width), mode="nearest")[0, 0].byte()
        return trimap

    @cached_property
    def _known(self) -> dict[str, Any]:
        """What is known of the pictures that ship, by the digest of their files: a tile's number, or a trimap."""
        tiles = landcover("test")
        known: dict[str, Any] = {_digest(image): index for index, (image, _) in enumerate(tiles.pairs)}
        self._tiles: LabelledImages = tiles
        trimaps = PHOTOS.glob("*-trimap.png")
        known |= {_digest(path.with_name(path.name.replace("-trimap.png", ".jpg"))): path for path in trimaps}
        return known

    def photographs(self) -> dict[str, Path]:
        """Photographs that ship by their titles: tiles that no network was trained on, then those with a trimap."""
        tiles = {image.stem: image for image, _ in landcover("test").pairs}
        return {TILES[stem]: tiles[stem] for stem in TILES} | {path.stem: path for path in sorted(PHOTOS.glob("*.jpg"))}

    def _score(self, task: str, photo: Path, pixels: Tensor, result: np.ndarray) -> str:
        if task == RECONSTRUCT:
            true, ours = pixels[None].float() / 255, torch.from_numpy(result).movedim(2, 0)[None].float() / 255
            return f"PSNR {psnr(ours, true).item():.2f} dB, SSIM {100 * ssim(ours, true).item():.1f} %"
        index = self._known.get(self._decode(photo).digest) if task == SEGMENT else None
        if not isinstance(index, int):
            return ""
        truth = self._tiles.label(index)
        if truth.shape != result.shape:  # the photograph was made smaller
            return ""
        right = (torch.from_numpy(result) == truth)[truth != 255].float().mean().item()
        return f"{100 * right:.1f} % right"


def trimap_from_strokes(strokes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A trimap from what was painted: `INSIDE` is foreground, `EDGE` is unknown, the rest background.

    Where no edge was painted, a band around the painted thing is unknown, as `trimap_from_mask` makes it.

    Args:
        strokes: RGBA, uint8, `(h, w, 4)`.
        size: Height and width of the trimap; strokes are stretched to it.

    Raises:
        ValueError: Nothing was painted, or everything.
    """
    layer = np.array(Image.fromarray(strokes).resize((size[1], size[0]), Image.Resampling.NEAREST))
    painted, colours = layer[..., 3] > 127, layer[..., :3].astype(int)
    nearer = [abs(colours - np.array(colour)).sum(axis=2) for colour in (INSIDE, EDGE)]
    inside, edge = painted & (nearer[0] <= nearer[1]), painted & (nearer[0] > nearer[1])
    if not painted.any():
        raise ValueError("trimap must be drawn or uploaded for matting, got none; paint over the thing")
    if not edge.any():
        return trimap_from_mask(inside)
    return np.where(edge, UNKNOWN, np.where(inside, 255, 0)).astype(np.uint8)


def signed(values: np.ndarray) -> np.ndarray:
    """Signed values as RGB `(H, W, 3)`: orange above zero, purple below, white at zero, darkest at the largest."""
    limit = max(float(abs(values).max()), 1.0)
    shades = matplotlib.colormaps["PuOr"](0.5 - 0.5 * values / limit)
    return (255 * shades[..., :3]).round().astype(np.uint8)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
