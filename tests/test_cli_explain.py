"""`fadeup explain`: figures of a shipped network on a photograph, and of runs that kept snapshots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fadeup import visualize
from fadeup.cli import main
from fadeup.data.landcover import ASSETS
from fadeup.predict import shipped

PHOTO = str(ASSETS / "band01-row1.jpg")


@pytest.fixture
def runs(tmp_path):
    """Two run folders with snapshots of two steps."""
    random = np.random.default_rng(0)
    for name in ("fade", "carafe"):
        (tmp_path / name / "snapshots").mkdir(parents=True)
        for step in (1, 20):
            arrays = {f"{kind}.0": random.random((6, 8)) for kind in ("feature", "gradient")}
            np.savez(tmp_path / name / "snapshots" / f"step{step:06d}.npz", **arrays)
    return [str(tmp_path / "fade"), str(tmp_path / "carafe")]


def test_gates_and_kernels_of_a_photograph(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["explain", PHOTO, "--point", "60", "100", "--out", str(out)]) == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ["gates.png", *(f"kernels-head.upsamplers.{i}.png" for i in range(6))]
    assert capsys.readouterr().out.splitlines() == [f"wrote {out / name}" for name in names]
    assert Image.open(out / "gates.png").size[0] > 1000


@pytest.mark.skipif("matting-fade" not in shipped(), reason="needs the matting network that ships")
def test_a_matting_network_with_its_trimap(tmp_path):
    trimap = np.full((70, 90), 128, np.uint8)
    trimap[:20], trimap[50:] = 0, 255
    Image.fromarray(trimap).save(tmp_path / "trimap.png")
    photo = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    arguments = [str(tmp_path / "photo.png"), "--trimap", str(tmp_path / "trimap.png"), "--svg"]
    assert main(["explain", *arguments, "--out", str(tmp_path / "out")]) == 0
    assert b"<svg" in (tmp_path / "out" / "gates.svg").read_bytes()


def test_features_and_gradients_over_training(runs, tmp_path):
    assert main(["explain", "--runs", *runs, "--out", str(tmp_path / "out")]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["feature.gif", "feature.png", "gradient.gif", "gradient.png"]
    assert Image.open(tmp_path / "out" / "feature.gif").n_frames == 2


def test_figures_of_an_earlier_run_are_replaced_only_where_asked(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["explain", "--runs", runs[0], "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main(["explain", "--runs", *runs, "--out", str(out)]) == 2
    assert "--out must be without feature.png, got" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.iterdir()}
    assert main(["explain", "--runs", *runs, "--out", str(out), "--overwrite"]) == 0
    assert (out / "feature.png").read_bytes() != before[out / "feature.png"]


def test_a_network_without_kernels_or_gates_is_named(monkeypatch, tmp_path, capsys):
    step = visualize.Step("up", "PixelShuffle", torch.ones(1, 2, 3, 4), None, torch.ones(1, 2, 6, 8))
    monkeypatch.setattr(visualize, "watch", lambda network, inputs: [step])
    assert main(["explain", PHOTO, "--out", str(tmp_path / "out")]) == 2
    assert "--model must be a network with kernels or gates, got one with up (PixelShuffle)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PHOTO must be given, or --runs, got neither"),
        ([PHOTO, "--runs", "a"], "PHOTO must be given, or --runs, got both"),
        (["--runs", "a", "--point", "1", "2"], "--point must be given with PHOTO, got [1, 2] without"),
        ([PHOTO, "--picture", "2"], "--picture must be given with --runs, got 2 without"),
        ([PHOTO, "--point", "256", "0"], "--point must be within the photograph's 256 x 256, got 256 0"),
        ([PHOTO, "--model", "landcover-bilinear"], "network must have upsamplers of fadeup that run, got SegFormer"),
        (["--runs", "a", "b/a"], "--runs must be folders of different names, got a, a"),
        (["--runs", "nowhere"], "runs must be folders with snapshots, got nowhere without; fadeup train"),
        (["nothing.jpg"], "nothing.jpg"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(arguments, message, tmp_path, capsys):
    assert main(["explain", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
