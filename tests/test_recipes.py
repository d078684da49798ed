import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fadeup.engine import evaluate, train
from fadeup.metrics import BoundaryIoU, MeanIoU
from fadeup.recipes import ADE20K, RECIPES, CamVid, Folder, LandCover, Segmentation, Weizmann
from fadeup.recipes.optimizer import parameter_groups
from fadeup.recipes.segmentation import nearest

TINY = replace(LandCover(), weights=None, channels=8, crop=32, iterations=2, train_images=3, test_images=2)


@pytest.fixture(scope="module")
def data():
    return TINY.data()


def test_scores_equal_those_of_the_metrics_over_the_set(data):
    model = TINY.model("bilinear")
    statistics = evaluate(TINY, model, data.test)
    region, boundary = MeanIoU(6), BoundaryIoU(6)
    with torch.no_grad():
        for image, label in (TINY.prepare(sample) for sample in data.test):
            prediction = TINY.finish(model.eval()(image[None]), image[None], tuple(label.shape))
            region.update(prediction, label[None])
            boundary.update(prediction, label[None])
    scores = {metric.name: metric.score(statistics[metric.name]) for metric in TINY.metrics}
    assert scores["miou"] == pytest.approx(100 * region.compute().item(), rel=1e-6)
    assert scores["biou"] == pytest.approx(100 * boundary.compute().item(), rel=1e-6)
    assert statistics["miou"].shape == (2, 12)


def test_it_learns_on_the_shipped_tiles():
    recipe = replace(TINY, iterations=30, learning_rate=1e-3, crop=64, train_images=4)
    losses = train(recipe, "fade", recipe.data(), seed=0).losses
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()


def test_same_seed_gives_every_upsampler_the_same_start_and_pictures(data):
    starts, seen = {}, {}

    class Spy(LandCover):
        def loss(self, output, target):
            seen.setdefault(name, []).append(target.clone())
            return super().loss(output, target)

    recipe = Spy(**{field.name: getattr(TINY, field.name) for field in fields(TINY)})
    for name in ("bilinear", "fade"):
        torch.manual_seed(4)
        starts[name] = recipe.model(name).state_dict()
        train(recipe, name, data, seed=4)
    shared = [key for key in starts["bilinear"] if key in starts["fade"]]
    assert len(shared) > 200
    assert all(torch.equal(starts["bilinear"][key], starts["fade"][key]) for key in shared)
    assert all(torch.equal(a, b) for a, b in zip(seen["bilinear"], seen["fade"], strict=True))


def test_augmentation_differs_by_epoch_and_preparation_keeps_the_label(data):
    torch.manual_seed(0)
    first, second = TINY.augment(data.train[0]), TINY.augment(data.train[0])
    assert first[0].shape == (3, 32, 32)
    assert first[1].shape == (32, 32)
    assert not torch.equal(first[0], second[0])
    image, label = TINY.prepare(data.test[0])
    assert image.shape == (3, 256, 256)
    assert torch.equal(label, data.test[0][1].long())


def test_test_pictures_are_had_without_training_pictures(tmp_path):
    for kind, array in (("images", np.zeros((9, 8, 3), np.uint8)), ("labels", np.ones((9, 8), np.uint8))):
        (tmp_path / kind / "val").mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / kind / "val" / "one.png")
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    recipe = Folder(source=str(tmp_path))
    assert len(recipe.test()) == 1
    assert recipe.about[0] == ("sky", "road")
    with pytest.raises(FileNotFoundError, match=r"images/train must be a folder"):
        recipe.data()


def test_size_resizes_picture_and_label():
    recipe = replace(Weizmann(), size=51)
    label = torch.randint(0, 2, (50, 70), dtype=torch.uint8)
    image, resized = recipe.prepare((torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8), label))
    assert image.shape == (3, 51, 51)  # as it was trained, not a multiple of 32
    assert torch.equal(resized, nearest(label, (51, 51)).long())


