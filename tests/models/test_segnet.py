import pytest
import torch

from fadeup import UPSAMPLERS
from fadeup.cost import network_cost
from fadeup.models import SegNet
from fadeup.models.segnet import VGG, VGG16


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """VGG-16 with a sixteenth of its channels; A2U needs 32."""
    monkeypatch.setattr("fadeup.models.segnet.VGG16", tuple((max(32, width // 16), depth) for width, depth in VGG16))


@pytest.mark.parametrize("name", [*UPSAMPLERS, "nearest+gate", "carafe+gate"])
@pytest.mark.parametrize("size", [(32, 32), (37, 45)])
def test_logits_at_the_image_s_size_with_gradients(name, size):
    model = SegNet(2, name)
    logits = model(torch.rand(2, 3, *size))
    assert logits.shape == (2, 2, *size)
    logits.sum().backward()
    unused = tuple(f"upsamplers.{i}.down" for i in range(5)) if name == "a2u" else ("none",)
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == key.startswith(unused), key


def test_the_real_one_has_vgg_16_s_parameters(monkeypatch):
    monkeypatch.undo()
    with torch.device("meta"):
        trunk, model = VGG(), SegNet(2)
    norms = 2 * 4224
    assert sum(p.numel() for p in trunk.parameters()) == 14_714_688 + norms
    assert [len(stage) // 3 for stage in model.trunk.stages] == [2, 2, 3, 3, 3]
    assert [len(decoder) for decoder in model.decoders] == [2, 2, 3, 3, 3]
    channels = [(u.decoder_channels, u.encoder_channels) for u in model.upsamplers]
    assert channels == [(c, c) for c in (64, 128, 256, 512, 512)]
    assert model.decoders[0][-1].out_channels == 2


@pytest.mark.parametrize("name", ["max_unpool", "indexnet", "carafe+gate", "fade", "sapa", "nearest", "carafe"])
@pytest.mark.parametrize("size", [(32, 64), (65, 97)])
def test_timm_trunk(name, size):
    pytest.importorskip("timm", reason="needs timm")
    model = SegNet(3, name, trunk="tf_efficientnet_lite0")
    logits = model(torch.rand(2, 3, *size))
    assert logits.shape == (2, 3, *size)
    logits.sum().backward()
    unused = ("stem.",) if name in ("max_unpool", "nearest", "carafe") else ("none",)
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad) == key.startswith(unused), key


def test_each_upsampler_is_guided_by_the_map_that_was_pooled():
    model, seen = SegNet(2, "fade").eval(), []
    for upsampler in model.upsamplers:
        upsampler.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    image = torch.rand(1, 3, 37, 45)
    with torch.no_grad():
        model(image)
        x, guides = model.encode(image)
    assert torch.equal(seen[0][0], x)
    for (decoder, encoder), guide in zip(seen, reversed(guides), strict=True):
        assert torch.equal(encoder, guide)
        assert decoder.shape[2] == (guide.shape[2] + 1) // 2
    assert torch.equal(x, torch.nn.functional.max_pool2d(guides[-1], 2, ceil_mode=True))


def test_layers_outside_the_upsamplers_start_the_same_whatever_the_upsampler():
    states = []
    for name in ("max_unpool", "fade", "indexnet"):
        torch.manual_seed(3)
        states.append({k: v for k, v in SegNet(2, name).state_dict().items() if not k.startswith("upsamplers.")})
    for other in states[1:]:
        assert states[0].keys() == other.keys()
        assert all(torch.equal(states[0][key], other[key]) for key in other)


@pytest.mark.parametrize("name", ["indexnet", "a2u"])
def test_guided_pooling_trains_the_pooling_half(name):
    model = SegNet(2, name, pooling="guided")
    model(torch.rand(2, 3, 35, 40)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.upsamplers.parameters())


def test_cost_counts_each_upsampler_once():
    image = torch.rand(1, 3, 64, 64)
    plain, fade = SegNet(2, "nearest"), SegNet(2, "fade")
    more = sum(upsampler.macs(32 >> level, 32 >> level) for level, upsampler in enumerate(fade.upsamplers))
    assert network_cost(fade, image).macs - network_cost(plain, image).macs == more > 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="pooling must be 'max' or 'guided', got 'mean'"):
        SegNet(2, pooling="mean")
    with pytest.raises(ValueError, match="pooling must be 'max' for 'fade', which has no pooling half, got 'guided'"):
        SegNet(2, "fade", pooling="guided")
    with pytest.raises(ValueError, match="pooling must be 'max' for trunk 'resnet18', which pools by itself"):
        SegNet(2, "indexnet", trunk="resnet18", pooling="guided")
    with pytest.raises(ValueError, match="num_classes must be a whole number, 1 or more, got 0"):
        SegNet(0)
    with pytest.raises(ValueError, match="image must be of 3 channels, got 4"):
        SegNet(2)(torch.rand(1, 4, 32, 32))
    with pytest.raises(ValueError, match="did you mean 'max_unpool'"):
        SegNet(2, "unpool")


def test_bad_trunks():
    pytest.importorskip("timm", reason="needs timm")
    with pytest.raises(ValueError, match=r"trunk must be 'vgg16_bn' or a name of timm, got 'vgg_bn'; did you mean"):
        SegNet(2, trunk="vgg_bn")
    with pytest.raises(ValueError, match=r"trunk must be a network with features at strides 2, 4, .* 'convnext_atto'"):
        SegNet(2, trunk="convnext_atto")
