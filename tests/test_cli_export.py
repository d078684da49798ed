"""`fadeup export`."""

from dataclasses import asdict

import onnxruntime
import pytest
import torch

from fadeup.checkpoint import save_weights
from fadeup.cli import main
from fadeup.export import read_metadata
from fadeup.recipes import Reconstruction


def test_upsampler_with_its_table(tmp_path, capsys):
    path = tmp_path / "m.onnx"
    command = ["export", "nearest,scale=3", str(path), "--channels", "4", "--size", "5", "6", "--seconds", "0.01"]
    assert main(command) == 0
    told = capsys.readouterr().out
    for part in ("18, standard operators only", "decoder (batch, 4, height, width)", "onnxruntime", f"wrote {path}"):
        assert part in told
    assert read_metadata(path)["upsampler"] == "nearest,scale=3"
    assert main(command) == 2
    assert "path must be a new file" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--no-check", "--fixed", "--threads", "1", "--opset", "19"]) == 0
    assert "not compared" in capsys.readouterr().out
    assert read_metadata(path)["inputs"] == {"decoder": [1, 4, 5, 6]}


@pytest.fixture
def run_folder(tmp_path):
    """Untrained weights as `fadeup train` would write them."""
    recipe = Reconstruction()
    about = {"task": recipe.task, "recipe": asdict(recipe), "upsampler": "nearest", "seed": 3, **recipe.description()}
    save_weights(tmp_path / "model.safetensors", recipe.model("nearest"), about)
    return tmp_path


def test_run_folder(run_folder, capsys):
    path = run_folder / "m.onnx"
    assert main(["export", str(run_folder), str(path), "--size", "20", "--seconds", "0"]) == 0
    assert "image (batch, 1, height, width)" in capsys.readouterr().out
    found = read_metadata(path)
    assert (found["task"], found["upsampler"], found["seed"]) == (Reconstruction.task, "nearest", 3)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": torch.rand(1, 1, 28, 31).numpy()})[0].shape == (1, 1, 28, 31)


@pytest.mark.slow
def test_shipped_network_carries_classes_and_normalisation(tmp_path):
    path = tmp_path / "m.onnx"
    assert main(["export", "landcover-bilinear", str(path), "--size", "64", "--no-check"]) == 0
    found = read_metadata(path)
    assert found["task"] == "landcover"
    assert len(found["classes"]) == found["outputs"]["logits"][1]
    assert len(found["mean"]) == len(found["std"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["fade", "m.onnx", "--size", "1", "2", "3"], "--size must be one side, or height and width, got 3 numbers"),
        (["fade", "m.onnx", "--seconds", "-1"], "--seconds must be 0 or more, got -1"),
        (["fade", "m.pt"], "path must end in .onnx, got 'm.pt'"),
        (["fade", "m.onnx", "--opset", "7"], "opset must be 18 to"),
        (["fade,size=3", "m.onnx"], "options of 'fade' must be key=value"),
        (["landcover-fade", "m.onnx", "--channels", "8"], "--channels must be left out for a trained network, got 8"),
        (["fadde", "m.onnx"], "model must be a run folder, a .safetensors file"),
    ],
)
def test_errors(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
