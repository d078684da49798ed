"""One program, or one ONNX file, for batches and sizes that were not in the example, and what is refused."""

import builtins
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fadeup import build_upsampler
from fadeup.export import (
    SameConvolution,
    export_onnx,
    export_program,
    open_session,
    read_metadata,
    upsampler_inputs,
)
from fadeup.models import Autoencoder, MattingNet, SegFormer
from fadeup.upsamplers import UPSAMPLERS

C = 8
SMALL = {
    "fade": "fade,kernel_size=3",
    "carafe": "carafe+gate,kernel_size=3",
    "sapa": "sapa,kernel_size=3",
    "a2u": "a2u,kernel_size=1",
    "nearest": "nearest+gate",
}
"""Fewer nodes, which the exporter's time goes by; fade_lite has 5 x 5, and a2u's 3 x 3 is exported as a program."""
NAMES = [*(SMALL.get(name, name) for name in UPSAMPLERS), "b1,kernel_size=3", "b3,kernel_size=3"]
OPTIONS = {
    "bilinear": "bilinear,scale=1.5",
    "nearest": "nearest,scale=2.5",
    "dysample": "dysample,style=pl",
    "carafe": "carafe,groups=2,kernel_size=3",
    "deconv": "deconv,scale=3",
}
WITHOUT_ENCODER = [OPTIONS.get(name, name) for name in UPSAMPLERS if not build_upsampler(name, C).reads_encoder]


def agrees(report):
    assert report.difference <= 1e-4
    assert len(report.comparisons) >= 3
    assert any(side % 2 for one in report.comparisons for side in one.shapes[-1][2:])


@pytest.fixture
def traced(monkeypatch):
    """The programs that `export_onnx` makes its files of: each is traced once."""
    programs = []

    def record(*args, **options):
        programs.append(export_program(*args, **options))
        return programs[-1]

    monkeypatch.setattr("fadeup.export.file.export_program", record)
    return programs


def sizes(module):
    """An exact encoder, others exact and odd, and another ratio where the method serves any."""
    inputs = [
        upsampler_inputs(module, (6, 7), encoder=True),
        upsampler_inputs(module, (8, 4), batch=3, encoder=True),
        upsampler_inputs(module, (5, 9), batch=1, encoder=True, odd=True),
    ]
    if not module.works_in_phases:
        inputs.append((torch.randn(1, C, 4, 5), torch.randn(1, C, 13, 7)))
    return inputs


