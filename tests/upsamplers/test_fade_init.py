import math

import pytest
import torch

from fadeup import build_upsampler


def maps():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 16, 9, 11, generator=generator), torch.randn(2, 16, 18, 22, generator=generator)


@pytest.mark.parametrize("name", ["fade", "fade_lite"])
def test_authors_start_is_one_argument_away(name):
    module = build_upsampler(name, 16, init="xavier")
    assert module.fusion.gate.bias.item() == 0
    weight = module.kernels.content_encoder.weight
    fan_in = weight[0].numel()
    fan_out = weight.shape[0] * weight[0, 0].numel()
    bound = math.sqrt(6 / (fan_in + fan_out))
    assert 0.9 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize("name", ["fade", "fade_lite", "b6"])
def test_default_starts_near_the_mean_with_a_gate_of_an_eighth(name):
    torch.manual_seed(0)
    plain = build_upsampler(name, 16)
    torch.manual_seed(0)
    named = build_upsampler(name, 16, gate_bias=-2, init="small")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), named.parameters(), strict=True))
    assert torch.sigmoid(plain.fusion.gate.bias).item() == pytest.approx(0.119, abs=1e-3)
    assert build_upsampler(name, 16, gate_bias=0).fusion.gate.bias.item() == 0


def test_gates_of_other_upsamplers_start_half_open():
    assert build_upsampler("nearest+gate", 16, 16).fusion.gate.bias.item() == 0
    assert build_upsampler("b5", 16).fusion.gate is None


@pytest.mark.parametrize("name", ["fade", "fade_lite"])
def test_gate_bias_shuts_and_opens_the_gate(name):
    decoder, encoder = maps()
    module = build_upsampler(name, 16, gate_bias=-30)
    assert module.fusion.gate.bias.item() == -30
    up = module(decoder, encoder)
    module.fusion.mode = "none"
    torch.testing.assert_close(up, module(decoder, encoder))
    torch.testing.assert_close(build_upsampler(name, 16, gate_bias=30)(decoder, encoder), encoder)


@pytest.mark.parametrize("name", ["fade", "fade_lite", "b1", "b3", "b4"])
@pytest.mark.parametrize(("init", "centre"), [("small", 1 / 25), ("centred", 1 / 2)])
def test_weight_of_the_centre_at_the_start(name, init, centre):
    decoder, encoder = maps()
    module = build_upsampler(name, 16, init=init)
    assert module.kernels.content_encoder.weight.std() < 2e-3
    logits, coarse = module.kernels(encoder, decoder)
    if coarse is not None:
        logits = logits + torch.nn.functional.interpolate(coarse, scale_factor=2, mode="nearest")
    weights = logits.softmax(dim=1)[:, 12]
    assert (weights - centre).abs().max() < 0.05
    assert abs(weights.mean() - centre) < 0.01


def test_centred_counts_the_bias_as_the_high_to_low_form_does_and_a_single_tap_is_all_there_is():
    decoder, encoder = maps()
    logits, _ = build_upsampler("fade", 16, form="high_to_low", init="centred").kernels(encoder, decoder)
    assert abs(logits.softmax(dim=1)[:, 12].mean() - 0.5) < 0.01
    assert build_upsampler("fade", 16, kernel_size=1, init="centred").kernels.content_encoder.bias.item() == 0


def test_bad_values():
    with pytest.raises(ValueError, match="init must be one of 'small', 'centred', 'xavier', got 'zero'"):
        build_upsampler("fade", 16, init="zero")
    with pytest.raises(ValueError, match="gate_bias must be a finite number, got nan"):
        build_upsampler("fade", 16, gate_bias=float("nan"))
    with pytest.raises(ValueError, match="gate_bias must be a finite number, got 'shut'"):
        build_upsampler("fade_lite", 16, gate_bias="shut")
    with pytest.raises(ValueError, match="gate_bias must be 0 for fusion='none', which has no gate, got -2"):
        build_upsampler("b4", 16, gate_bias=-2)
