"""Kills commands at random moments, starts them again, and compares what they leave with an undisturbed run.

    python scripts/faults.py [--kills 200] [--fresh 20] [--commands compare ...] [--json benchmarks/results/faults.json]

A kill is SIGKILL to a process and its group, at a moment drawn evenly from the time that an undisturbed run takes. Most
processes are forked from this one, which has imported everything and computed nothing, so that moments fall into the
work; `--fresh` of the kills are of processes that start from nothing, as a user's do, and fall into the imports too.
Every fourth attempt is killed a second time while it goes on. Kills that came after the end do not count. `distributed`
is `train` by two processes, of which one is killed and the other told to end, as torchrun does.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import platform
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ASSETS = Path(__file__).parent.parent / "src" / "fadeup" / "assets"
UNLIKE = ("seconds", "environment")
"""Keys of results that no two runs share."""
PATIENCE = 300.0

Marks = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """A command that is killed."""

    arguments: Callable[[Path], list[str]]
    """Of `fadeup`, for a place of its own, also to go on; empty for the kernels, which `build` builds."""
    finished: Callable[[Path], Marks]
    """What is finished, each with a mark that changes when it is made again."""
    result: Callable[[Path], Any]
    """All that is to be equal to an undisturbed run's."""


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def marks(place: Path, pattern: str) -> Marks:
    """Files by inode and time of their writing."""
    return {str(p.relative_to(place)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in place.glob(pattern)}


def same(value: Any) -> Any:
    """Without what no two runs share."""
    if isinstance(value, dict):
        return {key: same(item) for key, item in value.items() if key not in UNLIKE}
    return [same(item) for item in value] if isinstance(value, list) else value


def journal(path: Path) -> dict[str, Any]:
    """What a journal has whole lines for."""
    lines = path.read_bytes().split(b"\n")[1:-1] if path.exists() else []
    return dict(json.loads(line) for line in lines)


# ---- compare ----


def compare_arguments(place: Path) -> list[str]:
    return ["compare", "reconstruction", "--train-images", "60", "--test-images", "12", "--epochs", "2", "--seeds", "0",
            "--upsamplers", "nearest", "bilinear", "--out", str(place), "--name", "run", "--resume"]  # fmt: skip


def compare_result(place: Path) -> Any:
    rows = {}
    for path in sorted((place / "run" / "rows").glob("*.npz")):
        with np.load(path) as file:
            arrays = {name: digest(file[name].tobytes()) for name in file.files if name != "meta"}
            rows[path.name] = arrays | same(json.loads(str(file["meta"])))
    page = (place / "run" / "report.html").read_text(encoding="utf-8")
    left = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    return rows, same(json.loads((place / "run" / "results.json").read_text())), page.rstrip()[-7:], left


# ---- train ----


def train_arguments(place: Path) -> list[str]:
    return ["train", "reconstruction", "--train-images", "160", "--test-images", "12", "--epochs", "2", "--upsampler",
            "bilinear", "--out", str(place), "--name", "run", "--resume", "--checkpoint-seconds", "0"]  # fmt: skip


def train_finished(place: Path) -> Marks:
    """The steps in the checkpoint: a process that goes on must not say them again."""
    path = place / "run" / "checkpoint.pt"
    return {"steps": torch.load(path, weights_only=True)["state"]["steps_done"]} if path.exists() else {}


def train_result(place: Path) -> Any:
    from safetensors.torch import load_file
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    weights = load_file(place / "run" / "model.safetensors")
    events = EventAccumulator(str(place / "run" / "tensorboard"))
    events.Reload()
    return (
        {
            name: digest(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            for name, tensor in weights.items()
        },
        same(json.loads((place / "run" / "results.json").read_text())),
        [(event.step, event.value) for event in events.Scalars("loss")],
        train_finished(place),
    )


def train_repeated(before: Marks, log: str) -> list[str]:
    steps = [int(line.split()[1]) for line in log.splitlines() if line.startswith("step ")]
    return [f"step {step}" for step in steps if step <= before.get("steps", 0)]


# ---- predict, eval ----


def predict_arguments(place: Path) -> list[str]:
    return ["predict", "segment", str(place.parent / "photos"), "--model", "landcover-bilinear", "--resize", "64",
            "--out", str(place / "out"), "--resume"]  # fmt: skip


def make_photos(folder: Path) -> None:
    """Thirty pieces of satellite pictures."""
    from PIL import Image

    folder.mkdir()
    tiles = sorted((ASSETS / "landcover").glob("*.jpg"))[:30]
    for tile in tiles:
        with Image.open(tile) as image:
            image.crop((0, 0, 96, 64)).save(folder / f"{tile.stem}.png")


def predict_finished(place: Path) -> Marks:
    done = journal(place / "out" / ".fadeup-segment.jsonl")
    found = marks(place, "out/*.png")
    return {name: mark for name, mark in found.items() if done.get(Path(name).name.split(".")[0])}


def predict_result(place: Path) -> Any:
    pictures = {path.name: digest(path.read_bytes()) for path in sorted((place / "out").glob("*.png"))}
    return pictures, journal(place / "out" / ".fadeup-segment.jsonl")


def eval_arguments(place: Path) -> list[str]:
    return ["eval", "matting-bilinear", "--data", "matting-folder", "--source", str(place.parent / "cutouts"), "--out",
            str(place / "out"), "--json", str(place / "scores.json"), "--resume"]  # fmt: skip


def make_cutouts(root: Path) -> None:
    """Forty soft discs, of which eight are for testing, and two backgrounds."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("foregrounds", "backgrounds"):
        (root / name).mkdir(parents=True)
    for index in range(40):
        y, x = np.mgrid[:70, :90] - np.array([35, 45])[:, None, None]
        alpha = (255 * np.clip((12 + index / 2 - np.hypot(x, y)) / 6 + 0.5, 0, 1)).astype(np.uint8)
        color = np.full((70, 90, 3), rng.integers(0, 256, 3), np.uint8)
        Image.fromarray(np.dstack((color, alpha))).save(root / "foregrounds" / f"disc{index}.png")
    for index, tile in enumerate(sorted((ASSETS / "landcover").glob("*.jpg"))[:2]):
        shutil.copy(tile, root / "backgrounds" / f"tile{index}.jpg")


def eval_finished(place: Path) -> Marks:
    """Alphas that the journal has a line for: it counts the test pictures, in the order of `scores.csv`."""
    done = sum(told is not None for told in journal(place / "out" / ".fadeup-eval.jsonl").values())
    found = sorted(marks(place, "out/**/*.png").items(), key=lambda item: item[1][1])
    return dict(found[:done])


def eval_result(place: Path) -> Any:
    files = {path.name: digest(path.read_bytes()) for path in sorted((place / "out").rglob("*.png"))}
    scores = same(json.loads((place / "scores.json").read_text()))
    return files, (place / "out" / "scores.csv").read_text(), scores


# ---- the kernels ----


def build(place: Path) -> None:
    """Build the kernels as at their first use, load them, and compute with them."""
    os.environ["FADEUP_CACHE"] = str(place / "cache")
    os.environ["CXX"] = str(place.parent / "compiler")
    from fadeup import reassemble
    from fadeup.kernels import native as kernels

    kernels.PREBUILT = place / "none"  # a wheel's would be taken
    torch.manual_seed(0)
    decoder, logits = torch.rand(1, 3, 4, 5), torch.rand(1, 9, 8, 10)
    native, reference = (reassemble(decoder, logits, impl=impl) for impl in ("native", "reference"))
    (place / "equal").write_text(str(torch.allclose(native, reference, atol=1e-6)))


def make_compiler(path: Path) -> None:
    """The system's compiler, told last to leave optimization out: a build takes seconds, not a minute."""
    from fadeup.kernels.native import compiler

    found = compiler()
    assert found is not None, "needs a C++ compiler"
    path.write_text(f'#!/bin/sh\nexec {shlex.join(found)} "$@" -O0\n')
    path.chmod(0o700)


def build_result(place: Path) -> Any:
    return [path.name for path in sorted((place / "cache").iterdir())], (place / "equal").read_text()


COMMANDS = {
    "compare": Command(compare_arguments, lambda place: marks(place, "run/rows/*.npz"), compare_result),
    "train": Command(train_arguments, train_finished, train_result),
    "eval": Command(eval_arguments, eval_finished, eval_result),
    "predict": Command(predict_arguments, predict_finished, predict_result),
    "distributed": Command(train_arguments, train_finished, train_result),
    "build": Command(lambda place: [], lambda place: marks(place, "cache/*.so"), build_result),
}


# ---- processes ----


def start(name: str, place: Path, log: Path, fresh: bool) -> int:
    """A process that does a command, the first of its group; its number."""
    arguments = COMMANDS[name].arguments(place)
    place.mkdir(exist_ok=True)
    if fresh:
        words = [__file__, "--build", str(place)] if name == "build" else ["-m", "fadeup", *arguments]
        with log.open("ab") as file:
            process = subprocess.Popen([sys.executable, *words], stdout=file, stderr=file, start_new_session=True)
        process.returncode = 0  # waited for by its number, as the forked ones are
        return process.pid
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = _do(name, place, arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _do(name: str, place: Path, arguments: list[str]) -> int:
    from fadeup.cli import main

    if name == "build":
        build(place)
        return 0
    return two(place, lambda: main(arguments)) if name == "distributed" else main(arguments)


def two(place: Path, work: Callable[[], int]) -> int:
    """Do the work by two processes, whose numbers are in the file `ranks`; 0 where both succeeded."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = []
    for rank in range(2):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(os.fork())
        if not ranks[-1]:
            return work()  # this process then ends as its parent would
    (place / "ranks").write_text(" ".join(map(str, ranks)))
    first, status = os.wait()
    other = next(rank for rank in ranks if rank != first)
    if status:
        os.kill(other, signal.SIGTERM)
    code = wait(other, PATIENCE)
    (place / "ranks").unlink()
    return int(bool(status or code))


def wait(process: int, seconds: float) -> int | None:
    """The exit code, negative for a signal; None where it runs on."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(min(0.005, max(0.0, until - time.monotonic())))


def kill(process: int, ranks: Path, chance: Any) -> bool:
    """SIGKILL to the group, or to one of the processes in `ranks`; whether it came before the end."""
    if ranks.exists() and (numbers := ranks.read_text().split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(chance.choice(numbers)), signal.SIGKILL)
        return wait(process, PATIENCE) == 1
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:  # it has not come to make its group yet
        os.kill(process, signal.SIGKILL)
    return wait(process, PATIENCE) == -signal.SIGKILL


def undisturbed(name: str, place: Path, fresh: bool) -> tuple[Any, float]:
    """What a command leaves, and how long it takes."""
    log, started = place.parent / f"{place.name}.log", time.monotonic()
    code = wait(start(name, place, log, fresh), PATIENCE)
    if code != 0:
        raise SystemExit(f"{name} must end undisturbed, got exit code {code}:\n{log.read_text()[-2000:]}")
    return COMMANDS[name].result(place), time.monotonic() - started


# ---- the campaign ----


def attempt(name: str, place: Path, seconds: float, times: int, truth: Any, fresh: bool, chance: Any) -> Counter[str]:
    """Kill a command so many times, let it finish, and count what became of it."""
    command, counts, told, before = COMMANDS[name], Counter(), [], {}
    log = place.parent / f"{place.name}.log"
    for _ in range(times):
        process = start(name, place, log, fresh)
        if wait(process, chance.uniform(0, seconds)) is not None or not kill(process, place / "ranks", chance):
            counts["late"] += 1
            break
        counts["kills"] += 1
        earlier, before = before, command.finished(place)
        told += [f"lost {key}" for key in earlier if key not in before]
        told += ["lost steps"] if before.get("steps", 0) < earlier.get("steps", 0) else []
        told += [f"repeated {key}" for key in earlier if "steps" not in earlier and before.get(key) != earlier[key]]
        shown = log.read_text(errors="replace")
        told += [f"repeated {step}" for step in train_repeated(earlier, shown)] if "steps" in earlier else []
        log.write_text("")
    if not counts["kills"]:
        return counts
    code = wait(process := start(name, place, log, fresh), PATIENCE)
    if code is None:
        os.killpg(process, signal.SIGKILL)
    told += [f"lost: exit code {code} after the restart"] if code != 0 else []
    after = command.finished(place)
    told += [f"lost {key}" for key in before if key not in after]
    if "steps" in before:
        told += [f"repeated {step}" for step in train_repeated(before, log.read_text(errors="replace"))]
    else:
        told += [f"repeated {key}" for key in before if key in after and before[key] != after[key]]
    if code == 0 and command.result(place) != truth:
        told.append("differs from the undisturbed run")
    told += [f"left {path.name}" for path in place.rglob("*") if path.name.endswith(".part") or "build-" in path.name]
    for kind in ("lost", "repeated", "differs", "left"):
        counts[kind] += any(words.startswith(kind) for words in told)
    counts["attempts"] += 1
    counts["survived"] += not told
    for words in told:
        print(f"{name}, {place}: {words}", flush=True)
    if not told:
        shutil.rmtree(place)
        log.unlink()
    return counts


def campaign(name: str, kills: int, fresh: bool, work: Path, seed: int, runs: int) -> dict[str, Any]:
    """Attempts until there were so many kills."""
    mode = "fresh" if fresh else "forked"
    whole = [undisturbed(name, work / f"{name}-{mode}-{number}", fresh) for number in range(runs)]
    if whole[0][0] != whole[-1][0]:
        raise SystemExit(f"{name} must leave the same twice, got two undisturbed runs that differ: see {work}")
    seconds, counts = min(taken for _, taken in whole), Counter()
    chance = random.Random(f"{name} {mode} {seed}")
    number = 0
    while counts["kills"] < kills and counts["late"] < 2 * kills + 20:
        number += 1
        times = min(2 if number % 4 == 0 else 1, kills - counts["kills"])
        counts += attempt(name, work / f"{name}-{mode}-kill{number}", seconds, times, whole[0][0], fresh, chance)
    told = {
        key: counts[key] for key in ("kills", "attempts", "survived", "lost", "repeated", "differs", "left", "late")
    }
    return {"command": name, "process": mode, "undisturbed_seconds": round(seconds, 2), **told}


def warm() -> None:
    """Import what the commands import; nothing is computed, for threads would not come along in a fork."""
    torch.set_num_threads(1)
    for name in (
        "tensorboard.backend.event_processing.event_accumulator",
        "torch.utils.tensorboard",
        *(f"fadeup.{room}" for room in ("bench", "compare", "engine", "hub", "predict", "recipes", "report")),
    ):
        importlib.import_module(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all, spread evenly over the commands")
    parser.add_argument("--fresh", type=int, default=20, help="so many of them of processes that start from nothing")
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--once", action="store_true", help="do not check that two undisturbed runs leave the same")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="folder for what is made (default: a temporary one)")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments.build)
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    warm()
    work = Path(tempfile.mkdtemp(prefix="faults-", dir=arguments.work))
    make_photos(work / "photos")
    make_cutouts(work / "cutouts")
    if "build" in arguments.commands:
        make_compiler(work / "compiler")
    results = []
    for fresh, kills in ((False, arguments.kills - arguments.fresh), (True, arguments.fresh)):
        for place, name in enumerate(arguments.commands):
            share = (kills + place) // len(arguments.commands)
            if share and not (fresh and name == "distributed"):
                results.append(campaign(name, share, fresh, work, arguments.seed, 1 if arguments.once else 2))
                print(json.dumps(results[-1]), flush=True)
            if arguments.json:
                keep(arguments.json, results)
    failed = sum(row["attempts"] - row["survived"] for row in results)
    if not failed:
        shutil.rmtree(work)
    return int(failed > 0)


def keep(path: Path, results: list[dict[str, Any]]) -> None:
    environment = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    text = json.dumps({"environment": environment, "date": time.strftime("%Y-%m-%d"), "kills": results}, indent=1)
    path.write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
