"""Which photographs are read and which files are written, checked before anything is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fadeup.checkpoint import write
from fadeup.data.labelled import SUFFIXES

LABELS = (".label.png", ".overlay.png")
MATTES = (".alpha.png", ".cutout.png", ".composite.png")


def find_photos(paths: Sequence[str | Path]) -> list[Path]:
    """Files as they are, folders as the photos in them by name, each photo once.

    In a folder, hidden files and the results of an earlier prediction are passed over, and folders within it too.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A folder holds no photos, or no paths are given.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"photos must be files or folders, got {path}, which does not exist")
        photos = _photos_in(path) if path.is_dir() else [path]
        if not photos:
            raise ValueError(f"{path} must hold photos ({', '.join(SUFFIXES)}), got none")
        for photo in photos:
            found.setdefault(photo.resolve(), photo)
    if not found:
        raise ValueError("photos must be at least one, got none; name files or folders")
    return list(found.values())


def _photos_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_photo(path))


def _is_photo(path: Path) -> bool:
    name = path.name.lower()
    results = name.endswith((*LABELS, *MATTES))
    return name.endswith(SUFFIXES) and not name.startswith(".") and not results and path.is_file()


def find_guides(photos: Sequence[str | Path], guide: str | Path, name: str = "trimap") -> list[Path]:
    """The trimap or mask of each photo: a file for the only one, or from a folder the pictures of the same names.

    Args:
        photos: Files, as `find_photos` gives them.
        guide: The file or folder. In a folder, names are compared without suffix, and a photo is not its own guide.
        name: Of the argument, for messages.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: There are several photos for a file, or not one picture in the folder for each of them.
    """
    path = Path(guide)
    if not path.exists():
        raise FileNotFoundError(f"{name} must be a file or a folder, got {path}, which does not exist")
    if not path.is_dir():
        if len(photos) != 1:
            raise ValueError(f"{name} must be a folder for {len(photos)} photos, got the file {path}")
        return [path]
    named: dict[str, list[Path]] = {}
    for picture in _photos_in(path):
        named.setdefault(picture.stem, []).append(picture)
    guides = []
    for photo in map(Path, photos):
        there = [picture for picture in named.get(photo.stem, []) if picture.resolve() != photo.resolve()]
        if len(there) != 1:
            got = " and ".join(picture.name for picture in there) or "none"
            raise ValueError(f"{path} must hold a {name} for each photo, {photo.stem} with any suffix, got {got}")
        guides.append(there[0])
    return guides


def plan(
    photos: Sequence[Path], out: Path, endings: Sequence[str], overwrite: bool, guides: Sequence[Path] = ()
) -> list[list[Path]]:
    """The names of each photo's results, none of which is one that is read or, unless asked, there.

    Raises:
        ValueError: Two photos have one stem, a result is a file that is read, or is there without `overwrite`.
    """
    stems: dict[str, Path] = {}
    for photo in photos:
        other = stems.setdefault(photo.stem.casefold(), photo)  # some file systems know no case
        if other is not photo:
            raise ValueError(
                f"photos must have different names without suffix, got {other} and {photo}; "
                "rename one, or predict them into different folders"
            )
    planned = [[out / (photo.stem + ending) for ending in endings] for photo in photos]
    targets = [target for group in planned for target in group]
    read = {path.resolve() for path in (*photos, *guides)}
    for target in targets:
        if target.resolve() in read:
            raise ValueError(f"{out} must be another folder, got one where {target.name} is itself a picture to read")
    there = [target for target in targets if target.exists()]
    if there and not overwrite:
        raise ValueError(
            f"{out} must not hold these photos' results, got {there[0].name} and {len(there) - 1} more; "
            "set overwrite or choose another folder"
        )
    return planned


def check_photo(photo: Tensor) -> None:
    """Refuse what is not uint8 `(3, H, W)`.

    Raises:
        ValueError: It is of another dtype or shape.
    """
    if photo.dtype != torch.uint8 or photo.ndim != 3 or len(photo) != 3 or 0 in photo.shape:
        raise ValueError(f"photo must be uint8 (3, height, width), got {photo.dtype} {tuple(photo.shape)}")


def failure(photo: Path, problem: Exception) -> str:
    """Why a photo has no results, with its name."""
    return str(problem) if photo.name in str(problem) else f"{photo}: {problem or type(problem).__name__}"


def write_result(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: It cannot be written; the message names it.
    """
    try:
        write(path, content)
    except OSError as error:
        raise OSError(f"{path} must be a file that can be written, got {error}") from error
