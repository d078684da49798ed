"""Networks of other libraries run before and after, with gradients; what the documentation's table says holds."""

from __future__ import annotations

import copy

import pytest
import third_party_table as third_party
import torch

import fadeup

pytest.importorskip("segmentation_models_pytorch", reason="needs segmentation-models-pytorch")
pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("torchvision", reason="needs torchvision")

pytestmark = pytest.mark.slow
ELIGIBLE = [name for name, network in third_party.NETWORKS.items() if network.eligible]
OTHERS = [name for name in third_party.NETWORKS if name not in ELIGIBLE]


def shapes(output):
    return [tuple(x.shape) for x in third_party.leaves(output)]


def outputs(model, inputs):
    with torch.no_grad():
        return list(third_party.leaves(model(inputs)))


def detects(name):
    """Detectors give as many boxes as they find, so that shapes follow from values."""
    return "R-CNN" in name or "RetinaNet" in name


@pytest.mark.parametrize("name", ELIGIBLE)
def test_runs_before_and_after(name):
    network = third_party.NETWORKS[name]
    model = network.build().eval()
    inputs = network.prepare(third_party.image())
    before, state = outputs(model, inputs), {key: value.clone() for key, value in model.state_dict().items()}
    odd = third_party.takes(network, model, third_party.ODD)
    odd_before = shapes(outputs(model, network.prepare(third_party.image(third_party.ODD)))) if odd else None

    # starts with what the network computes, bit by bit
    report = fadeup.upgrade(model, "fade", example_inputs=inputs, init="host")
    assert report.placed
    for old, new in zip(before, outputs(model, inputs), strict=True):
        assert torch.equal(old, new)
    fadeup.downgrade(model)
    assert {key: value.shape for key, value in model.state_dict().items()} == {k: v.shape for k, v in state.items()}

    # replaced
    report = fadeup.upgrade(model, "fade", example_inputs=inputs)
    assert third_party.row(name, report, odd) in third_party.PAGE.read_text(encoding="utf-8")
    after = model(inputs)
    if not detects(name):
        assert shapes(after) == shapes(before)
        assert not all(torch.equal(old, new) for old, new in zip(before, third_party.leaves(after), strict=True))
    loss = sum(x.float().sum() for x in third_party.leaves(after) if x.requires_grad)
    loss.backward()
    added = list(fadeup.plug.added_parameters(model))
    assert sum(p.numel() for p in added) == report.parameters + sum(place.removed for place in report.rows)
    assert all(p.grad is not None for p in added)
    assert any(bool(p.grad.abs().sum() > 0) for p in added)
    if odd:
        odd_after = outputs(model, network.prepare(third_party.image(third_party.ODD)))
        assert detects(name) or shapes(odd_after) == odd_before
    twin = copy.deepcopy(model)
    for one, other in zip(outputs(model, inputs), outputs(twin, inputs), strict=True):
        assert torch.equal(one, other)

    # and as it was
    fadeup.downgrade(model)
    for old, new in zip(before, outputs(model, inputs), strict=True):
        assert torch.equal(old, new)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", OTHERS)
def test_without_an_eligible_step_it_says_so(name):
    network = third_party.NETWORKS[name]
    model = network.build().eval()
    inputs = network.prepare(third_party.image())
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"must have an upsampling step .* got none .*last resize, of the result"):
        fadeup.upgrade(model, "fade", example_inputs=inputs)
    assert [type(module) for module in model.modules()] == classes
    odd = third_party.takes(network, model, third_party.ODD)
    assert third_party.row(name, None, odd) in third_party.PAGE.read_text(encoding="utf-8")


def test_detectors_train(tmp_path):
    """Training gives losses, through another path than evaluation."""
    network = third_party.NETWORKS["torchvision Faster R-CNN"]
    model = network.build()
    image = third_party.image()
    fadeup.upgrade(model, "fade", example_inputs=network.prepare(image), init="host", trainable="upsamplers")
    model.train()
    assert model.training
    targets = [{"boxes": torch.tensor([[10.0, 10, 60, 80]]), "labels": torch.tensor([1])}] * 2
    sum(model(list(image), targets).values()).backward()
    grads = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name for name in grads if name.endswith("blend.s")}
    assert all(".fadeup." in name for name in grads)
