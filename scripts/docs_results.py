"""Results as cells of tables: what `docs_tables.py` and its test read from `benchmarks/results`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fadeup import UPSAMPLERS
from fadeup.bench.tables import table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
ABSENT = "–"
SAME = {"b2": "carafe", "b6": "fade", "fade,init=xavier,gate_bias=0": "fade,init=xavier"}
"""Two names of one thing."""
ORDER = (*UPSAMPLERS, "b1", "b3", "b4", "b5", "nearest+gate", "carafe+gate")
MATTING, REGIONS = ("sad", "mse", "grad", "conn"), ("miou", "biou")

Column = tuple[str, Callable[[str], str]]
"""A heading, and the cell of an upsampler."""


@cache
def results(name: str) -> dict[str, Any]:
    """A file of the results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def by_id(kind: str, name: str) -> dict[str, Any]:
    """An experiment, or a table of a paper."""
    return next(one for one in results("experiments")[kind] if one["id"] == name)


def row(kind: str, name: str, upsampler: str) -> dict[str, Any] | None:
    """Its row of an upsampler, None where it has none."""
    rows = {SAME.get(one["upsampler"], one["upsampler"]): one for one in by_id(kind, name)["rows"]}
    return rows.get(SAME.get(upsampler, upsampler))


def signed(value: float) -> str:
    """Two digits, with a sign that is as wide as a plus."""
    return f"{value:+.2f}".replace("-", "−")


def score_text(metric: str, score: dict[str, float], digits: int | None = None) -> str:
    """A mean, with the standard deviation over seeds where there are several."""
    digits = results("experiments")["metrics"][metric]["digits"] if digits is None else digits
    return " ± ".join(f"{score[key]:.{digits}f}" for key in ("mean", "std") if key in score)


def difference_text(difference: dict[str, Any]) -> str:
    """A difference to the baseline, its interval, and what that says."""
    low, high = signed(difference["low"]), signed(difference["high"])
    return f"{signed(difference['mean'])} [{low}, {high}] {difference['verdict']}"


def scores(kind: str, name: str, metrics: Sequence[str]) -> Callable[[str], str]:
    """Cells with an upsampler's scores."""

    def cell(upsampler: str) -> str:
        found = row(kind, name, upsampler)
        if found is None or not found["scores"].keys() & set(metrics):
            return ABSENT
        given, digits = found["scores"], by_id(kind, name).get("digits", {})
        return " / ".join(score_text(m, given[m], digits.get(m)) if m in given else ABSENT for m in metrics)

    return cell


def own(names: Sequence[str], metric: str) -> Callable[[str], str]:
    """Cells with score, difference to the baseline and seeds, of the first experiment that has the upsampler."""

    def cell(upsampler: str) -> str:
        for name in names:
            found = row("experiments", name, upsampler)
            if found is None:
                continue
            text = score_text(metric, found["scores"][metric])
            if metric in found.get("differences", {}):
                text += f"; {difference_text(found['differences'][metric])}"
            elif upsampler == by_id("experiments", name)["baseline"]:
                text += "; baseline"
            else:
                text += "; no interval"
            seeds = found.get("seeds", len(by_id("experiments", name)["seeds"]))
            return text + (f" ({seeds} seeds)" if seeds > 1 else "")
        return ABSENT

    return cell


def paper(name: str, metrics: Sequence[str]) -> Callable[[str], str]:
    return scores("papers", name, metrics)


def compared(columns: Sequence[Column], names: Iterable[str] = ORDER, head: str = "upsampler") -> str:
    """A row for each upsampler that some column has."""
    rows = [(f"`{name}`", *(cell(name) for _, cell in columns)) for name in names]
    known = [cells for cells in rows if set(cells[1:]) != {ABSENT}]
    return table((head, *(text for text, _ in columns)), known, len(columns) + 1)
