"""What `upgrade` found and did, as a table."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

LEFT = "left: "
HEAD = ("where", "was", "from", "to", "guide", "upsampler", "parameters", "MACs")


@dataclass(frozen=True)
class Row:
    """One resize of the network."""

    where: str
    """The module that it happens in; `name:2` is the third resize there."""
    was: str
    """Mode of interpolation, or "transposed convolution"."""
    source: tuple[int, int, int]
    """Channels, height and width of the map, in the example."""
    result: tuple[int, int, int]
    """The same of the result."""
    guide: str = ""
    """The module whose output guides the upsampler."""
    guide_channels: int = 0
    upsampler: str = ""
    """Its name and options; empty where the resize was left."""
    parameters: int = 0
    """Of the upsampler, with a projection and blend where there are some."""
    removed: int = 0
    """Parameters of the transposed convolution that it replaced."""
    macs: int = 0
    """Multiply–accumulates for one sample of the example's size."""
    reason: str = ""
    """Why it was left."""

    @property
    def number(self) -> str:
        """Which of its module's resizes it is."""
        return self.where.rpartition(":")[2]

    def kin(self) -> tuple[str, str]:
        """What rows of the table have in common that can stand as one; only such as were left have anything."""
        return (self.where.rpartition(":")[0], self.reason) if self.reason else (self.where, "")

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        sizes = (f"{c} × {h} × {w}" for c, h, w in (self.source, self.result))
        if self.reason:
            return (self.where, self.was, *sizes, "–", f"{LEFT}{self.reason}", "", "")
        parameters = f"{self.parameters:,}" + (f" − {self.removed:,}" if self.removed else "")
        guide = f"{self.guide} ({self.guide_channels})"
        return (self.where, self.was, *sizes, guide, self.upsampler, parameters, f"{self.macs:,}")


@dataclass(frozen=True)
class Report:
    """Every resize of the network, in the order of its pass; `str` and `print` show a table."""

    rows: tuple[Row, ...]

    @property
    def placed(self) -> tuple[Row, ...]:
        """The resizes that an upsampler answers now."""
        return tuple(row for row in self.rows if not row.reason)

    @property
    def left(self) -> tuple[Row, ...]:
        """The resizes that were left, each with its reason."""
        return tuple(row for row in self.rows if row.reason)

    @property
    def parameters(self) -> int:
        """Added parameters, less those of what was replaced."""
        return sum(row.parameters - row.removed for row in self.rows)

    @property
    def macs(self) -> int:
        """Added multiply–accumulates for one sample of the example's size."""
        return sum(row.macs for row in self.rows)

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [HEAD, ("---",) * len(HEAD), *self._cells()]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

    def __str__(self) -> str:
        rows = [HEAD, *self._cells()]
        widths = [max(len(row[i]) for row in rows if i < 5 or not row[5].startswith(LEFT)) for i in range(len(HEAD))]
        aligned = [str.ljust] * (len(HEAD) - 2) + [str.rjust] * 2
        lines = [
            "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True)).rstrip()
            for row in rows
        ]
        total = f"{len(self.placed)} of {len(self.rows)} resizes upgraded: {self.parameters:+,} parameters, "
        return "\n".join([*lines, total + f"{self.macs:+,} MACs for one sample of the example's size"])

    def _cells(self) -> list[tuple[str, ...]]:
        """The rows; what was left of one module for one reason is one of them. Detectors paste hundreds of masks."""
        groups = [list(group) for _, group in itertools.groupby(self.rows, Row.kin)]
        return [
            group[0].cells() if len(group) == 1 else (f"{group[0].where} to {group[-1].number}", *group[0].cells()[1:])
            for group in groups
        ]
