"""upgrade and downgrade on small networks: what is found, what changes, what does not, and what is refused."""
# ruff: noqa: E501 - a case of the table of messages is a line

from __future__ import annotations

import copy
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small_networks import PLAIN, Flat, Nested, Pooled, Shared, Transposed, Twice, Wavering
from torch import nn

import fadeup
from fadeup import Guide, downgrade, upgrade
from fadeup.cost import network_cost
from fadeup.plug import added_parameters
from fadeup.upsamplers import UPSAMPLERS

IMAGE = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
NETWORKS = pytest.mark.parametrize("name", PLAIN)


def built(kind=Nested):
    """The network in evaluation mode, with BatchNorm statistics that are not the initial ones."""
    model = kind()
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 32, 48))
    return model.eval()


def anatomy(model):
    """All that an upgrade could change."""
    modules = [(name, type(module), module.training) for name, module in model.named_modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return modules, state, [p.requires_grad for p in model.parameters()]


def assert_untouched(model, before):
    modules, state, trained = anatomy(model)
    assert (modules, trained) == (before[0], before[2])
    assert state.keys() == before[1].keys()
    assert all(torch.equal(value, before[1][key]) for key, value in state.items())


# ---- what is found ----


def test_guides_come_from_the_arguments_of_the_modules_around_or_from_what_modules_return():
    nested, flat = upgrade(Nested(), example_inputs=IMAGE), upgrade(Flat(), example_inputs=IMAGE)
    assert [(row.where, row.guide, row.guide_channels) for row in nested.placed] == [
        ("decoder.first", "encoder.layer2", 16),
        ("decoder.second", "encoder.layer1", 8),
    ]
    assert [(row.where, row.guide) for row in flat.placed] == [("up2", "encoder.layer2"), ("up1", "encoder.layer1")]
    assert [(row.where, row.reason) for row in nested.left] == [
        ("the network itself", "the last resize, of the result")
    ]


def test_the_report_counts_and_shows():
    model = Transposed()
    before = sum(p.numel() for p in model.parameters())
    report = upgrade(model, "fade_lite", example_inputs=IMAGE)
    assert sum(p.numel() for p in model.parameters()) - before == report.parameters
    # 32 channels are projected to 16 before the upsampler, over 8 x 12 points
    fade = fadeup.build_upsampler("fade_lite", 16, 16)
    assert report.rows[0].parameters == sum(p.numel() for p in fade.parameters()) + 32 * 16 + 16
    assert report.rows[0].macs == fade.macs(8, 12) + 32 * 16 * 8 * 12
    assert report.rows[0].removed == 32 * 16 * 16 + 16
    text = str(report)
    assert re.search(
        r"^up2 +transposed convolution +32 × 8 × 12 +16 × 16 × 24 +encoder.layer2 \(16\) +fade_lite", text, re.M
    )
    assert "2 of 2 resizes upgraded" in text
    assert report.markdown().count("\n") == 3


def test_rows_that_were_left_for_one_reason_stand_as_one_line():
    row = fadeup.plug.Row("paste:{}", "bilinear", (3, 4, 4), (3, 4, 4), reason="not larger in both directions")
    rows = [fadeup.plug.Row(f"paste:{i}", row.was, row.source, row.result, reason=row.reason) for i in range(40)]
    text = str(fadeup.plug.Report(tuple(rows)))
    assert len(text.splitlines()) == 3
    assert "paste:0 to 39" in text


def test_pooled_maps_and_maps_of_one_channel_are_left():
    with pytest.raises(ValueError, match=r"got none \(.*:0: made of pooled maps; .*:1: a map of one channel\)"):
        upgrade(Pooled(), example_inputs=IMAGE)


def test_within_looks_inside_one_module_only():
    report = upgrade(Nested(), example_inputs=IMAGE, within="decoder.second")
    assert [row.where for row in report.rows] == ["decoder.second"]


def test_without_an_example_noise_is_taken():
    assert len(upgrade(Nested()).placed) == 2


@pytest.mark.parametrize("example", [IMAGE, (IMAGE,), {"image": IMAGE}], ids=["tensor", "tuple", "mapping"])
def test_examples_come_in_three_forms(example):
    assert len(upgrade(Nested(), example_inputs=example).placed) == 2


def test_a_module_that_runs_twice_has_its_steps_once():
    model = Twice()
    before = sum(p.numel() for p in model.parameters())
    report = upgrade(model, example_inputs=torch.rand(2, 3, 64, 64))
    assert len(report.placed) == 4
    assert report.parameters == sum(p.numel() for p in model.parameters()) - before
    model(torch.rand(2, 3, 64, 64)).backward()
    assert all(p.grad is not None for p in added_parameters(model))


def test_one_module_at_two_levels_gets_two_upsamplers():
    report = upgrade(Shared(), example_inputs=IMAGE)
    assert [(row.where, row.source[0], row.guide) for row in report.placed] == [
        ("up:0", 32, "encoder.layer2"),
        ("up:1", 16, "encoder.layer1"),
    ]


def test_resizes_inside_our_upsamplers_are_theirs():
    from fadeup.models import Autoencoder

    with pytest.raises(ValueError, match="part of an upsampler of fadeup"):
        upgrade(Autoencoder("bilinear"))


# ---- what changes, and what does not ----


@NETWORKS
def test_upgraded_trained_and_downgraded(name):
    model = built(PLAIN[name])
    before, expected = anatomy(model), model(IMAGE).detach()
    upgrade(model, example_inputs=IMAGE)
    after = model(IMAGE)
    assert after.shape == expected.shape
    assert not torch.equal(after, expected)
    after.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in added_parameters(model) if p.dim() > 1)
    assert type(model).__name__ == type(PLAIN[name]()).__name__
    downgrade(model)
    assert_untouched(model, before)
    assert torch.equal(model(IMAGE), expected)