def test_nearest_takes_the_pixel_under_the_centre():
    labels = torch.arange(6).reshape(1, 2, 3)
    assert nearest(labels, (4, 6)).tolist() == [[[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2]
    assert nearest(labels, (1, 1)).tolist() == [[[4]]]  # (0.5, 1.5) in rows and columns, rounded down after halves


def test_ignored_pixels_weigh_nothing_in_the_loss():
    target = torch.randint(0, 6, (2, 8, 8))
    logits = torch.randn(2, 6, 2, 2, requires_grad=True)
    half = target.clone()
    half[:, :4] = 255
    assert TINY.terms(half) == 64
    resized = nn.functional.interpolate(logits, (8, 8), mode="bilinear")
    expected = nn.functional.cross_entropy(resized[:, :, 4:], target[:, 4:])
    assert torch.allclose(TINY.loss(logits, half), expected)
    nothing = TINY.loss(logits, torch.full_like(target, 255))
    assert nothing == 0
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert (gradient == 0).all()


def test_head_learns_faster_and_norms_do_not_decay():
    model = TINY.model("fade")
    groups = parameter_groups(model, 1e-4, 10, 2, 0.01)
    assert sorted((round(g["lr"], 6), g["weight_decay"]) for g in groups) == [
        (1e-4, 0.0), (1e-4, 0.01), (2e-4, 0.01), (1e-3, 0.0), (1e-3, 0.01),
    ]  # fmt: skip
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    where = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert where[id(model.head.upsamplers[0].fusion.gate.weight)] == (2e-4, 0.01)
    assert where[id(model.head.fuse.weight)] == (1e-3, 0.01)
    assert where[id(model.head.norm.weight)] == (1e-3, 0.0)
    assert where[id(next(model.backbone.parameters()))] == (1e-4, 0.01)
    segnet = replace(Weizmann(), weights=None).build("nearest", 2, None)
    assert {g["lr"] for g in parameter_groups(segnet, 1e-2, 1, 1, 0)} == {1e-2}


def test_poly_rises_and_falls_to_nothing():
    paper = ADE20K.from_paper()
    steps = paper.iterations
    assert steps == 160_000
    assert paper.factor(0, steps) == pytest.approx(1 / 1500)
    assert paper.factor(1499, steps) == pytest.approx(1 - 1499 / steps)
    assert paper.factor(steps // 2, steps) == 0.5
    assert 0 < paper.factor(steps - 1, steps) < 1e-5
    assert paper.factor(steps, steps) == 0


def test_steps_fall_tenfold_twice():
    recipe = Weizmann.from_paper()
    assert [recipe.factor(step, 50) for step in (0, 34, 35, 44, 45, 49)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "unet"}, "network must be 'segformer' or 'segnet', got 'unet'"),
        ({"algorithm": "lion"}, "algorithm must be one of adamw, adam, sgd, got 'lion'"),
        ({"schedule": "linear"}, "schedule must be one of poly, cosine, steps, milestones, got 'linear'"),
    ],
)
def test_refusals(change, message):
    recipe = replace(TINY, **change)
    with pytest.raises(ValueError, match=message):
        recipe.optimizer(recipe.model("bilinear"), 10)


def test_pictures_show_classes_in_their_colours(data):
    label = data.test[0][1].long()
    picture = TINY.picture(label[None])[0]
    colours = TINY.legend()
    assert list(colours) == ["water", "forest", "shrub and savanna", "grass and wetland", "crop", "barren and ice"]
    for index, colour in enumerate(colours.values()):
        assert (picture[label.numpy() == index] == colour).all()
    label[:9, :9] = 255
    assert (TINY.picture(label[None])[0][:9, :9] == 0).all()
    error = TINY.error(torch.zeros_like(label)[None], label[None])[0]
    assert np.array_equal(error, ((label != 0) & (label != 255)).float().numpy())


def test_originals_are_the_picture_and_its_label(data):
    originals = TINY.originals(TINY.prepare(data.test[1]))
    assert list(originals) == ["input", "label"]
    assert np.abs(originals["input"].astype(int) - data.test[1][0].permute(1, 2, 0).numpy()).max() <= 1
    shown = replace(TINY)
    object.__setattr__(shown, "shown_size", (20, 30))
    assert {picture.shape for picture in shown.originals(TINY.prepare(data.test[1])).values()} == {(20, 30, 3)}


def test_shown_pictures_are_spread_over_the_set(data):
    assert TINY.show(data) == [0, 1]
    whole = LandCover().data()
    assert TINY.show(whole) == [0, 2, 4, 7, 9, 12]


def test_tables_name_network_weights_and_data():
    assert (
        LandCover().trained == "SegFormer's head of 64 channels on tf_efficientnet_lite0, ImageNet weights; landcover"
    )
    assert replace(Weizmann(), weights="hed").trained == (
        "SegNet on vgg16_bn, weights of an edge detector (HED, BSDS500); weizmann"
    )
    assert replace(CamVid(), weights=None).trained.endswith("from scratch; camvid")


@pytest.mark.parametrize("kind", [kind for kind in RECIPES.values() if issubclass(kind, Segmentation)])
def test_every_recipe_has_a_quick_form_and_the_paper_s(kind):
    quick, paper = kind.protocol("quick"), kind.protocol("paper")
    assert quick == kind()
    assert paper != quick
    assert RECIPES[kind.task] is kind
    size = paper.crop
    sample = (
        torch.zeros(3, size + 40, size + 60, dtype=torch.uint8),
        torch.zeros(size + 40, size + 60, dtype=torch.uint8),
    )
    image, label = paper.augment(sample)
    assert image.shape[1:] == label.shape == (size, size)
    assert math.isfinite(paper.factor(0, 100))
