import copy

import pytest
import torch
from torch import nn

from fadeup.cost import SEGMENTATION_HEAD, network_cost, upsampler_cost
from fadeup.models import SegFormer
from fadeup.models.segformer import SegFormerHead
from fadeup.upsamplers import UPSAMPLERS

transformers = pytest.importorskip("transformers", reason="needs transformers")
timm = pytest.importorskip("timm", reason="needs timm")
LITE0 = "tf_efficientnet_lite0"


def lively(model: nn.Module) -> nn.Module:
    """Biases and statistics that are not 0 and 1, so that a part left out shows."""
    torch.manual_seed(5)
    for name, value in model.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            value.normal_(0, 0.3)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def hugging_face():
    torch.manual_seed(0)
    names = {0: "sky", 1: "road", 2: "horse"}
    sizes = {"depths": (1, 2, 1, 1), "hidden_sizes": (8, 16, 24, 32), "num_attention_heads": (1, 2, 3, 4)}
    config = transformers.SegformerConfig(**sizes, decoder_hidden_size=16, initializer_range=0.2, id2label=names)
    return lively(transformers.SegformerForSemanticSegmentation(config))


@pytest.fixture(scope="module")
def checkpoint(hugging_face, tmp_path_factory):
    folder = tmp_path_factory.mktemp("segformer")
    hugging_face.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "more"), [("bilinear", 0), ("fade", 285_084), ("fade_lite", 79_992)])
def test_parameters_of_b1_on_150_classes(name, more):
    with torch.device("meta"):
        model = SegFormer("mit_b1", 150, name)
    assert sum(parameter.numel() for parameter in model.parameters()) == 13_715_798 + more


@pytest.mark.parametrize("name", [*UPSAMPLERS, "b3", "b5", "carafe+gate"])
def test_trains_at_odd_sizes(name):
    model = SegFormer("mit_b0", 3, name, channels=32)
    logits = model(torch.rand(2, 3, 97, 65))
    assert logits.shape == (2, 3, 25, 17)
    logits.sum().backward()
    down = [f"head.upsamplers.{i}.down" for i in range(6)] if name == "a2u" else []
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == key.startswith(tuple(down)), key


@pytest.mark.parametrize("size", [(32, 32), (45, 70)])
def test_timm_backbone_and_full_size(size):
    model = SegFormer(LITE0, 5, channels=16, full_size=True)
    logits = model(torch.rand(2, 3, *size))
    assert logits.shape == (2, 5, *size)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_layers_outside_the_upsamplers_start_the_same_whatever_the_upsampler():
    states = []
    for name in ("bilinear", "fade", "carafe"):
        torch.manual_seed(3)
        state = SegFormer(LITE0, 3, name, channels=8).state_dict()
        states.append({key: value for key, value in state.items() if "upsamplers" not in key})
    for other in states[1:]:
        assert states[0].keys() == other.keys()
        assert all(torch.equal(states[0][key], other[key]) for key in other)


