"""Composition-1K: 431 foregrounds to train on, 1,000 composites of 50 others for test; given by Adobe on request.

Source: Xu et al., Deep Image Matting, CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from fadeup.data.labelled import (
    check_count,
    check_inside,
    check_split,
    find_pairs,
    find_pictures,
    find_root,
    read_lines,
)
from fadeup.data.matting import (
    Foreground,
    MattingImages,
    Triple,
    fit_background,
    read_colors,
    read_foreground,
    read_trimap,
)

FOREGROUNDS = {"train": 431, "test": 50}
BACKGROUNDS = {"train": 82_783, "test": 1000}
EACH = 20
"""Backgrounds of a foreground in the test set."""
PARTS = ("Adobe-licensed images", "Other")
OBTAIN = (
    "Composition-1K is Combined_Dataset, which the authors of Deep Image Matting give on request: put Training_set and "
    "Test_set under the root, COCO's train2014 beside them for training, and for test VOCdevkit/VOC2012 or the "
    "finished composites as Test_set/merged, Test_set/alpha_copy and Test_set/trimaps"
)


class Composites(Dataset[Triple]):
    """Each foreground on the backgrounds of its own, composed whenever they are asked for.

    As Adobe's script for the test set does it: a background is fitted by `fadeup.data.matting.fit_background` with
    Pillow's cubic interpolation (a = −0.5), and the composite is cut off to 8 bits, not rounded. Scores of other
    composites differ: VOC's pictures are smaller than nearly all of the foregrounds, so that most are enlarged.

    Args:
        items: Name, foreground, background and trimap of each.

    Raises:
        ValueError: On reading: a file is damaged, or a trimap differs in size from its foreground.
    """

    def __init__(self, items: Sequence[tuple[str, Foreground, Path, Path]]):
        self.items = list(items)
        self.names = [name for name, *_ in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Triple:
        _, foreground, background, trimap = self.items[range(len(self.items))[index]]
        color, alpha = read_foreground(foreground)
        behind = fit_background(read_colors(background), alpha.shape, _enlarged)
        weight = alpha[..., None].astype(np.float64) / 255
        image = (weight * color + (1 - weight) * behind).astype(np.uint8)
        parts = image.transpose(2, 0, 1).copy(), alpha, read_trimap(trimap, alpha.shape)
        return tuple(torch.from_numpy(part) for part in parts)  # type: ignore[return-value]


def _enlarged(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC))


@overload
def composition1k(
    split: Literal["train"],
    root: str | Path | None = None,
    *,
    backgrounds: str | Path | None = None,
    strict: bool = True,
) -> tuple[list[Foreground], list[Path]]: ...
@overload
def composition1k(
    split: Literal["test"],
    root: str | Path | None = None,
    *,
    backgrounds: str | Path | None = None,
    strict: bool = True,
) -> MattingImages | Composites: ...
def composition1k(
    split: str, root: str | Path | None = None, *, backgrounds: str | Path | None = None, strict: bool = True
) -> tuple[list[Foreground], list[Path]] | MattingImages | Composites:
    """Composition-1K.

    Args:
        split: `"train"` or `"test"`.
        root: Folder with `Training_set` and `Test_set`, each with `Adobe-licensed images` (the training set with
            `Other` too) of `fg` and `alpha`; None for `$FADEUP_DATA/composition1k`, where the variable is not set
            `data/composition1k`. The list `training_fg_names.txt` is followed where it is.
        backgrounds: Folder of photographs; None for `train2014` (COCO) or `VOCdevkit/VOC2012/JPEGImages` in `root`. In
            training any of them may lie behind any foreground, as published; Adobe's list of pairs is not used.
        strict: Refuse another number of pictures.

    Returns:
        For `"train"` foregrounds and backgrounds. For `"test"` a data set of image, alpha and trimap: the pictures of
        `Test_set/merged`, `alpha_copy` and `trimaps` where these are there, else composites of `test_fg_names.txt` on
        `test_bg_names.txt`, 20 a foreground.

    Raises:
        FileNotFoundError: The data is not there; the message says how to obtain it.
        ValueError: The split is unknown, or pictures are missing.
    """
    check_split(split, ("train", "test"))
    if split == "train":
        folder = find_root(root, "composition1k", ("Training_set",), OBTAIN)
        foregrounds = _foregrounds(folder / "Training_set", "training_fg_names.txt")
        behind = sorted(find_pictures(_behind(folder, "train2014", backgrounds)).values())
        if strict:
            check_count("Composition-1K", "train split", len(foregrounds), FOREGROUNDS["train"])
            if backgrounds is None:
                check_count("COCO", "train2014", len(behind), BACKGROUNDS["train"])
        return list(foregrounds.values()), behind
    folder = find_root(root, "composition1k", ("Test_set",), OBTAIN)
    if (folder / "Test_set" / "merged").is_dir():
        data: MattingImages | Composites = MattingImages(folder / "Test_set")
    else:
        data = _composites(folder, _behind(folder, "VOCdevkit/VOC2012/JPEGImages", backgrounds), strict)
    if strict:
        check_count("Composition-1K", "test split", len(data), BACKGROUNDS["test"])
    return data


def _behind(folder: Path, name: str, given: str | Path | None) -> Path:
    return find_root(folder, "", (name,), OBTAIN) / name if given is None else Path(given)


def _composites(folder: Path, behind: Path, strict: bool) -> Composites:
    test = folder / "Test_set"
    foregrounds = _foregrounds(test, "test_fg_names.txt", required=True)
    if strict:
        check_count("Composition-1K", "test foregrounds", len(foregrounds), FOREGROUNDS["test"])
    trimaps = find_pictures(find_root(test, "", (f"{PARTS[0]}/trimaps",), OBTAIN) / PARTS[0] / "trimaps")
    listed = _names(test / "test_bg_names.txt")
    if len(listed) != EACH * len(foregrounds):
        raise ValueError(
            f"{test / 'test_bg_names.txt'} must have {EACH} backgrounds for each of {len(foregrounds)} foregrounds, "
            f"got {len(listed)} lines"
        )
    missing = [name for name in listed if not (behind / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{behind} must hold {missing[0]} and more, got {len(missing)} missing; {OBTAIN}")
    items = []
    for place, name in enumerate(listed):
        stem, number = list(foregrounds)[place // EACH], place % EACH
        if f"{stem}_{number}" not in trimaps:
            raise FileNotFoundError(f"{test} must hold a trimap {stem}_{number}, got none; {OBTAIN}")
        items.append((f"{stem}_{number}", foregrounds[stem], behind / name, trimaps[f"{stem}_{number}"]))
    return Composites(items)


def _foregrounds(folder: Path, names: str, required: bool = False) -> dict[str, Foreground]:
    """Foregrounds by name, in the order of the list where there is one; a required one must be there."""
    found = {}
    for part in PARTS:
        if (folder / part).is_dir():
            find_root(folder / part, "", ("fg", "alpha"), OBTAIN)
            for color, alpha in find_pairs(folder / part / "fg", folder / part / "alpha"):
                found[color.stem] = Foreground(color.stem, color, alpha)
    if not found:
        raise FileNotFoundError(f"{folder} must hold {PARTS[0]}/fg and {PARTS[0]}/alpha, got neither; {OBTAIN}")
    if not required and not (folder / names).is_file():
        return found
    listed = [Path(name).stem for name in _names(folder / names)]
    missing = [stem for stem in listed if stem not in found]
    if missing:
        raise ValueError(f"{folder / names} must list foregrounds that are there, got {missing[0]}; {OBTAIN}")
    return {stem: found[stem] for stem in listed}


def _names(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a list of names, got no such file; {OBTAIN}")
    return [check_inside(path, line.strip()) for line in read_lines(path) if line.strip()]
