import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fadeup.bench import command, networks, quiet, tables, view
from fadeup.bench.case import DisagreementError
from fadeup.bench.networks import OWN, UPSAMPLERS, Network, build, check, run_networks
from fadeup.bench.run import Settings
from fadeup.cli import main

RESULTS = Path(__file__).parent.parent / "benchmarks/results"
TINY = Network("mit_b0", 2, 64)
QUICK = Settings(seconds=0.01, force=True)
COMMAND = ["bench", "--networks", "--seconds", "0.01", "--threads", "1", "--force"]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="read from Linux's /proc")


@pytest.fixture(scope="module")
def built():
    """The networks that are compared, tiny ones."""
    pytest.importorskip("transformers", reason="needs transformers")
    return build(TINY)


@pytest.fixture
def tiny(built, monkeypatch):
    """The command with them; each test has its own dictionary."""
    monkeypatch.setattr(networks, "build", lambda network: dict(built))
    monkeypatch.setattr(command, "run_networks", partial(run_networks, network=TINY))


@pytest.fixture(scope="module")
def small_run(built, tmp_path_factory):
    """The file that the command writes."""
    path = tmp_path_factory.mktemp("networks") / "networks.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "build", lambda network: dict(built))
        patch.setattr(command, "run_networks", partial(run_networks, network=TINY))
        assert main([*COMMAND, "--json", str(path)]) == 0
    return path


def test_the_promise_is_about_b1_on_150_classes_at_512():
    assert Network() == Network("mit_b1", 150, 512)
    assert networks.TARGET.met(1.0)
    assert not networks.TARGET.met(1.01)


def test_networks_have_the_same_weights_but_for_the_upsamplers(built):
    states = {name: built[name].state_dict() for name in UPSAMPLERS}
    for name, state in states.items():
        shared = {key for key in state if not key.startswith("head.upsamplers.")}
        assert shared == states["bilinear"].keys()
        assert all(torch.equal(state[key], states["bilinear"][key]) for key in shared)
        assert (len(shared) < len(state)) == (name != "bilinear")
    assert not any(model.training for model in built.values())
    weights = built["fade"].head.upsamplers[0].fusion.gate.weight
    assert weights.abs().max() > 0.05  # so that an upsampler that is left out shows


def test_building_leaves_the_random_state_and_the_terminal_alone(capfd):
    pytest.importorskip("transformers", reason="needs transformers")
    before = torch.get_rng_state()
    build(TINY)
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr().err == ""


def test_networks_are_checked_and_measured(small_run):
    results = json.loads(small_run.read_text())
    assert results["cases"] == []  # no quick look beside them
    result = results["networks"]
    assert result["refused"] is None
    assert list(result["checked"]) == list(UPSAMPLERS)
    assert all(0 <= share <= 1 for share in result["checked"].values())
    assert list(result["peers"]) == [OWN, *UPSAMPLERS]
    assert list(result["ratios"]) == list(UPSAMPLERS)
    for peer in result["peers"].values():
        assert peer["rounds"] >= 3
        assert 0 < peer["q1_ms"] <= peer["median_ms"] <= peer["q3_ms"]
    sizes = {name: peer["parameters"] for name, peer in result["peers"].items()}
    assert sizes[OWN] == sizes["bilinear"]
    assert sizes["fade"] - sizes["bilinear"] == 285_084
    ratio, medians = result["ratios"]["fade"]["ratio"], {n: p["median_ms"] for n, p in result["peers"].items()}
    assert ratio == pytest.approx(medians["fade"] / medians[OWN])
    (row,) = result["targets"]
    assert (row["bound"], row["at_least"], row["values"]) == (1, False, [ratio])
    assert row["met"] == (ratio <= 1)


def test_tables_follow_from_the_file(small_run, capsys):
    assert main(["bench", "--tables", str(small_run)]) == 0
    text = capsys.readouterr().out
    assert "### Networks\n\nSegFormer-B0, 2 classes, 64², batch 1, float32; transformers " in text
    spread, verdict = r"[\d.]+ \[[\d.]+, [\d.]+\]", r"(met|\*\*missed\*\*)"
    for row in (
        r"transformers \| [\d,]+ \| [\d.]+ \| [\d.]+ \| 1",
        rf"fadeup, fade_lite \| [\d,]+ \| [\d.]+ \| [\d.]+ \| {spread}",
        rf"SegFormer, FADE / transformers' bilinear \| ≤ 1× \| [\d.]+× \| [\d.]+ \| {verdict}",
    ):
        assert re.search(rf"^\| {row} \|$", text, re.M), row
    assert "### Times and memory" not in text


