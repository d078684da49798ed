"""Photographs with a class for every pixel: reading them, pairing them, checking them."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from fadeup.reading import LIMIT, MAX_PIXELS, pixel_limit

IGNORED = 255
"""The label of pixels that are neither learned nor scored."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
GREY16 = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# PIL spreads grey values of 2 and 4 bits over 0–255; in a label they are class numbers.
SPREAD = {"L;2": 85, "L;4": 17, "L;2I": 85, "L;4I": 17}
SMALLER = f"scale it down, or set {LIMIT} to more"
PIL_LIMIT = threading.Lock()
"""Held while `Image.MAX_IMAGE_PIXELS` is another."""

Pair = tuple[Path, Path]
"""The files of a photograph and of its label."""


def read_photo(path: str | Path, *, max_pixels: int | None = None) -> Tensor:
    """Read a photograph as it is meant to be seen.

    EXIF rotation is applied, 16-bit grey is divided by 257, transparent parts are shown on white, of several frames the
    first is taken.

    Args:
        path: JPEG, PNG, WebP, TIFF, BMP or another format of PIL but EPS; 1-bit, grey, palette, RGB, RGBA or CMYK.
        max_pixels: Refuse pictures with more; None for `$FADEUP_MAX_PIXELS`, by default 89,478,485.

    Returns:
        RGB, uint8, `(3, H, W)`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no picture, damaged, cut off, too large or of a kind without a scale (float).
    """
    image, _ = open_picture(Path(path), max_pixels)
    if image.mode in GREY16:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{path} must have 8 or 16 bits a value, got {values.min()} to {values.max()}")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError(f"{path} must have 8 or 16 bits a value, got floating point; convert it to 8 bits")
    elif image.has_transparency_data:
        image = converted(image, "RGBA", path)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return torch.from_numpy(np.array(converted(image, "RGB", path))).permute(2, 0, 1).contiguous()


def read_label(path: str | Path, *, max_pixels: int | None = None) -> Tensor:
    """Read the class numbers of a label picture.

    Args:
        path: PNG or another lossless picture: grey or palette (its indices, not its colours), 1-bit (0 and 1),
            16 or 32 bits with values up to 255, or RGB with three equal channels. EXIF rotation is applied.
        max_pixels: As in `read_photo`.

    Returns:
        The values as stored, uint8, `(H, W)`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no picture, damaged, lossy, colour-coded, has transparent parts, or values above 255.
    """
    image, spread = open_picture(Path(path), max_pixels)
    if image.format == "JPEG":
        raise ValueError(f"{path} must be lossless (PNG), got JPEG, which changes class numbers")
    if image.mode not in ("1", "L", "P", "LA", "RGB", "RGBA", *GREY16):
        raise ValueError(f"{path} must be grey or palette, got mode {image.mode}")
    values = np.asarray(image)
    if image.mode in ("LA", "RGBA"):
        if values[..., -1].min() < 255:
            raise ValueError(f"{path} must be opaque, got transparent pixels; save the label without alpha")
        values = values[..., :-1]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise ValueError(f"{path} must hold class numbers, got colours; save each colour's number as grey")
        values = values[..., 0]
    if values.min() < 0 or values.max() > 255:
        wrong = values.min() if values.min() < 0 else values.max()
        raise ValueError(f"{path} must hold class numbers of at most {IGNORED}, got {wrong}")
    return torch.from_numpy(values.astype(np.uint8) // spread)


def open_picture(path: Path, max_pixels: int | None = None) -> tuple[Image.Image, int]:
    """The decoded, upright picture and the factor by which PIL has spread its values."""
    limit = pixel_limit(max_pixels)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a picture, got {'a folder' if path.is_dir() else 'no such file'}")
    try:
        with _decoding(limit), Image.open(path) as image:
            size, kind = image.size, image.format
            layout = image.tile[0].args if image.tile else ""
            spread = SPREAD.get(layout[0] if isinstance(layout, tuple) else str(layout), 1)
            if kind == "EPS":
                raise ValueError("EPS, a program that another program would run")
            if size[0] * size[1] <= limit:
                image = ImageOps.exif_transpose(image)  # loads it, and returns a copy
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} must have at most {limit} pixels, got more: {error}; {SMALLER}") from error
    except Exception as error:  # each of PIL's decoders raises its own kind
        size = path.stat().st_size
        raise ValueError(f"{path} must be a whole picture, got {size} bytes that do not decode: {error}") from error
    if size[0] * size[1] > limit or image.width * image.height > limit:
        raise ValueError(f"{path} must have at most {limit} pixels, got {size[0]} x {size[1]}; {SMALLER}")
    image.format = kind
    return image, spread


