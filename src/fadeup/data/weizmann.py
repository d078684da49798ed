"""Weizmann Horse: 328 photographs of horses and their outlines; research data of E. Borenstein and S. Ullman.

Source: Borenstein, Ullman, Class-specific, top-down segmentation, ECCV 2002. The split of 279 and 49 pictures has the
sizes of FADE's Table 2; which pictures went where is not published, so that it is drawn by a seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fadeup.data.labelled import LabelledImages, check_count, check_split, find_pairs, find_root, seeded_split

COUNT = 328
CLASSES = ("background", "horse")
PALETTE = np.array([[68, 68, 68], [230, 159, 0]], np.uint8)
OBTAIN = (
    "Weizmann Horse is weizmann_horse_db.tar.gz of https://www.msri.org/people/members/eranb: put rgb/*.jpg under the "
    "root as images/*.jpg and figure_ground/* as masks/*.png (0 and 255, of the photograph's size)"
)


def weizmann(
    split: str, root: str | Path | None = None, *, seed: int = 0, strict: bool = True, cache: bool = False
) -> LabelledImages:
    """Weizmann Horse.

    Args:
        split: `"train"` (279 pictures) or `"test"` (49).
        root: Folder with `images/*.jpg` and `masks/*.png`; None for `$FADEUP_DATA/weizmann_horse`, where the variable
            is not set `data/weizmann_horse`.
        seed: Of the split, which is the same on every machine.
        strict: Refuse another number of pictures than 328.
        cache: As in `LabelledImages`.

    Returns:
        Two classes, background and horse; nothing is ignored.

    Raises:
        FileNotFoundError: The data is not there; the message says how to obtain it.
        ValueError: The split is unknown, or pictures are missing.
    """
    check_split(split, ("train", "test"))
    folder = find_root(root, "weizmann_horse", ("images", "masks"), OBTAIN)
    pairs = find_pairs(folder / "images", folder / "masks")
    if strict:
        check_count("Weizmann Horse", "set", len(pairs), COUNT)
    part = seeded_split(pairs, split, seed)
    return LabelledImages("weizmann", split, part, CLASSES, PALETTE, {0: 0, 255: 1}, cache=cache)
