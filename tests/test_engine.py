import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fadeup.checkpoint import load_checkpoint, load_weights, read_about, save_checkpoint, save_weights, write
from fadeup.data.loading import Batches
from fadeup.engine import Diverged, Setting, evaluate, predict, train
from fadeup.recipes import Reconstruction
from toy import Toy

TINY = Reconstruction(train_images=40, test_images=12, epochs=1)
TOY = Toy()
TESTS = Path(__file__).parent


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])), name


def stop_after(steps, number=signal.SIGINT):
    def on_step(step, *_):
        if step == steps:
            signal.raise_signal(number)

    return on_step


def test_rows_of_one_seed_see_the_same_pictures_in_the_same_order():
    seen = {}

    class Spy(Reconstruction):
        def loss(self, output, target):
            seen.setdefault(name, []).append(target.clone())
            return super().loss(output, target)

    recipe = Spy(train_images=40, test_images=12, epochs=2)
    for name in ("bilinear", "fade"):
        train(recipe, name, recipe.data(), seed=5)
    assert all(torch.equal(a, b) for a, b in zip(seen["bilinear"], seen["fade"], strict=True))
    assert not torch.equal(seen["fade"][0], seen["fade"][2])  # another order in the second epoch


def test_diverged_training_says_where():
    recipe = replace(TINY, learning_rate=1e30)
    with pytest.raises((Diverged, ValueError), match=r"lower the learning rate"):
        train(recipe, "fade", recipe.data(), seed=0)
    with pytest.raises(Diverged, match=r"loss must be finite, got nan with 'bilinear', seed 0, epoch 1, step"):
        train(recipe, "bilinear", recipe.data(), seed=0)


def test_the_gradients_norm_is_that_of_all_parameters():
    recipe, seen = replace(TOY, dropout=0, noise=0, norm=False), []
    data = recipe.data()
    trained = train(recipe, "nearest", data, seed=0, on_step=lambda step, loss, rate, norm: seen.append(norm))
    torch.manual_seed(0)
    model = recipe.model("nearest")
    (keys,) = list(Batches(len(data.train), recipe.batch_size, 0, 1))
    inputs, targets = (torch.stack(part) for part in zip(*(data.train[key[1]] for key in keys), strict=True))
    recipe.loss(model(inputs), targets).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert trained.gradient_norms[0] == pytest.approx(float(norm), rel=1e-5)
    assert len(seen) == 12
    assert np.allclose(seen, trained.gradient_norms)


def test_a_gradient_that_is_not_finite_ends_the_training_before_it_is_applied(tmp_path):
    class Kink(Toy):
        calls = 0

        def loss(self, output, target):
            type(self).calls += 1
            loss = super().loss(output, target)
            return loss + (output - output.detach()).abs().sqrt().sum() if self.calls == 6 else loss

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Diverged, match=r"the gradient's norm must be finite, got nan with 'nearest', seed 0, epoch 2"):
        train(Kink(), "nearest", TOY.data(), seed=0, checkpoint=path, setting=Setting(checkpoint_seconds=0))
    resumed = train(Kink(), "nearest", TOY.data(), seed=0, checkpoint=path)
    assert_same(weights(resumed.model), weights(train(TOY, "nearest", TOY.data(), seed=0).model))


def test_prediction_does_not_depend_on_how_inputs_are_batched():
    data = TINY.data()
    model = train(TINY, "fade", data, seed=0).model
    single = torch.stack(predict(TINY, model, data.test, range(12)))
    inputs = torch.stack([image for image, _ in data.test])
    assert torch.allclose(model.eval()(inputs).clamp(0, 1), single, atol=1e-5)
    assert single.min() >= 0
    assert single.max() <= 1