@pytest.mark.parametrize("upsampler", [*UPSAMPLERS, "nearest+gate", "carafe+gate", "fade,kernel_size=3,fusion=none"])
def test_every_upsampler_fits(upsampler):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 1)
    )
    report = upgrade(model, upsampler, example_inputs=IMAGE)
    assert report.placed[0].upsampler == upsampler
    assert model(IMAGE).shape == (2, 4, 32, 48)
    assert len(model) == 4
    assert len(list(model)) == 4
    module = fadeup.build_upsampler(upsampler, 8)
    assert report.parameters == sum(p.numel() for p in module.parameters())
    assert report.macs == module.macs(16, 24)


@NETWORKS
@pytest.mark.parametrize("upsampler", ["fade", "carafe", "bilinear"])
def test_from_the_host_it_starts_bit_by_bit(name, upsampler):
    model = built(PLAIN[name])
    for memory_format in (torch.contiguous_format, torch.channels_last):
        image = IMAGE.contiguous(memory_format=memory_format)
        with torch.no_grad():
            expected = model(image)
            report = upgrade(model, upsampler, example_inputs=IMAGE, init="host")
            assert torch.equal(model(image), expected)
        downgrade(model)
    assert all(row.upsampler == f"{upsampler}, blended" for row in report.placed)


def test_the_blend_gets_its_gradient_at_once_and_the_upsampler_after_one_step():
    model = built()
    upgrade(model, example_inputs=IMAGE, init="host")
    steps = dict(model.decoder.fadeup.named_children())
    target = torch.rand_like(model(IMAGE))

    def descend():
        model.zero_grad()
        torch.nn.functional.mse_loss(model(IMAGE), target).backward()
        return [
            (step.blend.s.grad.item(), step.upsampler.kernels.content_encoder.weight.grad.abs().max().item())
            for step in steps.values()
        ]

    first = descend()
    assert all(s != 0 and upsampler == 0 for s, upsampler in first)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(upsampler > 0 for _, upsampler in descend())
    assert re.search(r"Blend\(s=-?\d.*e?-?\d*\)", repr(model))


