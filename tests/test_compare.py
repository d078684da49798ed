import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fadeup.compare import (
    RunFolder,
    TrainedRow,
    bootstrap,
    compare,
    results,
    run_row,
    spread,
    summarize,
)
from fadeup.recipes import RECIPES, Metric, Reconstruction

TINY = Reconstruction(train_images=40, test_images=12, epochs=1)
PSNR = Reconstruction.metrics[0]


def row(upsampler, seed, values, seconds=1.0):
    statistics = {metric.name: np.asarray(values, float)[:, None] for metric in TINY.metrics}
    nothing = np.zeros((1, 4, 4), np.uint8)
    return TrainedRow(upsampler, seed, seconds, 10, 20, np.ones(3, np.float32), statistics, nothing, nothing)


def test_same_seed_gives_the_same_row_and_another_seed_another():
    data = TINY.data()
    first, again, other = (run_row(TINY, "fade", seed, data) for seed in (0, 0, 1))
    assert np.array_equal(first.losses, again.losses)
    assert np.array_equal(first.statistics["psnr"], again.statistics["psnr"])
    assert not np.array_equal(first.losses, other.losses)


def test_training_lowers_the_loss_on_real_pictures():
    recipe = replace(TINY, train_images=200, epochs=3)
    losses = run_row(recipe, "bilinear", 0, recipe.data()).losses
    assert len(losses) == 30
    assert losses[-5:].mean() < 0.6 * losses[:3].mean()


def test_interrupted_run_resumes_with_the_missing_rows_only(tmp_path):
    names, seeds, trained = ["bilinear", "carafe"], [0, 1], []

    def stop_in_third(name, seed, steps):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append((name, seed))

    folder = RunFolder(tmp_path / "run", TINY)
    with pytest.raises(KeyboardInterrupt):
        compare(TINY, TINY.data(), names, seeds, folder, on_start=stop_in_third)
    assert sorted(path.name for path in (tmp_path / "run" / "rows").iterdir()) == [
        "bilinear-seed0.npz",
        "carafe-seed0.npz",
    ]
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "rows").iterdir()}

    rest = []
    rows = compare(
        TINY,
        TINY.data(),
        names,
        seeds,
        RunFolder(tmp_path / "run", TINY, resume=True),
        on_start=lambda *a: rest.append(a[:2]),
    )
    assert rest == [("bilinear", 1), ("carafe", 1)]
    assert all(path.read_bytes() == content for path, content in before.items())
    undisturbed = compare(TINY, TINY.data(), names, seeds, RunFolder(tmp_path / "other", TINY))
    for a, b in zip(rows, undisturbed, strict=True):
        assert (a.upsampler, a.seed) == (b.upsampler, b.seed)
        assert np.array_equal(a.statistics["psnr"], b.statistics["psnr"])
        assert np.array_equal(a.pictures, b.pictures)


def test_row_under_way_goes_on_from_its_checkpoint(tmp_path):
    data, folder = TINY.data(), RunFolder(tmp_path / "run", TINY)

    def stop(step, *_):
        if step == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        compare(TINY, data, ["fade"], [0], folder, on_step=stop)
    assert folder.checkpoint_path("fade", 0).exists()
    steps = []
    (resumed,) = compare(TINY, data, ["fade"], [0], folder, on_step=lambda step, *_: steps.append(step))
    assert steps == [1, 2]  # the first is the state it came back with
    (whole,) = compare(TINY, data, ["fade"], [0], RunFolder(tmp_path / "other", TINY))
    assert np.array_equal(resumed.statistics["psnr"], whole.statistics["psnr"])
    assert np.array_equal(resumed.losses, whole.losses)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_resume_may_add_upsamplers_and_seeds(tmp_path):
    compare(TINY, TINY.data(), ["bilinear"], [0], RunFolder(tmp_path / "run", TINY))
    started = []
    folder = RunFolder(tmp_path / "run", TINY, resume=True)
    compare(TINY, TINY.data(), ["bilinear", "nearest"], [0], folder, on_start=lambda *a: started.append(a[0]))
    assert started == ["nearest"]


