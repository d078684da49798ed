"""Time of a call with its spread, its peak memory, and the machine and versions that it ran on."""

from __future__ import annotations

import ctypes
import logging
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import fadeup
from fadeup.bench import gpu
from fadeup.cost import FIGURE_7
from fadeup.doctor import cpu_model, vector_sets

MEASURED_CHANNELS = (32, 64, 128, 256)
MEASURED_SIZES = (14, 28, 56)
MEASURED_SECONDS = 1.0


@dataclass(frozen=True)
class Measurement:
    """Median and interquartile range in milliseconds; peak memory above the start in MiB, None where unknown."""

    median_ms: float
    iqr_ms: float
    peak_mib: float | None


def measure(call: Callable[[], object], *, min_seconds: float = 0.3, threads: int = 1) -> Measurement:
    """Time a call again and again for `min_seconds` with so many threads, and take its peak memory once."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # its import says that there is no GPU
    from torch.utils.benchmark import Timer

    call()
    peak = peak_memory(call)
    timer = Timer("call()", globals={"call": call}, num_threads=threads)
    result = timer.blocked_autorange(min_run_time=min_seconds)
    return Measurement(result.median * 1e3, result.iqr * 1e3, peak)


def peak_memory(call: Callable[[], object]) -> float | None:
    """MiB of resident memory that a call needs above what is resident before it; None outside Linux.

    The kernel's high-water mark is reset before the call. What the allocator kept from earlier calls is given back
    first, else the call would take it from there unseen.
    """
    before = resident_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    if before is None:
        return None
    call()
    return max(0.0, _status("VmHWM") / 1024 - before)


def resident_memory() -> float | None:
    """MiB of resident memory, without what the allocator keeps from earlier calls; None outside Linux."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        return _status("VmRSS") / 1024
    except (OSError, AttributeError):
        return None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def measure_curves() -> dict[str, Any]:
    """Forward time and peak memory of Figure 7's upsamplers, over channels at 28² and over sizes at 64 channels."""

    def point(name: str, channels: int, side: int) -> Measurement:
        module = fadeup.build_upsampler(name, channels).eval()
        decoder, encoder = torch.randn(1, channels, side, side), torch.randn(1, channels, 2 * side, 2 * side)
        with torch.no_grad():
            return measure(
                lambda: module(decoder, encoder), min_seconds=MEASURED_SECONDS, threads=torch.get_num_threads()
            )

    by_channels = {label: [point(name, c, 28) for c in MEASURED_CHANNELS] for label, name in FIGURE_7.items()}
    by_size = {label: [point(name, 64, s) for s in MEASURED_SIZES] for label, name in FIGURE_7.items()}
    return {
        "channels": {"x": list(MEASURED_CHANNELS), "size": 28, **_by_field(by_channels)},
        "sizes": {"x": list(MEASURED_SIZES), "channels": 64, **_by_field(by_size)},
        "environment": environment(),
    }


def _by_field(measurements: dict[str, list[Measurement]]) -> dict[str, dict[str, list[float | None]]]:
    fields = ("median_ms", "iqr_ms", "peak_mib")
    return {field: {name: [getattr(m, field) for m in ms] for name, ms in measurements.items()} for field in fields}


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, threads, machine, commit and date, which timings and last digits depend on; with `"cuda"` the GPU."""
    machine: dict[str, Any] = {
        "fadeup": fadeup.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "vectors": vector_sets(),
        "threads": torch.get_num_threads(),
        "commit": commit_of(Path(fadeup.__file__).parent),
        "date": datetime.now(UTC).date().isoformat(),
    }
    return machine | ({"gpu": gpu.describe()} if device == "cuda" else {})


def commit_of(folder: Path) -> str | None:
    """The last commit that changed the folder; None where git does not track it, as in an installed package."""
    command = ["git", "-C", str(folder), "log", "-1", "--format=%h", "--", "."]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return done.stdout.strip() or None
