"""The command line: `fadeup compare`, `cost`, `bench`, `doctor`. Each command imports its own room."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import fadeup


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 1 where something was refused, 2 on a user's error, 130 when interrupted."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print(f"\ninterrupted{getattr(arguments, 'hint', '')}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", "fadeup"):
            raise
        needs = f"fadeup {arguments.command} needs {missing}, which is not installed: pip install 'fadeup[experiments]'"
        print(needs, file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError) as error:
        print(f"fadeup {arguments.command}: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="fadeup", description=fadeup.__doc__)
    parser.add_argument("--version", action="version", version=f"fadeup {fadeup.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_compare(commands)
    _add_cost(commands)
    _add_bench(commands)
    _add_doctor(commands)
    return parser


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="train several upsamplers on the same data with the same seeds, and report",
        description="Trains the chosen upsamplers on the same real data with the same seeds, prints a table and writes "
        "runs/NAME/results.json and report.html. The default takes minutes on 2 cores.",
    )
    parser.add_argument("task", nargs="?", default="reconstruction", help="reconstruction (default)")
    parser.add_argument("--upsamplers", nargs="+", metavar="NAME", help="default: the rows of the paper, and bilinear")
    parser.add_argument("--baseline", default="bilinear", help="what differences are taken to (default: bilinear)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], metavar="SEED", help="default: 0 1")
    parser.add_argument("--protocol", default="quick", help="quick (default) or paper")
    parser.add_argument("--epochs", type=_positive, help="in place of the protocol's")
    parser.add_argument("--train-images", type=_positive, help="in place of the protocol's")
    parser.add_argument("--test-images", type=_positive, help="in place of the protocol's")
    parser.add_argument("--source", help="assets, full, or a folder with the data set")
    parser.add_argument("--set", nargs="+", metavar="FIELD=VALUE", help="any other field of the recipe, as in its docs")
    parser.add_argument("--name", default=None, help="of the run (default: the task)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--resume", action="store_true", help="go on with a run: only missing rows are trained")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from fadeup import report
    from fadeup.checkpoint import write
    from fadeup.compare import RunFolder, check_rows, results, summarize
    from fadeup.recipes import RECIPES

    if arguments.task not in RECIPES:
        raise ValueError(f"task must be one of {', '.join(RECIPES)}, got {arguments.task!r}")
    recipe = _recipe(RECIPES[arguments.task], arguments)
    upsamplers = list(arguments.upsamplers or recipe.upsamplers)
    if arguments.baseline not in upsamplers:
        upsamplers.insert(0, arguments.baseline)
    check_rows(upsamplers, arguments.seeds)
    _check_device(arguments.device)
    data = recipe.data()  # before the folder, so that missing data leaves none behind
    folder = RunFolder(arguments.out / (arguments.name or arguments.task), recipe, resume=arguments.resume)
    arguments.hint = f"; finished rows are kept in {folder.path}: the same command with --resume goes on"
    console = Console()
    rows = _train_rows(arguments, recipe, data, upsamplers, folder, console)
    table = summarize(recipe, rows, arguments.baseline)
    result = results(recipe, rows, table, arguments.baseline)
    write(folder.path / "results.json", json.dumps(result, indent=2).encode())
    report.write_report(folder.path / "report.html", recipe, data, rows, table, result)
    console.print(report.comparison_table(recipe, table, arguments.baseline))
    console.print(report.order_text(recipe, table), highlight=False)
    console.print(f"Report: {folder.path / 'report.html'}", highlight=False, soft_wrap=True)


def _train_rows(
    arguments: argparse.Namespace, recipe: Any, data: Any, upsamplers: list[str], folder: Any, console: Any
) -> list[Any]:
    """All rows under one progress bar, counted in steps, with a line for each that is finished."""
    from rich.progress import Progress, TimeElapsedColumn

    from fadeup.compare import TrainedRow, compare
    from fadeup.engine import Setting

    count, finished, length = len(upsamplers) * len(arguments.seeds), 0, recipe.steps(data)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True) as progress:
        bar = progress.add_task("starting", total=None)

        def on_start(upsampler: str, seed: int, steps: int) -> None:
            description = f"{upsampler}, seed {seed}"
            progress.update(bar, description=description, total=count * steps, completed=finished * steps)

        def on_row(row: TrainedRow, resumed: bool) -> None:
            nonlocal finished
            finished += 1
            scores = ", ".join(f"{m.label} {row.score(m):.{m.digits}f}" for m in recipe.metrics)
            done = "taken from the run folder" if resumed else f"{row.seconds:.0f} s"
            console.print(f"{row.upsampler}, seed {row.seed}: {scores} ({done})", highlight=False, soft_wrap=True)

        return compare(
            recipe,
            data,
            upsamplers,
            arguments.seeds,
            folder,
            setting=Setting(device=arguments.device),
            on_row=on_row,
            on_start=on_start,
            on_step=lambda step, loss, rate: progress.update(bar, completed=finished * length + step),
        )


def _recipe(kind: Any, arguments: argparse.Namespace) -> Any:
    """The protocol of that name, with what the command line sets in its place."""
    known = {field.name for field in fields(kind)}
    options = {name: getattr(arguments, name) for name in ("epochs", "train_images", "test_images", "source")}
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - known:
        raise ValueError(f"--{name.replace('_', '-')} must be left out for {kind.task}, got {given[name]!r}")
    recipe = kind.protocol(arguments.protocol)
    for pair in arguments.set or ():
        name, sign, text = pair.partition("=")
        if not sign or name not in known:
            raise ValueError(f"--set must be FIELD=VALUE with one of {', '.join(sorted(known))}, got {pair!r}")
        given[name] = _like(getattr(recipe, name), name, text)
    return replace(recipe, **given)


def _like(value: Any, name: str, text: str) -> Any:
    """The text as a value of the same kind; whatever it says where the present one is None."""
    try:
        given = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        given = text
    if isinstance(value, float) and type(given) is int:
        given = float(given)
    if value is not None and given is not None and type(given) is not type(value):
        raise ValueError(f"--set {name} must be of type {type(value).__name__}, as {value!r} is, got {text!r}")
    return given


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device must be one that torch can use here, got {device!r}: {reason}") from error


def _add_cost(commands: Any) -> None:
    parser = commands.add_parser(
        "cost",
        help="parameters and multiply–accumulates of upsamplers and of the two published heads",
        description="Parameters and multiply–accumulates (MACs) of one upsampler over a decoder map, and of all "
        "upsamplers of A2U matting and of SegFormer's head at an input of 512 x 512, as the papers count them.",
    )
    parser.add_argument("upsamplers", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--channels", type=_positive, default=256, help="of decoder and encoder (default: 256)")
    parser.add_argument(
        "--size",
        type=_positive,
        nargs="+",
        default=[64],
        metavar="SIDE",
        help="decoder's height and width (default: 64)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON; - for standard output")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the paper's Figure 7 as .png or .svg")
    parser.add_argument(
        "--measure", action="store_true", help="with --figure: also measure time and memory here (a minute)"
    )
    parser.add_argument(
        "--timings", type=Path, metavar="FILE", help="with --figure: draw these timings, or keep those measured here"
    )
    parser.set_defaults(run=_cost)


def _cost(arguments: argparse.Namespace) -> None:
    from fadeup.cost import cost_table, curves

    if len(arguments.size) > 2:
        raise ValueError(f"--size must be one side, or height and width, got {len(arguments.size)} numbers")
    if (arguments.measure or arguments.timings) and not arguments.figure:
        raise ValueError("--figure must be given with --measure or --timings, got none")
    height, width = arguments.size[0], arguments.size[-1]
    names = arguments.upsamplers or list(fadeup.UPSAMPLERS)
    rows = cost_table(names, arguments.channels, height, width)
    if arguments.json:
        plain = [asdict(row) for row in rows]
        text = json.dumps({"channels": arguments.channels, "size": [height, width], "rows": plain}, indent=2)
        if str(arguments.json) == "-":
            print(text)
        else:
            _save(arguments.json, lambda path: path.write_text(text + "\n"))
    if str(arguments.json) != "-":
        from rich.console import Console

        from fadeup.report import cost_view

        title = f"{arguments.channels} channels, decoder {height} x {width}, 2x; heads at an input of 512 x 512"
        Console().print(cost_view(rows, title))
    if arguments.figure:
        from fadeup import report

        timings = _timings(arguments)
        figure = report.figure_cost(curves(), timings)
        _save(arguments.figure, lambda path: report.save_figure(figure, path))


def _timings(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Timings from the file, or measured here, and then kept in the file."""
    if not arguments.measure:
        if arguments.timings is None:
            return None
        if not arguments.timings.exists():
            raise ValueError(f"--timings must be a file that --measure has written, got none at {arguments.timings}")
        timings = json.loads(arguments.timings.read_text())
        if not isinstance(timings, dict) or not {"channels", "sizes"} <= timings.keys():
            raise ValueError(f"--timings must be a file that --measure has written, got another in {arguments.timings}")
        return timings
    from fadeup.bench import measure_curves

    timings = measure_curves()
    if arguments.timings:
        _save(arguments.timings, lambda path: path.write_text(json.dumps(timings, indent=2) + "\n"))
    return timings


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="time and memory of the operators here, against their peers and against what the machine can do",
        description="Times operators and their peers in turns, and takes each one's memory in a process of its own. "
        "Without arguments a quick look at FADE and at the fused kernel. A case whose results differ from the "
        "reference's is refused, and so is a machine on which other processes use more than 10 % of a core.",
    )
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help="upsamplers, or reassemble: the fused kernel")
    several: dict[str, Any] = {"nargs": "+", "default": None}
    parser.add_argument("--channels", **several, type=_positive, metavar="C", help="default: 256")
    parser.add_argument("--size", **several, type=_positive, dest="side", metavar="SIDE", help="decoder's, default: 64")
    parser.add_argument("--scale", **several, type=_positive, metavar="S", help="default: 2")
    parser.add_argument("--dtype", **several, metavar="TYPE", help="float32 (default), bfloat16, float16")
    parser.add_argument("--layout", **several, metavar="LAYOUT", help="channels_last (default), contiguous")
    parser.add_argument(
        "--pass", **several, dest="passes", metavar="PASS", help="forward (default), forward+backward, backward"
    )
    parser.add_argument(
        "--peers",
        **several,
        metavar="PEER",
        help="unfold, unfold-compiled, eager, bilinear, dysample (default: all but unfold-compiled)",
    )
    parser.add_argument("--targets", action="store_true", help="what is promised of the CPU kernels (minutes)")
    parser.add_argument("--repeat", type=_positive, metavar="N", help="with --targets: best of N runs (default: 3)")
    parser.add_argument("--curves", action="store_true", help="FADE over sizes and over channels (minutes)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="default: 2, or the cores where there is one")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="per peer and case (default: 2)")
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="S", help="seconds to wait for busy processes (default: 0)"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, a process for each peer")
    parser.add_argument("--force", action="store_true", help="run beside busy processes; the result is marked")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="with --curves: draw them as .png or .svg")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="only print what --json wrote as Markdown")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="with --tables: put it between the marks of a page")
    parser.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from fadeup.bench.command import bench

    return bench(arguments)


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what is installed, which implementation is used and why",
        description="Versions, the CPU, which implementation impl='auto' uses on it and why. Builds the kernels where "
        "they have not been built.",
    )
    parser.add_argument("--build", action="store_true", help="put the kernels into the cache now; 1 where that fails")
    parser.add_argument("--rebuild", action="store_true", help="the same, even where they are there already")
    parser.add_argument("--json", action="store_true", help="the diagnosis as JSON")
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from fadeup import doctor

    built: dict[str, Any] = {}
    if arguments.build or arguments.rebuild:
        try:
            path, seconds = doctor.build(rebuild=arguments.rebuild)
        except doctor.BuildError as error:
            print(f"fadeup doctor: the CPU kernels could not be built: {error}; {doctor.INSTALL}", file=sys.stderr)
            return 1
        built = {"built": {"path": str(path), "seconds": seconds}}
    if arguments.json:
        print(json.dumps(doctor.diagnose() | built, indent=2))
    elif built:
        print(f"{built['built']['path']} ({built['built']['seconds']:.1f} s)")
    else:
        print(doctor.render(doctor.diagnose()))
    return 0


def _save(path: Path, save: Callable[[Path], object]) -> None:
    try:
        save(path)
    except OSError as error:
        raise OSError(f"{path} must be a file that can be written, got {error}") from error
    print(f"wrote {path}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value