def test_the_formula_of_the_blend():
    blend = fadeup.plug.Blend(4)
    base, up = torch.rand(2, 4, 5, 6), torch.rand(2, 4, 5, 6)
    with torch.no_grad():
        blend.s.fill_(0.25)
    torch.testing.assert_close(blend(base, up), 0.75 * base + 0.25 * up)
    assert blend.macs(5, 6) == 2 * 4 * 5 * 6


def test_cost_sees_upsamplers_and_blends():
    model = built()
    plain = network_cost(model, IMAGE)
    report = upgrade(model, example_inputs=IMAGE, init="host")
    upgraded = network_cost(model, IMAGE)
    assert upgraded.parameters - plain.parameters == report.parameters
    assert upgraded.macs - plain.macs == report.macs


def test_only_the_upsamplers_train_where_asked():
    model = built()
    before = anatomy(model)
    upgrade(model, example_inputs=IMAGE, trainable="upsamplers")
    own = {id(p) for p in added_parameters(model)}
    assert all(p.requires_grad == (id(p) in own) for p in model.parameters())
    model.train()
    statistics = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    model(torch.rand(2, 3, 32, 48) + 3).sum().backward()
    assert model.training
    assert all(torch.equal(model.state_dict()[key], value) for key, value in statistics.items())
    assert all((p.grad is not None) == (id(p) in own) for p in model.parameters())
    downgrade(model.eval())
    assert_untouched(model, before)


def test_a_norm_that_was_in_evaluation_by_itself_stays_there():
    model = built().train()
    model.encoder.layer1[1].eval()
    before = anatomy(model)
    upgrade(model, example_inputs=IMAGE, trainable="upsamplers")
    downgrade(model)
    assert_untouched(model, before)


def test_a_transposed_convolution_called_as_a_function():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
            self.kernel, self.head = nn.Parameter(torch.rand(8, 8, 2, 2)), nn.Conv2d(8, 4, 1)

        def forward(self, image):
            return self.head(nn.functional.conv_transpose2d(self.coarse(self.fine(image)), self.kernel, stride=2))

    model = Functional()
    report = upgrade(model, example_inputs=IMAGE)
    assert (report.placed[0].was, report.placed[0].removed) == ("transposed convolution", 0)
    assert model(IMAGE).shape == (2, 4, 32, 48)


def test_an_upsampler_that_has_statistics_keeps_them_up_to_date():
    model = built()
    upgrade(model, {"decoder.second": Guide("encoder.layer1", "indexnet,mode=holistic")}, trainable="upsamplers")
    model.train()
    norm = next(m for m in model.fadeup.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    model(IMAGE)
    assert norm.training
    assert not torch.equal(norm.running_mean, before)


def test_a_replaced_convolution_follows_the_network_when_it_comes_back():
    model = built(Transposed)
    convolution = model.up2
    upgrade(model, example_inputs=IMAGE)
    assert not any(p is convolution.weight for p in model.parameters())
    downgrade(model.double())
    assert model.up2 is convolution
    assert model(IMAGE.double()).dtype == torch.float64


@NETWORKS
def test_copies_pickles_and_states(name):
    model = built(PLAIN[name])
    upgrade(model, example_inputs=IMAGE)
    with torch.no_grad():
        expected = model(IMAGE)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(IMAGE), expected)
            downgrade(twin)
        other = PLAIN[name]().eval()
        upgrade(other, example_inputs=IMAGE)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(IMAGE), expected)


@NETWORKS
def test_compiles_in_one_graph(name):
    model = built(PLAIN[name])
    upgrade(model, example_inputs=IMAGE, init="host")
    with torch.no_grad():
        next(added_parameters(model)).add_(0.1)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IMAGE), model(IMAGE))
    compiled(IMAGE).sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "init"), [("flat", "host"), ("nested", None)])
