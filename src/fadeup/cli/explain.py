"""`fadeup explain`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from fadeup.cli.options import check_device, save

SEGMENTER, MATTER = "landcover-fade", "matting-fade"
"""The networks that are used where none is named: of those that ship, the ones with a gate."""


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser(
        "explain",
        help="figures of what the upsamplers of a trained network do",
        description="Of a photograph: gates.png, the gate of every stage, and kernels-STAGE.png, the kernels above the "
        "decoder point under a place of the photograph. Of trainings that kept snapshots: feature.png and "
        "gradient.png, a layer over the steps, a row for each run, and the same as .gif.",
    )
    parser.add_argument("photo", nargs="?", metavar="PHOTO", help="a photograph")
    parser.add_argument(
        "--model", metavar="MODEL", help=f"as in fadeup predict (default: {SEGMENTER}, or {MATTER} with --trimap)"
    )
    parser.add_argument("--trimap", metavar="FILE", help="of the photograph, for a matting network")
    parser.add_argument(
        "--point",
        nargs=2,
        type=int,
        metavar=("ROW", "COLUMN"),
        help="a pixel of the photograph (default: its middle)",
    )
    parser.add_argument("--runs", nargs="+", type=Path, metavar="RUN", help="run folders with snapshots, not a photo")
    parser.add_argument("--picture", type=int, metavar="N", help="with --runs: number of the test picture")
    parser.add_argument("--out", type=Path, default=Path("explained"), help="folder (default: explained)")
    parser.add_argument("--svg", action="store_true", help="figures as .svg, not .png")
    parser.add_argument("--overwrite", action="store_true", help="replace figures of an earlier run")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.set_defaults(run=explain)


def explain(arguments: argparse.Namespace) -> None:
    """Make all figures, then write them; nothing is written where one cannot be made."""
    _check(arguments)
    files = _of_runs(arguments) if arguments.runs else _of_photo(arguments)
    there = [path for path in (arguments.out / name for name in files) if path.exists()]
    if there and not arguments.overwrite:
        raise ValueError(f"--out must be without {there[0].name}, got {arguments.out}; --overwrite replaces figures")
    from fadeup.checkpoint import write

    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        save(arguments.out / name, partial(write, content=content))


def _check(arguments: argparse.Namespace) -> None:
    if (arguments.photo is None) == (arguments.runs is None):
        got = "neither" if arguments.photo is None else "both"
        raise ValueError(f"PHOTO must be given, or --runs, got {got}")
    misplaced = ("model", "trimap", "point") if arguments.runs else ("picture",)
    for name in misplaced:
        if getattr(arguments, name) is not None:
            other = "PHOTO" if arguments.runs else "--runs"
            raise ValueError(f"--{name} must be given with {other}, got {getattr(arguments, name)} without")
    check_device(arguments.device)


def _of_runs(arguments: argparse.Namespace) -> dict[str, bytes]:
    from fadeup.report import figure_bytes
    from fadeup.visualize import figure_snapshots, gif_snapshots, read_snapshots

    names = [run.name for run in arguments.runs]
    if len(set(names)) < len(names):
        raise ValueError(f"--runs must be folders of different names, got {', '.join(names)}")
    runs, ending = {run.name: read_snapshots(run) for run in arguments.runs}, "svg" if arguments.svg else "png"
    files = {}
    for kind in ("feature", "gradient"):
        files[f"{kind}.{ending}"] = figure_bytes(figure_snapshots(runs, kind, arguments.picture), ending)
        files[f"{kind}.gif"] = gif_snapshots(runs, kind, arguments.picture)
    return files


def _of_photo(arguments: argparse.Namespace) -> dict[str, bytes]:
    from fadeup.data.labelled import read_photo
    from fadeup.report import figure_bytes
    from fadeup.visualize import figure_gates, figure_kernels, watch

    photo, ending = read_photo(arguments.photo), "svg" if arguments.svg else "png"
    height, width = photo.shape[1:]
    row, column = arguments.point or (height // 2, width // 2)
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"--point must be within the photograph's {height} x {width}, got {row} {column}")
    network, inputs, shown = _prepared(arguments, photo)
    steps = watch(network, inputs[None].to(arguments.device))
    point = (row + 0.5) / shown.shape[0], (column + 0.5) / shown.shape[1]
    files = {}
    if any(step.gate() is not None for step in steps):
        files[f"gates.{ending}"] = figure_bytes(figure_gates(steps, shown), ending)
    for step in (step for step in steps if step.has_kernels):
        files[f"kernels-{step.name}.{ending}"] = figure_bytes(figure_kernels(step, point, shown), ending)
    if not files:
        without = ", ".join(f"{step.name} ({step.kind})" for step in steps)
        raise ValueError(f"--model must be a network with kernels or gates, got one with {without}")
    return files


def _prepared(arguments: argparse.Namespace, photo: Any) -> tuple[Any, Any, Any]:
    """The network, its input, and the photograph of the input's field of view, `(H, W, 3)`."""
    if arguments.trimap is None:
        from fadeup.predict import default_model, load_segmenter

        segmenter = load_segmenter(arguments.model or default_model(SEGMENTER), arguments.device)
        return segmenter.network, segmenter.transform(photo), photo.movedim(0, 2).numpy()
    from fadeup.predict import default_model, load_matter
    from fadeup.predict.matte import read_guide
    from fadeup.recipes.matting import network_input

    matter = load_matter(arguments.model or default_model(MATTER), arguments.device)
    trimap = read_guide(arguments.trimap, tuple(photo.shape[1:]))
    inputs = network_input(photo, trimap, tuple(matter.mean), tuple(matter.std))
    shown = network_input(photo, trimap, (0.0,) * 3, (1.0,) * 3)[:3]  # padded as the network sees it
    return matter.network, inputs, (255 * shown).round().byte().movedim(0, 2).numpy()
