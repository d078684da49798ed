"""What the page's events do: they ask the worker, and make of its answers what the page's parts show."""

from __future__ import annotations

import html
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from fadeup.demo.worker import Worker

FIRST = ("bilinear", "fade")
"""The upsamplers that are compared at first."""
KEPT = 3600
"""Seconds that files of results and uploads are kept."""


class Page:
    """The page's state that all visitors share: worker, folder, choices."""

    def __init__(self, worker: Worker, folder: Path):
        self.worker, self.downloads, photographs = worker, folder / "downloads", folder / "photographs"
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
        self, photo: str | None, task: str, left: str, right: str, drawn: Any, file: str | None
    ) -> Iterator[dict[str, Any]]:
        """Both results one after the other, then what is drawn from them; each part is shown as soon as it is there."""
        self._tidy()
        number = secrets.token_hex(4)
        names, path, guide = (left, right), _chosen(photo), _guide(task, drawn, file)
        sizes = self._call(path, "size", path)
        yield {"note": _note(path.name, *sizes)}
        found, pictures = [], []
        for name in names:
            found.append(self._call(path, "predict", task, name, path, guide))
            pictures.append(self._written(path, f"{name}-shown", found[-1].picture))
            yield {
                "slider": (pictures[0], pictures[-1]),
                "measured": _table(number, names, found),
                "legend": _legend(found),
            }
        difference = self._call(path, "difference", task, found[0].result, found[1].result, path)
        yield {
            "difference": self._written(path, "difference", difference),
            "files": [self._file(path, task, n, one.result) for n, one in zip(names, found, strict=True)],
        }
        gates = self._call(path, "gates", task, tuple(dict.fromkeys(names)), path, guide)
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
    ) -> str:
        """The file of a figure of the kernels at a point in percent of height and width."""
        path = _chosen(photo)
        if not all(isinstance(value, int | float) and 0 <= value <= 100 for value in point):
            raise _refusal(f"Row and column must be numbers of 0 to 100, got {point[0]} and {point[1]}")
        at = point[0] / 100, point[1] / 100
        figure = self._call(path, "kernels", task, name, path, _guide(task, drawn, file), stage, at)
        if figure is None:
            raise _refusal(f"{name} has no kernels to show: it weighs every place alike")
        return self._written(path, "kernels", figure)

    def cutout(self, photo: str | None, name: str, drawn: Any, file: str | None) -> str:
        """The foreground as a file."""
        path, guide = _chosen(photo), _guide("matte", drawn, file)
        alpha = self._call(path, "predict", "matte", name, path, guide).result
        return self._written(path, f"{name}-cutout", self._call(path, "cutout", path, alpha))

    def backdrop(self, photo: str | None) -> str | None:
        """What is painted on, in the size in which the photograph is used."""
        if photo is None:
            return None
        return self._written(Path(photo), "backdrop", self._call(Path(photo), "backdrop", Path(photo)))

    # ---- files ----

    def _file(self, photo: Path, task: str, name: str, result: np.ndarray) -> str:
        ending = {"segment": "labels", "matte": "alpha", "reconstruct": "reconstruction"}[task]
        return self._written(photo, f"{name}-{ending}", self._call(photo, "file", task, name, result))

    def _written(self, photo: Path, ending: str, content: bytes) -> str:
        folder = self.downloads / secrets.token_hex(8)
        folder.mkdir()
        path = folder / f"{photo.stem[:60]}-{ending}.png"
        path.write_bytes(content)
        return str(path)

    def _tidy(self) -> None:
        for folder in self.downloads.iterdir():
            if folder.stat().st_mtime < time.time() - KEPT:
                shutil.rmtree(folder, ignore_errors=True)

    def _call(self, photo: Path, method: str, *arguments: Any) -> Any:
        try:
            return self.worker.call(method, *arguments)
        except (ValueError, RuntimeError) as error:
            told = str(error)
            for path in (photo, *(argument for argument in arguments if isinstance(argument, Path))):
                told = told.replace(str(path), path.name)
            raise _refusal(told) from error


def _refusal(told: str) -> gr.Error:
    """A message for the visitor; the log of the server needs no traceback of it."""
    return gr.Error(html.escape(told), duration=10, print_exception=False)


def _chosen(photo: str | None) -> Path:
    if photo is None:
        raise _refusal("A photograph must be chosen or uploaded, got none")
    return Path(photo)


def _guide(task: str, drawn: Any, file: str | None) -> Path | np.ndarray | None:
    if task != "matte":
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
        cells = (f"{one.seconds:.2f} s", memory, f"{one.parameters / 1e6:.2f} M", one.score or "–")
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