def serves(program, module, cases):
    for inputs in cases:
        with torch.no_grad():
            torch.testing.assert_close(program.module()(*inputs), module(*inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_upsampler_serves_every_size_of_encoder(name, traced, tmp_path):
    """Traced at an exact encoder, which could be taken for a rule, and compared at others."""
    module = build_upsampler(name, C).eval()
    exact, *others = sizes(module)
    report = export_onnx(module, exact, tmp_path / "m.onnx", others=others)
    agrees(report)
    assert report.inputs["encoder"] == ["batch", C, "encoder_height", "encoder_width"]
    assert list(report.outputs) == ["output"]
    (program,) = traced
    serves(program, module, (exact, *others))


@pytest.mark.slow
def test_program_of_a2u_serves_every_size():
    module = build_upsampler("a2u", C).eval()
    exact, *others = sizes(module)
    serves(export_program(module, exact), module, (exact, *others))


@pytest.mark.parametrize("name", WITHOUT_ENCODER)
def test_upsampler_serves_every_size_of_decoder(name, tmp_path):
    module = build_upsampler(name, C)
    report = export_onnx(module, upsampler_inputs(module, (6, 7), encoder=False), tmp_path / "m.onnx")
    assert report.difference <= 1e-4
    assert report.inputs == {"decoder": ["batch", C, "height", "width"]}


def test_pooling_half_of_a2u_and_indexnet(tmp_path):
    class Pooling(nn.Module):
        def __init__(self):
            super().__init__()
            self.a2u, self.indexnet = (
                build_upsampler("a2u", C, pooling=True, kernel_size=1),
                build_upsampler("indexnet", C),
            )

        def forward(self, image):
            return self.a2u.pool(image), self.indexnet.pool(image)

    report = export_onnx(Pooling(), (torch.randn(2, C, 13, 18),), tmp_path / "m.onnx")
    assert list(report.outputs) == ["output_0", "output_1"]
    agrees(report)


@pytest.mark.parametrize("opset", [18, 20])
def test_file_is_of_the_opset_with_names_and_nothing_of_this_machine(opset, tmp_path):
    path = tmp_path / "m.onnx"
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU())
    about = {"classes": ["sky", "Bäume"], "mean": [0.5, 0.25], "none": None}
    report = export_onnx(
        model, (torch.randn(2, 3, 33, 20),), path, opset=opset, output_names=["logits"], metadata=about, seconds=0.01
    )
    assert report.opset == opset
    assert {one.domain: one.version for one in onnx.load(path).opset_import}[""] == opset
    assert report.operators["Conv"] == 1
    assert report.file_bytes == path.stat().st_size
    assert report.weights_bytes == 4 * (4 * 3 * 9 + 4)
    assert report.onnxruntime.median_ms > 0 < report.pytorch.median_ms
    assert report.threads == torch.get_num_threads()
    assert str(tmp_path.root + "work").encode() not in path.read_bytes()
    assert b".py" not in path.read_bytes()
    found = read_metadata(path)
    assert {key: found[key] for key in about} == about
    assert found["outputs"]["logits"][:2] == ["batch", 4]
    assert open_session(path).get_modelmeta().custom_metadata_map["mean"] == json.dumps([0.5, 0.25])


def test_fixed_sizes_and_a_batch_of_one(tmp_path):
    report = export_onnx(nn.AvgPool2d(2), (torch.randn(1, 3, 9, 6),), tmp_path / "m.onnx", dynamic=False)
    assert report.inputs == {"input": [1, 3, 9, 6]}
    assert len(report.comparisons) == 1


def test_model_is_left_as_it_was(tmp_path):
    model = Autoencoder("nearest", channels=(4,))
    model.head.eval()
    modes = [part.training for part in model.modules()]
    export_onnx(model, (torch.randn(1, 1, 12, 10),), tmp_path / "m.onnx")
    assert [part.training for part in model.modules()] == modes


def test_networks_that_take_no_odd_sizes_are_compared_at_multiples(tmp_path):
    class Halves(nn.Module):
        def forward(self, image):
            if image.shape[2] % 32 or image.shape[3] % 32:
                raise RuntimeError("sides must be multiples of 32")
            return F.max_pool2d(image, 2)

    report = export_onnx(Halves(), (torch.randn(1, 3, 32, 64),), tmp_path / "m.onnx")
    assert [one.shapes[0][2:] for one in report.comparisons] == [(32, 64), (128, 96), (64, 96)]


@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (4, 3, 1), (3, 1, 2), (3, 2, 2)])
def test_same_convolution_is_timms(kernel_size, stride, dilation):
    conv2d_same = pytest.importorskip("timm.layers.conv2d_same", reason="needs timm")
    theirs = conv2d_same.Conv2dSame(2, 3, kernel_size, stride=stride, dilation=dilation)
    for size in ((9, 12), (10, 7), (1, 5)):
        x = torch.randn(2, 2, *size)
        assert torch.equal(SameConvolution(theirs)(x), theirs(x))


def test_timms_same_convolutions_are_exported_and_put_back(tmp_path):
    conv2d_same = pytest.importorskip("timm.layers.conv2d_same", reason="needs timm")
    model = nn.Sequential(conv2d_same.Conv2dSame(3, 4, 3, stride=2), conv2d_same.Conv2dSame(4, 4, 5, stride=2))
    agrees(export_onnx(model, (torch.randn(1, 3, 20, 31),), tmp_path / "m.onnx"))
    assert [type(part) for part in model] == [conv2d_same.Conv2dSame] * 2


@pytest.mark.slow
def test_segformer_whose_upsamplers_read_the_encoder(tmp_path):
    """MiT-B1's widths and heads, a block per stage. With fade, which the matting network has, it takes 75 s."""
    b1 = {"hidden_sizes": [64, 128, 320, 512], "num_attention_heads": [1, 2, 5, 8], "depths": [1, 1, 1, 1]}
    model = SegFormer(b1, upsampler="nearest+gate")
    agrees(export_onnx(model, (torch.randn(1, 3, 64, 96),), tmp_path / "m.onnx"))


