"""Which photographs are read and which files are written, checked before anything is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fadeup
from fadeup.checkpoint import write
from fadeup.data.labelled import SUFFIXES
from fadeup.journal import Journal, sweep

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


class Results:
    """The results of photos in a folder, and the journal by which an interrupted prediction goes on.

    Args:
        photos: Files.
        out: Folder for the results, made where it is missing.
        endings: Of the results' names.
        kind: Of the prediction; the journal is `.fadeup-<kind>.jsonl`.
        identity: What the results depend on besides the photos and their guides, as plain data.
        overwrite: Replace results of an earlier run.
        resume: Pass over photos whose results were finished by the same `identity` and are there.
        guides: Trimaps or masks, one for each photo where there are any.

    Raises:
        ValueError: As `plan` does; or, to resume, results are there that the journal does not know, or that were made
            with another identity.
        OSError: The folder cannot be written.
    """

    def __init__(
        self,
        photos: Sequence[Path],
        out: Path,
        endings: Sequence[str],
        *,
        kind: str,
        identity: dict[str, Any],
        overwrite: bool = False,
        resume: bool = False,
        guides: Sequence[Path] = (),
    ):
        if overwrite and resume:
            raise ValueError("resume must be left out with overwrite, which makes all results anew; got both")
        self.photos, self.guides = photos, guides
        self.planned = plan(photos, out, endings, overwrite or resume, guides)
        identity = {"fadeup": fadeup.__version__} | identity
        self.journal = Journal(out / f".fadeup-{kind}.jsonl", identity, resume=resume)
        if resume:
            self._check_known(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            sweep(out, {target.name for group in self.planned for target in group} | {self.journal.path.name})
            self.journal.begin(photo.stem for photo in photos)
        except OSError as error:
            raise OSError(f"{out} must be a folder that can be written, got {error}; choose another") from error

    def _check_known(self, out: Path) -> None:
        for photo, targets in zip(self.photos, self.planned, strict=True):
            there = [target.name for target in targets if target.exists()]
            if there and photo.stem not in self.journal.entries:
                raise ValueError(
                    f"{out} must hold results of the same model and options to resume, got {there[0]} of an unknown "
                    "run; overwrite, or choose another folder"
                )

    def make(self, index: int, predict: Callable[[], tuple[list[bytes], dict[str, Any]]]) -> tuple[dict[str, Any], str]:
        """A photo's results: those that are there, or the files that `predict` gives, written and noted.

        Args:
            index: Of the photo.
            predict: Gives the files' contents, and what is to be told of the photo, as plain data.

        Returns:
            What was told, `{"resumed": True}` within it where it was there, and why there are no results.

        Raises:
            OSError: A result cannot be written; the message names it.
        """
        photo, targets, told = self.photos[index], self.planned[index], self.journal.entries[self.photos[index].stem]
        try:
            content = _content((photo, *self.guides[index : index + 1]))
            if told and told["content"] == content and all(target.exists() for target in targets):
                return told | {"resumed": True}, ""
            pictures, told = predict()
        except (ValueError, OSError, RuntimeError, MemoryError) as problem:
            return {}, failure(photo, problem)
        for target, picture in zip(targets, pictures, strict=True):
            write_result(target, picture)
        try:
            self.journal.add(photo.stem, {"content": content} | told)
        except OSError as error:
            raise OSError(f"{self.journal.path} must be a file that can be written, got {error}") from error
        return told, ""


def _content(files: Sequence[Path]) -> str:
    """A digest of what is in the files: a date would not do, for clocks jump and copies are dated anew."""
    return " ".join(short_digest(file.read_bytes()) for file in files if file.is_file())


def short_digest(content: bytes) -> str:
    """What tells one content from another in a journal."""
    return hashlib.sha256(content).hexdigest()[:16]


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
