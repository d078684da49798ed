"""`fadeup cost`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fadeup
from fadeup.cli.options import positive, save

TIMINGS = "--timings must be a file that --measure has written, got"


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser(
        "cost",
        help="parameters and multiply–accumulates of upsamplers and of the two published heads",
        description="Parameters and multiply–accumulates (MACs) of one upsampler over a decoder map, and of all "
        "upsamplers of A2U matting and of SegFormer's head at an input of 512 x 512, as the papers count them.",
    )
    parser.add_argument("upsamplers", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--channels", type=positive, default=256, help="of decoder and encoder (default: 256)")
    parser.add_argument(
        "--size",
        type=positive,
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
    from fadeup.checkpoint import write
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
            save(arguments.json, lambda path: write(path, f"{text}\n".encode()))
    if str(arguments.json) != "-":
        from rich.console import Console

        from fadeup.report import cost_view

        title = f"{arguments.channels} channels, decoder {height} x {width}, 2x; heads at an input of 512 x 512"
        Console().print(cost_view(rows, title))
    if arguments.figure:
        from fadeup import report

        timings = _timings(arguments)
        try:
            figure = report.figure_cost(curves(), timings)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if arguments.measure:
                raise
            raise ValueError(f"{TIMINGS} another in {arguments.timings}: {error!r:.200}") from error
        save(arguments.figure, lambda path: report.save_figure(figure, path))


def _timings(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Timings from the file, or measured here, and then kept in the file."""
    from fadeup.checkpoint import write
    from fadeup.reading import read_json

    if not arguments.measure:
        if arguments.timings is None:
            return None
        if not arguments.timings.exists():
            raise ValueError(f"{TIMINGS} none at {arguments.timings}")
        try:
            if (timings := read_json(arguments.timings)) is None:
                raise ValueError("null")
            return timings
        except ValueError as error:
            raise ValueError(f"{TIMINGS} another in {arguments.timings}: {error}") from error
    from fadeup.bench import measure_curves

    timings = measure_curves()
    if arguments.timings:
        save(arguments.timings, lambda path: write(path, (json.dumps(timings, indent=2) + "\n").encode()))
    return timings
