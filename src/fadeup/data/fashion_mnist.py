"""Fashion-MNIST: 60,000 + 10,000 grey pictures of clothes, 28 x 28, 10 classes, MIT licence.

Source: Xiao, Rasul, Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms, 2017.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from pathlib import Path

import numpy as np

from fadeup.reading import LIMIT, pixel_limit

ASSETS = Path(__file__).parent.parent / "assets" / "fashion-mnist"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
OBTAIN = "install Debian's package dataset-fashion-mnist, or let torchvision download it (pip install torchvision)"
PREFIXES = {"train": "train", "test": "t10k"}
SIZE = 28


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes, whole or not at all; no more is unpacked than its header says.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not gzip, not IDX of unsigned bytes, truncated, longer than its header says, or of more values
            than `fadeup.reading.pixel_limit()`.
    """
    try:
        with gzip.open(path) as file:
            shape = _shape(path, file.read(4), file)
            expected = math.prod(shape)
            content = _read(file, expected + 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.name} must be in {path.parent}, got no such file; {OBTAIN}") from None
    except (OSError, EOFError, zlib.error) as error:  # OSError: not gzip; EOFError: cut off
        raise ValueError(f"{path} must be a whole gzip file, got {error}; {OBTAIN}") from error
    if len(content) != expected:
        got = len(content) if len(content) < expected else "more"
        raise ValueError(f"{path} must hold {expected} values for its shape {shape}, got {got}; {OBTAIN}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _shape(path: Path, start: bytes, file: io.BufferedIOBase) -> tuple[int, ...]:
    """The shape that an IDX file's header says."""
    dimensions = start[3] if len(start) == 4 and start[:3] == b"\x00\x00\x08" else 0
    sizes = file.read(4 * dimensions) if 1 <= dimensions <= 3 else b""
    if not sizes or len(sizes) < 4 * dimensions:
        raise ValueError(f"{path} must be an IDX file of unsigned bytes, got a header of {start.hex() or 'nothing'}")
    shape = tuple(np.frombuffer(sizes, ">u4").tolist())
    if math.prod(shape) > pixel_limit():
        raise ValueError(f"{path} must have at most {pixel_limit()} values, got {shape}; set {LIMIT} to more")
    return shape


def _read(file: io.BufferedIOBase, most: int) -> bytes:
    """Up to so many bytes; memory is taken as they come, and not for what a header promises."""
    content = bytearray()
    while len(content) < most and (part := file.read(min(1 << 20, most - len(content)))):
        content += part
    return bytes(content)


def fashion_mnist(split: str, source: str | Path = "assets") -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels of a split.

    Args:
        split: `"train"` or `"test"`.
        source: `"assets"`: the subset shipped with the package, the first 700 (train) and 100 (test) of each class;
            `"full"`: Debian's package where it is installed, else torchvision's download, kept in the user's cache
            folder; or a folder with the four gzipped IDX files.

    Returns:
        Pictures `(N, 28, 28)` and labels `(N,)`, uint8.

    Raises:
        FileNotFoundError: The data is not there; the message says how to obtain it.
        ValueError: The split is unknown, or a file is damaged or does not belong.
    """
    if split not in PREFIXES:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    folder = ASSETS if source == "assets" else _full() if source == "full" else Path(source)
    images = read_idx(folder / f"{PREFIXES[split]}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{PREFIXES[split]}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or images.shape[1:] != (SIZE, SIZE):
        raise ValueError(f"pictures in {folder} must be {SIZE} x {SIZE}, got an array of {images.shape}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels in {folder} must be one for each of {len(images)} pictures, got {labels.shape}")
    return images, labels


def _full() -> Path:
    if DEBIAN.is_dir():
        return DEBIAN
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fadeup"
    folder = cache / "FashionMNIST" / "raw"
    try:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(cache, download=True)
    except Exception as error:  # no torchvision, no network, a damaged archive: the user's next step is the same
        raise FileNotFoundError(f"Fashion-MNIST must be in {DEBIAN} or {folder}, got {error}; {OBTAIN}") from error
    return folder
