"""Results of `fadeup bench` on the terminal and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from fadeup.bench.case import unusual_text
from fadeup.bench.tables import (
    REASSEMBLERS,
    best_cases,
    machine_text,
    memory_ratio,
    network_text,
    number,
    size_text,
    target_values,
)
from fadeup.bench.targets import per_pixel
from fadeup.report import draw_lines

NAMES = {"native": "fadeup", "unfold": "unfold", "eager": "eager", "bilinear": "bilinear"}


def show(results: dict[str, Any], console: Console) -> None:
    """Print the tables of what was measured."""
    cases, networks = best_cases(results), results["networks"]
    console.print(machine_text(results).replace("**", ""), highlight=False)
    for busy in results["busy"] or ():
        console.print(f"[yellow]forced:[/] {busy}", highlight=False)
    if results["busy"] is None:
        console.print("[yellow]note:[/] this system does not tell what other processes do", highlight=False)
    done = [result for result in cases if not result["refused"]]
    if done and not results["targets"]:
        console.print(case_view(done))
    for result in (*cases, *([networks] if networks else [])):
        if result["refused"]:
            console.print(f"[red]refused:[/] {result['refused']}", highlight=False)
    for name, title in (("pixels", "C = 64"), ("channels", "64² → 128²")):
        if results["curves"]:
            console.print(curve_view(results["curves"][name], name, title))
    if networks and not networks["refused"]:
        console.print(network_view(networks))
    if results["targets"]:
        console.print(target_view(results["targets"], results["repeat"]))
    if networks:
        console.print(target_view(networks["targets"], 1))


def case_view(cases: Sequence[dict[str, Any]]) -> Table:
    """Times of each case's peers, one beneath the other."""
    caption = "÷ own: how many times longer a peer takes than the operator itself, with the quartiles over rounds"
    view = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 1, 0), caption=caption)
    view.add_column("case", no_wrap=True)
    view.add_column("peer", no_wrap=True)
    for name in ("ms", "± IQR", "÷ own", "quartiles", "MiB", "÷ in+out"):
        view.add_column(name, justify="right", no_wrap=True)
    for result in cases:
        lines = [_line(result, name, peer) for name, peer in result["peers"].items()]
        columns = ["\n".join(cells) for cells in zip(*lines, strict=True)]
        view.add_row(_case_lines(result), *columns)
    return view


def _case_lines(result: dict[str, Any]) -> str:
    case, floor = result["case"], result["floor"]
    layout = case["layout"].replace("_", " ")
    lines = [f"[bold]{case['operator']}[/]", f"{case['channels']} ch, {size_text(case)}", case["passes"]]
    lines.append(f"{case['dtype']}, {layout}")
    if unusual := unusual_text(case).removeprefix(", "):
        lines.append(unusual)
    lines += [f"compiled in {peer['compile_s']:.0f} s" for peer in result["peers"].values() if "compile_s" in peer]
    if floor:
        lines.append(f"[bold]{number(floor['ratio'])}[/] × the floor ({floor['bound']})")
    return "\n".join(lines)


def _line(result: dict[str, Any], name: str, peer: dict[str, Any]) -> tuple[str, ...]:
    ratio = result["ratios"].get(name)
    comparison = (number(ratio["ratio"]), f"{number(ratio['q1'])}–{number(ratio['q3'])}") if ratio else ("1", "")
    memory = number(memory_ratio(result, name)) if name in REASSEMBLERS else ""
    times = number(peer["median_ms"]), number(peer["q3_ms"] - peer["q1_ms"])
    return name, *times, *comparison, number(peer["peak_mib"]), memory


def curve_view(curve: Sequence[dict[str, Any]], kind: str, title: str) -> Table:
    """Nanoseconds per output pixel."""
    done = [result for result in curve if not result["refused"]]
    names = list(dict.fromkeys(name for result in done for name in result["peers"]))
    view = Table(title=f"FADE, {title}: ns per output pixel", box=box.SIMPLE_HEAD)
    view.add_column("size" if kind == "pixels" else "channels", no_wrap=True)
    for name in (*names, "memory ÷ in+out"):
        view.add_column(name, justify="right", no_wrap=True)
    for result in done:
        place = size_text(result["case"]) if kind == "pixels" else str(result["case"]["channels"])
        costs = [number(per_pixel(result, name)) if name in result["peers"] else "–" for name in names]
        view.add_row(place, *costs, number(memory_ratio(result)))
    return view


def network_view(result: dict[str, Any]) -> Table:
    """Times of whole networks."""
    view = Table(title=network_text(result), box=box.SIMPLE_HEAD)
    view.add_column("network", no_wrap=True)
    for name in ("parameters", "ms", "± IQR", "÷ transformers", "quartiles"):
        view.add_column(name, justify="right", no_wrap=True)
    for name, peer in result["peers"].items():
        ratio = result["ratios"].get(name)
        comparison = (number(ratio["ratio"]), f"{number(ratio['q1'])}–{number(ratio['q3'])}") if ratio else ("1", "")
        times = number(peer["median_ms"]), number(peer["q3_ms"] - peer["q1_ms"])
        view.add_row(f"fadeup, {name}" if ratio else name, f"{peer['parameters']:,}", *times, *comparison)
    return view


def target_view(targets: Sequence[dict[str, Any]], repeat: int) -> Table:
    """What was promised, and what came out."""
    view = Table(title=f"Targets, best of {repeat} run(s)", box=box.SIMPLE_HEAD)
    view.add_column("", overflow="fold")  # the only one that may give way
    for name in ("target", "best", "runs"):
        view.add_column(name, justify="right", no_wrap=True)
    view.add_column("", no_wrap=True)
    styles = {"met": "green", "missed": "red", "unknown": "yellow"}
    for row in targets:
        bound, best, verdict = target_values(row)
        runs = " ".join(number(value) for value in row["values"]) if repeat > 1 else ""
        view.add_row(row["name"], bound, best, runs, f"[{styles[verdict]}]{verdict}[/]")
    return view


def figure_curves(curves: dict[str, Any]) -> Figure:
    """Cost per output pixel over sizes and over channels, both axes logarithmic, with the interquartile range."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, kind in zip(figure.subplots(1, 2), ("pixels", "channels"), strict=True):
        done = [result for result in curves[kind] if not result["refused"]]
        x = [_pixels(result) if kind == "pixels" else result["case"]["channels"] for result in done]
        names: list[str] = list(dict.fromkeys(name for result in done for name in result["peers"]))
        lines = {NAMES.get(name, name): [_cost(result, name) for result in done] for name in names}
        spread = {NAMES.get(name, name): [_cost_spread(result, name) for result in done] for name in names}
        draw_lines(axis, x, lines, spread)
        if kind == "pixels":
            axis.set_xticks(x, [f"{result['case']['side'] * result['case']['scale']}²" for result in done])
        title = "64 channels" if kind == "pixels" else "64² → 128²"
        label = "output pixels" if kind == "pixels" else "channels"
        axis.set(title=f"FADE, {title}", xlabel=label, ylabel="ns per output pixel")
        axis.minorticks_off()
    figure.axes[0].legend(frameon=False)
    return figure


def _pixels(result: dict[str, Any]) -> int:
    return (result["case"]["side"] * result["case"]["scale"]) ** 2


def _cost(result: dict[str, Any], name: str) -> float:
    return per_pixel(result, name) if name in result["peers"] else float("nan")


def _cost_spread(result: dict[str, Any], name: str) -> float:
    if name not in result["peers"]:
        return float("nan")
    peer = result["peers"][name]
    return (peer["q3_ms"] - peer["q1_ms"]) * 1e6 / _pixels(result)