@pytest.mark.parametrize("steps", [1, 4, 7, 11])  # in the middle and at the end of an epoch of 4
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_goes_on_to_the_same_bits(tmp_path, steps, number):
    recipe, path, handler = replace(TOY, ema=0.9), tmp_path / "checkpoint.pt", signal.getsignal(number)
    whole = train(recipe, "nearest", recipe.data(), seed=3)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, "nearest", recipe.data(), seed=3, checkpoint=path, on_step=stop_after(steps, number))
    seen = []
    resumed = train(
        recipe,
        "nearest",
        recipe.data(),
        seed=3,
        checkpoint=path,
        on_step=lambda step, loss, rate, norm: seen.append((step, rate)),
    )
    assert [step for step, _ in seen] == list(range(steps, 13))
    assert_same(weights(resumed.model), weights(whole.model))
    assert np.array_equal(resumed.losses, whole.losses)
    assert np.array_equal(resumed.gradient_norms, whole.gradient_norms)
    assert signal.getsignal(number) is handler


def test_second_signal_interrupts_at_once(tmp_path):
    class Twice(Toy):
        def loss(self, output, target):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("went on")

    with pytest.raises(KeyboardInterrupt):
        train(Twice(), "nearest", TOY.data(), seed=0, checkpoint=tmp_path / "checkpoint.pt")
    assert not (tmp_path / "checkpoint.pt").exists()


def start(*arguments, processes=1):
    launch = (
        [] if processes == 1 else ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    )
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *launch, str(TESTS / "toy.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


def test_killed_training_goes_on_to_the_same_bits(tmp_path):
    path, options = tmp_path / "checkpoint.pt", ("pause=0.05", "epochs=6")
    process = start(path, tmp_path / "killed", *options)
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.25)
    process.kill()  # -9
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.0.npz").exists()
    finish(start(path, tmp_path / "resumed", *options))
    finish(start("-", tmp_path / "whole", *options))
    assert_same(np.load(tmp_path / "resumed.0.npz"), np.load(tmp_path / "whole.0.npz"))


