"""The web page under load: visitors at once, each like a browser, for as long as asked; errors, waiting, memory, disk.

    python scripts/load_page.py --minutes 10 --json benchmarks/results/page-load.json

Each visitor takes or uploads a photograph, compares, reads what comes, and goes on after a moment; one comparison in
ten is left while it waits or is computed, as by closing the tab. Some ask for kernels, some ask twice, some bring files
that are none. Fails where anything else than a refusal in words was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from fadeup.bench.timing import environment
from fadeup.checkpoint import write
from fadeup.demo import MATTE, RECONSTRUCT, SEGMENT

NETWORKS = "a2u", "bilinear", "carafe", "fade"
LEFT, KERNELS, TWICE = 0.10, 0.05, 0.05
"""Shares of comparisons that are left, followed by a request for kernels, and asked for twice."""
Memory = Callable[[], dict[str, float]]
REFUSALS = "must be a whole picture", "must have at most", "trimap must be", "has no kernels", "The page is busy"
"""Words of answers that a visitor is to get."""


@dataclass
class Seen:
    """What came of it all."""

    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    """Seconds from asking until the turn came."""
    totals: list[float] = field(default_factory=list)
    """Seconds from asking until the last part was there."""
    done: Counter[int] = field(default_factory=Counter)
    """Comparisons by visitor."""
    longest: Counter[int] = field(default_factory=Counter)
    """Seconds of the longest wait by visitor."""
    freed: list[float] = field(default_factory=list)
    """Seconds from leaving what was being computed until another's turn came."""
    left_at: float | None = None
    stages: list[dict[str, float]] = field(default_factory=list)

    def turn_came(self, visitor: int, waited: float) -> None:
        """Somebody's computation has begun."""
        self.waits.append(waited)
        self.longest[visitor] = max(self.longest[visitor], waited)  # type: ignore[assignment]
        if self.left_at is not None:
            self.freed.append(time.monotonic() - self.left_at)
            self.left_at = None


class Server:
    """`fadeup demo` in a folder of its own."""

    def __init__(self, *options: str):
        self.folder = tempfile.TemporaryDirectory(prefix="fadeup-load-")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.log = open(Path(self.folder.name) / "log", "w+")  # noqa: SIM115 - as long as the server
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fadeup", "demo", "--port", str(port), *options],
            env=os.environ | {"TMPDIR": self.folder.name},
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def memory(self) -> dict[str, float]:
        """MiB resident in the page's process and in the one that computes, and MB in the folder."""
        page = self.process.pid
        children = Path(f"/proc/{page}/task/{page}/children").read_text().split()
        folder = next(Path(self.folder.name).glob("fadeup-demo-*"))
        return {
            "page_mib": _resident(page),
            "worker_mib": max(_resident(int(child)) for child in children),
            "disk_mb": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6,
            "threads": len(list(Path(f"/proc/{page}/task").iterdir())),
            "sockets": sum("socket" in _target(path) for path in Path(f"/proc/{page}/fd").iterdir()),
        }

    def close(self) -> str:
        """End it; what it logged."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.log.seek(0)
        logged = self.log.read()
        self.log.close()
        self.folder.cleanup()
        return logged


def _resident(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)


def _target(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


class Visitor:
    """One session of the page by plain HTTP."""

    def __init__(self, client: httpx.AsyncClient, config: dict[str, Any]):
        self.client, self.session = client, secrets.token_hex(6)
        names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        self.functions = {}
        for function in config["dependencies"]:
            for target, event in function["targets"]:
                self.functions.setdefault(f"{names.get(target)}.{event}", (function["id"], len(function["inputs"])))

    async def upload(self, name: str, content: bytes) -> httpx.Response:
        """Put a file on the server."""
        return await self.client.post("/gradio_api/upload", files={"files": (name, content)})

    async def quick(self, event: str, *inputs: Any) -> dict[str, Any]:
        """An event that does not wait."""
        body = {"data": inputs, "fn_index": self.functions[event][0], "session_hash": self.session}
        answer = await self.client.post("/gradio_api/run/predict", json=body)
        answer.raise_for_status()
        return answer.json()

    async def ask(self, event: str, *inputs: Any) -> str:
        """Start an event that computes; its number."""
        number, count = self.functions[event]
        assert len(inputs) == count, event
        body = {"data": inputs, "fn_index": number, "session_hash": self.session}
        answer = await self.client.post("/gradio_api/queue/join", json=body)
        answer.raise_for_status()
        return answer.json()["event_id"]

    async def messages(self) -> AsyncGenerator[dict[str, Any]]:
        """What the server tells of this session's events; leaving the loop early is leaving the page."""
        address = f"/gradio_api/queue/data?session_hash={self.session}"
        async with self.client.stream("GET", address) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))