@contextmanager
def _decoding(limit: int) -> Iterator[None]:
    """PIL without its warnings, of metadata that it passes over, and with its own limit no lower than a raised one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if limit <= MAX_PIXELS:
            yield
            return
        with PIL_LIMIT:
            before = Image.MAX_IMAGE_PIXELS
            if before is not None:
                Image.MAX_IMAGE_PIXELS = max(before, limit)
            try:
                yield
            finally:
                Image.MAX_IMAGE_PIXELS = before


def converted(image: Image.Image, mode: str, path: str | Path) -> Image.Image:
    """The picture in another mode of PIL.

    Raises:
        ValueError: PIL cannot convert its own; the message names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            return image.convert(mode)
    except ValueError as error:
        raise ValueError(f"{path} must be grey, palette, RGB or CMYK, got {image.mode}; convert it to RGB") from error


def find_pairs(images: str | Path, labels: str | Path) -> tuple[Pair, ...]:
    """Match photographs with labels by their paths below the two folders, without the suffixes.

    Args:
        images: Folder of photographs; its subfolders are searched too. Files of other kinds are passed over.
        labels: Folder of labels, with the same names.

    Returns:
        Pairs of files, sorted by name, so that they do not depend on the file system.

    Raises:
        FileNotFoundError: A folder is missing, or holds no pictures.
        ValueError: Photographs without a label, labels without a photograph, or two files of one name.
    """
    photos, masks = find_pictures(Path(images)), find_pictures(Path(labels))
    for these, those, folder, rule in (
        (photos, masks, labels, "a label for each photograph"),
        (masks, photos, images, "a photograph for each label"),
    ):
        missing = sorted(these.keys() - those.keys())
        if missing:
            raise ValueError(f"{folder} must hold {rule}, got {_few(missing)} missing of {len(these)}")
    return tuple((photos[name], masks[name]) for name in sorted(photos))


