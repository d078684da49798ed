"""`fadeup train` and `fadeup eval` on the shipped land-cover tiles and pictures of clothes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fadeup
from fadeup.checkpoint import read_about, save_weights
from fadeup.cli import main
from fadeup.cli.evaluate import class_scores
from fadeup.models import SegFormer
from fadeup.recipes import LandCover

TINY = ["crop=32", "channels=8", "weights=None"]
LAND = ["train", "landcover", "--test-images", "2", "--train-images", "8", "--upsampler", "bilinear"]


def land(out, iterations=3):
    return [*LAND, "--out", str(out), "--set", f"iterations={iterations}", *TINY]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of three steps."""
    out = tmp_path_factory.mktemp("runs")
    extra = ["--evaluate-every", "2", "--snapshot-steps", "1", "--snapshot-layer", "head.fuse"]
    assert main([*land(out), *extra, "--upsampler", "fade", "--seed", "5"]) == 0
    return out / "landcover-fade-seed5"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """The two tiles of a data set of two classes."""
    root = tmp_path_factory.mktemp("two")
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind, shape, high in (("images", (40, 50, 3), 256), ("labels", (40, 50), 2)):
            (root / kind / part).mkdir(parents=True)
            Image.fromarray(rng.integers(0, high, shape, np.uint8)).save(root / kind / part / "a.png")
    (root / "classes.txt").write_text("left\nright\n")
    return root


def scalars(path, name):
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_run_holds_all_that_is_needed_to_use_it(run):
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoint.pt", "config.json", "model.safetensors", "results.json", "snapshots", "tensorboard",
    ]  # fmt: skip
    about, results = read_about(run / "model.safetensors"), json.loads((run / "results.json").read_text())
    assert (about["task"], about["upsampler"], about["seed"]) == ("landcover", "fade", 5)
    assert about["fadeup"] == fadeup.__version__
    assert about["recipe"] | {"scale": (0.75, 1.5)} == {
        **about["recipe"], "iterations": 3, "crop": 32, "channels": 8, "weights": None, "scale": (0.75, 1.5),
    }  # fmt: skip
    assert about["classes"][0] == "water"
    assert about["palette"][0] == [0, 114, 178]
    assert (about["mean"], about["std"]) == ([0.5] * 3, [0.5] * 3)
    assert about["parameters"] == sum(p.numel() for p in LandCover(channels=8).build("fade", 6, None).parameters())
    assert (results["steps"], results["processes"], results["weights"]) == (3, 1, None)
    assert "from scratch" in results["trained"]
    assert results["environment"].keys() >= {"torch", "commit"}
    assert results["scores"] == about["scores"]
    present = [row["miou"] for row in results["classes"] if row["miou"] is not None]
    assert results["scores"]["miou"] == pytest.approx(sum(present) / len(present))
    assert sum(row["share"] for row in results["classes"]) == pytest.approx(100)
    assert [path.name for path in (run / "snapshots").iterdir()] == ["step000001.npz"]


def test_tensorboard_gets_every_step_and_every_score(run):
    losses, results = scalars(run, "loss"), json.loads((run / "results.json").read_text())
    assert [step for step, _ in losses] == [1, 2, 3]
    assert losses[-1][1] == pytest.approx(results["final_loss"])
    for name in ("learning rate", "gradient norm"):
        assert [step for step, _ in scalars(run, name)] == [1, 2, 3]
    scores = scalars(run, "biou")
    assert [step for step, _ in scores] == [2, 3]
    assert scores[-1][1] == pytest.approx(results["scores"]["biou"])


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_eval_gives_the_scores_of_the_training(run, name, tmp_path, capsys):
    assert main(["eval", str(run / name), "--json", str(tmp_path / "scores.json")]) == 0
    given, results = (json.loads(path.read_text()) for path in (tmp_path / "scores.json", run / "results.json"))
    assert given["scores"] == results["scores"]
    assert given["classes"] == results["classes"]
    out = capsys.readouterr().out
    assert "on 2 test picture(s) of landcover" in out
    assert f"mIoU % {results['scores']['miou']:.2f}" in out
    for row in results["classes"]:
        assert f"{row['name']} " in out
        assert f"{row['share']:.2f}" in out


def test_eval_of_other_pictures(run, capsys):
    assert main(["eval", str(run), "--test-images", "1"]) == 0
    assert "on 1 test picture(s) of landcover" in capsys.readouterr().out


