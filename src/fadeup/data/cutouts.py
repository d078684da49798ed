"""Cut-out photographs that Debian ships and photographs to put behind them, for image matting.

The package holds a list of their names, no pictures: 227 stamps of Tux Paint, photographs with soft alpha chosen by
eye, and 24 photographs of two sets of wallpapers. Near-duplicates and mirrored copies of a thing form a group, and no
group is in two splits; of a group for test only the largest picture is used at all. 164 groups are for training and 40
for test, drawn by a seeded hash, 10 of them from the 22 that are fuzzy or translucent. The mattes are hand-made, some
with a slight fringe, and none shows a person's hair.

Source: Debian's tuxpaint-stamps-default 2022.06.04 (GPL-2); lomiri-wallpapers-16.04 20.04.0 (CC-BY-4.0 and
CC-BY-SA-4.0, its copyright file names the authors); mate-backgrounds 1.26.0 (GPL-2 or later).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from fadeup.data.labelled import check_split
from fadeup.data.matting import ComposedImages, Foreground

LIST = Path(__file__).parent.parent / "assets" / "matting" / "cutouts.json"
OBTAIN = "apt-get install tuxpaint-stamps-default lomiri-wallpapers-16.04 mate-backgrounds"
SHARE = Path("/usr/share")
FOLDERS = {"foregrounds": Path("tuxpaint", "stamps"), "backgrounds": Path("backgrounds")}
"""What the names of the list are relative to, below `SHARE`."""
SIDE = 256


@dataclass(frozen=True)
class Composite:
    """A composite for testing: its name, the files as the list names them, and the seed of `compose_test`."""

    name: str
    foreground: str
    background: str
    seed: int


@overload
def cutouts(split: Literal["train"], source: str | Path | None = None) -> tuple[list[Foreground], list[Path]]: ...
@overload
def cutouts(split: Literal["test"], source: str | Path | None = None) -> ComposedImages: ...
def cutouts(split: str, source: str | Path | None = None) -> tuple[list[Foreground], list[Path]] | ComposedImages:
    """Cut-outs and backgrounds to train on, or the 200 composites of `composites`.

    Args:
        split: `"train"` or `"test"`.
        source: Where Debian's `/usr/share` stands; None for `/usr/share`.

    Returns:
        For `"train"` 187 cut-outs with an alpha channel, and 19 backgrounds; for `"test"` composites of 256 x 256.

    Raises:
        FileNotFoundError: Pictures of the split are missing; the message says how to obtain them.
        ValueError: The split is unknown.
    """
    check_split(split, ("train", "test"))
    share = SHARE if source is None else Path(source)
    foregrounds, backgrounds = (
        {name: share / folder / name for name in _names(kind, split)} for kind, folder in FOLDERS.items()
    )
    _check_files([*foregrounds.values(), *backgrounds.values()])
    cut = {name: Foreground(path.stem, path) for name, path in foregrounds.items()}
    if split == "train":
        return list(cut.values()), list(backgrounds.values())
    items = [(entry.name, cut[entry.foreground], backgrounds[entry.background], entry.seed) for entry in composites()]
    return ComposedImages(items, side=SIDE)


def composites() -> list[Composite]:
    """The 200 composites for test: each of 40 cut-outs on each of 5 backgrounds, numbered by their seeds."""
    pairs = [(front, back) for front in _names("foregrounds", "test") for back in _names("backgrounds", "test")]
    return [
        Composite(f"{Path(front).stem}-{Path(back).stem}", front, back, seed)
        for seed, (front, back) in enumerate(pairs)
    ]


def _names(kind: str, split: str) -> list[str]:
    entries = json.loads(LIST.read_text(encoding="utf-8"))[kind]
    return [entry["file"] for entry in entries if entry["split"] == split]


def _check_files(paths: Sequence[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} must be a picture, got none; {len(missing)} of {len(paths)} are missing: {OBTAIN}"
        )