@pytest.mark.slow
def test_two_processes_learn_and_score_as_one(tmp_path):
    options = ("norm=0", "dropout=0")  # BatchNorm and dropout see each process's own half
    finish(start("-", tmp_path / "one", *options))
    finish(start("-", tmp_path / "two", *options, processes=2))
    one, first, second = (np.load(tmp_path / name) for name in ("one.0.npz", "two.0.npz", "two.1.npz"))
    assert_same(dict(first) | {"scored": 0}, dict(second) | {"scored": 0})
    assert (int(one["scored"]), int(first["scored"]), int(second["scored"])) == (7, 4, 3)
    assert one["error"].shape == first["error"].shape == (7, 1)
    for name in one.files:
        if name != "scored":
            assert np.allclose(one[name], first[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
def test_two_processes_with_batch_norm_end_with_one_set_of_weights(tmp_path):
    finish(start("-", tmp_path / "two", processes=2))
    first, second = (np.load(tmp_path / f"two.{rank}.npz") for rank in (0, 1))
    assert_same(dict(first) | {"scored": 0}, dict(second) | {"scored": 0})


@pytest.mark.parametrize(("samples", "batch", "world"), [(14, 4, 1), (14, 4, 2), (13, 6, 3), (5, 4, 3), (1, 4, 2)])
def test_processes_share_each_batch(samples, batch, world):
    steps = 2 * -(-samples // batch)
    whole = list(Batches(samples, batch, 0, steps))
    shares = [list(Batches(samples, batch, 0, steps, 0, rank, world)) for rank in range(world)]
    for step, keys in enumerate(whole):
        parts = [key for share in shares for key in share[step]]
        assert set(parts) == set(keys)
        assert all(share[step] for share in shares)
        assert len(parts) == max(len(keys), world)
    epoch = [sample for keys in whole[: steps // 2] for _, sample in keys]
    assert sorted(epoch) == list(range(samples))
    assert list(Batches(samples, batch, 0, steps, 3)) == whole[3:]


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_parts_of_a_batch_add_up_to_it(accumulate):
    recipe = replace(TOY, norm=False, dropout=0)
    whole = train(recipe, "nearest", recipe.data(), seed=0)
    parts = train(recipe, "nearest", recipe.data(), seed=0, setting=Setting(accumulate=accumulate))
    assert np.allclose(whole.losses, parts.losses, rtol=1e-4)
    for name, tensor in weights(whole.model).items():
        assert torch.allclose(tensor, weights(parts.model)[name], rtol=1e-3, atol=1e-5)


def test_unequal_parts_weigh_by_their_terms():
    class Masked(Toy):
        def terms(self, target):
            return (target > 0.5).sum()

        def loss(self, output, target):
            mask = target > 0.5
            return ((output - target) ** 2)[mask].sum() / mask.sum().clamp(min=1)

    recipe = Masked(norm=False, dropout=0)
    losses = [
        train(recipe, "nearest", recipe.data(), seed=0, setting=Setting(accumulate=parts)).losses for parts in (1, 2)
    ]
    assert np.allclose(*losses, rtol=1e-4)


def test_workers_change_nothing():
    here, there = (train(TOY, "nearest", TOY.data(), seed=0, setting=Setting(workers=n)) for n in (0, 2))
    assert_same(weights(here.model), weights(there.model))
    scores = [evaluate(TOY, here.model, TOY.data().test, workers=n)["error"] for n in (0, 2)]
    assert np.array_equal(*scores)


def test_seed_fixes_everything_and_another_changes_it():
    first, again, other = (train(TOY, "nearest", TOY.data(), seed=seed) for seed in (0, 0, 1))
    assert_same(weights(first.model), weights(again.model))
    assert not np.array_equal(first.losses, other.losses)


def test_scores_on_the_way_change_nothing():
    seen = {}
    setting = Setting(evaluate_every=5)
    observed = train(TOY, "nearest", TOY.data(), seed=0, setting=setting, on_evaluation=seen.__setitem__)
    assert list(seen) == [5, 10]
    assert seen[10]["error"] < seen[5]["error"]
    assert_same(weights(observed.model), weights(train(TOY, "nearest", TOY.data(), seed=0).model))


def test_moving_average_is_what_is_returned():
    recipe = replace(TOY, dropout=0)
    last = weights(train(recipe, "nearest", recipe.data(), seed=0).model)
    steps = {}

    def keep(step, loss, *_):
        steps[step] = loss

    mean = weights(train(replace(recipe, ema=0.5), "nearest", recipe.data(), seed=0, on_step=keep).model)
    assert not torch.equal(last["0.weight"], mean["0.weight"])
    assert torch.allclose(last["0.weight"], mean["0.weight"], atol=0.1)
    assert len(steps) == 12


def test_bfloat16_trains_and_scores_in_float32():
    trained = train(replace(TOY, precision="bfloat16"), "nearest", TOY.data(), seed=0)
    exact = train(TOY, "nearest", TOY.data(), seed=0)
    assert not np.array_equal(trained.losses, exact.losses)
    assert np.allclose(trained.losses, exact.losses, rtol=0.1)
    output = trained.model.eval()(TOY.data().test[0][0][None])
    assert output.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert trained.model(TOY.data().test[0][0][None]).dtype == torch.bfloat16  # nothing is left wrapped


def test_snapshots_keep_features_and_gradients_and_change_nothing(tmp_path):
    setting = Setting(snapshot_steps=(2, 12), snapshot_layer="2", snapshot_folder=tmp_path / "snapshots")
    plain = train(TOY, "nearest", TOY.data(), seed=0)
    observed = train(TOY, "nearest", TOY.data(), seed=0, setting=setting)
    assert_same(weights(plain.model), weights(observed.model))
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["step000002.npz", "step000012.npz"]
    early, late = (np.load(tmp_path / "snapshots" / f"step{step:06d}.npz") for step in (2, 12))
    assert set(early.files) == {"feature.0", "feature.3", "gradient.0", "gradient.3"}
    assert early["feature.0"].shape == early["gradient.0"].shape == (6, 8)
    assert early["gradient.0"].min() >= 0
    assert not np.array_equal(early["feature.0"], late["feature.0"])


@pytest.mark.parametrize(
    ("recipe", "setting", "seed", "message"),
    [
        (TOY, Setting(), -1, "seed must be 0 or more, got -1"),
        (TOY, Setting(accumulate=5), 0, "accumulate must be from 1 to the batch of 4, got 5"),
        (TOY, Setting(snapshot_steps=(1,), snapshot_layer="neck"), 0, "snapshot_layer must be a layer of the network"),
        (
            replace(TOY, precision="half"),
            Setting(),
            0,
            "precision must be one of float32, .* got 'half'",
        ),
        (replace(TOY, precision="float16"), Setting(), 0, "precision must be float32 or bfloat16 on the CPU"),
    ],
)
def test_refusals(recipe, setting, seed, message):
    with pytest.raises(ValueError, match=message):
        train(recipe, "nearest", recipe.data(), seed=seed, setting=setting)


def test_no_data_is_an_error():
    empty = replace_data(TOY, 0)
    with pytest.raises(ValueError, match="training data must hold a sample or more, got none"):
        train(TOY, "nearest", empty, seed=0)
    with pytest.raises(ValueError, match="test data must hold a sample or more, got none"):
        evaluate(TOY, torch.nn.Identity(), empty.test)


def replace_data(recipe, count):
    data = recipe.data()
    data.train.count = data.test.count = count
    return data


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"PK garbage"])
def test_damaged_checkpoint_is_named_and_kept(tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"seed": 0}, {"step": 1})
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"checkpoint.pt must be a whole checkpoint, got .*delete it to start again"):
        load_checkpoint(path, {"seed": 0})
    assert path.read_bytes() == damaged


def test_checkpoint_of_another_training_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    train(TOY, "nearest", TOY.data(), seed=0, checkpoint=path)
    with pytest.raises(ValueError, match=r"same training to resume, got rate is 0.05 there, 0.1 asked; seed"):
        train(replace(TOY, rate=0.1), "nearest", TOY.data(), seed=1, checkpoint=path)


def test_checkpoint_with_code_in_it_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"identity": "{}", "state": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="must be a whole checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt", {})
    assert not (tmp_path / "ran").exists()


