"""`fadeup predict`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fadeup.cli.options import check_device, positive, progress_bar

SHOWN_CLASSES = 3


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser("predict", help="use a trained network on photographs")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    segment = kinds.add_parser(
        "segment",
        help="a class for every pixel",
        description="Writes NAME.label.png, an indexed PNG whose values are the classes, and NAME.overlay.png, the "
        "photograph with their colours over it, for each photograph, in its own size. A photograph that cannot be "
        "read is named and stops no other; the exit code is 1 then.",
    )
    segment.add_argument("photos", nargs="+", metavar="PHOTO", help="files, or folders of them")
    segment.add_argument(
        "--model", required=True, metavar="MODEL", help="run folder, model.safetensors, or a SegFormer of Hugging Face"
    )
    segment.add_argument("--out", type=Path, default=Path("predictions"), help="folder (default: predictions)")
    segment.add_argument("--overwrite", action="store_true", help="replace results of an earlier run")
    segment.add_argument("--opacity", type=float, default=0.5, metavar="PART", help="of the colours (default: 0.5)")
    segment.add_argument(
        "--resize",
        type=positive,
        metavar="SHORT_SIDE",
        help="size at which the network sees photographs (default: as in training; 512 for Hugging Face)",
    )
    segment.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    segment.set_defaults(run=segment_all)


def segment_all(arguments: argparse.Namespace) -> int:
    """One photograph after the other; 1 where one failed."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn

    from fadeup.predict import PhotoResult, find_photos, load_segmenter, segment_photos

    check_device(arguments.device)
    photos = find_photos(arguments.photos)
    segmenter = load_segmenter(arguments.model, arguments.device, resize=arguments.resize or 0)
    arguments.hint = f"; what is finished is in {arguments.out}"
    console = Console()
    with progress_bar(console, MofNCompleteColumn()) as progress:
        bar = progress.add_task("segmenting", total=len(photos))

        def on_photo(result: PhotoResult) -> None:
            if result.error:
                print(f"failed: {result.error}", file=sys.stderr)
            else:
                console.print(_line(result), markup=False, highlight=False, soft_wrap=True)
            progress.advance(bar)

        results = segment_photos(
            segmenter.network,
            photos,
            arguments.out,
            transform=segmenter.transform,
            palette=segmenter.palette,
            classes=segmenter.classes,
            opacity=arguments.opacity,
            overwrite=arguments.overwrite,
            device=arguments.device,
            on_photo=on_photo,
        )
    failed = sum(bool(result.error) for result in results)
    done = f"{len(results) - failed} of {len(results)} photographs labelled, in {arguments.out}"
    console.print(done, markup=False, highlight=False, soft_wrap=True)
    return int(failed > 0)


def _line(result: Any) -> str:
    """The photograph's name, and the classes that cover most of it."""
    shares = list(result.shares.items())
    parts = [f"{name} {100 * share:.1f} %" for name, share in shares[:SHOWN_CLASSES]]
    rest = len(shares) - SHOWN_CLASSES
    return f"{result.photo}: {', '.join(parts)}" + (f" and {rest} more" if rest > 0 else "")
