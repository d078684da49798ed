from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from fadeup import UPSAMPLERS, build_upsampler, load_official, reassemble
from fadeup.upsamplers.fade import OFFICIAL_KEYS
from helpers import ALL

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
WITH_ENCODER = {
    "fade-0": ("fade", {}),
    "fadelite-0": ("fade_lite", {}),
    "h2l-0": ("fade", {"form": "high_to_low"}),
    "semishiftup-0": ("fade", {"fusion": "none"}),
    "semishiftup-unequal-0": ("fade", {"fusion": "none"}),
    "a2u-0": ("a2u", {}),
    "sapa-0": ("sapa", {}),
}


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("name", WITH_ENCODER)
def test_methods_with_an_encoder(golden, name, impl):
    data = golden(name)
    decoder, encoder = data.inputs["decoder"], data.inputs["encoder"]
    kind, options = WITH_ENCODER[name]
    module = build_upsampler(kind, decoder.shape[1], encoder.shape[1], impl=impl, **options)
    load_official(module, data.state)
    torch.testing.assert_close(module(decoder, encoder), data.outputs["up"], **TOLERANCE)


def test_high_to_low_weights_serve_the_low_to_high_form(golden):
    data = golden("h2l-0")
    module = build_upsampler("fade", 8)
    load_official(module, data.state)
    torch.testing.assert_close(module(data.inputs["decoder"], data.inputs["encoder"]), data.outputs["up"], **TOLERANCE)


@pytest.mark.parametrize("name", ["dysample-lp-0", "dysample-lp-dyscope-0", "dysample-pl-0", "dysample-pl-dyscope-0"])
def test_dysample(golden, name):
    data = golden(name)
    options = {key: data.about[key] for key in ("style", "dyscope", "groups")}
    module = build_upsampler("dysample", 8, **options)
    start = module.start.clone()
    load_official(module, data.state)
    torch.testing.assert_close(module.start, start)  # the authors' init_pos is what ours starts from
    torch.testing.assert_close(module(data.inputs["decoder"]), data.outputs["up"], **TOLERANCE)


@pytest.mark.parametrize("kind", ["linear", "nonlinear-context"])
@pytest.mark.parametrize(
    ("mode", "theirs"), [("holistic", "holistic"), ("o2o", "depthwiseo2o"), ("m2o", "depthwisem2o")]
)
def test_indexnet(golden, mode, theirs, kind):
    data = golden(f"indexnet-{theirs}-{kind}-0")
    nonlinear, context = data.about["nonlinear"], data.about["context"]
    module = build_upsampler("indexnet", 8, mode=mode, nonlinear=nonlinear, context=context).eval()
    load_official(module, data.state)
    encoder = data.inputs["encoder"]
    pooling, up = module.indices(encoder)
    torch.testing.assert_close(pooling, data.outputs["index_encoder"], **TOLERANCE)
    torch.testing.assert_close(up, data.outputs["index_decoder"], **TOLERANCE)
    decoder = torch.randn(2, 8, 5, 7)
    nearest = F.interpolate(decoder, scale_factor=2, mode="nearest")
    torch.testing.assert_close(module(decoder, encoder), data.outputs["index_decoder"] * nearest, **TOLERANCE)
    pooled = 4 * F.avg_pool2d(data.outputs["index_encoder"] * encoder, 2)
    torch.testing.assert_close(module.pool(encoder), pooled, **TOLERANCE)


@pytest.mark.parametrize("impl", ALL)
def test_reassembly_by_given_kernels(golden, impl):
    data = golden("reassemble-0")
    up = reassemble(data.inputs["decoder"], data.inputs["kernels"].log(), impl=impl)
    torch.testing.assert_close(up, data.outputs["up"], **TOLERANCE)