def test_a_finished_run_is_not_trained_again(run, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    again = [*land(run.parent), "--upsampler", "fade", "--seed", "5"]
    assert main(again) == 2
    assert "must be new, got a run; use --resume to go on or choose another --name" in capsys.readouterr().err
    assert main([*again, "--resume"]) == 0
    scores = json.loads(before["results.json"])["scores"]
    finished = f"is finished: mIoU % {scores['miou']:.2f}, boundary IoU % {scores['biou']:.2f}; choose another --name"
    assert finished in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_results_lost_are_made_again_without_training(run, tmp_path):
    copy = tmp_path / run.name
    copy.mkdir()
    for name in ("config.json", "checkpoint.pt"):
        (copy / name).write_bytes((run / name).read_bytes())
    assert main([*land(tmp_path), "--upsampler", "fade", "--seed", "5", "--resume"]) == 0
    assert_same(copy / "model.safetensors", run / "model.safetensors")
    again, first = (json.loads((path / "results.json").read_text()) for path in (copy, run))
    assert (again["scores"], again["seconds"]) == (first["scores"], first["seconds"])


def assert_same(one, other):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_ctrl_c_and_resume_give_the_same_weights(tmp_path, capsys, monkeypatch):
    whole, parts = [*land(tmp_path), "--name", "whole"], [*land(tmp_path), "--name", "parts"]
    assert main(whole) == 0
    loss = LandCover.loss

    def interrupted(self, output, target):
        if calls.append(1) or len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return loss(self, output, target)

    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(LandCover, "loss", interrupted)
        assert main(parts) == 130
    hint = f"interrupted; what is done is kept in {tmp_path / 'parts'}: the same command with --resume goes on"
    assert capsys.readouterr().err.strip() == hint
    assert len(calls) == 2
    assert (tmp_path / "parts" / "checkpoint.pt").exists()
    assert main([*parts, "--resume"]) == 0
    assert_same(tmp_path / "whole" / "model.safetensors", tmp_path / "parts" / "model.safetensors")
    assert scalars(tmp_path / "parts", "loss") == scalars(tmp_path / "whole", "loss")


def start(*arguments, processes=1):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else ()), "-m", "fadeup", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "80"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_weights(tmp_path):
    command = [*land(tmp_path, 25), "--checkpoint-seconds", "0"]
    path = tmp_path / "killed"
    process = start(*command, "--name", "killed")
    deadline = time.monotonic() + 120
    while not (path / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()  # -9
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (path / "model.safetensors").exists()
    # In processes of their own too: after other tests this one did not always round as a fresh one does.
    for more in (("--name", "killed", "--resume"), ("--name", "whole")):
        _, error = (process := start(*command, *more)).communicate(timeout=240)
        assert process.returncode == 0, error
    assert_same(path / "model.safetensors", tmp_path / "whole" / "model.safetensors")
    steps = [step for step, _ in scalars(path, "loss")]
    assert sorted(set(steps)) == steps  # none twice
    assert steps[-1] == 25


@pytest.mark.slow
def test_two_processes_score_as_one(run, tmp_path, monkeypatch):
    command = ["eval", str(run), "--test-images", "3", "--json"]
    assert main([*command, str(tmp_path / "one.json")]) == 0
    process = start(*command, str(tmp_path / "two.json"), processes=2)
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one["scores"] == two["scores"]
    assert one["classes"] == two["classes"]
    assert out.count("boundary IoU %") == 2  # in the line and in the table, of one process
    with monkeypatch.context() as patch:
        patch.setattr("fadeup.engine.evaluation._finished", None)  # all is taken from what the two have kept
        assert main([*command, str(tmp_path / "two.json"), "--resume"]) == 0
    assert json.loads((tmp_path / "two.json").read_text())["scores"] == one["scores"]


@pytest.mark.slow
def test_two_processes_train_into_one_folder_and_end_together(tmp_path):
    command = land(tmp_path)
    process = start(*command, processes=2)
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert out.count("Model: ") == 1
    path = tmp_path / "landcover-bilinear-seed0"
    assert json.loads((path / "results.json").read_text())["processes"] == 2
    assert [step for step, _ in scalars(path, "loss")] == [1, 2, 3]

    process = start(*command, processes=2)  # again without --resume: the main process alone knows, and all end
    _, error = process.communicate(timeout=240)
    assert process.returncode == 1
    assert error.count("must be new, got a run; use --resume to go on") == 1


def test_reconstruction_is_trained_and_scored_too(tmp_path, capsys):
    options = ["--train-images", "40", "--test-images", "12", "--epochs", "1", "--upsampler", "nearest"]
    assert main(["train", "reconstruction", *options, "--out", str(tmp_path), "--no-tensorboard"]) == 0
    path = tmp_path / "reconstruction-nearest-seed0"
    assert not (path / "tensorboard").exists()
    trained = re_scores(capsys.readouterr().out)
    assert main(["eval", str(path)]) == 0
    assert re_scores(capsys.readouterr().out) == trained
    assert main(["eval", str(path), "--data", "landcover"]) == 2
    assert "--data must be 'reconstruction' for" in capsys.readouterr().err
    assert main(["predict", "segment", str(tmp_path), "--model", str(path)]) == 2
    assert "must hold photos" in capsys.readouterr().err


def re_scores(out):
    return next(line for line in out.splitlines() if line.startswith("PSNR dB"))


def test_other_data_is_prepared_as_the_network_expects(run, mirror, capsys, tmp_path):
    assert main(["eval", str(run), "--data", "folder", "--source", str(mirror)]) == 2
    told = f"{run} must have 2 classes as folder has, got 6; train one on it, or choose with --data and --source the"
    assert told in capsys.readouterr().err
    options = ["train", "folder", "--source", str(mirror), "--out", str(tmp_path), "--upsampler", "nearest"]
    assert main([*options, "--set", "iterations=1", "batch_size=1", *TINY, "crop=64"]) == 0
    path = tmp_path / "folder-nearest-seed0"
    assert main(["eval", str(path)]) == 0
    assert "on 1 test picture(s) of folder" in capsys.readouterr().out


def test_classes_without_pixels_have_no_score():
    counts = np.array([[2.0, 0, 1, 4, 0, 2], [1, 0, 0, 4, 0, 2]])
    rows = class_scores(("a", "b", "c"), {"miou": counts, "biou": counts}, (0.5, 0.0, 0.5))
    assert [row["miou"] for row in rows] == [37.5, None, 25.0]
    assert [row["share"] for row in rows] == [50, 0, 50]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["horses"], "task must be one of reconstruction, weizmann, camvid, landcover"),
        (["landcover", "--upsampler", "fad"], "upsampler must be one of"),
        (["landcover", "--source", "nowhere"], "nowhere/tiles.json must be a file, got none"),
        (["landcover", "--checkpoint-seconds", "-1"], "--checkpoint-seconds must be 0 or more, got -1.0"),
        (["landcover", "--accumulate", "9"], "accumulate must be from 1 to the batch of 8, got 9"),
        (["landcover", "--snapshot-steps", "1"], "snapshot_layer must be a layer of the network, such as head."),
        (["landcover", "--set", "precision=float16"], "precision must be float32 or bfloat16 on the CPU"),
        (["landcover", "--device", "warp"], "--device must be one that torch can use here, got 'warp': "),
        (["landcover", "--out", "/proc/none"], "must be a folder that can be written"),
        (["landcover", "--name", "/tmp/x"], "--name must be a name within runs, got '/tmp/x'; --out is the folder"),
    ],
)
def test_bad_arguments_of_train(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fadeup train: ")
    assert not list(tmp_path.glob("runs/*"))  # no folder of a run that never began


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "model must be a run folder, a .safetensors file or a SegFormer of Hugging Face, got 'none', which"),
        (["folder/none"], "got 'folder/none', which does not exist"),
        (["folder"], "got 'folder', without model.safetensors; fadeup train writes it when it has finished"),
        (["none.safetensors"], "none.safetensors must be a file of weights, got no such file; fadeup train writes one"),
        (["folder/notes.txt"], "got 'folder/notes.txt', another kind of file"),
        (["folder/bad.safetensors"], "folder/bad.safetensors must be weights that fadeup train wrote"),
        (["them/segformer"], "--data must be given with a network of Hugging Face, got none for them/segformer"),
        (["RUN", "--data", "horses"], "--data must be one of reconstruction, weizmann"),
        (["RUN", "--data", "reconstruction"], "--data must be a segmentation data set for"),
        (["RUN", "--source", "nowhere"], "nowhere/tiles.json must be a file, got none"),
        (["RUN", "--device", "warp"], "--device must be one that torch can use here"),
        (["RUN", "--json", "nowhere/a.json"], "--json must be in a folder that exists, got nowhere/a.json"),
    ],
)
def test_bad_arguments_of_eval(arguments, message, run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("notes.txt", "bad.safetensors"):
        (tmp_path / "folder" / name).write_text("{}")
    assert main(["eval", *(str(run) if word == "RUN" else word for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fadeup eval: ")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"scores": {"miou": 1}}'])
def test_damaged_results_are_named(run, content, tmp_path, capsys):
    copy = tmp_path / run.name
    copy.mkdir()
    (copy / "config.json").write_bytes((run / "config.json").read_bytes())
    for name in ("model.safetensors", "results.json"):
        (copy / name).write_text(content)
    assert main([*land(tmp_path), "--upsampler", "fade", "--seed", "5", "--resume"]) == 2
    assert "results.json must be JSON with the network's scores, got" in capsys.readouterr().err
    assert "delete it to score the network again" not in (copy / "results.json").read_text()


def test_a_full_disk_at_the_end_keeps_the_checkpoint(tmp_path, capsys, monkeypatch):
    def full(path, model, about):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fadeup.predict.trained.save_weights", full)
        assert main(land(tmp_path)) == 2
    assert "model.safetensors must be a file that can be written, got [Errno 28] No space" in capsys.readouterr().err
    path = tmp_path / "landcover-bilinear-seed0"
    assert (path / "checkpoint.pt").exists()
    assert not (path / "results.json").exists()
    assert main([*land(tmp_path), "--resume"]) == 0
    assert (path / "results.json").exists()


def test_weights_of_another_version_are_refused(tmp_path, capsys):
    model = SegFormer("tf_efficientnet_lite0", 2, "nearest", channels=8)
    for about in ({"task": "landcover", "recipe": {"colour": 1}}, {"task": "horses", "recipe": {}}, {}):
        save_weights(tmp_path / "model.safetensors", model, about | {"fadeup": "0.0.9"})
        assert main(["eval", str(tmp_path)]) == 2
        assert "must be of a recipe of this version, got one of fadeup 0.0.9: " in capsys.readouterr().err
