"""Faults that no code causes: kill -9, a full or a read-only disk, a clock that jumps, a process of several that dies.

Disks that fill up under the kernels' build are in kernels/test_native_build.py, a training's in test_cli_train.py.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fadeup.checkpoint import load_checkpoint, save_checkpoint, write
from fadeup.cli import main
from fadeup.compare import RunFolder, compare
from fadeup.journal import Journal, network_digest, sweep
from fadeup.kernels import native
from fadeup.predict import segment_photos
from fadeup.recipes import Reconstruction

SCRIPT = Path(__file__).parent.parent / "scripts" / "faults.py"
PALETTE = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)
YEAR = 365 * 86400
TINY = Reconstruction(train_images=40, test_images=12, epochs=1)
TRAIN = ["train", "reconstruction", "--train-images", "40", "--test-images", "12", "--epochs", "1", "--name", "r",
         "--no-tensorboard", "--upsampler", "bilinear"]  # fmt: skip


class Brightness(nn.Module):
    """Two classes, dark and bright; counts the photos that it has seen."""

    def __init__(self, bias: float = 0.0):
        super().__init__()
        self.bias, self.seen = nn.Parameter(torch.tensor(bias)), 0

    def forward(self, x):
        self.seen += 1
        bright = x.mean(dim=1, keepdim=True) - 0.5 + self.bias
        return torch.cat((-bright, bright), dim=1)


@pytest.fixture
def photos(tmp_path):
    """Three photographs."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    paths = [tmp_path / "photos" / f"{name}.png" for name in "abc"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return paths


def segment(photos, out, model=None, **options):
    model = model or Brightness()
    transform = options.pop("transform", lambda photo: photo / 255)
    return segment_photos(
        model, photos, out, transform=transform, palette=PALETTE, classes=("dark", "bright"), **options
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.png")}


def interrupted(photos, out, after=1, **options):
    """A prediction that ends after so many photographs."""
    count = 0

    def stop(result):
        nonlocal count
        count += 1
        if count == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(photos, out, on_photo=stop, **options)


# ---- kill -9 ----


def test_killed_at_random_moments(tmp_path):
    """A few kills, one of a process of two that train; scripts/faults.py makes hundreds, of other commands too."""
    pytest.importorskip("accelerate", reason="needs fadeup[experiments]")
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    names = ["distributed", "predict"]
    command = [sys.executable, str(SCRIPT), "--kills", "3", "--fresh", "0", "--once", "--commands", *names]
    done = subprocess.run(
        [*command, "--work", str(tmp_path), "--json", str(tmp_path / "faults.json")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "faults.json").read_text())["kills"]
    assert {row["command"]: row["kills"] for row in rows} == {"distributed": 1, "predict": 2}


def test_a_prediction_goes_on_where_it_was_interrupted(photos, tmp_path):
    whole = segment(photos, tmp_path / "whole")
    out, model = tmp_path / "out", Brightness()
    interrupted(photos, out, after=2)
    (out / "b.overlay.png").unlink()  # as if it had ended between the two files
    (out / ".c.label.png.999999999.part").write_bytes(b"half")
    mark = (out / "a.label.png").stat()
    results = segment(photos, out, model, resume=True)
    assert model.seen == 2
    assert [result.resumed for result in results] == [True, False, False]
    assert [result.shares for result in results] == [result.shares for result in whole]
    assert (out / "a.label.png").stat() == mark
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.glob(".*.part"))


def test_a_line_that_was_cut_off_is_no_finished_photograph(photos, tmp_path):
    interrupted(photos, tmp_path / "out", after=2)
    journal = tmp_path / "out" / ".fadeup-segment.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])
    model = Brightness()
    segment(photos, tmp_path / "out", model, resume=True)
    assert model.seen == 2
    model = Brightness()
    assert all(result.resumed for result in segment(photos, tmp_path / "out", model, resume=True))
    assert model.seen == 0


def test_a_photograph_that_changed_is_predicted_again(photos, tmp_path):
    segment(photos, tmp_path / "out")
    status, content = photos[1].stat(), photos[1].read_bytes()
    photos[1].write_bytes(photos[0].read_bytes())
    os.utime(photos[1], ns=(status.st_atime_ns, status.st_mtime_ns))  # no date tells
    model = Brightness()
    results = segment(photos, tmp_path / "out", model, resume=True)
    assert [result.resumed for result in results] == [True, False, True]
    photos[1].write_bytes(content)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": Brightness(1.0)}, "network is '.*' there, '.*' asked"),
        ({"opacity": 0.25}, "opacity is 0.5 there, 0.25 asked"),
        ({"transform": lambda photo: photo / 128}, "transform is '.*' there"),
    ],
)
def test_results_of_another_model_or_other_options_are_not_mixed(options, message, photos, tmp_path):
    interrupted(photos, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=f"must be of the same model and options to resume, got {message}"):
        segment(photos, tmp_path / "out", resume=True, **options)
    assert contents(tmp_path / "out") == before
    with pytest.raises(ValueError, match="set overwrite or choose another folder"):
        segment(photos, tmp_path / "out", **options)
    segment(photos, tmp_path / "out", overwrite=True, **options)