@pytest.mark.slow
def test_matting_network_with_fade(tmp_path):
    """Untrained it gives alpha in the thousands, to which float32 is not 1e-4: its head is scaled."""
    model = MattingNet("fade")
    model.head[-1].weight.data *= 1e-4  # type: ignore[index]
    agrees(export_onnx(model, (torch.randn(1, 4, 64, 96),), tmp_path / "m.onnx"))


class Fixing(nn.Module):
    """Takes every size, but computes with that of the example."""

    def forward(self, image):
        return image * float(image.shape[2])


class Bordered(nn.Module):
    """A branch on the size, which the graph has on one side of it only."""

    def forward(self, image):
        return image + 1 if image.shape[2] > 40 else image


IMAGE = torch.zeros(2, 3, 12, 14)


@pytest.mark.parametrize(
    ("model", "example", "options", "message"),
    [
        (nn.ReLU(), (IMAGE,), {"opset": 17}, r"opset must be 18 to \d+, which the installed onnx knows, got 17"),
        (nn.ReLU(), (IMAGE,), {"opset": 99}, r"opset must be 18 to \d+, .* got 99"),
        (nn.ReLU(), (), {}, "example must be a tuple of tensors, the model's inputs, got none"),
        (nn.ReLU(), ("image",), {}, "example must be a tuple of tensors, the model's inputs, got str"),
        (nn.ReLU(), (IMAGE.double(),), {}, r"example must be float32, got torch.float64; .* model.float\(\)"),
        (nn.Bilinear(3, 3, 2), (torch.zeros(2, 3), torch.zeros(2, 3)), {}, "others must be given for a model of 2"),
        (nn.ReLU(), (IMAGE,), {"output_names": ["a", "b"]}, r"output_names must be 1, .* got \['a', 'b'\]"),
        (nn.ReLU(), (IMAGE,), {"output_names": ["input"]}, "output_names must differ from the inputs' names"),
        (Fixing(), (IMAGE,), {}, "model must take every batch, height and width, got Fixing.*dynamic=False"),
        (Bordered(), (IMAGE,), {}, "got Bordered, which fixes them: for .* a result is off by 1, more"),
    ],
)  # fmt: skip
def test_errors_name_the_rule_and_write_nothing(model, example, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(model, example, tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_program_needs_sizes_that_are_no_constants():
    with pytest.raises(ValueError, match=r"example must be at least 2 x 2 in height and width, got \(2, 3, 1, 14\)"):
        export_program(nn.ReLU(), (IMAGE[:, :, :1],))


def test_path_must_be_new_and_of_onnx(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"path must be a new file, got .*m.onnx, which exists; set overwrite"):
        export_onnx(nn.ReLU(), (IMAGE,), path)
    assert path.read_text() == "mine"
    export_onnx(nn.ReLU(), (IMAGE,), path, overwrite=True, check=False)
    assert read_metadata(path)["inputs"] == {"input": ["batch", 3, "height", "width"]}
    with pytest.raises(ValueError, match=r"path must end in .onnx, got 'm.pt'"):
        export_onnx(nn.ReLU(), (IMAGE,), "m.pt")
    with pytest.raises(FileNotFoundError, match="path must be in a folder that exists"):
        export_onnx(nn.ReLU(), (IMAGE,), tmp_path / "none" / "m.onnx")


def test_metadata_of_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        read_metadata(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="path must be an ONNX file, got"):
        read_metadata(tmp_path / "m.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package_says_how_to_install(package, tmp_path, monkeypatch):
    found = builtins.__import__
    real = __import__("importlib").import_module

    def without(name, *rest):
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr("fadeup.models.weights.importlib.import_module", without)
    with pytest.raises(ModuleNotFoundError, match=rf"{package} must be installed .*pip install 'fadeup\[export\]'"):
        export_onnx(nn.ReLU(), (IMAGE,), tmp_path / "m.onnx")
    assert builtins.__import__ is found


def test_session_takes_what_numpy_has(tmp_path):
    export_onnx(nn.ReLU(), (IMAGE,), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"input": -np.ones((1, 3, 5, 7), np.float32)})
    assert result.shape == (1, 3, 5, 7)
    assert not result.any()
