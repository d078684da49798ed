"""The fixed benchmarks: a quick look, what is promised of the CPU kernels, and cost over sizes and channels."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fadeup.bench.case import Case
from fadeup.bench.run import Settings, Tell, fresh_python, run_case
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
    value: Callable[[Results], float | None]
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


def _memory_share(results: Results) -> float | None:
    own, unfold = (results["backward"]["peers"][name]["peak_mib"] for name in ("native", "unfold"))
    return None if own is None else own / unfold


def per_pixel(result: dict[str, Any], peer: str | None = None) -> float:
    """Nanoseconds per output pixel."""
    case = result["case"]
    pixels = case["batch"] * (case["side"] * case["scale"]) ** 2
    return result["peers"][peer or result["own"]]["median_ms"] * 1e6 / pixels


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


def _size_memory(results: Results) -> float | None:
    ratios = [memory_ratio(results[name]) for name in SIZE_CASES]
    return max((ratio for ratio in ratios if ratio is not None), default=None)


def _ratio_cost(name: str) -> Callable[[Results], float]:
    return lambda results: per_pixel(results[name]) / per_pixel(results["forward"])


def _half() -> float:
    return 1.6 if {"avx512_bf16", "amx_bf16"} & set(vector_sets()) else 1.0


TARGETS: tuple[Target, ...] = (
    Target("FADE forward, 256 × 64² → 128²: unfold / fused", 100, True, slower("forward", "unfold")),
    Target("… torch.compile(unfold) / fused", 20, True, slower("forward", "unfold-compiled")),
    Target("… fused / bilinear", 2, False, over("forward", "bilinear")),
    Target("… bfloat16: fused / bilinear", 1.2, False, over("bfloat16", "bilinear")),
    Target("… bfloat16: fused / bilinear in float32", 1.2, False, over("bfloat16", "bilinear-f32")),
    Target("FADE forward + backward: unfold / fused", 60, True, slower("backward", "unfold")),
    Target("… extra memory: fused / unfold", 0.1, False, _memory_share),
    Target("fused kernel alone, forward / floor", 1.5, False, _floor("kernel")),
    Target("fused kernel alone, backward / floor", 2.5, False, _floor("kernel backward")),
    Target("FADE forward: float32 / bfloat16", _half(), True, slower("bfloat16", "native-f32")),
    Target("FADE per pixel, C = 64, to 32² … 1024²: max / min", 1.5, False, _flatness(TARGET_SIDES[:-1])),
    Target("… from 32² … 1024²: max / min", 1.5, False, _flatness(TARGET_SIDES[1:])),
    Target("… peak memory / (inputs + outputs), max", 2, False, _size_memory),
    Target("CARAFE forward: unfold / fused", 30, True, slower("carafe", "unfold")),
    Target("SAPA-B forward: unfold / fused", 30, True, slower("sapa", "unfold")),
    Target("A2U forward: unfold / fused", 15, True, slower("a2u", "unfold")),
    Target("FADE per pixel: 64² → 256² / 64² → 128²", 2, False, _ratio_cost("ratio 4")),
    Target("FADE per pixel: 64² → 512² / 64² → 128²", 2, False, _ratio_cost("ratio 8")),
    Target("import fadeup, after import torch", 60, False, lambda results: results["import"]["ms"], "ms"),
    Target("building the kernels, once", 10, False, lambda results: results["build"]["seconds"], "s"),
)


def import_ms() -> float:
    """Milliseconds that loading all of fadeup's names takes after `import torch`; the median of fresh processes."""
    code = "import time, torch; start = time.perf_counter(); from fadeup import *; print(time.perf_counter() - start)"
    return statistics.median(float(fresh_python("-c", code)) for _ in range(IMPORTS)) * 1e3


def build_seconds() -> float:
    """Seconds that building the kernels takes in a fresh process, into an empty cache."""
    with tempfile.TemporaryDirectory(prefix="fadeup-bench-") as folder:
        code = "from fadeup import doctor; print(doctor.build()[1])"
        return float(fresh_python("-c", code, FADEUP_CACHE=folder))


