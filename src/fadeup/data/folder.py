"""Your own photographs and label pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fadeup.data.labelled import (
    IGNORED,
    LabelledImages,
    check_split,
    find_pairs,
    find_root,
    read_label,
    read_lines,
    seeded_split,
)

OBTAIN = (
    "put photographs under images/train and images/val and, of the same names, PNG files of class numbers under "
    "labels/train and labels/val (or all of them under images and labels)"
)
SPLITS = ("train", "val")


def folder(
    split: str,
    root: str | Path,
    *,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    cache: bool = False,
) -> LabelledImages:
    """A folder of photographs and labels.

    Args:
        split: `"train"` or `"val"`.
        root: Folder with `images/{train,val}` and `labels/{train,val}`; where these have no such subfolders, 85 % of
            the pairs, drawn by `seed`, are for training. Labels hold 0, 1, ... and 255 where ignored.
        classes: Names; None for the lines of `classes.txt` in `root`, and without that as many as the largest
            training label tells, which reads them all.
        seed: Of the split.
        cache: As in `LabelledImages`.

    Returns:
        The pairs of the split, with made-up colours.

    Raises:
        FileNotFoundError: A folder is missing or empty; the message says what is expected.
        ValueError: The split is unknown, or photographs and labels do not match, or a split would be empty.
    """
    check_split(split, SPLITS)
    path = find_root(root, "", ("images", "labels"), OBTAIN)
    named = classes is not None or (path / "classes.txt").is_file()
    pairs = {name: _pairs(path, name, seed) for name in SPLITS if name == split or not named}
    names = _names(path, pairs) if classes is None else tuple(classes)
    return LabelledImages(path.resolve().name, split, pairs[split], names, cache=cache)


def _pairs(path: Path, split: str, seed: int) -> tuple[tuple[Path, Path], ...]:
    parts = [path / kind / name for kind in ("images", "labels") for name in SPLITS]
    if any(part.is_dir() for part in parts):
        find_root(path, "", (f"images/{split}", f"labels/{split}"), OBTAIN)
        return find_pairs(path / "images" / split, path / "labels" / split)
    pairs = find_pairs(path / "images", path / "labels")
    chosen = seeded_split(pairs, split, seed)
    if not chosen:
        raise ValueError(f"{path / 'images'} must have pictures enough for both splits, got {len(pairs)}; add some")
    return chosen


def _names(path: Path, pairs: dict[str, tuple[tuple[Path, Path], ...]]) -> tuple[str, ...]:
    listed = path / "classes.txt"
    if listed.is_file():
        names = tuple(line.strip() for line in read_lines(listed) if line.strip())
        if not names:
            raise ValueError(f"{listed} must have a class name on each line, got none")
        return names
    values = {int(value) for _, label in pairs["train"] for value in read_label(label).unique()} - {IGNORED}
    if not values:
        raise ValueError(f"{path / 'labels'} must have a training label other than {IGNORED}, got none")
    return tuple(f"class {number}" for number in range(max(values) + 1))
