"""`fadeup data`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fadeup.cli.options import progress_bar

TASKS = ("cutouts", "composition1k", "matting-folder")


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser("data", help="write data sets to disk")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    matting = kinds.add_parser(
        "matting-test",
        help="the test composites of a matting set",
        description="Writes the test composites of a matting set as PNGs in Composition-1K's layout: merged/NAME.png, "
        "alpha_copy/NAME.png and trimaps/NAME.png. A folder of that layout is scored by fadeup eval --data "
        "matting-folder, where it stands as FOLDER/test.",
    )
    matting.add_argument("out", type=Path, metavar="OUT", help="folder")
    matting.add_argument("--task", default="cutouts", help=f"{', '.join(TASKS)} (default: cutouts)")
    matting.add_argument("--source", help="folder with the data set")
    matting.add_argument("--overwrite", action="store_true", help="write into a folder that holds something")
    matting.set_defaults(run=matting_test)


def matting_test(arguments: argparse.Namespace) -> None:
    """Write, with a bar."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn

    from fadeup.data.matting import write_test_set
    from fadeup.recipes import RECIPES, Matting

    kind = RECIPES.get(arguments.task)
    if kind is None or not issubclass(kind, Matting):
        raise ValueError(f"--task must be one of {', '.join(TASKS)}, got {arguments.task!r}")
    samples: Any = kind(source=arguments.source).test_set()
    console = Console()
    with progress_bar(console, MofNCompleteColumn()) as progress:
        bar = progress.add_task("writing", total=len(samples))
        count = write_test_set(
            samples, arguments.out, overwrite=arguments.overwrite, on_sample=lambda name: progress.advance(bar)
        )
    console.print(f"{count} composites in {arguments.out}", markup=False, highlight=False, soft_wrap=True)