def test_exports_with_dynamic_sizes(name, init, tmp_path):
    """To ONNX, through torch.export; compared in onnxruntime at three sizes, odd ones where the network takes them."""
    pytest.importorskip("onnxscript", reason="needs the export extra")
    from fadeup.export import export_onnx

    model = built(PLAIN[name])
    upgrade(model, example_inputs=IMAGE, init=init)
    with torch.no_grad():
        for parameter in added_parameters(model):
            parameter.add_(0.01)  # the blend too
    others = [
        (torch.rand(3, 3, 41, 37) if name == "nested" else torch.rand(3, 3, 44, 36),),
        (torch.rand(1, 3, 24, 64),),
    ]
    report = export_onnx(model, (IMAGE,), tmp_path / "upgraded.onnx", others=others)
    assert len(report.comparisons) == 3
    assert report.difference < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("init", [None, "host"])
def test_half_precision(dtype, init):
    model = built()
    upgrade(model, example_inputs=IMAGE, init=init)
    with torch.no_grad():
        expected = model(IMAGE)
    with torch.autocast("cpu", dtype=dtype):
        out = model(IMAGE)
        out.float().sum().backward()
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()
    out = model.to(dtype)(IMAGE.to(dtype))
    assert out.dtype == dtype
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_network_in_half_precision_is_upgraded_in_it():
    model = built().bfloat16()
    upgrade(model, example_inputs=IMAGE.bfloat16())
    assert all(p.dtype == torch.bfloat16 for p in added_parameters(model))
    assert model(IMAGE.bfloat16()).dtype == torch.bfloat16


def test_threads_do_not_meet():
    model = built(Flat)
    upgrade(model, example_inputs=IMAGE)
    images = [torch.rand(1, 3, 32 + 4 * i, 48) for i in range(16)]
    with torch.no_grad():
        expected = [model(image) for image in images]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(torch.no_grad()(model), images))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_example_leaves_no_trace():
    model = built().train()
    before, random = anatomy(model), torch.get_rng_state()
    report = upgrade(model, "bilinear", example_inputs=IMAGE)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    downgrade(model)
    assert report.parameters == 0
    assert_untouched(model, before)


# ---- steps and guides by name ----


def test_one_line_names_step_and_guide():
    model = built(Flat)
    report = upgrade(model, {"up2": Guide("encoder.layer2")})
    assert [(row.where, row.guide) for row in report.placed] == [("up2", "encoder.layer2")]
    assert [(row.where, row.reason) for row in report.left] == [("up1", "not asked for")]
    assert model(IMAGE).shape == (2, 4, 32, 48)


def test_a_named_step_may_have_a_guide_that_would_not_be_found():
    report = upgrade(built(Pooled), {"the network itself:0": Guide("fine.0", "fade_lite")})
    assert report.placed[0].source == (8, 2, 2)
    assert report.placed[0].guide == "fine.0"


def test_the_first_fitting_map_of_what_a_module_returns_is_taken():
    report = upgrade(built(Flat), {"up1": Guide("encoder")})
    assert (report.placed[0].guide, report.placed[0].guide_channels) == ("encoder", 8)


def test_options_reach_every_upsampler():
    model = built()
    upgrade(model, "fade", example_inputs=IMAGE, kernel_size=3, init="xavier")
    assert [step.upsampler.kernel_size for step in model.decoder.fadeup.children()] == [3, 3]
    assert all(step.blend is None for step in model.decoder.fadeup.children())


# ---- what is refused; the network is as it was ----


