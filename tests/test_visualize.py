"""What upsamplers do inside networks: kernels and gates as they were used, and the figures of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from torch import nn

import fadeup
from fadeup import visualize
from fadeup.functional import WATCHERS, nearest, reassemble
from fadeup.models import SegFormer
from fadeup.report import figure_bytes


class Two(nn.Module):
    """Two upsampling steps in a row, the second without an encoder."""

    def __init__(self, first: str = "fade", second: str = "carafe"):
        super().__init__()
        self.first = fadeup.build_upsampler(first, 6, 4)
        self.second = fadeup.build_upsampler(second, 6)

    def forward(self, decoder, encoder):
        return self.second(self.first(decoder, encoder))


def inputs(size=(3, 4), out_size=(6, 8)):
    return torch.randn(1, 6, *size), torch.randn(1, 4, *out_size)


def test_steps_are_watched_in_order_with_what_went_in_and_came_out():
    network = Two()
    decoder, encoder = inputs()
    first, second = visualize.watch(network, decoder, encoder)
    assert [(step.name, step.kind) for step in (first, second)] == [("first", "FADE"), ("second", "CARAFE")]
    assert first.decoder.equal(decoder)
    assert first.encoder.equal(encoder)
    assert second.encoder is None
    assert second.decoder.equal(first.result)
    torch.testing.assert_close(second.result, network.eval()(decoder, encoder))


def test_kernels_and_gate_give_the_result_by_the_formula():
    network = Two()
    (step, _) = visualize.watch(network, *inputs())
    kernels, gate = step.kernels(), step.gate()
    torch.testing.assert_close(kernels.sum(1), torch.ones(1, 6, 8))
    up = reassemble(step.decoder, kernels.log())
    detail = network.first.fusion.project(step.encoder)
    torch.testing.assert_close(gate * detail + (1 - gate) * up, step.result, rtol=1e-4, atol=1e-5)
    fine, coarse = step.logits()
    torch.testing.assert_close((fine + nearest(coarse, (6, 8))).softmax(1), kernels)


def test_watching_leaves_nothing_behind():
    network = Two().train()
    visualize.watch(network, *inputs())
    assert network.training
    assert not WATCHERS
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    with pytest.raises(ValueError, match="encoder must be at least 3 x 4 like decoder"):
        visualize.watch(network, *inputs(out_size=(2, 2)))
    assert not WATCHERS


def test_a_segformer_that_shares_its_guide_is_watched():
    network = SegFormer("mit_b0", num_classes=3, upsampler="fade", channels=8)
    steps = visualize.watch(network, torch.randn(1, 3, 64, 64))
    assert len(steps) == 6
    assert all(step.gate().shape[2:] == step.result.shape[2:] for step in steps)
    assert all(step.kernels().shape[1] == 25 for step in steps)


class Plain(nn.Module):
    """Somebody else's network with one interpolation."""

    def __init__(self):
        super().__init__()
        self.stem, self.down, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        high = self.stem(x)
        return self.head(nn.functional.interpolate(self.down(high), scale_factor=2.0))


def test_an_upgraded_network_is_watched():
    network, picture = Plain(), torch.randn(1, 3, 12, 16)
    fadeup.upgrade(network, {"the network itself": fadeup.Guide("stem")}, example_inputs=picture)
    (step,) = visualize.watch(network, picture)
    assert step.kind == "FADE"
    assert step.kernels().shape == (1, 25, 12, 16)


