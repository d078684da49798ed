"""The pages of docs/upsamplers/: tables from results, a figure of every method, and what the figures are made by."""

from __future__ import annotations

import make_upsampler_figures as figures
import pytest
import torch
import upsampler_tables
from docs_results import ROOT, results

from fadeup import UPSAMPLERS
from fadeup.report import figure_bytes

FOLDER = ROOT / "docs/upsamplers"


def page(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def test_tables_are_current():
    assert upsampler_tables.stale() == []


def test_every_upsampler_has_its_times_on_one_page_and_a_score():
    named = [name for names in upsampler_tables.PAGES.values() for name in names]
    assert sorted(named) == sorted(UPSAMPLERS)
    assert set(UPSAMPLERS) <= set(results("upsamplers"))


def test_what_was_not_timed_says_so():
    lines = upsampler_tables.speed(("fade", "deconv")).splitlines()
    assert "not measured" not in lines[2]
    assert lines[4].count("not measured") == 2


def test_a_page_that_is_not_current_is_named(tmp_path, monkeypatch):
    copies = tmp_path / "docs/upsamplers"
    copies.mkdir(parents=True)
    for name in (*upsampler_tables.PAGES, "index"):
        (copies / f"{name}.md").write_text(page(name).replace("| 11.04 |", "| 1.04 |"), encoding="utf-8")
    monkeypatch.setattr(upsampler_tables, "ROOT", tmp_path)
    assert upsampler_tables.stale() == ["fade"]
    monkeypatch.setattr("sys.argv", ["upsampler_tables.py", "--check"])
    with pytest.raises(SystemExit, match=r"fade\.md is not current"):
        upsampler_tables.main()
    monkeypatch.setattr("sys.argv", ["upsampler_tables.py"])
    upsampler_tables.main()
    assert upsampler_tables.stale() == []


def test_numbers_in_the_text_are_those_of_the_experiment():
    scores = {name: f"{score['water']:.3f}" for name, score in results("upsamplers").items()}
    for place, names in upsampler_tables.PAGES.items():
        text = page(place).split("## What it does at an edge")[-1].split("## What they do at an edge")[-1]
        text = text.split("## Shapes")[0]
        assert all(scores[name] in text for name in names), place
    assert scores["b1"] == scores["b4"] == scores["carafe"] == scores["nearest"] == "0.148"
    assert scores["nearest+gate"] in page("fade")


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_every_upsampler_has_its_figure_on_its_page(name):
    (place,) = [place for place, names in upsampler_tables.PAGES.items() if name in names]
    file = f"images/upsampler-{name.replace('_', '-')}.png"
    assert f"](../{file})" in page(place)
    assert (ROOT / "docs" / file).stat().st_size <= 120_000


@pytest.mark.parametrize("place", upsampler_tables.PAGES)
def test_every_page_says_what_it_does_costs_and_when_it_loses(place):
    headings = [line.replace("they", "it").replace("do ", "does ") for line in page(place).splitlines()]
    assert {"## What it does at an edge", "## Speed"} <= set(headings)
    assert {"## When it loses", "## When it lose"} & set(headings)


@pytest.fixture(scope="module")
def pictures():
    return figures.tiles("test")


def test_effective_kernels_are_those_that_are_known(pictures):
    photo, shares = (maps[figures.TILE] for maps in pictures)
    nearest = figures.effective_kernels(figures.Task("nearest").eval(), photo, shares)
    middle = torch.zeros(7, 7)
    middle[3, 3] = 1
    assert all(torch.equal(torch.from_numpy(kernel), middle) for kernel in nearest)
    upper_left = torch.from_numpy(figures.effective_kernels(figures.Task("bilinear").eval(), photo, shares)[0])
    torch.testing.assert_close(upper_left[2:4, 2:4], torch.tensor([[1.0, 3.0], [3.0, 9.0]]) / 16)
    assert upper_left.sum() == 1


def test_the_pixels_lie_at_a_coast(pictures):
    target = pictures[1][figures.TILE][0]
    assert [float(target[place]) for place in figures.pixels()] == [0.0, 1.0, 0.0, 0.75]


def test_a_figure_of_a_method_with_a_gate(pictures, monkeypatch):
    monkeypatch.setattr(figures, "STEPS", 2)
    task = figures.trained("fade_lite", pictures)
    assert figures.scores(task, tuple(maps[:2] for maps in pictures)).keys() == {"all", "water"}
    drawn = figures.figure(task, *(maps[figures.TILE] for maps in pictures))
    assert any(axis.get_title().startswith("gate (mean 0.1") for axis in drawn.axes)
    assert len(figure_bytes(drawn)) < 120_000
