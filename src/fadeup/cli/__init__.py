"""The command line: `fadeup compare`, `train`, `eval`, `predict`, `share` …, a file each.

Each command imports its own room, and only when it is run.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

import fadeup
from fadeup.cli import (
    bench,
    compare,
    cost,
    data,
    demo,
    doctor,
    evaluate,
    explain,
    export,
    predict,
    processes,
    share,
    train,
)

EXTRAS = {"gradio": "demo"}
"""Of modules that are not in the extra `experiments`, as long as no message of our own names theirs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 1 where something was refused, 2 on a user's error, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name, or a sign, that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        if processes.is_main():
            print(f"\ninterrupted{getattr(arguments, 'hint', '')}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", "fadeup"):
            raise
        extra = EXTRAS.get(missing, "experiments")
        told = f"fadeup {arguments.command} needs {missing}, which is not installed: pip install 'fadeup[{extra}]'"
        if "must be installed" in str(error):  # ours, of a package that may be in no extra: it says how
            told = f"fadeup {arguments.command}: {error}"
        print(f"{processes.prefix()}{told}", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{processes.prefix()}fadeup {arguments.command}: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="fadeup", description=fadeup.__doc__)
    parser.add_argument("--version", action="version", version=f"fadeup {fadeup.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for room in (compare, train, evaluate, predict, explain, demo, export, share, data, cost, bench, doctor):
        room.add(commands)
    return parser