def test_existing_run_is_not_touched_without_resume(tmp_path):
    RunFolder(tmp_path, TINY).save(row("fade", 0, [1, 2]))
    with pytest.raises(
        FileExistsError, match=r"must be new, got a run; use --resume to go on or choose another --name"
    ):
        RunFolder(tmp_path, TINY)
    assert RunFolder(tmp_path, TINY, resume=True).load("fade", 0) is not None


def test_run_of_another_configuration_is_refused_and_kept(tmp_path):
    RunFolder(tmp_path, TINY)
    config = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"same configuration to resume, got epochs is 1 there, 7 asked; repeat its"):
        RunFolder(tmp_path, replace(TINY, epochs=7), resume=True)
    assert (tmp_path / "config.json").read_bytes() == config


def test_folder_of_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="must be a new or empty folder, or one of an earlier run"):
        RunFolder(tmp_path, TINY, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_run_killed_before_its_configuration_was_written_can_start_again(tmp_path):
    (tmp_path / ".config.json.123.part").write_text("{")
    assert RunFolder(tmp_path, TINY, resume=True).load("fade", 0) is None


def test_damaged_config(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json must be JSON, got"):
        RunFolder(tmp_path, TINY, resume=True)


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"must be a folder that can be written, got .*choose another --out"):
        RunFolder(tmp_path / "file" / "run", TINY)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"PK garbage"])
def test_damaged_row_is_named(tmp_path, damage):
    folder = RunFolder(tmp_path, TINY)
    folder.save(row("fade", 0, [1, 2]))
    path = folder.row_path("fade", 0)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"fade-seed0.npz must be a finished row, got .*delete it to run the row again"
    ):
        folder.load("fade", 0)


def test_row_survives_the_disk(tmp_path):
    folder = RunFolder(tmp_path, TINY)
    one = row("nearest+gate", 3, [1.5, 2.5], seconds=0.25)
    folder.save(one)
    back = folder.load("nearest+gate", 3)
    assert back is not None
    assert (back.upsampler, back.seed, back.seconds, back.parameters, back.macs) == ("nearest+gate", 3, 0.25, 10, 20)
    assert np.array_equal(back.statistics["mae"], one.statistics["mae"])
    assert folder.load("fade", 3) is None


