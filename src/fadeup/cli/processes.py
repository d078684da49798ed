"""The processes of a command under `torchrun`: which of them speaks, and what it does alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def count() -> int:
    """How many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process speaks and writes for all."""
    return count() == 1 or os.environ.get("RANK") == "0"


def prefix() -> str:
    """What an error of another process than the main one begins with."""
    return "" if is_main() else f"process {os.environ.get('RANK')}: "


def join(device: str) -> Any:
    """Meet the other processes, where there are any.

    Returns:
        This process's device.
    """
    import torch

    if count() == 1:
        return torch.device(device)
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu").device


def on_main(call: Callable[[], T]) -> T:
    """What `call` returns on the main process, given to all; where it raises there, all of them end."""
    if count() == 1:
        return call()
    import torch.distributed as dist

    outcome: list[Any] = [None, False]
    error = None
    if is_main():
        try:
            outcome[0] = call()
        except Exception as problem:
            error, outcome[1] = problem, True
    dist.broadcast_object_list(outcome, 0)
    if error is not None:
        raise error
    if outcome[1]:
        time.sleep(1)  # torchrun ends the main process as soon as another has ended: its message goes first
        raise SystemExit(2)
    return outcome[0]


def leave() -> None:
    """Part from the other processes."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
