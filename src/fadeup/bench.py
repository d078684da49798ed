"""Measures time and peak memory of a call, with spread."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measurement:
    """Median and interquartile range in milliseconds; peak memory above the start in MiB, None where unknown."""

    median_ms: float
    iqr_ms: float
    peak_mib: float | None


def measure(call: Callable[[], object], *, min_seconds: float = 0.3, threads: int = 1) -> Measurement:
    """Time a call again and again for `min_seconds` with so many threads, and take its peak memory once."""
    from torch.utils.benchmark import Timer  # prints a line about CUDA when imported

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
    reset = Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)
        reset.write_text("5")
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    call()
    return max(0.0, (_status("VmHWM") - before) / 1024)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
