"""`fadeup predict`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fadeup.cli.options import check_device, natural, positive, progress_bar

SHOWN_CLASSES = 3
SEGMENTER, MATTER = "landcover-fade", "matting-bilinear"
"""The networks that are used where none is named: of those that ship, the ones with the best scores."""


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser("predict", help="use a trained network on photographs")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    _add_segment(kinds)
    _add_matte(kinds)


def _add_segment(kinds: Any) -> None:
    segment = kinds.add_parser(
        "segment",
        help="a class for every pixel",
        description="Writes NAME.label.png, an indexed PNG whose values are the classes, and NAME.overlay.png, the "
        "photograph with their colours over it, for each photograph, in its own size. A photograph that cannot be "
        "read is named and stops no other; the exit code is 1 then.",
    )
    _add_shared(
        segment,
        f"run or shared folder, model.safetensors, or a SegFormer of Hugging Face (default: {SEGMENTER}, which ships "
        "with the package and is for satellite pictures)",
    )
    segment.add_argument("--opacity", type=float, default=0.5, metavar="PART", help="of the colours (default: 0.5)")
    segment.add_argument(
        "--resize",
        type=positive,
        metavar="SHORT_SIDE",
        help="size at which the network sees photographs (default: as in training; 512 for Hugging Face)",
    )
    segment.set_defaults(run=segment_all)


def _add_matte(kinds: Any) -> None:
    matte = kinds.add_parser(
        "matte",
        help="cut things out, with hair and blur",
        description="Writes NAME.alpha.png, how much of each pixel is foreground, and where asked NAME.cutout.png and "
        "NAME.composite.png, for each photograph, in its own size. A trimap says what is background (black), "
        "foreground (white), and to be found out (grey). A photograph that cannot be read is named and stops no "
        "other; the exit code is 1 then.",
    )
    _add_shared(matte, f"run or shared folder, or model.safetensors (default: {MATTER}, which ships with the package)")
    guides = matte.add_mutually_exclusive_group(required=True)
    guides.add_argument("--trimap", metavar="PATH", help="file, or folder with a picture of each photograph's name")
    guides.add_argument("--mask", metavar="PATH", help="the same with rough masks (white is foreground) for trimaps")
    matte.add_argument(
        "--width",
        type=positive,
        metavar="PIXELS",
        help="unknown on either side of the mask's boundary (default: 2 %% of the longer side, 5 at least)",
    )
    matte.add_argument(
        "--cutout",
        action="store_true",
        help="write the foreground in its own colours, RGBA (by pymatting, which takes minutes to start once)",
    )
    matte.add_argument(
        "--background", metavar="FILE_OR_COLOUR", help="write the foreground before a picture, or a colour '#rrggbb'"
    )
    matte.add_argument(
        "--tile",
        type=natural,
        default=0,
        metavar="PIXELS",
        help="compute in squares of this side, such as 1024, where memory does not hold the photograph at once",
    )
    matte.add_argument(
        "--overlap", type=positive, metavar="PIXELS", help="of the squares (default: half their side, 512 at most)"
    )
    matte.set_defaults(run=matte_all)


def _add_shared(parser: argparse.ArgumentParser, model: str) -> None:
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="files, or folders of them")
    parser.add_argument("--model", metavar="MODEL", help=model)
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder (default: predictions)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--overwrite", action="store_true", help="replace results of an earlier run")
    again.add_argument("--resume", action="store_true", help="go on with an interrupted run: finished photographs stay")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")


def segment_all(arguments: argparse.Namespace) -> int:
    """One photograph after the other; 1 where one failed."""
    from fadeup.predict import default_model, find_photos, load_segmenter, segment_photos

    check_device(arguments.device)
    photos = find_photos(arguments.photos)
    model = arguments.model or default_model(SEGMENTER)
    segmenter = load_segmenter(model, arguments.device, resize=arguments.resize or 0)

    def predict(on_photo: Callable[[Any], None]) -> list[Any]:
        return segment_photos(
            segmenter.network,
            photos,
            arguments.out,
            transform=segmenter.transform,
            palette=segmenter.palette,
            classes=segmenter.classes,
            opacity=arguments.opacity,
            overwrite=arguments.overwrite,
            resume=arguments.resume,
            device=arguments.device,
            on_photo=on_photo,
        )

    return _run(predict, len(photos), arguments, ("segmenting", "labelled"), _classes)


def matte_all(arguments: argparse.Namespace) -> int:
    """One photograph after the other; 1 where one failed."""
    from fadeup.predict import default_model, find_guides, find_photos, load_matter, matte_photos

    check_device(arguments.device)
    if arguments.width and not arguments.mask:
        raise ValueError(f"--width must be left out without --mask, got {arguments.width}")
    photos = find_photos(arguments.photos)
    kind = "mask" if arguments.mask else "trimap"
    guides = find_guides(photos, arguments.mask or arguments.trimap, kind)
    matter = load_matter(arguments.model or default_model(MATTER), arguments.device)

    def predict(on_photo: Callable[[Any], None]) -> list[Any]:
        return matte_photos(
            matter,
            photos,
            guides,
            arguments.out,
            masks=bool(arguments.mask),
            width=arguments.width,
            cutout=arguments.cutout,
            background=arguments.background,
            tile=arguments.tile,
            overlap=arguments.overlap,
            overwrite=arguments.overwrite,
            resume=arguments.resume,
            device=arguments.device,
            on_photo=on_photo,
        )

    return _run(predict, len(photos), arguments, ("matting", "matted"), _parts)


def _run(
    predict: Callable[[Callable[[Any], None]], list[Any]],
    count: int,
    arguments: argparse.Namespace,
    words: tuple[str, str],
    summary: Callable[[Any], str],
) -> int:
    """Predict with a progress bar and a line for each photograph; 1 where one failed."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn

    arguments.hint = f"; what is finished is in {arguments.out}: the same command with --resume goes on"
    console = Console()
    with progress_bar(console, MofNCompleteColumn()) as progress:
        bar = progress.add_task(words[0], total=count)

        def on_photo(result: Any) -> None:
            if result.error:
                print(f"failed: {result.error}", file=sys.stderr)
            else:
                told = f"{result.photo}: {summary(result)}" + (" (was there)" if result.resumed else "")
                console.print(told, markup=False, highlight=False, soft_wrap=True)
            progress.advance(bar)

        results = predict(on_photo)
    failed = sum(bool(result.error) for result in results)
    done = f"{len(results) - failed} of {len(results)} photographs {words[1]}, in {arguments.out}"
    console.print(done, markup=False, highlight=False, soft_wrap=True)
    return int(failed > 0)


def _classes(result: Any) -> str:
    """The classes that cover most of the photograph."""
    shares = list(result.shares.items())
    parts = [f"{name} {100 * share:.1f} %" for name, share in shares[:SHOWN_CLASSES]]
    rest = len(shares) - SHOWN_CLASSES
    return ", ".join(parts) + (f" and {rest} more" if rest > 0 else "")


def _parts(result: Any) -> str:
    """How much of the photograph is foreground, and how much was to be found out."""
    return f"foreground {100 * result.covered:.1f} %, {100 * result.unknown:.1f} % was unknown"
