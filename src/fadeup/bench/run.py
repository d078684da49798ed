"""Runs a case: checks it, times its peers in turns, takes the memory of each; `gpu` has what a GPU needs for that."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import fadeup
from fadeup.bench import gpu
from fadeup.bench.case import (
    DEVICES,
    Case,
    DisagreementError,
    Work,
    check,
    checked_side,
    floor_work,
    moved_bytes,
    peers_of,
    prepare,
)
from fadeup.bench.quiet import LIMIT, Busy, Watch, look
from fadeup.kernels import native

PEER_SECONDS = 2.0
TURN_SECONDS = 0.03
WARM_SECONDS = 0.05
ROUNDS = 3, 15
COPIED_BYTES = 256 << 20


class BusyError(RuntimeError):
    """Other processes use the machine."""


@dataclass(frozen=True)
class Settings:
    """How a case is run.

    `seconds` is how long each peer is timed in a case, about. Where other processes are busy, `wait` is how many
    seconds to wait for them; with `force` results count all the same.
    """

    seconds: float = PEER_SECONDS
    memory: bool = True
    checked: bool = True
    force: bool = False
    wait: float = 0.0


Tell = Callable[[str], object]
Call = Callable[[], object]


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """So many of PyTorch's threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def require_quiet(settings: Settings) -> list[Busy] | None:
    """The processes that are busy, which are refused unless forced; None where the system does not tell.

    Raises:
        BusyError: There are some, and were all the time that was to be waited.
    """
    until = time.monotonic() + settings.wait
    busy = look()
    while busy and not settings.force and time.monotonic() < until:
        busy = look()
    if busy and not settings.force:
        raise BusyError(f"{_are_busy(busy)}; wait for them, or use --force, which marks the result")
    return busy


def _are_busy(busy: Sequence[Busy]) -> str:
    return f"other processes must use at most {LIMIT:.0%} of a core, got " + ", ".join(map(str, busy[:3]))


def run_case(case: Case, peers: Sequence[str], settings: Settings, tell: Tell = lambda text: None) -> dict[str, Any]:
    """Measure a case. The result is plain data; where `refused` says why there are no numbers, there are none."""
    names = peers_of(case, peers)
    result: dict[str, Any] = {"case": asdict(case), "own": case.own, "refused": None, "busy": []}
    try:
        if settings.checked:
            tell("checking")
            result |= {"checked_side": checked_side(case), "checked": check(case, names)}
        measured, busy = timed_quietly(str(case), lambda: _timed(case, names, settings), settings, tell)
    except (DisagreementError, BusyError) as error:
        return result | {"refused": str(error)}
    result |= measured | {"busy": [str(one) for one in busy or ()]}
    for name in names if settings.memory else ():
        tell(f"memory of {name}")
        result["peers"][name] |= memory_of(case, name)
    return result


def timed_quietly(
    name: str, measure: Callable[[], dict[str, Any]], settings: Settings, tell: Tell
) -> tuple[dict[str, Any], list[Busy] | None]:
    """What `measure` gives, and who was busy meanwhile; once more after a wait where somebody was.

    Raises:
        BusyError: Somebody was busy, and that is not forced.
    """
    tell("timing")
    watch = Watch()
    measured, busy = measure(), watch.busy()
    if busy and settings.wait and not settings.force:
        tell("waiting for other processes")
        require_quiet(settings)
        return timed_quietly(name, measure, replace(settings, wait=0.0), tell)
    if busy and not settings.force:
        raise BusyError(f"{name}: {_are_busy(busy)} meanwhile")
    return measured, busy


