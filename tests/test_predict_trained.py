"""Files of weights: those that leave out a frozen trunk, and those that ship with the package."""

import importlib.util
import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fadeup.checkpoint import load_weights, save_weights
from fadeup.models.weights import LITE0_PACKAGE
from fadeup.predict import default_model, load_matter, load_trained, shipped, trained, weights_file
from fadeup.recipes import Cutouts

ENTRIES = [
    {"name": "matting-fade", "task": "cutouts", "file": "models/matting-fade.safetensors", "sad": 1.0},
    {"name": "matting-a2u", "task": "cutouts", "file": "models/matting-a2u.safetensors"},
    {"name": "landcover-fade", "task": "landcover", "file": "models/landcover-fade.safetensors"},
]
needs_imagenet = pytest.mark.skipif(
    importlib.util.find_spec(LITE0_PACKAGE.replace("-", "_")) is None, reason=f"{LITE0_PACKAGE} is not installed"
)


@pytest.fixture
def assets(tmp_path, monkeypatch):
    folder = tmp_path / "assets"
    (folder / "models").mkdir(parents=True)
    (folder / "models.json").write_text(json.dumps(ENTRIES))
    monkeypatch.setattr(trained, "ASSETS", folder)
    return folder


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def saved(path, state):
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    return path


def test_what_is_left_out_stays(tmp_path):
    there, here = Pair(), Pair()
    state = {name: x.half() if x.is_floating_point() else x for name, x in there.state_dict().items()}
    kept = here.trunk.weight.detach().clone()
    path = saved(tmp_path / "a", {name: x for name, x in state.items() if not name.startswith("trunk.")})
    load_weights(path, here, without="trunk.")
    assert torch.equal(here.trunk.weight, kept)
    assert here.head[0].weight.dtype == torch.float32
    assert torch.equal(here.head[0].weight, there.head[0].weight.half().float())


@pytest.mark.parametrize(
    ("change", "without", "message"),
    [
        (lambda state: state.pop("head.0.bias"), "trunk.", r"got head.0.bias of nothing in place of \(4,\)"),
        (lambda state: state.update({"head.0.bias": torch.zeros(5)}), "trunk.", r"head.0.bias of \(5,\) in place of"),
        (lambda state: None, "", r"got trunk.bias of nothing in place of \(3,\)"),
        (lambda state: state.update({"trunk.bias": torch.zeros(3)}), "trunk.", r"trunk.bias of \(3,\) in place of no"),
        (lambda state: state.update({"other": torch.zeros(3)}), "trunk.", r"got other of \(3,\) in place of nothing"),
    ],
)
def test_all_else_must_fit(tmp_path, change, without, message):
    state = {name: x for name, x in Pair().state_dict().items() if not name.startswith("trunk.")}
    change(state)
    path = saved(tmp_path / "a", state)
    with pytest.raises(ValueError, match=message):
        load_weights(path, Pair(), without=without)


def written(path, recipe, without=None):
    torch.manual_seed(1)
    network = recipe.model("fade")
    about = {"task": recipe.task, "recipe": asdict(recipe), "upsampler": "fade"} | recipe.description()
    save_weights(path, network, about | ({"without": without} if without else {}))
    if without:
        left = {name: x for name, x in load_file(path).items() if not name.startswith(without["prefix"])}
        half = {name: x.half() if x.is_floating_point() else x for name, x in left.items()}
        save_file(half, path, {"fadeup": json.dumps(about | {"without": without})})
    return network


@needs_imagenet
def test_a_frozen_trunk_need_not_be_in_the_file(tmp_path):
    path = tmp_path / "small.safetensors"
    there = written(path, Cutouts(channels=8), {"prefix": "trunk.", "weights": "imagenet"})
    network, recipe, about = load_trained(path)
    assert path.stat().st_size < 250_000
    assert (recipe, about["mean"]) == (Cutouts(channels=8), [0.5] * 3)
    assert not network.training
    for name, tensor in network.state_dict().items():
        same = there.state_dict()[name]
        assert torch.equal(tensor, same if name.startswith("trunk.") else same.half().to(same.dtype)), name


def test_a_whole_file_needs_no_other_weights(tmp_path, monkeypatch):
    path = tmp_path / "whole.safetensors"
    there = written(path, Cutouts(channels=8, weights=None))
    asked = []
    monkeypatch.setattr("fadeup.models.matting.load_backbone", lambda module, name, weights: asked.append(weights))
    matter = load_matter(path)
    assert set(asked) == {None}
    assert matter.mean == matter.std == (0.5, 0.5, 0.5)
    for name, tensor in matter.network.state_dict().items():
        assert torch.equal(tensor, there.state_dict()[name]), name


def test_shipped_networks_have_names(assets):
    assert shipped() == {entry["name"]: entry for entry in ENTRIES}
    assert list(shipped("landcover")) == ["landcover-fade"]
    assert weights_file("matting-a2u") == assets / "models" / "matting-a2u.safetensors"
    assert default_model("matting-fade") == "matting-fade"


def test_a_folder_does_not_take_the_place_of_a_shipped_network(assets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "matting-fade").mkdir()
    (tmp_path / "matting-fade" / "model.safetensors").touch()
    assert weights_file("matting-fade") == assets / "models" / "matting-fade.safetensors"
    assert weights_file("./matting-fade").resolve() == tmp_path / "matting-fade" / "model.safetensors"


def test_an_unknown_model_is_told_the_shipped_ones(assets):
    with pytest.raises(
        FileNotFoundError,
        match=r"got 'fade', which does not exist; matting-fade, matting-a2u, landcover-fade ship",
    ):
        weights_file("fade")


def test_none_may_ship(tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "ASSETS", tmp_path)
    assert shipped() == {}
    with pytest.raises(FileNotFoundError, match=r"got 'matting-fade', which does not exist$"):
        weights_file("matting-fade")
    with pytest.raises(ValueError, match="model must be given, got none; no trained network ships with this version"):
        default_model("matting-fade")
