"""Networks and upsamplers as exported programs and as ONNX files, compared with PyTorch before they are written.

    report = export_onnx(model, (image,), "model.onnx")
    read_metadata("model.onnx")["inputs"]                      {"image": ["batch", 3, "height", "width"]}

Needs `pip install "fadeup[export]"`.
"""

from fadeup.export.agreement import Comparison, Timing, open_session, upsampler_inputs
from fadeup.export.file import ExportReport, check_path, describe, export_onnx, read_metadata
from fadeup.export.program import SameConvolution, export_program

__all__ = [
    "Comparison",
    "ExportReport",
    "SameConvolution",
    "Timing",
    "check_path",
    "describe",
    "export_onnx",
    "export_program",
    "open_session",
    "read_metadata",
    "upsampler_inputs",
]
