"""Which other processes keep the machine busy, read from Linux's `/proc`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LIMIT = 0.1
"""The share of one core above which another process disturbs a measurement."""
SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Process:
    """Its parent and the seconds of processor time that it has had."""

    parent: int
    seconds: float


@dataclass(frozen=True)
class Busy:
    """A process and the share of a core that it used."""

    pid: int
    name: str
    share: float

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid}, {self.share:.0%} of a core)"


class Watch:
    """Looks at all other processes from its making on; this process and its children do not count."""

    def __init__(self):
        self.start, self.before = time.monotonic(), _processes()

    def busy(self) -> list[Busy] | None:
        """The processes that used more than `LIMIT` of a core since then, the busiest first; None without `/proc`."""
        after, seconds = _processes(), time.monotonic() - self.start
        if self.before is None or after is None:
            return None
        shares = {
            pid: (process.seconds - (self.before[pid].seconds if pid in self.before else 0.0)) / seconds
            for pid, process in after.items()
            if not _is_ours(pid, after)
        }
        found = [Busy(pid, _name(pid), share) for pid, share in shares.items() if share > LIMIT]
        return sorted(found, key=lambda busy: -busy.share)


def look() -> list[Busy] | None:
    """The processes that are busy now, over half a second; None where the system does not tell."""
    watch = Watch()
    if watch.before is not None:
        time.sleep(SAMPLE_SECONDS)
    return watch.busy()


def _processes() -> dict[int, Process] | None:
    if not (PROC / "self/stat").exists():
        return None
    tick, found = os.sysconf("SC_CLK_TCK"), {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            found[int(folder.name)] = Process(int(fields[1]), (int(fields[11]) + int(fields[12])) / tick)
    return found


def _is_ours(pid: int, processes: dict[int, Process]) -> bool:
    while pid in processes:
        if pid == os.getpid():
            return True
        pid = processes[pid].parent
    return False


def _name(pid: int) -> str:
    """The beginning of its command line; a thread of the kernel has a name only."""
    try:
        command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return command[:60] or (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return "a process that has ended"
