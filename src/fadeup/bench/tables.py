"""Results of `fadeup bench` as Markdown, and into the marked place of a page."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fadeup.bench.case import unusual_text
from fadeup.bench.targets import memory_ratio, per_pixel
from fadeup.checkpoint import write
from fadeup.reading import read_json

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NETWORKS_BEGIN, NETWORKS_END = "<!-- networks:begin -->", "<!-- networks:end -->"
REASSEMBLERS = ("native", "triton", "unfold", "unfold-compiled", "eager", "plain", "mmcv")
"""The peers with the inputs and outputs of the operator itself, to which their memory is compared."""
KEYS = {"environment", "seconds", "repeat", "forced", "busy", "cases", "targets", "curves"}


def number(value: float | None) -> str:
    """Three significant digits, without an exponent; a dash for what was not measured."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def read(path: Path) -> dict[str, Any]:
    """A file that `fadeup bench --json` has written.

    Raises:
        ValueError: It is another file.
    """
    rule = f"--tables must be a file that fadeup bench --json has written, got {path}"
    try:
        results = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{rule}: {error}") from error
    if not isinstance(results, dict) or not results.keys() >= KEYS:
        raise ValueError(f"{rule}, which is another")
    try:
        for result in (*results["cases"], *itertools.chain(*(results["curves"] or {}).values())):
            result["case"] = {"batch": 1, "device": "cpu"} | result["case"]  # which older files do not have
        results = {"networks": None} | results  # nor this
        markdown(results)  # so that what is missing is told of with the file's name
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{rule}, which is damaged: {error!r:.200}") from error
    return results


def size_text(case: dict[str, Any]) -> str:
    """64² → 128²."""
    return f"{case['side']}² → {case['side'] * case['scale']}²"


def machine_text(results: dict[str, Any]) -> str:
    """Where and when this was measured; the first thing said of forced results is that they are."""
    e = results["environment"]
    gpu = f"{_gpu_text(e['gpu'])}; " if e.get("gpu") else ""
    vectors = ", ".join(name for name in e["vectors"] if name.startswith(("avx", "amx", "asimd", "sve")))
    text = (
        f"{gpu}{e['cpu']} ({vectors or e['machine']}), {e['threads']} threads; torch {e['torch']}, "
        f"Python {e['python']}, fadeup {e['fadeup']} at commit {e['commit']}; {e['date']}."
    )
    return ("**Forced: other processes may have disturbed this.** " if results["forced"] else "") + text


def _gpu_text(gpu: dict[str, Any]) -> str:
    driver = f", driver {gpu['driver']}" if gpu["driver"] else ""
    return f"{gpu['name']} (compute capability {gpu['capability']}, CUDA {gpu['cuda']}{driver}, Triton {gpu['triton']})"


def target_values(row: dict[str, Any]) -> tuple[str, str, str]:
    """The bound, the best value and the verdict, in words."""
    sign, unit = ("≥" if row["at_least"] else "≤"), row["unit"] if row["unit"] == "×" else f" {row['unit']}"
    if row["best"] is None:
        return f"{sign} {row['bound']:g}{unit}", "–", "unknown"
    verdict = "met" if row["met"] else "missed"
    return f"{sign} {row['bound']:g}{unit}", f"{number(row['best'])}{unit}", verdict


