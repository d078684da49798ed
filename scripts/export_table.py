"""The rows of docs/export.md: size, difference and time of exported networks beside PyTorch's.

    OMP_NUM_THREADS=1 python scripts/export_table.py segformer-b1 matting landcover-fade fade a2u

An upsampler has 64 channels and a decoder of 56 x 56, a network a picture of 256 x 256. Each is timed three times for
five seconds, onnxruntime and PyTorch in turns; the medians of the three are given, the fastest first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import fadeup
from fadeup.export import export_onnx, open_session, upsampler_inputs
from fadeup.export.agreement import timed
from fadeup.models import MattingNet, SegFormer
from fadeup.predict import load_trained, shipped, weights_file

REPEATS, SECONDS, SIDE = 3, 5.0, 256


def chosen(name: str) -> tuple[torch.nn.Module, torch.Tensor | None]:
    """The model, and a small picture to trace it with; None for an upsampler."""
    torch.manual_seed(0)
    if name in shipped():
        return load_trained(weights_file(name))[0], torch.randn(1, 4 if name.startswith("matting") else 3, 64, 96)
    if name == "segformer-b1":
        return SegFormer("mit_b1", upsampler="fade"), torch.randn(1, 3, 64, 96)
    if name == "matting":
        model = MattingNet("fade")
        model.head[-1].weight.data *= 1e-4  # untrained, it gives alpha in the thousands
        return model, torch.randn(1, 4, 64, 96)
    return fadeup.build_upsampler(name, 64), None


def row(name: str) -> str:
    model, picture = chosen(name)
    model.eval()
    example = upsampler_inputs(model) if picture is None else (picture,)
    with tempfile.TemporaryDirectory() as folder:
        report = export_onnx(model, example, Path(folder) / "model.onnx")
        session = open_session(report.path)
    inputs = (torch.randn(1, picture.shape[1], SIDE, SIDE),) if picture is not None else ()
    inputs = inputs or upsampler_inputs(model, (56, 56), batch=1)
    rounds = [timed(model, session, inputs, SECONDS) for _ in range(REPEATS)]
    times = []
    for runtime in ("onnxruntime", "pytorch"):
        medians = sorted(one[runtime].median_ms for one in rounds)
        times.append(", ".join(f"{median:.1f}" for median in medians))
    sizes = f"{report.file_bytes / 2**20:.2f} | {report.weights_bytes / 2**20:.2f}"
    return f"| `{name}` | {sizes} | {report.difference:.1e} | {times[0]} | {times[1]} |"


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in sys.argv[1:]:
        print(row(name), flush=True)