@pytest.mark.parametrize(("value", "verdict"), [(0.8, "met"), (1.2, "missed")])
def test_terminal_shows_networks_and_promise_within_80_columns(value, verdict, small_run, capsys):
    results = tables.read(small_run)
    results["networks"]["targets"] = [
        networks.target_row(networks.TARGET, [{"networks": {"ratios": {"fade": {"ratio": value}}}}])
    ]
    view.show(results, Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    for start in ("transformers +[0-9]", *(rf"fadeup, {name} +[0-9]" for name in UPSAMPLERS)):
        assert sum(re.match(rf"\s+{start}", line) is not None for line in lines) == 1
    assert any(re.search(rf"SegFormer, FADE / transformers' bilinear +≤ 1× .* {verdict}", line) for line in lines)


@pytest.mark.parametrize(("alone", "place"), [(True, "networks"), (False, "bench")])
def test_networks_alone_have_marks_of_their_own(alone, place, small_run, tmp_path, capsys):
    results = json.loads(small_run.read_text())
    if not alone:
        results["cases"] = [{"case": {}, "refused": "busy"}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    both = {name: (f"<!-- {name}:begin -->", f"<!-- {name}:end -->") for name in ("bench", "networks")}
    page = tmp_path / "page.md"
    page.write_text("before\n" + "between\n".join(f"{begin}old\n{end}\n" for begin, end in both.values()) + "after\n")
    for _ in range(2):  # the second time changes nothing
        assert main(["bench", "--tables", str(tmp_path / "results.json"), "--into", str(page)]) == 0
        for name, (begin, end) in both.items():
            between = page.read_text().partition(begin)[2].partition(end)[0]
            assert ("### Networks" in between) == (name == place)
            assert ("old" in between) == (name != place)
    page.write_text("none")
    assert main(["bench", "--tables", str(small_run), "--into", str(page)]) == 2
    assert "--into must be a page with <!-- networks:begin --> and " in capsys.readouterr().err


def test_files_without_networks_are_read_as_before(tmp_path):
    results = json.loads((RESULTS / "bench.json").read_text())
    results.pop("networks", None)
    (tmp_path / "bench.json").write_text(json.dumps(results))
    old = tables.read(tmp_path / "bench.json")
    assert old["networks"] is None
    assert "### Networks" not in tables.markdown(old)
    assert tables.marks(old) == (tables.BEGIN, tables.END)
    view.show(old, Console(quiet=True))


# ---- what is refused ----


@pytest.mark.parametrize(("name", "origin"), [("bilinear", OWN), ("fade", "its layers one after another")])
@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_wrong_logits_are_refused(name, origin, factor, built, monkeypatch):
    right = built[name]._fast
    image = torch.rand(1, 3, 64, 64)
    assert check(TINY, built, image)
    monkeypatch.setattr(built[name], "_fast", lambda image: right(image) * factor)
    with pytest.raises(
        DisagreementError, match=rf"SegFormer, mit_b0, .*: {name} is off by .* from {origin}, .* allowed"
    ):
        check(TINY, built, image)


def test_refused_networks_make_the_command_fail(tiny, built, monkeypatch, tmp_path, capsys):
    right = built["bilinear"]._fast
    monkeypatch.setattr(built["bilinear"], "_fast", lambda image: right(image) + 1)
    path = tmp_path / "networks.json"
    assert main([*COMMAND, "--json", str(path)]) == 1
    out = capsys.readouterr().out
    assert "refused: SegFormer, mit_b0" in out
    assert "unknown" in out
    results = tables.read(path)
    assert "peers" not in results["networks"]
    assert results["networks"]["targets"][0]["best"] is None
    assert "Refused: SegFormer, mit_b0, 2 classes, 64²: bilinear is off by" in tables.markdown(results)


@LINUX
def test_networks_are_refused_where_a_process_was_busy_meanwhile(tiny, monkeypatch):
    monkeypatch.setattr(quiet.Watch, "busy", lambda self: [quiet.Busy(7, "training", 0.5)])
    result = run_networks(Settings(seconds=0.01), network=TINY)
    assert "SegFormer, mit_b0, 2 classes, 64²: other processes must use at most 10% of a core" in result["refused"]
    assert "peers" not in result
    forced = run_networks(QUICK, network=TINY)
    assert forced["refused"] is None
    assert forced["busy"] == ["training (process 7, 50% of a core)"]


def test_targets_and_networks_go_together(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "run_targets", lambda repeat, settings, tell: ([], []))
    path = tmp_path / "both.json"
    assert main([*COMMAND, "--targets", "--json", str(path)]) == 0
    results = tables.read(path)
    assert results["targets"] == []
    assert results["networks"]["ratios"].keys() == set(UPSAMPLERS)


def test_without_transformers_nothing_is_run(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(command, "run_targets", lambda *arguments: pytest.fail("minutes were spent"))
    assert main([*COMMAND, "--targets"]) == 2
    message = r"transformers must be installed for '--networks', got .*; pip install transformers"
    assert re.search(message, capsys.readouterr().err)
    with pytest.raises(ModuleNotFoundError, match=message):
        run_networks(QUICK, network=TINY)


def test_tables_are_made_alone(capsys):
    assert main(["bench", "--networks", "--tables", "bench.json"]) == 2
    assert "--tables must be given alone or with --into, got networks too" in capsys.readouterr().err