class Twin(nn.Module):
    """CARAFEPack of mmcv, by hand: its names, its defaults, its normaliser, and unfold for its reassembly."""

    def __init__(self, channels: int):
        super().__init__()
        self.channel_compressor = nn.Conv2d(channels, 64, 1)
        self.content_encoder = nn.Conv2d(64, 100, 3, padding=1)

    def forward(self, x):
        batch, channels, height, width = x.shape
        masks = F.pixel_shuffle(self.content_encoder(self.channel_compressor(x)), 2).softmax(1)
        windows = F.unfold(x, 5, padding=2).reshape(batch, channels * 25, height, width)
        windows = windows.repeat_interleave(2, 2).repeat_interleave(2, 3).reshape(batch, channels, 25, *masks.shape[2:])
        return (windows * masks[:, None]).sum(2)


def test_carafe_takes_the_names_of_mmcv():
    twin = Twin(6)
    nn.init.normal_(twin.content_encoder.weight, std=0.2)
    module = build_upsampler("carafe", 6)
    load_official(module, twin.state_dict())
    decoder = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(module(decoder), twin(decoder), **TOLERANCE)


class LinearTwin(nn.Module):
    """The first public code of SAPA, by hand: LayerNorm and linear layers over points, 64 channels, no scaling."""

    def __init__(self, encoder_channels: int, decoder_channels: int):
        super().__init__()
        self.norm_y, self.norm_x = nn.LayerNorm(encoder_channels), nn.LayerNorm(decoder_channels)
        self.q, self.k = nn.Linear(encoder_channels, 64), nn.Linear(decoder_channels, 64)

    def forward(self, decoder, encoder):
        query = self.q(self.norm_y(encoder.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        key = self.k(self.norm_x(decoder.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        keys, values = (F.unfold(x, 5, padding=2).reshape(*x.shape[:2], 25, *x.shape[2:]) for x in (key, decoder))
        keys, values = (x.repeat_interleave(2, 3).repeat_interleave(2, 4) for x in (keys, values))
        weights = (query[:, :, None] * keys).sum(1).softmax(1)
        return (weights[:, None] * values).sum(2)


@pytest.mark.parametrize("encoder_channels", [6, 9])
def test_sapa_takes_the_linear_layers_of_the_first_code(encoder_channels):
    twin = LinearTwin(encoder_channels, 6)
    for parameter in twin.parameters():
        nn.init.normal_(parameter, std=0.3)
    module = build_upsampler("sapa", 6, encoder_channels, embedding_dim=64, norm="layer")
    load_official(module, twin.state_dict())
    decoder, encoder = torch.randn(2, 6, 5, 7), torch.randn(2, encoder_channels, 10, 14)
    torch.testing.assert_close(module(decoder, encoder), twin(decoder, encoder), **TOLERANCE)


def test_a_prefix_takes_its_part_of_a_whole_network(golden):
    data = golden("fade-0")
    network = {f"decoder_layer4.up.{key}": value for key, value in data.state.items()}
    network |= {"decoder_layer4.conv.weight": torch.ones(1), "fc.bias": torch.ones(1)}
    module = build_upsampler("fade", 8)
    load_official(module, network, prefix="decoder_layer4.up.")
    torch.testing.assert_close(module(data.inputs["decoder"], data.inputs["encoder"]), data.outputs["up"], **TOLERANCE)


@pytest.mark.parametrize("prefix", ["decoder_layer4.up.", "module.decoder_layer4.up."])
@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
def test_files_of_whole_networks_trained_in_parallel(golden, tmp_path, suffix, prefix):
    data = golden("fade-0")
    network = {f"module.decoder_layer4.up.{key}": value for key, value in data.state.items()}
    network |= {"module.fc.bias": torch.ones(1)}
    path = tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        save_file(network, path)
    else:
        torch.save({"epoch": 3, "state_dict": network, "optimizer": {"lr": 0.1}}, path)
    module = build_upsampler("fade", 8)
    load_official(module, str(path) if prefix.startswith("module") else path, prefix=prefix)
    torch.testing.assert_close(module(data.inputs["decoder"], data.inputs["encoder"]), data.outputs["up"], **TOLERANCE)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "state_dict must be a file that exists, got .*weights.pth"),
        (b"rubbish", ValueError, "state_dict must be a readable file of tensors, got .*weights.pth"),
        ([torch.ones(1)], ValueError, "state_dict must be a dictionary of tensors, got list in .*weights.pth"),
        ({"epoch": 3, "net": {}}, ValueError, "must be a dictionary of tensors, got int as 'epoch' in .*weights.pth"),
        (nn.Conv2d(1, 1, 1), ValueError, "must be a readable file of tensors, got .*: Weights only load failed"),
    ],
    ids=["none", "rubbish", "list", "wrapper", "module"],
)
def test_files_that_are_no_checkpoint(tmp_path, content, error, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(error, match=message):
        load_official(build_upsampler("fade", 8), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({3: torch.ones(1)}, "state_dict must be a dictionary of tensors, got Tensor as 3$"),
        (nn.Conv2d(1, 1, 1), "state_dict must be a dictionary of tensors, got Conv2d$"),
    ],
)
def test_what_is_no_dictionary_of_tensors(content, message):
    with pytest.raises(ValueError, match=message):
        load_official(build_upsampler("fade", 8), content)


def test_safetensors_is_named_where_it_is_missing(tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"safetensors must be .* for 'w.safetensors'.*; pip install safe"):
        load_official(build_upsampler("fade", 8), tmp_path / "w.safetensors")


def spoiled(state: dict, how: str) -> dict:
    first = "ker_generator.compressor_en.weight"
    if how == "unknown":
        return state | {"ker_generator.extra": torch.ones(1)}
    if how == "missing":
        return {key: value for key, value in state.items() if key != first}
    if how == "shape":
        return state | {first: state[first][:, :7]}
    if how == "prefix":
        return {f"network.layer4.up.{key}": value for key, value in state.items()}
    return {}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unknown", r"unknown names \['ker_generator.extra'\] and no weights for none; build the upsampler with"),
        ("missing", r"unknown names none and no weights for \['kernels.encoder_compressor.weight'\]"),
        ("shape", r"encoder_compressor.weight must be \(64, 8, 1, 1\), got \(64, 7, 1, 1\); build .* channels"),
        ("prefix", r"unknown names \['network.*\] and 2 more .* or set prefix to one of \['network.layer4.up.'\]$"),
        ("empty", r"unknown names none and no weights for \['fusion.gate.bias', "),
    ],
)
def test_nothing_is_loaded_where_something_does_not_fit(golden, how, message):
    module = build_upsampler("fade", 8)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_official(module, spoiled(golden("fade-0").state, how))
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_the_wrong_options_are_named(golden):
    with pytest.raises(ValueError, match=r"state_dict must be the weights of FADE\((.|\n)*unknown names \['gate_gener"):
        load_official(build_upsampler("fade", 8, fusion="none"), golden("fade-0").state)
    with pytest.raises(ValueError, match=r"unknown names \['scope.weight'\]"):
        load_official(build_upsampler("dysample", 8), golden("dysample-lp-dyscope-0").state)


@pytest.mark.parametrize("name", ["nearest", "bilinear", "deconv", "pixel_shuffle", "max_unpool"])
def test_upsamplers_without_a_public_checkpoint_say_so(name):
    with pytest.raises(ValueError, match=f"module must be one of FADE, CARAFE, .*, got {UPSAMPLERS[name].__name__}"):
        load_official(build_upsampler(name, 8), {})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_weights_of_another_dtype_are_taken_into_ours(golden, dtype):
    data = golden("fade-0")
    module = build_upsampler("fade", 8).to(dtype)
    load_official(module, data.state)
    expected = {ours: data.state[theirs].to(dtype) for theirs, ours in OFFICIAL_KEYS[0].items()}
    torch.testing.assert_close(dict(module.state_dict()), expected, rtol=0, atol=0)


def test_weights_of_half_precision_are_taken_into_float32(golden):
    data = golden("fade-0")
    module = build_upsampler("fade", 8)
    load_official(module, {key: value.half() for key, value in data.state.items()})
    expected = {ours: data.state[theirs].half().float() for theirs, ours in OFFICIAL_KEYS[0].items()}
    torch.testing.assert_close(dict(module.state_dict()), expected, rtol=0, atol=0)