def _timed(case: Case, names: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Times, ratios and floor."""
    if "unfold-compiled" in names:
        torch.compiler.reset()
    works = {name: prepare(case, name) for name in names}
    with torch.set_grad_enabled(case.passes == "forward+backward"):
        calls = {name: work.call(case.passes) for name, work in works.items()}
        compiled = _compile(calls, case.device)
        first, rounds = take_turns(calls, case.own, settings.seconds, case.device)
    own = rounds[case.own]
    peers = {name: spread(rounds[name]) | {"first_ms": first[name] * 1e3} for name in names}
    for name, seconds in compiled.items():
        peers[name]["compile_s"] = seconds
    return {
        "peers": peers,
        "ratios": {name: ratio(rounds[name], own) for name in names if name != case.own},
        "input_mib": works[case.own].held_bytes() / 2**20,
        "io_mib": moved_bytes(case, works[case.own]) / 2**20,
        "floor": _floor(case, works[case.own], own) if case.operator == "reassemble" else None,
    }


def _compile(calls: Mapping[str, Call], device: str) -> dict[str, float]:
    """Seconds of the compiled peer's first call, with nothing in the compiler's caches."""
    if "unfold-compiled" not in calls:
        return {}
    from torch._inductor.utils import fresh_cache

    with fresh_cache():
        return {"unfold-compiled": _seconds(calls["unfold-compiled"], device)}


def take_turns(
    calls: Mapping[str, Call], own: str, seconds: float, device: str = "cpu"
) -> tuple[dict[str, float], dict[str, list[float | None]]]:
    """Seconds of each call's very first run, and of each round; None in rounds that a slow one sits out.

    In a round each call has its turn, so that a machine that slows down slows all of them down. A turn is one call
    untimed, unless it is long, which finds again what the others pushed out of the caches, and then the median of as
    many calls as fit. torch's Timer cannot do that: it runs a call three times to time it once. On a GPU all but the
    very first run are timed by `gpu.Clock`.
    """
    clock = _clock(device)
    first = {name: _seconds(call, device) for name, call in calls.items()}
    each = {name: clock(call) for name, call in calls.items()}
    counts = {name: max(1, min(50, int(TURN_SECONDS / each[name]))) for name in calls}
    fitting = {name: int(seconds / (counts[name] * each[name])) for name in calls}
    total = min(max(fitting[own], ROUNDS[0]), ROUNDS[1])
    turns = {name: min(max(fitting[name], ROUNDS[0]), total) for name in calls}
    rounds: dict[str, list[float | None]] = {name: [None] * total for name in calls}
    gc.collect()
    gc.disable()
    try:
        for index in range(total):
            for name, call in calls.items():
                if (index * turns[name]) // total != ((index - 1) * turns[name]) // total:
                    rounds[name][index] = _turn(call, counts[name], clock, warm=each[name] < WARM_SECONDS)
    finally:
        gc.enable()
    return first, rounds


def _turn(call: Call, count: int, clock: Callable[[Call], float], *, warm: bool) -> float:
    if warm:
        call()
    return statistics.median(clock(call) for _ in range(count))


def _clock(device: str) -> Callable[[Call], float]:
    """What times a call on a device, in seconds."""
    return gpu.Clock(DEVICES[device]) if device == "cuda" else _seconds


def _seconds(call: Call, device: str = "cpu") -> float:
    """Seconds until a call is done, of which a GPU may do the last part after it returns."""
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


def spread(rounds: Sequence[float | None]) -> dict[str, Any]:
    """Median and quartiles in milliseconds of a call's rounds, which are in seconds."""
    values = [value * 1e3 for value in rounds if value is not None]
    q1, median, q3 = _quartiles(values)
    return {"median_ms": median, "q1_ms": q1, "q3_ms": q3, "rounds": len(values), "peak_mib": None, "kept_mib": None}


def ratio(peer: Sequence[float | None], own: Sequence[float | None]) -> dict[str, float]:
    """How many times longer a peer takes, from the medians; the quartiles are those of the rounds' ratios."""
    pairs = [(a, b) for a, b in zip(peer, own, strict=True) if a is not None and b is not None]
    q1, _, q3 = _quartiles([a / b for a, b in pairs])
    medians = [statistics.median(x for x in rounds if x is not None) for rounds in (peer, own)]
    return {"ratio": medians[0] / medians[1], "q1": q1, "q3": q3}


def _floor(case: Case, work: Work, own: Sequence[float | None]) -> dict[str, Any]:
    """The least time that this machine needs for the case, and how many times longer the kernel took.

    On a GPU it is that of the memory alone, and the peak of its arithmetic is None: a peak for each type, on tensor
    cores or off them, would be another benchmark, and without it the floor is only lower.
    """
    moved, macs = floor_work(case, work)
    bandwidth, peak = copy_bandwidth(case.device), native.peak() if case.device == "cpu" else None
    by_memory, by_arithmetic = moved / bandwidth, macs / peak if peak else 0.0
    seconds = max(by_memory, by_arithmetic)
    values = [value / seconds for value in own if value is not None]
    q1, ratio, q3 = _quartiles(values)
    return {
        **{"ms": seconds * 1e3, "bound": "memory" if by_memory >= by_arithmetic else "arithmetic"},
        **{"mib": moved / 2**20, "macs": macs, "copy_gb_s": bandwidth / 1e9},
        "peak_gmac_s": peak / 1e9 if peak else None,
        **{"ratio": ratio, "q1": q1, "q3": q3},
    }


def copy_bandwidth(device: str = "cpu") -> float:
    """Bytes per second, read and written, of the best of ten copies of 256 MiB within a device's memory."""
    source, clock = torch.ones(COPIED_BYTES // 4, device=DEVICES[device]), _clock(device)
    target = torch.zeros_like(source)
    return 2 * COPIED_BYTES / min(clock(lambda: target.copy_(source)) for _ in range(10))


def memory_of(case: Case, peer: str) -> dict[str, float | None]:
    """MiB that the call needs above its inputs, and what its first call keeps; on the CPU in a fresh process.

    Raises:
        RuntimeError: The process failed; its last words are in the message.
    """
    if case.device == "cuda":
        with torch.set_grad_enabled(case.passes == "forward+backward"):
            return gpu.measure_memory(prepare(case, peer).call(case.passes))
    order = json.dumps({"case": asdict(case), "peer": peer, "threads": torch.get_num_threads()})
    try:
        return json.loads(fresh_python("-m", "fadeup.bench.worker", order))
    except RuntimeError as error:
        raise RuntimeError(f"{case}: memory of {peer}: {error}") from error


def fresh_python(*arguments: str, **environment: str) -> str:
    """The last line that a new Python prints, which imports this very package.

    Raises:
        RuntimeError: It failed; its last words are in the message.
    """
    paths = [str(Path(fadeup.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"a process of its own ended with exit code {done.returncode}: {words[-1]}")
    return done.stdout.strip().splitlines()[-1]
