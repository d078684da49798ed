"""Measures on a GPU: whether there is one and which, time between CUDA events, memory by the allocator's count."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fadeup.doctor import package_version
from fadeup.kernels import triton

FLUSHED_BYTES = 256 << 20
"""More than the L2 cache of any GPU holds; `triton.testing.do_bench` takes as many."""
MOST_WRITES = 64
DRIVER = Path("/proc/driver/nvidia/version")


def problem(dtype: torch.dtype = torch.float32) -> str | None:
    """Why nothing can be measured on a GPU here, with the fix; None where it can."""
    if torch.version.cuda is None:
        return (
            f"torch sees no GPU (torch {torch.__version__} is built without CUDA); install a build with it, see "
            "https://pytorch.org/get-started"
        )
    if not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            return f"torch sees no GPU (CUDA_VISIBLE_DEVICES is {visible!r}); unset it, or name a GPU that is there"
        return "torch sees no GPU (there is none, or no driver for it); nvidia-smi must list one"
    if triton.is_interpreted():
        return "TRITON_INTERPRET is set, so that Triton's kernels would run in Python; unset it"
    return triton.problem(torch.device("cuda"), dtype)


def describe() -> dict[str, Any]:
    """The GPU, and the versions that times on it depend on."""
    return {
        "name": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "triton": package_version("triton"),
        "mmcv": package_version("mmcv"),
    }


def _driver() -> str | None:
    """The driver's version, as Linux lists it; None elsewhere, and in containers that hide it."""
    try:
        found = re.search(r"\d{3,}\.\d+(\.\d+)?", DRIVER.read_text())
    except OSError:
        return None
    return found[0] if found else None


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 in float32, and as before afterwards.

    PyTorch lets cuDNN round the inputs of convolutions to TF32, which keeps 10 of the 23 bits of float32's fraction.
    """
    products = torch.backends.cuda.matmul
    convolutions = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    before = products.fp32_precision, convolutions.fp32_precision
    products.fp32_precision = convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        products.fp32_precision, convolutions.fp32_precision = before


class Clock:
    """Seconds that the GPU works on a call: from one CUDA event to another on the current stream.

    In front of the first event 256 MiB are written. That empties the L2 cache, in which small maps would lie from the
    call before, and it keeps the GPU busy while Python launches the kernels of the call, so that they then run one
    behind the other and no launch is measured. Where the GPU reached the first event before all was launched, the call
    is measured again behind twice as many writes. A call that waits for the GPU itself, or that launches more than the
    GPU takes in advance, is measured with its launches after 64 writes.
    """

    def __init__(self, device: torch.device):
        self.written, self.writes = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device), 1

    def __call__(self, call: Callable[[], object]) -> float:
        """Time a call, which may be made several times."""
        while True:
            seconds, is_launched_late = self._time(call)
            if not is_launched_late or self.writes >= MOST_WRITES:
                return seconds
            self.writes *= 2

    def _time(self, call: Callable[[], object]) -> tuple[float, bool]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(self.writes):
            self.written.zero_()
        start.record()
        call()
        end.record()
        is_launched_late = start.query()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, is_launched_late


def measure_memory(call: Callable[[], object]) -> dict[str, float | None]:
    """MiB that the second call needs above what is allocated before it, and what the first one leaves allocated.

    It is PyTorch's allocator that counts, in this process: code of kernels and libraries is not in it.
    """
    gc.collect()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    after = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - after
    return {"peak_mib": peak / 2**20, "kept_mib": (after - before) / 2**20}
