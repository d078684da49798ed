"""The traffic plan of docs/gpu.md: bytes and operations of the GPU kernels, and the least time that they take.

    python scripts/gpu_traffic.py [--into docs/gpu.md]

All of it follows from the sizes: nothing here is measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from fadeup.bench.tables import insert
from fadeup.kernels.triton import TILE

MARKS = "<!-- traffic:begin -->", "<!-- traffic:end -->"
BATCH, CHANNELS, SIDE, KERNEL_SIZE, BYTES = 16, 256, 64, 5, 2
TAPS, FILLED = KERNEL_SIZE**2, 32
GPUS = {"H100": (3.35e12, 989e12), "A100": (2.0e12, 312e12)}
"""Bytes per second of the memory, and operations per second of the tensor cores in bfloat16, as NVIDIA states them."""

LOW, HIGH = BATCH * SIDE**2, BATCH * (2 * SIDE) ** 2
MAPS = {
    "decoder": CHANNELS * LOW * BYTES,
    "logits": TAPS * HIGH * BYTES,
    "coarse": TAPS * LOW * BYTES,
    "encoder": CHANNELS * HIGH * BYTES,
    "gate": LOW * BYTES,
    "out": CHANNELS * HIGH * BYTES,
    "kernels": FILLED * HIGH * BYTES,
}
INPUTS = ("decoder", "logits", "coarse", "encoder", "gate")
REACH = (TILE + KERNEL_SIZE - 1) ** 2 / TILE**2
"""How many tiles read a point that lies in windows of several: (4 + 5 − 1)² / 4²."""


def size_of(name: str) -> int:
    return MAPS[name.removeprefix("∂")]


@dataclass(frozen=True)
class Kernel:
    """Maps that a kernel reads and writes once from memory, those that several tiles read, and its products."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    again: tuple[str, ...]
    macs: float

    def moved(self) -> int:
        return sum(size_of(name) for name in (*self.reads, *self.writes))

    def cached(self) -> float:
        return sum((REACH - 1) * size_of(name) for name in self.again)


MATRIX = (TILE + KERNEL_SIZE - 1) ** 2 * CHANNELS * HIGH
"""Multiply–adds of 64 output pixels by the 64 points that their windows cover."""
FORWARD = (Kernel("forward", INPUTS, ("out",), ("decoder",), MATRIX),)
BACKWARD = (
    Kernel("backward_kernels", ("∂out", *INPUTS), ("∂encoder", "∂logits", "∂coarse", "∂gate"), ("decoder",), MATRIX),
    Kernel("normalise", ("logits", "coarse", "gate"), ("kernels",), (), 0),
    Kernel("backward_decoder", ("∂out", "kernels"), ("∂decoder",), ("∂out", "kernels"), MATRIX),
)
LEAST = {
    "forward": sum(MAPS[name] for name in (*INPUTS, "out")),
    "backward": MAPS["out"] + 2 * sum(MAPS[name] for name in INPUTS),
}


def microseconds(amount: float, rate: float) -> str:
    return f"{amount / rate * 1e6:.0f}" if amount / rate >= 1e-5 else f"{amount / rate * 1e6:.1f}"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]], words: int) -> str:
    rule = ("---",) * words + ("---:",) * (len(header) - words)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def map_table() -> str:
    rows = [(f"`{name}`", f"{size / 1e6:.1f}") for name, size in MAPS.items()]
    return table(("map", "MB"), rows, 1)


def bound_table() -> str:
    """The bytes that must move and the operations that must be done, whatever the kernel."""
    useful = {"forward": (TAPS + 2) * CHANNELS * HIGH, "backward": 2 * (TAPS + 2) * CHANNELS * HIGH}
    rows = []
    for name, moved in LEAST.items():
        times = [
            cell
            for memory, peak in GPUS.values()
            for cell in (microseconds(moved, memory), microseconds(2 * useful[name], peak))
        ]
        rows.append((name, f"{moved / 1e6:.1f}", f"{2 * useful[name] / 1e9:.1f}", *times))
    header = ("pass", "MB", "GFLOP", *(f"{gpu}: {what}, µs" for gpu in GPUS for what in ("memory", "operations")))
    return table(header, rows, 1)


def plan_table() -> str:
    """What our kernels move and multiply."""
    rows = []
    for kernel in (*FORWARD, *BACKWARD):
        times = [
            cell
            for memory, peak in GPUS.values()
            for cell in (
                microseconds(kernel.moved(), memory),
                microseconds(2 * kernel.macs, peak) if kernel.macs else "–",
            )
        ]
        names = [", ".join(maps) for maps in (kernel.reads, kernel.writes)]
        cached = f"{kernel.cached() / 1e6:.1f}" if kernel.again else "–"
        rows.append((f"`{kernel.name}`", *names, f"{kernel.moved() / 1e6:.1f}", cached, *times))
    header = ("kernel", "reads", "writes", "MB", "MB again, from L2")
    return table((*header, *(f"{gpu}: {what}, µs" for gpu in GPUS for what in ("memory", "products"))), rows, 3)


def share_table() -> str:
    """The bound over the memory time of our kernels: the fraction of the bound that the plan can reach."""
    rows = []
    for name, kernels in (("forward", FORWARD), ("backward", BACKWARD)):
        moved = sum(kernel.moved() for kernel in kernels)
        rows.append((name, f"{LEAST[name] / 1e6:.1f}", f"{moved / 1e6:.1f}", f"{LEAST[name] / moved:.0%}"))
    return table(("pass", "least MB", "planned MB", "at most of the bound"), rows, 1)


def markdown() -> str:
    where = f"{CHANNELS} channels, {SIDE}² → {2 * SIDE}², batch {BATCH}, bfloat16, K = {KERNEL_SIZE}."
    return "\n\n".join((where, map_table(), bound_table(), plan_table(), share_table())) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--into", type=Path, metavar="PAGE")
    arguments = parser.parse_args()
    if arguments.into:
        insert(arguments.into, markdown(), MARKS)
    else:
        print(markdown(), end="")


if __name__ == "__main__":
    main()
