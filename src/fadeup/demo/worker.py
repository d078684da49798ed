"""A process that computes beside the page's: started anew when a call takes too long or ends it."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

START_SECONDS = 600
"""For the process to import what it needs, on a machine that has other things to do."""
POLL_SECONDS = 0.05
"""Between two looks at whether the answer is still wanted."""


class GivenUp(Exception):
    """Nobody wants the result any more."""


@dataclass(frozen=True)
class Prediction:
    """What a network makes of a photograph. Here, so that the page's process does not import torch to receive it."""

    picture: bytes
    """To be shown, a PNG."""
    result: np.ndarray
    """uint8: classes or alpha `(H, W)`, or the photograph given back `(H, W, 3)`."""
    seconds: float
    memory: float | None
    """MiB above what was in use before; None where it cannot be measured."""
    parameters: int
    score: str
    """Against the truth where that is known, else empty."""
    classes: tuple[tuple[str, tuple[int, int, int], float], ...]
    """Name, colour and share of each class in the picture."""


class Worker:
    """A `Studio` in a process of its own, one call at a time.

    A call that is given up stops before the network's next layer. The page stays alive when a photograph takes too long
    or memory ends: the process is ended and another one started.

    Args:
        models: Of the studio.
        max_pixels: Of the studio.
        seconds: A call's limit.
    """

    def __init__(self, models: Sequence[str], max_pixels: int, seconds: float):
        self._arguments, self.seconds, self._lock = (list(models), max_pixels), seconds, threading.Lock()
        self._closed = False
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # Number of the call that is given up; memory of both processes, since layers look at it.
        self._number, self._given_up = 0, context.RawValue("Q", 0)
        self._process = context.Process(target=_serve, args=(theirs, self._given_up, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._ready = False

    def call(self, method: str, *arguments: Any, stop: threading.Event | None = None) -> Any:
        """What the studio's method returns.

        Args:
            method: Its name.
            arguments: Its arguments.
            stop: Set, by another thread, when the result is no longer wanted.

        Raises:
            ValueError: The studio refused the arguments, or took longer than `seconds`; the message is for users.
            GivenUp: `stop` was set.
            RuntimeError: The process ended.
        """
        with self._lock:
            try:
                if not self._ready:
                    _value(*self._received(START_SECONDS))
                    self._ready = True
                if stop is not None and stop.is_set():
                    raise GivenUp
                self._number += 1
                self._pipe.send((self._number, method, arguments))
                kind, value = self._received(self.seconds, stop)
            except (EOFError, OSError) as error:
                self._restart()
                raise RuntimeError("The computing process ended, perhaps for want of memory; try again") from error
        return _value(kind, value)

    def _received(self, seconds: float, stop: threading.Event | None = None) -> tuple[str, Any]:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._pipe.poll(min(POLL_SECONDS, left)):
                return self._pipe.recv()
            if stop is not None and stop.is_set():
                self._given_up.value = self._number
        self._restart()
        raise ValueError(f"A photograph must be done within {seconds:g} s, got longer; take a smaller one")

    def _restart(self) -> None:
        if not self._closed:
            self._end()
            self._start()

    def close(self) -> None:
        """End the process for good; a call that is under way fails."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _value(kind: str, value: Any) -> Any:
    if kind == "refused":
        raise ValueError(value)
    if kind == "given up":
        raise GivenUp
    if kind == "failed":
        raise RuntimeError(value)
    return value


def _serve(pipe: Connection, given_up: Any, models: Sequence[str], max_pixels: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the page's, which then ends this process
    number = 0

    def look(*_: Any) -> None:
        if given_up.value == number:
            raise GivenUp

    def start() -> Any:
        # The imports take seconds, in which the page's process does its own.
        from torch.nn.modules.module import register_module_forward_pre_hook

        from fadeup.demo.studio import Studio

        register_module_forward_pre_hook(look)
        return Studio(models, max_pixels)

    kind, studio = _answer(start)
    pipe.send((kind, None if kind == "done" else studio))
    with suppress(EOFError):
        while True:
            number, method, arguments = pipe.recv()
            pipe.send(_answer(lambda method=method, its=arguments: getattr(studio, method)(*its)))


def _answer(function: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "done", function()
    except GivenUp:
        return "given up", None
    except (ValueError, OSError, ModuleNotFoundError, MemoryError) as error:
        return "refused", str(error) or type(error).__name__
    except Exception as error:
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"
