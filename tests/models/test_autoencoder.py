import pytest
import torch

from fadeup import UPSAMPLERS
from fadeup.models import Autoencoder


@pytest.mark.parametrize("name", [*UPSAMPLERS, "b1", "b3", "b4", "b5", "nearest+gate", "carafe+gate"])
@pytest.mark.parametrize("size", [(32, 32), (17, 23)])
def test_reconstructs_at_the_input_s_size_with_gradients(name, size):
    model = Autoencoder(name, channels=(8, 16, 32))
    image = torch.rand(2, 1, *size)
    output = model(image)
    assert output.shape == image.shape
    output.sum().backward()
    unused = {"upsamplers.0.down", "upsamplers.1.down", "upsamplers.2.down"} if name == "a2u" else set()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == (key.rsplit(".", 1)[0] in unused), key


def test_layers_outside_the_upsamplers_start_the_same_whatever_the_upsampler():
    states = []
    for name in ("bilinear", "fade", "indexnet"):
        torch.manual_seed(3)
        states.append({k: v for k, v in Autoencoder(name).state_dict().items() if not k.startswith("upsamplers.")})
    for other in states[1:]:
        assert states[0].keys() == other.keys()
        assert all(torch.equal(states[0][key], other[key]) for key in other)


@pytest.mark.parametrize("name", ["indexnet", "a2u"])
def test_guided_pooling_trains_the_pooling_half(name):
    model = Autoencoder(name, channels=(8, 16), pooling="guided")
    model(torch.rand(2, 1, 13, 17)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.upsamplers.parameters())


def test_guided_pooling_refused_where_there_is_none():
    with pytest.raises(ValueError, match="pooling must be 'max' for 'fade', which has no pooling half, got 'guided'"):
        Autoencoder("fade", pooling="guided")


def test_unknown_pooling_and_upsampler():
    with pytest.raises(ValueError, match="pooling must be 'max' or 'guided', got 'mean'"):
        Autoencoder(pooling="mean")
    with pytest.raises(ValueError, match="did you mean 'carafe'"):
        Autoencoder("carafee")


def test_options_reach_the_upsamplers():
    model = Autoencoder("fade", kernel_size=3, fusion="none")
    assert {module.kernel_size for module in model.upsamplers} == {3}