@pytest.mark.parametrize("size", [(64, 96), (97, 65), (32, 33)])
@pytest.mark.parametrize("grad", [True, False], ids=["plain", "fast"])
def test_bilinear_is_the_baseline_of_transformers(hugging_face, checkpoint, size, grad):
    image = torch.randn(2, 3, *size)
    model = SegFormer.from_pretrained(checkpoint)
    with torch.set_grad_enabled(grad):
        logits = model(image)
    with torch.no_grad():
        expected = hugging_face(image).logits
    assert expected.std() > 0.1
    assert logits.requires_grad == grad
    torch.testing.assert_close(logits.detach(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["mit_b0", LITE0])
@pytest.mark.parametrize("name", ["fade", "fade_lite", "bilinear", "carafe", "b5", "fade,form=high_to_low"])
def test_without_gradients_it_computes_the_same(backbone, name):
    model = lively(SegFormer(backbone, 7, name, channels=24))
    nn.init.normal_(model.head.fuse.weight)
    for size in ((64, 96), (97, 65))[: 1 if "high" in name else 2]:  # that form needs whole ratios
        image = torch.randn(2, 3, *size)
        plain = model(image).detach()
        with torch.no_grad():
            fast = model(image)
        assert not torch.equal(plain, fast)  # it is another way
        torch.testing.assert_close(fast, plain, atol=2e-5 * plain.abs().max().item(), rtol=0)


def test_hooks_training_parts_and_autocast_get_the_plain_way(monkeypatch):
    monkeypatch.setattr("fadeup.models.segformer_inference.mit_maps", None)  # to call it would fail
    model = SegFormer("mit_b0", 3, channels=8).eval()
    image = torch.rand(1, 3, 32, 32)
    calls = []
    with torch.no_grad():
        with pytest.raises(TypeError):
            model(image)
        handle = model.head.upsamplers[2].register_forward_hook(lambda module, inputs, output: calls.append(inputs))
        model(image)
        handle.remove()
        assert [x.shape[2] for x in calls[0]] == [4, 8]
        with torch.autocast("cpu", torch.bfloat16):
            model(image)
        model.head.dropout.train()
        model(image)
    model.eval()(image)


def test_replaced_layers_get_the_plain_head():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = SegFormer("mit_b0", 3, channels=8).eval()
    model.head.classify = Doubled(8, 3, 1)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        fast = model(image)
    torch.testing.assert_close(fast, model(image).detach())


@pytest.mark.parametrize("name", ["fade", "fade_lite"])
@pytest.mark.parametrize("grad", [True, False], ids=["plain", "fast"])
def test_head_with_the_authors_weights(golden, name, grad):
    data = golden(f"segformer-head-{name}-0")
    head = SegFormerHead((8, 12, 16, 20), 5, name, channels=16)
    head.load_official(data.state, prefix="")
    model = SegFormer(LITE0, 5, name, channels=16)
    model.head = head
    model.backbone = nn.Identity()
    model.eval()
    maps = [data.inputs[f"c{level}"] for level in (1, 2, 3, 4)]
    with torch.set_grad_enabled(grad):
        if grad:
            logits = head(maps)
        else:
            model.backbone.forward = lambda image: maps
            logits = model(torch.rand(1, 3, 64, 96))
    torch.testing.assert_close(logits.detach(), data.outputs["logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["decode_head.", "module.decode_head."])
def test_head_from_a_file_of_a_network_trained_in_parallel(golden, prefix, tmp_path):
    data = golden("segformer-head-fade-0")
    network = {f"module.decode_head.{key}": value for key, value in data.state.items()}
    torch.save({"meta": {"epoch": 3}, "state_dict": network | {"module.backbone.x": torch.ones(1)}}, tmp_path / "n.pth")
    head = SegFormerHead((8, 12, 16, 20), 5, "fade", channels=16).eval()
    head.load_official(tmp_path / "n.pth", prefix=prefix)
    logits = head([data.inputs[f"c{level}"] for level in (1, 2, 3, 4)])
    torch.testing.assert_close(logits, data.outputs["logits"], atol=1e-5, rtol=1e-5)


def test_official_weights_that_do_not_fit(golden):
    state = golden("segformer-head-fade-0").state
    head = SegFormerHead((8, 12, 16, 20), 5, "fade", channels=16)
    with pytest.raises(ValueError, match=r"state_dict must hold \(16, 8, 1, 1\) for project.0.weight, got nothing"):
        head.load_official(state)
    with pytest.raises(ValueError, match=r"\(8, 8, 1, 1\) for project.0.weight, got \(16, 8, 1, 1\); set prefix or"):
        SegFormerHead((8, 12, 16, 20), 5, "fade", channels=8).load_official(state, prefix="")


def test_from_pretrained_keeps_classes_and_starts_another_upsampler_afresh(hugging_face, checkpoint):
    model = SegFormer.from_pretrained(checkpoint, "fade", full_size=True, kernel_size=3)
    assert model.classes == ["sky", "road", "horse"]
    assert model.head.upsamplers[0].kernel_size == 3
    assert model(torch.rand(1, 3, 40, 50)).shape == (1, 3, 40, 50)
    assert torch.equal(model.head.fuse.weight, hugging_face.decode_head.linear_fuse.weight)
    state = model.backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in hugging_face.segformer.state_dict().items())


def test_from_pretrained_refuses_what_is_no_segformer(hugging_face, tmp_path):
    with pytest.raises(FileNotFoundError, match="must be the folder of a Hugging Face checkpoint, got no such folder"):
        SegFormer.from_pretrained(tmp_path / "none")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=9)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"must hold a SegFormer .* got a network of type 'bert'"):
        SegFormer.from_pretrained(tmp_path / "bert")
    hugging_face.segformer.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"must hold all weights .* got none for .* like decode_head"):
        SegFormer.from_pretrained(tmp_path / "encoder")


def test_from_pretrained_offline(monkeypatch):
    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(FileNotFoundError, match="within reach, got no network; connect once, or save the checkpoint"):
        SegFormer.from_pretrained("nvidia/segformer-b0-finetuned-ade-512-512")


def test_cost_of_the_network_counts_each_upsampler_once():
    image = torch.rand(1, 3, 64, 64)
    plain, fade = (network_cost(SegFormer("mit_b0", 3, name).eval(), image) for name in ("bilinear", "fade"))
    sides = [upsampler_cost("fade", channels, side // 8, side // 8).macs for channels, side in SEGMENTATION_HEAD]
    assert fade.macs - plain.macs == sum(sides)
    assert fade.parameters - plain.parameters == 285_084


def test_copies_and_saved_weights_compute_the_same(tmp_path):
    model = lively(SegFormer("mit_b0", 3, channels=8))
    image = torch.rand(1, 3, 32, 32)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    other = SegFormer("mit_b0", 3, channels=8).eval()
    other.load_state_dict(torch.load(tmp_path / "m.pth", weights_only=True))
    with torch.no_grad():
        assert torch.equal(model(image), copy.deepcopy(model)(image))
        assert torch.equal(model(image), other(image))


def test_bad_arguments():
    model = SegFormer("mit_b0", 3, channels=8)
    with pytest.raises(ValueError, match="image must be at least 32 x 32, got 31 x 40; resize it"):
        model(torch.rand(1, 3, 31, 40))
    with pytest.raises(ValueError, match="image must be of 3 channels, got 1"):
        model(torch.rand(1, 1, 64, 64))
    with pytest.raises(ValueError, match="backbone must be 'mit_b0' to 'mit_b5' or a name of timm, got 'mit_b7'; did"):
        SegFormer("mit_b7")
    with pytest.raises(ValueError, match=r"features at strides 4, 8, 16, 32, got 'vit_tiny_patch16_224' with \[16"):
        SegFormer("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="weights must be None for a backbone that is built already, got 'imagenet'"):
        SegFormer(model.backbone, weights="imagenet")
    with pytest.raises(ValueError, match="num_classes must be a whole number, 1 or more, got 0"):
        SegFormer("mit_b0", 0)
    with pytest.raises(ValueError, match="did you mean 'carafe'"):
        SegFormer("mit_b0", 3, "carafee")


def test_a_frozen_backbone_stays_as_it_is():
    pytest.importorskip("timm", reason="needs timm")
    model = SegFormer("tf_efficientnet_lite0", 3, "bilinear", channels=8, frozen=True).train()
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
    assert model.head.training
    assert not model.backbone.training
