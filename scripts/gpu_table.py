"""Registers, stack and shared memory of the GPU kernels, compiled for A100 and H100 on any machine.

    python scripts/gpu_table.py                                  prints the table
    python scripts/gpu_table.py --json benchmarks/results/gpu_kernels.json --into docs/gpu.md

A forward and a backward pass of each case are launched as they always are, on empty tensors, with a launch that
compiles in place of running: what is compiled is what a user's call would compile. Spilled registers lie on the stack.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from fadeup.bench.tables import insert
from fadeup.kernels import triton as kernels

MARKS = "<!-- kernels:begin -->", "<!-- kernels:end -->"
ARCHITECTURES = 80, 90
CHANNELS, SIDE = 256, 64
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
TYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "TF32": torch.float32,
    "float64": torch.float64,
}
TILED = [(dtype, K, 2, layout) for dtype in ("bfloat16", "TF32") for K in (3, 5) for layout in LAYOUTS] + [
    ("float16", 5, 2, "channels last")
]
GENERAL = [("float32", 5, 2, layout) for layout in LAYOUTS] + [
    ("float32", 3, 2, "channels last"),
    ("bfloat16", 5, 3, "channels last"),
    ("float64", 5, 2, "channels last"),
]
CASES = [(architecture, *case) for architecture in ARCHITECTURES for case in TILED + GENERAL]


class NoGpu:
    """What Triton asks of a driver in order to compile."""

    def __init__(self, architecture: int):
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # kernels are kept by device

    def get_current_stream(self, device: Any = None) -> int:
        return 0


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    if found is None:
        raise RuntimeError(f"cuobjdump must tell registers and stack, got {told!r}")
    return int(found[1]), int(found[2])


@contextmanager
def compiling(architecture: int) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Launches compile, in place of running; what was compiled, and its options."""
    triton.runtime.driver.set_active(NoGpu(architecture))
    launched: list[tuple[Any, dict[str, Any]]] = []

    def launch(kernel: Any, grid: Any, device: torch.device, *arguments: Any, **options: Any) -> None:
        launched.append((kernel.warmup(*arguments, grid=(1,), **options), options))

    before, kernels.launch = kernels.launch, launch
    try:
        yield launched
    finally:
        kernels.launch = before


def compiled(architecture: int, dtype: str, kernel_size: int, ratio: int, layout: str) -> Iterator[dict[str, Any]]:
    """What each kernel of a forward and backward pass with every option takes."""

    def empty(channels: int, side: int) -> torch.Tensor:
        return torch.empty(2, channels, side, side, dtype=TYPES[dtype]).contiguous(memory_format=LAYOUTS[layout])

    taps, out = kernel_size**2, ratio * SIDE
    maps = empty(CHANNELS, SIDE), empty(taps, out), empty(taps, SIDE), empty(CHANNELS, out), empty(1, SIDE)
    torch.backends.cuda.matmul.fp32_precision = "tf32" if dtype == "TF32" else "ieee"
    with compiling(architecture) as launched:
        kernels.forward(*maps)
        kernels.backward(empty(CHANNELS, out), *maps, [True] * 5)
    for kernel, options in launched:
        registers, stack = usage(kernel.asm["cubin"])
        yield {
            "architecture": f"sm_{architecture}",
            "kernels": "tiles" if "TH" in options else "general",
            "kernel": kernel.metadata.name,
            **{"dtype": dtype, "kernel_size": kernel_size, "ratio": ratio, "layout": layout},
            **{"warps": kernel.metadata.num_warps, "registers": registers, "stack": stack},
            "shared": kernel.metadata.shared,
            "tensor_cores": "wgmma" if "wgmma.mma" in kernel.asm["ptx"] else "mma" * ("mma.sync" in kernel.asm["ptx"]),
            "wide_loads": bool(re.search(r"ld\.global\.v4\.b32|cp\.async\.cg", kernel.asm["ptx"])),
        }


def compile_corners() -> int:
    """What the interpreter cannot tell: sizes of one, which Triton takes for constants, absent options, odd addresses.

    How many kernels were compiled.
    """
    corners = ((1, 1, 1), (1, 1, 2), (3, 2, 3), (37, 3, 6))
    only_decoder = [True, False, False, False, False]
    with compiling(80) as launched:
        for dtype, (channels, side, out) in itertools.product((torch.float16, torch.float32), corners):
            decoder, features = torch.empty(1, channels, side, side), torch.empty(1, channels, out, out)
            decoder, features, logits = (x.to(dtype) for x in (decoder, features, torch.empty(1, 9, out, out)))
            if channels == 3:
                both = decoder, features
                decoder, features = (torch.cat([x.new_empty(1), x.flatten()])[1:].view_as(x) for x in both)
            kernels.forward(decoder, logits, None, None, None)
            kernels.backward(features, decoder, logits, None, None, None, [True, out % 2 == 0, False, False, False])
            kernels.window_dot(features, decoder, 3)
            kernels.forward(decoder, logits, None, None, None, raw=True, like=features)
            kernels.backward(features, decoder, logits, None, None, None, only_decoder, raw=True)
    return len(launched)


def markdown(table: dict[str, Any]) -> str:
    """A row for each kernel and case; both architectures beside each other."""
    rows = table["kernels"]
    header = ("kernels", "kernel", "type", "K", "ratio", "layout", "warps")
    both = [f"{name}: {value}" for name in ("A100", "H100") for value in ("registers", "stack", "shared KiB", "matrix")]
    lines = ["| " + " | ".join((*header, *both)) + " |", "|" + "---|" * 7 + "---:|" * len(both)]
    values = ("kernels", "kernel", "dtype", "kernel_size", "ratio", "layout", "warps")
    for _, pair in itertools.groupby(sorted(rows, key=_place), _place):
        a100, h100 = sorted(pair, key=lambda row: row["architecture"])
        cells = [str(a100[name]) for name in values]
        for row in (a100, h100):
            cells += [
                f"{row['registers']}",
                f"{row['stack']}",
                f"{row['shared'] / 1024:.1f}",
                row["tensor_cores"] or "–",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return f"Triton {table['triton']}; {CHANNELS} channels, {SIDE}² and up.\n\n" + "\n".join(lines) + "\n"


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    fixed = ("kernels", "dtype", "kernel_size", "ratio", "layout", "kernel")
    return tuple(row[name] if name != "kernels" else row[name] == "general" for name in fixed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--into", type=Path, metavar="PAGE")
    parser.add_argument("--corners", action="store_true", help="compile small and odd calls, and say how many kernels")
    arguments = parser.parse_args()
    if arguments.corners:
        print(compile_corners())
        return
    table = {"triton": triton.__version__, "kernels": [row for case in CASES for row in compiled(*case)]}
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")
    if arguments.into:
        insert(arguments.into, markdown(table), MARKS)
    if not (arguments.json or arguments.into):
        print(markdown(table), end="")


if __name__ == "__main__":
    main()
