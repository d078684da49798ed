"""`fadeup export`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fadeup.cli.options import positive

IMAGE_SIDES = (128, 128)
DECODER_SIDES = (32, 32)
SHOWN_OPERATORS = 8


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser(
        "export",
        help="write a trained network or an upsampler as ONNX",
        description="Writes ONNX of standard operators that takes every batch, height and width, once onnxruntime has "
        "given PyTorch's results at three sizes, one of them odd, and says how large and how fast it is beside "
        "PyTorch's. Classes and normalisation are in the file's metadata. A network takes a minute or two.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="run folder, model.safetensors, name of a network that ships with the package, SegFormer of Hugging "
        "Face, or an upsampler such as fade or carafe,kernel_size=3",
    )
    parser.add_argument("out", type=Path, metavar="FILE", help="ends in .onnx")
    parser.add_argument("--opset", type=int, default=18, metavar="N", help="of ONNX, 18 (default) or more")
    parser.add_argument(
        "--size",
        type=positive,
        nargs="+",
        metavar="SIDE",
        help="height and width of the example, a decoder's for an upsampler (default: 128, or 32 for an upsampler)",
    )
    parser.add_argument("--channels", type=positive, metavar="C", help="of an upsampler (default: 256)")
    parser.add_argument("--fixed", action="store_true", help="take a batch of 1 of that size alone")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument("--no-check", action="store_true", help="neither compare with PyTorch nor time")
    parser.add_argument("--threads", type=positive, metavar="N", help="for the times (default: PyTorch's)")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="to time each (default: 2)")
    parser.set_defaults(run=_export)


@dataclass(frozen=True)
class _Exported:
    """What goes into the file."""

    model: Any
    example: tuple[Any, ...]
    output: str
    metadata: dict[str, Any]


def _export(arguments: argparse.Namespace) -> None:
    import torch

    from fadeup.bench.run import thread_count
    from fadeup.export import check_path, export_onnx

    if arguments.seconds < 0:
        raise ValueError(f"--seconds must be 0 or more, got {arguments.seconds:g}")
    if len(arguments.size or ()) > 2:
        raise ValueError(f"--size must be one side, or height and width, got {len(arguments.size)} numbers")
    check_path(arguments.out, arguments.overwrite)  # before a network is loaded
    chosen = _chosen(arguments)
    with thread_count(arguments.threads or torch.get_num_threads()):
        report = export_onnx(
            chosen.model,
            chosen.example,
            arguments.out,
            opset=arguments.opset,
            dynamic=not arguments.fixed,
            check=not arguments.no_check,
            seconds=0 if arguments.no_check else arguments.seconds,
            overwrite=arguments.overwrite,
            output_names=[chosen.output],
            metadata=chosen.metadata,
        )
    _show(report, arguments.model)


def _chosen(arguments: argparse.Namespace) -> _Exported:
    """The model of that name, and an example for it; upsamplers before all else (a folder of that name is `./name`)."""
    from fadeup.export import upsampler_inputs
    from fadeup.upsamplers import ALIASES, UPSAMPLERS, build_upsampler

    name, batch = arguments.model, 1 if arguments.fixed else 2
    if name.partition(",")[0] in (*UPSAMPLERS, *ALIASES):
        upsampler = build_upsampler(name, arguments.channels or 256).eval()
        example = upsampler_inputs(upsampler, _sides(arguments, DECODER_SIDES), batch=batch)
        return _Exported(upsampler, example, "upsampled", {"task": "upsampling", "upsampler": name})
    if arguments.channels:
        raise ValueError(f"--channels must be left out for a trained network, got {arguments.channels}")
    return _trained(name, batch, _sides(arguments, IMAGE_SIDES))


def _sides(arguments: argparse.Namespace, default: tuple[int, int]) -> tuple[int, int]:
    return (arguments.size[0], arguments.size[-1]) if arguments.size else default


def _trained(name: str, batch: int, sides: tuple[int, int]) -> _Exported:
    import torch

    from fadeup.data.transforms import IMAGENET_MEAN, IMAGENET_STD
    from fadeup.export import describe
    from fadeup.models import MattingNet, SegFormer
    from fadeup.predict import load_trained, weights_file

    network: Any
    path = weights_file(name)
    if path is None:
        network = SegFormer.from_pretrained(name)
        about: dict[str, Any] = {"task": "segmentation", "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        about |= {"classes": network.classes}
    else:
        network, _, about = load_trained(path)
    output = "alpha" if isinstance(network, MattingNet) else "logits" if "classes" in about else "reconstruction"
    example = torch.randn(batch, network.in_channels, *sides, generator=torch.Generator().manual_seed(0))
    return _Exported(network, (example,), output, describe(about))


def _show(report: Any, model: str) -> None:
    """What was written, and a table of what was compared."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"{model} as ONNX", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    operators = [f"{name} {count}" for name, count in report.operators.items()]
    more = f" and {len(operators) - SHOWN_OPERATORS} more" if len(operators) > SHOWN_OPERATORS else ""
    table.add_row("opset", f"{report.opset}, standard operators only")
    table.add_row("operators", f"{sum(report.operators.values())}: {', '.join(operators[:SHOWN_OPERATORS])}{more}")
    for kind, values in (("input", report.inputs), ("output", report.outputs)):
        for name, axes in values.items():
            table.add_row(kind, f"{name} ({', '.join(map(str, axes))})")
    table.add_row("size", f"{_size(report.file_bytes)}; PyTorch's weights {_size(report.weights_bytes)}")
    for one in report.comparisons:
        shapes = ", ".join("x".join(map(str, shape)) for shape in one.shapes)
        table.add_row("difference", f"{one.difference:.2g} of at most {one.largest:.3g} for {shapes}")
    if not report.comparisons:
        table.add_row("difference", "not compared")
    for name, time in (("onnxruntime", report.onnxruntime), ("PyTorch", report.pytorch)):
        if time:
            spread = f"{time.median_ms:.3g} ms ({time.q1_ms:.3g} to {time.q3_ms:.3g})"
            table.add_row(name, f"{spread}, {report.threads} {'thread' if report.threads == 1 else 'threads'}")
    console.print(table)
    console.print(f"wrote {report.path}", markup=False, highlight=False, soft_wrap=True)


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
