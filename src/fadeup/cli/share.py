"""`fadeup share`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser(
        "share",
        help="write a trained network with a model card, and upload it",
        description="Writes config.json, model.safetensors and README.md, a model card with recipe, scores and data, "
        "into a folder. from_pretrained of its class loads it, and predict and eval take it as MODEL.",
    )
    parser.add_argument("model", metavar="MODEL", help="a network that ships with the package, run folder, or its file")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new, or that of an earlier call")
    parser.add_argument("--push", metavar="USER/NAME", help="upload it to the Hugging Face hub (after hf auth login)")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--license", metavar="ID", help="of the weights, as the hub names it, such as apache-2.0")
    parser.set_defaults(run=share)


def share(arguments: argparse.Namespace) -> None:
    """Write, upload, say where."""
    from fadeup.hub import share

    if arguments.private and not arguments.push:
        raise ValueError("--private must be left out without --push, got it")
    options = {"private": True} if arguments.private else {}
    place = share(arguments.model, arguments.folder, push=arguments.push, license=arguments.license, **options)
    print(f"wrote {arguments.folder}; read its README.md before others do")
    if place is not None:
        print(f"uploaded to {place}")
