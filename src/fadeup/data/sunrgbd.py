"""SUN RGB-D, the photographs alone: 5,285 + 5,050 indoor scenes, 37 classes; research use.

Source: Song et al., SUN RGB-D: A RGB-D Scene Understanding Benchmark Suite, CVPR 2015.
"""

from __future__ import annotations

from pathlib import Path

from fadeup.data.labelled import IGNORED, LabelledImages, check_count, check_split, find_pairs, find_root

COUNTS = {"train": 5285, "test": 5050}
CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture"),
    *("counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes"),
    *("ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard"),
    *("person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag"),
)
OBTAIN = (
    "SUN RGB-D is at https://rgbd.cs.princeton.edu, its photographs and 37-class labels without the rest are linked "
    "from https://github.com/ankurhanda/sunrgbd-meta-data: put them under the root as image/{train,test}/*.jpg and "
    "label37/{train,test}/*.png, a photograph and its label under one name (numbers 1 to 5050 are for test, 5051 to "
    "10335 for training)"
)


def sunrgbd(split: str, root: str | Path | None = None, *, strict: bool = True, cache: bool = False) -> LabelledImages:
    """SUN RGB-D with 37 classes, the stored number less one; 0, no label, is ignored.

    Args:
        split: `"train"` (5,285 pictures) or `"test"` (5,050).
        root: Folder with `image/{train,test}` and `label37/{train,test}`; None for `$FADEUP_DATA/sunrgbd`, where the
            variable is not set `data/sunrgbd`.
        strict: Refuse another number of pictures.
        cache: As in `LabelledImages`; the training pictures take about 8 GB.

    Returns:
        37 classes, with made-up colours.

    Raises:
        FileNotFoundError: The data is not there; the message says how to obtain it.
        ValueError: The split is unknown, or pictures are missing.
    """
    check_split(split, tuple(COUNTS))
    folder = find_root(root, "sunrgbd", (f"image/{split}", f"label37/{split}"), OBTAIN)
    pairs = find_pairs(folder / "image" / split, folder / "label37" / split)
    if strict:
        check_count("SUN RGB-D", split, len(pairs), COUNTS[split])
    decode = {0: IGNORED} | {number: number - 1 for number in range(1, len(CLASSES) + 1)}
    return LabelledImages("sunrgbd", split, pairs, CLASSES, None, decode, cache=cache)
