"""ADE20K as in the scene parsing challenge of 2016: 20,210 + 2,000 photographs, 150 classes; labels BSD-3.

Source: Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017.
"""

from __future__ import annotations

from pathlib import Path

from fadeup.data.labelled import IGNORED, LabelledImages, check_count, check_split, find_pairs, find_root, read_lines

COUNTS = {"training": 20210, "validation": 2000}
SPLITS = {"train": "training", "val": "validation"}
CLASSES = 150
OBTAIN = (
    "ADE20K is http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip (0.9 GB): unpack it and pass the "
    "folder ADEChallengeData2016"
)


def ade20k(split: str, root: str | Path | None = None, *, strict: bool = True, cache: bool = False) -> LabelledImages:
    """ADE20K with 150 classes, the stored number less one; 0, "other", is ignored.

    Args:
        split: `"train"` (20,210 pictures) or `"val"` (2,000).
        root: Folder with `images/{training,validation}`, `annotations/{training,validation}` and `objectInfo150.txt`,
            from which the names of the classes are read (without it they are `class 1` to `class 150`); None for
            `$FADEUP_DATA/ADEChallengeData2016`, where the variable is not set `data/ADEChallengeData2016`.
        strict: Refuse another number of pictures.
        cache: As in `LabelledImages`; the training pictures take tens of GB.

    Returns:
        150 classes, with made-up colours.

    Raises:
        FileNotFoundError: The data is not there; the message says how to obtain it.
        ValueError: The split is unknown, pictures are missing, or `objectInfo150.txt` has other than 150 names.
    """
    check_split(split, tuple(SPLITS))
    part = SPLITS[split]
    folder = find_root(root, "ADEChallengeData2016", (f"images/{part}", f"annotations/{part}"), OBTAIN)
    pairs = find_pairs(folder / "images" / part, folder / "annotations" / part)
    if strict:
        check_count("ADE20K", split, len(pairs), COUNTS[part])
    decode = {0: IGNORED} | {number: number - 1 for number in range(1, CLASSES + 1)}
    return LabelledImages("ade20k", split, pairs, _names(folder / "objectInfo150.txt"), None, decode, cache=cache)


def _names(path: Path) -> tuple[str, ...]:
    """From rows of number, ratio, counts and names, tabs between them; the first of the names, which have commas."""
    if not path.is_file():
        return tuple(f"class {number}" for number in range(1, CLASSES + 1))
    rows = [line.split("\t") for line in read_lines(path)]
    names = tuple(row[-1].split(",")[0].strip() for row in rows if row[0].strip().isdigit())
    if len(names) != CLASSES:
        raise ValueError(f"{path} must have {CLASSES} names, got {len(names)}; take it from the data set's archive")
    return names
