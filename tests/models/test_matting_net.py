import pytest
import torch
import torch.nn.functional as F

from fadeup import UPSAMPLERS
from fadeup.cost import MATTING_HEAD
from fadeup.models import MattingNet, load_backbone, normalisation
from fadeup.models.matting import ASPP, BasicBlock, ResNet
from fadeup.models.weights import IMAGENET

LITE = {"trunk": "tf_efficientnet_lite0"}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("bilinear", 8_049_003),
        ("fade", 8_173_011),
        ("fade_lite", 8_076_219),
        ("carafe", 8_049_003 + 263_824),
        ("a2u", 8_049_003 + 40_232),
        ("indexnet", 8_049_003 + 6_131_712),
    ],
)
def test_parameters_of_the_papers(name, parameters):
    with torch.device("meta"):
        assert count(MattingNet(name)) == parameters


def test_parameters_of_the_parts():
    with torch.device("meta"):
        model = MattingNet("bilinear")
    assert count(model.trunk.conv1) + count(model.trunk.bn1) == 12_672
    layers = [model.trunk.layer1, model.trunk.layer2, model.trunk.layer3]
    assert [count(layer) for layer in layers] == [221_952, 230_144 + 886_272, 919_040 + 3_542_016]
    assert sum(len(layer) for layer in layers) == 11
    assert count(model.aspp) == 666_880
    assert [count(short) for short in model.shortcuts] == [2_432, 36_992, 73_984, 295_424]
    assert [count(stage) for stage in model.stages] == [48_448, 147_968, 193_152, 771_328]
    assert count(model.head) == 299


def test_upsamplers_are_at_the_sizes_that_the_cost_table_counts():
    with torch.device("meta"):
        model, seen = MattingNet("nearest"), []
        for upsampler in model.upsamplers:
            upsampler.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
        model.eval()(torch.empty(1, 4, 512, 512))
    assert [(shape[1], shape[2]) for shape in seen] == list(MATTING_HEAD)


@pytest.mark.parametrize("size", [(32, 48), (35, 51)])
@pytest.mark.parametrize("name", ["max_unpool", "indexnet", "a2u", "fade"])
def test_alpha_at_the_image_s_size_with_gradients(name, size):
    model = MattingNet(name)
    alpha = model(torch.rand(2, 4, *size))
    assert alpha.shape == (2, 1, *size)
    alpha.sum().backward()
    unused = tuple(f"upsamplers.{i}.down" for i in range(4)) if name == "a2u" else ("none",)
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == key.startswith(unused), key


@pytest.mark.parametrize("name", [*UPSAMPLERS, "b1", "b3", "b4", "b5", "nearest+gate", "carafe+gate"])
def test_small_network(name):
    pytest.importorskip("timm", reason="needs timm")
    model = MattingNet(name, **LITE)
    alpha = model(torch.rand(2, 4, 37, 45))
    assert alpha.shape == (2, 1, 37, 45)
    alpha.sum().backward()
    unused = tuple(f"upsamplers.{i}.down" for i in range(4)) if name == "a2u" else ("none",)
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == key.startswith(unused), key
    # What ships is to stay below 4 MB in 16 bits.
    assert 2 * sum(value.numel() for value in model.state_dict().values()) < 4e6


def test_guides_are_the_maps_before_pooling():
    model = MattingNet("nearest").eval()
    image = torch.rand(1, 4, 64, 48)
    with torch.no_grad():
        deep, guides, sources = model.encode(image)
    assert [tuple(guide.shape[1:]) for guide in guides] == [(64, 64, 48), (64, 32, 24), (128, 16, 12), (256, 8, 6)]
    assert deep.shape == (1, 256, 4, 3)
    assert torch.equal(sources[0], image)
    assert torch.equal(sources[1], F.max_pool2d(guides[0], 2))
    assert [source.shape[1] for source in sources] == [4, 64, 64, 128]


def test_a_strided_block_pools_between_its_convolutions():
    block = BasicBlock(4, 6, strided=True).eval()
    x = torch.rand(2, 4, 7, 8)
    out, guide = block.pooled(x, MattingNet._pooled)
    first = F.leaky_relu(block.bn1(block.conv1(x)), 0.01)
    assert torch.equal(guide, first)
    second = block.bn2(block.conv2(F.max_pool2d(first, 2, ceil_mode=True)))
    assert torch.allclose(out, F.leaky_relu(second + block.downsample(x), 0.01))
    assert out.shape == (2, 6, 4, 4)


def test_context_of_the_whole_picture_replaces_that_of_a_part():
    model = MattingNet("nearest", dropout=0).eval()
    image = torch.rand(2, 4, 48, 32)
    with torch.no_grad():
        context = model.context(image)
        assert context.shape == (2, 256, 1, 1)
        assert torch.allclose(model(image, context), model(image), atol=1e-5)
        assert (model(image, context + 1) - model(image)).abs().max() > 1e-3


def test_aspp_sees_as_far_as_its_dilations():
    aspp = ASPP(3, 4, 5, (2, 4), dropout=0).eval()
    x = torch.zeros(1, 3, 21, 21, requires_grad=True)
    context = torch.zeros(1, 3, 1, 1)
    (gradient,) = torch.autograd.grad(aspp(x, context)[0, :, 10, 10].sum(), x)
    rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero().flatten().tolist()
    assert rows == [6, 8, 10, 12, 14]


@pytest.mark.parametrize("name", ["indexnet", "a2u"])
def test_guided_pooling(name):
    model = MattingNet(name, pooling="guided")
    model(torch.rand(2, 4, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not torch.equal(model.eval()(torch.ones(1, 4, 32, 32)), torch.zeros(1, 1, 32, 32))


def test_layers_outside_the_upsamplers_start_the_same_whatever_the_upsampler():
    states = []
    for name in ("bilinear", "fade"):
        torch.manual_seed(3)
        model = MattingNet(name)
        states.append({key: value for key, value in model.state_dict().items() if not key.startswith("upsamplers")})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_torchvision_s_resnet_34_fits_and_the_trimap_starts_unseen(tmp_path):
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision")
    theirs = torchvision.models.resnet34()
    torch.save(theirs.state_dict(), tmp_path / "resnet34.pth")
    model = MattingNet("nearest", weights=tmp_path / "resnet34.pth")
    assert torch.equal(model.trunk.conv1.weight[:, :3], theirs.conv1.weight)
    assert not model.trunk.conv1.weight[:, 3].any()
    assert torch.equal(model.trunk.layer3[3].conv2.weight, theirs.layer3[3].conv2.weight)
    assert torch.equal(model.trunk.layer2[0].downsample[0].weight, theirs.layer2[0].downsample[0].weight)
    assert normalisation("resnet34", None) == IMAGENET
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"must hold .* tensors like .*, got none for"):
        load_backbone(ResNet(), "resnet34", tmp_path / "part.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be"),
        ({"pooling": "mean"}, "pooling must be 'max' or 'guided', got 'mean'"),
        ({"upsampler": "fade", "pooling": "guided"}, "pooling must be 'max' for 'fade', which has no pooling half"),
        ({"upsampler": "a2u", "pooling": "guided", **LITE}, "pooling must be 'max' for trunk 'tf_efficientnet_lite0'"),
        ({"trunk": "resnet35"}, "trunk must be 'resnet34' or a name of timm, got 'resnet35'; did you mean 'resnet"),
        ({"upsampler": "fad"}, "did you mean 'fade'"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MattingNet(**options)


def test_an_image_without_trimap_is_refused():
    with pytest.raises(ValueError, match="image must"):
        MattingNet("nearest")(torch.rand(1, 3, 32, 32))