@pytest.mark.parametrize(
    ("names", "seeds", "message"),
    [
        (["bilinear", "carafee"], [0], "did you mean 'carafe'"),
        (
            ["fade", "fade"],
            [0],
            r"upsamplers must be different from each other and at least one, got \['fade', 'fade'\]",
        ),
        (["fade"], [1, 1], "seeds must be different"),
        (["fade"], [], "seeds must be different from each other and at least one"),
        (["fade"], [-1], "seeds must be 0 or more, got -1"),
    ],
)
def test_bad_lists_are_refused_before_anything_is_trained(tmp_path, names, seeds, message):
    folder = RunFolder(tmp_path, TINY)
    with pytest.raises(ValueError, match=message):
        compare(TINY, TINY.data(), names, seeds, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_difference_of_a_clear_win_and_of_noise():
    rng = np.random.default_rng(0)
    base = [row("bilinear", seed, rng.normal(20, 3, 200)) for seed in (0, 1, 2)]
    better = [row("fade", r.seed, r.statistics["psnr"][:, 0] + rng.normal(0.5, 0.5, 200)) for r in base]
    worse = [row("carafe", r.seed, r.statistics["psnr"][:, 0] - 0.5) for r in base]
    same = [row("nearest", r.seed, r.statistics["psnr"][:, 0] + rng.normal(0, 1, 200)) for r in base]
    win, loss, even = (bootstrap(PSNR, group, base) for group in (better, worse, same))
    assert win.verdict == "win"
    assert win.low < 0.5 < win.high
    assert win.mean == pytest.approx(
        np.mean([b.score(PSNR) - a.score(PSNR) for a, b in zip(base, better, strict=True)])
    )
    assert (loss.verdict, loss.mean, loss.low, loss.high) == ("loss", *([pytest.approx(-0.5)] * 3))
    assert even.verdict == "even"
    assert even.low < 0 < even.high


def test_lower_is_better_turns_the_verdict_not_the_sign():
    base = [row("bilinear", 0, [3.0, 4.0, 5.0])]
    smaller = [row("fade", 0, [2.0, 3.0, 4.0])]
    difference = bootstrap(Metric("mae", "MAE", "lower", 4), smaller, base)
    assert (difference.mean, difference.verdict) == (pytest.approx(-1), "win")


def test_seeds_that_disagree_widen_the_interval():
    base = [row("bilinear", seed, np.full(100, 20.0)) for seed in (0, 1, 2)]
    agree = [row("fade", seed, np.full(100, 21.0)) for seed in (0, 1, 2)]
    disagree = [row("fade", seed, np.full(100, 21.0 + shift)) for seed, shift in enumerate((-3, 0, 3))]
    assert bootstrap(PSNR, agree, base).verdict == "win"
    assert bootstrap(PSNR, disagree, base).verdict == "even"


def test_bootstrap_of_a_score_that_is_no_mean_over_images():
    iou = Metric("psnr", "IoU", "higher", 2, reduce=lambda means: means[..., 0] / means[..., 1])
    statistics = np.array([[1.0, 2.0], [30.0, 40.0]])
    one = replace(row("fade", 0, [0, 0]), statistics={"psnr": statistics})
    assert one.score(iou) == pytest.approx(31 / 42)  # one matrix over the data set, not the mean of 0.5 and 0.75
    assert bootstrap(iou, [one], [one]).verdict == "even"


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=20), st.floats(-5, 5))
def test_constant_shift_is_its_own_interval(values, shift):
    base = [row("bilinear", 0, values)]
    difference = bootstrap(PSNR, [row("fade", 0, np.array(values) + shift)], base)
    assert difference.low == pytest.approx(shift, abs=1e-9)
    assert difference.high == pytest.approx(shift, abs=1e-9)


def test_summary_orders_by_the_first_metric_and_pairs_shared_seeds_only():
    rows = [
        row("bilinear", 0, [20, 22]),
        row("bilinear", 1, [21, 21]),
        row("fade", 1, [25, 27]),
        row("b1", 2, [30, 30]),
    ]
    table = summarize(TINY, rows, "bilinear")
    assert [line.upsampler for line in table] == ["b1", "fade", "bilinear"]
    assert table[0].differences == {}  # no seed in common with the baseline
    assert table[1].differences["psnr"].mean == pytest.approx(5)
    assert table[2].differences == {}
    assert table[2].scores["psnr"] == (21, 0)
    assert table[1].scores["psnr"] == (26, None)
    assert table[0].note == "encoder-only"


def test_spread():
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


def test_results_are_plain_json_with_the_protocol_named():
    rows = [row("bilinear", 0, [20, 22]), row("fade", 0, [25, 27])]
    result = json.loads(json.dumps(results(TINY, rows, summarize(TINY, rows, "bilinear"), "bilinear")))
    assert result["score"] == "last step"
    assert result["trained"] == "autoencoder from scratch, Fashion-MNIST"
    assert result["config"]["train_images"] == 40
    assert result["rows"][1]["psnr"] == 26
    assert result["environment"]["torch"] == torch.__version__


def test_recipes_default_protocol_and_the_paper_s():
    assert RECIPES["reconstruction"].protocol("quick") == Reconstruction()
    paper = Reconstruction.protocol("paper")
    assert (paper.train_images, paper.epochs, paper.batch_size, paper.learning_rate) == (60_000, 100, 100, 0.01)
    with pytest.raises(ValueError, match="protocol must be 'quick' or 'paper', got 'full'"):
        Reconstruction.protocol("full")


def test_learning_rate_falls_after_half_the_steps():
    optimizer, scheduler = TINY.optimizer(torch.nn.Linear(1, 1), 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [rates[i] / rates[0] for i in (49, 50, 70, 85)] == pytest.approx([1, 0.1, 0.01, 0.001])
