"""What `fadeup bench` does with its arguments."""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fadeup.bench import gpu, tables, view
from fadeup.bench.case import DEVICES, DTYPES, Case, default_peers, peers_of
from fadeup.bench.networks import run_networks
from fadeup.bench.run import Settings, Tell, require_quiet, thread_count
from fadeup.bench.targets import QUICK, Plan, run_curves, run_plans, run_targets
from fadeup.bench.timing import environment
from fadeup.checkpoint import write
from fadeup.functional import check_choice
from fadeup.models.weights import needed
from fadeup.report import save_figure

REPEAT = 3
CASE_OPTIONS = ("channels", "side", "scale", "dtype", "layout", "passes", "batch")


def bench(arguments: argparse.Namespace) -> int:
    """Measure and show, or turn a file into tables; 1 where a case was refused."""
    _check(arguments)
    if arguments.tables:
        results = tables.read(arguments.tables)
        text = tables.markdown(results)
        if arguments.into:
            tables.insert(arguments.into, text, tables.marks(results))
        else:
            print(text, end="")
        return 0
    plans = _plans(arguments)
    with thread_count(arguments.threads or min(2, os.cpu_count() or 1)):
        results = _measure(arguments, plans)
    view.show(results, Console())
    if arguments.json:
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        _save(arguments.json, lambda path: write(path, text.encode()))
    if arguments.figure:
        _save(arguments.figure, lambda path: save_figure(view.figure_curves(results["curves"]), path))
    curves, networks = (results["curves"] or {}).values(), results["networks"]
    measured = (*results["cases"], *itertools.chain(*curves), *([networks] if networks else []))
    return int(any(result["refused"] for result in measured))


def _measure(arguments: argparse.Namespace, plans: list[Plan]) -> dict[str, Any]:
    memory, force = not arguments.no_memory, arguments.force
    settings = Settings(seconds=arguments.seconds, memory=memory, force=force, wait=arguments.wait)
    busy = require_quiet(settings)
    results: dict[str, Any] = {
        "environment": environment(arguments.device),
        "seconds": arguments.seconds,
        "repeat": arguments.repeat or REPEAT,
        "forced": arguments.force,
        "busy": None if busy is None else [str(one) for one in busy],
        "cases": [],
        "targets": None,
        "curves": None,
        "networks": None,
    }
    with _progress() as tell:
        if arguments.targets:
            results["targets"], results["cases"] = run_targets(results["repeat"], settings, tell)
        if arguments.curves:
            results["curves"] = run_curves(settings, tell)
        if arguments.networks:
            results["networks"] = run_networks(settings, tell)
        results["cases"] += run_plans(plans, settings, tell)
    return results


def _plans(arguments: argparse.Namespace) -> list[Plan]:
    """The cases that were asked for: every combination, or the quick look where nothing was asked for."""
    device = arguments.device
    given = {name: getattr(arguments, name) for name in CASE_OPTIONS if getattr(arguments, name) is not None}
    if not arguments.operators and not given:
        quick = () if arguments.targets or arguments.curves or arguments.networks else QUICK
        plans = [(replace(case, device=device), tuple(arguments.peers or peers)) for case, peers in quick]
    else:
        operators = list(dict.fromkeys(arguments.operators or ["fade"]))
        combinations = itertools.product(operators, *(dict.fromkeys(values) for values in given.values()))
        peers, plans = tuple(arguments.peers or default_peers(device)), []
        for operator, *values in combinations:
            options: dict[str, Any] = dict(zip(given, values, strict=True))
            plans.append((Case(operator, device=device, **options), peers))
    for case, peers in plans:
        peers_of(case, peers)  # unknown names are refused before anything is run
    return plans


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together, before minutes are spent."""
    measured = ("operators", "targets", "curves", "networks", "json", "figure")
    asked = [name for name in measured if getattr(arguments, name)]
    if arguments.tables and asked:
        raise ValueError(f"--tables must be given alone or with --into, got {', '.join(asked)} too")
    if arguments.into and not arguments.tables:
        raise ValueError(f"--into must be given with --tables, got {arguments.into} alone")
    if not arguments.seconds > 0:
        raise ValueError(f"--seconds must be above 0, got {arguments.seconds}")
    if not arguments.wait >= 0:
        raise ValueError(f"--wait must be 0 or more, got {arguments.wait}")
    if arguments.repeat and not arguments.targets:
        raise ValueError(f"--repeat must be given with --targets, got {arguments.repeat} alone")
    if arguments.figure and not arguments.curves:
        raise ValueError(f"--figure must be given with --curves, which it shows, got {arguments.figure} alone")
    if arguments.figure and arguments.figure.suffix not in (".png", ".svg"):
        raise ValueError(f"--figure must be a .png or .svg file, got {arguments.figure.name!r}")
    _check_device(arguments)
    if arguments.networks:
        needed("transformers", "--networks")
    for name in ("json", "figure"):
        path: Path | None = getattr(arguments, name)
        if path and not path.parent.is_dir():
            raise ValueError(f"--{name} must be in a folder that exists, got {path}")


def _check_device(arguments: argparse.Namespace) -> None:
    """Refuse a GPU that is not there, and the CPU's promises on one."""
    if check_choice("--device", arguments.device, tuple(DEVICES)) == "cpu":
        return
    asked = [f"--{name}" for name in ("targets", "curves", "networks") if getattr(arguments, name)]
    if asked:
        raise ValueError(f"--device must be cpu with {', '.join(asked)}, which measure the CPU's kernels, got cuda")
    for dtype in arguments.dtype or ("float32",):
        reason = gpu.problem(DTYPES[check_choice("dtype", dtype, tuple(DTYPES))])
        if reason:
            raise ValueError(f"--device must be cpu here, got cuda: {reason}")


def _save(path: Path, save: Any) -> None:
    try:
        save(path)
    except OSError as error:
        raise OSError(f"{path} must be a file that can be written, got {error}") from error
    print(f"wrote {path}")


@contextmanager
def _progress() -> Iterator[Tell]:
    """Says on stderr what is being done. It draws only when told: a thread that redraws would be measured with it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: console.print(text, highlight=False, soft_wrap=True)
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda text: progress.update(task, description=text, refresh=True)
