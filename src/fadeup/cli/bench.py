"""`fadeup bench`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fadeup.cli.options import positive


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser(
        "bench",
        help="time and memory of the operators here, against their peers and against what the machine can do",
        description="Times operators and their peers in turns, and takes the memory of each. "
        "Without arguments a quick look at FADE and at the fused kernel. A case whose results differ from the "
        "reference's is refused, and so is a machine on which other processes use more than 10 % of a core.",
    )
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help="upsamplers, or reassemble: the fused kernel")
    several: dict[str, Any] = {"nargs": "+", "default": None}
    parser.add_argument("--channels", **several, type=positive, metavar="C", help="default: 256")
    parser.add_argument("--size", **several, type=positive, dest="side", metavar="SIDE", help="decoder's, default: 64")
    parser.add_argument("--batch", **several, type=positive, metavar="N", help="default: 1")
    parser.add_argument("--scale", **several, type=positive, metavar="S", help="default: 2")
    parser.add_argument("--dtype", **several, metavar="TYPE", help="float32 (default), bfloat16, float16")
    parser.add_argument("--layout", **several, metavar="LAYOUT", help="channels_last (default), contiguous")
    parser.add_argument(
        "--pass", **several, dest="passes", metavar="PASS", help="forward (default), forward+backward, backward"
    )
    parser.add_argument(
        "--peers",
        **several,
        metavar="PEER",
        help="unfold, unfold-compiled, eager, bilinear, dysample; with --device cuda also mmcv, for carafe only "
        "(default: all, mmcv only where it is installed, and unfold-compiled on a GPU only)",
    )
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), or cuda: one NVIDIA GPU")
    parser.add_argument("--targets", action="store_true", help="what is promised of the CPU kernels (minutes)")
    parser.add_argument("--repeat", type=positive, metavar="N", help="with --targets: best of N runs (default: 3)")
    parser.add_argument("--curves", action="store_true", help="FADE over sizes and over channels (minutes)")
    parser.add_argument(
        "--networks", action="store_true", help="SegFormer-B1 with our upsamplers beside transformers' own (a minute)"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="default: 2, or the cores where there is one")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="per peer and case (default: 2)")
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="S", help="seconds to wait for busy processes (default: 0)"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory; on the CPU a process a peer")
    parser.add_argument("--force", action="store_true", help="run beside busy processes; the result is marked")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="with --curves: draw them as .png or .svg")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="only print what --json wrote as Markdown")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="with --tables: put it between the marks of a page")
    parser.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from fadeup.bench.command import bench

    return bench(arguments)
