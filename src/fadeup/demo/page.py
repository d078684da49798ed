"""What the page's events do: they ask the worker, and make of its answers what the page's parts show."""

from __future__ import annotations

import html
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from fadeup.demo import MATTE, TASKS
from fadeup.demo.turns import Turns
from fadeup.demo.worker import Worker

FIRST = ("bilinear", "fade")
"""The upsamplers that are compared at first."""
KEPT = 3600
"""Seconds that files of results and uploads are kept."""
KEPT_BYTES = 1_000_000_000
"""Of such files at most; the oldest go first."""
FRESH = 120
"""Seconds in which a file is kept whatever there is, since someone may be at it."""
SESSIONS = 1000
"""Tabs whose choices are known, at some 100 kB each; the one that was idle for longest is forgotten first."""
WAITING = 40
"""Visitors that may wait; the next one is told that the page is busy."""


Stop = threading.Event | None
"""Set when nobody waits for the result any more."""


class Page:
    """The page's state that all visitors share: worker, folder, choices, and the line of those who wait."""

    def __init__(self, worker: Worker, folder: Path, waiting: int = WAITING):
        self.worker, self.turns, self.folder = worker, Turns(waiting), folder
        self.downloads, photographs = folder / "downloads", folder / "photographs"
        self.downloads.mkdir()
        photographs.mkdir()
        self.choices: dict[str, list[str]] = worker.call("choices")
        # Gradio gives out files of its own folder only.
        self.shipped = {
            title: Path(shutil.copy(path, photographs)) for title, path in worker.call("photographs").items()
        }

    def warm(self) -> None:
        """Load the networks of the first picture before anyone asks for it."""
        task = next(task for task, names in self.choices.items() if names)
        photo = next(iter(self.shipped.values()))
        with suppress(ValueError, RuntimeError):  # the first visitor is told
            for name in FIRST:
                if name in self.choices[task]:
                    self.worker.call("predict", task, name, photo)

    # ---- what events do ----

    def compare(
        self, photo: str | None, task: str, left: str, right: str, drawn: Any, file: str | None, *, stop: Stop = None
    ) -> Iterator[dict[str, Any]]:
        """Both results one after the other, then what is drawn from them; each part is shown as soon as it is there."""
        number = secrets.token_hex(4)
        names, path, guide = (left, right), _chosen(photo), _guide(task, drawn, file)
        sizes = self._call(stop, path, "size", path)
        yield {"note": _note(path.name, *sizes)}
        found, pictures = [], []
        for name in names:
            found.append(self._call(stop, path, "predict", task, name, path, guide))
            pictures.append(self._written(path, f"{name}-shown", found[-1].picture))
            yield {
                "slider": (pictures[0], pictures[-1]),
                "measured": _table(number, names, found),
                "legend": _legend(found),
            }
        difference = self._call(stop, path, "difference", task, found[0].result, found[1].result, path)
        yield {
            "difference": self._written(path, "difference", difference),
            "files": [self._file(stop, path, task, n, one.result) for n, one in zip(names, found, strict=True)],
        }
        gates = self._call(stop, path, "gates", task, tuple(dict.fromkeys(names)), path, guide)
        yield {"gates": gates and self._written(path, "gates", gates)}

    def kernels(
        self,
        photo: str | None,
        task: str,
        name: str,
        drawn: Any,
        file: str | None,
        stage: str,
        point: tuple[float, float],
        *,
        stop: Stop = None,
    ) -> str:
        """The file of a figure of the kernels at a point in percent of height and width."""
        path = _chosen(photo)
        if not all(isinstance(value, int | float) and 0 <= value <= 100 for value in point):
            raise refusal(f"Row and column must be numbers of 0 to 100, got {point[0]} and {point[1]}")
        at = point[0] / 100, point[1] / 100
        figure = self._call(stop, path, "kernels", task, name, path, _guide(task, drawn, file), stage, at)
        if figure is None:
            raise refusal(f"{name} has no kernels to show: it weighs every place alike")
        return self._written(path, "kernels", figure)

    def cutout(self, photo: str | None, name: str, drawn: Any, file: str | None, *, stop: Stop = None) -> str:
        """The foreground as a file."""
        path, guide = _chosen(photo), _guide(MATTE, drawn, file)
        alpha = self._call(stop, path, "predict", MATTE, name, path, guide).result
        return self._written(path, f"{name}-cutout", self._call(stop, path, "cutout", path, alpha))

    def backdrop(self, photo: str | None, *, stop: Stop = None) -> str | None:
        """What is painted on, in the size in which the photograph is used."""
        if photo is None:
            return None
        return self._written(Path(photo), "backdrop", self._call(stop, Path(photo), "backdrop", Path(photo)))

    # ---- files ----

    def _file(self, stop: Stop, photo: Path, task: str, name: str, result: np.ndarray) -> str:
        content = self._call(stop, photo, "file", task, name, result)
        return self._written(photo, f"{name}-{TASKS[task].ending}", content)

    def _written(self, photo: Path, ending: str, content: bytes) -> str:
        folder = self.downloads / secrets.token_hex(8)
        folder.mkdir()
        path = folder / f"{photo.stem[:60]}-{ending}.png"
        path.write_bytes(content)
        return str(path)

    def tidy(self) -> None:
        """Remove results and uploads that are old, and the oldest of those that are too much together."""
        held = 0
        for path, status in sorted(self._files(), key=lambda entry: -entry[1].st_mtime):
            age, held = time.time() - status.st_mtime, held + status.st_size
            if age > KEPT or (held > KEPT_BYTES and age > FRESH):
                path.unlink(missing_ok=True)
                with suppress(OSError):  # others are in it
                    path.parent.rmdir()

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Files of results and uploads; each lies in a folder of a name that nobody guesses."""
        for path in self.folder.rglob("*"):
            if path.relative_to(self.folder).parts[0] not in ("photographs", "matplotlib"):
                with suppress(FileNotFoundError):  # it has gone meanwhile
                    if stat.S_ISREG((status := path.lstat()).st_mode):
                        yield path, status

    def _call(self, stop: Stop, photo: Path, method: str, *arguments: Any) -> Any:
        try:
            return self.worker.call(method, *arguments, stop=stop)
        except (ValueError, RuntimeError) as error:
            told = str(error)
            for path in (photo, *(argument for argument in arguments if isinstance(argument, Path))):
                told = told.replace(str(path), path.name)
            raise refusal(told) from error


def refusal(told: str) -> gr.Error:
    """A message for the visitor; the log of the server needs no traceback of it."""
    return gr.Error(html.escape(told), duration=10, print_exception=False)


def _chosen(photo: str | None) -> Path:
    if photo is None:
        raise refusal("A photograph must be chosen or uploaded, got none")
    return Path(photo)


def _guide(task: str, drawn: Any, file: str | None) -> Path | np.ndarray | None:
    if task != MATTE:
        return None
    if file is not None:
        return Path(file)
    layers = [layer for layer in (drawn or {}).get("layers", []) if layer[..., 3].any()]
    return layers[0] if layers else None


def _note(name: str, size: tuple[int, int], used: tuple[int, int]) -> str:
    told = f"{html.escape(name)}: {size[1]} × {size[0]}"
    return told if size == used else f"{told}, made smaller to {used[1]} × {used[0]} for this page"


def _table(number: str, names: Sequence[str], found: Sequence[Any]) -> str:
    """Time, memory, parameters and score of each network as HTML; `number` tells comparisons apart."""
    lines = []
    for side, name, one in zip(("left", "right"), names, found, strict=False):
        memory = "–" if one.memory is None else f"{one.memory:.0f} MiB"
        cells = (f"{one.seconds:.2f} s", memory, f"{one.parameters / 1e6:.2f} M", html.escape(one.score) or "–")
        lines.append(
            f"<tr><td>{html.escape(name)} ({side})</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        )
    head = "".join(f"<th>{word}</th>" for word in ("network with", "time", "memory", "parameters", "score"))
    table = f'<table class="measured" data-comparison="{number}"><tr>{head}</tr>{"".join(lines)}</table>'
    return f'<div class="wide">{table}</div>'


def _legend(found: Sequence[Any]) -> str:
    colours = {name: colour for one in found for name, colour, _ in one.classes}
    chips = [
        f'<span class="chip" style="background: rgb{colour}"></span>{html.escape(name)}'
        for name, colour in colours.items()
    ]
    return f'<div class="legend">{"".join(chips)}</div>'