class Image(nn.Module):
    """Upsamples nothing but the image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image):
        return self.conv(nn.functional.interpolate(image, scale_factor=2))


REFUSED = {
    "no module": (lambda: 3, {}, r"model must be a torch.nn.Module that is not scripted, got int"),
    "no resize": (lambda: nn.Conv2d(3, 4, 1), {}, r"model must have an upsampling step .* got none \(it resizes nothing\)"),
    "only the image": (Image, {}, r"got none \(the network itself: the image\)"),
    "wrong channels": (Nested, {"example_inputs": torch.rand(2, 5, 32, 32)}, r"example_inputs must be what the network takes, got \(2, 5, 32, 32\), on which it fails: RuntimeError: "),
    "no tensor": (Nested, {"example_inputs": {"picture": 3}}, r"example_inputs must be what the network takes, got no tensor, on which it fails: TypeError"),
    "no example": (lambda: nn.Sequential(nn.Linear(3, 4)), {}, r"example_inputs must be given for a network without convolutions, got None"),
    "wrong size": (Flat, {"example_inputs": torch.rand(2, 3, 33, 33)}, r"example_inputs must be what the network takes, got \(2, 3, 33, 33\)"),
    "unknown upsampler": (Nested, {"upsampler": "fad"}, r"upsampler must be one of .* did you mean 'fade'\?"),
    "unknown trainable": (Nested, {"trainable": "decoder"}, r"trainable must be one of 'all', 'upsamplers', got 'decoder'"),
    "unknown within": (Nested, {"within": "decodr"}, r"within must be a module of the network, got 'decodr'; did you mean 'decoder'"),
    "an option out of range": (Nested, {"kernel_size": 4}, r"got none \(decoder.first: kernel_size must be an odd whole number"),
    "unequal channels": (Nested, {"upsampler": "indexnet"}, r"decoder.first: encoder_channels must be 32 like decoder_channels"),
    "unknown step": (Flat, {"upsampler": {"up3": Guide("encoder")}}, r"upsampler must name steps of the network, 'up2', 'up1', got 'up3'; did you mean "),
    "a module that resizes nothing": (Flat, {"upsampler": {"head": Guide("encoder")}}, r"got module 'head', which resizes nothing"),
    "two steps": (Nested, {"upsampler": {"decoder": Guide("encoder")}}, r"upsampler must name one step, got 'decoder', in which there are 'decoder.first', 'decoder.second'"),
    "a step twice": (Flat, {"upsampler": {"up2": Guide("encoder"), "up2:0": Guide("encoder")}}, r"upsampler must name steps|once"),
    "no guide": (Flat, {"upsampler": {"up2": "encoder"}}, r"upsampler\['up2'\] must be a fadeup.Guide\('module'\), got 'encoder'"),
    "unknown guide": (Flat, {"upsampler": {"up2": Guide("encoder.layr2")}}, r"guide must be a module of the network, got 'encoder.layr2'; did you mean 'encoder.layer2'"),
    "a later guide": (Flat, {"upsampler": {"up2": Guide("head")}}, r"guide of 'up2' must be a module that has returned a map by then, got 'head', which runs later"),
    "a smaller guide": (Flat, {"upsampler": {"up1": Guide("encoder.layer3")}}, r"guide of 'up1' must be 64 x 96 as the step's result, got 'encoder.layer3' with 16 x 24; it is smaller than the decoder's map"),
    "a guide of another size": (Flat, {"upsampler": {"up2": Guide("encoder.layer1")}}, r"guide of 'up2' must be 32 x 48 as the step's result, got 'encoder.layer1' with 64 x 96"),
    "the step's own module as guide": (Flat, {"upsampler": {"up2": Guide("up2")}}, r"guide of 'up2' must be a module that has returned a map by then, got 'up2'"),
    "a named step that cannot be placed": (Flat, {"upsampler": {"up2": Guide("encoder.layer2", "indexnet")}}, r"encoder_channels must be 32 like decoder_channels"),
    "one of two named steps": (Flat, {"upsampler": {"up1": Guide("encoder.layer1"), "up2": Guide("head")}}, r"guide of 'up2' must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_untouched(case):
    build, arguments, message = REFUSED[case]
    model = build()
    before = anatomy(model) if isinstance(model, nn.Module) else None
    with pytest.raises(ValueError, match=message):
        upgrade(model, **arguments)
    if before:
        assert_untouched(model, before)


def test_an_unknown_option_is_refused():
    model = Nested()
    before = anatomy(model)
    with pytest.raises(TypeError, match="kernel_sise"):
        upgrade(model, "fade", kernel_sise=3)
    assert_untouched(model, before)


def test_a_scripted_network_is_refused():
    with pytest.raises(ValueError, match="that is not scripted"):
        upgrade(torch.jit.trace(nn.Conv2d(3, 4, 1), torch.rand(1, 3, 4, 4)))


def test_an_upgraded_network_is_not_upgraded_again():
    model = Nested()
    upgrade(model)
    before = anatomy(model)
    with pytest.raises(
        ValueError, match=r"model must be a network as it came, got an upgraded one; use fadeup.downgrade"
    ):
        upgrade(model, "carafe")
    assert_untouched(model, before)


def test_downgrade_needs_an_upgraded_network():
    with pytest.raises(ValueError, match="model must be an upgraded network"):
        downgrade(Nested())


def test_what_fails_on_the_way_is_undone(monkeypatch):
    model = built()
    before = anatomy(model)

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("fadeup.plug.plan.freeze", fail)
    with pytest.raises(KeyboardInterrupt):
        upgrade(model, example_inputs=IMAGE)
    assert_untouched(model, before)


def test_a_path_that_changes_with_the_input_is_named():
    model = built(Wavering)
    upgrade(model, example_inputs=IMAGE * 0)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert model(IMAGE * 0).shape == (2, 4, 64, 96)
    with pytest.raises(ValueError, match=r"inputs must take the traced path.*fadeup.downgrade the network"):
        model(IMAGE + 1e3)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model(IMAGE * 0).shape == (2, 4, 64, 96)  # a failed pass leaves nothing behind


def test_a_map_of_other_channels_or_another_guide_is_named():
    model = built()
    upgrade(model, example_inputs=IMAGE)
    features = model.encoder(IMAGE)
    with pytest.raises(ValueError, match=r"decoder.first must be given maps of 32 and 16 channels .* got none"):
        model.decoder(features=features)  # the traced path gave them by position
    with pytest.raises(ValueError, match=r"got 32 and 8 channels"):
        model.decoder([features[0], features[1][:, :8], features[2]])


def test_a_size_that_the_method_does_not_serve_is_named():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 3, 1), nn.Upsample(scale_factor=3), nn.Conv2d(8, 4, 1))
    upgrade(model, "carafe", example_inputs=torch.rand(2, 3, 27, 27))
    assert model[2].scale_factor == 3
    with pytest.raises(ValueError, match="a guide of 28 x 27 for a result of 30 x 27"):
        model(torch.rand(2, 3, 28, 27))


def test_a_guide_from_an_earlier_pass_is_not_taken():
    """Guides live in the pass, so that a network that fails to make one does not get an old one."""
    model = built(Flat)
    upgrade(model, example_inputs=IMAGE)
    model(IMAGE)
    layer = model.encoder.layer2
    layer.__class__ = nn.Sequential  # it no longer tells what it returns
    with pytest.raises(ValueError, match=r"up2 must be given maps .* got none"):
        model(IMAGE)


def test_distributed_training_waits_for_no_parameter(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        model = built(Transposed)
        upgrade(model, example_inputs=IMAGE)
        parallel = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # the second pass fails where a gradient of the first never came
            parallel(IMAGE).sum().backward()
    finally:
        torch.distributed.destroy_process_group()


def test_the_faster_pass_of_our_segformer_does_not_go_around_the_upsamplers():
    pytest.importorskip("transformers", reason="needs transformers")
    from fadeup.models import SegFormer

    model = SegFormer("mit_b0", 3, "bilinear", channels=16).eval()
    image = torch.rand(1, 3, 64, 96)
    report = upgrade(model, example_inputs=image)
    assert len(report.placed) == 3
    with torch.no_grad():
        fast = model(image)
    torch.testing.assert_close(fast, model(image), atol=1e-4, rtol=1e-3)
