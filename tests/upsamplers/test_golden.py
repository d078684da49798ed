from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fadeup import UPSAMPLERS, build_upsampler, load_official, reassemble
from fadeup.kernels.op import IMPLEMENTATIONS

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


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
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


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
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


def test_a_prefix_takes_its_part_of_a_whole_network(golden):
    data = golden("fade-0")
    network = {f"decoder_layer4.up.{key}": value for key, value in data.state.items()}
    network |= {"decoder_layer4.conv.weight": torch.ones(1), "fc.bias": torch.ones(1)}
    module = build_upsampler("fade", 8)
    load_official(module, network, prefix="decoder_layer4.up.")
    torch.testing.assert_close(module(data.inputs["decoder"], data.inputs["encoder"]), data.outputs["up"], **TOLERANCE)


def spoiled(state: dict, how: str) -> dict:
    first = "ker_generator.compressor_en.weight"
    if how == "unknown":
        return state | {"ker_generator.extra": torch.ones(1)}
    if how == "missing":
        return {key: value for key, value in state.items() if key != first}
    if how == "shape":
        return state | {first: state[first][:, :7]}
    if how == "prefix":
        return {f"module.{key}": value for key, value in state.items()}
    return {}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unknown", r"unknown names \['ker_generator.extra'\] and no weights for none; build the upsampler with"),
        ("missing", r"unknown names none and no weights for \['kernels.encoder_compressor.weight'\]"),
        ("shape", r"encoder_compressor.weight must be \(64, 8, 1, 1\), got \(64, 7, 1, 1\); build .* channels"),
        ("prefix", r"unknown names \['module.gate_generator.conv.bias', .* or set prefix"),
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


def test_weights_of_another_dtype_are_taken_into_ours(golden):
    data = golden("fade-0")
    module = build_upsampler("fade", 8).double()
    load_official(module, data.state)
    assert {value.dtype for value in module.state_dict().values()} == {torch.float64}
