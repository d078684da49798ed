"""Matting recipes, on made-up cut-outs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fadeup.engine import evaluate, predict, train
from fadeup.losses import alpha_loss, composition_loss, laplacian_loss
from fadeup.metrics import conn, grad, mse, sad
from fadeup.models import MattingNet
from fadeup.recipes import Composition1K, Cutouts, MattingFolder
from fadeup.recipes.matting import network_input, reflected, with_known


@pytest.fixture(scope="module")
def tiny(cutout_folder):
    return MattingFolder(
        source=cutout_folder,
        weights=None,
        channels=8,
        crop=32,
        largest_kernel=5,
        batch_size=2,
        iterations=2,
        test_images=2,
    )


def test_training_and_scores(tiny):
    data = tiny.data()
    trained = train(tiny, "bilinear", data, seed=0)
    statistics = evaluate(tiny, trained.model, data.test)
    assert trained.losses.shape == (2,)
    predictions = predict(tiny, trained.model, data.test, [0, 1])
    for index, prediction in enumerate(predictions):
        _, alpha, trimap = data.test[index]
        stored = (255 * prediction).to(torch.uint8)
        for name, metric in (("sad", sad), ("mse", mse), ("grad", grad), ("conn", conn)):
            expected = metric(stored.numpy(), alpha.numpy(), trimap.numpy())
            assert statistics[name][index, 0] == pytest.approx(expected, rel=1e-6), name
        known = trimap != 128
        assert torch.equal(stored[known], trimap[known])


def test_it_learns(tiny):
    recipe = replace(tiny, iterations=40, learning_rate=1e-3, batch_size=4, channels=16)
    losses = train(recipe, "fade", recipe.data(), seed=0).losses
    assert losses[-8:].mean() < 0.75 * losses[:4].mean()


def test_an_epoch_has_no_batch_of_one(tiny):
    recipe = replace(tiny, batch_size=4, images=5, iterations=0, epochs=3)
    data = recipe.data()
    assert len(data.train) == 8
    assert recipe.steps(data) == 6


def test_prepared_pictures_are_padded_by_reflection(tiny):
    sample = tiny.test()[0]
    image, target = tiny.prepare(sample)
    height, width = sample[1].shape
    assert target.shape == (2, height, width)
    assert image.shape[1] % 16 == image.shape[2] % 16 == 0
    small = network_input(sample[0][:, :21, :34], sample[2][:21, :34], (0.5,) * 3, (0.5,) * 3)
    assert small.shape == (4, 32, 48)
    assert torch.equal(small[:, :21, :34], image[:, :21, :34])
    assert torch.equal(small[:, 21:], small[:, 9:20].flip(1))
    assert torch.equal(small[:, :, 34:], small[:, :, 19:33].flip(2))


@pytest.mark.parametrize(("side", "more"), [(1, 3), (2, 14), (5, 11), (16, 0)])
def test_reflection_goes_back_and_forth(side, more):
    expected = np.pad(np.arange(side), (0, more), mode="reflect" if side > 1 else "edge")
    assert reflected(side, more).tolist() == expected.tolist()


def test_known_pixels_are_pasted_and_the_rest_is_clipped():
    trimap = torch.tensor([0.0, 128 / 255, 128 / 255, 1.0]).reshape(1, 1, 1, 4)
    inputs = torch.cat((torch.zeros(1, 3, 1, 4), trimap), dim=1)
    output = torch.tensor([0.7, -0.2, 1.2, 0.1]).reshape(1, 1, 1, 4)
    assert with_known(output, inputs).flatten().tolist() == [0, 0, 1, 1]


def test_loss_is_the_weighted_sum_of_its_parts(tiny):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 8, 20, 24, generator=generator)
    target[:, 1] = (target[:, 1] > 0.4).float()
    output = torch.rand(2, 1, 20, 24, generator=generator)
    alpha, unknown, front, back = target.split((1, 1, 3, 3), dim=1)
    parts = alpha_loss(output, alpha, unknown), composition_loss(output, alpha, front, back, unknown)
    assert torch.allclose(tiny.loss(output, target), 0.5 * parts[0] + 0.5 * parts[1])
    recipe = replace(tiny, alpha_weight=1.0, composition_weight=0.25, laplacian_weight=2.0)
    expected = parts[0] + 0.25 * parts[1] + 2 * laplacian_loss(output, alpha)
    assert torch.allclose(recipe.loss(output, target), expected)
    # Test pictures have no foreground and background: snapshots of the gradient take the alpha loss alone.
    trimap = torch.where(unknown > 0, 128 / 255, 0.0)
    assert torch.allclose(tiny.loss(output, torch.cat((alpha, trimap), dim=1)), parts[0])
    assert tiny.terms(target) == 2


def test_published_learning_rates():
    paper = Composition1K.from_paper()
    assert (paper.crop, paper.batch_size, paper.epochs, paper.images) == (512, 16, 30, 96_000)
    with torch.device("meta"):
        model = MattingNet("fade")
    optimizer, scheduler = paper.optimizer(model, 180_000)
    assert type(optimizer) is torch.optim.Adam
    rates = {parameter: group["initial_lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert all(rates[parameter] == pytest.approx(1e-4) for parameter in model.trunk.parameters())
    # As published: the authors' filter of names leaves the upsamplers among the trunk's.
    assert all(rates[parameter] == pytest.approx(1e-4) for parameter in model.upsamplers.parameters())
    assert all(rates[parameter] == pytest.approx(1e-2) for parameter in model.stages.parameters())
    assert len(rates) == len(list(model.parameters()))
    factors = [scheduler.lr_lambdas[0](step) for step in (0, 119_999, 120_000, 155_999, 156_000)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_protocols():
    assert Cutouts.from_paper().trunk == "resnet34"
    assert Cutouts.from_paper().schedule == "milestones"
    assert "Tux Paint" in Cutouts().trained
    assert Composition1K().paper["fade"]["sad"] == 31.10


def test_pictures_of_the_report(tiny):
    data = tiny.data()
    sample = tiny.prepare(data.test[0])
    originals = tiny.originals(sample)
    image, alpha, trimap = data.test[0]
    assert np.array_equal(originals["alpha"], alpha.numpy())
    assert np.array_equal(originals["trimap"], trimap.numpy())
    assert np.abs(originals["input"].astype(int) - image.permute(1, 2, 0).numpy()).max() <= 1
    error = tiny.error(torch.zeros(1, *alpha.shape), sample[1][None])
    assert np.allclose(error[0], alpha.numpy() / 255)
    assert tiny.show(data) == [0, 1]


def test_a_rebuilt_network_needs_no_data(tiny):
    recipe = replace(tiny, source="nowhere")
    assert isinstance(recipe.rebuild("carafe", recipe.description()), MattingNet)
    assert recipe.description() == {"mean": (0.5,) * 3, "std": (0.5,) * 3}
