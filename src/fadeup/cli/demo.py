"""`fadeup demo`."""

from __future__ import annotations

import argparse
from typing import Any

from fadeup.cli.options import positive


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser(
        "demo",
        help="a web page that compares upsamplers on your photographs",
        description="Serves a page on this machine alone, until Ctrl-C: two networks that differ in their upsampler "
        "over a photograph, where they differ, their gates and kernels, and files to take away.",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="your own networks besides those that ship: run folders or model.safetensors of fadeup train",
    )
    parser.add_argument("--host", default="127.0.0.1", help="127.0.0.1 (default): this machine; 0.0.0.0: all may come")
    parser.add_argument("--port", type=positive, default=7860, help="default: 7860")
    parser.add_argument(
        "--max-pixels", type=positive, default=1_500_000, metavar="N", help="make larger photographs smaller: 1500000"
    )
    parser.add_argument(
        "--seconds", type=positive, default=60, metavar="N", help="end a computation that takes longer (default: 60)"
    )
    parser.add_argument("--megabytes", type=positive, default=30, metavar="N", help="refuse larger files (default: 30)")
    parser.set_defaults(run=demo)


def demo(arguments: argparse.Namespace) -> None:
    """Serve the page."""
    from fadeup.demo.serve import serve

    serve(
        arguments.models,
        host=arguments.host,
        port=arguments.port,
        max_pixels=arguments.max_pixels,
        seconds=arguments.seconds,
        megabytes=arguments.megabytes,
    )
