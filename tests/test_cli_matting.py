"""`fadeup train`, `eval`, `compare` and `data` on matting."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fadeup.cli import main
from fadeup.data.matting import MattingImages
from fadeup.metrics import conn, grad, mse, sad
from fadeup.recipes import MattingFolder

FIELDS = ["weights=None", "channels=8", "crop=32", "batch_size=2", "iterations=2", "largest_kernel=5"]


@pytest.fixture(scope="module")
def run(cutout_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    options = ["--source", cutout_folder, "--out", str(out), "--name", "a", "--no-tensorboard", "--set", *FIELDS]
    assert main(["train", "folder", "--upsampler", "carafe", *options]) == 0
    return out / "a"


def test_a_folder_of_cutouts_is_told_from_one_of_labels(run):
    results = json.loads((run / "results.json").read_text())
    assert results["task"] == "matting-folder"
    assert set(results["scores"]) == {"sad", "mse", "grad", "conn"}
    assert results["upsampler"] == "carafe"
    assert results["parameters"] > 700_000


def test_eval_writes_alphas_and_scores_that_agree(run, tmp_path, capsys):
    assert main(["eval", str(run), "--out", str(tmp_path / "alphas"), "--json", str(tmp_path / "scores.json")]) == 0
    told = json.loads((tmp_path / "scores.json").read_text())
    held = json.loads((run / "results.json").read_text())
    assert told["scores"] == held["scores"]
    assert "SAD" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "alphas" / "scores.csv").open()))
    samples = MattingFolder(source=held["recipe"]["source"]).test_set()
    assert [row["name"] for row in rows] == samples.names
    for row, (_, alpha, trimap) in zip(rows, samples, strict=True):
        stored = np.array(Image.open(tmp_path / "alphas" / f"{row['name']}.png"))
        assert stored.dtype == np.uint8
        for name, metric in (("sad", sad), ("mse", mse), ("grad", grad), ("conn", conn)):
            assert float(row[name]) == pytest.approx(metric(stored, alpha.numpy(), trimap.numpy()), rel=1e-6)
    for name, value in told["scores"].items():
        assert value == pytest.approx(np.mean([float(row[name]) for row in rows]), rel=1e-6)


def test_eval_keeps_what_is_there_unless_asked(run, tmp_path, capsys):
    (tmp_path / "scores.csv").write_text("mine")
    assert main(["eval", str(run), "--out", str(tmp_path)]) == 2
    assert (
        "must not hold these pictures' results, got scores.csv and 0 more; use --overwrite" in capsys.readouterr().err
    )
    assert (tmp_path / "scores.csv").read_text() == "mine"
    assert main(["eval", str(run), "--out", str(tmp_path), "--overwrite", "--test-images", "1"]) == 0
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 2


def test_eval_on_another_matting_set(run, tmp_path, cutout_folder, capsys):
    assert main(["data", "matting-test", str(tmp_path / "set" / "test"), "--task", "matting-folder", "--source",
                 cutout_folder]) == 0  # fmt: skip
    assert "composites in" in capsys.readouterr().out
    arguments = ["eval", str(run), "--data", "matting-folder", "--source", str(tmp_path / "set")]
    assert main([*arguments, "--json", str(tmp_path / "scores.json")]) == 0
    told = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert told == json.loads((run / "results.json").read_text())["scores"]
    assert main(["eval", str(run), "--data", "landcover"]) == 2
    assert "--data must be 'matting-folder' for" in capsys.readouterr().err


def test_out_is_for_matting_alone(tmp_path, capsys):
    options = ["--epochs", "1", "--train-images", "20", "--test-images", "10", "--no-tensorboard"]
    assert main(["train", "reconstruction", "--out", str(tmp_path), "--name", "r", *options]) == 0
    assert main(["eval", str(tmp_path / "r"), "--out", str(tmp_path / "x")]) == 2
    assert "--out must be left out for reconstruction" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_data_writes_composition_1k_s_layout_and_refuses_a_full_folder(cutout_folder, tmp_path, capsys):
    command = ["data", "matting-test", str(tmp_path / "t"), "--task", "matting-folder", "--source", cutout_folder]
    assert main(command) == 0
    held, made = MattingFolder(source=cutout_folder).test_set(), MattingImages(tmp_path / "t")
    assert made.names == sorted(held.names)
    for name, sample in zip(made.names, made, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(sample, held[held.names.index(name)], strict=True))
    assert main(command) == 2
    assert "must be a new or empty folder" in capsys.readouterr().err
    assert main(["data", "matting-test", str(tmp_path / "u"), "--task", "camvid"]) == 2
    assert "--task must be one of cutouts, composition1k, matting-folder, got 'camvid'" in capsys.readouterr().err


def test_compare_keeps_networks_that_predict_as_the_row_says(cutout_folder, tmp_path, capsys):
    command = ["compare", "folder", "--source", cutout_folder, "--seeds", "0", "--upsamplers", "nearest", "--baseline",
               "nearest", "--weights", "--out", str(tmp_path), "--name", "c", "--set", *FIELDS]  # fmt: skip
    assert main(command) == 0
    assert "SAD" in capsys.readouterr().out
    assert (tmp_path / "c" / "report.html").stat().st_size > 10_000
    assert main(["eval", str(tmp_path / "c" / "weights" / "nearest-seed0.safetensors"), "--json",
                 str(tmp_path / "s.json")]) == 0  # fmt: skip
    told = json.loads((tmp_path / "s.json").read_text())["scores"]
    (row,) = json.loads((tmp_path / "c" / "results.json").read_text())["rows"]
    assert {name: row[name] for name in told} == pytest.approx(told, rel=1e-5)


def test_matting_names_the_cutouts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fadeup.data.cutouts.SHARE", tmp_path)
    assert main(["compare", "matting", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "apt-get install tuxpaint-stamps-default" in error
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_file_is_named_or_passed_over_and_told(cutout_folder, tmp_path, capsys):
    import shutil

    root = tmp_path / "data"
    shutil.copytree(cutout_folder, root)
    held = replace(MattingFolder(), source=str(root)).ingredients()[0][0].color
    held.write_bytes(held.read_bytes()[:200])
    options = ["--source", str(root), "--out", str(tmp_path), "--no-tensorboard", "--upsampler", "nearest", "--set"]
    fields = [*FIELDS, "iterations=8"]
    assert main(["train", "folder", *options, *fields]) == 2
    assert held.name in capsys.readouterr().err
    assert main(["train", "folder", "--name", "b", *options, *fields, "skip_unreadable=True"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"1 file(s) could not be read and were passed over: {held.name}" in told.replace(str(held), held.name)