def full(fd):
    raise OSError(28, "No space left on device")


def test_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        train(TOY, "nearest", TOY.data(), seed=0, checkpoint=path, on_step=stop_after(5))
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"checkpoint.pt must be a file that can be written, got .*No space.*is kept"):
            train(TOY, "nearest", TOY.data(), seed=0, checkpoint=path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("checkpoint.pt", before)]
    resumed = train(TOY, "nearest", TOY.data(), seed=0, checkpoint=path)
    assert_same(weights(resumed.model), weights(train(TOY, "nearest", TOY.data(), seed=0).model))


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write(tmp_path / "a", b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_weights_survive_the_disk_with_what_is_said_of_them(tmp_path):
    model, other = TOY.model("nearest"), TOY.model("nearest")
    save_weights(tmp_path / "model.safetensors", model, {"classes": ["a", "ü"]})
    assert read_about(tmp_path / "model.safetensors") == {"classes": ["a", "ü"]}
    load_weights(tmp_path / "model.safetensors", other)
    assert_same(weights(model), weights(other))


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(path, TOY.model("nearest"), {})
    with pytest.raises(ValueError, match=r"must fit the network, got 0.bias of \(8,\) in place of \(4,\)"):
        load_weights(path, torch.nn.Sequential(torch.nn.BatchNorm2d(4)))
    with pytest.raises(FileNotFoundError, match="must be a file of weights, got no such file; fadeup train writes one"):
        read_about(tmp_path / "none.safetensors")
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="must be weights that fadeup train wrote"):
        read_about(path)
