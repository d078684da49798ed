import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fadeup import UPSAMPLERS, build_upsampler
from fadeup.cli import main
from fadeup.cost import MATTING_HEAD, SEGMENTATION_HEAD, cost_table, curves, head_cost, network_cost, upsampler_cost
from fadeup.models import Autoencoder


@pytest.mark.parametrize(
    ("name", "matting", "segmentation"),
    [("fade", 124_008, 285_084), ("fade_lite", 27_216, 79_992), ("carafe", 263_824, 444_888), ("a2u", 40_232, 120_252)],
)
def test_parameters_of_the_published_heads(name, matting, segmentation):
    assert head_cost(name, MATTING_HEAD).parameters == matting
    assert head_cost(name, SEGMENTATION_HEAD).parameters == segmentation


@pytest.mark.parametrize(
    ("name", "matting", "segmentation"),
    [("fade", 8.853, 2.653), ("carafe", 6.002, 1.453), ("a2u", 0.654, 0.404), ("fade_lite", 1.509, 0.891)],
)
def test_gmacs_of_the_published_heads_at_512(name, matting, segmentation):
    assert round(head_cost(name, MATTING_HEAD).macs / 1e9, 3) == matting
    assert round(head_cost(name, SEGMENTATION_HEAD).macs / 1e9, 3) == segmentation


def test_indexnet_s_published_rows_are_of_other_variants():
    assert head_cost("indexnet", MATTING_HEAD, hidden_channels=None).parameters == 6_131_712
    wide = sum(upsampler_cost("indexnet", c, s, s, hidden_channels=2 * c).parameters for c, s in MATTING_HEAD)
    assert wide == 12_263_424
    assert head_cost("indexnet", MATTING_HEAD).macs / 1e9 == pytest.approx(31.94, abs=0.005)
    holistic = head_cost("indexnet", SEGMENTATION_HEAD, mode="holistic")
    assert holistic.parameters == 12_601_344
    assert holistic.macs / 1e9 == pytest.approx(30.63, abs=0.005)


def test_network_cost_is_the_counter_s_plus_the_upsamplers_own():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.up = build_upsampler("fade", 8)

        def forward(self, x):
            fine = self.conv(x)
            return self.up(fine[:, :, ::2, ::2], fine)

    cost = network_cost(Net(), torch.rand(2, 3, 12, 16))
    assert cost.macs == 3 * 8 * 9 * 12 * 16 + 6 * 8 * (429 * 8 + 72000)
    assert cost.parameters == 3 * 8 * 9 + 8 + 129 * 8 + 14490


def test_network_cost_leaves_the_network_as_it_was():
    model = Autoencoder("fade").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network_cost(model, torch.rand(1, 1, 32, 32))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_curves_grow_and_fade_is_cheaper_than_naive_at_many_channels():
    result = curves()
    assert result["channels"]["size"] == 112
    assert result["sizes"]["channels"] == 256
    for part in result.values():
        for values in part["macs"].values():
            assert values == sorted(values)
    by_channels = result["channels"]["macs"]
    assert by_channels["FADE"][-1] < by_channels["FADE-naive"][-1]
    assert by_channels["FADE"][2] == 112 * 112 * (429 * 128 + 72000)


def test_command_prints_every_upsampler(capsys):
    assert main(["cost"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in UPSAMPLERS)
    assert "+124,008" in out
    assert "+8.853" in out


def test_command_writes_json_and_figures(tmp_path, capsys):
    assert (
        main(["cost", "fade", "b3", "--channels", "64", "--size", "20", "30", "--json", str(tmp_path / "cost.json")])
        == 0
    )
    data = json.loads((tmp_path / "cost.json").read_text())
    assert [row["upsampler"] for row in data["rows"]] == ["fade", "b3"]
    assert data["rows"][0]["single"] == {"parameters": 129 * 64 + 14490, "macs": 600 * (429 * 64 + 72000)}
    for name, magic in (("f.png", b"\x89PNG"), ("f.svg", b"<?xml")):
        assert main(["cost", "fade", "--figure", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes().startswith(magic)


def test_json_on_standard_output_is_only_json(capsys):
    assert main(["cost", "carafe", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["upsampler"] == "carafe"


def test_measured_panel(tmp_path, monkeypatch):
    monkeypatch.setattr("fadeup.bench.timing.MEASURED_CHANNELS", (8, 16))
    monkeypatch.setattr("fadeup.bench.timing.MEASURED_SIZES", (4, 6))
    monkeypatch.setattr("fadeup.bench.timing.MEASURED_SECONDS", 0.05)
    timings, figure = tmp_path / "t.json", tmp_path / "f.svg"
    assert main(["cost", "fade", "--figure", str(figure), "--measure", "--timings", str(timings)]) == 0
    data = json.loads(timings.read_text())
    assert data["channels"]["x"] == [8, 16]
    assert all(value > 0 for value in data["sizes"]["median_ms"]["FADE"])
    figure.unlink()
    assert main(["cost", "fade", "--figure", str(figure), "--timings", str(timings)]) == 0
    assert "peak memory" in figure.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fadee"], "did you mean 'fade'"),
        (["fade", "--size", "1", "2", "3"], "--size must be one side, or height and width, got 3 numbers"),
        (["fade", "--figure", "x.gif"], "figure must be a .png or .svg file, got 'x.gif'"),
        (["fade", "--measure"], "--figure must be given with --measure"),
        (
            ["fade", "--figure", "x.png", "--timings", "none.json"],
            "--timings must be a file that --measure has written",
        ),
        (["fade", "--json", "/proc/none/x.json"], "must be a file that can be written"),
    ],
)
def test_bad_arguments(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["cost", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def other_timings():
    """Files that are none of timings, or parts of one."""
    path = Path(__file__).parents[1] / "benchmarks/results/figure7.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    yield from ("", "{", "[]", "{}", '{"channels": {}, "sizes": {}}', "null", "[" * 100_000)
    yield json.dumps({name: value for name, value in kept.items() if name != "channels"})
    for change in ({"x": 3}, {"x": [1]}, {"median_ms": None}):
        yield json.dumps(kept | {"sizes": kept.get("sizes", {}) | change})


@pytest.mark.parametrize("content", list(other_timings()), ids=range(11))
def test_timings_of_another_kind(content, capsys, tmp_path):
    timings, figure = tmp_path / "t.json", tmp_path / "f.png"
    timings.write_text(content)
    assert main(["cost", "fade", "--figure", str(figure), "--timings", str(timings)]) == 2
    assert f"--timings must be a file that --measure has written, got another in {timings}: " in capsys.readouterr().err
    assert not figure.exists()


def test_what_was_kept_survives_a_table_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    table = tmp_path / "table.json"
    table.write_text("earlier")
    monkeypatch.setattr("os.fsync", full)
    assert main(["cost", "fade", "--json", str(table)]) == 2
    assert "must be a file that can be written, got [Errno 28]" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


def test_table_over_all_names():
    assert [row.upsampler for row in cost_table()] == list(UPSAMPLERS)