def photograph(path: str) -> dict[str, Any]:
    """A file on the server as the page names it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def picture(width: int, height: int, kind: str = "JPEG") -> bytes:
    """Soft noise as a file."""
    noise = np.random.default_rng(width).integers(0, 255, (height // 40 + 2, width // 40 + 2, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def bomb() -> bytes:
    """50 kB that would be 1.2 GB."""
    buffer = io.BytesIO()
    Image.new("1", (20000, 20000)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {
    "small.png": (picture(300, 200, "PNG"), 25),
    "middle.jpg": (picture(1000, 800), 15),
    "large.jpg": (picture(3000, 2000), 8),
    "<img src=x onerror=alert(1)>.jpg": (picture(320, 240), 4),
    "words.png": (b"not a picture <b>at all</b>", 4),
    "bomb.png": (bomb(), 4),
    "too-large.bmp": (bytes(35_000_000), 2),
}
"""What visitors bring, and how often."""
SHIPPED = {
    "Caspian Sea, from space": 10,
    "Korea, from space": 10,
    "dandelion": 15,
}


class Life:
    """What one visitor does, again and again."""

    def __init__(self, number: int, visitor: Visitor, seen: Seen, random: random.Random):
        self.number, self.visitor, self.seen, self.random = number, visitor, seen, random

    async def live(self, seconds: float) -> None:
        """For so long; then the tab is closed, whatever is under way."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        await self.compare()
                    except (httpx.HTTPError, AssertionError, KeyError) as error:
                        self.seen.errors.append(f"{type(error).__name__}: {error}")
                    await asyncio.sleep(self.random.uniform(0.2, 2.0))

    async def photo(self) -> dict[str, Any] | None:
        """A photograph that ships or one's own; None where the server refuses it."""
        names = list(FILES) + list(SHIPPED)
        weights = [weight for _, weight in FILES.values()] + list(SHIPPED.values())
        name = self.random.choices(names, weights)[0]
        self.dandelion = name == "dandelion"
        if name in SHIPPED:
            found = await self.visitor.quick("shipped.input", name)
            return photograph(found["data"][0]["path"])
        answer = await self.visitor.upload(name, FILES[name][0])
        if answer.status_code == 413:
            self.seen.counts["uploads refused"] += 1
            return None
        answer.raise_for_status()
        self.seen.counts["uploads"] += 1
        path = photograph(answer.json()[0])
        event = await self.visitor.ask("photo.change", path)
        await self.follow(event, None)
        return path

    async def compare(self) -> None:
        """One comparison, and what may come after it."""
        if (photo := await self.photo()) is None:
            return
        task = self.random.choice((SEGMENT, RECONSTRUCT, MATTE) if self.dandelion else (SEGMENT, RECONSTRUCT, SEGMENT))
        if self.random.random() < 0.02:
            task = MATTE  # perhaps without a trimap
        inputs = [photo, task, *self.random.sample(NETWORKS, 2), None, None]
        asked = time.monotonic()
        event = await self.visitor.ask("run.click", *inputs)
        self.seen.counts["comparisons asked"] += 1
        if self.random.random() < TWICE:
            await asyncio.sleep(0.5)
            event = await self.visitor.ask("run.click", *inputs)
            self.seen.counts["asked twice"] += 1
        leave = self.random.choice(("waiting", "computing")) if self.random.random() < LEFT else None
        if await self.follow(event, asked, leave):
            self.seen.totals.append(time.monotonic() - asked)
            self.seen.done[self.number] += 1
            if self.random.random() < KERNELS:
                point = self.random.choice(("Left", "Right")), "finest", 40, 60
                if await self.follow(await self.visitor.ask("look.click", *inputs, *point), None):
                    self.seen.counts["kernels"] += 1

    async def follow(self, event: str, asked: float | None, leave: str | None = None) -> bool:
        """Read until the event is done; whether it was done well."""
        came = False
        async with aclosing(self.visitor.messages()) as messages:
            async for message in messages:
                if message.get("event_id") != event:
                    continue
                told = json.dumps(message.get("output") or {})
                if asked is not None and not came and "Computing" in told:
                    came = True
                    self.seen.turn_came(self.number, time.monotonic() - asked)
                if leave and (came if leave == "computing" else "Waiting" in told):
                    self.leave(leave)
                    return False
                if message["msg"] == "process_completed":
                    return self.completed(message)
        self.seen.errors.append("the server ended the stream before the event was done")
        return False

    def leave(self, when: str) -> None:
        """The tab is closed, and opened anew."""
        self.seen.counts[f"left while {when}"] += 1
        if when == "computing":
            self.seen.left_at = time.monotonic()
        self.visitor.session = secrets.token_hex(6)

    def completed(self, message: dict[str, Any]) -> bool:
        """Whether it went well; what was refused in words is counted, all else is an error."""
        if message["success"]:
            return True
        error = str((message.get("output") or {}).get("error"))
        known = next((words for words in REFUSALS if words in error), None)
        if known is None:
            self.seen.errors.append(error)
        else:
            self.seen.counts[f"refused: {known}"] += 1
        return False


