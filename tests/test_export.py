"""What docs/export.md promises: one program, or one ONNX file, for batches and sizes that were not in the example."""

import onnxruntime
import pytest
import torch
from torch.export import Dim

from fadeup import build_upsampler

DYNAMIC = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
ANY_RATIO = ["fade", "fade_lite", "sapa", "nearest", "bilinear", "b3"]
WITHOUT_ENCODER = ["carafe", "dysample", "deconv", "pixel_shuffle", "nearest", "bilinear"]
TWICE = ["indexnet", "max_unpool", "carafe+gate"]
C = 8


def maps(batch, size, out_size):
    return torch.rand(batch, C, *size), *([torch.rand(batch, C, *out_size)] if out_size else [])


CASES = {
    "any ratio": (ANY_RATIO, [(2, (9, 11), (33, 25)), (1, (8, 8), (16, 16)), (3, (5, 7), (9, 13))]),
    "without encoder": (WITHOUT_ENCODER, [(2, (9, 11), None), (1, (8, 8), None), (3, (5, 7), None)]),
    "twice": (TWICE, [(2, (9, 11), (18, 22)), (1, (8, 8), (16, 16)), (3, (5, 7), (10, 14))]),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (names, _) in CASES.items() for name in names])
def test_exported_once_serves_every_batch_and_size(kind, name, tmp_path):
    module = build_upsampler(name, C).eval()
    example, *others = [maps(*shape) for shape in CASES[kind][1]]
    program = torch.export.export(module, example, dynamic_shapes=(DYNAMIC,) * len(example), strict=False)
    torch.onnx.export(program, (), tmp_path / "m.onnx", dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for inputs in (example, *others):
        with torch.no_grad():
            expected = module(*inputs)
            torch.testing.assert_close(program.module()(*inputs), expected, atol=1e-6, rtol=1e-5)
        (result,) = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
        torch.testing.assert_close(torch.from_numpy(result), expected, atol=1e-5, rtol=1e-5)