def best_cases(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each case the run in which the operator itself was fastest, with the memory of the run that took it."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results["cases"]:
        groups.setdefault(json.dumps(result["case"], sort_keys=True), []).append(result)
    return [_best(group) for group in groups.values()]


def _best(group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    done = [result for result in group if not result["refused"]]
    if not done:
        return group[0]
    most = max(len(result["peers"]) for result in done)  # the same case may be there with fewer peers
    done = [result for result in done if len(result["peers"]) == most]
    best = min(done, key=lambda result: result["peers"][result["own"]]["median_ms"])
    peers = {}
    for name, peer in best["peers"].items():
        known = [r["peers"][name] for r in done if r["peers"][name]["peak_mib"] is not None]
        memory = {key: known[0][key] for key in ("peak_mib", "kept_mib")} if known else {}
        peers[name] = peer | memory
    return best | {"peers": peers}


def markdown(results: dict[str, Any]) -> str:
    """All tables: targets, timings, curves, networks; each only where it was measured."""
    parts = [machine_text(results)]
    if results["targets"]:
        parts += [f"### What was promised\n\nBest of {results['repeat']} run(s).", _target_table(results["targets"])]
    cases = best_cases(results)
    if cases:
        parts += ["### Times and memory", _case_table(cases)]
    if any(result["floor"] for result in cases if not result["refused"]):
        parts += ["### Against the floor", _floor_table(cases)]
    for name, title in (("pixels", "over sizes, C = 64"), ("channels", "over channels, 64² → 128²")):
        if results["curves"]:
            parts += [f"### FADE {title}", _curve_table(results["curves"][name], name)]
    networks = results["networks"]
    if networks:
        parts += ["### Networks", *_network_parts(networks)]
    refused = [r["refused"] for r in (*results["cases"], *([networks] if networks else [])) if r["refused"]]
    if refused:
        parts.append("Refused: " + "; ".join(refused) + ".")
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> str:
    """A Markdown table whose first columns are words and the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _target_table(targets: Sequence[dict[str, Any]]) -> str:
    rows = []
    for row in targets:
        bound, best, verdict = target_values(row)
        runs = " · ".join(number(value) for value in row["values"])
        rows.append((row["name"], bound, best, runs, verdict if verdict == "met" else f"**{verdict}**"))
    return table(("", "target", "best", "runs", ""), rows, 1)


def _case_table(cases: Sequence[dict[str, Any]]) -> str:
    header = ("operator", "size", "type, layout", "pass", "peer", "ms", "IQR", "÷ own [quartiles]", "MiB", "÷ in + out")
    rows = []
    for result in (r for r in cases if not r["refused"]):
        case = result["case"]
        place = (
            f"`{case['operator']}`",
            f"{case['channels']} × {size_text(case)}",
            f"{case['dtype']}, {case['layout'].replace('_', ' ')}{unusual_text(case)}",
            case["passes"].replace("+", " + "),
        )
        for name, peer in result["peers"].items():
            rows.append((*place, *_peer_cells(result, name, peer)))
            place = ("", "", "", "")
    return table(header, rows, 5)


def _peer_cells(result: dict[str, Any], name: str, peer: dict[str, Any]) -> tuple[str, ...]:
    times = number(peer["median_ms"]), number(peer["q3_ms"] - peer["q1_ms"])
    of_all = memory_ratio(result, name) if name in REASSEMBLERS else None
    label = f"{name} (compiled in {peer['compile_s']:.0f} s)" if "compile_s" in peer else name
    return label, *times, _spread(result["ratios"].get(name)), number(peer["peak_mib"]), number(of_all)


def _floor_table(cases: Sequence[dict[str, Any]]) -> str:
    header = (
        "pass",
        "type",
        "size",
        "ms",
        "floor, ms",
        "bound by",
        "÷ floor [quartiles]",
        "copy, GB/s",
        "peak, GMAC/s",
    )
    rows = []
    for result in cases:
        floor, case = result.get("floor"), result["case"]
        if floor:
            times = number(result["peers"][result["own"]]["median_ms"]), number(floor["ms"]), floor["bound"]
            machine = number(floor["copy_gb_s"]), number(floor["peak_gmac_s"])
            place = case["passes"], case["dtype"] + unusual_text(case), f"{case['channels']} × {size_text(case)}"
            rows.append((*place, *times, _spread(floor), *machine))
    return table(header, rows, 3)


def _curve_table(curve: Sequence[dict[str, Any]], kind: str) -> str:
    """Nanoseconds per output pixel of each peer, and the operator's own memory."""
    done = [result for result in curve if not result["refused"]]
    names = list(dict.fromkeys(name for result in done for name in result["peers"]))
    rows = []
    for result in done:
        case = result["case"]
        costs = (number(per_pixel(result, name)) if name in result["peers"] else "–" for name in names)
        place = size_text(case) if kind == "pixels" else str(case["channels"])
        rows.append((place, *costs, number(memory_ratio(result))))
    header = "size" if kind == "pixels" else "channels"
    return table((header, *(f"{name}, ns" for name in names), "memory ÷ in + out"), rows, 1)


def network_text(result: dict[str, Any]) -> str:
    """What the networks have in common."""
    network = result["network"]
    name = f"SegFormer-{network['backbone'].removeprefix('mit_').upper()}"
    size = f"{network['classes']} classes, {network['side']}², batch 1, float32"
    return f"{name}, {size}; transformers {result['transformers']}"


def _network_parts(result: dict[str, Any]) -> list[str]:
    text = f"{network_text(result)}."
    if result["refused"]:
        return [text]
    rows = []
    for name, peer in result["peers"].items():
        label = name if name not in result["ratios"] else f"fadeup, {name}"
        times = number(peer["median_ms"]), number(peer["q3_ms"] - peer["q1_ms"])
        rows.append((label, f"{peer['parameters']:,}", *times, _spread(result["ratios"].get(name))))
    header = ("network", "parameters", "ms", "IQR", "÷ transformers [quartiles]")
    return [text, table(header, rows, 1), _target_table(result["targets"])]


def _spread(ratio: dict[str, float] | None) -> str:
    """A ratio and its quartiles; 1 for that of a thing to itself."""
    return f"{number(ratio['ratio'])} [{number(ratio['q1'])}, {number(ratio['q3'])}]" if ratio else "1"


def marks(results: dict[str, Any]) -> tuple[str, str]:
    """Between what the tables go in a page; networks that were measured alone have a place of their own."""
    alone = results["networks"] and not (results["cases"] or results["targets"] or results["curves"])
    return (NETWORKS_BEGIN, NETWORKS_END) if alone else (BEGIN, END)


def insert(page: Path, text: str, places: tuple[str, str]) -> None:
    """Put Markdown between the marks of a page, in place of what is there.

    Raises:
        ValueError: The page does not have the two marks, once each and in order.
    """
    write(page, inserted(page.read_text(encoding="utf-8"), text, places, page).encode())


def inserted(old: str, text: str, places: tuple[str, str], page: Path) -> str:
    """The text of a page with Markdown between its marks, as `insert` writes it."""
    first, last = places
    before, begin, rest = old.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end or first in rest or last in after:
        raise ValueError(f"--into must be a page with {first} and {last}, once each, got {page}")
    return f"{before}{first}\n\n{text}\n{last}{after}"