def run_plans(plans: Sequence[Plan], settings: Settings, tell: Tell) -> list[dict[str, Any]]:
    """The results of cases, one after another."""
    results = []
    for index, (case, peers) in enumerate(plans, start=1):
        place = f"{index} of {len(plans)}: {case}"
        results.append(run_case(case, peers, settings, lambda text, place=place: tell(f"{place}: {text}")))
    return results


def run_curves(settings: Settings, tell: Tell) -> dict[str, list[dict[str, Any]]]:
    """FADE over sizes at 64 channels, and over channels at 64² → 128²; unfold where its windows fit in 2 GB."""
    curves = {
        "pixels": [Case("fade", 64, side) for side in CURVE_SIDES],
        "channels": [Case("fade", channels) for channels in CURVE_CHANNELS],
    }
    results = {}
    for name, cases in curves.items():
        fitting = [CURVE_PEERS if case.window_bytes() <= CURVE_WINDOW_BYTES else CURVE_PEERS[1:] for case in cases]
        plans = list(zip(cases, fitting, strict=True))
        results[name] = run_plans(plans, settings, lambda text, name=name: tell(f"curve over {name}, {text}"))
    return results


def run_targets(repeat: int, settings: Settings, tell: Tell) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every target with its value in each of so many runs, and the results of the cases.

    Outputs are checked and memory is taken in the first run. A case that the check refuses is not run again.
    """
    plans, runs = TARGET_CASES | SIZE_CASES, []
    for run in range(1, repeat + 1):
        first = run == 1
        kept = {} if first else {name: r for name, r in runs[0].items() if r.get("refused") and "checked" not in r}
        once = replace(settings, memory=settings.memory and first, checked=settings.checked and first)
        names = [name for name in plans if name not in kept]
        place = f"run {run} of {repeat}, "
        found = run_plans([plans[name] for name in names], once, lambda text, place=place: tell(place + text))
        tell(f"{place}import and build")
        times = {"import": {"ms": import_ms()}, "build": {"seconds": build_seconds()}}
        runs.append(kept | dict(zip(names, found, strict=True)) | times)
    steady_floors([result for results in runs for result in results.values()])
    rows = [target_row(target, runs) for target in TARGETS]
    cases = [results[name] | {"run": run} for run, results in enumerate(runs, start=1) for name in plans]
    return rows, cases


def steady_floors(results: Sequence[dict[str, Any]]) -> None:
    """Take every floor from the best rates of all runs.

    A machine that others share may be slow just when its rates are taken, and a floor from those would flatter.
    """
    floors = [result["floor"] for result in results if result.get("floor")]
    for floor in floors:
        peak, copy = (max(other[rate] for other in floors) for rate in ("peak_gmac_s", "copy_gb_s"))
        arithmetic, memory = floor["macs"] / peak / 1e6, floor["mib"] * 2**20 / copy / 1e6
        lowest = max(arithmetic, memory)
        shrunk = floor["ms"] / lowest
        floor |= {name: floor[name] * shrunk for name in ("ratio", "q1", "q3")}
        floor |= {"ms": lowest, "bound": "arithmetic" if arithmetic > memory else "memory"}
        floor |= {"peak_gmac_s": peak, "copy_gb_s": copy}


def target_row(target: Target, runs: Sequence[Results]) -> dict[str, Any]:
    """The target, its value in each run, and the best of them."""
    values = [_value(target, results) for results in runs]
    known = [value for value in values if value is not None]
    best = (max if target.at_least else min)(known) if known else None
    return {
        **{"name": target.name, "bound": target.bound, "at_least": target.at_least, "unit": target.unit},
        **{"values": values, "best": best, "met": best is not None and target.met(best)},
    }


def _value(target: Target, results: Results) -> float | None:
    try:
        return target.value(results)
    except KeyError:  # a case that was refused has no numbers
        return None
