"""`fadeup doctor`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser(
        "doctor",
        help="what is installed, which implementation is used and why",
        description="Versions, the CPU, which implementation impl='auto' uses on it and why. Builds the kernels where "
        "there are none; FADEUP_JIT=0 forbids that.",
    )
    parser.add_argument("--build", action="store_true", help="have the kernels ready now; 1 where that fails")
    parser.add_argument(
        "--rebuild", action="store_true", help="the same, compiled for this CPU even where there are some already"
    )
    parser.add_argument("--json", action="store_true", help="the diagnosis as JSON")
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from fadeup import doctor

    built: dict[str, Any] = {}
    if arguments.build or arguments.rebuild:
        try:
            path, seconds = doctor.build(rebuild=arguments.rebuild)
        except doctor.BuildError as error:
            print(f"fadeup doctor: the CPU kernels could not be built: {error}; {doctor.remedy()}", file=sys.stderr)
            return 1
        built = {"built": {"path": str(path), "seconds": seconds}}
    if arguments.json:
        print(json.dumps(doctor.diagnose() | built, indent=2))
    elif built:
        print(f"{built['built']['path']} ({built['built']['seconds']:.1f} s)")
    else:
        print(doctor.render(doctor.diagnose()))
    return 0
