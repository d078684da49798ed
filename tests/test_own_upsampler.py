"""An upsampler of one's own: an entry in `UPSAMPLERS` is a name like the library's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fadeup
from fadeup.compare import RunFolder, compare, summarize
from fadeup.cost import upsampler_cost
from fadeup.models import Autoencoder
from fadeup.recipes import RECIPES


class Doubled(fadeup.Upsampler):
    """Nearest neighbour, times a learned number."""

    works_in_phases = True

    def __init__(self, decoder_channels, encoder_channels=None, *, scale=2, start=1.0):
        super().__init__(decoder_channels, encoder_channels, scale=scale)
        self.factor = nn.Parameter(torch.tensor(float(start)))

    def upsample(self, decoder, encoder, size):
        return self.factor * nn.functional.interpolate(decoder, size)

    def macs(self, height, width):
        return self.decoder_channels * self.positions(height, width)[1]


@pytest.fixture(autouse=True)
def name(monkeypatch):
    monkeypatch.setitem(fadeup.UPSAMPLERS, "doubled", Doubled)


def test_name_and_options_build_it():
    built = fadeup.build_upsampler("doubled,start=2", 3)
    assert isinstance(built, Doubled)
    assert built(torch.ones(1, 3, 4, 5), torch.ones(1, 3, 7, 9)).equal(torch.full((1, 3, 7, 9), 2.0))
    with pytest.raises(ValueError, match=r"options of 'doubled' must be key=value with scale, start, got 'size'"):
        fadeup.build_upsampler("doubled,size=2", 3)
    with pytest.raises(ValueError, match="did you mean 'doubled'"):
        fadeup.build_upsampler("doubeld", 3)


def test_networks_upgrade_and_cost_take_the_name():
    assert Autoencoder("doubled")(torch.rand(1, 1, 13, 17)).shape == (1, 1, 13, 17)
    network = Autoencoder("doubled", channels=(4, 4))
    assert sum(isinstance(module, Doubled) for module in network.modules()) == 2
    assert upsampler_cost("doubled", 8, 4, 4).macs == 8 * 64


def test_upgrade_puts_it_into_networks_of_others():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
            self.up, self.head = nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 1)

        def forward(self, image):
            return self.head(self.up(self.coarse(self.fine(image).relu())))

    network = Net()
    fadeup.upgrade(network, "doubled", example_inputs=torch.rand(2, 3, 8, 8))
    assert any(isinstance(module, Doubled) for module in network.modules())


def test_compare_trains_it(tmp_path):
    recipe = RECIPES["reconstruction"](train_images=20, test_images=4, epochs=1)
    rows = compare(recipe, recipe.data(), ["bilinear", "doubled"], [0], RunFolder(tmp_path / "run", recipe))
    lines = {line.upsampler: line for line in summarize(recipe, rows, "bilinear")}
    assert lines["doubled"].parameters == lines["bilinear"].parameters + 3
    assert set(lines["doubled"].differences) == {metric.name for metric in recipe.metrics}