def test_a_network_without_upsamplers_is_refused():
    with pytest.raises(ValueError, match="network must have upsamplers of fadeup that run, got Conv2d without"):
        visualize.watch(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("kind", ["bilinear", "carafe"])
def test_steps_without_kernels_or_of_several_sets_are_named(kind):
    upsampler = fadeup.build_upsampler(kind, 6, **({"groups": 2} if kind == "carafe" else {}))
    (step,) = visualize.watch(upsampler, torch.randn(1, 6, 3, 4))
    named = rf"{step.kind} \({step.kind}\)"
    with pytest.raises(ValueError, match=f"step must be of one kernel for each pixel, got {named}"):
        step.kernels()
    assert step.gate() is None
    with pytest.raises(ValueError, match=f"steps must have a gate, got {named}"):
        visualize.figure_gates([step])


def pictures_of(figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axis in figure.axes for image in axis.images]


def test_the_gates_figure_shows_the_photo_and_every_gate():
    steps = visualize.watch(Two("fade", "nearest"), *inputs())
    photo = np.full((6, 8, 3), 7, np.uint8)
    shown = pictures_of(visualize.figure_gates(steps, photo))
    assert (shown[0] == photo).all()
    np.testing.assert_array_equal(shown[1], steps[0].gate()[0, 0].numpy())


def test_the_kernels_figure_has_four_kernels_and_what_they_share():
    step = visualize.watch(Two(), *inputs())[0]
    point = (0.5, 0.3)  # decoder point (1, 1)
    assert visualize.pixels_above(step, point) == [(2, 2), (2, 3), (3, 2), (3, 3)]
    shown = pictures_of(visualize.figure_kernels(step, point, np.zeros((6, 8, 3), np.uint8)))
    assert [x.shape for x in shown] == [(6, 8, 3)] + [(5, 5)] * 9
    fine, coarse = step.logits()
    np.testing.assert_array_equal(shown[1], fine[0, :, 2, 2].reshape(5, 5).numpy())
    np.testing.assert_array_equal(shown[5], coarse[0, :, 1, 1].reshape(5, 5).numpy())
    np.testing.assert_array_equal(shown[9], step.kernels()[0, :, 3, 3].reshape(5, 5).numpy())


def test_kernels_without_a_shared_part_are_one_row():
    step = visualize.watch(Two(), *inputs())[1]
    assert len(pictures_of(visualize.figure_kernels(step, (0.0, 1.0)))) == 4


@pytest.mark.parametrize("point", [(-0.1, 0.5), (0.5, 1.01)])
def test_a_point_outside_is_refused(point):
    step = visualize.watch(Two(), *inputs())[0]
    with pytest.raises(ValueError, match=r"point must be within 0 and 1 in both directions, got \("):
        visualize.figure_kernels(step, point)


def test_panels_have_the_same_crop_beneath():
    a, b = np.zeros((20, 30, 3), np.uint8), np.arange(600, dtype=np.uint8).reshape(20, 30)
    shown = pictures_of(visualize.figure_panels({"a": a, "b": b}, (slice(2, 8), slice(4, 10))))
    assert [x.shape for x in shown] == [(20, 30, 3), (20, 30), (6, 6, 3), (6, 6)]
    np.testing.assert_array_equal(shown[3], b[2:8, 4:10])
    assert len(pictures_of(visualize.figure_panels({"b": b}))) == 2
    with pytest.raises(ValueError, match=r"panels must be pictures of one size, got \[\(20, 30\), \(20, 31\)\]"):
        visualize.figure_panels({"a": a, "b": np.zeros((20, 31), np.uint8)})
    with pytest.raises(ValueError, match="panels must be pictures of one size, got none"):
        visualize.figure_panels({})


def test_boundary_errors_are_right_missed_or_invented():
    truth = torch.zeros(40, 40, dtype=torch.uint8)
    truth[:, 20:] = 1
    labels = torch.zeros_like(truth)
    labels[:, 24:] = 1
    picture = visualize.boundary_errors(labels, truth, ratio=0.02)  # one pixel wide
    assert tuple(picture[5, 5]) == (255, 255, 255)
    assert tuple(picture[5, 19]) == visualize.RIGHT
    assert tuple(picture[5, 20]) == visualize.MISSED
    assert tuple(picture[5, 23]) == visualize.INVENTED
    assert tuple(picture[0, 5]) == (255, 255, 255)  # the end of the picture is no boundary
    assert not (visualize.boundary_errors(truth, truth) == visualize.MISSED).all(-1).any()
    with pytest.raises(ValueError, match=r"labels must be \(40, 40\) like truth, got \(40, 39\)"):
        visualize.boundary_errors(labels[:, :39], truth)


def snapshots(steps=(1, 5), pictures=(0, 3), scale=1.0):
    random = np.random.default_rng(0)
    names = [f"{kind}.{n}" for kind in ("feature", "gradient") for n in pictures]
    return {step: {name: scale * step * random.random((6, 8)).astype(np.float32) for name in names} for step in steps}


def test_snapshots_are_read_back(tmp_path):
    (tmp_path / "run" / "snapshots").mkdir(parents=True)
    kept = snapshots()
    for step, arrays in kept.items():
        np.savez(tmp_path / "run" / "snapshots" / f"step{step:06d}.npz", **arrays)
    found = visualize.read_snapshots(tmp_path / "run")
    assert found.keys() == kept.keys()
    np.testing.assert_array_equal(found[5]["gradient.3"], kept[5]["gradient.3"])
    with pytest.raises(FileNotFoundError, match=r"runs must be folders with snapshots, got \S+ without; fadeup train"):
        visualize.read_snapshots(tmp_path)


def test_features_have_their_own_range_and_gradients_that_of_the_run():
    runs = {"fade": snapshots(), "carafe": snapshots((1, 5, 9), scale=2.0)}
    features = pictures_of(visualize.figure_snapshots(runs, "feature"))
    assert len(features) == 4  # two runs, two steps in common
    assert all(x.min() == 0 and x.max() == 255 for x in features)
    gradients = pictures_of(visualize.figure_snapshots(runs, "gradient", 3))
    assert gradients[0].max() < 100  # step 1 of a run whose largest is at step 5
    assert gradients[1].max() == 255


def test_the_animation_has_a_frame_for_each_step_and_stops_at_the_last():
    runs = {"fade": snapshots(), "carafe": snapshots()}
    movie = Image.open(io.BytesIO(visualize.gif_snapshots(runs, "feature")))
    assert movie.n_frames == 2
    assert movie.size == ((8 + 4 + 8) * 26, 6 * 26)
    assert movie.info["duration"] == 600
    movie.seek(1)
    assert movie.info["duration"] == 1800


@pytest.mark.parametrize(
    ("runs", "kind", "picture", "message"),
    [
        ({"a": snapshots(), "b": snapshots((2,))}, "feature", None, r"got steps \[\], pictures \[0, 3\]"),
        ({"a": snapshots()}, "feature", 4, r"got steps \[1, 5\], pictures \[0, 3\] without 4"),
        ({"a": snapshots()}, "weights", None, "kind must be 'feature' or 'gradient', got 'weights'"),
    ],
)
def test_runs_that_have_nothing_in_common_are_refused(runs, kind, picture, message):
    with pytest.raises(ValueError, match=message):
        visualize.figure_snapshots(runs, kind, picture)


def test_figures_are_png_and_svg_and_leave_pyplot_alone():
    step = visualize.watch(Two(), *inputs())[0]
    figure = visualize.figure_kernels(step, (0.5, 0.5))
    assert figure_bytes(figure).startswith(b"\x89PNG")
    assert b"<svg" in figure_bytes(figure, "svg")
    assert not pyplot.get_fignums()
