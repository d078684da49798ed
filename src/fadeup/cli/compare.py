"""`fadeup compare`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fadeup.cli import processes
from fadeup.cli.options import (
    OTHER_NAMES,
    PLACED,
    add_machine_options,
    add_recipe_options,
    check_device,
    chosen_recipe,
    progress_bar,
    run_folder,
)
from fadeup.cli.train import passed_over

BOTH_SIDES = ("reconstruction", "landcover")


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser(
        "compare",
        help="train several upsamplers on the same data with the same seeds, and report",
        description="Trains the chosen upsamplers on the same real data with the same seeds, prints a table and writes "
        "results.json and report.html into runs/NAME, or into runs/NAME/TASK where there are several tasks. The "
        "default covers reconstruction and segmentation in minutes on 2 cores.",
    )
    parser.add_argument(
        "tasks",
        nargs="*",
        metavar="TASK",
        help="reconstruction, reconstruction-colour, landcover (or segmentation), weizmann, camvid, ade20k, sunrgbd, "
        "cutouts (or matting), composition1k, folder; default: reconstruction and landcover",
    )
    parser.add_argument("--upsamplers", nargs="+", metavar="NAME", help="default: the rows of the paper, and bilinear")
    parser.add_argument("--baseline", help="what differences are taken to (default: the task's first upsampler)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], metavar="SEED", help="default: 0 1")
    add_recipe_options(parser)
    parser.add_argument("--name", help="of the run (default: the task, or compare)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--weights", action="store_true", help="keep each row's network, for fadeup predict and eval")
    parser.add_argument("--resume", action="store_true", help="go on with a run: only missing rows are trained")
    add_machine_options(parser)
    parser.set_defaults(run=compare)


def compare(arguments: argparse.Namespace) -> None:
    """Everything is checked before anything is trained; then task by task."""
    from rich.console import Console

    import fadeup.report  # noqa: F401 - what it needs is missed now, not after the training
    from fadeup.compare import RunFolder

    tasks = _tasks(arguments)
    check_device(arguments.device)
    place = run_folder(arguments, tasks[0] if len(tasks) == 1 else "compare")
    if len(tasks) > 1 and (place / "config.json").exists():
        raise ValueError(f"{place} must be a run of several tasks, got one of a single task; choose another --name")
    planned = [_plan(task, arguments) for task in tasks]  # before the folders: missing data leaves none behind
    folders = [
        RunFolder(place / task if len(tasks) > 1 else place, recipe, resume=arguments.resume)
        for task, (recipe, *_) in zip(tasks, planned, strict=True)
    ]
    arguments.hint = f"; finished rows are kept in {place}: the same command with --resume goes on"
    console = Console()
    reports = [_compare(arguments, *plan, folder, console) for plan, folder in zip(planned, folders, strict=True)]
    for report in reports:
        console.print(f"Report: {report}", markup=False, highlight=False, soft_wrap=True)


def _tasks(arguments: argparse.Namespace) -> list[str]:
    tasks = [OTHER_NAMES.get(task, task) for task in arguments.tasks or BOTH_SIDES]
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks must be different from each other, got {', '.join(arguments.tasks)}")
    for name in (*PLACED, "set") if len(tasks) > 1 else ():
        if (given := getattr(arguments, name)) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} must be given with one task, got {given!r} with {', '.join(tasks)}; name one")
    if processes.count() > 1:
        raise ValueError(f"fadeup compare must be one process, got {processes.count()}; use fadeup train with torchrun")
    return tasks


def _plan(task: str, arguments: argparse.Namespace) -> tuple[Any, Any, list[str], str]:
    """Recipe, data, upsamplers and baseline."""
    from fadeup.compare import check_rows

    recipe = chosen_recipe(task, arguments)
    upsamplers = list(arguments.upsamplers or recipe.upsamplers)
    baseline = arguments.baseline or recipe.upsamplers[0]
    if baseline not in upsamplers:
        upsamplers.insert(0, baseline)
    check_rows(upsamplers, arguments.seeds)
    data = recipe.data()
    recipe.model(upsamplers[0])  # weights that cannot be had are missed now, not when the tasks before are through
    return recipe, data, upsamplers, baseline


def _compare(
    arguments: argparse.Namespace,
    recipe: Any,
    data: Any,
    upsamplers: list[str],
    baseline: str,
    folder: Any,
    console: Any,
) -> Path:
    """Train, print the table and write the report."""
    from fadeup import report
    from fadeup.checkpoint import write
    from fadeup.compare import results, summarize

    rows = _train_rows(arguments, recipe, data, upsamplers, folder, console)
    if told := passed_over(data.train):
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    table = summarize(recipe, rows, baseline)
    result = results(recipe, rows, table, baseline)
    write(folder.path / "results.json", json.dumps(result, indent=2).encode())
    report.write_report(folder.path / "report.html", recipe, data, rows, table, result)
    console.print(report.comparison_table(recipe, table, baseline))
    console.print(report.order_text(recipe, table), highlight=False)
    return folder.path / "report.html"


def _train_rows(
    arguments: argparse.Namespace, recipe: Any, data: Any, upsamplers: list[str], folder: Any, console: Any
) -> list[Any]:
    """All rows under one progress bar, counted in steps, with a line for each that is finished."""
    from rich.progress import TimeElapsedColumn

    from fadeup.compare import TrainedRow, compare
    from fadeup.engine import Setting

    count, finished, length = len(upsamplers) * len(arguments.seeds), 0, recipe.steps(data)
    with progress_bar(console, TimeElapsedColumn()) as progress:
        bar = progress.add_task("starting", total=None)

        def on_start(upsampler: str, seed: int, steps: int) -> None:
            description = f"{upsampler}, seed {seed}"
            progress.update(bar, description=description, total=count * steps, completed=finished * steps)

        def on_row(row: TrainedRow, resumed: bool) -> None:
            nonlocal finished
            finished += 1
            scores = ", ".join(f"{m.label} {row.score(m):.{m.digits}f}" for m in recipe.metrics)
            done = "taken from the run folder" if resumed else f"{row.seconds:.0f} s"
            line = f"{recipe.task}, {row.upsampler}, seed {row.seed}: {scores} ({done})"
            console.print(line, highlight=False, soft_wrap=True)

        return compare(
            recipe,
            data,
            upsamplers,
            arguments.seeds,
            folder,
            setting=Setting(device=arguments.device, workers=arguments.workers),
            keep_weights=arguments.weights,
            on_row=on_row,
            on_start=on_start,
            on_step=lambda step, *_: progress.update(bar, completed=finished * length + step),
        )