def test_results_of_another_version_are_not_mixed(photos, tmp_path, monkeypatch):
    interrupted(photos, tmp_path / "out")
    monkeypatch.setattr("fadeup.__version__", "9.9")
    with pytest.raises(ValueError, match=r"fadeup is '.*' there, '9.9' asked"):
        segment(photos, tmp_path / "out", resume=True)


def test_results_of_an_unknown_run_are_not_taken_over(photos, tmp_path):
    segment(photos[:2], tmp_path / "out")
    (tmp_path / "out" / "c.label.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"got c\.label\.png of an unknown run; overwrite, or choose another folder"):
        segment(photos, tmp_path / "out", resume=True)
    (tmp_path / "out" / ".fadeup-segment.jsonl").write_text("notes\n")
    with pytest.raises(ValueError, match="must be a journal of finished work, got another file"):
        segment(photos, tmp_path / "out", resume=True)
    with pytest.raises(ValueError, match="resume must be left out with overwrite"):
        segment(photos, tmp_path / "out", resume=True, overwrite=True)
    assert (tmp_path / "out" / "c.label.png").read_bytes() == b"mine"


def test_an_overwriting_that_was_interrupted_goes_on(photos, tmp_path):
    segment(photos, tmp_path / "out", Brightness(0.3))
    interrupted(photos, tmp_path / "out", overwrite=True)
    model = Brightness()
    assert [r.resumed for r in segment(photos, tmp_path / "out", model, resume=True)] == [True, False, False]
    segment(photos, tmp_path / "new")
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_several_sets_of_photographs_share_a_folder(photos, tmp_path):
    segment(photos[:1], tmp_path / "out")
    segment(photos[1:], tmp_path / "out")
    model = Brightness()
    assert all(result.resumed for result in segment(photos, tmp_path / "out", model, resume=True))


def test_digests_tell_networks_apart():
    same, other = (network_digest(nn.Sequential(nn.Upsample(scale_factor=2, mode=m))) for m in ("nearest", "bilinear"))
    assert same != other  # without weights
    layer = nn.Conv2d(2, 3, 1).to(torch.bfloat16)
    before = network_digest(layer)
    assert network_digest(layer) == before
    with torch.no_grad():
        layer.bias[0] += 1
    assert network_digest(layer) != before


def test_each_process_of_a_run_has_a_journal_that_the_next_run_takes_over(tmp_path):
    path, identity = tmp_path / "j.jsonl", {"model": "a"}
    journal = Journal(path, identity, resume=False)
    journal.begin("012")
    journal.add("0", {"psnr": [0.1 + 0.2]})
    journal.add("1", {"psnr": [float("nan")]}, process=1)
    (tmp_path / "j.jsonl.2").write_text('["2", {"psnr": [1')
    again = Journal(path, identity, resume=True)
    assert again.entries["0"] == {"psnr": [0.1 + 0.2]}
    assert np.isnan(again.entries["1"]["psnr"])
    assert again.entries["2"] is None
    again.begin("012")
    assert [entry.name for entry in tmp_path.iterdir()] == ["j.jsonl"]
    assert np.isnan(Journal(path, identity, resume=True).entries["1"]["psnr"])
    anew = Journal(path, identity, resume=False)
    anew.begin("012")
    assert anew.entries == Journal(path, identity, resume=True).entries == dict.fromkeys("012")


def test_what_dead_processes_left_is_swept_and_what_living_ones_write_is_not(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    dead, alive = f".a.png.{process.pid}.part", f".a.png.{os.getpid()}.part"
    for name in (dead, alive, ".b.png.999999999.part", ".a.part", "a.png.999999999.part"):
        (tmp_path / name).touch()
    sweep(tmp_path, {"a.png"})
    assert {path.name for path in tmp_path.iterdir()} == {alive, ".b.png.999999999.part", ".a.part",
                                                          "a.png.999999999.part"}  # fmt: skip
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {alive, ".a.part", "a.png.999999999.part"}
    sweep(tmp_path / "none")


def test_a_run_folder_is_swept_and_keeps_no_checkpoint_of_a_finished_row(tmp_path):
    data, folder = TINY.data(), RunFolder(tmp_path / "run", TINY)
    compare(TINY, data, ["nearest"], [0], folder)
    left = [tmp_path / "run" / "rows" / ".nearest-seed0.npz.999999999.part", folder.checkpoint_path("nearest", 0)]
    for path in left:
        path.write_bytes(b"half")
    compare(TINY, data, ["nearest"], [0], RunFolder(tmp_path / "run", TINY, resume=True))
    assert not any(path.exists() for path in left)


def test_a_killed_build_leaves_nothing_for_good(tmp_path, monkeypatch):
    if native.compiler() is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.setattr(native, "_run", lambda commands: "it fails")
    for name in ("build-999999999-x", f"build-{os.getpid()}-x"):
        (tmp_path / name).mkdir()
    with pytest.raises(native.BuildError, match="it fails"):
        native._compile(native.compiler(), tmp_path, tmp_path / "native.so", "mark", [()])
    assert [path.name for path in tmp_path.iterdir()] == [f"build-{os.getpid()}-x"]


# ---- eval ----


@pytest.fixture(scope="module")
def reconstruction(tmp_path_factory):
    """A finished training whose test pictures are scored three at a time."""
    out = tmp_path_factory.mktemp("runs")
    assert main([*TRAIN, "--out", str(out)]) == 0
    return out / "r"


def scores(path):
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "environment"}


def scored(monkeypatch, stop=99):
    """Batches that are scored from now on; an interruption in place of number `stop`."""
    monkeypatch.setattr(Reconstruction, "test_batch", 3)
    finish, seen = Reconstruction.finish, []

    def watched(self, *arguments):
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append(1)
        return finish(self, *arguments)

    monkeypatch.setattr(Reconstruction, "finish", watched)
    return seen


def test_an_evaluation_goes_on_where_it_was_interrupted(reconstruction, tmp_path, monkeypatch, capsys):
    command = ["eval", str(reconstruction), "--json"]
    with monkeypatch.context() as patch:
        scored(patch)
        assert main([*command, str(tmp_path / "whole.json")]) == 0
    part = [*command, str(tmp_path / "part.json")]
    with monkeypatch.context() as patch:
        scored(patch, stop=2)
        assert main(part) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert not (tmp_path / "part.json").exists()
    journal = tmp_path / ".part.json.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:-4])  # the second batch is not whole: it is made again, whole
    with monkeypatch.context() as patch:
        seen = scored(patch)
        assert main([*part, "--resume"]) == 0
        assert len(seen) == 3
        assert main([*part, "--resume"]) == 0
        assert len(seen) == 3
    assert scores(tmp_path / "part.json") == scores(tmp_path / "whole.json")


def test_evaluations_that_differ_are_not_mixed(reconstruction, tmp_path, capsys):
    command = ["eval", str(reconstruction), "--json", str(tmp_path / "s.json")]
    assert main(command) == 0
    assert main([*command, "--resume", "--test-images", "3"]) == 2
    assert "test_images is 12 there, 3 asked" in capsys.readouterr().err
    assert main(["eval", str(reconstruction), "--resume"]) == 2
    assert "--resume must be given with --out or --json" in capsys.readouterr().err


def test_alphas_that_are_gone_are_made_again(cutout_folder, tmp_path, capsys):
    out = tmp_path / "alphas"
    command = ["eval", "matting-bilinear", "--data", "matting-folder", "--source", cutout_folder, "--out", str(out)]
    command += ["--test-images", "2"]
    assert main(command) == 0
    before = {path.relative_to(out): (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*.png")}
    gone = sorted(before)[0]
    (out / gone).unlink()
    (out / "scores.csv").rename(tmp_path / "scores.csv")
    assert main([*command, "--resume"]) == 0
    after = {path.relative_to(out): (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*.png")}
    assert [name for name in before if before[name] != after[name]] == [gone]
    assert before[gone][0] == after[gone][0]
    assert (out / "scores.csv").read_bytes() == (tmp_path / "scores.csv").read_bytes()
    (out / ".fadeup-eval.jsonl").unlink()
    assert main([*command, "--resume"]) == 2
    assert "must not hold these pictures' results" in capsys.readouterr().err


# ---- disks ----


@pytest.fixture
def disk(tmp_path):
    """A disk of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a disk is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk):
    """Fill a disk to the last byte."""
    with (disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        write_for_ever(file)


def write_for_ever(file):
    while True:
        file.write(bytes(4096))


def test_a_full_disk_ends_a_prediction_that_then_goes_on(photos, disk, tmp_path):
    segment(photos, tmp_path / "whole")
    fill_after = iter((True, False, False))

    def on_photo(result):
        if next(fill_after):
            fill(disk)

    with pytest.raises(OSError, match=r"must be a file that can be written, got .*No space left"):
        segment(photos, disk / "out", on_photo=on_photo)
    assert len(contents(disk / "out")) == 2
    assert not list((disk / "out").glob(".*.part"))
    with pytest.raises(OSError, match=r"must be a folder that can be written, got .*No space left"):
        segment(photos, disk / "out", resume=True)
    (disk / "filler").unlink()
    assert [r.resumed for r in segment(photos, disk / "out", resume=True)] == [True, False, False]
    assert contents(disk / "out") == contents(tmp_path / "whole")


def test_a_full_disk_keeps_the_last_checkpoint(disk):
    save_checkpoint(disk / "c.pt", {"a": 1}, {"x": torch.ones(3)})
    fill(disk)
    with pytest.raises(OSError, match="No space left on device; the one before it is kept"):
        save_checkpoint(disk / "c.pt", {"a": 1}, {"x": torch.ones(2**18)})
    assert torch.equal(load_checkpoint(disk / "c.pt", {"a": 1})["x"], torch.ones(3))
    assert not list(disk.glob(".*.part"))


def test_a_full_disk_ends_an_evaluation_that_then_goes_on(reconstruction, disk, capsys):
    path = disk / "s.json"
    fill(disk)
    command = ["eval", str(reconstruction), "--json", str(path)]
    assert main(command) == 2
    assert "must be a file that can be written, got [Errno 28] No space left" in capsys.readouterr().err
    (disk / "filler").unlink()
    assert main([*command, "--resume"]) == 0
    assert scores(path)["images"] == 12


def test_a_read_only_disk_is_named_before_anything_is_computed(photos, disk, reconstruction, tmp_path, capsys):
    segment(photos[:1], disk / "out")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    model = Brightness()
    with pytest.raises(OSError, match=r"out must be a folder that can be written, got .*Read-only"):
        segment(photos, disk / "out", model, resume=True)
    assert model.seen == 0
    for command in (
        [*TRAIN, "--out", str(disk)],
        ["eval", str(reconstruction), "--json", str(disk / "s.json")],
        ["compare", "reconstruction", "--train-images", "40", "--test-images", "12", "--out", str(disk)],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "can be written, got [Errno 30] Read-only file system" in error
        assert str(disk) in error


def test_writing_leaves_nothing_behind_where_it_fails(tmp_path, monkeypatch):
    write(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "a", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


# ---- clocks ----


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_a_clock_that_jumps_changes_no_training_and_no_prediction(jump, reconstruction, photos, tmp_path, monkeypatch):
    true, calls = time.time, [0]

    def jumping():
        calls[0] += 1
        return true() + jump * (calls[0] % 3)

    segment(photos, tmp_path / "whole")
    monkeypatch.setattr(time, "time", jumping)
    assert main([*TRAIN[:-3], *TRAIN[-2:], "--out", str(tmp_path), "--checkpoint-seconds", "0"]) == 0
    assert calls[0] > 3  # TensorBoard dates its events
    one, other = ((place / "model.safetensors").read_bytes() for place in (tmp_path / "r", reconstruction))
    assert one == other
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert 0 < results["seconds"] < 300
    interrupted(photos, tmp_path / "out")
    for path in (*photos, *(tmp_path / "out").iterdir()):
        os.utime(path, (true() + jump, true() + jump))  # a disk that was written by such a clock
    assert [r.resumed for r in segment(photos, tmp_path / "out", resume=True)] == [True, False, False]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# ---- one process of several ----


def test_a_worker_that_is_killed_ends_the_training_which_then_goes_on(tmp_path, reconstruction, capsys, monkeypatch):
    from fadeup.cli.train import Watch

    on_step, killed = Watch.on_step, []

    def kill_the_worker(self, step, *arguments):
        on_step(self, step, *arguments)
        if step == 2 and not killed:  # the error is raised at once, perhaps before this step's checkpoint is whole
            killed.extend(multiprocessing.active_children())
            for child in killed:
                os.kill(child.pid, signal.SIGKILL)
                child.join(30)

    command = [*TRAIN, "--out", str(tmp_path), "--checkpoint-seconds", "0", "--train-images", "640", "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_step", kill_the_worker)
        assert main(command) == 2
    assert killed
    error = capsys.readouterr().err
    assert "workers must live as long as the training; the system ends them where memory is short: take fewer" in error
    assert "got DataLoader worker (pid" in error
    assert (tmp_path / "r" / "checkpoint.pt").exists()
    assert main([*command, "--resume"]) == 0
    assert main([*command[:-2], "--name", "whole"]) == 0
    one, other = (((tmp_path / name / "model.safetensors").read_bytes()) for name in ("r", "whole"))
    assert one == other
