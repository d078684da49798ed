"""Your own cut-outs and backgrounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fadeup.data.labelled import check_split, find_pictures, find_root, seeded_split
from fadeup.data.matting import ComposedImages, Foreground, MattingImages

OBTAIN = (
    "put cut-outs (PNG with an alpha channel) under foregrounds and photographs under backgrounds; or colours under "
    "foregrounds and, of the same names, grey alphas under alphas; test pictures go under test"
)


def matting_folder(split: str, root: str | Path | None, *, seed: int = 0) -> Any:
    """A folder of cut-outs and backgrounds.

    Args:
        split: `"train"` or `"test"`.
        root: Folder with `foregrounds` and `backgrounds`, `alphas` where the foregrounds have none themselves, and
            `test`, as `fadeup.data.matting.MattingImages` describes it; without it 15 % of the cut-outs, drawn by
            `seed`, are held out and composed on four backgrounds each.
        seed: Of the split.

    Returns:
        For `"train"` cut-outs and backgrounds, for `"test"` a data set of image, alpha and trimap.

    Raises:
        FileNotFoundError: A folder is missing or empty; the message says what is expected.
        ValueError: The split is unknown, colours and alphas do not match, or a split would be empty.
    """
    check_split(split, ("train", "test"))
    path = find_root(root, "matting", (), OBTAIN)
    if split == "test" and (path / "test").is_dir():
        return MattingImages(path / "test")
    path = find_root(root, "matting", ("foregrounds", "backgrounds"), OBTAIN)
    backgrounds = sorted(find_pictures(path / "backgrounds").values())
    foregrounds = _foregrounds(path)
    if not (path / "test").is_dir():
        chosen = seeded_split([(cutout.color, cutout.color) for cutout in foregrounds], split, seed)
        kept = {color for color, _ in chosen}
        if not kept:
            count = len(foregrounds)
            raise ValueError(f"{path / 'foregrounds'} must have cut-outs enough for both splits, got {count}; add some")
        foregrounds = [cutout for cutout in foregrounds if cutout.color in kept]
    if split == "train":
        return foregrounds, backgrounds
    behind = backgrounds[:: max(1, len(backgrounds) // 4)][:4]
    pairs = [(cutout, background) for cutout in foregrounds for background in behind]
    # Numbered: files in folders below may share their names.
    return ComposedImages([(f"{i:03d}_{a.color.stem}_{b.stem}", a, b, i) for i, (a, b) in enumerate(pairs)])


def _foregrounds(path: Path) -> list[Foreground]:
    colors = find_pictures(path / "foregrounds")
    if not (path / "alphas").is_dir():
        return [Foreground(name, color) for name, color in sorted(colors.items())]
    alphas = find_pictures(path / "alphas")
    missing = sorted(colors.keys() ^ alphas.keys())
    if missing:
        raise ValueError(
            f"{path / 'alphas'} must hold an alpha for each foreground, got {len(missing)} without partner, such as "
            f"{missing[0]}"
        )
    return [Foreground(name, color, alphas[name]) for name, color in sorted(colors.items())]