def find_pictures(folder: Path) -> dict[str, Path]:
    """The pictures of a folder and its subfolders, by their path below it without the suffix.

    Raises:
        FileNotFoundError: The folder is missing, or holds none.
        ValueError: Two files differ in their suffix alone.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} must be a folder of pictures, got no such folder")
    found: dict[str, Path] = {}
    twice = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                twice.append(f"{found[name].name} and {path.name}")
            found[name] = path
    if not found:
        raise FileNotFoundError(f"{folder} must hold pictures ({', '.join(SUFFIXES)}), got none")
    if twice:
        raise ValueError(f"{folder} must hold one file of a name, got {_few(twice)}; remove one of each")
    return found


def _few(names: Sequence[str]) -> str:
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")


def _ranges(values: Iterable[int]) -> str:
    """`0-3, 255` for 0, 1, 2, 3, 255."""
    ends: list[list[int]] = []
    for value in sorted(values):
        if ends and ends[-1][1] == value - 1:
            ends[-1][1] = value
        else:
            ends.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ends)


def find_root(root: str | Path | None, folder: str, needs: Sequence[str], obtain: str) -> Path:
    """The folder of a data set.

    Args:
        root: The folder; None for `$FADEUP_DATA/<folder>`, where the variable is not set `data/<folder>`.
        folder: The data set's own name for it.
        needs: Subfolders that must be there.
        obtain: How to obtain the data, for the message.

    Raises:
        FileNotFoundError: A subfolder is missing or empty.
    """
    path = Path(root) if root is not None else Path(os.environ.get("FADEUP_DATA") or "data") / folder
    hint = "" if root is not None else f"; then pass the root, or set FADEUP_DATA to the folder that holds {folder}"
    for name in needs:
        if not (path / name).is_dir() or not any((path / name).iterdir()):
            kind = "an empty one" if (path / name).is_dir() else "no such folder"
            raise FileNotFoundError(f"{path / name} must be a folder of pictures, got {kind}; {obtain}{hint}")
    return path


def read_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        ValueError: It is not UTF-8; the message names it.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be text in UTF-8, got {error.reason} at byte {error.start}; save it anew"
        ) from error


def check_inside(path: Path, name: str) -> str:
    """The name of a file that a data set's list gives, which must lie in the data set's folder.

    Raises:
        ValueError: It is absolute, leads out of the folder by `..`, or has a zero byte; the message names the list.
    """
    if (
        not name
        or "\0" in name
        or PurePosixPath(name).is_absolute()
        or PureWindowsPath(name).anchor
        or (".." in PureWindowsPath(name).parts)
    ):
        raise ValueError(f"{path} must name files below its data set's folder, got {name!r:.200}; mend the list")
    return name


def check_count(name: str, split: str, found: int, expected: int) -> None:
    """Refuse a data set of which a part is missing: its scores could not be compared.

    Raises:
        ValueError: `found` is not `expected`.
    """
    if found != expected:
        raise ValueError(
            f"{name}'s {split} must have {expected} pictures, got {found}; pass strict=False to use them all the same"
        )


def seeded_split(pairs: Sequence[Pair], split: str, seed: int, train_share: float = 0.85) -> tuple[Pair, ...]:
    """The `"train"` or `"test"` part of a set that comes without one.

    Pairs are ranked by the SHA-256 of seed and file name: the same parts on every machine and in any order of `pairs`.
    """
    ranked = sorted(pairs, key=lambda pair: hashlib.sha256(f"{seed} {pair[0].stem}".encode()).digest())
    count = round(train_share * len(ranked))
    return tuple(sorted(ranked[:count] if split == "train" else ranked[count:]))


def check_split(split: str, known: Sequence[str]) -> None:
    """Refuse a split that the data set does not have.

    Raises:
        ValueError: `split` is not among `known`.
    """
    if split not in known:
        raise ValueError(f"split must be {' or '.join(map(repr, known))}, got {split!r}")


def distinct_colours(count: int) -> np.ndarray:
    """Colours for classes without customary ones: hues by the golden angle, three lightnesses, uint8 `(count, 3)`.

    Neighbouring numbers differ in lightness as well as in hue, which is what the colour-blind see.
    """
    index = np.arange(count)
    angle = 2 * np.pi * (index * 0.61803398875 % 1)
    light = np.array([0.75, 0.4, 0.95])[index % 3]
    wheel = 0.5 + 0.5 * np.cos(angle[:, None] - 2 * np.pi / 3 * np.arange(3))
    return (255 * light[:, None] * wheel).round().astype(np.uint8)


class LabelledImages(Dataset[tuple[Tensor, Tensor]]):
    """Photographs and their classes, pixel by pixel.

    `data[i]` is the photograph, uint8 `(3, H, W)`, and its label, uint8 `(H, W)`: class numbers, 255 where ignored.

    Args:
        name: Of the data set.
        split: Of the data set.
        pairs: Files of photographs and of labels.
        classes: Names, at most 255.
        palette: A colour of each class, uint8 `(len(classes), 3)`; made where None.
        decode: Stored value to class number, or to 255 for ignored; None where they are equal. Others are refused.
        cache: Keep decoded samples in memory, for each process its own. Do not write into them.

    Raises:
        ValueError: Names, palette and decoding do not fit; on reading: photograph and label differ in size, or a label
            has a value that `decode` lacks; and what `read_photo` and `read_label` raise.
    """

    def __init__(
        self,
        name: str,
        split: str,
        pairs: Sequence[Pair],
        classes: Sequence[str],
        palette: np.ndarray | None = None,
        decode: Mapping[int, int] | None = None,
        *,
        cache: bool = False,
    ) -> None:
        if not 1 <= len(classes) <= IGNORED:
            raise ValueError(f"classes must be 1 to {IGNORED} names, got {len(classes)}")
        self.name = name
        self.split = split
        self.pairs = tuple(pairs)
        self.classes = tuple(classes)
        self.palette = distinct_colours(len(classes)) if palette is None else np.asarray(palette, np.uint8)
        if self.palette.shape != (len(classes), 3):
            raise ValueError(f"palette must be {(len(classes), 3)}, got {self.palette.shape}")
        self.decode = {c: c for c in (*range(len(classes)), IGNORED)} if decode is None else dict(decode)
        self.cache = cache
        self._table = np.full(256, -1, np.int16)
        for value, number in self.decode.items():
            if number != IGNORED and not 0 <= number < len(classes):
                raise ValueError(f"decode must map to 0..{len(classes) - 1} or {IGNORED}, got {value}: {number}")
            self._table[value] = number
        self._samples: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index = range(len(self.pairs))[index]  # negative ones too; IndexError ends iteration
        if index in self._samples:
            return self._samples[index]
        image, label = self.photo(index), self.label(index)
        if image.shape[1:] != label.shape:
            (photo_path, label_path), sizes = self.pairs[index], [tuple(image.shape[1:]), tuple(label.shape)]
            turned = "; is the photograph's EXIF rotation missing in the label?" if sizes[0] == sizes[1][::-1] else ""
            raise ValueError(
                f"{label_path} must have the size of {photo_path}, {sizes[0]}, got {sizes[1]} (height, width){turned}"
            )
        if self.cache:
            self._samples[index] = image, label
        return image, label

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_samples": {}}  # what a worker process is sent

    def photo(self, index: int) -> Tensor:
        """The photograph, uint8 `(3, H, W)`."""
        return read_photo(self.pairs[index][0])

    def stored_label(self, index: int) -> Tensor:
        """The label before decoding, uint8 `(H, W)`."""
        return read_label(self.pairs[index][1])

    def label(self, index: int) -> Tensor:
        """The label, uint8 `(H, W)`.

        Raises:
            ValueError: It has a value that `decode` lacks.
        """
        stored = self.stored_label(index).numpy()
        decoded = self._table[stored]
        if decoded.min() < 0:
            raise ValueError(
                f"{self.pairs[index][1]} must have labels of {self.name}'s {len(self.classes)} classes, stored as "
                f"{_ranges(self.decode)}, got {int(stored[decoded < 0].max())}"
            )
        return torch.from_numpy(decoded.astype(np.uint8))

    def counts(self, indices: Iterable[int] | None = None) -> Tensor:
        """Pixels of each class, int64 `(len(classes),)`; reads the labels of `indices`, by default every one."""
        total = torch.zeros(256, dtype=torch.int64)
        for index in range(len(self)) if indices is None else indices:
            total += torch.bincount(self.label(index).flatten(), minlength=256)
        return total[: len(self.classes)]
