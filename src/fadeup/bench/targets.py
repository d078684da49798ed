"""The fixed benchmarks: a quick look, what is promised of the CPU kernels, and cost over sizes and channels."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fadeup
from fadeup.bench.case import Case, prepare
from fadeup.bench.run import Settings, Tell, run_case
from fadeup.doctor import vector_sets

TARGET_SIDES = (16, 32, 64, 128, 256, 512, 1024)
CURVE_SIDES = TARGET_SIDES[:-1]
CURVE_CHANNELS = (32, 64, 128, 256, 512)
CURVE_PEERS = ("unfold", "eager", "bilinear")
CURVE_WINDOW_BYTES = 4 << 30
IMPORTS = 7

Plan = tuple[Case, tuple[str, ...]]
Results = dict[str, dict[str, Any]]

QUICK: tuple[Plan, ...] = ((Case("fade"), ("unfold", "eager", "bilinear")), (Case("reassemble"), ()))

TARGET_CASES: dict[str, Plan] = {
    "forward": (Case("fade"), ("unfold", "unfold-compiled", "eager", "bilinear", "dysample")),
    "bfloat16": (Case("fade", dtype="bfloat16"), ("bilinear",)),
    "backward": (Case("fade", passes="forward+backward"), ("unfold", "eager", "bilinear", "dysample")),
    "kernel": (Case("reassemble"), ()),
    "kernel backward": (Case("reassemble", passes="backward"), ()),
    "carafe": (Case("carafe"), ("unfold",)),
    "sapa": (Case("sapa"), ("unfold",)),
    "a2u": (Case("a2u"), ("unfold",)),
    "ratio 4": (Case("fade", scale=4), ()),
    "ratio 8": (Case("fade", scale=8), ()),
}
SIZE_CASES: dict[str, Plan] = {f"side {side}": (Case("fade", 64, side), ()) for side in TARGET_SIDES}


@dataclass(frozen=True)
class Target:
    """What is measured, the bound that was promised, and how the number follows from the results of one run."""

    name: str
    bound: float
    at_least: bool
    value: Callable[[Results], float]
    unit: str = "×"

    def met(self, value: float) -> bool:
        """Whether the number keeps the promise."""
        return value >= self.bound if self.at_least else value <= self.bound


def slower(case: str, peer: str) -> Callable[[Results], float]:
    """How many times longer the peer takes."""
    return lambda results: results[case]["ratios"][peer]["ratio"]


def over(case: str, peer: str) -> Callable[[Results], float]:
    """The operator's own time over the peer's."""
    return lambda results: 1 / results[case]["ratios"][peer]["ratio"]


def _floor(case: str) -> Callable[[Results], float]:
    return lambda results: results[case]["floor"]["ratio"]


def _memory_share(results: Results) -> float:
    peers = results["backward"]["peers"]
    return peers["native"]["peak_mib"] / peers["unfold"]["peak_mib"]


def per_pixel(result: dict[str, Any], peer: str | None = None) -> float:
    """Nanoseconds per output pixel."""
    case = result["case"]
    return result["peers"][peer or result["own"]]["median_ms"] * 1e6 / (case["side"] * case["scale"]) ** 2


def memory_ratio(result: dict[str, Any], peer: str | None = None) -> float | None:
    """Peak memory, the inputs included, over inputs and outputs; None where it was not taken."""
    peak = result["peers"][peer or result["own"]]["peak_mib"]
    if peak is None:
        return None
    return (result["input_mib"] + peak) / result["io_mib"]


def _flatness(sides: Sequence[int]) -> Callable[[Results], float]:
    def value(results: Results) -> float:
        costs = [per_pixel(results[f"side {side}"]) for side in sides]
        return max(costs) / min(costs)

    return value


def _size_memory(results: Results) -> float:
    return max(memory_ratio(results[name]) or float("nan") for name in SIZE_CASES)


def _ratio_cost(name: str) -> Callable[[Results], float]:
    return lambda results: per_pixel(results[name]) / per_pixel(results["forward"])


def _half() -> float:
    return 1.6 if {"avx512_bf16", "amx_bf16"} & set(vector_sets()) else 1.0


TARGETS: tuple[Target, ...] = (
    Target("FADE forward, C = 256, 64² → 128²: unfold form", 100, True, slower("forward", "unfold")),
    Target("… torch.compile of the unfold form", 20, True, slower("forward", "unfold-compiled")),
    Target("… its time over bilinear's", 2, False, over("forward", "bilinear")),
    Target("… bfloat16: over bilinear's in bfloat16", 1.2, False, over("bfloat16", "bilinear")),
    Target("… bfloat16: over bilinear's in float32", 1.2, False, over("bfloat16", "bilinear-f32")),
    Target("FADE forward + backward: unfold form", 60, True, slower("backward", "unfold")),
    Target("… its extra memory over the unfold form's", 0.1, False, _memory_share),
    Target("fused kernel alone, forward: over the floor", 1.5, False, _floor("kernel")),
    Target("… backward: over its floor", 2.5, False, _floor("kernel backward")),
    Target("FADE, float32 over bfloat16", _half(), True, slower("bfloat16", "native-f32")),
    Target("cost per pixel, C = 64, to 32² … 1024²: highest over lowest", 1.5, False, _flatness(TARGET_SIDES[:-1])),
    Target("… from 32² … 1024² (to 2048²)", 1.5, False, _flatness(TARGET_SIDES[1:])),
    Target("… peak memory over inputs + outputs, largest of all", 2, False, _size_memory),
    Target("CARAFE: unfold form", 30, True, slower("carafe", "unfold")),
    Target("SAPA-B: unfold form", 30, True, slower("sapa", "unfold")),
    Target("A2U: unfold form", 15, True, slower("a2u", "unfold")),
    Target("64² → 256²: per pixel, over 64² → 128²", 2, False, _ratio_cost("ratio 4")),
    Target("64² → 512²: per pixel, over 64² → 128²", 2, False, _ratio_cost("ratio 8")),
    Target("import fadeup over import torch", 60, False, lambda results: results["import"]["ms"], "ms"),
    Target("building the kernels, once", 10, False, lambda results: results["build"]["seconds"], "s"),
)


def import_ms() -> float:
    """Milliseconds that `import fadeup` takes after `import torch`; the median of fresh processes."""
    code = "import time, torch; start = time.perf_counter(); import fadeup; print(time.perf_counter() - start)"
    return statistics.median(float(_python(["-c", code])) for _ in range(IMPORTS)) * 1e3


def build_seconds() -> float:
    """Seconds that building the kernels takes in a fresh process, into an empty cache."""
    code = "from fadeup import doctor; print(doctor.build()[1])"
    with tempfile.TemporaryDirectory(prefix="fadeup-bench-") as folder:
        return float(_python(["-c", code], FADEUP_CACHE=folder))


def _python(arguments: Sequence[str], **environment: str) -> str:
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(fadeup.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"python {arguments[0]} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout.splitlines()[-1]


def run_targets(repeat: int, settings: Settings, tell: Tell) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every target in each of so many runs, the best of them, and the results of the cases; memory is taken once.

    A row is `refused` where no run gave a number, with what was said of the first.
    """
    plans, runs = TARGET_CASES | SIZE_CASES, []
    for run in range(1, repeat + 1):
        once = replace(settings, memory=settings.memory and run == 1, checked=settings.checked and run == 1)
        results: Results = {}
        for index, (name, (case, peers)) in enumerate(plans.items(), start=1):
            where = f"run {run} of {repeat}, case {index} of {len(plans)}, {case}"
            results[name] = run_case(case, peers, once, lambda text, where=where: tell(f"{where}: {text}"))
            _carry(results[name], runs[0][name] if runs else None)
        tell(f"run {run} of {repeat}: import and build")
        runs.append(results | {"import": {"ms": import_ms()}, "build": {"seconds": build_seconds()}})
    rows = [_row(target, runs) for target in TARGETS]
    return rows, [runs[i][name] | {"run": i + 1, "name": name} for i in range(repeat) for name in plans]


def _carry(result: dict[str, Any], first: dict[str, Any] | None) -> None:
    """Memory and a disagreement are those of the first run."""
    if first is None:
        return
    if first["refused"] and not first["peers"]:
        pass
    for name, peer in first["peers"].items():
        if name in result["peers"]:
            result["peers"][name]["peak_mib"] = peer["peak_mib"]