async def watch(memory: Memory, seen: Seen, start: float, end: float, every: float) -> None:
    """Memory and disk from time to time."""
    while True:
        now = time.monotonic()
        seen.stages.append({"minute": (now - start) / 60} | memory())
        if now >= end:
            return
        await asyncio.sleep(min(every, max(0.1, end - now)))


async def load(address: str, memory: Memory, users: int, minutes: float, seed: int = 0) -> Seen:
    """That many visitors for so long; then all leave at once, and one more comes."""
    seen, limits = Seen(), httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        config = (await client.get("/config")).json()
        start = time.monotonic()
        end = start + 60 * minutes
        lives = [Life(n, Visitor(client, config), seen, random.Random(seed + n)) for n in range(users)]
        every = min(60.0, 15 * minutes)
        await asyncio.gather(watch(memory, seen, start, end, every), *(life.live(60 * minutes) for life in lives))
        last, asked = Life(users, Visitor(client, config), seen, random.Random(seed)), time.monotonic()
        photo = photograph((await last.visitor.quick("shipped.input", "Korea, from space"))["data"][0]["path"])
        event = await last.visitor.ask("run.click", photo, SEGMENT, *NETWORKS[:2], None, None)
        assert await last.follow(event, asked), seen.errors
        seen.stages.append({"minute": (time.monotonic() - start) / 60} | memory())
    return seen


def summary(seen: Seen, users: int, minutes: float, logged: str) -> dict[str, Any]:
    """What is written down."""

    def spread(values: list[float]) -> dict[str, float]:
        if not values:
            return {}
        ordered = sorted(values)
        at = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        named = {"median": statistics.median(ordered), "p95": at, "max": ordered[-1]}
        return {name: round(value, 2) for name, value in named.items()}

    done = [seen.done[number] for number in range(users)]
    longest = [seen.longest[number] for number in range(users)]
    return {
        "users": users,
        "minutes": minutes,
        "comparisons": sum(done),
        "counts": dict(sorted(seen.counts.items())),
        "errors": seen.errors,
        "refused": seen.counts["refused: The page is busy"],
        "tracebacks": len(re.findall(r"^Traceback", logged, re.MULTILINE)),
        "wait_seconds": spread(seen.waits),
        "total_seconds": spread(seen.totals),
        "longest_wait_by_user_seconds": {"min": round(min(longest), 2), "max": round(max(longest), 2)},
        "comparisons_by_user": {"min": min(done), "max": max(done)},
        "freed_after_leaving_seconds": spread(seen.freed) | {"count": len(seen.freed)},
        "wait_after_all_left_seconds": round(seen.longest[users], 2),
        "memory": [{name: round(value, 2) for name, value in stage.items()} for stage in seen.stages],
        "environment": environment(),
    }


def main() -> int:
    """Run it; 1 where there was an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    server = Server()
    try:
        seen = asyncio.run(load(server.address, server.memory, arguments.users, arguments.minutes, arguments.seed))
    finally:
        logged = server.close()
    found = summary(seen, arguments.users, arguments.minutes, logged)
    text = json.dumps(found, indent=1)
    print(text)
    print(logged[-4000:], file=sys.stderr)
    if arguments.json:
        write(arguments.json, (text + "\n").encode())
    return 1 if seen.errors or found["tracebacks"] else 0


if __name__ == "__main__":
    sys.exit(main())
