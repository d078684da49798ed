"""Files that others may have written: how much they may decode to, JSON, arrays, torch's archives."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

MAX_PIXELS = 89_478_485
"""Of a picture. Above it PIL itself warns of a decompression bomb."""
PIXEL_BYTES = 16
"""An .npz may hold so many bytes for each pixel that a picture may have: 1.4 GB by default."""
LIMIT = "FADEUP_MAX_PIXELS"
"""The environment variable that takes the place of `MAX_PIXELS`."""


def pixel_limit(given: int | None = None) -> int:
    """The most pixels that a picture may have to be read.

    Args:
        given: By the caller; None for `$FADEUP_MAX_PIXELS`, where the variable is not set 89,478,485.

    Raises:
        ValueError: The variable is no whole number of 1 or more.
    """
    text = os.environ.get(LIMIT, "").strip()
    if given is not None or not text:
        return MAX_PIXELS if given is None else given
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text)):
        raise ValueError(f"{LIMIT} must be a whole number of 1 or more, got {text!r}; unset it for {MAX_PIXELS}")
    return int(text)


def parsed(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists in lists without end") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8 or not JSON; the caller names the file.
    """
    return parsed(path.read_text(encoding="utf-8"))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz; no objects, for they are pickles.

    Raises:
        ValueError: It is damaged or no .npz, holds objects, or more than 16 bytes for each of `pixel_limit()` pixels.
        OSError: It cannot be read.
    """
    limit = PIXEL_BYTES * pixel_limit()
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size <= limit:
            with warnings.catch_warnings(), np.load(path, allow_pickle=False) as arrays:
                warnings.simplefilter("ignore")  # of old formats; what cannot be read is an error
                read = {name: arrays[name] for name in arrays.files}
            if odd := [name for name, array in read.items() if not isinstance(array, np.ndarray)]:
                raise ValueError(f"{odd[0]!r:.80}, which is no array")
            return read
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # zip, zlib and header errors have no common class
        raise ValueError(f"{path} must be an .npz of plain arrays, got {_reason(error)}") from error
    raise ValueError(
        f"{path} must hold at most {limit} bytes of arrays, got {size}; set {LIMIT} to more than "
        f"{size // PIXEL_BYTES} if you trust it"
    )


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU: tensors and plain data, for nothing that a pickle names is run or imported.

    Raises:
        Exception: It is damaged, holds more than that, or unpacks to more than its size, which torch's own do not. The
            kinds have no common class; the caller names the file.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size:
            raise ValueError(f"{size} bytes packed in {path.stat().st_size}, where torch.save packs nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old formats; what cannot be read is an error
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
