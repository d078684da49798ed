"""How interrupted work whose results are many files goes on: a journal of what is finished, and a broom."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fadeup.checkpoint import differences, write
from fadeup.kernels.native import lives


def sweep(folder: Path, names: Container[str] | None = None) -> None:
    """Remove what `write` has left in a folder where its process was killed; files of living processes stay.

    Args:
        folder: It need not exist; folders within it are not searched.
        names: Of the files that were to be written; None for all.
    """
    if os.name != "posix" or not folder.is_dir():
        return
    for entry in os.scandir(folder):
        left = re.fullmatch(r"\.(.+)\.(\d+)\.part", entry.name)
        if left and (names is None or left[1] in names) and not lives(left[2]):
            Path(entry.path).unlink(missing_ok=True)


class Journal:
    """What is finished of a long piece of work: a line of JSON each, appended and synced when its results are whole.

    A killed process loses what it had under way and no more: a line that it left torn is dropped, and what has no line
    is done anew. Floats come back bit for bit.

    Args:
        path: Of the file, beside the results. Each further process of a run appends to a file of its own.
        identity: What the results depend on, as plain data.
        resume: Whether to go on with results of the same identity; else they are made anew.

    Raises:
        ValueError: To resume, the file is of another identity, or no journal.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, resume: bool):
        self.path, self.identity, self.resume = path, json.loads(json.dumps(identity)), resume
        self.entries: dict[str, Any] = {}
        """What was told of the finished, by name; None for what was begun, whose results may be there in part."""
        if not path.exists():
            return
        header, *lines = _whole_lines(path) or [None]
        if not isinstance(header, dict):
            if resume:
                raise ValueError(f"{path} must be a journal of finished work, got another file; delete it, overwrite")
            return
        if differing := differences(header, self.identity):
            if resume:
                raise ValueError(
                    f"{path} must be of the same model and options to resume, got {differing}; repeat them, overwrite, "
                    "or choose another place"
                )
            return
        for name, told in (*lines, *(line for part in self._parts() for line in _whole_lines(part))):
            self.entries[name] = told

    def _parts(self) -> list[Path]:
        """Files of the other processes of a run that was interrupted."""
        return sorted(self.path.parent.glob(f"{self.path.name}.[0-9]*"))

    def begin(self, names: Iterable[str]) -> None:
        """Take over pieces of work: with `resume`, those that are finished remain so.

        Raises:
            OSError: The file cannot be written.
        """
        for name in names:
            if not self.resume:
                self.entries[name] = None
            self.entries.setdefault(name, None)
        parts = self._parts()
        if not self.resume:  # what they hold shall not count when this process is killed in between
            _remove(parts)
        lines = [self.identity, *([name, told] for name, told in self.entries.items())]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write(self.path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        _remove(parts)

    def add(self, name: str, told: Any, process: int = 0) -> None:
        """Note a piece of work as finished, with what is to be told of it when it is passed over.

        Raises:
            OSError: It cannot be written.
        """
        path = self.path.with_name(f"{self.path.name}.{process}") if process else self.path
        with open(path, "ab") as file:
            file.write((json.dumps([name, told]) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines, up to the first that is not whole."""
    values = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            values.append(json.loads(line))
        except ValueError:
            break
    return values


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def network_digest(network: nn.Module) -> str:
    """A digest of a network's layers, weights and buffers."""
    digest = hashlib.sha256(re.sub(" at 0x[0-9a-f]+", "", repr(network)).encode())
    for name, tensor in network.state_dict().items():
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
