"""Whose turn it is: one computation at a time, first come first served, and none for a visitor who has gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fadeup.demo.worker import GivenUp

WAITING_SECONDS, WORKING_SECONDS = 1.0, 0.25
"""Between two words of how things stand. It is at such a word that Gradio closes the handler of who has gone."""


class Full(Exception):
    """As many visitors wait as may; the message is for the one who is refused."""


class Replaced(GivenUp):
    """The visitor has asked for something else of the same kind."""


@dataclass(frozen=True)
class Standing:
    """How things stand with who waits: how many turns come before; None while the own one is computed."""

    before: int | None


@dataclass(eq=False)
class Turn:
    """A visitor's place in the line."""

    visitor: str
    kind: str
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when nobody wants the result; whatever computes it looks at this."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the turn has come or is given up."""
    replaced: bool = False

    def give_up(self) -> None:
        """Compute no more of it."""
        self.stop.set()
        self.moved.set()


class Turns:
    """The line of those who wait, in the event loop's thread alone.

    A visitor has at most one place for each kind of work. Who asks again while waiting keeps the place; who asks again
    while it is computed goes to the end, so that clicking often gets nobody more than the others.

    Args:
        most: Visitors that may stand in the line.
    """

    def __init__(self, most: int):
        self.most, self._line = most, []

    def join(self, visitor: str, kind: str) -> Turn:
        """A place in the line.

        Raises:
            Full: As many visitors as may stand in it do so.
        """
        turn = Turn(visitor, kind)
        older = next((one for one in reversed(self._line) if (one.visitor, one.kind) == (visitor, kind)), None)
        visitors = {one.visitor for one in self._line}
        if visitor not in visitors and len(visitors) >= self.most:
            raise Full(f"The page is busy, as many visitors wait as may ({self.most}); try again in a minute")
        if older is None or older is self._line[0]:
            self._line.append(turn)
        else:
            self._line[self._line.index(older)] = turn
        if older is not None:
            older.replaced = True
            older.give_up()
        self._line[0].moved.set()
        return turn

    def leave(self, turn: Turn) -> None:
        """The place is another's; what may still be computed for it stops."""
        turn.give_up()
        if turn in self._line:
            self._line.remove(turn)
        if self._line:
            self._line[0].moved.set()

    def stop(self, visitor: str) -> None:
        """Give up everything that a visitor has asked for."""
        for turn in self._line:
            if turn.visitor == visitor:
                turn.give_up()

    async def attend(
        self, visitor: str, kind: str, work: Callable[[threading.Event], Iterator[Any]]
    ) -> AsyncGenerator[Any]:
        """Wait for the turn, then do the work, each step in a thread; closing this gives it up.

        Args:
            visitor: Who asks.
            kind: What is asked for.
            work: Gets the event that says when to stop, gives what comes of it step by step.

        Yields:
            What `work` does, and between its steps a `Standing` at least every second.

        Raises:
            Full: The line is.
            Replaced: The visitor has asked anew.
            GivenUp: The visitor has pressed Stop.
        """
        turn = self.join(visitor, kind)
        try:
            while not turn.moved.is_set():
                yield Standing(self._line.index(turn))
                await _within(WAITING_SECONDS, asyncio.ensure_future(turn.moved.wait()))
            if turn.stop.is_set():
                raise GivenUp
            steps, end = work(turn.stop), object()
            yield Standing(None)
            while not turn.stop.is_set():
                step = asyncio.ensure_future(asyncio.to_thread(next, steps, end))
                step.add_done_callback(lambda done: done.cancelled() or done.exception())  # where nobody waits for it
                while not await _within(WORKING_SECONDS, step):
                    yield Standing(None)
                if step.result() is end:
                    return
                yield step.result()
            raise GivenUp
        except GivenUp:
            raise Replaced if turn.replaced else GivenUp from None
        finally:
            self.leave(turn)


async def _within(seconds: float, task: asyncio.Future[Any]) -> bool:
    """Whether the task is done by then; it goes on if not."""
    done, _ = await asyncio.wait({task}, timeout=seconds)
    return bool(done)
